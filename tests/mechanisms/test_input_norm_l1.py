"""The sparsity coefficient that follows the input norm, against numbers made by hand."""

from __future__ import annotations

import pytest
import torch
from expected import NO_COEFFICIENT

from sae_plugins import Plugin, PluginError, hookimpl
from sae_plugins.mechanisms.input_norm_l1 import InputNormL1, norm_ratio
from sae_plugins.testing import CASES, PluginContract, tiny_batches, train


class TestPerToken(PluginContract):
    plugin = InputNormL1


class TestPerBatch(PluginContract):
    plugin = "input-norm-l1"
    options = {"per": "batch", "decay": 0.5}


def test_the_ratio_is_each_norm_over_the_average() -> None:
    ratio = norm_ratio(torch.tensor([2.0, 8.0, 0.0]), torch.tensor(4.0))
    assert ratio.tolist() == [0.5, 2.0, 0.0]
    assert norm_ratio(torch.zeros(1), torch.tensor(0.0)).tolist() == [0.0]  # not NaN


def coefficients(architecture: str = "standard", **options) -> tuple[list, list]:
    """The coefficient that each step's loss used, and the averages that were logged."""
    seen, averages = [], []

    class Spy(Plugin):
        name = "spy"
        after = ("input-norm-l1",)

        @hookimpl
        def after_forward(self, run, step_input):
            (coefficient,) = step_input.coefficients.values()
            seen.append(torch.as_tensor(coefficient).clone())
            averages.append(run.metrics["input-norm-l1/average_norm"].item())

    train(
        InputNormL1,
        Spy,
        architecture=architecture,
        options={"input-norm-l1": options},
        steps=3,
        dtype=torch.float64,
    )
    return seen, averages


def expected(decay: float) -> tuple[list[torch.Tensor], list[float]]:
    """Each batch's norms, and the moving average that starts at the first batch's mean."""
    norms = [batch.norm(dim=1) for batch in tiny_batches(steps=3, dtype=torch.float64)]
    average, averages = norms[0].mean().item(), []
    for batch in norms:
        average = decay * average + (1 - decay) * batch.mean().item()
        averages.append(average)
    assert averages[2] != pytest.approx(norms[2].mean().item())
    return norms, averages


@pytest.mark.parametrize(("architecture", "base"), [("standard", 0.1), ("jumprelu", 0.02)])
def test_each_token_has_the_coefficient_of_its_own_norm(architecture: str, base: float) -> None:
    seen, averages = coefficients(architecture, per="token", decay=0.9)
    norms, by_hand = expected(0.9)
    assert averages == pytest.approx(by_hand, rel=1e-12)
    for coefficient, norm, average in zip(seen, norms, by_hand, strict=True):
        torch.testing.assert_close(coefficient, base * norm / average)


@pytest.mark.parametrize(
    ("architecture", "base"), [("standard", 0.1), ("gated", 0.1), ("jumprelu", 0.02)]
)
def test_a_batch_has_the_coefficient_of_its_mean_norm(architecture: str, base: float) -> None:
    seen, averages = coefficients(architecture, per="batch", decay=0.5)
    norms, by_hand = expected(0.5)
    assert averages == pytest.approx(by_hand, rel=1e-12)
    ratios = [norm.mean().item() / a for norm, a in zip(norms, by_hand, strict=True)]
    assert [c.item() / base for c in seen] == pytest.approx(ratios, rel=1e-12)


def test_the_average_stays_float32_under_autocast() -> None:
    trainer = train(InputNormL1, autocast=True)
    assert trainer.host.plugins[0].average.dtype == torch.float32


@pytest.mark.parametrize("architecture", CASES)
def test_architectures_without_a_coefficient_or_weighed_tokens_are_refused(
    architecture: str,
) -> None:
    def attempt(per: str) -> str:
        options = {"input-norm-l1": {"per": per}}
        try:
            train(InputNormL1, architecture=architecture, options=options, steps=1)
        except PluginError as error:
            return str(error)
        return ""

    if architecture in NO_COEFFICIENT:
        for per in ("token", "batch"):
            assert "they have no sparsity coefficient" in attempt(per)
    else:
        assert attempt("batch") == ""
        assert ("choose --input-norm-l1.per batch" in attempt("token")) == (architecture == "gated")
