"""Memory: what a run needs of it, and what there is, to a container and on a device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.util import str_to_dtype

from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import size
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import trained_positions
from sae_plugins.resume.mixing import INDEX_BYTES, most_rows
from sae_plugins.runs.setup import SAELensSettings

_ROOT = Path("/")
_OF_SLURM = {
    "SLURM_MEM_PER_NODE": "",
    "SLURM_MEM_PER_CPU": "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_GPU": "SLURM_GPUS_ON_NODE",
}
"""What says how many MiB a job has of a machine, with what says how often; not all clusters have
control groups that keep it to that."""


@dataclass(frozen=True)
class Need:
    """What one thing takes of a device's memory.

    Attributes:
        what: it is, and the flags that it follows from.
        count: of bytes.
        device: torch's name of where it is.
        is_there: it is in memory already.
        of_sae: each SAE in training takes as much of its own.
    """

    what: str
    count: float
    device: str
    is_there: bool = False
    of_sae: bool = False


@dataclass(frozen=True)
class Budget:
    """What things take of one device's memory together, and what there is of it."""

    device: str
    needs: Sequence[Need]
    free: float

    @property
    def needed(self) -> float:
        """Bytes for all of them."""
        return sum(need.count for need in self.needs)


def budgets(needs: Sequence[Need]) -> list[Budget]:
    """A budget for each device; the largest needs first."""
    found = []
    for device in dict.fromkeys(_name(need.device) for need in needs):
        here = [need for need in needs if _name(need.device) == device]
        free = available(device) + sum(need.count for need in here if need.is_there)
        found.append(Budget(device, sorted(here, key=lambda need: -need.count), free))
    return found


def check_memory(needs: Sequence[Need]) -> None:
    """Refuse what does not fit into memory together.

    Raises:
        PluginError: lists what needs how much, the largest first.
    """
    for budget in budgets(needs):
        if budget.needed > budget.free:
            listed = ", ".join(f"{size(need.count)} for {need.what}" for need in budget.needs)
            raise PluginError(
                f"the run needs {size(budget.needed)} of memory on {budget.device}, where "
                f"{size(budget.free)} are available: {listed}; lower the largest of these"
            )


def needs_of_sae(settings: SAELensSettings, sae: Any) -> list[Need]:
    """What an SAE in training takes, and a batch that goes through it."""
    batch = settings.runner.get("train_batch_size_tokens", 4096)
    each = str_to_dtype(sae.dtype).itemsize
    through = batch * (3 * sae.d_sae + sae.d_in)
    return [
        Need(
            f"the SAE with its gradients and Adam's moments (--d_sae {sae.d_sae})",
            bytes_in_training(sae),
            settings.device,
            of_sae=True,
        ),
        Need(f"a batch (--train_batch_size_tokens {batch})", through * each, settings.device),
    ]


def bytes_in_training(sae: Any) -> int:
    """What an SAE in training holds between steps, by its config."""
    numbers = 4 * sae.d_sae * (2 * sae.d_in + 1)  # weights, gradients, Adam's two moments
    return int(numbers * str_to_dtype(sae.dtype).itemsize)


def beside_saes(needs: Sequence[Need], device: str) -> float:
    """What a run needs of a device that does not grow with the number of SAEs in training."""
    here = (need for need in needs if _name(need.device) == _name(device))
    return sum(need.count for need in here if not need.of_sae)


def needs_of_language_model(
    model: Any, config: Any, is_loaded: bool, shards: int = 1
) -> list[Need]:
    """What a language model takes, a batch of it, and the buffer that it fills.

    Args:
        model: with its shapes, if without numbers.
        config: SAELens' of the run.
        is_loaded: it is in memory already.
        shards: data shards that share the buffer, of which each rank has its own.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    bytes_per_token = config.sae.d_in * str_to_dtype(config.dtype).itemsize
    prompts = config.store_batch_size_prompts
    return [
        Need(
            "the language model",
            sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            config.llm_device,
            is_there=is_loaded,
        ),
        Need(
            f"a batch of it (--store_batch_size_prompts {prompts})",
            prompts * config.context_size * bytes_per_token,
            config.llm_device,
        ),
        Need(
            f"the buffer of activations (--n_batches_in_buffer {config.n_batches_in_buffer})",
            _bytes_of_buffer(config, shards),
            config.act_store_device,
        ),
    ]


def count_parameters(config: Any) -> int:
    """How many numbers are trained in an SAE with SAELens' config."""
    sae_class, _ = get_sae_training_class(config.architecture())
    with torch.device("meta"):
        sae: Any = sae_class(replace(config, device="meta"))
    return sum(parameter.numel() for parameter in sae.parameters())


def _bytes_of_buffer(config: Any, shards: int) -> float:
    """What the buffer takes of memory, with the activations that come into it.

    The part of a shard is no less than what comes at a time.
    """
    is_cached = config.use_cached_activations
    positions = trained_positions(config.context_size, config.seqpos_slice)
    largest = config.store_batch_size_prompts * (config.context_size if is_cached else positions)
    rows = most_rows(
        config.n_batches_in_buffer * positions // shards,
        config.train_batch_size_tokens // shards,
        config.activations_mixing_fraction,
        largest,
    )
    # SAELens keeps what a language model gives it in float32
    kept_as = str_to_dtype(config.dtype) if is_cached else torch.float32
    per_row = config.sae.d_in * kept_as.itemsize
    own = max(1, shards // ranks().size)
    return float(own * rows * (per_row + INDEX_BYTES) + largest * per_row)


# -- what there is ---------------------------------------------------------------------------------


def _name(device: str) -> str:
    """One name for each device."""
    known = torch.device(device)
    return f"cuda:{known.index or 0}" if known.type == "cuda" else known.type


def memory_of(device: str) -> float:
    """Bytes of memory that a device has, at most."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min([there, *(limit for limit, _ in _limits(_ROOT))])


def available(device: str) -> float:
    """Bytes of memory that can still be taken on a device, within a container's limits."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    free = memory_of(device)
    with suppress(OSError):
        known = re.search(r"^MemAvailable:\s*(\d+) kB", _read(_ROOT / "proc/meminfo"), re.MULTILINE)
        free = 1024.0 * int(known[1]) if known else free
    return min([free, *(limit - used for limit, used in _limits(_ROOT))])


def _limits(root: Path) -> Iterator[tuple[float, float]]:
    """Of a job of Slurm, and each control group that this process is in: its limit, and its use."""
    for name, counted in _OF_SLURM.items():
        granted = float(os.environ.get(name, 0)) * float(os.environ.get(counted, 1))
        if granted:  # else, all of the machine
            yield granted * 2**20, _own(root)
    try:
        lines = _read(root / "proc/self/cgroup").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = base / path.lstrip("/")  # which a container may see as the root
        for folder in (own, *own.parents[: len(own.relative_to(base).parts)]):
            with suppress(OSError, ValueError):  # "max" is no number, and no limit
                yield _limit(folder, *names)


def _limit(folder: Path, limit: str, usage: str, reclaimable: str) -> tuple[float, float]:
    most, used = (float(_read(folder / name)) for name in (limit, usage))
    known = re.search(rf"^{reclaimable} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
    return most, used - (float(known[1]) if known else 0.0)


def _own(root: Path) -> float:
    """Bytes of memory that this process has."""
    with suppress(OSError):
        return float(_read(root / "proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0.0


def _read(file: Path) -> str:
    return file.read_text("utf-8")
