"""What a study found, as one JSON file: all that its report is made of, and others may read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from sae_plugins.framework.calibration import Calibration
from sae_plugins.study.search import Searched
from sae_plugins.study.spec import Family, Kind, Study
from sae_plugins.study.statistics import Comparison
from sae_plugins.study.tuning import Tuned

_HALF_INTERVAL = 1.96
"""Half a 95% interval, which a calibration notes, in standard errors."""


def _finite(value: float | None) -> float | None:
    """What is no number in a JSON file is none here either."""
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(_finite)]


class Trained(BaseModel, extra="forbid"):
    """One SAE of the study."""

    model: str
    """The study's name of the model."""
    arm: str
    sparsity: str
    """Such as "l1_coefficient=2"; empty where the arm has one setting."""
    seed: int
    folder: str
    """Of the run, relative to the study's."""
    status: Literal["ok", "failed", "missing"]
    reason: str | None = None
    l0: float | None = None
    """Active features per held-out token."""
    tokens: int | None = None
    """Held-out ones, over which that is a mean."""
    calibration: Calibration | None = None
    """How its thresholds were set for the L0 that is wanted, if they were."""
    unscored: list[str] = []
    """Suites whose evaluation of it failed."""

    @property
    def exact_l0(self) -> float | None:
        """The L0 that is wanted, if it has exactly that."""
        found = self.calibration
        return found.l0 if found is not None and found.is_exact else None

    @property
    def l0_error(self) -> float | None:
        """The standard error of its L0, as that varies over the text that set its thresholds."""
        found = self.calibration
        if found is None or not found.spread or not self.tokens or self.l0 is None:
            return None
        return self.l0 * found.spread / _HALF_INTERVAL * math.sqrt(found.tokens / self.tokens)


class Score(BaseModel, extra="forbid"):
    """One number about one SAE."""

    model: str
    arm: str
    sparsity: str
    seed: int
    suite: str
    """A suite's name; "heldout", "uncalibrated" (held-out scores of the SAE with the thresholds of
    its training) and "training" for what the run itself says."""
    metric: str
    value: Number
    n: int | None = None
    """Over how many items (letters, pairs, datasets, tokens) it is a mean."""
    pseudo_value: Number = None
    """Where seeds are compared with each other, what stands for the value in tests and intervals.

    It is the jackknife's, with the same mean over seeds.
    """

    @property
    def sample(self) -> float | None:
        """What tests and intervals over seeds are of."""
        return self.value if self.pseudo_value is None else self.pseudo_value


class Detail(Score):
    """One item's part in a score: of a letter, a pair of classes, a dataset."""

    item: str


class ReportedMetric(BaseModel, extra="forbid"):
    """A metric that the report shows."""

    suite: str
    name: str
    paper: str
    """What papers call it."""
    meaning: str
    better: Literal["higher", "lower", "neither"]
    compared: bool
    """Whether arms get a verdict on it."""
    unreliable: str = ""
    """Why its verdicts are not to be relied on, where that is known."""
    bounds: tuple[float | None, float | None] = (None, None)
    """The least and the greatest value that there can be; None where there is no end."""
    margin: float | None = None
    """The smallest difference that matters, as the study or the suite states it."""


class Contrast(BaseModel, extra="forbid"):
    """An arm against the reference, on one metric of one model."""

    model: str
    arm: str
    suite: str
    metric: str
    comparison: Comparison
    family: Family = "all"


class ModelInfo(BaseModel, extra="forbid"):
    """What the report says of a model and of the SAEs that are trained on it."""

    name: str
    """As for `sae-plugins train`."""
    what: str = ""
    """In words, where the model comes with the package."""
    is_synthetic: bool = False
    hook_name: str = ""
    d_in: int | None = None
    d_sae: list[int] = []
    """Of its SAEs, in ascending order."""
    training_tokens: list[int] = []
    """Likewise."""
    true_l0: float | None = None
    """Active true features per sample, where they are known."""


class ArmInfo(BaseModel, extra="forbid"):
    """What the report says of an arm."""

    name: str
    kind: Kind
    description: str
    paper: str
    """What a paper reports for it."""
    flags: str
    """On the first model, as for `sae-plugins train`, without sparsity and seed."""


class Findings(BaseModel, extra="forbid"):
    """Everything that is known when a study has been run."""

    schema_version: Literal[1] = 1
    name: str
    study: Study
    arms: list[ArmInfo]
    """The reference first."""
    models: dict[str, ModelInfo] = {}
    """By the study's name of the model."""
    metrics: dict[str, list[ReportedMetric]]
    """By the study's name of the model, in the order in which to show them."""
    trained: list[Trained]
    scores: list[Score]
    details: list[Detail]
    contrasts: list[Contrast]
    tuned: list[Tuned] = []
    """Arms that got the best of several learning rates."""
    searched: list[Searched] = []
    """Arms that got the best of the settings that a search has tried."""
    learning_rates: dict[str, dict[str, float]] = {}
    """By model and arm, of those that were trained."""
    warnings: list[str] = []
    failures: list[str] = []
    """SAEs and evaluations that failed, with the reason."""
    provenance: dict[str, Any]
    """Versions, machine, language models, datasets, settings of the suites, times."""
