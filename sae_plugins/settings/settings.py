"""The settings of one run, and which flags belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError, prefixed
from sae_plugins.base.files import bytes_in
from sae_plugins.base.kept import Folder
from sae_plugins.framework.unused import Values
from sae_plugins.settings.flags import DASHBOARDS, all_flags
from sae_plugins.settings.suggestions import unknown_flag
from sae_plugins.settings.uses import does_not_apply, is_synthetic

if TYPE_CHECKING:
    from sae_plugins.framework.resolve import Plan
    from sae_plugins.runs.setup import SAELensSettings

GROUPS = ("sae", "runner", "hub", "data", "synthetic", "logger")
RESUMING = ("checkpoint_every", "keep_checkpoints", "resume_buffer", *DASHBOARDS)
"""What `run.yaml` has, and a run that goes on may have otherwise."""
CACHING = ("activation_cache", "cache_budget")
NOT_IN_RUN_YAML = (
    *("checkpoint_path", "accept_changes", "dry_run", "profile", *CACHING),
    *("check_ranks", "rank_timeout", "max_time", "go_on"),
)


@dataclass
class Settings:
    """The settings of one run, by flag name.

    Attributes:
        values: SAELens' flags and ours, where anybody set them; options are not among them.
        names: plugins and methods that were chosen, by name.
        without: mechanisms that are left out.
        plan: the resolved plugins, with all their options.
        notes: what the user should know, a sentence each.
        recipe: name of the packaged recipe that it follows, if it does.
    """

    values: dict[str, Any]
    names: list[str]
    without: list[str]
    plan: Plan
    notes: list[str] = field(default_factory=list)
    recipe: str | None = None

    def get(self, name: str) -> Any:
        """A flag's value, SAELens' default where nobody set it."""
        return self.values.get(name, all_flags()[name].default)

    @property
    def model_name(self) -> str:
        """The model, or synthetic:PRESET."""
        return str(self.values["model_name"])

    @property
    def is_synthetic(self) -> bool:
        """Whether the run is on SAELens' synthetic model."""
        return is_synthetic(self.get)

    @property
    def architecture(self) -> str:
        """SAELens' name of the SAE's architecture."""
        return str(self.get("architecture"))

    @property
    def total_steps(self) -> int:
        """Training steps that SAELens' schedules span: without a last and smaller batch."""
        return int(self.get("training_tokens")) // int(self.get("train_batch_size_tokens"))

    @property
    def batches(self) -> int:
        """Training steps in all, the last and smaller batch's included."""
        return -(-int(self.get("training_tokens")) // int(self.get("train_batch_size_tokens")))

    @property
    def is_saved_regularly(self) -> bool:
        """Whether checkpoints are written without an interruption, too."""
        from sae_plugins.resume.files import interval

        return any(interval(self.get("checkpoint_every")))

    @property
    def activation_cache(self) -> Folder | None:
        """Where the language model's activations are kept."""
        return activation_cache(self.get)

    def applies(self, name: str) -> bool:
        """Whether a flag belongs to the run."""
        return does_not_apply(all_flags()[name], self.get) is None

    def for_saelens(self) -> SAELensSettings:
        """The settings that are SAELens' own."""
        from sae_plugins.runs.setup import SAELensSettings

        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for name, value in self.values.items():
            groups.get(all_flags()[name].group, {})[name] = value
        return SAELensSettings(
            model_name=self.model_name,
            architecture=self.architecture,
            seed=int(self.get("seed")),
            text_seed=self.get("text_seed"),
            heldout_tokens=int(self.get("heldout_tokens")),
            sae=groups["sae"],
            runner=groups["runner"] | groups["hub"] | groups["data"] | groups["synthetic"],
            logger=groups["logger"],
            activation_cache=self.activation_cache,
            following_tokens=self.plan.training.following_tokens,
            unseen_tokens=self._unseen_tokens,
            recipe=self.recipe,
            data_shards=self.data_shards,
        )

    @property
    def data_shards(self) -> int:
        """Into how many parts the text is cut."""
        found = self.get("data_shards")
        return 1 if found is None else int(found)

    @property
    def _unseen_tokens(self) -> int:
        training = self.plan.training
        is_held = training.calibrate_l0 is not None and self.get("heldout_tokens")
        if self.get("use_cached_activations"):  # whose held-out rows all score the SAE
            return 0
        return training.following_tokens if is_held else 0

    def as_recipe(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that made the run, as a recipe.

        Args:
            resolved: SAELens' defaults, and what was read from the model, by field.
        """
        stated = ("seed", "heldout_tokens", *RESUMING)
        values = {name: self.get(name) for name in stated if self.applies(name)}
        for name, flag in all_flags().items():
            if self.applies(name) and flag.group in GROUPS and name not in NOT_IN_RUN_YAML:
                value = self.values.get(name, resolved.get(name, flag.default))
                values[name] = list(value) if isinstance(value, tuple) else value
        if self.data_shards > 1:
            values["data_shards"] = self.data_shards
        if self.get("text_seed") is not None:
            values["text_seed"] = self.get("text_seed")
        options = {
            f"{plugin.name}.{name}": value
            for plugin, chosen in self.plan.plugins
            for name, value in chosen.model_dump(mode="json").items()
        }
        training = self.plan.training.model_dump(mode="json")
        training = {name: value for name, value in training.items() if self.applies(name)}
        names = [self.plan.named.get(name, name) for name in self.names]
        lists = {"plugin": names, "without": self.without}
        return {**lists, "architecture": self.architecture, **training, **options, **values}


def activation_cache(value: Values) -> Folder | None:
    """Where activations are kept, by the values of flags.

    Raises:
        SaePluginsError: the budget is none.
    """
    path = value("activation_cache")
    if path is None:
        return None
    with prefixed("--cache_budget"):
        return Folder(Path(path).expanduser().absolute(), bytes_in(value("cache_budget")))


def applies(name: str, settings: Settings) -> bool:
    """Whether a flag, or an option of a plugin, belongs to a run with these settings.

    Raises:
        SaePluginsError: there is no such flag.
    """
    plugin, dot, _ = name.partition(".")
    if dot:
        return any(plugin == chosen.name for chosen, _ in settings.plan.plugins)
    if name not in all_flags():
        raise SaePluginsError(unknown_flag(name, all_flags()))
    return settings.applies(name)
