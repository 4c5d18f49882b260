"""HierarchicalSAE as a bundle: its plan, and how its mechanisms work together."""

from __future__ import annotations

import pytest

from sae_plugins import Plugin, PluginError, hookimpl
from sae_plugins.framework.features import FeatureChange, Merged, Reset
from sae_plugins.framework.resolve import resolve
from sae_plugins.testing import PluginContract, train

OPTIONS = {
    "firing-window": {"window": 4},
    "resample": {"per": "token", "threshold": 0.5},
    "merge": {"every": 3, "threshold": 0.6, "arithmetic": "auto"},
    "reconstruction-l1": {"target": 0.5},
}


class TestContract(PluginContract):
    plugin = "hierarchical"
    options = OPTIONS


def test_what_is_required_comes_right_before_who_requires_it() -> None:
    names = [plugin.name for plugin, _ in resolve(["hierarchical", "nan-guard"]).plugins]
    assert names == [
        *("linear-l1", "reconstruction-l1", "firing-window", "resample", "merge"),
        *("unit-norm-decoder", "nan-guard"),
    ]
    names = [plugin.name for plugin, _ in resolve(["merge", "nan-guard"]).plugins]
    assert names == ["firing-window", "merge", "nan-guard"]


def test_what_is_only_required_cannot_be_left_out() -> None:
    with pytest.raises(PluginError, match="'firing-window': plugin 'resample' requires it"):
        resolve(["hierarchical"], without=["firing-window"])


def test_the_summary_counts_what_was_carried_out_and_not_what_was_requested() -> None:
    """In a window of 6 batches, merges are requested three times and carried out once."""

    class Counter(Plugin):
        name = "counter"

        @hookimpl
        def attached(self) -> None:
            self.merged = self.reset = 0

        @hookimpl
        def features_changed(self, change: FeatureChange) -> None:
            self.merged += len(change.source) if isinstance(change, Merged) else 0
            self.reset += len(change.index) if isinstance(change, Reset) else 0

    options = {
        "firing-window": {"window": 2},
        "resample": {"per": "token", "threshold": 0.5},
        "merge": {"every": 2, "threshold": 0.3},
    }
    trainer = train("resample", "merge", Counter, options=options, training={"accumulate": 6})
    summary, counter = trainer.run.summary, trainer.run.plugin("counter")
    assert summary["merge/features"] == counter.merged > 0
    assert summary["resample/features"] == counter.reset > 0


@pytest.mark.parametrize("with_reorder", [False, True])
def test_the_mechanisms_work_together(with_reorder: bool) -> None:
    names = ["hierarchical", *(["reorder"] if with_reorder else [])]
    options = {**OPTIONS, **({"reorder": {"start": 2, "interval": 3}} if with_reorder else {})}
    trainer = train(*names, options=options, steps=16)
    summary = trainer.run.summary
    assert summary["resample/features"] > 0
    assert summary["merge/features"] > 0
    if with_reorder:
        assert summary["reorder/reorderings"] > 0
    assert trainer.sae.W_dec.norm(dim=1).sub(1).abs().max() < 1e-5
