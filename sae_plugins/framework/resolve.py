"""From the names that a user gives to an ordered, validated plan; pure functions, no torch."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sae_plugins.base.errors import PluginError, Problems, did_you_mean
from sae_plugins.base.secrets import redacted
from sae_plugins.base.values import validated
from sae_plugins.framework import plugin_files, registry
from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.host import check_events
from sae_plugins.framework.plugin import CLAIMS, Method, Plugin, check_name

Selected = str | type[Plugin] | type[Method]
LossForm = Literal["sum_of_squares", "l2_norm", "mean"]
"""Names of `losses.LOSS_FORMS`, here so that nothing needs torch to check one."""
WeightDecayForm = Literal["decoupled", "coupled"]


UNCALIBRATED = "uncalibrated"
"""The folder, inside a calibrated SAE's, of the same one with the thresholds of its training."""


class TrainingSettings(BaseModel):
    """Settings of the training loop that SAELens does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    accumulate: int = Field(1, ge=1, description="batches whose mean gradient makes one update")
    loss_form: LossForm | None = Field(
        None,
        description="reconstruction loss of a token: sum_of_squares (SAELens' own), l2_norm, mean",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of all parameters")
    weight_decay_form: WeightDecayForm = Field(
        "decoupled",
        description="decoupled, as in AdamW; coupled: through the gradient, after the clip, as in "
        "Adam with an L2 penalty",
    )
    clip: float | None = Field(1.0, gt=0, description="bound of the gradient's norm, or none")
    calibrate_threshold: bool = Field(
        False,
        description="set the threshold of a BatchTopK SAE when training ends, such that on the "
        "activations that follow in the buffer k features per token are active",
    )
    calibrate_l0: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="set the thresholds of the saved SAE, of any architecture that can have some, "
        "such that on what follows so many features per token are active",
    )
    calibrate_tokens: int = Field(
        4096, ge=1, description="tokens that set the thresholds, rounded up to whole batches"
    )
    fast_step: bool = Field(
        False,
        description="SAELens' step in fewer operations: equal to rounding, and not bit for bit",
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = Field(
        None,
        description="torch's precision of float32 products in the SAE's step: high is TF32 on a "
        "GPU; by default as the process has it",
    )

    @property
    def following_tokens(self) -> int:
        """Tokens after the last one of the training that are read to set thresholds."""
        is_set = self.calibrate_threshold or self.calibrate_l0 is not None
        return self.calibrate_tokens if is_set else 0


@dataclass(frozen=True)
class Plan:
    """Which plugins train a SAE, in which order and with which options."""

    plugins: tuple[tuple[type[Plugin], Any], ...]
    training: TrainingSettings
    methods: tuple[str, ...] = ()
    sae_lens: Mapping[str, Any] = field(default_factory=dict)
    """SAELens' flags that belong to the methods, at the user's values where there are any."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Of plugins that are tried from files, and what these import; by path in a run's copies."""
    named: Mapping[str, str] = field(default_factory=dict)
    """What a run's recipe calls these plugins, by name."""

    def provenance(self) -> dict[str, Any]:
        """What `cfg.json` and `run.yaml` say about how the SAE was made; plain JSON values."""
        entries = registry.installed()
        return {
            "methods": list(self.methods),
            "plugins": [
                {
                    "name": plugin.name,
                    "package": next((e.distribution for e in entries.get(plugin.name, [])), None),
                    "version": next((e.version for e in entries.get(plugin.name, [])), None),
                    **self._file_of(plugin.name),
                    "options": redacted(options.model_dump(mode="json")),
                }
                for plugin, options in self.plugins
                if not plugin.observes_only
            ],
            "training": self.training.model_dump(mode="json"),
            **({"files": plugin_files.hashes(self.files)} if self.files else {}),
        }

    def _file_of(self, plugin: str) -> dict[str, str]:
        return {"file": self.named[plugin]} if plugin in self.named else {}

    def observed_by(self, plugin: type[Plugin], **options: Any) -> Plan:
        """The plan with a plugin that only observes: at its place if it is there, else at the end.

        Its options are those of the plan, under `options`, which must be valid.
        """
        names = [known.name for known, _ in self.plugins]
        if plugin.name not in names:
            return replace(self, plugins=(*self.plugins, (plugin, plugin.Options(**options))))
        plugins = list(self.plugins)
        place = names.index(plugin.name)
        plugins[place] = (plugin, plugins[place][1].model_copy(update=options))
        return replace(self, plugins=tuple(plugins))

    def check(self, architecture: Architecture) -> None:
        """Refuse plugins that cannot work on `architecture`, with the reasons."""
        reasons = [
            f"plugin {plugin.name!r} does not work on {architecture.name} SAEs: {reason}; choose "
            "another architecture, or leave the plugin out"
            for plugin, options in self.plugins
            if (reason := plugin.unsupported(architecture, options)) is not None
        ]
        if reasons:
            raise PluginError(*reasons)


def resolve(
    names: Sequence[Selected],
    *,
    without: Collection[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    sae_lens: Mapping[str, Any] | None = None,
) -> Plan:
    """Expand methods, add what is required, order, and validate every option.

    Args:
        names: plugins and methods by name, or plugin classes.
        without: mechanisms to leave out of what `names` expands to (an ablation).
        options: options by plugin name; they override the methods'.
        training: `TrainingSettings` that override the methods'.
        sae_lens: SAELens flags that the user gave; they settle what two methods disagree about.

    Raises:
        PluginError: anything that is wrong with them, naming the culprit and the cure.
    """
    return choose(names, without).plan(options, training, sae_lens)


@dataclass(frozen=True)
class Choice:
    """The methods that a user names, and all plugins by name, unordered and without options."""

    methods: list[type[Method]]
    plugins: dict[str, type[Plugin]]

    def plan(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        training: Mapping[str, Any] | None = None,
        sae_lens: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plugins in order and with all options; the arguments are those of `resolve`.

        Raises:
            PluginError: plugins cannot be combined, or options are wrong.
        """
        methods, ordered, problems = self.methods, _order(self.plugins), Problems()
        problems.add(*_conflicts(ordered))
        settings = _merge("--", methods, lambda m: m.training, training, problems)
        plan_training = TrainingSettings()
        with problems:
            plan_training = validated(TrainingSettings, settings, "--")
        problems.add(*_disputed(ordered, plan_training))
        given = options or {}
        for name in given.keys() - self.plugins.keys():
            near = did_you_mean(name, self.plugins)
            problems.add(f"options are given for {name!r}, which is not chosen; {near}")
        plugins: list[tuple[type[Plugin], Any]] = []
        for plugin in ordered:
            stem, name = f"--{plugin.name}.", plugin.name
            of_methods = partial(_options_of, name)
            merged = _merge(stem, methods, of_methods, given.get(name), problems)
            with problems:
                plugins.append((plugin, validated(plugin.Options, merged, stem)))
        flags = _merge("--", methods, lambda m: m.sae_lens, sae_lens, problems)
        selected: list[type[Plugin] | type[Method]] = [*methods, *ordered]
        files: Mapping[str, bytes] = {}
        with problems:
            files = plugin_files.copies(selected)
        problems.stop(PluginError)
        return Plan(
            plugins=tuple(plugins),
            training=plan_training,
            methods=tuple(method.name for method in methods),
            sae_lens={k: v for k, v in flags.items() if any(k in m.sae_lens for m in methods)},
            files=files,
            named={
                each.name: copy
                for each in selected
                if (copy := plugin_files.copy_of(each)) is not None
            },
        )


def choose(names: Sequence[Selected], without: Collection[str] = ()) -> Choice:
    """What a user's names come down to.

    Raises:
        PluginError: unknown names, one chosen twice, or a plugin left out that another requires.
    """
    methods, mechanisms = _expand(names)
    chosen = {plugin.name: plugin for plugin in mechanisms}
    if len(chosen) < len(mechanisms):
        repeated = [plugin.name for plugin in mechanisms]
        twice = next(name for name in repeated if repeated.count(name) > 1)
        raise PluginError(f"plugin {twice!r} is chosen twice; plugin names must be unique")
    left = {name: plugin for name, plugin in chosen.items() if name not in without}
    _add_required(left, frozenset(without))
    _check_names(methods, {**chosen, **left})
    problems, of_methods = Problems(), {method.name: method.mechanisms for method in methods}
    for name in without:
        if name in of_methods:
            problems.add(
                f"--without {name!r}: it is a method, and --without takes mechanisms: those of "
                f"{name} are {', '.join(of_methods[name])}"
            )
        elif name not in chosen:
            problems.add(f"--without {name!r}: it is not chosen; {did_you_mean(name, chosen)}")
    for plugin in left.values():
        with problems:
            check_events(plugin)  # type: ignore[arg-type]  # classes have a hash
    problems.stop(PluginError)
    return Choice(methods, left)


def _check_names(methods: Sequence[type[Method]], mechanisms: Mapping[str, type[Plugin]]) -> None:
    """Refuse a method that is called as another one, or as a mechanism, is."""
    known: dict[str, type[Method] | type[Plugin]] = {**mechanisms}
    for method in methods:
        if twin := known.get(method.name):
            kind = "mechanism" if issubclass(twin, Plugin) else "method"
            raise PluginError(
                f"the method {method.__name__} and the {kind} {twin.__name__} are both called "
                f"{method.name!r}: change the `name` of one of them"
            )
        known[method.name] = method


def _expand(names: Sequence[Selected]) -> tuple[list[type[Method]], list[type[Plugin]]]:
    problems = Problems()
    loaded: list[Any] = []
    for name in names:
        with problems:
            loaded.append(registry.load(name) if isinstance(name, str) else name)
    problems.stop(PluginError)
    for selected in loaded:
        if not isinstance(selected, type) or not issubclass(selected, (Plugin, Method)):
            raise PluginError(
                f"{selected!r} is no plugin: give its name, or its class and not an instance"
            )
        check_name(selected)
    methods = [selected for selected in loaded if issubclass(selected, Method)]
    if len(set(methods)) < len(methods):
        raise PluginError(f"a method is chosen twice: {', '.join(m.name for m in methods)}")
    mechanisms: list[type[Plugin]] = []
    for selected in loaded:
        if issubclass(selected, Method):
            wanted_by = f"method {selected.name!r}"
            given = {each.name: each for each in loaded if issubclass(each, Plugin)}
            own = plugin_files.beside(selected) | given
            bundle = [
                own.get(name) or _load_plugin(name, wanted_by) for name in selected.mechanisms
            ]
            mechanisms += [plugin for plugin in bundle if plugin not in mechanisms]
        elif selected not in mechanisms or loaded.count(selected) > 1:
            mechanisms.append(selected)  # unless a method has brought it
    return methods, mechanisms


def _load_plugin(name: str, wanted_by: str) -> type[Plugin]:
    loaded = registry.load(name)
    if not issubclass(loaded, Plugin):
        raise PluginError(f"{wanted_by} needs {name!r}, which is a method, not a mechanism")
    return loaded


def _add_required(chosen: dict[str, type[Plugin]], without: frozenset[str]) -> None:
    """Put what is required, and not chosen, right before the first plugin that requires it.

    At the end, it would push what requires it behind everything, those who record a step included.
    """
    asked, known = list(chosen.values()), set(chosen)
    chosen.clear()

    def add(plugin: type[Plugin]) -> None:
        for name in plugin.requires:
            if name in without:
                raise PluginError(f"--without {name!r}: plugin {plugin.name!r} requires it")
            if name not in known:
                known.add(name)
                own = plugin_files.beside(plugin).get(name)
                add(own or _load_plugin(name, f"plugin {plugin.name!r}"))
        chosen[plugin.name] = plugin

    for plugin in asked:
        add(plugin)


def _order(chosen: Mapping[str, type[Plugin]]) -> list[type[Plugin]]:
    """Topological order that keeps the user's order wherever the plugins do not care."""
    position = {name: place for place, name in enumerate(chosen)}
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name, plugin in chosen.items():
        sorter.add(name, *(n for n in (*plugin.requires, *plugin.after) if n in chosen))
        for later in plugin.before:
            if later in chosen:
                sorter.add(later, name)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise PluginError(f"plugins want to run before one another: {error.args[1]}") from error
    ordered: list[type[Plugin]] = []
    ready = set(sorter.get_ready())
    while ready:
        name = min(ready, key=position.__getitem__)
        ordered.append(chosen[name])
        ready.remove(name)
        sorter.done(name)
        ready.update(sorter.get_ready())
    return ordered


def _conflicts(ordered: Sequence[type[Plugin]]) -> Iterator[str]:
    names = {plugin.name for plugin in ordered}
    for plugin in ordered:
        for other in plugin.conflicts:
            if other in names:
                yield f"plugins {plugin.name!r} and {other!r} cannot be combined; leave one out"


def _disputed(ordered: Sequence[type[Plugin]], training: TrainingSettings) -> Iterator[str]:
    """What is wrong with the plugins' claims."""
    owners = {} if training.loss_form is None else {"reconstruction_loss": "loss_form"}
    for plugin in ordered:
        for claim in plugin.claims:
            if claim not in CLAIMS:
                yield f"plugin {plugin.name!r} claims {claim!r}: {did_you_mean(claim, CLAIMS)}"
            elif claim in owners:
                yield f"{owners[claim]!r} and {plugin.name!r} both claim the {claim}; choose one"
            owners[claim] = plugin.name


def _options_of(mechanism: str, method: type[Method]) -> Mapping[str, Any]:
    return method.options.get(mechanism, {})


def _merge(
    stem: str,
    methods: Sequence[type[Method]],
    settings_of: Callable[[type[Method]], Mapping[str, Any]],
    override: Any,
    problems: Problems,
) -> dict[str, Any]:
    """The methods' settings under the user's; two methods must agree or the user decide."""
    override = override or {}
    if not isinstance(override, Mapping):
        what = stem.strip("-.") or "the training settings"
        problems.add(f"options of {what} are {override!r}: give a mapping from names to values")
        override = {}
    merged: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for method in methods:
        for key, value in settings_of(method).items():
            if key in merged and merged[key] != value and key not in override:
                problems.add(
                    f"methods {owner[key]!r} and {method.name!r} want different values for "
                    f"{stem}{key} ({merged[key]!r}, {value!r}): give it yourself"
                )
            merged[key] = value
            owner[key] = method.name
    return {**merged, **override}
