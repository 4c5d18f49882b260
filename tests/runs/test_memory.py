"""Memory: what there is of it, in a container too, and what is refused before it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_plugins.base.errors import PluginError
from sae_plugins.runs import memory
from sae_plugins.runs.language_model import LanguageModelSetup
from sae_plugins.runs.load import load_setup
from sae_plugins.runs.memory import Need, available, check_memory, memory_of
from sae_plugins.runs.setup import SAELensSettings

GB = 1_000_000_000
UNLIMITED = 9223372036854771712
"""What version 1 of control groups says where there is no limit."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system in place of the machine's, with 16 GB of which 8 are available."""
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    put(tmp_path, "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    pages = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 16_000_000}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    for name in memory._OF_SLURM:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(root: Path, file: str, text: object) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(f"{text}\n")


def group(root: Path, folder: str, most: object, used: int, cache: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    put(root, f"{folder}/{names[0]}", most)
    put(root, f"{folder}/{names[1]}", used)
    put(root, f"{folder}/memory.stat", f"anon 5\n{names[2]} {cache}\nactive_file 7")


def numbers() -> tuple[float, float]:
    return memory_of("cpu") / GB, available("cpu") / GB


def test_a_machine_without_limits(root: Path) -> None:
    assert numbers() == pytest.approx((16, 8))
    put(root, "proc/self/cgroup", "0::/user.slice")
    group(root, "sys/fs/cgroup/user.slice", "max", 5 * GB, 0)
    assert numbers() == pytest.approx((16, 8))
    put(root, "proc/self/cgroup", "4:cpu,memory:/")
    group(root, "sys/fs/cgroup/memory", UNLIMITED, 5 * GB, 0, version=1)
    assert numbers() == pytest.approx((16, 8))


@pytest.mark.parametrize(
    ("version", "line"), [(2, "0::/docker/abc"), (1, "9:name=systemd:/\n4:cpu,memory:/docker/abc")]
)
@pytest.mark.parametrize("inside", ["", "docker", "docker/abc"])
def test_a_container_s_limit_is_one_wherever_it_is_set(
    root: Path, version: int, line: str, inside: str
) -> None:
    """Its own group may be the root of what it sees; what the kernel can give up is not used."""
    put(root, "proc/self/cgroup", line)
    base = "sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory"
    group(root, f"{base}/{inside}", 4 * GB, 3 * GB, 2 * GB, version)
    assert numbers() == pytest.approx((4, 3))


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({"MEM_PER_NODE": "4096"}, 4096),
        ({"MEM_PER_NODE": "0"}, 16 * GB / 2**20),  # --mem 0 is all of it
        ({"MEM_PER_CPU": "1024", "CPUS_ON_NODE": "3"}, 3072),
        ({"MEM_PER_GPU": "2048", "GPUS_ON_NODE": "2"}, 4096),
    ],
)
def test_a_job_of_slurm_has_what_it_was_granted(
    told: dict[str, str], most: float, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    put(root, "proc/self/statm", "9000000 1000000 5 1 0 8 0")  # of 1000 bytes
    free = min(8 * GB, most * 2**20 - GB)
    assert numbers() == pytest.approx((most * 2**20 / GB, free / GB))


def need(count: float, what: str = "this", device: str = "cpu", there: bool = False) -> Need:
    return Need(what, count * GB, device, there)


def test_it_is_the_sum_that_must_fit(root: Path) -> None:
    check_memory([need(4), need(4)])
    with pytest.raises(PluginError) as refused:
        check_memory([need(3, "the batch"), need(5.5, "the SAE (--d_sae 7)")])
    assert str(refused.value) == (
        "the run needs 8.5 GB of memory on cpu, where 8.0 GB are available: 5.5 GB for the SAE "
        "(--d_sae 7), 3.0 GB for the batch; lower the largest of these"
    )


def test_what_is_there_already_is_counted_once(root: Path) -> None:
    check_memory([need(5, "the language model", there=True), need(8)])
    with pytest.raises(PluginError, match=r"13\.5 GB of memory on cpu, where 13\.0 GB"):
        check_memory([need(5, "the language model", there=True), need(8.5)])


def test_devices_have_memory_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = memory.available
    monkeypatch.setattr(memory, "available", lambda d: 20 * GB if "cuda" in d else own(d))
    check_memory([need(19, device="cuda"), need(7)])
    with pytest.raises(PluginError, match="on cuda:0"):
        check_memory([need(19, device="cuda"), need(2, device="cuda:0")])


def test_a_run_on_a_language_model(tiny_world: Any, root: Path) -> None:
    """The measured peak of the buffer, and all that is there at once."""
    runner = {
        "hook_name": "blocks.1.hook_resid_post", "context_size": 16, "n_batches_in_buffer": 100,
        "train_batch_size_tokens": 64, "store_batch_size_prompts": 4, "device": "cpu",
    }  # fmt: skip
    settings = SAELensSettings("sae-plugins-world", sae={"d_sae": 32}, runner=runner)
    setup = load_setup(settings)
    assert isinstance(setup, LanguageModelSetup)
    needs = memory.needs_of_language_model(setup.looks.model, setup.config(None), False)
    needs += memory.needs_of_sae(settings, setup.sae_config)
    counts = {need.what.split(" (")[0]: need.count for need in needs}
    weights = sum(p.numel() for p in setup.looks.model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in setup.looks.model.buffers())
    assert counts == {
        "the language model": 4 * weights + buffers,
        "a batch of it": 4 * 4 * 16 * 16,
        "the buffer of activations": (1600 - 1 + 64) * (4 * 16 + 24) + 64 * 4 * 16,
        "the SAE with its gradients and Adam's moments": 4 * 4 * 32 * (2 * 16 + 1),
        "a batch": 4 * 64 * (3 * 32 + 16),
    }
    free = sum(counts.values())
    for left, fits in ((2000, True), (-2000, False)):
        put(root, "proc/meminfo", f"MemAvailable: {(free + left) // 1024:.0f} kB")
        if fits:
            load_setup(settings)
        else:
            with pytest.raises(PluginError, match="for the buffer of activations"):
                load_setup(settings)


@pytest.mark.parametrize("model", ["synthetic:toy", "sae-plugins-world"])
def test_four_million_features_end_in_a_sentence(model: str, root: Path, tiny_world: Any) -> None:
    at = (
        {}
        if "toy" in model
        else {
            "hook_name": "blocks.1.hook_resid_post",
            "context_size": 16,
            "n_batches_in_buffer": 512,
        }
    )
    settings = SAELensSettings(model, sae={"d_sae": 4_000_000}, runner={"device": "cpu", **at})
    with pytest.raises(PluginError, match=r"for a batch \(--train_batch_size_tokens 4096\)"):
        load_setup(settings)


def test_on_this_machine() -> None:
    assert 0 < available("cpu") <= memory_of("cpu")
    if torch.cuda.is_available():
        assert 0 < available("cuda") <= memory_of("cuda")
