"""What a training run leaves behind: rows of metrics, figures and `training_summary.json`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.base import plots
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import read_rows, write
from sae_plugins.framework.features import FeatureChange, Permuted, Reset
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.mean import distance, share_of_energy, usual_tokens
from sae_plugins.framework.plugin import Plugin
from sae_plugins.runs import figures, weights_and_biases
from sae_plugins.runs.dashboards import TRACKIO_PROJECT
from sae_plugins.runs.feature_history import FeatureHistory
from sae_plugins.runs.folder import (
    FIRING_BY_POSITION,
    LOSS_AND_L0,
    METRICS,
    METRICS_BY_FEATURE,
    TRAINING_SUMMARY,
    metrics_figure,
    numbered,
)
from sae_plugins.runs.logs import Logs
from sae_plugins.runs.summary import LAST_K, OFF_MEAN, OFF_MEAN_AT_START

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)


SNAPSHOT_STEPS = 50
"""Steps over which firing frequencies are counted for one snapshot; fewer in short runs."""
_MUCH = 0.25
"""Share of the energy that the mean has, beyond which a b_dec far from it is told of."""
_BY_CHANCE = 2.0
"""Energy of the mean, in those of a token over the number of tokens: 1 where there is none."""

_SUMMARY_METRICS = {
    "training/loss": "losses/overall_loss",
    "training/l0": "metrics/l0",
    "training/explained_variance": "metrics/explained_variance",
    "training/dead_features": "sparsity/dead_features",
}


class Recorder(Plugin):
    """Write the run's metrics as it goes, its figures and summary when it ends; only observes.

    Choose it last: it sees what the plugins before it log and summarise.

    A row of `metrics.jsonl` holds `step`, `samples` (tokens seen), `updates`, `seconds` since the
    trainer was built, SAELens' own training metrics and what plugins logged during that step.
    There is a row every `every` steps and at the last step. A step that changed features always
    has one, so that what plugins log of the event is kept, but SAELens' metrics, which cost a GPU
    sync, only if it is due anyway. Numbers that are not finite are null.

    `metrics_by_feature.jsonl` says in the end what happened to each feature that was moved, merged
    or reset.

    A full disk costs no row: it is written as soon as there is room. The rows are part of a
    checkpoint, so that a resumed run has each of them once.

    Several SAEs that train at once into one folder get `metrics.jsonl`, `metrics-2.jsonl`, ...,
    and so on for the other files, in the order in which they were built.
    """

    name = "recorder"
    observes_only = True
    transient = ("started", "folder", "number", "written", "full", "logs", "has_ended")

    class Options(Plugin.Options):
        """Where and how often to write."""

        # excluded, since a run is the same run in any folder
        output_path: str = Field(
            description="folder for the files; made if it does not exist", exclude=True
        )
        every: int = Field(
            10, ge=1, description="steps between rows of metrics.jsonl; each costs one GPU sync"
        )
        figures: bool = Field(True, description="draw figures when the training ends")

        log_to: tuple[Literal["tensorboard", "trackio"], ...] = Field(
            (), description="dashboards that get the rows, too", exclude=True
        )
        trackio_project: str = Field(TRACKIO_PROJECT, description="of trackio's run", exclude=True)

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Start an empty `metrics.jsonl`, so that a folder one cannot write to is known early."""
        self.started = time.perf_counter()
        self.folder = Path(self.options.output_path).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number = run.number
        self.has_ended = False
        self.path(METRICS).write_text("")
        chosen = self.options
        self.logs = Logs(chosen.log_to, self.folder, run.number, chosen.trackio_project)
        self.lines = bytearray()
        self.written = 0
        self.full = False
        self.row: dict[str, Any] | None = None
        self.last: dict[str, Any] = {}
        self.history = FeatureHistory(run.features.d_sae)
        self.counts = run.features.track(
            self, "counts", torch.zeros(run.features.d_sae, device=run.sae.device)
        )
        self.tokens = 0
        self.window = max(1, min(SNAPSHOT_STEPS, run.total_steps // 4))
        self.labels = {
            run.total_steps // 2: "middle",
            self.window: "start",
            run.total_steps: "end",
        }
        self.snapshots: list[figures.Snapshot] = []
        self.mean = torch.zeros_like(run.sae.b_dec, dtype=torch.float32)
        self.off_mean: dict[str, float | None] = {}

    @hookimpl
    def after_forward(self, run: Run, step_input: TrainStepInput) -> None:
        """Look how far b_dec is from the mean of the first batch, before the first update."""
        if run.step > 1:
            return
        rows = usual_tokens(run.sae, step_input.sae_in)
        share = share_of_energy(rows)
        if share * len(rows) > _BY_CHANCE:  # not so where activations are whitened
            self.mean.copy_(rows.mean(dim=0))
            off = self.off_mean[OFF_MEAN_AT_START] = distance(run.sae.b_dec, self.mean)
            if share > _MUCH and off is not None and off > 0.5:
                _warn_of_mean(share)

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Write the previous step's row; reduce this step to numbers, if a row is due."""
        self.flush()
        self.count(run, len(output.sae_in))
        if run.step % self.options.every == 0 or run.step >= run.total_steps:
            numbers = _numbers(run.metrics_of(output))  # a GPU sync: the clock is read after it
            self.row = self.last = {**self.heading(run), **numbers, **_numbers(run.metrics)}
        if run.step >= run.total_steps and self.off_mean:  # before a scale is folded into b_dec
            self.off_mean[OFF_MEAN] = distance(run.sae.b_dec, self.mean)
        self.show(run)

    def show(self, run: Run) -> None:
        """Show where the run is: nowhere here, and on the terminal in `sae-plugins train`."""

    @hookimpl
    def features_changed(self, run: Run, change: FeatureChange) -> None:
        """Add to this step's row, or start one, with what the plugins log of the change."""
        self.row = (self.row or self.heading(run)) | _numbers(run.metrics)
        name, number = _counted(change)
        self.row[name] = self.row.get(name, 0) + number
        self.history.see(run.step, change)

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Write the last row, the summary and the figures.

        The SAE is saved after this: a full disk, or a figure that cannot be drawn, costs no
        training.
        """
        seconds = time.perf_counter() - self.started
        self.has_ended = True
        self.flush()
        self.logs.close()
        try:
            self.history.write(self.path(METRICS_BY_FEATURE))
            self.write_summary(run, seconds)
        except OSError as error:
            logger.error("could not write the summary to %s: %s", self.folder, error)
        if self.options.figures:
            self.draw_figures(run)

    def draw_figures(self, run: Run) -> None:
        """Draw the curves of the training and of each plugin, and how often features fired."""
        rows = read_rows(self.path(METRICS)) if self.path(METRICS).exists() else []
        drawings: dict[Path, Callable[[], Figure]] = {
            self.path(LOSS_AND_L0): partial(figures.loss_and_l0, rows),
            self.path(FIRING_BY_POSITION): partial(
                figures.firing_by_position, self.snapshots, run.features.d_sae
            ),
        }
        for group, names in figures.groups(rows).items():
            path = self.folder / metrics_figure(group, self.number)
            drawings[path] = partial(figures.of_group, rows, names, _meanings(run, group))
        drawn = []
        for path, draw in drawings.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                plots.save(draw(), path)
                drawn.append(path)
            except Exception as error:
                logger.error("could not draw %s: %s", path, error)
        if run.logs_to_wandb:
            sae: Any = run.sae
            weights_and_biases.log_figures(drawn, sae.get_name())

    def path(self, name: str) -> Path:
        """Where the file `name` of this SAE is written."""
        return self.folder / numbered(name, self.number)

    def heading(self, run: Run) -> dict[str, Any]:
        """What every row starts with."""
        return {
            "step": run.step,
            "samples": run.samples,
            "updates": run.updates,
            "seconds": round(time.perf_counter() - self.started, 3),
        }

    def flush(self) -> None:
        """Write the row in waiting, which the events of its step have completed by now."""
        row, self.row = self.row, None
        if row is not None:
            self.lines += json.dumps(row, allow_nan=False).encode() + b"\n"
            self.logs.add(row)
        if len(self.lines) == self.written:
            return
        try:
            with self.path(METRICS).open("ab") as file:
                whole = min(self.written, file.tell())
                file.truncate(whole)  # an earlier attempt may have written a line in part
                file.write(self.lines[whole:])
            self.written, self.full = len(self.lines), False
        except OSError as error:
            if not self.full:
                logger.error("%s waits for room on the disk: %s", self.path(METRICS), error)
            self.full = True

    def count(self, run: Run, tokens: int) -> None:
        """Count firings in the windows that end at the snapshots, and take those that are due.

        The counts move with their features, so that a snapshot is about the features that are at
        the positions when it is taken, also where they were permuted within its window.
        """
        if not any(end - self.window < run.step <= end for end in self.labels):
            return
        self.counts += run.firing_counts
        self.tokens += tokens
        if run.step in self.labels:
            frequency = (self.counts.double() / self.tokens).cpu().numpy()
            label = self.labels[run.step]
            self.snapshots.append(figures.Snapshot(label, run.step, self.tokens, frequency))
            self.counts.zero_()
            self.tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it: the rows, the snapshots and the time so far."""
        return {
            **super().state_dict(),
            "lines": np.frombuffer(self.lines, np.uint8).copy(),
            "snapshots": [vars(snapshot) for snapshot in self.snapshots],
            "seconds": time.perf_counter() - self.started,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a checkpoint's rows."""
        state = dict(state)
        self.started = time.perf_counter() - state.pop("seconds")
        state["snapshots"] = [figures.Snapshot(**fields) for fields in state["snapshots"]]
        super().load_state_dict({**state, "lines": bytearray(state["lines"].tobytes())})
        row, self.row = self.row, None
        self.flush()
        self.row = row
        self.logs.open([json.loads(line) for line in self.lines.splitlines()])

    def write_summary(self, run: Run, seconds: float) -> None:
        """Write the closing summary: the last row's metrics and what the plugins summarise."""
        config: Any = run.sae.cfg
        summary = {
            **{name: self.last.get(metric) for name, metric in _SUMMARY_METRICS.items()},
            **({LAST_K: config.k} if hasattr(config, "k") else {}),
            **_numbers(self.off_mean),
            "training/steps": run.step - 1,
            "training/tokens": run.samples,
            "training/updates": run.updates,
            "training/seconds": round(seconds, 3),
            "training/tokens_per_second": run.samples / seconds,
            **_numbers(run.summary),
        }
        write(self.path(TRAINING_SUMMARY), json.dumps(summary, indent=2, allow_nan=False) + "\n")


@cache
def _warn_of_mean(share: float) -> None:
    """Say it once of all SAEs that train on the same batch."""
    logger.warning(
        "the mean of the activations has %.0f%% of their energy, and b_dec starts far from it, so "
        "that features must learn what all tokens have in common; --plugin mean-bias starts it "
        "there",
        100 * share,
    )


def _meanings(run: Run, group: str) -> Mapping[str, str]:
    """What the metrics of a group are, if it is a plugin's."""
    try:
        meanings: Mapping[str, str] = run.plugin(group).meanings
    except KeyError:  # such as `coefficients`, of several
        return {}
    return meanings


def _counted(change: FeatureChange) -> tuple[str, int]:
    """A column under `figures.CHANGES` and the number of features permuted, reset or merged."""
    if isinstance(change, Permuted):
        return f"{figures.CHANGES}permuted", len(change.order)
    if isinstance(change, Reset):
        return f"{figures.CHANGES}reset", len(change.index)
    return f"{figures.CHANGES}merged", len(change.source)


def _numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as JSON has them: callables called, scalar tensors read, not finite as None."""
    return {name: _number(name, value) for name, value in metrics.items()}


def _number(name: str, value: Any) -> float | int | None:
    if callable(value) and not isinstance(value, Tensor):
        value = value()
    if value is None:
        return None
    try:
        number = value.item() if hasattr(value, "item") else value
        return number if math.isfinite(number) else None
    except (RuntimeError, TypeError, ValueError) as error:
        raise PluginError(f"the metric {name!r} is not a number but {value!r:.80}") from error
