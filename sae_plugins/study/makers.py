"""From the flags of a study's arm to the settings of its SAEs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_plugins.base.code import TRAINING
from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.identity import Fact, of_code
from sae_plugins.framework.architectures import Architecture, architecture
from sae_plugins.runs import sources
from sae_plugins.settings.flags import DASHBOARDS
from sae_plugins.settings.recipe import converted, read_recipe
from sae_plugins.settings.settings import CACHING, Settings, applies
from sae_plugins.settings.settle import settle
from sae_plugins.settings.values import as_text
from sae_plugins.study.cells import Cell, Purpose, tokens_after
from sae_plugins.study.spec import Arm, Flags, Model, Sparsity

_NOT_IN_A_STUDY = (
    *("seed", "output_path", "overwrite", "resume", "checkpoint_path", "log_to_wandb"),
    *("n_checkpoints", "save_final_checkpoint", "resume_from_checkpoint", "accept_changes"),
    *("checkpoint_every", "keep_checkpoints", "resume_buffer", "prefetch_llm_batches"),
    *("eval_frequency", "eval_samples", "run_final_eval", "dry_run", "profile"),
    *("calibrate_l0", *CACHING, *DASHBOARDS),
)
_ALIKE_FOR_ALL = (
    *("model_name", "hook_name", "hook_head_index", "dataset_path", "context_size"),
    *("seqpos_slice", "exclude_special_tokens", "prepend_bos", "heldout_tokens"),
    *("use_chat_formatting", *sources.ROWS),
)
"""Flags in which arms cannot differ and still be compared."""


def shared_flags(name: str, model: Model) -> Flags:
    """The flags that all arms share on a model, its recipe's included."""
    train = dict(model.train)
    named: Flags = {flag: train[flag] for flag in ("recipe", "plugin") if flag in train}
    train.pop("recipe", None)
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
class Finder:
    """Finds out what a cell is made from, and where it lies; looks at each path once."""

    found: Callable[[Cell], Cell]
    of_path: Callable[[Path], Fact]

    def __call__(self, cell: Cell) -> Cell:
        """The cell with both."""
        settings = cell.settings
        acting = [plugin for plugin, _ in settings.plan.plugins if not plugin.observes_only]
        known = sources.made_from(settings.model_name, settings.values, self.of_path)
        return self.found(replace(cell, made_from={**known, "code": of_code(TRAINING, acting)}))


@dataclass(frozen=True)
class Maker:
    """Makes the cells of one arm on one model."""

    model: str
    arm_name: str
    arm: Arm
    train: Flags
    sparsities: Sparsity
    shared: Flags
    finder: Finder
    tried: Flags = field(default_factory=dict)
    """The flags that are tried, or were found to be the best."""

    @property
    def where(self) -> str:
        """Of what is wrong."""
        return f"arm {self.arm_name} on model {self.model}"

    def at(self, flags: Flags) -> Maker:
        """The arm with other flags."""
        return replace(self, train={**self.train, **flags}, tried={**self.tried, **flags})

    @property
    def tried_in_words(self) -> list[str]:
        """Such as "lr=0.003", each."""
        return [
            f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={as_text(value)}"
            for flag, value in self.tried.items()
        ]

    @cached_property
    def settings(self) -> Settings:
        """Without a sparsity, with which none is trained."""
        return self._settings({}, later=["k", *self.sparsities])

    @property
    def architecture(self) -> Architecture:
        """Of its SAEs in training."""
        return architecture(self.settings.architecture)

    @cached_property
    def sparsity(self) -> tuple[str | None, list[float]]:
        """The flag under `sparsity` that this arm has, with its values."""
        if not self.sparsities:
            return None, []
        settings = self.settings
        with prefixed(self.where):
            flags = [flag for flag in self.sparsities if applies(flag, settings)]
        if len(flags) != 1:
            what = f"{' and '.join(flags)} apply: name one" if flags else "does not apply"
            raise SaePluginsError(
                f"{self.where}: sparsity {', '.join(self.sparsities)} {what}; its architecture is "
                f"{settings.architecture}"
            )
        (flag,) = flags
        if flag in self.train:
            raise SaePluginsError(
                f"{self.where}: {flag} is under train and under sparsity, whose values are those "
                "that are trained with; leave one of the two out"
            )
        return flag, self.sparsities[flag]

    def existing(self, seeds: Sequence[int]) -> Iterator[Cell]:
        """The SAEs of the arm that are not trained."""
        for one in self.arm.saes_on(self.model):
            seed = one.seed_of(seeds)
            settings = replace(self.settings, values={**self.settings.values, "seed": seed})
            yield self.finder(
                Cell(self.model, self.arm_name, one.sparsity, seed, settings, existing=one)
            )

    def cells(
        self,
        value: float,
        seeds: Sequence[int],
        *,
        l0: float | None = None,
        purpose: Purpose = "",
    ) -> list[Cell]:
        """A cell for each seed, with a value of the sparsity's flag and maybe an exact L0."""
        flag, _ = self.sparsity
        # whole numbers are whole: SAELens wants that of k
        number = int(value) if float(value).is_integer() else value
        given: Flags = {flag: number} if flag else {}
        label = [f"{flag}={value:g}"] if flag else []
        if l0 is not None:
            given["calibrate_l0"] = l0
            if "calibrate_tokens" not in {**self.shared, **self.train}:
                given["calibrate_tokens"] = tokens_after(self.settings)
            label.append(f"l0={l0:g}")
        if purpose:
            label += self.tried_in_words
        settings = self._settings(given)
        return [
            self.finder(
                Cell(
                    self.model,
                    self.arm_name,
                    " ".join(label),
                    seed,
                    replace(settings, values={**settings.values, "seed": seed}),
                    self.arm.untrained,
                    purpose,
                )
            )
            for seed in seeds
        ]

    def _settings(self, sparsity: Flags, later: Sequence[str] = ()) -> Settings:
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
            settings = settle(flags, self.shared, later=later)
        if not settings.get("heldout_tokens"):
            raise SaePluginsError(
                f"{self.where}: heldout_tokens is 0; arms are compared at the L0 of held-out tokens"
            )
        return settings
