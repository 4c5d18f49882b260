"""A run that stops at any step and goes on ends bitwise as one that was never stopped."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    train_toy_sae,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_plugins import Plugin, PluginError, hookimpl, plugins, world
from sae_plugins.base import plots
from sae_plugins.base.seeds import random_states
from sae_plugins.framework.architectures import architecture as architecture_named
from sae_plugins.mechanisms.input_norm_l1 import InputNormL1
from sae_plugins.resume import checkpoints
from sae_plugins.resume import files as checkpoint_files
from sae_plugins.resume import written as writing
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.files import files, interval
from sae_plugins.resume.state import StateError, read_state
from sae_plugins.runs import figures
from sae_plugins.runs.recorder import Recorder, read_rows
from sae_plugins.testing import CASES, D_IN, TOKENS, equal_values, tiny_batches, tiny_sae

QUIET = LoggingConfig(log_to_wandb=False)
STEPS, ESTIMATE = 14, 3
STOPS = (1, 7, 10, 13)
"""Steps after which runs stop.

7 lies within an accumulation window (of 4), after a reordering was due (6) and before it can be
requested (8); at 10 a window of statistics (of 5) ends; 13 lies within the last of both.
"""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and their data is compared instead."""
    for name in ("loss_and_l0", "firing_by_position"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(plots, "save", lambda *_: None)


class Stopped(Exception):
    """What kills a run in these tests."""


class Batches(Iterator[torch.Tensor]):
    """Data with a place of its own, and noise from all three global random states.

    Stops the run when it pulls batch `stop`, or calls `at[place]` before it gives that batch.
    """

    def __init__(
        self, stop: int | None = None, steps: int = STEPS, at: dict[int, Any] | None = None
    ) -> None:
        self.batches, self.place = tiny_batches(steps=steps + ESTIMATE), 0
        self.stop, self.at = stop, at or {}

    def __next__(self) -> torch.Tensor:
        if self.place == self.stop:
            raise Stopped
        self.at.get(self.place, bool)()
        noise = 1e-2 * torch.rand(D_IN) + 1e-2 * random.random() + 1e-2 * np.random.rand()
        batch = self.batches[self.place] + noise
        self.place += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def chosen(architecture: str, folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """Every built-in plugin that the architecture supports, and options."""
    names: list[Any] = ["reorder", "unit-norm-decoder", "nan-guard", Recorder]
    options: dict[str, Any] = {
        "reorder": {"start": 2, "interval": 6, "window": 2, "cooldown": 3, "threshold": 1e-3},
        "recorder": {"output_path": str(folder), "every": 3},
        "nan-guard": {"every": 5},
    }
    row = architecture_named(architecture)
    for per in ("token", "batch"):
        if InputNormL1.unsupported(row, InputNormL1.Options(per=per)) is None:
            return [*names[:2], "input-norm-l1", *names[2:]], {
                **options,
                "input-norm-l1": {"per": per},
            }
    return names, options


def build(
    architecture: str, stop: int | None, sae: dict[str, Any] | None = None, **config: Any
) -> Any:
    """A trainer that is built again, as in a new process."""
    normalised = (sae or {}).get("normalize_activations")
    pulls = ESTIMATE if normalised in ("expected_average_only_in", "covariance_whitening") else 0
    fields = {
        "total_training_samples": STEPS * TOKENS - 5,
        "train_batch_size_samples": TOKENS,
        "lr": 0.01,
        "lr_end": 0.001,
        "dead_feature_window": 3,
        "feature_sampling_window": 5,
        "n_batches_for_norm_estimate": ESTIMATE,
        "logger": QUIET,
    }
    provider = Batches(None if stop is None else stop + pulls)
    return SAETrainer(
        SAETrainerConfig(**{**fields, **config}), tiny_sae(architecture, **(sae or {})), provider
    )


def train(
    names: list[Any],
    folder: Path | None,
    stop: int | None = None,
    *,
    every: str = "1",
    architecture: str = "standard",
    settings: dict[str, Any] | None = None,
    prepare: Callable[[Any], Any] = bool,
    seed: int | None = 0,
    **config: Any,
) -> Any:
    """A run to its end, or to `stop`; goes on if there are checkpoints in `folder`."""
    kept = None if folder is None else Checkpoints(folder, every=every, resume=True)
    with plugins(*names, **(settings or {}), seed=seed, checkpoints=kept):
        trainer = build(architecture, stop, **config)
        prepare(trainer)
        if kept is not None and kept.saved is not None:  # another process has drawn other numbers
            torch.rand(3), random.random(), np.random.rand()
        if stop is None:
            trainer.fit()
        else:
            with pytest.raises(Stopped):
                trainer.fit()
            assert kept is not None
            assert kept.step == trainer.n_training_steps == stop
    return trainer


def plain(value: Any) -> Any:
    """A state without the clock."""
    if isinstance(value, dict):
        clock = ("seconds", "training/seconds", "training/tokens_per_second", "lines", "folder")
        return {name: plain(item) for name, item in value.items() if name not in clock}
    return value


def outcome(trainer: Any, folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, in memory and on the disk."""
    folder.mkdir(exist_ok=True, parents=True)
    saved = trainer.sae.save_inference_model(folder)
    found = {
        "trainer": plain(trainer.state_dict()),
        "global": random_states(),
        "sparsity": trainer.log_feature_sparsity,
        "metadata": trainer.sae.cfg.metadata.to_dict(),
        "files": {path.name: path.read_bytes() for path in saved},
    }
    for plugin in trainer.host.plugins:
        if isinstance(plugin, Recorder):
            found["rows"] = [plain(row) for row in read_rows(plugin.path("metrics.jsonl"))]
            found["past"] = plugin.path("metrics_by_feature.jsonl").read_bytes()
            found["summary"] = plain(json.loads(plugin.path("training_summary.json").read_text()))
            found["snapshots"] = [vars(snapshot) for snapshot in plugin.snapshots]
    return found


def same(one: Any, other: Any, at: str = "") -> None:
    """Fail at the first place where two outcomes differ, and name it."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert list(one) == list(other), at
        for name in one:
            same(one[name], other[name], f"{at}/{name}")
    else:
        assert equal_values(one, other), f"{at}: {one!r:.500} is not {other!r:.500}"


def check(
    tmp_path: Path,
    names: list[Any] | None = None,
    stops: tuple[int, ...] = STOPS,
    *,
    architecture: str = "standard",
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Compare a run that is stopped at each of `stops` with one that is not; returns the latter."""

    def run(folder: str, stop: int | None, kept: Path | None) -> Any:
        its_names, options = names, {}
        if names is None:
            its_names, options = chosen(architecture, tmp_path / folder)
        given = {"options": options, **(settings or {})}
        return train(
            its_names or [], kept, stop, architecture=architecture, settings=given, **arguments
        )

    whole = run("whole", None, None)
    for stop in stops:
        run(f"until-{stop}", stop, tmp_path / "kept")
    last = run("rest", None, tmp_path / "kept")
    same(outcome(last, tmp_path / "rest"), outcome(whole, tmp_path / "whole"))
    return whole


ACCUMULATE = {"training": {"accumulate": 4, "weight_decay": 1e-2}}
SCHEDULE = {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 8, "lr_decay_steps": 3}


# -- the trainer -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CASES)
def test_every_architecture_with_every_plugin(architecture: str, tmp_path: Path) -> None:
    """Through four successive resumes."""
    whole = check(tmp_path, architecture=architecture, settings=ACCUMULATE, **SCHEDULE)
    causes = whole.sae.cfg.metadata.sae_plugins["reorderings"]
    assert {6, 8} & {*causes["steps"]}  # features moved, and in the window that a stop was in
    rows = read_rows(tmp_path / "rest" / "metrics.jsonl")
    assert [row["step"] for row in rows if "losses/overall_loss" in row] == [3, 6, 9, 12, 14]


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize("architecture", CASES)
def test_every_step_of_every_architecture(architecture: str, stop: int, tmp_path: Path) -> None:
    check(tmp_path, stops=(stop,), architecture=architecture, settings=ACCUMULATE, **SCHEDULE)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("standard", {}),
        ("topk", {"sae": {"normalize_activations": "expected_average_only_in"}}),
        ("jumprelu", {"sae": {"normalize_activations": "expected_average_only_in"}}),
        ("gated", {"sae": {"normalize_activations": "layer_norm"}}),
        ("standard", {"sae": {"normalize_activations": "constant_norm_rescale"}}),
        ("batchtopk", {"sae": {"normalize_activations": "covariance_whitening"}}),
        ("standard", {"autocast": True}),
        ("batchtopk", {"autocast": True}),
        ("standard", {"sae": {"dtype": torch.float64}}),
        ("standard", {"sae": {"l1_warm_up_steps": 9}}),
        ("jumprelu", {"sae": {"l0_warm_up_steps": 9}}),
        ("standard", {"lr_scheduler_name": "constant", "lr_warm_up_steps": 9}),
        ("standard", {"lr_scheduler_name": "cosineannealing", "lr_decay_steps": 6}),
        ("standard", {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 3}),
        ("standard", {"adam_beta1": 0.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(None, id="stock"),
        pytest.param(ACCUMULATE, id="accumulate", marks=pytest.mark.ci),
    ],
)
def test_configurations_of_sae_lens(
    architecture: str, config: dict[str, Any], settings: Any, tmp_path: Path
) -> None:
    """Without plugins, so also SAELens' trainer as it is."""
    whole = check(tmp_path, [], (7, 13), architecture=architecture, settings=settings, **config)
    assert whole.n_training_steps == STEPS


@pytest.mark.parametrize(
    "training",
    [
        {"clip": None},
        {"clip": 0.1},
        {"accumulate": 3, "clip": 0.1},
        {"accumulate": 100},
        {"loss_form": "l2_norm", "weight_decay": 0.1},
    ],
    ids=str,
)
def test_training_settings(training: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, [], (7,), settings={"training": training})


def compiled(trainer: Any) -> None:
    forward = trainer.sae.training_forward_pass
    trainer.sae.training_forward_pass = torch.compile(forward, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CASES)
def test_every_architecture_compiled_in_bfloat16(architecture: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    given = {"architecture": architecture, "settings": ACCUMULATE, "autocast": True}
    check(tmp_path, None, (5, 10), prepare=compiled, **given)


@pytest.mark.ci
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_compiled_forward_pass(autocast: bool, tmp_path: Path) -> None:
    torch._dynamo.reset()
    names = ["unit-norm-decoder", "input-norm-l1"]
    check(tmp_path, names, (7,), prepare=compiled, settings=ACCUMULATE, autocast=autocast)


def test_the_checkpoints_of_sae_lens_come_once_each(tmp_path: Path) -> None:
    """Those before the stop and those after it."""
    written: list[str] = []

    def watched(trainer: Any) -> None:
        save = trainer.save_checkpoint
        trainer.save_checkpoint = lambda checkpoint_name: (
            written.append(checkpoint_name),
            save(checkpoint_name),
        )

    def run(folder: str, stop: int | None, kept: Path | None) -> list[str]:
        written.clear()
        names, options = chosen("standard", tmp_path / "records" / f"{folder}{stop}")
        given = {"options": options, **ACCUMULATE}
        into = {"checkpoint_path": str(tmp_path / folder), "n_checkpoints": 3}
        into["save_final_checkpoint"] = True
        train(names, kept, stop, settings=given, prepare=watched, **into)
        return written.copy()

    whole = run("whole", None, None)
    assert len(whole) == 4
    one, two = run("kept", 7, tmp_path / "kept"), run("kept", None, tmp_path / "kept")
    assert one
    assert two
    assert one + two == whole
    names = sorted(str(path.relative_to(tmp_path / "whole")) for path in tmp_path.glob("whole/*/*"))
    for name in names:
        first, other = tmp_path / "whole" / name, tmp_path / "kept" / name
        if name.endswith(".pt"):
            assert equal_values(*(torch.load(path, weights_only=False) for path in (first, other)))
        else:
            assert first.read_bytes() == other.read_bytes(), name


# -- plugins of others -------------------------------------------------------------------------


class Hoarder(Plugin):
    """State of every kind, all of which acts on the weights."""

    name = "hoarder"

    class Inner:
        """An object that can be saved, made by `attached`."""

        def __init__(self) -> None:
            self.value = 0.0

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    @hookimpl
    def attached(self, run: Any) -> None:
        size = run.features.d_sae
        self.tracked = run.features.track(self, "tracked", torch.zeros(size))
        self.untracked = torch.zeros(size)
        self.alias = self.untracked
        self.later: torch.Tensor | None = None
        self.nested: dict[str, Any] = {"list": [0, (0.0, None)], 3: {"tensor": torch.zeros(2)}}
        self.tensors = {"a": torch.zeros(()), "b/c": torch.zeros(1, 2)}
        self.own = torch.Generator().manual_seed(5)
        self.module = torch.nn.Linear(1, 1)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(0.5)
        self.array = np.zeros(3, np.float32)
        self.inner = self.Inner()
        self.flag, self.word = False, ""

    @hookimpl
    def step_ended(self, run: Any) -> None:
        draws = torch.rand(5, generator=self.rng) + torch.rand(5, generator=self.own)
        self.tracked += run.firing_counts
        self.untracked += self.tracked * draws[0]
        self.later = draws.clone() if self.later is None else self.later * 0.9 + draws
        if run.step == 2:
            run.summarise("hoarder/early", 7)
            self.nested["new"] = {"deep": [torch.ones(1)]}
        if run.step > 2:
            self.nested["new"]["deep"][0] += draws[2]
        count, (total, _) = self.nested["list"]
        self.nested["list"] = [count + 1, (total + draws[1].item(), None)]
        self.nested[3]["tensor"] += draws[:2]
        for tensor in self.tensors.values():
            tensor.mul_(0.5).add_(draws[3])
        with torch.no_grad():
            self.module.weight.add_(draws[4])
            self.module.bias.mul_(0.9)
        self.array[run.step % 3] += draws[0].item()
        self.inner.value += 0.1 * run.step
        self.flag, self.word = not self.flag, self.word + "x"

    @hookimpl
    def after_update(self, run: Any) -> None:
        if self.later is None:
            return
        parts = [
            *(self.tracked.mean(), self.untracked.mean(), self.alias.std(), self.later.mean()),
            *(self.nested["list"][0], self.nested["list"][1][0], self.nested[3]["tensor"].sum()),
            *(self.tensors["a"], self.tensors["b/c"].sum(), self.module(torch.ones(1))[0]),
            *(float(self.array.sum()), self.inner.value, float(self.flag), len(self.word)),
            *(tensor.sum() for tensor in self.nested.get("new", {"deep": []})["deep"]),
        ]
        for place, part in enumerate(parts):
            run.sae.W_dec.data[place] += 1e-3 * torch.as_tensor(part).detach()


@pytest.mark.parametrize("stops", [(1,), (7, 10)], ids=str)
def test_a_plugin_with_state_of_every_kind(stops: tuple[int, ...], tmp_path: Path) -> None:
    check(tmp_path, [Hoarder, "reorder"], stops, settings=ACCUMULATE)


class Waiting(Plugin):
    """Requests changes of features within a window, to be carried out at its end."""

    name = "waiting"
    transient = ("ages",)  # what is tracked is saved all the same

    @hookimpl
    def attached(self, run: Any) -> None:
        self.ages = run.features.track(self, "ages", torch.zeros(run.features.d_sae))

    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.b_enc.data += 1e-4 * self.ages

    @hookimpl
    def step_ended(self, run: Any) -> None:
        self.ages += run.firing_counts
        if run.step in (2, 6):
            size = run.features.d_sae
            directions = torch.rand(2, D_IN, generator=self.rng)
            run.features.reset(torch.tensor([0, 1]), directions)
            run.features.merge(torch.tensor([2]), torch.tensor([3]), directions[:1], weight=1.0)
            run.features.permute(torch.arange(size).flip(0), move_moments=run.step == 2)


def test_requests_that_wait_for_the_end_of_a_window(tmp_path: Path) -> None:
    check(tmp_path, [Waiting], (3, 7), settings=ACCUMULATE)


class Unsavable(Plugin):
    name = "unsavable"

    @hookimpl
    def attached(self) -> None:
        self.books = {"open": [1, 2, {"file": Path("x")}]}


def test_a_plugin_that_cannot_be_saved_is_named_with_the_cure(tmp_path: Path) -> None:
    with plugins(Unsavable, checkpoints=Checkpoints(tmp_path, every="2")):
        trainer = build("standard", None)
        with pytest.raises(PluginError) as caught:
            trainer.fit()
    for part in ("'unsavable'", "self.books", "Path", "transient", "state_dict"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


class Forgetful(Hoarder):
    """Says that something it needs is no state."""

    transient = ("later",)


def test_what_a_plugin_leaves_out_is_missed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="/trainer/sae"):
        check(tmp_path, [Forgetful], (7,))


# -- when, where, how many ---------------------------------------------------------------------


def saved(folder: Path) -> list[int]:
    return [int(path.stem[-9:]) for path in files(folder)]


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [
        ("500", 500, None),
        ("500 steps", 500, None),
        (" 1 step", 1, None),
        ("0", 0, None),
        ("10min", None, 600),
        ("0.5 minutes", None, 30),
    ],
)
def test_intervals(text: str, steps: int | None, seconds: float | None) -> None:
    assert interval(text) == (steps, seconds)


@pytest.mark.parametrize("text", ["", "min", "10s", "-1", "1.5", "10 min min", "often"])
def test_what_is_no_interval(text: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="give steps"):
        Checkpoints(tmp_path, every=text)


def test_the_newest_few_stay(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "new" / "folder", every="3", keep=2)
    seen: list[Any] = []
    with plugins(checkpoints=kept):
        trainer = build("standard", None)
        look = lambda: seen.append((saved(kept.folder), kept.step))  # noqa: E731
        trainer.data_provider.at = dict.fromkeys(range(STEPS), look)
        trainer.fit()
    expected = [
        *([([], None)] * 3 + [([3], 3)] * 3 + [([6, 3], 6)] * 3),
        *([([9, 6], 9)] * 3 + [([12, 9], 12)] * 2),
    ]
    assert seen == expected
    assert [path.name for path in sorted(kept.folder.iterdir())] == [
        "step-000000009.safetensors",
        "step-000000012.safetensors",
    ]


def test_zero_checkpoints_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_minutes_between_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0, 20)  # the clock is read when one begins, and at each later step
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))
    with plugins(checkpoints=Checkpoints(tmp_path, every="1min", keep=99)):
        build("standard", None).fit()
    assert saved(tmp_path) == [12, 9, 6, 3]


@pytest.mark.parametrize("every", ["0", "0min", "100", "100min"])
def test_no_checkpoints_are_due(every: str, tmp_path: Path) -> None:
    with plugins(checkpoints=Checkpoints(tmp_path / "none", every=every)):
        build("standard", None).fit()
    assert not list((tmp_path / "none").iterdir())


def test_resuming_starts_anew_where_there_is_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        kept = Checkpoints(folder, resume=True)
        assert kept.saved is None
        assert kept.step is None
    assert not (tmp_path / "missing").exists()


def test_checkpoints_of_an_unfinished_run_are_not_mixed_with_others(tmp_path: Path) -> None:
    train([], tmp_path, 3)
    with pytest.raises(PluginError, match="unfinished run: resume it"):
        Checkpoints(tmp_path)
    assert Checkpoints(tmp_path, resume=True).step == 3


def test_a_context_serves_one_training(tmp_path: Path) -> None:
    with plugins(checkpoints=Checkpoints(tmp_path, every="5")):
        build("standard", None).fit()
        with pytest.raises(PluginError, match="serves one training"):
            build("standard", None)


def test_a_second_trainer_beside_the_first_must_keep_its_pace(tmp_path: Path) -> None:
    """Or its checkpoints would hold a first trainer that is elsewhere."""
    with plugins(checkpoints=Checkpoints(tmp_path, every="5")):
        one, other = build("standard", None), build("topk", None)
        one.fit()
        with pytest.raises(PluginError, match="serves one training"):
            other.fit()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.02}, "trainer.lr: 0.01 in the checkpoint, 0.02 now"),
        ({"architecture": "topk"}, "sae.architecture: 'standard' in the checkpoint"),
        ({"sae": {"l1_coefficient": 0.2}}, "sae.l1_coefficient"),
        ({"names": ["nan-guard"]}, "plugins.nan-guard"),
        ({"settings": {"training": {"accumulate": 2}}}, "training.accumulate"),
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"total_training_samples": 999}, "trainer.total_training_samples"),
    ],
    ids=lambda value: str(value),
)
def test_another_run_is_refused(changed: Any, message: str, tmp_path: Path) -> None:
    train([], tmp_path, 3)
    given = {"names": [], **changed}
    with pytest.raises(PluginError, match="is of another run") as caught:
        train(given.pop("names"), tmp_path, **given)
    assert message in str(caught.value)
    assert saved(tmp_path) == [3, 2]


@pytest.mark.parametrize("now", [0, 2])
def test_another_number_of_saes_is_refused(now: int, tmp_path: Path) -> None:
    def fit(names: str, stop: int | None) -> None:
        with plugins(checkpoints=Checkpoints(tmp_path, every="1", resume=True)):
            multi_trainer(names, Batches(stop)).fit()

    with pytest.raises(Stopped):
        fit("ab", 3)
    with pytest.raises(PluginError, match=r"state of 2 SAE\(s\), and"):
        fit("abc" if now else "a", None)


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, caplog: Any) -> None:
    whole = train([], None)
    train([], tmp_path, 7)
    newest, before = files(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-7] + b"damaged")
    kept = Checkpoints(tmp_path, resume=True, every="1")
    assert kept.path == before
    assert "going on from the one before it, step-000000006" in caplog.text
    last = train([], tmp_path)
    same(outcome(last, tmp_path / "a"), outcome(whole, tmp_path / "b"))
    assert saved(tmp_path) == [13, 12]  # the damaged one is gone
    for path in files(tmp_path):
        path.write_bytes(b"nothing")
    with pytest.raises(StateError, match="start the run again"):
        Checkpoints(tmp_path, resume=True)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train([], tmp_path, 3)
    monkeypatch.setattr(checkpoint_files, "FORMAT", 2)
    with pytest.raises(StateError, match=r"has format 1.* reads format 2"):
        Checkpoints(tmp_path, resume=True)


def test_other_versions_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    train([], tmp_path, 3)
    monkeypatch.setattr(checkpoints, "versions", lambda names: dict.fromkeys(names, "9.9"))
    train([], tmp_path)
    assert "may differ in the last digit: " in caplog.text


def test_notes_are_kept(tmp_path: Path) -> None:
    def fit(stop: int | None, **notes: Any) -> Checkpoints:
        kept = Checkpoints(tmp_path, every="1", resume=True)
        kept.notes.update(notes)
        with plugins(checkpoints=kept), pytest.raises(Stopped):
            build("standard", stop).fit()
        return kept

    fit(2, a=1, b=[2])
    assert Checkpoints(tmp_path, resume=True).notes == {"a": 1, "b": [2]}
    fit(4, b=3)
    assert Checkpoints(tmp_path, resume=True).notes == {"a": 1, "b": 3}


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    names, options = chosen("standard", tmp_path / "one")
    one = train(names, None, settings={"options": options})
    names, options = chosen("standard", tmp_path / "two")
    two = train(names, tmp_path / "kept", settings={"options": options})
    assert saved(tmp_path / "kept") == [13, 12]
    same(outcome(two, tmp_path / "two"), outcome(one, tmp_path / "one"))


def test_the_rows_go_on_in_the_folder_of_the_stopped_run(tmp_path: Path) -> None:
    """Also while something, such as a traceback, keeps the stopped run alive."""
    settings = {"options": {"recorder": {"output_path": str(tmp_path / "run"), "every": 1}}}
    stopped = train([Recorder], tmp_path / "kept", 7, settings=settings)
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 6
    train([Recorder], tmp_path / "kept", settings=settings)
    assert [path.name for path in (tmp_path / "run").glob("metrics*")] == ["metrics.jsonl"]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(1, STEPS + 1)]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    del stopped


# -- what goes wrong ---------------------------------------------------------------------------


def spoilt(trainer: Any) -> None:
    """Let the weights become NaN in step 6."""

    def spoil() -> None:
        trainer.sae.W_enc.data[0, 0] = torch.nan

    trainer.data_provider.at = {5: spoil}


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(PluginError, match="the loss is not finite since step 6"):
        train(["nan-guard"], tmp_path, prepare=spoilt)
    assert saved(tmp_path) == [5, 4]
    assert f"no checkpoint at step 6: NaN or infinite weights; the last good one is {tmp_path}" in (
        caplog.text
    )
    whole = train(["nan-guard"], None)
    last = train(["nan-guard"], tmp_path)
    same(outcome(last, tmp_path / "a"), outcome(whole, tmp_path / "b"))


def test_a_held_gradient_that_is_not_finite_replaces_no_checkpoint(tmp_path: Path) -> None:
    """The weights are fine until the window ends."""

    def spoil(trainer: Any) -> None:
        batches = trainer.data_provider.batches
        trainer.data_provider.at = {5: lambda: batches[5].fill_(torch.inf)}

    with pytest.raises(PluginError, match="the loss is not finite since step 6"):
        train(["nan-guard"], tmp_path, prepare=spoil, settings=ACCUMULATE)
    assert saved(tmp_path) == [5, 4]


@pytest.mark.parametrize("failing", ["write_state", "save_file"])
def test_a_full_disk_costs_no_training(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Once three checkpoints are written there is no room, for a while."""
    module = writing if failing == "write_state" else sys.modules["sae_plugins.resume.state"]
    write, calls = getattr(module, failing), itertools.count(1)

    def full(*arguments: Any) -> None:
        if next(calls) in (4, 5, 6):
            if failing == "save_file":
                Path(arguments[1]).write_bytes(b"in part")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(module, failing, full)
    seen: list[Any] = []

    def watched(trainer: Any) -> None:
        look = lambda: seen.append(sorted(path.name for path in tmp_path.iterdir()))  # noqa: E731
        trainer.data_provider.at = {5: look}

    whole = train([], None)
    last = train([], tmp_path, prepare=watched)
    names = ["step-000000002.safetensors", "step-000000003.safetensors"]
    assert seen == [names]  # nothing in part, and the good ones
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3
    for step, record in zip((4, 5, 6), errors, strict=True):
        message = record.getMessage()
        assert f"no checkpoint at step {step}" in message
        assert "No space left on device" in message
        assert message.endswith("step-000000003.safetensors")
    assert saved(tmp_path) == [13, 12]
    same(outcome(last, tmp_path / "a"), outcome(whole, tmp_path / "b"))


def test_a_file_that_the_kernel_refuses(tmp_path: Path, caplog: Any) -> None:
    train([], tmp_path, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        trainer = train([], tmp_path, every="5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trainer.n_training_steps == STEPS
    assert "no checkpoint at step 5: " in caplog.text
    assert "File too large" in caplog.text
    assert f"the last good one is {tmp_path}/step-000000003.safetensors" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000002.safetensors",
        "step-000000003.safetensors",
    ]


def test_rows_wait_for_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Each comes once, and those that a checkpoint held come from there."""
    settings = {"options": {"recorder": {"output_path": str(tmp_path / "run"), "every": 1}}}
    whole = {"options": {"recorder": {"output_path": str(tmp_path / "whole"), "every": 1}}}
    train([Recorder], None, settings=whole)
    own = Path.open

    def full(path: Path, *arguments: Any, **others: Any) -> Any:
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(path, *arguments, **others)

    def prepare(trainer: Any) -> None:
        trainer.data_provider.at = {
            3: lambda: monkeypatch.setattr(Path, "open", full),
            10: lambda: monkeypatch.setattr(Path, "open", own),
        }

    train([Recorder], tmp_path / "kept", 7, prepare=prepare, settings=settings)
    monkeypatch.setattr(Path, "open", own)
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 2
    assert caplog.text.count("waits for room") == 1
    train([Recorder], tmp_path / "kept", settings=settings)
    rows, expected = (read_rows(tmp_path / f / "metrics.jsonl") for f in ("run", "whole"))
    assert [plain(row) for row in rows] == [plain(row) for row in expected]


def test_an_own_checkpoint_of_sae_lens_does_not_do_with_plugins(tmp_path: Path) -> None:
    into = {"checkpoint_path": str(tmp_path), "n_checkpoints": 2}
    train(["reorder"], None, **into)
    (first, *_) = tmp_path.iterdir()
    with plugins("reorder"), pytest.raises(PluginError, match="sae-plugins train --resume"):
        build("standard", None).load_trainer_state(first)
    with plugins(Recorder, options={"recorder": {"output_path": str(tmp_path / "r")}}):
        trainer = build("standard", None, **into)
        trainer.load_trainer_state(first)
    assert trainer.n_training_samples == int(first.name)
    assert all(threshold >= int(first.name) for threshold in trainer.checkpoint_thresholds)


# -- SAELens' runners --------------------------------------------------------------------------


class Stopping(Plugin):
    """Ends the run in the middle of step `at`, as an error would; 0 for never."""

    name = "stopping"
    at = 0
    observes_only = True

    @hookimpl
    def before_forward(self, run: Any) -> None:
        if run.step == Stopping.at:
            raise Stopped


def resumed(
    run: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[Any, ...],
    *,
    stops: tuple[int, ...] = (3, 4, 6),
    **settings: Any,
) -> tuple[Any, Any]:
    """What `run(folder)` gives when it is stopped during each of `stops`, and when it is not."""

    def within(folder: str, at: int, kept: Checkpoints | None) -> Any:
        monkeypatch.setattr(Stopping, "at", at)
        with plugins(*names, Stopping, seed=3, checkpoints=kept, **settings):
            return run(tmp_path / folder)

    whole = within("whole", 0, None)
    for stop in stops:
        kept = Checkpoints(tmp_path / "kept", every="1", resume=True)
        with pytest.raises(PluginError, match="Stopped"):
            within("rest", stop, kept)
        assert kept.step == stop - 1
    kept = Checkpoints(tmp_path / "kept", every="3", resume=True)
    return within("rest", 0, kept), whole


def written(folder: Path) -> dict[str, bytes]:
    """SAEs in a folder, with SAELens' checkpoints."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
    }


@pytest.fixture(scope="module")
def language() -> Any:
    """A model and its text, made before any run: making them draws random numbers."""
    given = {
        "override_model": world.load_hooked_transformer(),
        "override_dataset": world.load_text("train", 40),
    }
    return given["override_model"].cfg.d_model, given


HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")


def llm_settings(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "model_name": world.NAME,
        "dataset_path": "none",
        "context_size": 16,
        "training_tokens": 256,
        "train_batch_size_tokens": 32,
        "store_batch_size_prompts": 2,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 2,
        "feature_sampling_window": 3,
        "dead_feature_window": 3,
        "streaming": False,
        "n_checkpoints": 2,
        "checkpoint_path": str(folder),
        "output_path": str(folder),
        "logger": QUIET,
    } | settings


def same_files(tmp_path: Path, least: int) -> None:
    one, other = written(tmp_path / "rest"), written(tmp_path / "whole")
    assert len(other) >= least
    same(one, other)


def llm_run(language: Any, normalised: str, prefetch: Any) -> Callable[[Path], Any]:
    d_in, given = language

    def run(folder: Path) -> Any:
        sae = StandardTrainingSAEConfig(
            d_in=d_in,
            d_sae=96,
            normalize_activations=normalised,  # type: ignore[arg-type]
        )
        settings = llm_settings(folder, prefetch_llm_batches=prefetch)
        config = LanguageModelSAERunnerConfig(sae=sae, hook_name=HOOKS[0], **settings)
        config.checkpoint_path = str(folder)  # SAELens chooses a random one
        return LanguageModelSAETrainingRunner(config, **given).run()

    return run


@pytest.mark.parametrize(
    ("prefetch", "normalised"),
    [
        (False, "none"),
        (True, "expected_average_only_in"),
        (3, "none"),
        pytest.param(False, "expected_average_only_in", marks=pytest.mark.ci),
        pytest.param(True, "none", marks=pytest.mark.ci),
        pytest.param(3, "expected_average_only_in", marks=pytest.mark.ci),
    ],
)
def test_language_model_runner(
    prefetch: Any,
    normalised: str,
    language: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = llm_run(language, normalised, prefetch)
    options = {"reorder": {"start": 1, "interval": 3}}
    resumed(run, tmp_path, monkeypatch, ("hybrid-order",), options=options)
    same_files(tmp_path, 9)


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(2, 9))
@pytest.mark.parametrize("prefetch", [False, True, 2, 5])
def test_every_step_of_the_language_model_runner(
    prefetch: Any, stop: int, language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, names = llm_run(language, "expected_average_only_in", prefetch), ("hybrid-order",)
    options = {"reorder": {"start": 1, "interval": 3}}
    training = {"accumulate": 4}
    resumed(run, tmp_path, monkeypatch, names, stops=(stop,), options=options, training=training)
    same_files(tmp_path, 9)


@pytest.mark.parametrize("prefetch", [False, 2], ids=lambda value: f"prefetch-{value}")
def test_multi_sae_runner(
    prefetch: Any, language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d_in, given = language

    def run(folder: Path) -> Any:
        config = MultiSAETrainingRunnerConfig(
            saes={
                "l1": StandardTrainingSAEConfig(
                    d_in=d_in, d_sae=80, normalize_activations="expected_average_only_in"
                ),
                "topk": TopKTrainingSAEConfig(d_in=d_in, d_sae=96, k=4),
            },
            hook_names={"l1": HOOKS[0], "topk": HOOKS[1]},
            **llm_settings(folder, prefetch_llm_batches=prefetch),
        )
        config.checkpoint_path = str(folder)
        return MultiSAETrainingRunner(config, **given).run()

    options = {"reorder": {"start": 1, "interval": 3}}
    resumed(
        run,
        tmp_path,
        monkeypatch,
        ("reorder",),
        options=options,
        training={"fast_step": bool(prefetch)},
    )
    same_files(tmp_path, 18)
    assert len(read_state(files(tmp_path / "kept")[0])["trainers"]) == 2


def multi_trainer(names: str, batches: Iterator[torch.Tensor], **config: Any) -> MultiSAETrainer:
    class Hooks(Batches):
        """`batches`, under a name."""

        def __next__(self) -> Any:
            return {"here": super().__next__()}

    provider = Hooks()
    vars(provider).update(vars(batches))
    saes = {name: tiny_sae("standard", seed=seed) for seed, name in enumerate(names)}
    fields = {
        "total_training_samples": STEPS * TOKENS,
        "train_batch_size_samples": TOKENS,
        "lr_end": 1e-4,
        "feature_sampling_window": 5,
        "logger": QUIET,
        **config,
    }
    return MultiSAETrainer(
        SAETrainerConfig(**fields),
        saes,
        dict.fromkeys(saes, "here"),
        provider,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("n_checkpoints", [3, 40])
def test_multi_sae_trainer_with_data_that_has_a_place(n_checkpoints: int, tmp_path: Path) -> None:
    """40 are more than there are steps: SAELens falls behind, and so must a resumed run."""

    def fit(stop: int | None, folder: str, kept: Path | None) -> Any:
        into = {"n_checkpoints": n_checkpoints, "checkpoint_path": str(tmp_path / folder)}
        every = "0" if kept is None else "1"
        keeping = Checkpoints(kept or tmp_path / "none", every=every, resume=True)
        with plugins("unit-norm-decoder", seed=0, checkpoints=keeping):
            trainer = multi_trainer("ab", Batches(stop), **into)
            if stop is None:
                trainer.fit()
            else:
                with pytest.raises(Stopped):
                    trainer.fit()
        return trainer

    whole = fit(None, "whole", None)
    fit(7, "rest", tmp_path / "kept")
    last = fit(None, "rest", tmp_path / "kept")
    for name in "ab":
        one, other = (run.trainers[name] for run in (last, whole))
        same(outcome(one, tmp_path / "a"), outcome(other, tmp_path / "b"))
    for counter in ("n_training_steps", "n_training_samples", "checkpoint_thresholds"):
        assert getattr(last, counter) == getattr(whole, counter)
    same_files(tmp_path, 18)


@pytest.mark.parametrize("normalised", ["none", "expected_average_only_in"])
def test_synthetic_runner(normalised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path) -> Any:
        config = SyntheticSAERunnerConfig(
            synthetic_model=SyntheticModelConfig(num_features=16, hidden_dim=D_IN, seed=1),
            sae=StandardTrainingSAEConfig(
                d_in=D_IN,
                d_sae=24,
                normalize_activations=normalised,  # type: ignore[arg-type]
            ),
            training_samples=320,
            batch_size=32,
            n_batches_for_norm_estimate=2,
            n_checkpoints=2,
            eval_samples=64,
            run_final_eval=True,
            feature_sampling_window=3,
            output_path=str(folder),
            checkpoint_path=str(folder),
            logger=QUIET,
        )
        config.checkpoint_path = str(folder)
        return SyntheticSAERunner(config).run()

    options = {"reorder": {"start": 1, "interval": 3}}
    one, other = resumed(
        run, tmp_path, monkeypatch, ("hybrid-order",), options=options, training={"accumulate": 4}
    )
    same_files(tmp_path, 6)
    assert one.final_eval == other.final_eval  # it draws from the global random state


def test_toy_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, torch.Tensor]] = []

    def run(folder: Path) -> Any:
        sae = tiny_sae("standard", normalize_activations="none")
        with torch.random.fork_rng():
            torch.manual_seed(7)
            world_of_features = FeatureDictionary(16, D_IN)
        train_toy_sae(
            sae,
            world_of_features,
            ActivationGenerator(16, 0.2),
            320,
            32,
            lr_warm_up_steps=6,
            n_snapshots=3,
            snapshot_fn=lambda trainer: taken.append(
                (trainer.n_training_samples, trainer.sae.W_dec.detach().clone())
            ),
        )
        sae.save_inference_model(folder)
        return sae

    resumed(run, tmp_path, monkeypatch, ("unit-norm-decoder",))
    same_files(tmp_path, 2)
    assert len(taken) == 6
    for one, other in zip(taken[:3], taken[3:], strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
