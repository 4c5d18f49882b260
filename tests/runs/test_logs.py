"""Rows of `metrics.jsonl` in TensorBoard and trackio, live, resumed, and where these fail."""

from __future__ import annotations

import contextvars
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from faults import interrupted
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sae_plugins
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import read_rows
from sae_plugins.entrypoints.main import main
from sae_plugins.runs import logs
from sae_plugins.runs.folder import events
from sae_plugins.testing import TOKENS, tiny_batches, tiny_sae, tiny_trainer

SHORT = (
    *("--training_tokens", "1280", "--train_batch_size_tokens", "64", "--d_sae", "32"),
    *("--context_size", "16", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256", "--recorder.every", "2"),
    *("--plugin", "reorder", "--reorder.start", "5", "--checkpoint_every", "5"),
)
"""20 steps."""
BOTH = ("--log_to", "tensorboard", "trackio")

Value = tuple[int, str, float]


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    return tmp_path


class Dashboard(ModuleType):
    """What we use of trackio, in its place: runs by name, the newest last; see test_extras.py."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = SimpleNamespace(name="trackio", origin=__file__)  # type: ignore[assignment]
        self.runs: list[Any] = []
        self.current = contextvars.ContextVar[Any]("current", default=None)
        self.is_broken = False

    def init(self, *, project: str, name: str, resume: str, **hardware: bool) -> Any:
        assert hardware == dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False)
        assert self.current.get() is None, "the run of somebody else would be ended"
        print("* Trackio project initialized")
        same = [run for run in self.runs if (run.project, run.name) == (project, name)]
        run = same[-1] if same and resume == "allow" else self._new(project, name)
        run._next_step = max([step for step, *_ in run.values], default=-1) + 1
        run.is_open = True
        self.current.set(run)
        return run

    def _new(self, project: str, name: str) -> Any:
        run = SimpleNamespace(project=project, name=name, values=[], is_open=True)

        def log(metrics: dict[str, float], step: int) -> None:
            if self.is_broken:
                raise OSError("the server is away")
            assert run.is_open
            run.values += [(step, name, value) for name, value in metrics.items()]

        run.log, run.finish = log, lambda: setattr(run, "is_open", False)
        self.runs.append(run)
        return run


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    """A dashboard in trackio's place."""

    def validate(project: str) -> None:
        if project.endswith("_system"):
            raise ValueError(f"Project name {project!r} is not allowed")

    found, storage = Dashboard(), ModuleType("trackio.sqlite_storage")
    storage.SQLiteStorage = SimpleNamespace(validate_project_name=validate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", found)
    monkeypatch.setitem(sys.modules, "trackio.sqlite_storage", storage)
    return found


def train(output: str, *arguments: str, code: int = 0) -> Path:
    assert main(["train", *SHORT, "--output_path", output, *arguments]) == code
    return Path(output)


def in_tensorboard(folder: Path, number: int = 1) -> list[Value]:
    """The values that TensorBoard finds, with nothing left out, and as often as they are there."""
    place = (folder / events(number)).parent
    found = EventAccumulator(str(place), {"scalars": 0})
    found.Reload()
    return sorted(
        (event.step, tag, event.value)
        for tag in found.Tags()["scalars"]
        for event in found.Scalars(tag)
    )


def recorded_in(folder: Path, name: str = "metrics.jsonl") -> list[Value]:
    """What a run's own files say, less what is unknown."""
    rows = read_rows(folder / name)
    summary = json.loads((folder / "summary.json").read_text()) | {"step": rows[-1]["step"]}
    return sorted(
        (row["step"], name, float(value))
        for row in (*rows, *([] if name != "metrics.jsonl" else [summary]))
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float))
    )


def same(found: list[Value], wanted: list[Value]) -> None:
    """TensorBoard's numbers are float32."""
    assert [value[:2] for value in found] == [value[:2] for value in wanted]
    assert [v for *_, v in found] == pytest.approx([v for *_, v in wanted], rel=1e-6)


def test_dashboards_have_all_that_a_run_records_and_change_no_weight(
    trackio: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("runs/one", *BOTH, "--trackio_project", "mine")
    said = capsys.readouterr().out
    assert "tensorboard --logdir runs/one" in said
    assert f'trackio show --project "mine", run {logs.name_of(run)}' in said
    assert "Trackio project initialized" not in said
    wanted = recorded_in(run)
    names = {name for _, name, _ in wanted}
    assert {"losses/overall_loss", "heldout/l0", "changes/permuted", "run/seconds"} <= names
    same(in_tensorboard(run), wanted)
    (logged,) = trackio.runs
    assert (sorted(logged.values), logged.is_open) == (wanted, False)
    assert (logged.project, logged.name) == ("mine", logs.name_of(run))
    plain = train("plain")
    weights = [load_file(each / "sae_weights.safetensors") for each in (run, plain)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    assert not (plain / "tensorboard").exists()
    train("runs/one", "--overwrite")  # whose rows are others
    assert not (run / "tensorboard").exists()


def test_a_run_that_is_interrupted_and_goes_on_has_each_row_once(trackio: Dashboard) -> None:
    with interrupted(6):
        train("run", *BOTH, code=130)
    scratch = Path("run/unfinished")
    same(in_tensorboard(scratch), recorded_in_rows(scratch))
    (logged,) = trackio.runs
    assert sorted(logged.values) == recorded_in_rows(scratch)
    assert main(["train", "--resume", "run"]) == 0
    run = Path("run")
    assert read_rows(run / "metrics.jsonl")[-1]["step"] == 20
    steps = [value[:2] for value in recorded_in(run)]
    assert [value[:2] for value in in_tensorboard(run)] == steps
    assert [value[:2] for value in sorted(trackio.runs[0].values)] == steps
    assert len(trackio.runs) == 1
    assert not (run / "unfinished").exists()


def recorded_in_rows(folder: Path) -> list[Value]:
    """What `metrics.jsonl` says."""
    return sorted(
        (row["step"], name, float(value))
        for row in read_rows(folder / "metrics.jsonl")
        for name, value in row.items()
        if name != "step" and value is not None
    )


def test_a_log_that_fails_costs_no_training_and_is_put_right_at_the_end(
    trackio: Dashboard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio.is_broken = True
    conclude = logs.conclude

    def repaired(*given: Any) -> None:
        trackio.is_broken = False
        conclude(*given)

    monkeypatch.setattr(logs, "conclude", repaired)
    run = train("run", *BOTH)
    assert caplog.text.count("--log_to trackio: nothing more is logged: the server is away") == 1
    assert sorted(trackio.runs[-1].values) == recorded_in(run)
    same(in_tensorboard(run), recorded_in(run))


def test_a_training_in_python_is_logged_too(tmp_path: Path, trackio: Dashboard) -> None:
    theirs = trackio.init(
        project="theirs",
        name="x",
        resume="never",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )

    def fit(steps: int) -> None:
        total = steps * TOKENS
        tiny_trainer(
            tiny_sae("standard"), tiny_batches(steps=steps), total_training_samples=total
        ).fit()

    with sae_plugins.recorded(tmp_path / "x", every=2, log_to=("tensorboard", "trackio")):
        fit(4)
        fit(6)
    same(in_tensorboard(tmp_path / "x"), recorded_in(tmp_path / "x"))
    assert {step for step, *_ in in_tensorboard(tmp_path / "x", 2)} == {2, 4, 6}
    assert [run.name for run in trackio.runs[1:]] == [
        logs.name_of(tmp_path / "x"), f"{logs.name_of(tmp_path / 'x')}-2",
    ]  # fmt: skip
    assert theirs.is_open
    assert not (tmp_path / "x" / "unfinished").exists()
    with pytest.raises(PluginError, match="overwrite=True"), sae_plugins.recorded(tmp_path / "x"):
        pass


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_package_that_is_missing_is_said_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for module in [known for known in sys.modules if known.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    here: Callable[[str], Any] = logs.find_spec
    monkeypatch.setattr(logs, "find_spec", lambda word: None if word == name else here(word))
    sentence = f"{name} is not installed: pip install 'sae-plugins[{name}]', or leave it out"
    train("run", "--log_to", name, code=2)
    said = capsys.readouterr()
    assert f"--log_to: {sentence}" in said.err
    assert "loading" not in said.out
    python = sae_plugins.recorded(tmp_path / "x", log_to=[name])
    with pytest.raises(PluginError, match=f"log_to: {name} is not"), python:
        pass
    monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    train("run")


def test_a_folder_of_its_name_is_no_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "anything").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="anything is not installed"):
        logs.check(["anything"])


def test_a_project_that_trackio_refuses_ends_a_run_before_it_trains(
    trackio: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", "--log_to", "trackio", "--trackio_project", "my_system", code=1)
    assert "--trackio_project my_system: Project name 'my_system'" in capsys.readouterr().err
    assert not trackio.runs
