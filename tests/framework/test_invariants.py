"""The invariants of composition, with every built-in mechanism in one run.

Each mechanism's own tests hold it to them alone; here they act on the same steps and features. That
such a run goes on from a checkpoint, and is saved as it was trained, is in test_combinations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from expected import MECHANISMS
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins import Method, Plugin, plugins
from sae_plugins.framework import registry
from sae_plugins.framework.architectures import architecture as architecture_named
from sae_plugins.framework.features import Merged, Permuted, Reset
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.resolve import resolve
from sae_plugins.testing import (
    CASES,
    D_IN,
    D_SAE,
    PluginContract,
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

pytestmark = pytest.mark.two_architectures
F64 = torch.float64

ACTING = {name: row.together for name, row in MECHANISMS.items()}
DOING_NOTHING = {name: row.nothing for name, row in MECHANISMS.items() if row.nothing is not None}


def supported(architecture: str, options: dict[str, dict[str, Any]]) -> list[str]:
    """The mechanisms of `options` that an architecture supports."""
    row = architecture_named(architecture)

    def works(name: str) -> bool:
        plan = resolve([name], options={name: options[name]})
        return all(plugin.unsupported(row, given) is None for plugin, given in plan.plugins)

    return [name for name in options if works(name)]


@cache
def acting(architecture: str) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Every mechanism that an architecture supports, and their options."""
    options = dict(ACTING)
    if not architecture_named(architecture).weighs_tokens:
        options["input-norm-l1"] = {"per": "batch"}
    names = supported(architecture, options)
    return tuple(names), {name: options[name] for name in names}


class Watch(Plugin):
    """Notes what was done to features, the norms of the decoder rows and the coefficients."""

    name = "watch"
    after = tuple(ACTING)
    transient = ("norms", "changes", "coefficients")

    @hookimpl
    def attached(self) -> None:
        self.norms: list[torch.Tensor] = []
        self.changes: list[Any] = []
        self.coefficients: list[Any] = []

    @hookimpl
    def after_forward(self, step_input: Any) -> None:
        self.coefficients.append(dict(step_input.coefficients))

    @hookimpl
    def before_forward(self, run: Any) -> None:
        self.norms.append(run.sae.W_dec.norm(dim=1))

    @hookimpl
    def features_changed(self, change: Any) -> None:
        self.changes.append(change)


def build(
    architecture: str,
    *names: Any,
    options: dict[str, dict[str, Any]] | None = None,
    dtype: torch.dtype = F64,
    sae: dict[str, Any] | None = None,
    **config: Any,
) -> Any:
    """A trainer with `names`, or with every mechanism and a `Watch`."""
    if not names:
        every, options = acting(architecture)
        names = (*every, Watch)
    with plugins(*names, options=options):
        return tiny_trainer(
            tiny_sae(architecture, dtype=dtype, **(sae or {})), tiny_batches(dtype=dtype), **config
        )


def trained(architecture: str, *names: Any, dtype: torch.dtype = F64, **arguments: Any) -> Any:
    trainer = build(architecture, *names, dtype=dtype, **arguments)
    advance(trainer, tiny_batches(dtype=dtype))
    trainer.set_final_sae_metadata()
    return trainer


@cache
def run(architecture: str) -> Any:
    """A run with every mechanism, for tests that only look at it."""
    return trained(architecture)


def carry_out(trainer: Any) -> None:
    """What the trainer does at the end of a step."""
    with torch.no_grad():
        for change in trainer.run.features.carry_out():
            trainer.host.notify("features_changed", run=trainer.run, change=change)


def test_every_mechanism_has_its_row() -> None:
    installed = {
        name
        for name, (entry, *_) in registry.installed().items()
        if entry.target.startswith("sae_plugins.mechanisms.")
    }
    assert ACTING.keys() == installed


@pytest.mark.parametrize("architecture", CASES)
def test_they_act(architecture: str) -> None:
    """Or the tests below would show nothing."""
    names, _ = acting(architecture)
    trainer = run(architecture)
    summary = trainer.run.summary
    assert {type(change) for change in trainer.run.plugin("watch").changes} == {
        *(Merged, Reset, Permuted)
    }
    assert summary["reorder/reorderings"] > 1
    assert (trainer.run.plugin("importance").gradient_norms > 0).any()
    if "activation-threshold" in names:
        assert trainer.run.metrics["activation-threshold/shut"]() > 0
    assert len(names) >= 10


def contract(architecture: str) -> Any:
    """The contract of a method that has every mechanism."""
    names, its_options = acting(architecture)

    class Everything(Method):
        name = "everything"
        mechanisms = names

    class Contract(PluginContract):
        plugin = Everything
        options = its_options

    return Contract()


@pytest.mark.parametrize("architecture", CASES)
def test_1_a_permutation_changes_nothing_but_positions(architecture: str) -> None:
    """The SAE's output, losses and all state, for every step after it."""
    contract(architecture).test_does_not_care_in_which_order_features_stand(architecture)


@pytest.mark.parametrize("architecture", CASES)
def test_2_a_permutation_and_its_inverse_are_the_identity(architecture: str) -> None:
    """Of all state, bitwise, and for what is trained from then on."""
    one, other = build(architecture), build(architecture)
    batches = tiny_batches(dtype=F64)
    for trainer in (one, other):
        advance(trainer, batches[:7])
    parts = [start + torch.randperm(end - start) for start, end in other.run.features.groups]
    order = torch.cat(parts)
    before = snapshot(other)
    for step in (order, order.argsort()):
        other.run.features.permute(step)
        carry_out(other)
        assert bool(differences(snapshot(other), before)) == (step is order)
    for trainer in (one, other):
        advance(trainer, batches[7:])
    assert differences(snapshot(one), snapshot(other)) == {}


@pytest.mark.parametrize("architecture", CASES)
def test_3_mechanisms_that_do_nothing_leave_the_run_bitwise_alone(architecture: str) -> None:
    """All of them at once, in float32: they draw nothing, add nothing, round nothing."""
    names = supported(architecture, DOING_NOTHING)
    options = {name: DOING_NOTHING[name] for name in names}
    trainer = trained(architecture, *names, options=options, dtype=torch.float32)
    alone = tiny_trainer(tiny_sae(architecture), tiny_batches())
    advance(alone, tiny_batches())
    expected = snapshot(alone)
    found = differences({name: snapshot(trainer)[name] for name in expected}, expected)
    assert found == {}


@pytest.mark.parametrize("architecture", CASES)
def test_6_a_reset_puts_back_all_state_of_its_features_and_no_other(architecture: str) -> None:
    """Moments, counters and what any mechanism tracks."""
    trainer = build(architecture)
    advance(trainer, tiny_batches(dtype=F64)[:8])
    (probe,) = tiny_batches(5, steps=1, dtype=F64)
    index = torch.tensor([3, 17])
    rest = torch.tensor([i for i in range(D_SAE) if i not in index])
    before, acts = snapshot(trainer), trainer.sae.encode(probe).detach()
    trainer.run.features.reset(index, torch.randn(2, D_IN, dtype=F64))
    carry_out(trainer)
    after = snapshot(trainer)
    for entry in trainer.run.features.tracked():
        for axis in entry.axes:
            old, new = before[entry.name], after[entry.name]
            assert torch.equal(old.index_select(axis, rest), new.index_select(axis, rest))
            values = new.index_select(axis, index)
            if entry.reset is not None:
                expected = torch.full_like(values, entry.reset)
            elif entry.name.startswith(("W_", "averaged-weights/")):  # begins along the direction
                continue
            else:
                expected = old.index_select(axis, index)
            assert torch.equal(values, expected), entry.name
    if architecture in ("standard", "gated", "jumprelu"):  # features do not compete for k
        assert torch.equal(trainer.sae.encode(probe)[:, rest], acts[:, rest])


@cache
def halfway(architecture: str) -> Any:
    trainer = build(architecture)
    advance(trainer, tiny_batches(dtype=F64)[:6])
    return trainer


@pytest.mark.parametrize("architecture", ["standard", "gated", "matryoshka_batchtopk"])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_merging_and_resetting_mean_the_same_wherever_features_stand(
    architecture: str, data: st.DataObject
) -> None:
    """Before a permutation or, at the features' new places, after it."""
    trainer = halfway(architecture)
    features, before = trainer.run.features, snapshot(trainer)
    parts = [data.draw(st.permutations(range(start, end))) for start, end in features.groups]
    order = torch.tensor([place for part in parts for place in part])
    chosen = torch.tensor(data.draw(st.permutations(range(D_SAE))))
    into, source, index = chosen[: 3 * data.draw(st.integers(1, 6))].view(3, -1)
    directions = torch.randn(2, len(into), D_IN, dtype=F64)
    weight = torch.tensor(data.draw(st.sampled_from([0.5, 1.0])))

    def merge_and_reset(places: torch.Tensor) -> None:
        features.reset(places[index], directions[1])
        features.merge(places[into], places[source], directions[0], weight=weight)
        carry_out(trainer)

    def permute() -> None:
        features.permute(order)
        carry_out(trainer)

    merge_and_reset(torch.arange(D_SAE))
    permute()
    expected = snapshot(trainer)
    for entry in features.tracked():
        entry.get().copy_(before[entry.name])
    permute()
    merge_and_reset(order.argsort())
    assert differences(snapshot(trainer), expected, tolerance=1e-12) == {}
    for entry in features.tracked():
        entry.get().copy_(before[entry.name])


@pytest.mark.parametrize("architecture", CASES)
def test_8_decoder_rows_have_norm_one_at_every_step(architecture: str) -> None:
    """Merged, reset, reordered and slowed down, to 1e-6."""
    norms = torch.stack(run(architecture).run.plugin("watch").norms)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", CASES)
def test_9_the_order_in_which_mechanisms_are_named_does_not_matter(architecture: str) -> None:
    """But for rounding, where multipliers and loss terms are put together in another order."""
    names, options = acting(architecture)
    one = run(architecture)
    other = trained(architecture, Watch, *reversed(names), options=options)
    orders = [[plugin.name for plugin in trainer.host.plugins] for trainer in (one, other)]
    assert sum(a != b for a, b in zip(*orders, strict=True)) > len(names) / 2
    assert differences(snapshot(one), snapshot(other), tolerance=1e-6) == {}


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_10_the_coefficient_is_the_product_of_its_multipliers_and_ends_at_zero(
    architecture: str,
) -> None:
    """Never negative, whatever multiplies it; 0 in the warm-up and at the last step."""
    seen = run(architecture).run.plugin("watch").coefficients
    values = [torch.as_tensor(value).double() for step in seen for value in step.values()]
    assert [bool((value == 0).all()) for value in values] == [True, *[False] * 10, True]
    assert all(bool((value >= 0).all()) for value in values)


@pytest.mark.parametrize("architecture", CASES)
def test_12_statistics_stay_float32_beside_bfloat16_weights(architecture: str) -> None:
    """What is tracked, and what else mechanisms keep; for autocast, see the contract."""
    trainer = trained(architecture, dtype=torch.bfloat16)
    assert trainer.sae.W_dec.dtype == torch.bfloat16
    assert trainer.sae.W_dec.isfinite().all()
    kept = {
        f"{plugin.name}.{name}": value
        for plugin in trainer.host.plugins
        for name, value in plugin.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    assert len(kept) >= 8
    assert {name for name, value in kept.items() if value.dtype != torch.float32} == set()
    assert all(value.isfinite().all() for value in kept.values())
