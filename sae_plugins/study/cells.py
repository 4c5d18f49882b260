"""The SAEs of a study: one cell for each model, arm, sparsity and seed, and where it lies."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sae_plugins.base.code import TRAINING
from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.files import versions
from sae_plugins.base.identity import Compared, Fact, listed, of_code, of_path
from sae_plugins.base.secrets import redacted
from sae_plugins.framework.architectures import architecture
from sae_plugins.runs import sources
from sae_plugins.runs.folder import ORIGIN, RECIPE, SUMMARY
from sae_plugins.settings.recipe import converted, read_recipe
from sae_plugins.settings.settings import CACHING, Settings, applies
from sae_plugins.settings.settle import settle
from sae_plugins.study import origin
from sae_plugins.study.existing import ExistingSAE
from sae_plugins.study.spec import Arm, Flags, Model, Sparsity, Study

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

SAES = "saes"
L0 = "heldout/l0"
"""The line of a run's summary at which arms are compared."""
_DIRECT = ("k", "target_l0")
"""Flags that are themselves an L0."""
_NOT_IN_A_STUDY = (
    *("seed", "output_path", "overwrite", "resume", "checkpoint_path", "log_to_wandb"),
    *("n_checkpoints", "save_final_checkpoint", "resume_from_checkpoint", "accept_changes"),
    *("checkpoint_every", "keep_checkpoints", "resume_buffer", "prefetch_llm_batches"),
    *("eval_frequency", "eval_samples", "run_final_eval", "dry_run", "profile"),
    *CACHING,
)
_ALIKE_FOR_ALL = (
    *("model_name", "hook_name", "hook_head_index", "dataset_path", "context_size"),
    *("seqpos_slice", "exclude_special_tokens", "prepend_bos", "heldout_tokens"),
    *("use_chat_formatting", *sources.ROWS),
)
"""Flags in which arms cannot differ and still be compared."""
_KEYED_VERSIONS = ("sae-lens",)
"""Other versions than these do not make an SAE another one; our own is known by its code."""
_DIGITS = 3
_PILOT_SEED = 10_000
"""Of the pilots, whatever the study's seeds are: another seed must not give other coefficients."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One SAE to train.

    Attributes:
        model: the study's name of the model.
        arm: the arm's name.
        sparsity: such as "l1_coefficient=2"; empty where the arm has one setting.
        seed: the training's.
        settings: of the run, as `sae-plugins train` would have them.
        untrained: it is left as it was drawn.
        pilot: it only serves to find the coefficient that gives an L0.
        made_from: what is known of its data, its model and its code.
        place: the name of the folder where it was found; None for that of its key.
        compared: where it was found, what could not be compared; else, what has changed since the
            SAE in its stead.
        existing: the SAE that exists already, so that none is trained; the folder then has what
            was found out about it.
    """

    model: str
    arm: str
    sparsity: str
    seed: int
    settings: Settings
    untrained: bool = False
    pilot: bool = False
    made_from: Mapping[str, Fact | None] = field(default_factory=dict)
    place: str | None = None
    compared: Compared = field(default_factory=lambda: Compared([]))
    existing: ExistingSAE | None = None

    @property
    def source(self) -> str | None:
        """Where an SAE lies that exists already."""
        return None if self.existing is None else self.existing.source

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the SAE depends on."""
        settings, found = redacted(self.settings.as_recipe({})), versions(_KEYED_VERSIONS)
        settings |= {"sae": self.existing.sae} if self.existing else {}
        return origin.facts(settings, self.untrained, found, self.made_from)

    @cached_property
    def key(self) -> str:
        """A hash of all that the SAE depends on."""
        return origin.key(self.facts)

    @property
    def folder(self) -> Path:
        """Of the run, relative to the study's; another one for another key."""
        return Path(SAES, self.model, self.place or f"{self._stem}-{self.key[: origin.DIGITS]}")

    @property
    def _stem(self) -> str:
        parts = [self.arm, self.sparsity, "pilot" if self.pilot else "", f"seed{self.seed}"]
        return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)

    def found_in(self, study_folder: Path) -> Cell:
        """The cell, with the place of an SAE in the folder that was made from the same."""
        if self._is_whole(study_folder):
            return self
        place, compared = origin.find(study_folder / self.folder.with_name(self._stem), self.facts)
        return replace(self, place=place.name if place else None, compared=compared)

    def summary(self, study_folder: Path) -> dict[str, Any] | None:
        """What the run says of itself; None if the SAE is not trained, or scored, yet."""
        folder = study_folder / self.folder
        try:
            summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return summary if self._is_whole(study_folder) else None

    def _is_whole(self, study_folder: Path) -> bool:
        return (study_folder / self.folder / (ORIGIN if self.existing else RECIPE)).is_file()


@dataclass(frozen=True)
class StudyPlan:
    """The cells of a study, as far as they are known.

    Attributes:
        cells: SAEs that are compared.
        pilots: SAEs between which coefficients for the wanted L0s are read.
        warnings: L0s that cannot be reached, and SAEs of which too little is known.
    """

    cells: list[Cell]
    pilots: list[Cell]
    warnings: list[str]

    @property
    def changes(self) -> dict[str, int]:
        """Why SAEs are trained again, and how many."""
        trained = [cell for cell in (*self.pilots, *self.cells) if not cell.existing]
        cells = [cell for cell in trained if cell.compared.changes]
        return Counter("; ".join(cell.compared.changes) for cell in cells)


def plan(
    study: Study,
    pilot_l0: Callable[[Cell], float | None],
    found: Callable[[Cell], Cell] = lambda cell: cell,
    commits: Callable[[str, Flags], Flags] = lambda model, flags: {},
) -> StudyPlan:
    """All cells of a study; those whose pilots are missing are left out until they are there.

    Args:
        study: the study.
        pilot_l0: L0 that a pilot has reached, 0 if it failed; None if it is not trained yet.
        found: gives a cell its place, where its SAE lies.
        commits: of what a model of the study and its flags name on the Hub, by flag.

    Raises:
        SaePluginsError: a flag of the study is wrong; says of which arm and model.
    """
    known, problems = StudyPlan([], [], []), Problems()
    wrong: dict[str, list[str]] = {}  # where, by what: arms often share a fault
    arms = study.all_arms()
    finder = _Finder(found, cache(of_path))
    for name, model in study.models.items():
        shared: Flags | None = None
        with problems:
            shared = shared_flags(name, model)
            shared |= commits(name, shared)
        if shared is None:
            continue
        for arm_name, arm in arms.items():
            make = _Maker(name, arm_name, arm, *arm.on_model(name, model), shared, finder)
            with Problems() as own:
                _add_cells(known, make, model.target_l0, study.seeds, pilot_l0)
            for sentence in own.sentences:
                wrong.setdefault(sentence.removeprefix(f"{make.where}: "), []).append(make.where)
        for arm_name, common in study.common_seeds(name).items():
            if common < 2 and (arms[arm_name].exists or arms[study.reference].exists):
                known.warnings.append(
                    f"{name}, {arm_name}: {'one' if common else 'no'} seed in common with "
                    f"{study.reference}: no verdict; its scores are in the report"
                )
    problems.add(*(f"{', '.join(places)}: {what}" for what, places in wrong.items()))
    problems.stop()
    return replace(known, warnings=[*known.warnings, *_unknown([*known.pilots, *known.cells])])


def _add_cells(
    known: StudyPlan,
    make: _Maker,
    targets: list[float],
    seeds: Sequence[int],
    pilot_l0: Callable[[Cell], float | None],
) -> None:
    """Add the cells of one arm on one model to a plan."""
    if make.arm.exists:
        known.cells.extend(make.existing(seeds))
        return
    flag, values = make.sparsity()
    if targets and flag and flag not in _DIRECT:
        tried = [make.cells(flag, x, [_PILOT_SEED], pilot=True)[0] for x in values]
        known.pilots.extend(tried)
        reached = [pilot_l0(cell) for cell in tried]
        values, unreachable = _interpolated(values, reached, targets)
        known.warnings.extend(f"{make.model}, {make.arm_name}: {text}" for text in unreachable)
    elif targets and flag:
        values = make.whole(targets) if flag == "k" else targets
    for value in values if flag else [0.0]:
        known.cells.extend(make.cells(flag, value, seeds))


def _unknown(cells: Sequence[Cell]) -> Iterator[str]:
    kept = Counter(listed(cell.compared.unknown) for cell in cells if cell.compared.unknown)
    for what, count in kept.items():
        yield (
            f"{count} SAE{'s' if count > 1 else ''} trained earlier are kept, though {what} could "
            "not be compared: it was not noted then"
        )


def shared_flags(name: str, model: Model) -> Flags:
    """The flags that all arms share on a model, its recipe's included."""
    train = dict(model.train)
    named = {"recipe": train.pop("recipe")} if "recipe" in train else {}
    problems = Problems()
    contents, _ = read_recipe(named, problems)
    with prefixed(f"models.{name}.train"):
        problems.stop()
        contents = {flag: v for flag, v in contents.items() if flag not in _NOT_IN_A_STUDY}
        return contents | _checked(train)


def _checked(flags: Mapping[str, Any]) -> Flags:
    problems, own = Problems(), [name for name in _NOT_IN_A_STUDY if name in flags]
    problems.add(*(f"{name}: the study itself decides it; leave it out" for name in own))
    checked: Flags = {}
    with problems:
        checked = converted({name: flags[name] for name in flags if name not in own})
    problems.stop()
    return checked


@dataclass(frozen=True)
class _Finder:
    """Finds out what a cell is made from, and where it lies; looks at each path once."""

    found: Callable[[Cell], Cell]
    of_path: Callable[[Path], Fact]

    def __call__(self, cell: Cell) -> Cell:
        settings = cell.settings
        acting = [plugin for plugin, _ in settings.plan.plugins if not plugin.observes_only]
        known = sources.made_from(settings.model_name, settings.values, self.of_path)
        return self.found(replace(cell, made_from={**known, "code": of_code(TRAINING, acting)}))


@dataclass(frozen=True)
class _Maker:
    """Makes the cells of one arm on one model."""

    model: str
    arm_name: str
    arm: Arm
    train: Flags
    sparsities: Sparsity
    shared: Flags
    finder: _Finder

    @property
    def where(self) -> str:
        return f"arm {self.arm_name} on model {self.model}"

    def sparsity(self) -> tuple[str | None, list[float]]:
        """The flag under `sparsity` that this arm has, with its values."""
        if not self.sparsities:
            return None, []
        settings = self._settings({})
        with prefixed(self.where):
            flags = [flag for flag in self.sparsities if applies(flag, settings)]
        if len(flags) != 1:
            what = f"{' and '.join(flags)} apply: name one" if flags else "does not apply"
            raise SaePluginsError(
                f"{self.where}: sparsity {', '.join(self.sparsities)} {what}; its architecture is "
                f"{settings.architecture}"
            )
        return flags[0], self.sparsities[flags[0]]

    def existing(self, seeds: Sequence[int]) -> Iterator[Cell]:
        """The SAEs of the arm that are not trained."""
        for one in self.arm.saes_on(self.model):
            settings, seed = self._settings({}), one.seed_of(seeds)
            settings = replace(settings, values={**settings.values, "seed": seed})
            yield self.finder(
                Cell(self.model, self.arm_name, one.sparsity, seed, settings, existing=one)
            )

    def whole(self, targets: list[float]) -> list[float]:
        """The values of k for L0s to reach: where k is a whole number, those next to each."""
        if not architecture(self._settings({}).architecture).k_per_token:
            return targets
        return sorted({float(near) for x in targets for near in (floor(x), ceil(x)) if near})

    def cells(
        self, flag: str | None, value: float, seeds: Sequence[int], pilot: bool = False
    ) -> list[Cell]:
        # whole numbers are whole: SAELens wants that of k
        number = int(value) if float(value).is_integer() else value
        settings = self._settings({flag: number} if flag else {})
        sparsity = f"{flag}={value:g}" if flag else ""
        return [
            self.finder(
                Cell(
                    self.model,
                    self.arm_name,
                    sparsity,
                    seed,
                    replace(settings, values={**settings.values, "seed": seed}),
                    self.arm.untrained,
                    pilot,
                )
            )
            for seed in seeds
        ]

    def _settings(self, sparsity: Flags) -> Settings:
        for name in ("recipe", *_ALIKE_FOR_ALL):
            if name in self.train:
                raise SaePluginsError(
                    f"{self.where}: {name} belongs under models.{self.model}.train, where it is "
                    "the same for all arms"
                )
        with prefixed(self.where):
            # named even where it is none, so that options of other arms' plugins do not matter
            plugins = {"plugin": self.shared.get("plugin", [])}
            flags = plugins | _checked(self.train) | converted(sparsity)
            settings = settle(flags, self.shared)
        if not settings.get("heldout_tokens"):
            raise SaePluginsError(
                f"{self.where}: heldout_tokens is 0; arms are compared at the L0 of held-out tokens"
            )
        return settings


def _interpolated(
    values: list[float], reached: list[float | None], targets: list[float]
) -> tuple[list[float], list[str]]:
    """The values that give the targets, between those that were tried, on log axes."""
    if any(l0 is None for l0 in reached):
        return [], []
    # a coefficient may be so large that no feature is alive, or the training fails
    points = sorted((l0, value) for l0, value in zip(reached, values, strict=True) if l0)
    if not points:
        return [], ["none of the values under sparsity gives an SAE with active features"]
    logs = np.log(points)
    low, high = logs[0, 0], logs[-1, 0]
    within = [target for target in targets if low <= np.log(target) <= high]
    found = np.exp(np.interp(np.log(within), logs[:, 0], logs[:, 1]))
    rounded = [float(f"{value:.{_DIGITS}g}") for value in found]
    missed = [target for target in targets if target not in within]
    if not missed:
        return list(dict.fromkeys(rounded)), []
    ways = {"larger": np.log(missed).min() < low, "smaller": np.log(missed).max() > high}
    unreachable = (
        f"an L0 of {' or '.join(f'{target:g}' for target in missed)} is not between the "
        f"{np.exp(low):.3g} and {np.exp(high):.3g} that its values under sparsity give; add "
        f"{' and '.join(way for way, needed in ways.items() if needed)} ones"
    )
    return list(dict.fromkeys(rounded)), [unreachable]


def grouped(items: Iterable[T], by: Callable[[T], K]) -> dict[K, list[T]]:
    """Cells, or the like, by what `by` says of each, in their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups
