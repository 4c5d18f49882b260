"""What is known about one SAE and belongs on its model card, read from a folder and results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import not_too_deep
from sae_plugins.base.yaml_files import parse
from sae_plugins.eval_suites import registry as suites
from sae_plugins.eval_suites.evaluation.metrics import described
from sae_plugins.eval_suites.evaluation.results import KEYED_VERSIONS, Result
from sae_plugins.eval_suites.evaluation.tables import headline_names, known
from sae_plugins.eval_suites.suite import Metric
from sae_plugins.framework import plugin_files, registry
from sae_plugins.runs import folder as runs
from sae_plugins.runs.config import read_config
from sae_plugins.runs.sources import ROWS
from sae_plugins.runs.summary import OFF_MEAN, OFF_MEAN_AT_START
from sae_plugins.world.synthetic_models import SYNTHETIC

_TRAINING = (
    *("lr", "lr_scheduler_name", "train_batch_size_tokens", "train_batch_size_samples"),
    *ROWS,
)
_TOKENS = ("training/tokens", "training_tokens", "training_samples")
_FILE = r"[\w./ -]+"
"""A file of code that a card's commands may name."""
_COMMIT = 40
"""Characters of a commit on the Hub; what is read elsewhere has a shorter fingerprint."""


@dataclass(frozen=True)
class Mechanism:
    """A plugin that an SAE was trained with."""

    name: str
    version: str | None
    options: Mapping[str, Any]
    package: str | None = None
    """The distribution that brings it."""
    file: str | None = None
    """Where its class is among the run's copies, if it was tried from a file."""

    @property
    def about(self) -> str:
        """The first line of its documentation; empty where it is not installed."""
        found = registry.installed().get(self.name, [])
        return registry.summary(found[0]) if found else ""


@dataclass(frozen=True)
class SuiteFacts:
    """What one suite says of an SAE with one choice of settings, data and versions."""

    suite: str
    settings: str
    """The preset, and what differs from it."""
    data: str
    """The texts; empty where they are the suite's own business."""
    dataset: tuple[str, str] | None
    """The one dataset on the Hub and its commit."""
    results: Sequence[Result]
    """One per seed."""
    metrics: Mapping[str, Metric]

    @property
    def notes(self) -> list[str]:
        """What is to be said of the numbers, once each."""
        return list(dict.fromkeys(x for r in self.results for x in (*r.warnings, *r.deviations)))


@dataclass(frozen=True)
class SAEFacts:
    """What a card says about one SAE; None or empty where nobody knows."""

    sae_id: str
    architecture: str
    trained_as: str
    """The architecture in training."""
    d_in: int
    d_sae: int
    model_name: str | None
    base_model: str | None
    """The language model's name on the Hub."""
    hook_name: str | None
    context_size: int | None
    l0: float | None
    """Active features per token: held out, of an evaluation, else of the training."""
    methods: Sequence[str]
    mechanisms: Sequence[Mechanism]
    training: Mapping[str, Any]
    """Settings of the training that are no plugin's."""
    dataset: str | None
    dataset_on_hub: bool
    tokens: int | None
    off_mean: tuple[float, float] | None
    """How far b_dec was from the data's mean at the start and at the end, over its length."""
    seed: int | None
    has_recipe: bool
    recipe_plugins: Sequence[str]
    """The plugins of its recipe, where some of them are files of its folder."""
    files: Sequence[str]
    """The code in its folder, of plugins that were tried from files."""
    versions: Mapping[str, str]
    heldout: Mapping[str, Any]
    """Numbers of `summary.json`."""
    figures: Sequence[str]
    evaluations: Sequence[SuiteFacts]
    failed: Sequence[str]
    """Suites that failed with some seed."""


def facts_of(
    sae_id: str, folder: Path, results: Sequence[Result], failed: Sequence[str] = ()
) -> SAEFacts:
    """What is known about an SAE.

    Args:
        sae_id: its folder in the repository.
        folder: of a run, or of any SAE that SAELens saved.
        results: of evaluations of this SAE, of any suites and seeds; of two with the same suite,
            settings, data, versions and seed, the first one counts.
        failed: suites that failed with some seed.

    Raises:
        PluginError: a file of the folder is missing or damaged.
    """
    config = read_config(folder)
    if not {"architecture", "d_in", "d_sae"} <= config.keys():
        raise PluginError(f"{folder / runs.CONFIG} is not the config of an SAE that SAELens saved")
    place = {**config, **(config.get("metadata") or {})}
    ours = place.get("sae_plugins") or {}
    recipe = _mapping(folder / runs.RECIPE)
    settings = [recipe, _mapping(folder / runs.RUNNER_CONFIG)]
    settings.append(_mapping(folder / runs.SYNTHETIC_RUNNER_CONFIG))
    run = next(filter(None, settings), {})
    summary = _mapping(folder / runs.SUMMARY) or _mapping(folder / runs.TRAINING_SUMMARY)
    dataset = place.get("dataset_path") or run.get("dataset_path") or None
    evaluations, own = list(_evaluations(results)), runs.own_files(folder)
    return SAEFacts(
        sae_id=sae_id,
        architecture=config["architecture"],
        trained_as=place.get("training_architecture") or config["architecture"],
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        model_name=place.get("model_name"),
        base_model=_base_model(str(place.get("model_name")), place.get("model_class_name")),
        hook_name=place.get("hook_name"),
        context_size=place.get("context_size"),
        l0=_first(summary.get("heldout/l0"), _l0(evaluations), place.get("l0")),
        methods=ours.get("methods") or [],
        mechanisms=[*map(_mechanism, ours.get("plugins") or [])],
        training={
            **(place.get("training_architecture_details") or {}),
            **(ours.get("training") or {}),
            **{name: run[name] for name in _TRAINING if run.get(name) is not None},
        },
        dataset=dataset,
        dataset_on_hub=bool(dataset and on_hub(dataset)),
        tokens=_first(*map({**summary, **run}.get, _TOKENS)),
        off_mean=_off_mean(summary),
        seed=recipe.get("seed"),
        has_recipe=bool(recipe),
        recipe_plugins=_recipe_plugins(sae_id, recipe),
        files=sorted(
            name
            for name in own
            if name.startswith(f"{plugin_files.FOLDER}/") and re.fullmatch(_FILE, name)
        ),
        versions=recipe.get("versions") or {"sae-lens": place.get("sae_lens_version") or "unknown"},
        heldout={k: v for k, v in summary.items() if k.startswith(("heldout/", "truth/"))},
        figures=sorted(Path(name).name for name in own if Path(name).parent == Path(runs.FIGURES)),
        evaluations=evaluations,
        failed=sorted(failed),
    )


def _mechanism(plugin: Mapping[str, Any]) -> Mechanism:
    """What `cfg.json` says of a plugin; other versions may say more, or less."""
    return Mechanism(
        name=plugin["name"],
        version=plugin.get("version"),
        options=plugin.get("options") or {},
        package=plugin.get("package"),
        file=plugin.get("file"),
    )


def _recipe_plugins(sae_id: str, recipe: Mapping[str, Any]) -> list[str]:
    """The plugins of a recipe as a command names them, if some of them are files."""
    names = [str(name) for name in recipe.get("plugin") or []]
    known = all(re.fullmatch(rf"{_FILE}(:\w+)?", name) for name in names)
    if not known or not any(map(registry.names_file, names)):
        return []
    return [f"{sae_id}/{name}" if registry.names_file(name) else name for name in names]


def _mapping(file: Path) -> dict[str, Any]:
    """A JSON or YAML file; empty where there is none."""
    read = json.loads if file.suffix == ".json" else parse
    try:
        contents = not_too_deep(lambda: read(file.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PluginError(f"{file} cannot be read: {type(error).__name__}") from error
    if not isinstance(contents, dict):
        raise PluginError(f"{file} is damaged: it holds no mapping")
    return contents


def _off_mean(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    start, end = map(summary.get, (OFF_MEAN_AT_START, OFF_MEAN))
    if isinstance(start, float) and isinstance(end, float):
        return start, end
    return None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _l0(evaluations: Sequence[SuiteFacts]) -> float | None:
    core = next((found.results for found in evaluations if found.suite == "core"), ())
    values = known(core, "l0")
    return fmean(values) if values else None


def _base_model(name: str, model_class: str | None) -> str | None:
    """The Hub's name of what SAELens calls a model, if it is one of the Hub's."""
    if name == world.NAME or name.startswith(SYNTHETIC):
        return None
    if model_class == "AutoModelForCausalLM":
        return name if on_hub(name) else None
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    names = {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    names |= {a.lower(): official for official, known in MODEL_ALIASES.items() for a in known}
    found = names.get(name.lower())
    if found is None:  # TransformerLens lists it not, and converts it
        return name if on_hub(name) else None
    # llama-7b-hf and its like are in a folder of the user's
    return found if "/" in found or "gpt2" in found else None


def on_hub(name: str) -> bool:
    """Whether a name is one of the Hub, OWNER/NAME, and no folder here."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII)) and not Path(name).exists()


def _evaluations(results: Sequence[Result]) -> Iterator[SuiteFacts]:
    """One for each suite and whatever its numbers depend on, in the order of names."""
    groups: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if result.status == "ok":
            keyed = {name: result.versions.get(name) for name in KEYED_VERSIONS}
            model = result.model and result.model.model_dump()
            on = [result.preset, result.settings, result.datasets, model, keyed]
            key = result.suite, json.dumps(on, sort_keys=True)
            groups.setdefault(key, {}).setdefault(result.seed, result)
    for (suite, _), by_seed in sorted(groups.items()):
        found = [by_seed[seed] for seed in sorted(by_seed)]
        names = dict.fromkeys(name for result in found for name in headline_names(result))
        data, dataset = _data(found[0])
        yield SuiteFacts(
            suite=suite,
            settings=_settings(found[0]),
            data=data,
            dataset=dataset,
            results=found,
            metrics={name: _metric(suite, name) for name in names},
        )


def _settings(result: Result) -> str:
    try:
        usual = suites.load(result.suite).settings(result.preset, {}).model_dump(mode="json")
    except PluginError:  # it is not installed any more
        usual = result.settings
    changed = [f"{k} {v}" for k, v in result.settings.items() if usual.get(k, v) != v]
    return ", ".join([f"preset {result.preset}", *changed])


def _data(result: Result) -> tuple[str, tuple[str, str] | None]:
    """The texts in words, and the dataset on the Hub if it is one."""
    if result.model is not None and result.model.name == world.NAME:
        return "the embedded world's own texts", None
    read = [(name, version) for name, version in result.datasets.items() if on_hub(name)]
    fetched = [(name, version) for name, version in read if len(version) == _COMMIT]
    words = ", ".join(
        name if (name, version) in fetched else f"a local copy of {name}" for name, version in read
    )
    return words, fetched[0] if len(fetched) == len(read) == len(result.datasets) == 1 else None


def _metric(suite: str, name: str) -> Metric:
    try:
        found = described(suite, name)
    except PluginError:  # the suite is not installed any more
        found = None
    return replace(found, name=name) if found else Metric(name, name, "", "neither")
