"""Updates scaled by importance: the arithmetic, and that Adam cannot undo it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_plugins import Plugin, hookimpl
from sae_plugins.mechanisms.importance_lr import ImportanceLR, scale_update_
from sae_plugins.testing import CASES, PluginContract, train


class TestContract(PluginContract):
    plugin = "importance-lr"
    options = {"start": 3}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_is_shortened_by_index(axis: int) -> None:
    before, after = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    scale_update_(after, before, torch.tensor([0.25, 1.0]), axis)
    expected = torch.tensor([[0.25, 0.25], [1, 1]], dtype=torch.float64)
    assert torch.equal(after, expected if axis == 0 else expected.T)


@pytest.mark.parametrize("architecture", CASES)
def test_every_feature_moves_by_its_share_of_adams_step(architecture: str) -> None:
    """One step from the same state, with and without."""
    moved: dict[str, dict[str, torch.Tensor]] = {}
    shares: list[torch.Tensor] = []

    class Watch(Plugin):
        name = "watch"
        before = ("importance-lr",)

        @hookimpl
        def before_update(self, run: Any) -> None:
            self.old = {n: p.detach().clone() for n, p in run.sae.named_parameters()}

        @hookimpl
        def step_ended(self, run: Any) -> None:
            if run.step == 5:
                key = "scaled" if "importance-lr" in names(run) else "plain"
                moved[key] = {n: p - self.old[n] for n, p in run.sae.named_parameters()}

    class Scores(Plugin):
        name = "scores"
        before = ("importance-lr",)  # so that in after_update it comes later, with the same scores

        @hookimpl
        def after_update(self, run: Any) -> None:
            if run.step == 5 and "importance-lr" in names(run):
                shares.append(run.plugin("importance").relative_scores(run).clone())

    def names(run: Any) -> set[str]:
        return {plugin.name for plugin in run._trainer.host.plugins}

    common = {"architecture": architecture, "dtype": torch.float64, "steps": 5}
    train(Watch, Scores, ImportanceLR, options={"importance-lr": {"start": 5}}, **common)
    trainer = train(Watch, Scores, **common)
    (share,) = shares
    assert 0 <= share.min() < share.max() == 1
    for name, axis in trainer.run.architecture.feature_axes.items():
        # doubled: a JumpReLU SAE's threshold is float32 whatever its dtype
        plain, scaled = (moved[k][name].double().movedim(axis, 0) for k in ("plain", "scaled"))
        shape = [-1, *[1] * (plain.ndim - 1)]
        torch.testing.assert_close(scaled, plain * share.view(shape), rtol=1e-5, atol=1e-7)
    for name in trainer.run.architecture.shared & moved["plain"].keys():
        assert torch.equal(moved["plain"][name], moved["scaled"][name])


def test_rows_keep_norm_one_beside_the_plugin_that_sees_to_it() -> None:
    for order in ((ImportanceLR, "unit-norm-decoder"), ("unit-norm-decoder", ImportanceLR)):
        trainer = train(*order)
        norms = trainer.sae.W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(24), atol=1e-6, rtol=0)
