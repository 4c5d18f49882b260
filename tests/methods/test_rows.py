"""The rows of the methods' tables: each trains, shortened, and does what its flags say.

All of them go through the command line, from the methods' demo recipes, on the embedded world. The
default run has a few of each method; `make slow` has the rest.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins import world
from sae_plugins.entrypoints.main import main
from sae_plugins.entrypoints.plugins import command
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method, PaperRow
from sae_plugins.runs.recorder import read_rows
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.settle import settle

METHODS: dict[str, type[Method]] = {
    entry.name: registry.load(entry.name)
    for entry in registry.listing()
    if entry.kind == "method" and entry.distribution == "sae-plugins"
}
SHORT = (
    "--training_tokens 4096 --train_batch_size_tokens 128 --n_batches_for_norm_estimate 4 "
    "--store_batch_size_prompts 4 --heldout_tokens 1024 --n_batches_in_buffer 16 "
    "--recorder.every 1"
)
"""32 steps; the embedded language model reads little more than they train on."""
SCALED = {
    "reorder": "--reorder.start 8 --reorder.interval 8 --reorder.window 4 --reorder.cooldown 4 "
    "--reorder.statistic frequency --reorder.threshold 0",
    "resample": "--firing-window.window 6 --resample.threshold 0.9",
    "merge": "--merge.every 6 --merge.threshold 0.5",
    "activation-threshold": "--activation-threshold.start 11",
    "decoder-orthogonality": "--decoder-orthogonality.start 11",
    "reconstruction-warm-up": "--reconstruction-warm-up.steps 10",
}
"""What lets mechanisms act within 32 steps."""
QUICK = {
    "Full hybrid approach",
    "+Feature clustering: the full method",
    "Baseline (a TopK SAE)",
    "Final model (Run 9)",
    "Run 5: adaptive weight, top 0.5%",
    "Close pairs only",
    "Late untying",
}
"""Labels of the default run."""
SILENT = {"unit-norm-decoder", "firing-frequency", "importance", "importance-lr"}
SILENT |= {"post-hoc-threshold", "nan-guard", "tied-weights", "slow-decoder"}
"""Mechanisms that log nothing."""
ACTED = {
    "reorder": "reorder/reorderings",
    "resample": "resample/features",
    "merge": "merge/features",
    "activation-threshold": "activation-threshold/shut",
    "decoder-orthogonality": "losses/decoder-orthogonality/overlap",
    "coactivation-penalty": "losses/coactivation-penalty/pairs",
}
"""Numbers, of the last step or the summary, that are not 0 where a mechanism acts."""
AS_PRINTED = (
    "tau 0.1, as printed: it never fires",
    "Eq. 1 as printed, of counts: it always fires",
    "Eq. 1 as printed, of frequencies: it never fires",
)
ONLY_MOVES = {"Periodic reordering only", "Adaptive reordering only", "No reordering", *AS_PRINTED}
"""Rows with the losses of the full method: a reordering is an exact symmetry."""


class Trained:
    """What the run of a row left behind."""

    def __init__(self, folder: Path, row: PaperRow) -> None:
        self.given = train_flags(shlex.split(row.flags))
        self.without: list[str] = self.given.pop("without", [])
        self.added: list[str] = self.given.pop("plugin", [])
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        self.settings: dict[str, Any] = yaml.safe_load((folder / "run.yaml").read_text())
        self.metrics = read_rows(folder / "metrics.jsonl")
        self.last = self.summary | self.metrics[-1]
        self.losses = [step["losses/overall_loss"] for step in self.metrics]
        self.sae: SAE[Any] = SAE.load_from_disk(str(folder))
        self.norms = load_file(folder / "sae_weights.safetensors")["W_dec"].norm(dim=1)

    @property
    def plugins(self) -> set[str]:
        """That the saved SAE says it was made with."""
        return {plugin["name"] for plugin in self.sae.cfg.metadata.sae_plugins["plugins"]}

    def traces(self, mechanism: str) -> set[str]:
        """Numbers that a mechanism logged, or that were logged about it."""
        names = {name for step in self.metrics for name in step} | self.summary.keys()
        return {name for name in names if mechanism in name.split("/")}

    @property
    def has_unit_rows(self) -> bool:
        """Whether decoder rows have one length; SAELens has folded a scale into it."""
        return bool((self.norms.max() - self.norms.min()) / self.norms.mean() < 1e-5)


Train = Callable[[str, str], Trained]


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """The language model and some of its text are made once, and no figure is drawn."""
    from sae_plugins.base import plots

    load_text = functools.cache(world.load_text)
    with pytest.MonkeyPatch.context() as patch:
        model = functools.cache(world.load_hooked_transformer)
        patch.setattr(world, "load_hooked_transformer", model)
        patch.setattr(world, "load_text", lambda split: load_text(split, documents=300))
        patch.setattr(plots, "save", lambda _, path: path.write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The shortened run of a method's row, by its label; once for all tests of this file."""

    @functools.cache
    def train(name: str, label: str) -> Trained:
        method = METHODS[name]
        (row,) = [row for row in method.rows if row.label == label]
        left_out = train_flags(shlex.split(row.flags)).get("without", [])
        scaled = [SCALED.get(m, "") for m in method.mechanisms if m not in left_out]
        words = shlex.split(command(name, f"{SHORT} {' '.join(scaled)} {row.flags}"))
        words[words.index("--recipe") + 1] = f"{name}-demo"
        folder = tmp_path_factory.mktemp("row") / "run"
        assert main([*words[1:], "--output_path", str(folder)]) == 0
        return Trained(folder, row)

    return train


every_row = pytest.mark.parametrize(
    ("name", "label"),
    [
        pytest.param(name, row.label, marks=[] if row.label in QUICK else pytest.mark.slow)
        for name, method in METHODS.items()
        for row in method.rows
    ],
)


def same(one: Any, other: Any) -> bool:
    """Whether a setting in `run.yaml` is the one that was given, as a text or a value."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one).lower() == str(other).lower()


@every_row
def test_every_row_does_what_it_says(name: str, label: str, trained: Train) -> None:
    run, method = trained(name, label), METHODS[name]
    for setting, value in run.given.items():
        if setting == "lr_warm_up_fraction":
            setting, value = "lr_warm_up_steps", round(32 * value)
        assert same(run.settings[setting], value), setting
    assert run.summary["training/steps"] == 32
    chosen = {*method.mechanisms, *run.added} - {name, *run.without}
    assert chosen <= run.plugins
    for mechanism in run.without:
        assert mechanism not in run.plugins
        assert not run.traces(mechanism)
    for mechanism in chosen - SILENT:
        assert run.traces(mechanism), mechanism
    for mechanism in chosen & ACTED.keys():
        acts = label != "Base threshold 0.0" or mechanism != "activation-threshold"
        assert (run.last[ACTED[mechanism]] > 0) == acts, mechanism
    thresholds = {"activation-threshold", "post-hoc-threshold"} & chosen
    trained_as = run.given.get("architecture", method.sae_lens.get("architecture", "standard"))
    # SAELens folds a TopK SAE's decoder norms into its other weights
    assert run.has_unit_rows == ("unit-norm-decoder" in chosen or trained_as != "standard")
    saved_as = "jumprelu" if thresholds or trained_as == "batchtopk" else trained_as
    assert run.sae.cfg.architecture() == saved_as
    (full,) = [row.label for row in method.rows if not row.flags]
    if label in {full, *ONLY_MOVES}:
        assert run.losses == pytest.approx(trained(name, full).losses, rel=1e-4)
    else:
        assert run.losses != trained(name, full).losses


# -- what a row changes --------------------------------------------------------------------------

_OF_FRACTION = {"lr_warm_up_fraction": "lr_warm_up_steps"}


def recipe_of(name: str, row: PaperRow) -> dict[str, Any]:
    """What `run.yaml` would say of the settings of a row at the paper's scale."""
    words = shlex.split(command(name, row.flags))
    return settle(train_flags(words[2:])).as_recipe({})


@pytest.mark.parametrize("name", METHODS)
def test_a_row_differs_from_the_full_one_in_what_it_says_and_in_nothing_else(name: str) -> None:
    (row,) = [row for row in METHODS[name].rows if not row.flags]
    full = recipe_of(name, row)
    for row in METHODS[name].rows:
        given = train_flags(shlex.split(row.flags))
        said = {_OF_FRACTION.get(setting, setting) for setting in given}
        found = recipe_of(name, row)
        changed = {k for k in full.keys() & found.keys() if not same(full[k], found[k])}
        assert changed <= said, row.label
        assert changed or not said, row.label
        for setting in full.keys() ^ found.keys():  # what does not apply to one of them
            owners = {"architecture", "lr_scheduler_name", "normalize_activations"}
            assert said & (owners if setting in all_flags() else {"plugin", "without"}), setting


# -- hybrid-order: when it reorders and updates -------------------------------------------------

FULL: dict[str, Any] = {
    "periodic": [8, 16, 24, 32],
    "triggered": [12, 20, 28],
    "updates": 8,
    "final_rate": 0.0,
}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "Full hybrid approach": {},
    "Periodic reordering only": {"triggered": []},
    "Adaptive reordering only": {"periodic": [], "triggered": list(range(8, 33, 4))},
    "Without gradient accumulation": {"updates": 32},
    "Without cosine LR scheduling": {"final_rate": 0.004},
    "Baseline (its objective is not defined; everything off is nearest)": {
        **{"periodic": [], "triggered": [], "updates": 32, "final_rate": 0.004},
    },
    AS_PRINTED[0]: {"triggered": []},
    AS_PRINTED[1]: {"periodic": [8], "triggered": [12, 16, 20, 24, 28, 32]},
    AS_PRINTED[2]: {"triggered": []},
    "No reordering": {"periodic": [], "triggered": []},
    "Constant L1": {},
    "L1 by batch norm": {},
    "Adam's moments left behind (the paper's 15% loss spikes?)": {},
    "Tied encoder and decoder weights": {},
    "Tied for the first fifth of the run": {},
}


def test_every_row_of_hybrid_order_has_its_steps() -> None:
    assert [row.label for row in METHODS["hybrid-order"].rows] == list(DIFFERENCES)


@pytest.mark.parametrize(
    "label", [pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow) for x in DIFFERENCES]
)
def test_a_row_reorders_and_updates_when_it_should(label: str, trained: Train) -> None:
    run, expected = trained("hybrid-order", label), FULL | DIFFERENCES[label]
    assert run.summary["training/updates"] == expected["updates"]
    for cause in ("periodic", "triggered"):
        steps = [row["step"] for row in run.metrics if f"reorder/{cause}" in row]
        assert steps == expected[cause], cause
    if "reorder" not in run.without:
        events = expected["periodic"] + expected["triggered"]
        assert run.summary["reorder/reorderings"] == len(events)
        assert run.summary["reorder/largest_loss_change"] < 1e-4
    rate = run.last["details/current_learning_rate"]
    assert rate == pytest.approx(expected["final_rate"], abs=1e-9)


@pytest.mark.slow
def test_leaving_the_moments_behind_does(trained: Train) -> None:
    full = trained("hybrid-order", "Full hybrid approach").losses
    label = "Adam's moments left behind (the paper's 15% loss spikes?)"
    harmed = trained("hybrid-order", label).losses
    assert harmed[-1] != pytest.approx(full[-1], rel=1e-2)
