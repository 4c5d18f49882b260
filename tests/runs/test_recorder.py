"""What a training run leaves behind: rows, figures, summary."""

import json
import math

import pytest
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

import sae_plugins
from sae_plugins import Plugin, hookimpl
from sae_plugins.base import plots
from sae_plugins.base.errors import PluginError
from sae_plugins.base.text import format_value
from sae_plugins.runs import figures
from sae_plugins.runs.feature_history import Past, read_history
from sae_plugins.runs.folder import METRICS_BY_FEATURE
from sae_plugins.runs.recorder import Recorder, read_rows

D_IN, D_SAE, BATCH = 8, 16, 32
PNG = b"\x89PNG"
save_figure = plots.save


@pytest.fixture(autouse=True)
def undrawn_figures(monkeypatch):
    """Building figures is quick; drawing them takes most of a second."""
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b"undrawn"))


class Chatty(Plugin):
    """Logs in every way there is, and reverses the features at step 7."""

    name = "chatty"

    @hookimpl
    def attached(self, run):
        self.evaluated = []

    @hookimpl
    def step_ended(self, run):
        step = run.step
        run.log("chatty/tensor", torch.tensor(float(step)))
        run.log("chatty/nan", math.nan)
        run.log("chatty/lazy", lambda: self.evaluated.append(step) or step)
        if step == 7:
            run.features.permute(torch.arange(D_SAE).flip(0))
            run.features.permute(torch.arange(D_SAE).flip(0))

    @hookimpl
    def features_changed(self, run, change):
        run.log("chatty/event", len(change.order))

    @hookimpl
    def training_ended(self, run):
        run.summarise("chatty/seven", 7)
        run.summarise("chatty/unknown", math.inf)


def make_trainer(steps, extra_tokens=0):
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, device="cpu"))
    draw = torch.Generator().manual_seed(0)
    return SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=steps * BATCH + extra_tokens,
            device="cpu",
            autocast=False,
            lr=1e-3,
            lr_end=1e-4,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=BATCH,
            dead_feature_window=1000,
            feature_sampling_window=1000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(lambda: torch.randn(BATCH, D_IN, generator=draw), None),
    )


def train(folder, steps=23, every=5, plugins=(Chatty, Recorder), **trainer):
    options = {"recorder": {"output_path": str(folder), "every": every}}
    with sae_plugins.plugins(*plugins, options=options, seed=0):
        trainer = make_trainer(steps, **trainer)
        trainer.fit()
    return trainer


def strictly(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_rows_hold_what_saelens_and_the_plugins_say_of_their_step(tmp_path):
    trainer = train(tmp_path / "deep" / "run")
    lines = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(strictly, lines)}
    assert list(rows) == [5, 7, 10, 15, 20, 23]
    for step, row in rows.items():
        assert (row["samples"], row["updates"]) == (step * BATCH, step)
        assert row["chatty/tensor"] == row["chatty/lazy"] == step
        assert row["chatty/nan"] is None
        assert ("metrics/l0" in row) == ("losses/overall_loss" in row) == (step != 7)
    assert rows[7]["chatty/event"] == rows[7]["changes/permuted"] == D_SAE
    assert "chatty/event" not in rows[10]
    assert rows[23]["losses/overall_loss"] > 0
    seconds = [row["seconds"] for row in rows.values()]
    assert seconds == sorted(seconds)
    chatty = trainer.host.plugins[0]
    assert set(chatty.evaluated) == set(rows)  # lazy values of other steps cost nothing


def test_a_due_row_and_a_feature_change_make_one_row(tmp_path):
    train(tmp_path, every=7)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [7, 14, 21, 23]
    assert {"chatty/event", "changes/permuted", "metrics/l0"} <= rows[0].keys()


def test_the_last_batch_is_recorded_when_it_is_a_remainder(tmp_path):
    train(tmp_path, steps=12, extra_tokens=5)
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == 13


def test_figures_and_summary_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", save_figure)
    train(tmp_path)
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.rglob("*.png"))
    assert {path.name for path in tmp_path.rglob("*.*")} == {
        "metrics.jsonl", "metrics_by_feature.jsonl", "loss_and_l0.png", "firing_by_position.png",
        "training_summary.json", "chatty.png",
    }  # fmt: skip
    summary = strictly((tmp_path / "training_summary.json").read_text())
    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert summary["training/loss"] == last["losses/overall_loss"]
    assert summary["training/l0"] == last["metrics/l0"]
    assert summary["training/explained_variance"] == last["metrics/explained_variance"]
    assert summary["training/dead_features"] == last["sparsity/dead_features"]
    assert (summary["training/steps"], summary["training/updates"]) == (23, 23)
    assert summary["training/tokens"] == 23 * BATCH
    assert summary["training/tokens_per_second"] > 0
    assert (summary["chatty/seven"], summary["chatty/unknown"]) == (7, None)


def test_what_happened_to_features_is_there_in_the_end(tmp_path):
    train(tmp_path)
    reversed_once = {i: Past(D_SAE - 1 - i) for i in range(D_SAE)}
    assert read_history(tmp_path / METRICS_BY_FEATURE, D_SAE) == reversed_once


def test_a_run_in_which_no_feature_changes_has_no_rows_by_feature(tmp_path):
    train(tmp_path, steps=3)
    assert not (tmp_path / METRICS_BY_FEATURE).exists()


def test_snapshots_are_of_the_features_that_are_at_the_positions_then(tmp_path):
    counts, steps = [], 23

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def step_ended(self, run):
            counts.append(run.firing_counts.clone())

    trainer = train(tmp_path, steps=steps, plugins=(Chatty, Spy, Recorder))
    start, middle, end = trainer.host.plugins[-1].snapshots
    # windows of 23 // 4 steps; the features are reversed once, after step 7
    expected = {
        "start": sum(counts[0:5]),
        "middle": counts[6].flip(0) + sum(counts[7:11]),
        "end": sum(counts[18:23]),
    }
    assert [(shot.label, shot.step, shot.tokens) for shot in (start, middle, end)] == [
        ("start", 5, 5 * BATCH), ("middle", 11, 5 * BATCH), ("end", 23, 5 * BATCH),
    ]  # fmt: skip
    for shot in (start, middle, end):
        assert torch.equal(
            torch.tensor(shot.frequency), expected[shot.label].double() / (5 * BATCH)
        )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps(tmp_path, steps):
    train(tmp_path, steps=steps, every=1)
    assert len(read_rows(tmp_path / "metrics.jsonl")) == steps
    assert (tmp_path / "figures" / "firing_by_position.png").exists()


def test_saes_trained_together_keep_their_files_apart(tmp_path):
    with sae_plugins.plugins(Recorder, options={"recorder": {"output_path": str(tmp_path)}}):
        for trainer in [make_trainer(steps) for steps in (3, 4)]:
            trainer.fit()
        make_trainer(5).fit()  # the folder is still the others', too
    for steps, suffix in ((3, ""), (4, "-2"), (5, "-3")):
        assert read_rows(tmp_path / f"metrics{suffix}.jsonl")[-1]["step"] == steps
        summary = json.loads((tmp_path / f"training_summary{suffix}.json").read_text())
        assert summary["training/steps"] == steps
        assert (tmp_path / f"figures/loss_and_l0{suffix}.png").exists()
    # afterwards the folder is free: a new run replaces the old one's file
    train(tmp_path, steps=6)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")][-1] == 6


def test_it_changes_nothing(tmp_path):
    torch.manual_seed(0)
    with sae_plugins.plugins(seed=0):
        plain = make_trainer(30)
        plain.fit()
    recorded = train(tmp_path, steps=30, plugins=(Recorder,))
    for name, parameter in plain.sae.named_parameters():
        assert torch.equal(parameter, dict(recorded.sae.named_parameters())[name])


def test_a_metric_that_is_no_number_is_named(tmp_path):
    class Wrong(Plugin):
        name = "wrong"

        @hookimpl
        def step_ended(self, run):
            run.log("wrong/histogram", torch.zeros(5))

    with pytest.raises(PluginError, match="'wrong/histogram' is not a number"):
        train(tmp_path, plugins=(Wrong, Recorder))


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = {"recorder": {"output_path": str(tmp_path / "file")}}
    with (
        sae_plugins.plugins(Recorder, options=options),
        pytest.raises(PluginError, match="recorder"),
    ):
        make_trainer(3)


def test_a_disk_that_fills_up_does_not_cost_the_training(tmp_path, monkeypatch, caplog):
    def full(recorder, run, seconds):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "write_summary", full)
    train(tmp_path)
    assert "No space left on device" in caplog.text


def test_an_unfinished_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"), (math.nan, "n/a"), (math.inf, "inf"), (True, "yes"), ("gelu", "gelu"),
        (0, "0"), (0.0, "0"), (1234567, "1,234,567"), (1234567.8, "1,234,568"),
        (12.34567, "12.35"), (-0.25, "-0.2500"), (0.0012344, "0.001234"), (3e-4, "3.000e-04"),
    ],
)  # fmt: skip
def test_values_are_formatted_for_people(value, text):
    assert format_value(value) == text


def test_what_only_observes_is_no_part_of_the_provenance(tmp_path):
    trainer = train(tmp_path)
    assert "recorder" not in str(trainer.sae.cfg.metadata.sae_plugins)


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no such font")

    monkeypatch.setattr(figures, "loss_and_l0", broken)
    trainer = train(tmp_path)
    assert trainer.n_training_steps == 23
    assert (tmp_path / "training_summary.json").exists()
    assert (tmp_path / "figures" / "metrics" / "chatty.png").exists()
    assert "could not draw" in caplog.text
    assert "no such font" in caplog.text
