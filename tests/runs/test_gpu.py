"""On a CUDA device: the promises that a device could break. `pytest -m gpu` runs them.

`SAE_PLUGINS_TEST_DEVICE=cpu` has them run where there is none, to try the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae_plugins import Plugin, hookimpl, plugins, testing
from sae_plugins.framework.architectures import HAVING_A_FAST_STEP
from sae_plugins.framework.fast.choice import forced
from sae_plugins.framework.host import EVENTS
from sae_plugins.testing import CASES, PluginContract, advance, differences, snapshot

DEVICE = os.environ.get("SAE_PLUGINS_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
REORDER = {"reorder": {"start": 2, "interval": 3}}

# the helpers as they are, before the fixture below puts their results on the device
tiny_sae, tiny_batches, tiny_trainer = (
    testing.tiny_sae,
    testing.tiny_batches,
    testing.tiny_trainer,
)


def sae_on_device(*args: Any, **kwargs: Any) -> Any:
    return tiny_sae(*args, **{"device": DEVICE, **kwargs})


def batches_on_device(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
    return [batch.to(DEVICE) for batch in tiny_batches(*args, **kwargs)]


def trainer_on_device(*args: Any, **kwargs: Any) -> Any:
    return tiny_trainer(*args, **{"device": DEVICE, **kwargs})


@pytest.fixture(autouse=True)
def _on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `sae_plugins.testing` makes, the contract included, is on the device."""
    monkeypatch.setattr(testing, "tiny_sae", sae_on_device)
    monkeypatch.setattr(testing, "tiny_batches", batches_on_device)
    monkeypatch.setattr(testing, "tiny_trainer", trainer_on_device)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


class Inert(Plugin):
    """All eleven events, and nothing in them."""

    name = "inert"
    claims = ("decoder_norm",)


for _event in EVENTS:
    setattr(Inert, _event, hookimpl(lambda self, run: None))


def trained(context: Any, architecture: str, dtype: torch.dtype = torch.float32, **config: Any):
    """A trainer that was built inside `context` and trained on the device, and its losses."""
    batches = batches_on_device(dtype=dtype)
    with context:
        sae = sae_on_device(architecture, dtype=dtype)
        trainer = trainer_on_device(sae, batches, **config)
    return trainer, advance(trainer, batches)


def by_sae_lens(architecture: str, **config: Any):
    batches = batches_on_device()
    trainer = trainer_on_device(sae_on_device(architecture), batches, **config)
    assert type(trainer).__module__ == "sae_lens.training.sae_trainer"
    return trainer, advance(trainer, batches)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("architecture", CASES)
def test_training_is_bitwise_that_of_sae_lens(architecture: str, autocast: bool) -> None:
    expected, expected_losses = by_sae_lens(architecture, autocast=autocast)
    again, _ = by_sae_lens(architecture, autocast=autocast)
    if differences(snapshot(again), snapshot(expected)):
        pytest.skip("SAELens by itself does not repeat bit for bit on this device")
    for names in ((), (Inert,)):
        trainer, losses = trained(plugins(*names), architecture, autocast=autocast)
        assert trainer.sae.W_dec.device.type == DEVICE
        assert losses == expected_losses
        assert differences(snapshot(trainer), snapshot(expected)) == {}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_hybrid_order_trains(autocast: bool) -> None:
    trainer = testing.train("hybrid-order", options=REORDER, autocast=autocast)
    assert trainer.run.updates == 3
    assert trainer.run.summary["reorder/reorderings"] > 0
    assert trainer.run.summary["reorder/largest_loss_change"] < (1e-2 if autocast else 1e-5)
    for entry in trainer.run.features.tracked():
        tensor = entry.get()
        assert tensor.device.type == DEVICE, entry.name
        assert bool(tensor.isfinite().all()), entry.name
    norms = trainer.sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("architecture", HAVING_A_FAST_STEP)
def test_the_fast_step_is_that_of_sae_lens_and_repeats(architecture: str, sparse: bool) -> None:
    states = []
    for fast in (False, True, True):
        with forced(sparse):
            context = plugins("reorder", options=REORDER, training={"fast_step": fast})
            states.append(snapshot(trained(context, architecture, torch.float64)[0]))
    stock, one, other = states
    assert not differences(one, stock, tolerance=1e-6)
    assert not differences(one, other)


@pytest.mark.parametrize("architecture", CASES)
def test_a_reordering_changes_no_loss(architecture: str) -> None:
    config = {"architecture": architecture, "dtype": torch.float64}
    _, expected = trained(plugins(), **config)
    trainer, losses = trained(plugins("reorder", options=REORDER), **config)
    identity = next(
        entry.get() for entry in trainer.run.features.tracked() if entry.name == "reorder/identity"
    )
    assert not torch.equal(identity, torch.arange(len(identity), device=identity.device))
    for one, other in zip(losses, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


class TestHybridOrder(PluginContract):
    plugin = "hybrid-order"
    options = REORDER
    # equal bits are a promise of the CPU: SAELens' kernels may add in any order here
    test_repeats_with_the_same_seed = None


class TestNanGuard(PluginContract):
    plugin = "nan-guard"
    test_repeats_with_the_same_seed = None
    test_trains = None  # an observer, which is compared bit for bit
