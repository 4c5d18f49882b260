"""The SAEs of a study: one cell for each model, arm, sparsity and seed, and where it lies."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.files import versions
from sae_plugins.base.secrets import redacted
from sae_plugins.runs.folder import RECIPE, SUMMARY
from sae_plugins.settings.recipe import converted, read_recipe
from sae_plugins.settings.settings import Settings, applies
from sae_plugins.settings.settle import settle
from sae_plugins.study.moved import FORMER
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
    *("n_checkpoints", "save_final_checkpoint", "resume_from_checkpoint"),
    *("checkpoint_every", "keep_checkpoints", "resume_buffer", "prefetch_llm_batches"),
    *("eval_frequency", "eval_samples", "run_final_eval"),
)
_ALIKE_FOR_ALL = (
    *("model_name", "hook_name", "hook_head_index", "dataset_path", "context_size"),
    *("seqpos_slice", "exclude_special_tokens", "prepend_bos", "heldout_tokens"),
)
"""Flags in which arms cannot differ and still be compared."""
_KEYED_VERSIONS = ("sae-plugins", "sae-lens")
"""Other versions than these do not make an SAE another one."""
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
    """

    model: str
    arm: str
    sparsity: str
    seed: int
    settings: Settings
    untrained: bool = False
    pilot: bool = False

    @cached_property
    def key(self) -> str:
        """A hash of all that the SAE depends on, the text of the plugins' modules included."""
        chosen = self.settings.plan.plugins
        acting = [plugin for plugin, _ in chosen if not plugin.observes_only]
        plugins = [(plugin.name, _text(inspect.getsourcefile(plugin))) for plugin in acting]
        facts = [
            redacted(self.settings.as_recipe({})),
            self.untrained,
            versions(_KEYED_VERSIONS),
            plugins,
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())

    @property
    def folder(self) -> Path:
        """Of the run, relative to the study's; another one for other settings."""
        parts = [self.arm, self.sparsity, "pilot" if self.pilot else "", f"seed{self.seed}"]
        name = "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)
        return Path(SAES, self.model, f"{name}-{self.key[:8]}")

    def summary(self, study_folder: Path) -> dict[str, Any] | None:
        """What the run says of itself; None if the SAE is not trained yet."""
        folder = study_folder / self.folder
        try:
            summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return summary if (folder / RECIPE).is_file() else None


@cache
def _text(file: str | None) -> str:
    """A hash of a plugin's module, which its author may edit without a new version."""
    if file is None:
        return ""
    digest = xxhash.xxh3_64_hexdigest(Path(file).read_bytes())
    return FORMER.get(digest, digest)


@dataclass(frozen=True)
class StudyPlan:
    """The cells of a study, as far as they are known.

    Attributes:
        cells: SAEs that are compared.
        pilots: SAEs between which coefficients for the wanted L0s are read.
        warnings: L0s that cannot be reached.
    """

    cells: list[Cell]
    pilots: list[Cell]
    warnings: list[str]


def plan(study: Study, pilot_l0: Callable[[Cell], float | None]) -> StudyPlan:
    """All cells of a study; those whose pilots are missing are left out until they are there.

    Args:
        study: the study.
        pilot_l0: L0 that a pilot has reached, 0 if it failed; None if it is not trained yet.

    Raises:
        SaePluginsError: a flag of the study is wrong; says of which arm and model.
    """
    cells: list[Cell] = []
    pilots: list[Cell] = []
    warnings: list[str] = []
    arms = study.all_arms()
    for name, model in study.models.items():
        shared = _shared(name, model)
        for arm_name, arm in arms.items():
            make = _Maker(name, arm_name, arm, *arm.on_model(name, model), shared)
            flag, values = make.sparsity()
            if model.target_l0 and flag and flag not in _DIRECT:
                tried = [make.cells(flag, x, [_PILOT_SEED], pilot=True)[0] for x in values]
                pilots += tried
                reached = [pilot_l0(cell) for cell in tried]
                values, unreachable = _interpolated(values, reached, model.target_l0)
                warnings += [f"{name}, {arm_name}: {text}" for text in unreachable]
            elif model.target_l0 and flag:
                values = model.target_l0
                if flag == "k" and any(not float(value).is_integer() for value in values):
                    raise SaePluginsError(f"{make.where}: target_l0 must be whole numbers, as k is")
            for value in values if flag else [0.0]:
                cells += make.cells(flag, value, study.seeds)
    return StudyPlan(cells, pilots, warnings)


def _shared(name: str, model: Model) -> Flags:
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
    for name in _NOT_IN_A_STUDY:
        if name in flags:
            raise SaePluginsError(f"{name}: the study itself decides it; leave it out")
    return converted(flags)


@dataclass(frozen=True)
class _Maker:
    """Makes the cells of one arm on one model."""

    model: str
    arm_name: str
    arm: Arm
    train: Flags
    sparsities: Sparsity
    shared: Flags

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

    def cells(
        self, flag: str | None, value: float, seeds: Sequence[int], pilot: bool = False
    ) -> list[Cell]:
        # whole numbers are whole: SAELens wants that of k
        number = int(value) if float(value).is_integer() else value
        settings = self._settings({flag: number} if flag else {})
        sparsity = f"{flag}={value:g}" if flag else ""
        return [
            Cell(
                self.model,
                self.arm_name,
                sparsity,
                seed,
                replace(settings, values={**settings.values, "seed": seed}),
                self.arm.untrained,
                pilot,
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
