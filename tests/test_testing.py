"""The contract catches plugins that break it, and says what to fix."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_plugins import Plugin, hookimpl
from sae_plugins.testing import CASES, D_SAE, PluginContract, differences, tiny_batches, tiny_sae


class Good(Plugin):
    """Its own randomness, tracked state that acts on the training, an edit after the update."""

    name = "good"

    @hookimpl
    def attached(self, run: Any) -> None:
        self.strength = torch.rand(D_SAE, generator=self.rng)
        self.strength = run.features.track(self, "strength", self.strength, reset=0.5)

    @hookimpl
    def extra_losses(self, run: Any) -> dict[str, torch.Tensor]:
        return {"penalty": (self.strength * run.sae.W_dec.square().sum(dim=1)).sum()}

    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.W_dec.data.clamp_(-1, 1)


class TestGood(PluginContract):
    plugin = Good


class TestMethodByName(PluginContract):
    plugin = "hybrid-order"
    options = {"reorder": {"start": 2, "interval": 3}}


class Untracked(Good):
    @hookimpl
    def attached(self, run: Any) -> None:
        self.strength = torch.linspace(0, 1, D_SAE)


class Positional(Good):
    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.W_dec.data[0] *= 0.5


class DrawsFromTorch(Good):
    @hookimpl
    def after_forward(self) -> None:
        torch.rand(1)


class DrawsFromNumpy(Good):
    @hookimpl
    def after_forward(self) -> None:
        np.random.rand()


class DrawsFromPython(Good):
    @hookimpl
    def after_forward(self) -> None:
        random.random()


class Remembers(Good):
    runs = 0

    @hookimpl
    def after_update(self, run: Any) -> None:
        type(self).runs += 1
        run.sae.W_dec.data *= 1 - 1e-3 / self.runs


class Impatient(Good):
    @hookimpl
    def step_ended(self, run: Any) -> None:
        run.sae.W_dec.data *= 0.99


class Coarse(Good):
    @hookimpl
    def attached(self, run: Any) -> None:
        self.strength = run.features.track(self, "s", torch.ones(D_SAE, dtype=torch.bfloat16))


class Exploding(Good):
    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.W_dec.data /= 0.0


class Freezing(Good):
    @hookimpl
    def before_update(self, run: Any) -> None:
        for parameter in run.sae.parameters():
            parameter.grad = None


class Meddler(Good):
    observes_only = True


class Curt(Good):
    @classmethod
    def unsupported(cls, architecture: Any, options: Any) -> str | None:
        return "no" if architecture.tied else None


class Picky(Good):
    @classmethod
    def unsupported(cls, architecture: Any, options: Any) -> str | None:
        return "it is not in the mood for this"


class Hides(Good):
    """State that decides what the plugin does, where no checkpoint finds it."""

    transient = ("age",)

    @hookimpl
    def attached(self, run: Any) -> None:
        self.age = 0

    @hookimpl
    def extra_losses(self, run: Any) -> dict[str, torch.Tensor]:
        self.age += 1
        return {"age": 1e-3 * self.age * run.sae.W_dec.square().sum()}


class Renews(Hides):
    """State that is saved and then made again."""

    transient = ()

    def load_state_dict(self, state: Any) -> None:
        pass


class Encloses(Good):
    @hookimpl
    def attached(self, run: Any) -> None:
        self.strength = lambda: torch.ones(D_SAE)

    @hookimpl
    def extra_losses(self, run: Any) -> dict[str, torch.Tensor]:
        return {"penalty": (self.strength() * run.sae.W_dec.square().sum(dim=1)).sum()}


class Bypasses(Good):
    """Takes activations from where an output keeps them."""

    @hookimpl
    def extra_losses(self, output: Any) -> dict[str, torch.Tensor]:
        return {"acts": vars(output)["feature_acts"].to_dense().square().sum()}


class Asks(Good):
    """Does by its rank."""

    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.W_dec.data *= 1 - 1e-3 * int(os.environ.get("RANK", "0"))


class Unseeded(Good):
    """Draws from a generator of its own, which each process seeds for itself."""

    @hookimpl
    def attached(self, run: Any) -> None:
        self.draws = np.random.default_rng()

    @hookimpl
    def extra_losses(self, run: Any) -> dict[str, torch.Tensor]:
        return {"noise": self.draws.random() * run.sae.W_dec.square().sum()}

    transient = ("draws",)


class Counts(Good):
    """A statistic of the process, which acts on nothing yet."""

    @hookimpl
    def step_ended(self, run: Any) -> None:
        self.process = os.getpid()


class Fails(Good):
    @hookimpl
    def step_ended(self, run: Any) -> None:
        if os.environ.get("RANK") == "1" and run.step == 2:
            raise ValueError("no such thing on this rank")


class Sets(Good):
    """A coefficient that is what it says, whatever others make of it."""

    @hookimpl
    def before_forward(self, step_input: Any) -> None:
        step_input.coefficients["l1"] = 0.3


@pytest.mark.parametrize(
    ("plugin", "promise", "message"),
    [
        (Untracked, "does_not_care_in_which_order_features_stand", "run.features.track"),
        (Positional, "does_not_care_in_which_order_features_stand", "let no position decide"),
        (DrawsFromTorch, "leaves_the_global_random_state_alone", "'torch'"),
        (DrawsFromNumpy, "leaves_the_global_random_state_alone", "'numpy'"),
        (DrawsFromPython, "leaves_the_global_random_state_alone", "'python'"),
        (Remembers, "repeats_with_the_same_seed", "class attributes"),
        (Impatient, "waits_for_the_end_of_an_accumulation_window", "change weights in after_upd"),
        (Hides, "goes_on_from_a_checkpoint", "keep what must last from step to step"),
        (Renews, "goes_on_from_a_checkpoint", "'good.age'"),
        (Encloses, "goes_on_from_a_checkpoint", "plugins/good/strength is function"),
        (Encloses, "goes_on_from_a_checkpoint", "in `transient`"),
        (Coarse, "keeps_float32_statistics_under_autocast", "below float32"),
        (Bypasses, "works_with_the_fast_step", "Read activations"),
        (Sets, "multiplies_coefficients_and_sets_none", "Return multipliers"),
        (Asks, "is_the_same_on_two_ranks", "{'rank 1': ['b_dec', 'W_dec'"),
        (Unseeded, "is_the_same_on_two_ranks", "Draw from self.rng alone"),
        (Counts, "is_the_same_on_two_ranks", "'rank 0': ['good'], 'rank 1': ['good']"),
        pytest.param(
            *(Fails, "is_the_same_on_two_ranks", "ValueError: no such thing on this rank"),
            marks=pytest.mark.ci,
        ),
        (Exploding, "trains", "guard divisions"),
        (Freezing, "trains", "keeps the SAE from learning"),
        (Meddler, "trains", "observes_only"),
        (Curt, "supports_an_architecture_and_gives_reasons_for_the_others", "reason in words"),
        (Picky, "supports_an_architecture_and_gives_reasons_for_the_others", "refuses every"),
    ],
)
def test_a_broken_promise_fails_with_advice(
    plugin: Any, promise: str, message: str, tmp_path: Path
) -> None:
    class Contract(PluginContract):
        pass

    Contract.plugin = plugin
    test = getattr(Contract(), f"test_{promise}")
    arguments = [] if "reasons" in promise else ["standard"]
    arguments += [tmp_path] if "checkpoint" in promise or "ranks" in promise else []
    with pytest.raises(AssertionError) as caught:
        test(*arguments)
    assert message in str(caught.value)


def test_every_promise_of_the_contract_is_broken_above() -> None:
    promises = {name.removeprefix("test_") for name in vars(PluginContract) if "test_" in name}
    promises.discard("pytest_generate_tests")
    (parametrize,) = test_a_broken_promise_fails_with_advice.pytestmark
    cases = [getattr(case, "values", case) for case in parametrize.args[1]]
    assert {promise for _, promise, _ in cases} == promises


def test_the_cases_are_the_training_architectures_of_the_table() -> None:
    from sae_plugins.framework.architectures import ARCHITECTURES

    assert CASES.keys() == ARCHITECTURES.keys()


def test_tiny_saes_and_batches_depend_on_their_seed_alone() -> None:
    state = torch.get_rng_state()
    one, again = tiny_sae("gated"), tiny_sae("gated")
    other = tiny_sae("gated", seed=1)
    assert differences(one.state_dict(), again.state_dict()) == {}
    assert "W_dec" in differences(one.state_dict(), other.state_dict())
    assert torch.equal(torch.stack(tiny_batches(3)), torch.stack(tiny_batches(3)))
    assert not torch.equal(torch.stack(tiny_batches(3)), torch.stack(tiny_batches(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_differences_sees_shapes_names_and_nan() -> None:
    nan = torch.tensor([1.0, torch.nan])
    assert differences({"a": nan}, {"a": nan}).keys() == {"a"}
    assert differences({"a": nan}, {"b": nan}).keys() == {"a", "b"}
    found = differences({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, 4.0])})
    assert found == {"a": 0.5}
    assert differences({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-3}, tolerance=1e-2) == {}
