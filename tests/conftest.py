"""What every test starts from: seeded generators, one thread, quiet logs."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from contracts import pytest_collection_modifyitems, pytest_generate_tests
from hub import Ask, LoopbackHub

__all__ = ["pytest_collection_modifyitems", "pytest_generate_tests"]


atexit.register(gc.unfreeze)
tqdm.monitor_interval = 0  # before fixtures of a session draw bars


# Garbage is collected between tests alone. Before Python 3.12, a context is corrupted where a
# finaliser sets a variable while another is being set (python/cpython#148891), and torch's
# configuration consists of such variables.
gc.disable()


def pytest_runtest_logfinish() -> None:
    gc.collect(0)  # all that this test has left, since nothing else collects


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> None:
    """No search for garbage looks at what imports have left: that would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _no_threads_stay() -> Iterator[None]:
    """No thread of a library runs beside the tests of other modules, some of which compile.

    A bar starts one that watches all bars, and wandb some that serve it, until the process ends.
    """
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    of_libraries = ("wandb", "tqdm")
    left = [each.name for each in threading.enumerate() if each.name.startswith(of_libraries)]
    assert left == []


@pytest.fixture(autouse=True, scope="session")
def _no_power_cut() -> Iterator[None]:
    """Nothing waits for the disk, which takes 10 ms each time: no test pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def loopback_hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub on this machine, empty."""
    hub = LoopbackHub(tmp_path / "hub-cache")
    yield hub
    hub.close()


@pytest.fixture(params=["here", pytest.param("alone", marks=pytest.mark.ci)])
def ask(
    request: pytest.FixtureRequest, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> Ask:
    """A function that gives what code prints that has the Hub for its own.

    It runs here, or alone in a process that has imported nothing of ours, which takes seconds.
    """
    if request.param == "alone":
        return loopback_hub.run
    return lambda code, **environment: loopback_hub.run_here(code, monkeypatch, **environment)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same global random state at the start of every test; torch only where it is imported."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.manual_seed(0)
        else:  # the same, without a note for the devices that there are not, which takes longer
            torch.default_generator.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """SAELens logs and tqdm draws bars; neither belongs in a test report."""
    logger = logging.getLogger("sae_lens")
    if logger.level != logging.ERROR:  # to set a level, logging looks through all loggers
        logger.setLevel(logging.ERROR)


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures say in words what these show: drawing takes most of a short run's time."""
    import sketches

    monkeypatch.setattr(sketches.Figure, "savefig", sketches.write)


@pytest.fixture
def drawn(sketched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in this test of a file that sketches them."""
    import sketches

    monkeypatch.setattr(sketches.Figure, "savefig", sketches.draw)


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures are very small pictures, which Weights & Biases takes."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save(_: Figure, path: Path, **__: Any) -> None:
        Image.new("RGB", (8, 8)).save(path, format="png")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def tiny_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A tiny model and text in the embedded world's place, in an empty working directory."""
    import torch
    from datasets import Dataset
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from sae_plugins import world

    d_model, vocabulary, context = 16, 50, 16

    def text(split: str) -> Dataset:
        rng = np.random.default_rng(["train", "heldout"].index(split))
        return Dataset.from_dict({"tokens": rng.integers(vocabulary, size=(300, context)).tolist()})

    def model(device: str = "cpu", dtype: str = "float32") -> Any:
        config = HookedTransformerConfig(
            n_layers=3,
            d_model=d_model,
            n_ctx=context,
            d_head=8,
            n_heads=2,
            d_vocab=vocabulary,
            act_fn="gelu",
            seed=0,
            device=device,
            dtype=getattr(torch, dtype),
        )
        with torch.random.fork_rng(devices=[]):
            return HookedTransformer(config)

    monkeypatch.setattr(world, "load_hooked_transformer", model)
    monkeypatch.setattr(world, "load_text", text)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(
        model=model, text=text, d_model=d_model, vocabulary=vocabulary, context=context
    )
