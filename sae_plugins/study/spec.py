"""`study.yaml`: what is compared with what, on which models, over which seeds.

A study trains every arm at every value of its sparsity, with every seed, on every model, evaluates
all of these SAEs, and compares each arm with the reference arm at equal L0. The smallest one::

    description: Does reordering help?
    reference: l1
    models:
      world:
        train: {recipe: baseline-demo}
        sparsity: {l1_coefficient: [1, 2, 4], k: [8, 16, 32]}
        suites: {core: {}}
    arms:
      l1: {kind: baseline}
      batchtopk: {kind: control, train: {architecture: batchtopk}}
      reordered: {train: {plugin: [reorder]}}

The keys under `train` are the flags of `sae-plugins train`, as in a recipe. The files in
`sae_plugins/studies` are studies by name.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Container, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PositiveFloat,
    field_validator,
)

from sae_plugins.base import yaml_files
from sae_plugins.base.errors import Problems, SaePluginsError, did_you_mean
from sae_plugins.framework.plugin import Method, PaperRow
from sae_plugins.study import ENOUGH_SEEDS, PILOT_SEED, existing, tried
from sae_plugins.study.existing import ExistingSAE
from sae_plugins.study.search import Search
from sae_plugins.study.tuning import Tune

_NAME = r"[A-Za-z0-9][A-Za-z0-9.+-]*"

Kind = Literal["method", "ours", "baseline", "control"]
Family = Literal["all", "primary", "exploratory"]
"""What Holm corrects together: "all" in a study that names no primary comparisons."""
Flags = dict[str, Any]


def _swept(sparsity: dict[str, list[float]]) -> dict[str, list[float]]:
    for flag, values in sparsity.items():
        if not values or len(set(values)) < len(values) or min(values) < 0:
            raise ValueError(f"{flag}: give values of at least 0 that differ from each other")
    return sparsity


def _tried(grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
    for flag, values in grid.items():
        names = [_in_name(value) for value in values]
        if not values or len({*names}) < len(names):
            raise ValueError(
                f"{flag}: give values that differ from each other, in letters and digits, too, "
                "which are in the arms' names"
            )
    return grid


def _in_name(value: Any) -> str:
    """A value of a grid as a part of an arm's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value))


Grid = Annotated[dict[str, list[Any]], AfterValidator(_tried)]
Sparsity = Annotated[dict[str, list[float]], AfterValidator(_swept)]
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Model(BaseModel, extra="forbid", frozen=True):
    """What the arms are trained on and evaluated with."""

    train: Flags = Field(
        {},
        description="flags that all arms share, such as `recipe`, `model_name`, `dataset_path`, "
        "and `training_tokens`, the budget",
    )
    sparsity: Sparsity = Field(
        {},
        description="values to train with, by flag; an arm uses the flag that its architecture has",
    )
    target_l0: list[float] = Field(
        [],
        description="L0s to reach. The values under `sparsity` are then pilots, trained with one "
        "more seed, between which the coefficient for each L0 is read; `k` is set to it directly",
    )
    exact_l0: bool | None = Field(
        None,
        description="set the thresholds of each saved SAE, after its training, such that it has "
        "exactly the L0 that is wanted (default: if there is a `target_l0` and all arms can)",
    )
    tune: Tune | None = Field(
        None,
        description="learning rates, of which each arm gets its best, by pilots; an arm that "
        "names an `lr` of its own keeps that",
    )
    suites: dict[str, Flags] = Field(description="settings by suite of `sae-plugins evaluate`")
    preset: Literal["canonical", "quick", "paper"] = Field(
        "canonical", description="of the suites' settings"
    )
    data: str | None = Field(None, description="where the suites' data come from, as --data")
    evaluation_seed: int = Field(42, ge=0, description="of the suites, the same for all SAEs")

    @field_validator("target_l0")
    @classmethod
    def _positive(cls, targets: list[float]) -> list[float]:
        if any(not target > 0 for target in targets) or len(set(targets)) < len(targets):
            raise ValueError("L0s to reach must be greater than 0, and different from each other")
        return targets


class Override(BaseModel, extra="forbid", frozen=True):
    """What an arm has otherwise on one model."""

    train: Flags = Field({}, description="flags on top of the arm's")
    sparsity: Sparsity = Field({}, description="in place of the arm's and the model's")
    saes: list[ExistingSAE] = Field(
        [], description="SAEs that exist already: the arm is these, and is not trained"
    )
    tune: Tune | None = Field(None, description="in place of the arm's and the model's")


class Arm(Override):
    """One way to train, at several sparsities."""

    description: str = Field("", description="what the report says of it")
    kind: Kind = Field("method", description="which group the report shows it in")
    untrained: bool = Field(False, description="leave the SAE as it was drawn: a control")
    grid: Grid = Field(
        {},
        description="values to try, by flag: the arm is as many as there are combinations, each "
        "with these flags under `train`",
    )
    search: Search | None = Field(
        None, description="settings, of which the arm gets the best that optuna finds by pilots"
    )
    models: dict[str, Override] = Field({}, description="what is otherwise on one, by its name")
    paper: str = Field("", description="what a paper reports for it")

    @property
    def exists(self) -> bool:
        """Whether its SAEs exist already, so that none is trained on any model."""
        return any(has.saes for has in (self, *self.models.values()))

    def points(self, name: str) -> dict[str, Arm]:
        """The arms that an arm's grid makes of it, by name; itself where it has none."""
        if not self.grid:
            return {name: self}
        last = [flag.rpartition(".")[2] for flag in self.grid]
        short = last if len({*last}) == len(last) else list(self.grid)
        arms = {}
        for values in itertools.product(*self.grid.values()):
            point = "-".join(f"{flag}-{_in_name(v)}" for flag, v in zip(short, values, strict=True))
            chosen = dict(zip(self.grid, values, strict=True))
            said = ", ".join(f"{flag} {value}" for flag, value in chosen.items())
            sentences = [s for s in (self.description.removesuffix("."), said) if s]
            arms[f"{name}-{point}"] = self.model_copy(
                update={
                    "train": {**self.train, **chosen},
                    "grid": {},
                    "description": f"{'. '.join(sentences)}.",
                }
            )
        return arms

    def saes_on(self, name: str) -> list[ExistingSAE]:
        """Those that exist of one model."""
        return self.models.get(name, Override()).saes or self.saes

    def seeds_on(self, name: str, seeds: Sequence[int]) -> set[int]:
        """Those of a study's seeds of which it has SAEs on one model."""
        return {one.seed_of(seeds) for one in self.saes_on(name)} if self.exists else {*seeds}

    def on_model(self, name: str, model: Model) -> tuple[Flags, Sparsity]:
        """The flags on top of the model's, and the sparsities, on one model."""
        there = self.models.get(name, Override())
        return {**self.train, **there.train}, there.sparsity or self.sparsity or model.sparsity

    def tuned_on(self, name: str, model: Model) -> Tune | None:
        """The learning rates to try on one model, if any: none is of use to what is not trained."""
        own = self.models.get(name, Override()).tune or self.tune
        searched = self.search.over if self.search else {}
        keeps = self.untrained or "lr" in {*self.on_model(name, model)[0], *searched}
        return own or (None if keeps else model.tune)


class PaperRows(BaseModel, extra="forbid", frozen=True):
    """The rows of a paper's tables as arms, as `sae-plugins plugins show METHOD` lists them."""

    method: str = Field(description="the method whose rows they are")
    train: Flags = Field({}, description="flags of every row, under its own")
    models: dict[str, Override] = Field({}, description="what is otherwise on one, by its name")


class Unmatched(BaseModel, extra="forbid", frozen=True):
    """A paired t test of two arms at different L0, as papers make it."""

    against: str = Field(description="the other arm")
    l0: tuple[PositiveFloat, PositiveFloat] = Field(
        description="of the arm, and of the other: the SAEs nearest to it are tested"
    )
    seeds: list[int] = Field([], description="the paper's, of the study's; by default all of these")


class Study(BaseModel, extra="forbid", frozen=True):
    """A study; see the module's docstring."""

    description: str = Field("", description="the question, for the report's head")
    reference: str = Field(description="the arm that every other one is compared with")
    models: dict[str, Model] = Field(min_length=1, description="by a name of your choice")
    arms: dict[str, Arm] = Field(min_length=1, description="by a name of your choice")
    rows: PaperRows | None = Field(None, description="the rows of a paper's tables, as more arms")
    seeds: list[int] = Field(
        list(range(ENOUGH_SEEDS)),
        min_length=1,
        description="each draws initial weights and orders the data, alike for all arms",
    )
    compare: list[str] = Field(
        [],
        description="metrics that get a verdict, as SUITE/METRIC, such as core/ce_loss_score; all "
        "share one Holm correction (default: the suites' headline metrics that have a direction)",
    )
    margins: dict[str, Margin] = Field(
        {},
        description="the smallest difference that matters, by SUITE/METRIC: within it, arms are "
        "equivalent (default: what the suite says of its metric)",
    )
    primary: dict[str, list[str]] = Field(
        {},
        description="what the study is about: by arm, the compared metrics that have a Holm "
        "correction of their own; an empty list stands for all of them. All else is exploratory",
    )
    unmatched: dict[str, Unmatched] = Field(
        {},
        description="a paper's own paired t test, at unequal L0 and without a correction, by arm; "
        "the report shows it as what it is, beside the same two arms at equal L0",
    )
    measures: dict[str, str] = Field(
        {}, description="what the paper's metrics really measure, by what the paper calls them"
    )

    @field_validator("models", "arms")
    @classmethod
    def _safe_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"{name!r} is no name: use letters, digits, '.', '+' and '-'")
        return named

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be different from each other, and at least 0")
        if max(seeds) >= PILOT_SEED:
            raise ValueError(
                f"seeds must be below {PILOT_SEED}, where those of pilots begin, and {max(seeds)} "
                "is not"
            )
        return seeds

    def check(self) -> None:
        """Refuse names of arms and models that there are not, and primary contrasts without a test.

        Raises:
            SaePluginsError: with a sentence for each.
        """
        arms, problems = self.all_arms(), Problems()
        written = self._written()
        names = Counter(point for name, arm in written.items() for point in arm.points(name))
        twice = (name for name, times in names.items() if times > 1)
        problems.add(
            *(f"arms: {n!r} is two arms, one of a grid at least; rename one" for n in twice)
        )
        for name, arm in written.items():
            own = self.arms.get(name, Arm()).train
            problems.add(*tried.problems(f"arms.{name}", arm, own, self.models))
        if self.reference not in arms:
            near = did_you_mean(self.reference, arms)
            problems.add(f"reference: no arm {self.reference!r}: {near}")
        for name, arm in written.items():
            for model in arm.models:
                if model not in self.models:
                    near = did_you_mean(model, self.models)
                    problems.add(f"arms.{name}.models: no model {model!r}: {near}")
            for where, has in {f"arms.{name}": arm, **_on_models(name, arm)}.items():
                flags = ("train", "sparsity", "tune", "untrained") if arm.exists else ()
                given = [flag for flag in flags if getattr(has, flag, None)]
                problems.add(*existing.problems(f"{where}.saes", has.saes, given, self.seeds))
        tested = {f"unmatched.{name}": name for name in self.unmatched}
        tested |= {f"unmatched.{n}.against": test.against for n, test in self.unmatched.items()}
        for place, name in tested.items():
            if name not in arms:
                problems.add(f"{place}: no arm {name!r}: {did_you_mean(name, arms)}")
        for name, test in self.unmatched.items():
            if others := {*test.seeds} - {*self.seeds}:
                problems.add(f"unmatched.{name}.seeds: {min(others)} is not under seeds")
        for name, metrics in self.primary.items():
            if name not in arms:
                problems.add(f"primary: no arm {name!r}: {did_you_mean(name, arms)}")
            elif name == self.reference:
                problems.add(
                    f"primary: {name!r} is the reference, which is not compared with itself"
                )
            for metric in metrics if self.compare else ():
                if metric not in self.compare:
                    near = did_you_mean(metric, self.compare)
                    problems.add(f"primary.{name}: {metric!r} is not under compare: {near}")
        problems.stop()

    def family(self, arm: str, metric: str) -> Family:
        """Which comparisons an arm's, on a metric as SUITE/METRIC, is corrected with."""
        if not self.primary:
            return "all"
        metrics = self.primary.get(arm)
        named = metrics is not None and (not metrics or metric in metrics)
        return "primary" if named else "exploratory"

    def common_seeds(self, model: str) -> dict[str, int]:
        """How many seeds each arm with SAEs on a model has in common with the reference."""
        arms = self.all_arms()
        seeds = {name: arm.seeds_on(model, self.seeds) for name, arm in arms.items()}
        reference = seeds.pop(self.reference, None)
        if reference is None:  # which `check` says
            return {}
        return {name: len(own & reference) for name, own in seeds.items() if own}

    def all_arms(self) -> dict[str, Arm]:
        """The arms by name: the reference first, the rows of the paper's tables last.

        An arm with a row's name says what is otherwise in that row. A grid is all of its points.
        """
        found = {n: a for name, arm in self._written().items() for n, a in arm.points(name).items()}
        first = {name: arm for name, arm in found.items() if name == self.reference}
        return {**first, **found}

    def _written(self) -> dict[str, Arm]:
        """The same with grids as they are, and without the reference in front."""
        rows = self._rows()
        own = {name: arm for name, arm in self.arms.items() if name not in rows}
        return {**own, **{n: _over(row, self.arms.get(n, Arm())) for n, row in rows.items()}}

    def _rows(self) -> dict[str, Arm]:
        """An arm for each row of the paper's tables; rows that differ in sparsity only are one."""
        if self.rows is None:
            return {}
        from sae_plugins.framework import registry

        method = registry.load(self.rows.method)
        if not issubclass(method, Method):
            raise SaePluginsError(
                f"rows.method: {self.rows.method!r} is a mechanism, and has no tables"
            )
        swept = {flag for model in self.models.values() for flag in model.sparsity}
        for arm in self.arms.values():
            for has in (arm, *arm.models.values()):
                swept |= has.sparsity.keys()
        arms: dict[str, Arm] = {}
        for row in method.rows:
            flags = {name: value for name, value in flags_of(row).items() if name not in swept}
            train = {**self.rows.train, "plugin": [self.rows.method], **flags}
            kind: Kind = "control" if row.table == "Control" else "method"
            what = f"{row.table}: {row.label}"
            same = next((name for name, arm in arms.items() if arm.train == train), None)
            if same is None:
                name = _slug(row.label, arms)
                arms[name] = Arm(
                    description=what,
                    kind=kind,
                    train=train,
                    models=self.rows.models,
                    paper=row.paper,
                )
            else:
                known = arms[same]
                papers = "; ".join(text for text in (known.paper, row.paper) if text)
                update = {"description": f"{known.description}; {what}", "paper": papers}
                arms[same] = known.model_copy(update=update)
        return arms


def _on_models(name: str, arm: Arm) -> dict[str, Override]:
    """What is otherwise of an arm, by the key that says it."""
    return {f"arms.{name}.models.{model}": there for model, there in arm.models.items()}


def _over(row: Arm, arm: Arm) -> Arm:
    """A row with what a study's arm of the same name says of it."""
    given = {name: getattr(arm, name) for name in arm.model_fields_set}
    both = {"train": {**row.train, **arm.train}, "models": {**row.models, **arm.models}}
    return row.model_copy(update=given | both)


def flags_of(row: PaperRow) -> Flags:
    """The flags of a table's row, by name."""
    from sae_plugins.settings.command_line import train_flags

    return train_flags(shlex.split(row.flags))


def _slug(label: str, taken: Container[str]) -> str:
    """A row's name as an arm."""
    words = re.sub(r"\(.*?\)", "", label).split(":")[0].split(",")[0]
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def as_yaml(study: Study) -> str:
    """A study as a file of its own, without what is so anyway."""
    contents = study.model_dump(mode="json", exclude_defaults=True)
    return yaml_files.dump(contents, 96)
