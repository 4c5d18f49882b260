"""With no plugin, or one that does nothing, training is SAELens' own, bit for bit."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework.host import EVENTS
from sae_plugins.testing import (
    CASES,
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)


class Inert(Plugin):
    """All eleven events, and nothing in them."""

    name = "inert"
    claims = ("decoder_norm",)


def _nothing(event: str) -> Any:
    def implementation(self, run):
        self.heard = {*getattr(self, "heard", ()), event}

    return hookimpl(implementation)


for _event in EVENTS:
    setattr(Inert, _event, _nothing(_event))


def trained(*names: Any, architecture: str = "standard", compiled: Any = None, **config: Any):
    batches = tiny_batches()
    with plugins(*names):
        trainer = tiny_trainer(tiny_sae(architecture), batches, **config)
    if compiled is not None:
        forward = trainer.sae.training_forward_pass
        trainer.sae.training_forward_pass = torch.compile(forward, backend=compiled)
    before = vars(trainer.sae).get("training_forward_pass")
    losses = advance(trainer, batches)
    assert vars(trainer.sae).get("training_forward_pass") is before  # compiled still, or none
    return trainer, losses


def trained_by_sae_lens(architecture: str, **config: Any):
    batches = tiny_batches()
    trainer = tiny_trainer(tiny_sae(architecture), batches, **config)
    assert type(trainer).__module__ == "sae_lens.training.sae_trainer"
    return trainer, advance(trainer, batches)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("architecture", CASES)
def test_training_is_bitwise_that_of_sae_lens(architecture: str, autocast: bool) -> None:
    expected, expected_losses = trained_by_sae_lens(architecture, autocast=autocast)
    before = snapshot(tiny_trainer(tiny_sae(architecture)))
    assert "W_dec" in differences(before, snapshot(expected))
    for names in ((), (Inert,)):
        trainer, losses = trained(*names, architecture=architecture, autocast=autocast)
        assert losses == expected_losses
        assert differences(snapshot(trainer), snapshot(expected)) == {}


def test_the_inert_plugin_hears_every_event_of_training(tmp_path) -> None:
    trainer, _ = trained(Inert)
    trainer.run.features.permute(torch.arange(24))
    advance(trainer, tiny_batches(steps=1))
    trainer.set_final_sae_metadata()
    trainer.sae.save_inference_model(tmp_path)
    assert trainer.host.plugins[0].heard == set(EVENTS)


class Operations(TorchDispatchMode):
    """Counts operations, the bytes of the tensors that they make, and the peak of those alive."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(storage) for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for storage in storages(result):
            if id(storage) not in given and storage not in self.known:
                self.known.add(storage)
                self.bytes += storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def freed(self, size: int) -> None:
        self.live -= size


def storages(values: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def test_the_peak_is_that_of_what_is_alive_at_once() -> None:
    with Operations() as operations:
        for _ in range(3):
            a = torch.zeros(1000)
            b = a.view(10, 100) + 1
            del a, b
    assert operations.bytes == 3 * 2 * 4000
    assert operations.peak == 2 * 4000
    assert operations.live == 0


@pytest.mark.parametrize("architecture", CASES)
def test_without_plugins_no_operation_and_no_byte_is_added(architecture: str) -> None:
    def cost(context: Any) -> tuple[int, int, int]:
        if context is None:
            trainer = tiny_trainer(tiny_sae(architecture))
        else:
            with context:
                trainer = tiny_trainer(tiny_sae(architecture))
        batches = tiny_batches(steps=4)
        with Operations() as operations:
            advance(trainer, batches)
        return operations.count, operations.bytes, operations.peak

    plain = cost(None)
    assert cost(plugins()) == plain
    more = cost(plugins(Observing))
    assert all(ours > theirs for ours, theirs in zip(more, plain, strict=True))  # they do count


class Observing(Plugin):
    """Events around the forward pass, with state that torch.compile could not trace."""

    name = "observing"

    @hookimpl
    def attached(self, run):
        self.calls: list[str] = []

    @hookimpl
    def before_forward(self, run, step_input):
        self.calls.append("before_forward")
        if run.architecture.name != "standard":
            return None
        return {"l1": 1 + step_input.sae_in.norm(dim=1)}

    @hookimpl
    def after_forward(self, output):
        self.calls.append(f"l0 = {int(output.feature_acts.count_nonzero())}")

    @hookimpl
    def extra_losses(self, run):
        return {"decoder": 1e-2 * run.sae.W_dec.square().sum()}


@pytest.mark.ci
def test_plugins_see_the_events_of_a_compiled_forward_pass() -> None:
    """SAELens compiles the SAE's forward pass after it has built the trainer."""
    torch._dynamo.reset()
    from torch._dynamo.backends.debugging import aot_eager

    compilations = []

    def backend(module, inputs, **options):
        compilations.append(module)
        return aot_eager(module, inputs, **options)

    compiled, losses = trained(Observing, compiled=backend)
    eager, eager_losses = trained(Observing)
    assert compilations
    assert len(compilations) <= 3  # plugins stay outside: their state causes no recompilation
    (seen,), (expected,) = compiled.host.plugins, eager.host.plugins
    assert seen.calls == expected.calls
    assert seen.calls.count("before_forward") == 12
    assert differences(snapshot(compiled), snapshot(eager), tolerance=1e-6) == {}
    for one, other in zip(losses, eager_losses, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
        assert one["observing/decoder"] > 0
