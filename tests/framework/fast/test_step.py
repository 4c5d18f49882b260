"""In float64 the fast step is SAELens', on every architecture and with every mechanism."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from expected import MECHANISMS

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework import registry
from sae_plugins.framework.architectures import HAVING_A_FAST_STEP
from sae_plugins.framework.fast import choice
from sae_plugins.framework.fast.choice import Choice, forced
from sae_plugins.framework.fast.pairs import Sparse
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.testing import (
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)

METHODS = ("hybrid-order", "hierarchical", "adaptive-threshold", "adaptive-orthogonality")


class Looking(Plugin):
    """Losses on all that the output of a step shows."""

    name = "looking"

    @hookimpl
    def after_forward(self, output):
        self.l0 = float((output.feature_acts != 0).sum(-1).double().mean())

    @hookimpl
    def extra_losses(self, output):
        weights = torch.linspace(-1, 1, output.feature_acts.numel()).view_as(output.feature_acts)
        return {
            "acts": 1e-2 * (weights * output.feature_acts).square().sum(),
            "pre": 1e-3 * (weights * output.hidden_pre).sum(),
            "out": 1e-2 * output.sae_out.abs().sum(),
        }

    @hookimpl
    def step_ended(self, output):
        self.seen = output.feature_acts.sum() + output.hidden_pre.sum() + output.loss


@dataclass(frozen=True)
class Case:
    """A training with the fast step and without it.

    Attributes:
        with_: a mechanism or a method, or "looking"; none without a name.
        window: `dead_feature_window`, below which SAELens' auxiliary loss has something to do.
    """

    architecture: str
    sparse: bool
    with_: str = ""
    window: int = 0
    accumulate: int = 1
    weight_decay: float = 0.0
    steps: int = 12

    def __str__(self) -> str:
        words = [self.architecture, "sparse" if self.sparse else "dense", self.with_]
        words += [f"window {self.window}", f"accumulate {self.accumulate}", f"{self.weight_decay}"]
        return ", ".join(word for word in (*words, f"{self.steps} steps") if word)


def _all() -> Iterator[Case]:
    mechanisms = [name for name, row in MECHANISMS.items() if row.changes == "training"]
    for architecture, sparse in itertools.product(HAVING_A_FAST_STEP, (False, True)):
        case = Case(architecture, sparse)
        for window, accumulate, decay in itertools.product((0, 10**6), (1, 2), (0.0, 0.1)):
            settings = replace(case, window=window, accumulate=accumulate, weight_decay=decay)
            for name in ("", "looking", *mechanisms):
                if name not in MECHANISMS or architecture not in MECHANISMS[name].refused:
                    yield replace(settings, with_=name)
        yield from (replace(case, with_=name, steps=200) for name in METHODS)


CASES = [*_all()]


def _covering() -> Iterator[Case]:
    """Cases of which each pair of values of two of their fields is in one, so far as there are."""
    pairs = {case: _pairs(case) for case in CASES if case.steps == 12}
    missing = set().union(*pairs.values())
    while missing:
        best = max(pairs, key=lambda case: len(missing & pairs[case]))
        missing -= pairs[best]
        yield best


def _pairs(case: Case) -> set[Any]:
    return set(itertools.combinations(vars(case).items(), 2))


FIRST = {*_covering()}


def _chosen(case: Case) -> dict[str, Any]:
    """Names, and what of a method does not work on the architecture, and options."""
    if case.with_ in ("", "looking"):
        return {"names": [Looking] if case.with_ else []}
    if case.with_ in MECHANISMS:
        row = MECHANISMS[case.with_]
        options = {**row.alone, **row.on.get(case.architecture, {})}
        return {"names": [case.with_], "options": {case.with_: options}}
    rows = {name: MECHANISMS[name] for name in registry.load(case.with_).mechanisms}
    without = [name for name, row in rows.items() if case.architecture in row.refused]
    on = {n: row.on[case.architecture] for n, row in rows.items() if case.architecture in row.on}
    on = {name: options for name, options in on.items() if name not in without}
    return {"names": [case.with_], "without": without, "options": on}


def _trained(case: Case, fast: bool) -> tuple[Any, list[dict[str, float]]]:
    chosen = _chosen(case)
    names = chosen.pop("names")
    training = {"fast_step": fast, "accumulate": case.accumulate, "weight_decay": case.weight_decay}
    batches = tiny_batches(steps=case.steps, dtype=torch.float64)
    sae = tiny_sae(case.architecture, dtype=torch.float64)
    if hasattr(sae, "threshold"):
        sae.threshold.data = sae.threshold.data.double()
    with plugins(*names, **chosen, training=training, seed=0):
        trainer = tiny_trainer(sae, batches, dead_feature_window=case.window)
    with forced(case.sparse):
        losses = advance(trainer, batches)
    return trainer, losses


def _numbers(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(tree, "state_dict"):
        tree = tree.state_dict()
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _numbers(value, f"{path}/{name}")
    elif isinstance(tree, (list, tuple)):
        for place, value in enumerate(tree):
            yield from _numbers(value, f"{path}/{place}")
    elif isinstance(tree, (int, float, torch.Tensor)):
        yield path, torch.as_tensor(tree)


def _without_noise(value: torch.Tensor) -> torch.Tensor:
    value = value.double()
    return torch.where(value.abs() < 1e-13, 0.0, value)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=str(c), marks=() if c in FIRST else pytest.mark.slow) for c in CASES],
)
def test_it_is_the_step_of_sae_lens_to_rounding(case: Case) -> None:
    (theirs, their_losses), (ours, our_losses) = (_trained(case, fast) for fast in (False, True))
    tolerance = {"jumprelu": 1e-8}.get(case.architecture, 1e-9)
    if case.with_ == "adaptive-threshold":  # whose gates turn rounding into more, in 200 steps
        tolerance = 1e-7
    states = []
    for trainer in (ours, theirs):
        state = trainer.state_dict()
        state.pop("fast", None)
        del state["run"]["updates"]  # which SAELens by itself does not count
        state["optimizer"] = state["optimizer"]["state"]
        states.append({name: _without_noise(value) for name, value in _numbers(state)})
    assert not differences(*states, tolerance=tolerance)
    for one, other in zip(our_losses, their_losses, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-12)
        assert list(one) == list(other)
    named = {plugin.name: plugin for plugin in ours.host.plugins}
    meddling = "activation-threshold" in named
    if importance := named.get("importance"):  # measured in the step before, or of what is left
        meddling |= importance.in_use and importance.options.step == "before"
    assert bool(ours._fast.said) == meddling
    assert ours._fast.sparse == (case.sparse and not meddling)


def test_the_cases_meet_dead_features_and_features_that_live() -> None:
    def greatest(window: int) -> float:
        _, losses = _trained(Case("topk", True, window=window), True)
        return max(step["auxiliary_reconstruction_loss"] for step in losses)

    assert greatest(0) > 0
    assert greatest(10**6) == 0


# -- the choice of pairs is part of a run ----------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_a_resumed_run_is_bitwise_the_same_across_a_change_of_pairs(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    batches = tiny_batches(steps=16)
    for place, batch in enumerate(batches):
        batch *= 1e-3 if place // 4 % 2 else 1  # few features fire, and many
    monkeypatch.setattr(choice, "LOOK_EVERY", 3)
    monkeypatch.setitem(choice.SPARSE_BELOW, ("cpu", "float32"), 0.3)

    def trainer() -> Any:
        with plugins("reorder", training={"fast_step": True, "accumulate": 2}, seed=0):
            trainer = tiny_trainer(tiny_sae(architecture), batches)
        with torch.no_grad():
            (trainer.sae.b_gate if architecture == "gated" else trainer.sae.b_enc).fill_(-0.1)
        return trainer

    whole, chosen = trainer(), []
    states = []
    for place, batch in enumerate(batches):
        path = tmp_path / f"{place}.safetensors"
        write_state(path, whole.state_dict())
        states.append(path)
        chosen.append(whole._fast.sparse)
        advance(whole, [batch])
    assert {*itertools.pairwise(chosen)} >= {(False, True), (True, False)}
    for place in range(1, len(batches), 2):
        resumed = trainer()
        resumed.load_state_dict(read_state(states[place]))
        advance(resumed, batches[place:])
        assert differences(snapshot(resumed), snapshot(whole)) == {}


def test_pairs_are_listed_where_few_features_fire() -> None:
    trainer = train(training={"fast_step": True})
    assert not trainer._fast.sparse  # half of them fire
    fired = train(architecture="topk", training={"fast_step": True}, steps=2)
    assert not fired._fast.sparse  # 4 of 24
    sae = tiny_sae("topk", d_sae=480)
    with plugins(training={"fast_step": True}):
        trainer = tiny_trainer(sae)
    advance(trainer, tiny_batches(steps=1))
    assert trainer._fast.sparse  # 4 of 480


@pytest.mark.parametrize("masked", [False, True])
def test_a_list_of_too_many_pairs_is_not_made(masked: bool) -> None:
    choice, pre = Choice(), torch.randn(8, 400)
    for shift, listed in ((3.0, True), (-3.0, False)):
        pairs = choice.pairs(pre - shift, 0, lambda shift=shift: pre > shift, masked)
        assert isinstance(pairs, Sparse) is listed
    assert not choice.sparse
    assert (pairs.mask is not None) is masked


# -- what it cannot do -----------------------------------------------------------------------------

UNSUPPORTED = {
    "abstopk": ("abstopk", {}, "AbsTopKTrainingSAE has no fast one"),
    "scaled": ("standard", {"normalize_activations": "layer_norm"}, "normalize_activations"),
    "lp_norm": ("standard", {"lp_norm": 2.0}, "lp_norm is 2.0"),
    "pre_act": ("jumprelu", {"pre_act_loss_coefficient": 0.1}, "pre_act_loss_coefficient"),
    "tanh": ("jumprelu", {"jumprelu_sparsity_loss_mode": "tanh"}, "sparsity_loss_mode is tanh"),
    "by level": ("matryoshka_batchtopk", {"use_matryoshka_aux_loss": True}, "aux_loss is True"),
    "bfloat16": ("standard", {"dtype": torch.bfloat16}, "weights are torch.bfloat16"),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_sae_lens_own_step_takes_its_place_and_that_is_said_once(what: str, caplog) -> None:
    architecture, config, reason = UNSUPPORTED[what]
    found = []
    for fast in (False, True):
        sae = tiny_sae(architecture, **config)
        with plugins(training={"fast_step": fast}), caplog.at_level(logging.WARNING):
            trainer = tiny_trainer(sae)
        batches = tiny_batches(steps=3, dtype=sae.dtype)
        found.append([advance(trainer, [batch])[0] for batch in batches])
    assert found[1] == [pytest.approx(step, rel=1e-2) for step in found[0]]
    (said,) = [record.getMessage() for record in caplog.records if "fast_step" in record.message]
    assert reason in said


@pytest.mark.parametrize("place", ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_recons"])
def test_whoever_listens_in_the_step_hears(place: str) -> None:
    sae, heard = tiny_sae("standard"), []
    with plugins(training={"fast_step": True}):
        trainer = tiny_trainer(sae)
    getattr(sae, place).register_forward_hook(lambda *seen: heard.append(seen))
    advance(trainer, tiny_batches(steps=2))
    assert len(heard) == 2


# -- what holds what -------------------------------------------------------------------------------


def test_an_sae_keeps_no_trainer_and_its_copy_trains_itself() -> None:
    with plugins("reorder", training={"fast_step": True}):
        trainer = tiny_trainer(tiny_sae("topk"))
    sae, gone = trainer.sae, weakref.ref(trainer)
    other = copy.deepcopy(sae)
    assert other.training_forward_pass.sae is other
    assert sae.training_forward_pass.sae is sae
    del trainer
    gc.collect()
    assert gone() is None


def test_a_run_without_it_goes_on_from_checkpoints_of_earlier_versions() -> None:
    earlier = {"accumulate", "clip", "weight_decay", "loss_form", "calibrate_threshold"}
    plain = train(steps=1)
    assert plain.facts()["training"].keys() == earlier
    assert "fast" not in plain.state_dict()
    newer = {"fast_step": True, "matmul_precision": "high"}
    fast = train(steps=1, training=newer)
    assert fast.facts()["training"].items() >= newer.items()
    assert "fast" in fast.state_dict()


def test_a_trained_sae_has_sae_lens_own_step_again() -> None:
    with plugins(training={"fast_step": True}):
        trainer = tiny_trainer(tiny_sae("topk"), tiny_batches())
        own = trainer.fit()
    assert "training_forward_pass" not in vars(own)


def test_adam_is_fused() -> None:
    plain, fast = (train(training={"fast_step": fast}, steps=1) for fast in (False, True))
    assert not plain.optimizer.param_groups[0]["fused"]
    assert fast.optimizer.param_groups[0]["fused"]


def test_the_precision_of_products_is_that_of_the_step_alone() -> None:
    seen = []

    class Precision(Plugin):
        name = "precision"

        @hookimpl
        def after_forward(self):
            seen.append(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision()
    train(Precision, training={"matmul_precision": "high"}, steps=1)
    train(Precision, steps=1)
    assert seen == ["high", before]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("architecture", HAVING_A_FAST_STEP)
@pytest.mark.parametrize("sparse", [False, True])
def test_under_autocast_products_are_bfloat16_and_all_else_float32(
    architecture: str, sparse: bool
) -> None:
    batches, losses = tiny_batches(steps=4), []
    for fast in (False, True):
        with plugins("firing-frequency", training={"fast_step": fast}):
            trainer = tiny_trainer(tiny_sae(architecture), batches, autocast=True)
        with forced(sparse):
            losses.append(advance(trainer, batches))
    assert losses[1] == [pytest.approx(step, rel=0.03) for step in losses[0]]
    assert losses[1] != advance(tiny_trainer(tiny_sae(architecture), batches), batches)
    low = [n for n, value in snapshot(trainer).items() if value.is_floating_point()]
    assert not [name for name in low if snapshot(trainer)[name].itemsize < 4]
