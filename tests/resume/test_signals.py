"""Signals end the step in progress and leave a checkpoint; a second to stop does not wait."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    train_toy_sae,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.base.errors import Paused, SaePluginsError
from sae_plugins.base.saelens import interruption
from sae_plugins.resume import written as writing
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.files import files
from sae_plugins.resume.signals import Waiting, deferred, handlers_kept
from sae_plugins.testing import (
    D_IN,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

Interrupted = interruption()
QUIET = LoggingConfig(log_to_wandb=False)
BOTH = (signal.SIGINT, signal.SIGTERM)
ALL = (*BOTH, signal.SIGUSR1)
STEPS = 8
ENDING = -1
"""In place of a step: when training has ended."""


class Raising(Plugin):
    """Raises signals in the middle of steps: in the forward pass, and a second at the update."""

    name = "raising"
    observes_only = True
    at: dict[int, list[int]] = {}

    def raise_next(self, step: int) -> None:
        if self.at.get(step):
            signal.raise_signal(self.at[step].pop(0))

    @hookimpl
    def after_forward(self, run: Any) -> None:
        self.raise_next(run.step)

    @hookimpl
    def after_update(self, run: Any) -> None:
        self.raise_next(run.step)

    @hookimpl
    def training_ended(self) -> None:
        while self.at.get(ENDING):
            self.raise_next(ENDING)


@pytest.fixture(autouse=True)
def raising(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Say in which steps signals come; the handlers must be the same at the end of each test."""

    def at(steps: dict[int, tuple[int, ...]]) -> None:
        monkeypatch.setattr(Raising, "at", {step: list(numbers) for step, numbers in steps.items()})

    before = [signal.getsignal(number) for number in ALL]
    at({})
    yield at
    after = [signal.getsignal(number) for number in ALL]
    for number, handler in zip(ALL, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def saved(folder: Path) -> list[int]:
    return [int(path.stem[-9:]) for path in files(folder)]


class Batches(Iterator[torch.Tensor]):
    """Batches that go on from where a checkpoint was; `at[place]` is called before each."""

    def __init__(self, at: dict[int, Callable[[], Any]] | None = None) -> None:
        self.place, self.at = 0, at or {}
        self.batches = tiny_batches(steps=STEPS)

    def __next__(self) -> torch.Tensor:
        self.at.get(self.place, bool)()
        self.place += 1
        return self.batches[self.place - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def fit(
    folder: Path | None,
    *names: Any,
    at: dict[int, Callable[[], Any]] | None = None,
    kept: Checkpoints | None = None,
    **how: Any,
) -> tuple[Any, BaseException | None]:
    """Train, or go on; the trainer, and what was raised."""
    if folder is not None:
        kept = Checkpoints(folder, **{"every": "0", "resume": True, **how})
    with plugins(*names, checkpoints=kept):
        trainer = tiny_trainer(tiny_sae("standard"), tiny_batches(steps=STEPS))
        trainer.data_provider = Batches(at)
        try:
            trainer.fit()
        except BaseException as error:
            return trainer, error
    return trainer, None


def raise_signal(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


# -- the first signal --------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_the_step_ends_and_a_checkpoint_is_written(
    number: int, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    whole, _ = fit(None)
    trainer, error = fit(tmp_path, at={4: raise_signal(number)})
    assert type(error) is Interrupted
    assert trainer.n_training_steps == 5  # the one in which it came, too
    assert saved(tmp_path) == [5]
    assert "finishing the step and writing a checkpoint; again to stop" in capfd.readouterr().err
    assert f"stopped after step 5; saved in {files(tmp_path)[0]}" in caplog.text
    rest, error = fit(tmp_path)
    assert error is None
    assert differences(snapshot(rest), snapshot(whole)) == {}


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_in_the_middle_of_a_step_with_plugins(number: int, raising: Any, tmp_path: Path) -> None:
    whole, _ = fit(None, Raising, "unit-norm-decoder")
    raising({3: (number,)})
    _, error = fit(tmp_path, Raising, "unit-norm-decoder")
    assert type(error) is Interrupted
    assert saved(tmp_path) == [3]
    raising({})
    rest, _ = fit(tmp_path, Raising, "unit-norm-decoder")
    assert differences(snapshot(rest), snapshot(whole)) == {}


def test_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one is finished, and so is the step that follows."""
    write = writing.write_state

    def interrupted(path: Path, tree: Any) -> None:
        if path.name.endswith("3.safetensors"):
            signal.raise_signal(signal.SIGINT)
        write(path, tree)

    monkeypatch.setattr(writing, "write_state", interrupted)
    _, error = fit(tmp_path, every="3")
    assert type(error) is Interrupted
    assert saved(tmp_path) == [4, 3]


def test_the_run_stops_also_where_no_checkpoint_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    write = writing.write_state

    def full(path: Path, tree: Any) -> None:
        if not path.name.endswith("3.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tree)

    monkeypatch.setattr(writing, "write_state", full)
    _, error = fit(tmp_path, at={4: raise_signal(signal.SIGTERM)}, every="3")
    assert type(error) is Interrupted
    assert saved(tmp_path) == [3]
    assert "no checkpoint at step 5: No space left on device; the last" in caplog.text


def test_in_the_last_step_the_run_finishes(raising: Any, tmp_path: Path) -> None:
    raising({STEPS: (signal.SIGINT,)})
    trainer, error = fit(tmp_path, Raising)
    assert error is None
    assert trainer.n_training_steps == STEPS
    assert saved(tmp_path) == []


# -- to go on later ----------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """How old this process is, to be set."""
    age = [0.0]
    monkeypatch.setattr("sae_plugins.resume.signals.age", lambda: age[0])
    return age


def test_a_run_pauses_at_a_scheduler_s_signal_and_once_is_as_good_as_twice(
    raising: Any, tmp_path: Path, capfd: Any
) -> None:
    raising({3: (signal.SIGUSR1, signal.SIGUSR1)})
    kept = Checkpoints(tmp_path, every="0")
    _, error = fit(None, Raising, kept=kept)
    assert type(error) is Interrupted
    assert kept.paused
    assert saved(tmp_path) == [3]
    said = capfd.readouterr().err
    assert said.count("finishing the step and writing a checkpoint\n") == 1
    assert "to stop at once" not in said
    raising({})
    rest, error = fit(tmp_path, Raising)
    assert error is None
    whole, _ = fit(None, Raising)
    assert differences(snapshot(rest), snapshot(whole)) == {}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["paused first", "stopped first"])
def test_a_signal_to_stop_beside_one_to_pause_stops_after_the_step(
    order: tuple[int, int], raising: Any, tmp_path: Path
) -> None:
    numbers = (signal.SIGUSR1, signal.SIGINT)
    raising({3: tuple(numbers[place] for place in order)})
    kept = Checkpoints(tmp_path, every="0")
    _, error = fit(None, Raising, kept=kept)
    assert type(error) is Interrupted
    assert not kept.paused
    assert saved(tmp_path) == [3]


def test_a_run_pauses_when_its_time_is_over(clock: list[float], tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, every="0", max_time="1h")
    at = {place: partial(clock.__setitem__, 0, age) for place, age in ((3, 3599), (5, 3600))}
    _, error = fit(None, at=at, kept=kept)
    assert type(error) is Interrupted
    assert kept.paused
    assert saved(tmp_path) == [6]
    clock[0] = 0
    rest, error = fit(tmp_path, max_time="1h")
    assert error is None
    whole, _ = fit(None)
    assert differences(snapshot(rest), snapshot(whole)) == {}


def test_a_time_in_which_no_step_fits_is_refused(clock: list[float], tmp_path: Path) -> None:
    clock[0] = 60
    _, error = fit(tmp_path, max_time="60s")
    assert "the time of 60s was over before the first step" in str(error)
    assert saved(tmp_path) == []


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaePluginsError, match="is no length of time"):
        Checkpoints(tmp_path, max_time="4 hours")


@pytest.mark.parametrize("pauses", [False, True])
def test_what_follows_training_is_left_for_later(
    pauses: bool, raising: Any, tmp_path: Path
) -> None:
    raising({ENDING: (signal.SIGUSR1,) if pauses else ()})
    kept = Checkpoints(tmp_path, every="0")
    trainer, error = fit(None, Raising, kept=kept)
    assert error is None
    assert trainer.n_training_steps == STEPS
    with pytest.raises(Paused) if pauses else nullcontext():
        kept.pause_in_the_end()
    assert kept.paused is pauses


# -- when there is nothing to wait for ---------------------------------------------------------


@pytest.mark.parametrize("numbers", [BOTH, (signal.SIGINT, signal.SIGINT)], ids=str)
def test_a_second_signal_stops_at_once(numbers: Any, raising: Any, tmp_path: Path) -> None:
    raising({4: numbers})
    trainer, error = fit(tmp_path, Raising, every="2")
    assert type(error) is Interrupted
    assert trainer.n_training_steps == 3
    assert saved(tmp_path) == [2]
    raising({})
    rest, _ = fit(tmp_path, Raising)
    whole, _ = fit(None, Raising)
    assert differences(snapshot(rest), snapshot(whole)) == {}


def test_before_the_first_step_the_handlers_are_those_of_before(tmp_path: Path) -> None:
    """As in norm estimation, which can be long."""

    class Own(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Own

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with plugins(checkpoints=Checkpoints(tmp_path, every="1")):
            sae = tiny_sae("standard", normalize_activations="expected_average_only_in")
            batches = tiny_batches(steps=STEPS)
            trainer = tiny_trainer(sae, batches, n_batches_for_norm_estimate=3)
            trainer.data_provider = Batches({2: raise_signal(signal.SIGTERM)})
            with pytest.raises(Own):
                trainer.fit()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved(tmp_path) == []


def test_after_training_has_ended_the_sae_is_saved(
    raising: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raising({ENDING: (signal.SIGTERM,)})
    trainer, error = fit(tmp_path, Raising)
    assert error is None
    assert trainer.n_training_steps == STEPS
    assert "saving the SAE; again to stop at once" in capfd.readouterr().err
    raising({ENDING: BOTH})
    _, error = fit(tmp_path / "second", Raising)
    assert type(error) is Interrupted


# -- handlers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["ended", "failed", "interrupted"])
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, print], ids=str)
def test_handlers_are_as_before(handler: Any, outcome: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    seen: list[Any] = []
    at = {
        2: lambda: seen.append(signal.getsignal(signal.SIGTERM)),
        3: {"ended": bool, "failed": fail, "interrupted": raise_signal(signal.SIGTERM)}[outcome],
    }
    before = signal.signal(signal.SIGTERM, handler)
    try:
        _, error = fit(tmp_path, at=at)
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen != [handler]
    expected = {"ended": type(None), "failed": ZeroDivisionError, "interrupted": Interrupted}
    assert type(error) is expected[outcome]


def test_handlers_of_other_languages_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda number: None)  # as for one set in C
        with handlers_kept():
            pass


@pytest.mark.parametrize("numbers", [(), *((number,) for number in BOTH), BOTH], ids=str)
def test_deferred_signals_are_answered_at_the_end(
    numbers: tuple[signal.Signals, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []

    def handler(number: int, _: Any) -> None:
        done.append(number)

    before = [signal.signal(number, handler) for number in BOTH]
    try:
        with deferred("moving files"):
            for number in numbers:
                signal.raise_signal(number)
            done.append("moved")
        assert done == ["moved", *numbers[:1]]
        assert [signal.getsignal(number) for number in BOTH] == [handler, handler]
    finally:
        for number, own in zip(BOTH, before, strict=True):
            signal.signal(number, own)
    assert capfd.readouterr().err.count("moving files, and stopping then") == len(numbers)


def test_without_checkpoints_signals_are_not_touched() -> None:
    seen: list[Any] = []
    fit(None, at={2: lambda: seen.append(signal.getsignal(signal.SIGTERM))})
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_in_another_thread(tmp_path: Path) -> None:
    """Python has signals in the main thread only."""
    seen: list[Any] = []
    results: list[Any] = []
    look = {2: lambda: seen.append([signal.getsignal(number) for number in BOTH])}
    thread = threading.Thread(target=lambda: results.append(fit(tmp_path, at=look, every="3")))
    before = [signal.getsignal(number) for number in BOTH]
    thread.start()
    thread.join()
    ((trainer, error),) = results
    assert error is None
    assert trainer.n_training_steps == STEPS
    assert saved(tmp_path) == [6, 3]
    assert seen == [before]


# -- SAELens' runners --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language() -> dict[str, Any]:
    """A model, and text."""
    with torch.random.fork_rng():
        shape = {"n_layers": 2, "d_model": D_IN, "d_head": 4, "n_ctx": 16, "d_vocab": 20}
        model = HookedTransformer(HookedTransformerConfig(**shape, act_fn="relu", seed=0))
        tokens = torch.randint(20, (64, 16)).tolist()
    return {
        "override_model": model,
        "override_dataset": Dataset.from_dict({"tokens": tokens}).to_iterable_dataset(),
    }


def llm_settings(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "model_name": "tiny",
        "dataset_path": "none",
        "context_size": 16,
        "training_tokens": 32 * STEPS,
        "train_batch_size_tokens": 32,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "n_batches_for_norm_estimate": 2,
        "prepend_bos": False,
        "checkpoint_path": str(folder),
        "output_path": str(folder),
        "logger": QUIET,
        **settings,
    }


def language_model(folder: Path, given: dict[str, Any], **settings: Any) -> Any:
    sae = StandardTrainingSAEConfig(
        d_in=D_IN, d_sae=16, normalize_activations="expected_average_only_in"
    )
    config = LanguageModelSAERunnerConfig(
        sae=sae, hook_name="blocks.0.hook_resid_post", **llm_settings(folder, **settings)
    )
    config.checkpoint_path = config.checkpoint_path and str(folder)
    return LanguageModelSAETrainingRunner(config, **given).run()


def prefetching(folder: Path, given: dict[str, Any]) -> Any:
    return language_model(folder, given, prefetch_llm_batches=2)


def without_a_folder(folder: Path, given: dict[str, Any]) -> Any:
    return language_model(folder, given, checkpoint_path=None)


def two_saes(folder: Path, given: dict[str, Any]) -> Any:
    config = MultiSAETrainingRunnerConfig(
        saes={name: StandardTrainingSAEConfig(d_in=D_IN, d_sae=16) for name in "ab"},
        hook_names={"a": "blocks.0.hook_resid_post", "b": "blocks.1.hook_resid_post"},
        **llm_settings(folder),
    )
    config.checkpoint_path = str(folder)
    return MultiSAETrainingRunner(config, **given).run()


def synthetic(folder: Path, given: dict[str, Any]) -> Any:
    config = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=16, hidden_dim=D_IN, seed=1),
        sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=16),
        training_samples=32 * STEPS,
        batch_size=32,
        run_final_eval=False,
        output_path=str(folder),
        checkpoint_path=str(folder),
        logger=QUIET,
    )
    return SyntheticSAERunner(config).run()


def toy(folder: Path, given: dict[str, Any]) -> Any:
    sae = tiny_sae("standard")
    features = FeatureDictionary(16, D_IN)
    train_toy_sae(sae, features, ActivationGenerator(16, 0.2), 32 * STEPS, 32)
    sae.save_inference_model(folder)


RUNNERS = [language_model, prefetching, without_a_folder, two_saes, synthetic, toy]


def written(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("sae_weights*")}


def run(runner: Any, folder: Path, given: dict[str, Any], kept: Checkpoints | None) -> None:
    with plugins(Raising, seed=0, checkpoints=kept):
        runner(folder, given)


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
def test_runners_stop_and_go_on(
    runner: Any, number: int, language: Any, raising: Any, tmp_path: Path
) -> None:
    kept = Checkpoints(tmp_path / "kept", every="0")
    handlers = [signal.getsignal(number) for number in BOTH]
    threads = threading.active_count()
    raising({5: (number,)})
    with pytest.raises(Interrupted):
        run(runner, tmp_path / "rest", language, kept)
    assert saved(tmp_path / "kept") == [5]
    assert [signal.getsignal(number) for number in BOTH] == handlers
    assert threading.active_count() == threads
    if runner is not two_saes:  # what SAELens would write has no weights
        assert not (tmp_path / "rest" / "160").exists()
    raising({})
    run(runner, tmp_path / "rest", language, Checkpoints(tmp_path / "kept", resume=True))
    run(runner, tmp_path / "whole", language, None)
    for each, handler in zip(BOTH, handlers, strict=True):
        signal.signal(each, handler)  # without checkpoints, SAELens leaves its own behind
    one, other = written(tmp_path / "rest"), written(tmp_path / "whole")
    assert other
    assert {path: one[path] for path in other} == other


@pytest.mark.parametrize("runner", [language_model, two_saes], ids=lambda runner: runner.__name__)
@pytest.mark.parametrize("ending", [False, True], ids=["second", "after the end"])
def test_runners_stop_at_once(
    ending: bool, runner: Any, language: Any, raising: Any, tmp_path: Path
) -> None:
    raising({ENDING if ending else 5: BOTH})
    with pytest.raises(Interrupted):
        run(runner, tmp_path / "run", language, Checkpoints(tmp_path / "kept", every="0"))
    assert saved(tmp_path / "kept") == []


def test_ctrl_c_to_all_of_a_group_does_not_keep_alive_what_is_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of a study hears of both, the first of which it would outlive."""
    monkeypatch.chdir(tmp_path)

    def act() -> int:
        with Waiting() as waiting:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            waiting.answer(lambda: Path("first").touch())
        return 0

    assert faults.forked(act) == -signal.SIGTERM
    assert Path("first").exists()
