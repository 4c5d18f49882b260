"""Training in lockstep: an SAE that trains beside others cannot tell."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import pytest
import torch
from lockstep_arms import ARMS, TOY, AtStepThree, Raises, arm, arms, line, same, with_plugin
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins import Plugin, PluginError, plugins
from sae_plugins.base.files import read_rows
from sae_plugins.base.ranks import join
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.forked import on_ranks
from sae_plugins.framework.resolve import resolve
from sae_plugins.runs import lockstep, lockstep_arm, memory
from sae_plugins.runs.lockstep import LockstepRun, train
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.setup import Setup
from sae_plugins.runs.stream_key import stream_key
from sae_plugins.runs.texts import documents
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle


@pytest.fixture(autouse=True)
def _folder(tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, a tiny model for the embedded world, and no figures drawn."""
    monkeypatch.setattr(Recorder, "draw_figures", lambda *_: None)


def alone(name: str, flags: str | None = None) -> Path:
    """The same SAE, by `sae-plugins train`."""
    folder = Path("alone") / name
    flags = ARMS[name] if flags is None else flags
    assert main(["train", *line(flags), "--output_path", str(folder)]) == 0
    return folder


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


class Spied:
    """A setup whose batches are counted."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.batches: list[torch.Tensor] = []
        self.streams = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.setup, name)

    def stream(self) -> Iterator[torch.Tensor]:
        self.streams += 1
        for batch in self.setup.stream():
            self.batches.append(batch)
            yield batch


class Poisons(AtStepThree):
    """Changes the batch in place, and draws from the state that the data is drawn from."""

    name = "poisons"

    def act(self, sae_in: torch.Tensor) -> None:
        sae_in.zero_()
        torch.rand(1000)


class Interrupts(AtStepThree):
    """The user has seen enough."""

    name = "interrupts"

    def act(self, sae_in: torch.Tensor) -> None:
        raise KeyboardInterrupt


# -- what an arm ends up with ------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["l1", "hybrid-order", "batchtopk", "fast", "exact"], id="some"),
        pytest.param([*ARMS], id="all", marks=pytest.mark.slow),
    ],
)
def test_each_arm_is_its_separate_run(names: list[str]) -> None:
    together = arms({name: ARMS[name] for name in names})
    assert train(together) == {}
    for one in together:
        assert same(one.folder, alone(one.name)), one.name
        assert files(one.folder) == files(Path("alone") / one.name) - {"run.yaml", "files.json"}


def test_the_arms_of_that_test_change_features() -> None:
    """So that what it compares is more than plain training."""
    together = arms({name: ARMS[name] for name in ("hybrid-order", "hierarchical")})
    assert train(together) == {}
    columns = [{*row} for one in together for row in read_rows(one.folder / "metrics.jsonl")]
    assert {"changes/permuted", "changes/merged", "changes/reset"} <= set().union(*columns)


@pytest.mark.parametrize("normalize", ["none", "covariance_whitening"])
def test_ways_to_normalise(normalize: str) -> None:
    flags = f"--normalize_activations {normalize} --training_tokens 256"
    together = arms({"l1": flags, "topk": f"{flags} --architecture topk --k 4"})
    assert train(together) == {}
    assert same(together[0].folder, alone("l1", flags))


@pytest.mark.slow
def test_arms_on_the_synthetic_model_are_their_separate_runs() -> None:
    flags = {"l1": TOY, "batchtopk": f"{TOY} --architecture batchtopk --k 4"}
    together = arms(flags)
    assert train(together) == {}
    for one in together:
        assert same(one.folder, alone(one.name, flags[one.name])), one.name


def test_a_seed_gives_equal_shapes_equal_weights() -> None:
    drawn = {}
    names = ("standard", "topk", "batchtopk", "jumprelu", "gated")
    for one in arms({name: f"--architecture {name}" for name in names}):
        with plugins(seed=one.setup.settings.seed):
            drawn[one.name] = one.setup.trainer(one.folder)[0].sae
    assert all(sae.W_dec.equal(drawn["standard"].W_dec) for sae in drawn.values())
    assert all(sae.W_enc.equal(drawn["standard"].W_enc) for sae in drawn.values())


def test_an_untrained_arm_is_saved_as_it_was_drawn() -> None:
    (one,) = arms({"control": "--architecture standard"})
    with plugins(seed=one.setup.settings.seed):
        sae = one.setup.trainer(one.folder)[0].sae
    trained = replace(one, name="trained", folder=Path("lockstep/trained"))
    assert train([replace(one, untrained=True), trained]) == {}
    weights = saved(one.folder)
    assert (
        weights["W_dec"]
        .norm(dim=1)
        .allclose(sae.W_dec.norm(dim=1) * weights["W_dec"][0].norm() / sae.W_dec[0].norm())
    )
    assert not weights["W_dec"].equal(saved(trained.folder)["W_dec"])
    # normalisation is folded in, as it is for the others
    ratio = weights["W_enc"] / sae.W_enc
    assert ratio.allclose(ratio[0, 0].expand_as(ratio))
    assert not ratio[0, 0].isclose(torch.tensor(1.0))
    assert not (one.folder / "sparsity.safetensors").exists()
    summary = json.loads((one.folder / "summary.json").read_text())
    assert summary["training/steps"] == 0
    assert summary["heldout/tokens"] >= 256


# -- arms do not touch each other --------------------------------------------------------------


@pytest.mark.parametrize("plugin", [Raises, Poisons])
@pytest.mark.parametrize("first", [True, False])
def test_whatever_an_arm_does_the_others_are_as_they_were(
    plugin: type[Plugin], first: bool
) -> None:
    flags = "--normalize_activations none --training_tokens 512"  # so that plugins see the batch
    quiet, wild = arms({"quiet": flags, "wild": flags})
    assert train([quiet]) == {}
    beside = replace(quiet, name="beside", folder=Path("lockstep/beside"))
    wild = with_plugin(wild, plugin)
    failures = train([wild, beside] if first else [beside, wild])
    assert same(beside.folder, quiet.folder)
    assert {*failures} == ({"wild"} if plugin is Raises else set())
    assert wild.folder.exists() == (plugin is Poisons)
    assert {path.name for path in Path("lockstep").iterdir()} == {
        *("quiet", "beside"),
        *(["wild"] if plugin is Poisons else []),
    }


def test_an_arm_that_fails_is_reported_and_its_memory_freed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[tuple[str, weakref.ref[Any]]] = []
    draw = lockstep_arm.Training.__init__

    def drawn(self: Any, one: LockstepRun, *rest: Any) -> None:
        draw(self, one, *rest)
        alive.append((one.name, weakref.ref(self.trainer.sae)))

    monkeypatch.setattr(lockstep_arm.Training, "__init__", drawn)
    seen: list[set[str]] = []

    def progress(done: int, total: int) -> None:
        seen.append({name for name, sae in alive if sae() is not None})

    short, long, wild = arms({"short": "--training_tokens 320", "long": "", "wild": ""})
    failures = train([short, long, with_plugin(wild, Raises)], progress)
    assert "failed in event 'step_ended'" in str(failures["wild"])
    assert "arm wild failed" in caplog.text
    assert seen[1] == {"short", "long", "wild"}
    assert seen[3] == {"short", "long"}
    assert seen[5] == {"long"}


def test_an_arm_that_cannot_be_drawn_does_not_take_the_others_down() -> None:
    flags = "--training_tokens 256"
    fine, wrong = arms({"fine": flags, "wrong": f"{flags} --architecture topk --k 4"})
    failures = train([replace(wrong, plan=resolve(["input-norm-l1"])), fine])
    assert "plugin 'input-norm-l1' does not work on topk SAEs" in str(failures["wrong"])
    assert fine.folder.exists()


def test_interrupted_it_leaves_nothing_and_can_start_again() -> None:
    flags = "--training_tokens 512"
    one, other = arms({"one": flags, "other": flags})
    with pytest.raises(KeyboardInterrupt):
        train([one, with_plugin(other, Interrupts)])
    assert [*Path("lockstep").iterdir()] == []
    one.unfinished.mkdir()  # as after kill -9
    (one.unfinished / "sae_weights.safetensors").write_text("half")
    assert train([one]) == {}
    assert [path.name for path in Path("lockstep").iterdir()] == ["one"]
    SAE.load_from_disk(str(one.folder))


@pytest.mark.slow
def test_killed_at_any_event_it_is_whole_or_absent(sketched: None) -> None:
    flags = "--training_tokens 256 --plugin activation-threshold"
    (one,) = arms({"one": flags})
    one = replace(one, recipe={"seed": 1})
    whole = replace(one, folder=Path("whole/one"))
    assert faults.forked(lambda: len(train([whole]))) == 0, faults.said()
    events, wanted = len(faults.events()), faults.contents(whole.folder, "_path")
    assert "run.yaml" in wanted
    for at in range(1, events + 1):
        if faults.forked(lambda: len(train([one])), at=at) and not one.folder.exists():
            assert faults.forked(lambda: len(train([one]))) == 0, faults.said()
        assert faults.contents(one.folder, "_path") == wanted, at
        shutil.rmtree("lockstep")


def test_files_of_others_move_along() -> None:
    (one,) = arms({"one": "--training_tokens 256"})
    one.unfinished.mkdir(parents=True)
    (one.unfinished / "notes.txt").write_text("mine")
    (one.unfinished / "cfg.json").write_text("half")
    assert train([one]) == {}
    assert (one.folder / "notes.txt").read_text() == "mine"
    SAE.load_from_disk(str(one.folder))


# -- one stream --------------------------------------------------------------------------------


def test_the_language_model_runs_once() -> None:
    together = arms({"short": "--training_tokens 320", "l1": "", "topk": ARMS["topk"]})
    spy = Spied(together[0].setup)
    told: list[tuple[int, int]] = []
    steps = lambda done, total: told.append((done, total))  # noqa: E731
    assert train([replace(together[0], setup=spy), *together[1:]], steps) == {}
    assert spy.streams == 1
    assert len(spy.batches) == 2 + 16  # two of them for the norm
    assert told == [(step, 16) for step in range(1, 17)]
    assert read_rows(together[0].folder / "metrics.jsonl")[-1]["step"] == 5


def test_what_does_not_fit_into_memory_trains_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"one": "--training_tokens 320", "two": "", "three": ARMS["topk"]}
    together = arms(flags)
    assert train(together) == {}
    spy = Spied(together[0].setup)
    apart = [
        replace(
            one, setup=spy if one.setup is spy.setup else one.setup, folder=Path("apart") / one.name
        )
        for one in together
    ]
    setup = together[0].setup
    needed = memory.bytes_in_training(setup.sae_config)
    room = 2.5 * needed / 0.5 + memory.beside_saes(setup.needs(), "cpu")
    monkeypatch.setattr(lockstep, "memory_of", lambda device: room)
    told: list[tuple[int, int]] = []
    steps = lambda done, total: told.append((done, total))  # noqa: E731
    finished: list[tuple[str, int, bool]] = []
    note = lambda arm: finished.append((arm.name, len(told), arm.folder.is_dir()))  # noqa: E731
    assert train(apart, steps, note) == {}
    assert told == [(step, 32) for step in range(1, 33)]
    assert finished == [("one", 16, True), ("two", 16, True), ("three", 32, True)]
    for one, other in zip(together, apart, strict=True):
        assert same(one.folder, other.folder)


def test_other_batches_are_refused() -> None:
    one, other = arms({"one": "", "other": "--context_size 8 --seed 1"})
    with pytest.raises(PluginError, match=r"arm other .* arm one.*: --context_size, --seed dif"):
        train([one, other])


def stub(name: str, flags: str = "", **fields: Any) -> LockstepRun:
    """An arm for which nothing is loaded."""
    settings = settle(train_flags(line(flags)))
    setup: Any = SimpleNamespace(settings=settings.for_saelens(), **fields)
    return LockstepRun(name, setup, Path("lockstep") / name, settings.plan)


@pytest.mark.parametrize("other", ["--calibrate_l0 3 --calibrate_tokens 99", ""])
def test_a_calibration_that_holds_out_more_text_is_refused_by_its_flags(other: str) -> None:
    data = "--dataset_path texts.txt"
    arms = stub("one", f"{data} --calibrate_l0 3"), stub("other", f"{data} {other}")
    with pytest.raises(PluginError, match="lockstep: --calibrate_l0 or --calibrate_tokens differ"):
        train(arms)


@pytest.mark.parametrize(("processes", "passes"), [(1, [3, 2]), (2, [1, 1, 1, 1, 1])])
def test_saes_share_what_the_language_model_leaves(
    processes: int, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(d_in=16, d_sae=32, dtype="float32")
    each = memory.bytes_in_training(config)
    settings = settle(train_flags(line(""))).for_saelens()
    alone, batch = memory.needs_of_sae(settings, config)
    needs = [
        *(alone, batch, memory.Need("the language model", 4 * each, "cpu")),
        memory.Need("the buffer", 99 * each, "cuda"),
    ]
    arms = [stub(f"{n}", sae_config=config, needs=lambda: needs) for n in range(5)]
    monkeypatch.setattr(lockstep, "memory_of", lambda device: 10.5 * each + batch.count)
    assert [len(group) for group in lockstep._passes(arms, processes)] == passes


@pytest.mark.parametrize(
    ("flags", "equal"),
    [
        ("--lr 0.1 --training_tokens 128 --d_sae 64", True),
        ("--architecture topk --k 4", True),
        ("--plugin hybrid-order", True),
        ("--adam_beta1 0.5 --dead_feature_window 7 --autocast true", True),
        ("--context_size 16", True),  # the tiny world's default, said aloud
        ("--seed 1", False),
        ("--train_batch_size_tokens 32", False),
        ("--normalize_activations none", False),
        ("--n_batches_for_norm_estimate 3", False),
        ("--hook_name blocks.0.hook_resid_post", False),
        ("--heldout_tokens 512", False),
    ],
)
def test_what_the_batches_depend_on(flags: str, equal: bool) -> None:
    keys = [stream_key(settle(train_flags(line(more))).for_saelens()) for more in ("", flags)]
    assert (keys[0] == keys[1]) == equal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: {"name": "one"}, "2 arms have the name one"),
        (lambda one: {"folder": one.folder}, "2 arms have the folder"),
        (lambda one: {"folder": Path(".")}, "is already there"),
    ],
)
def test_arms_that_would_write_over_something(
    change: Callable[[LockstepRun], dict[str, Any]], message: str
) -> None:
    one, other = arms({"one": "", "other": ""})
    with pytest.raises(PluginError, match=message):
        train([one, replace(other, **change(one))])


@pytest.mark.parametrize("flag", ["--n_checkpoints 2", "--log_to_wandb"])
def test_settings_that_are_for_one_sae(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(PluginError, match=f"arm one: {flag.split()[0]} is for SAEs that train"):
        train([arm("one", flag)])


def test_jobs_share_a_model_and_its_text(tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, seed = arms({"one": "", "other": ARMS["topk"], "seed": "--seed 1"})
    assert one.setup.model is other.setup.model is seed.setup.model
    assert one.setup.text is other.setup.text
    first = [next(iter(setup.text.train))["tokens"] for setup in (one.setup, seed.setup)]
    assert first[0] != first[1]  # the seed orders the data


@pytest.mark.ci
def test_rows_without_text_are_told_once_of_all_ranks() -> None:
    Path("data").mkdir()
    rows = [json.dumps({"tokens": tokens}) for tokens in (*[[5, 6, 7] * 40] * 9, None)]
    for number in range(2):
        Path(f"data/part{number}.jsonl").write_text("\n".join(rows * 9))
    flags = "--dataset_path data --streaming true --data_shards 2 --heldout_tokens 0"

    def act() -> list[str]:
        join(60)
        said: list[str] = []
        documents.logger.warning = lambda text, *values: said.append(text % values)  # type: ignore
        assert not train(arms({"l1": flags, "topk": f"{flags} --architecture topk --k 4"}))
        return said

    first, second = on_ranks(2, act, 120)
    (sentence,) = first
    assert "rows read have no text in the column 'tokens', and were skipped" in sentence
    assert not second
