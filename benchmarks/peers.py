"""Training steps of other libraries, each installed into a folder of its own.

What a library imports beside torch and does not need for a step has a stand-in, so that nothing
of the project's environment is changed.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
from standins import stand_in
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "build" / "peers"
PEERS = {
    "sparsify": "eai-sparsify==1.3.3",
    "dictionary_learning": "dictionary-learning==0.1.0",
}
"""The modules and what installs them."""
NOT_NEEDED = ("natsort", "schedulefree", "nnsight", "zstandard", "circuitsvis", "umap")


class PeerMissing(Exception):
    """A library that cannot be installed or imported, and why."""


def steps_of_peer(
    peer: str, d_sae: int, k: int, batches: list[Tensor]
) -> dict[str, Callable[[], None]]:
    """Functions that train an SAE of a library on the next batch, by name.

    Args:
        peer: a key of `PEERS`.
        d_sae: features.
        k: of them that fire per token, where an SAE has such a number.
        batches: [B, d_in] each, taken again and again.

    Raises:
        PeerMissing: it cannot be had here.
    """
    _import(peer)
    make = {"sparsify": _sparsify, "dictionary_learning": _dictionary_learning}[peer]
    return make(batches[0].shape[1], d_sae, k, batches)


def _import(peer: str) -> None:
    folder = FOLDER / PEERS[peer]
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*pip, "--target", str(folder), PEERS[peer]], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise PeerMissing(f"{PEERS[peer]} is left out, it cannot be installed: {reason}")
    if not torch.cuda.is_available():
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # sparsify's own switch: its kernel needs a GPU
    if str(folder) not in sys.path:
        stand_in(*NOT_NEEDED)
        sys.path.append(str(folder))
    try:
        importlib.import_module(peer)
    except Exception as error:  # whatever another library does when it is imported
        raise PeerMissing(f"{PEERS[peer]} is left out, it cannot be imported: {error}") from error


def _sparsify(
    d_in: int, d_sae: int, k: int, batches: list[Tensor]
) -> dict[str, Callable[[], None]]:
    """What its `Trainer.fit` does in a step, where it is no function; with torch's Adam.

    Its default, too, has no auxiliary loss; it has signs of gradients in Adam's place.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    def training(activation: str) -> Callable[[], None]:
        config = SparseCoderConfig(num_latents=d_sae, k=k, activation=activation)
        sae = SparseCoder(d_in, config, device=batches[0].device, dtype=torch.float32)
        optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
        since_fired = torch.zeros(d_sae, dtype=torch.long, device=batches[0].device)
        fired = torch.zeros_like(since_fired, dtype=torch.bool)
        provider = cycle(batches)

        def step() -> None:
            batch = next(provider)
            sae.set_decoder_norm_to_unit_norm()
            out = sae(batch)
            fired[out.latent_indices.flatten()] = True
            out.fvu.backward()
            sae.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()
            since_fired.add_(len(batch))
            since_fired[fired] = 0
            fired.zero_()

        return step

    return {f"sparsify, {name}": training(name) for name in ("topk", "groupmax")}


def _dictionary_learning(
    d_in: int, d_sae: int, k: int, batches: list[Tensor]
) -> dict[str, Callable[[], None]]:
    """Its trainers' own `update`."""
    from dictionary_learning.trainers import BatchTopKTrainer, StandardTrainer, TopKTrainer

    fields: dict[str, Any] = {"steps": 10**6, "activation_dim": d_in, "dict_size": d_sae}
    fields |= {"layer": 0, "lm_name": "none", "device": str(batches[0].device)}

    def training(make: Any, **more: Any) -> Callable[[], None]:
        trainer, provider, numbers = make(**fields, **more), cycle(batches), count(1)
        return lambda: trainer.update(next(numbers), next(provider))

    return {
        "dictionary_learning, standard": training(StandardTrainer),
        "dictionary_learning, topk": training(TopKTrainer, k=k),
        "dictionary_learning, batchtopk": training(BatchTopKTrainer, k=k),
    }
