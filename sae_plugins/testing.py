"""Tests for plugins, yours included: tiny SAEs to train, and the contract that every plugin keeps.

A plugin's test file needs four lines (pytest runs one test per promise and architecture)::

    from sae_plugins.testing import PluginContract

    class TestMyPlugin(PluginContract):
        plugin = MyPlugin                 # or its name, where it is installed
        options = {"interval": 3}         # so that it acts within `steps` = 12

For the tests of what the plugin does, `train` trains a tiny SAE with it::

    trainer = train(MyPlugin, architecture="topk", options={"my-plugin": {"interval": 3}})
    trainer.sae.W_dec, trainer.run.summary, trainer.host.plugins
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import TRAINER_COUNTERS
from sae_plugins.base.seeds import random_states
from sae_plugins.framework import registry
from sae_plugins.framework.architectures import ARCHITECTURES, prefix_groups
from sae_plugins.framework.architectures import architecture as architecture_named
from sae_plugins.framework.attach import plugins
from sae_plugins.framework.beside import Factor, ForwardWeights, Witness
from sae_plugins.framework.compared import differences, equal_values
from sae_plugins.framework.fast.choice import forced
from sae_plugins.framework.plugin import Method, Plugin
from sae_plugins.framework.resolve import Selected, resolve
from sae_plugins.framework.two_ranks import samples, unlike
from sae_plugins.resume.state import read_state, write_state

D_IN, D_SAE = 8, 24
STEPS, TOKENS = 12, 32

_Beside = Mapping[type[Plugin], Mapping[str, Any]]
"""Plugins, with their options, that train beside another."""

CASES = {name: dict(row.tiny) for name, row in ARCHITECTURES.items()}
"""SAELens' training architectures, each with the configuration of its tiny SAE."""


def tiny_sae(
    architecture: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any
) -> TrainingSAE[Any]:
    """A SAE of D_IN dimensions and D_SAE features; leaves torch's global random state alone.

    Args:
        architecture: a key of `CASES`, whose configuration `config` overrides.
        dtype: of the parameters; float64 where exactness is tested.
        seed: of the initial weights.

    Raises:
        KeyError: no such architecture.
    """
    sae_class, config_class = get_sae_training_class(architecture)
    fields = {"d_in": D_IN, "d_sae": D_SAE, **CASES[architecture], **config}
    fields["dtype"] = str(dtype).removeprefix("torch.")
    fields = {name: list(v) if isinstance(v, list) else v for name, v in fields.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        sae: TrainingSAE[Any] = sae_class(config_class(**fields))
        return sae


def tiny_batches(
    seed: int = 0, *, steps: int = STEPS, tokens: int = TOKENS, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """`steps` batches [tokens, D_IN] of sparse combinations of fixed directions, slightly noisy."""
    generator = torch.Generator().manual_seed(seed)

    def draw(function: Any, *shape: int) -> Tensor:
        drawn: Tensor = function(*shape, generator=generator, dtype=torch.float64)
        return drawn

    directions = torch.nn.functional.normalize(draw(torch.randn, 2 * D_IN, D_IN), dim=1)
    batches = []
    for _ in range(steps):
        chosen = draw(torch.rand, tokens, 2 * D_IN) < 0.2
        noise = 0.05 * draw(torch.randn, tokens, D_IN)
        strength = 3 * chosen * draw(torch.rand, tokens, 2 * D_IN)
        batches.append((strength @ directions + noise).to(dtype))
    return batches


def tiny_trainer(
    sae: TrainingSAE[Any], batches: Sequence[Tensor] | Iterator[Tensor] = (), **config: Any
) -> SAETrainer[Any, Any]:
    """SAELens' trainer for `sae`; with plugins inside `sae_plugins.plugins`, plain outside.

    Args:
        sae: from `tiny_sae`.
        batches: what `fit()` trains on; the number of a sequence is the length of the run.
        config: fields of `SAETrainerConfig` that override the tiny ones.
    """
    known = batches if isinstance(batches, Sequence) else ()
    fields = {
        "total_training_samples": sum(map(len, known)) or STEPS * TOKENS,
        "train_batch_size_samples": len(known[0]) if known else TOKENS,
        "lr": 0.01,
        "lr_end": 0.001,
        "dead_feature_window": 3,  # short, so that the TopK family's auxiliary loss takes part
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return SAETrainer(SAETrainerConfig(**{**fields, **config}), sae, iter(batches))


def advance(trainer: SAETrainer[Any, Any], batches: Iterable[Tensor]) -> list[dict[str, float]]:
    """Train on `batches`, each [B, D_IN]; each step's loss ("loss") and terms, by name."""
    losses = []
    for batch in batches:
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        terms = {"loss": output.loss, **output.losses}
        losses.append({name: value.item() for name, value in terms.items()})
    return losses


def train(
    *names: Selected,
    architecture: str = "standard",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Any:
    """Train a tiny SAE with plugins, from the first event to the last; returns the trainer.

    Args:
        names: plugins and methods, as for `sae_plugins.plugins`; `options` and `training` too.
        architecture: a key of `CASES`.
        seed: of weights, data, the plugins' own generators and the global random state.
        steps: batches of TOKENS tokens.
        dtype: of weights and data.
        config: fields of `SAETrainerConfig`, such as `autocast=True`.

    Raises:
        PluginError: from the framework or a plugin.
    """
    batches = tiny_batches(seed, steps=steps, dtype=dtype)
    sae = tiny_sae(architecture, dtype=dtype, seed=seed)
    with plugins(*names, options=options, training=training, seed=seed):
        trainer = tiny_trainer(sae, batches, **config)
    advance(trainer, batches)
    trainer.set_final_sae_metadata()
    return trainer


def snapshot(trainer: SAETrainer[Any, Any]) -> dict[str, Tensor]:
    """Copies, by name, of weights, buffers, Adam's state, SAELens' counters and plugin state."""
    state = dict(trainer.sae.state_dict())
    for name, parameter in trainer.sae.named_parameters():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            state[f"{key}.{name}"] = value
    state |= {name: getattr(trainer, name) for name in TRAINER_COUNTERS}
    features = getattr(getattr(trainer, "run", None), "features", None)
    if features is not None:
        state |= {entry.name: entry.get() for entry in features.tracked()}
    return {name: value.detach().clone() for name, value in state.items()}


def in_order_of_identity(trainer: Any) -> dict[str, Tensor]:
    """`snapshot` with features in their first order, for a trainer that has a `Witness`."""
    state = snapshot(trainer)
    order = state[f"{Witness.name}/identity"].argsort()
    for entry in trainer.run.features.tracked():
        for axis in entry.axes:
            state[entry.name] = state[entry.name].index_select(axis, order)
    return state


class PluginContract:
    """The promises of every plugin, as a class for pytest: subclass it as `Test...`.

    Attributes:
        plugin: the class or the name of a plugin (or of a method).
        options: its options (a method's: by mechanism), such that it acts within `steps` steps.
        steps: length of each run, in batches.
        all_on_two_ranks: test on every architecture that ranks do not matter, not on one alone.
    """

    plugin: ClassVar[Selected]
    options: ClassVar[Mapping[str, Any]] = {}
    steps: ClassVar[int] = STEPS
    all_on_two_ranks: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test with an `architecture` on every one that the plugin supports."""
        if "architecture" in metafunc.fixturenames:
            supported = [name for name in CASES if not self._reasons(name)]
            one = "two_ranks" in metafunc.function.__name__ and not self.all_on_two_ranks
            metafunc.parametrize("architecture", supported[:1] if one else supported)

    def test_supports_an_architecture_and_gives_reasons_for_the_others(self) -> None:
        """Refusals are sentences, and come when the trainer is built, before any training."""
        import pytest  # whoever collects this class has it; others need not

        reasons = {name: self._reasons(name) for name in CASES}
        assert not all(reasons.values()), f"unsupported() refuses every architecture: {reasons}"
        for name, reason in reasons.items():
            if reason:
                message = f"unsupported() says {reason!r} for {name}: tell the reason in words"
                assert len(reason.split()) >= 4, message
                with pytest.raises(PluginError, match=re.escape(reason)):
                    self._trainer(name)

    def test_trains(self, architecture: str) -> None:
        """The weights move and stay finite; those of an observer as they would without it."""
        trainer = self._trainer(architecture)
        before = snapshot(trainer)
        advance(trainer, self._batches())
        trainer.set_final_sae_metadata()
        after = snapshot(trainer)
        assert "W_dec" in differences(before, after), "the plugin keeps the SAE from learning"
        broken = [name for name, value in after.items() if not value.isfinite().all()]
        assert not broken, f"NaN or infinity in {broken}: guard divisions, logarithms and roots"
        if all(plugin.observes_only for plugin in trainer.host.plugins):
            alone = tiny_trainer(tiny_sae(architecture), self._batches())
            advance(alone, self._batches())
            changed = differences(alone.sae.state_dict(), trainer.sae.state_dict())
            assert not changed, f"the plugin says `observes_only`, yet it changes {changed}"

    def test_repeats_with_the_same_seed(self, architecture: str) -> None:
        """Two runs are bitwise equal."""
        one, other = self._trained(architecture), self._trained(architecture)
        found = differences(snapshot(one), snapshot(other))
        assert not found, (
            f"two equal runs differ in {found}: draw from self.rng alone, keep state on the "
            "instance, and read nothing from outside the run (time, sets, class attributes)"
        )

    def test_leaves_the_global_random_state_alone(self, architecture: str) -> None:
        """Neither python's, nor numpy's, nor torch's generator moves."""
        before = random_states()
        self._trained(architecture)
        after = random_states()
        drawn = [name for name in before if not equal_values(before[name], after[name])]
        assert not drawn, (
            f"the plugin draws from the global state of {drawn}: use generator=self.rng, so that "
            "adding it does not change what others draw"
        )

    def test_does_not_care_in_which_order_features_stand(self, architecture: str) -> None:
        """A permutation in mid-training changes nothing but positions (float64)."""
        sae, middle = tiny_sae(architecture), self.steps // 2
        draws = torch.Generator().manual_seed(1)
        shuffled = [
            start + int(i)
            for start, end in prefix_groups(sae)
            for i in torch.randperm(end - start, generator=draws)
        ]
        pair = []
        for order in (sorted(shuffled), shuffled):
            beside: _Beside = {Witness: {"step": middle, "order": order}}
            pair.append(self._trainer(architecture, beside=beside, dtype=torch.float64))
        probe = tiny_batches(2, steps=1, dtype=torch.float64)[0]
        for step, batch in enumerate(self._batches(torch.float64), start=1):
            (one,), (other,) = (advance(trainer, [batch]) for trainer in pair)
            states = [in_order_of_identity(trainer) for trainer in pair]
            for trainer, state, losses in zip(pair, states, (one, other), strict=True):
                noise = 1e-12 * max(map(abs, losses.values()))  # of a term that adds up to 0
                state |= {
                    f"loss {name}": torch.tensor(value if abs(value) > noise else 0.0)
                    for name, value in losses.items()
                }
                with torch.no_grad():
                    state["the SAE's output"] = trainer.sae(probe)
            found = differences(states[0], states[1], tolerance=1e-6)
            assert not found, (
                f"features were permuted after step {middle}; after step {step} these differ by "
                f"more than positions: {found}. Give every tensor with a feature axis to "
                "run.features.track and update it in place, or follow `Permuted.order` in "
                "features_changed; let no position decide anything"
            )

    def test_waits_for_the_end_of_an_accumulation_window(self, architecture: str) -> None:
        """From a window's first forward pass no weight moves, by hand or by a feature change."""
        trainer = self._trainer(
            architecture, beside={ForwardWeights: {}}, training={"accumulate": 4}
        )
        of_window: dict[str, Tensor] = {}
        for step, batch in enumerate(self._batches(), start=1):
            advance(trainer, [batch])
            of_window = of_window or trainer.run.plugin(ForwardWeights.name).seen
            moved = differences(of_window, dict(trainer.sae.named_parameters()))
            if trainer.run.updated:
                of_window = {}
            else:
                assert not moved, (
                    f"step {step} is inside an accumulation window, yet {moved} moved: change "
                    "weights in after_update, or request a change of run.features"
                )
        assert trainer.run.updates == -(-self.steps // 4)

    def test_goes_on_from_a_checkpoint(self, architecture: str, tmp_path: Path) -> None:
        """A run that is saved inside an accumulation window and goes on is bitwise the same run."""
        stop = self.steps // 2
        stop += stop % 4 == 0
        batches, file = self._batches(), tmp_path / "state.safetensors"
        one, other = (self._trainer(architecture, training={"accumulate": 4}) for _ in range(2))
        advance(one, batches[:stop])
        try:
            write_state(file, one.state_dict())
        except TypeError as error:
            raise AssertionError(
                f"{error}: keep numbers, strings, tensors and containers of them on self, name the "
                "attribute in `transient`, or override state_dict and load_state_dict"
            ) from error
        other.load_state_dict(read_state(file))
        for trainer in (one, other):
            advance(trainer, batches[stop:])
        found = differences(snapshot(one), snapshot(other))
        for mine, theirs in zip(one.host.plugins, other.host.plugins, strict=True):
            found |= {
                f"{mine.name}.{name}": float("inf")
                for name, value in mine.state_dict().items()
                if not equal_values(value, theirs.state_dict()[name])
            }
        assert not found, (
            f"after a checkpoint at step {stop} the run differs in {found}: keep what must last "
            "from step to step in attributes of self, and set them in `attached`"
        )

    def test_keeps_float32_statistics_under_autocast(self, architecture: str) -> None:
        """It trains under bfloat16 autocast, and no tracked tensor is of a lower precision."""
        trainer = self._trained(architecture, autocast=True)
        low, broken = [], []
        for entry in trainer.run.features.tracked():
            tensor = entry.get()
            low += [entry.name] if tensor.is_floating_point() and tensor.itemsize < 4 else []
            broken += [] if tensor.isfinite().all() else [entry.name]
        assert not low, f"{low} are below float32, where a decay of 0.999 rounds to 1"
        assert not broken, f"NaN or infinity in {broken} under autocast"

    def test_works_with_the_fast_step(self, architecture: str) -> None:
        """With `--fast_step` the training is the same, to rounding (float64)."""
        if not architecture_named(architecture).fast:
            return
        states = []
        for fast in (False, True):
            with forced(sparse=True):
                trainer = self._trainer(
                    architecture, dtype=torch.float64, training={"fast_step": fast}
                )
                advance(trainer, self._batches(torch.float64))
            states.append(snapshot(trainer))
        found = differences(states[1], states[0], tolerance=1e-6)
        assert not found, (
            f"with --fast_step these differ by more than rounding: {found}. Read activations and "
            "losses from the `output` of the event, and hook what SAELens lets you hook"
        )

    def test_multiplies_coefficients_and_sets_none(self, architecture: str) -> None:
        """Another plugin may multiply them before the forward pass or after it (float64)."""
        listens = self._trainer(architecture).host.listens("before_forward", "after_forward")
        if architecture_named(architecture).lacks_coefficient or not listens:
            return
        runs = []
        for event in ("before_forward", "after_forward"):
            beside: _Beside = {Factor: {"event": event}}
            trainer = self._trainer(architecture, dtype=torch.float64, beside=beside)
            losses = advance(trainer, self._batches(torch.float64))
            runs.append({"loss": torch.tensor([step["loss"] for step in losses])})
        found = differences(runs[0], runs[1], tolerance=1e-6)
        assert not found, (
            "another plugin's multiplier of the sparsity coefficient acts otherwise where it is "
            f"returned before the forward pass: {found}. Return multipliers, and leave "
            "step_input.coefficients alone"
        )

    def test_is_the_same_on_two_ranks(self, architecture: str, tmp_path: Path) -> None:
        """Two processes, each with half of every batch, train bitwise what one process does."""

        def trained() -> dict[str, Any]:
            tokens = self.steps * TOKENS
            with plugins(self.plugin, options=self._options(), seed=0, data_shards=2):
                provider, sae = samples(D_IN, TOKENS), tiny_sae(architecture)
                trainer: Any = tiny_trainer(sae, provider, total_training_samples=tokens)
            rows = []
            for batch in islice(trainer.data_provider, self.steps):
                rows += advance(trainer, [batch])
                metrics = trainer.run.metrics.items()
                rows.append(
                    {name: value() if callable(value) else value for name, value in metrics}
                )
            trainer.set_final_sae_metadata()
            states = {plugin.name: plugin.state_dict() for plugin in trainer.host.plugins}
            return {**snapshot(trainer), **states, "the metrics": rows}

        found = unlike(trained, tmp_path)
        assert not found, (
            f"on two ranks these are not what one process has: {found}. Draw from self.rng alone, "
            "and ask neither for a rank nor for the process, its time or its machine"
        )

    # -- how the promises are tested -----------------------------------------------------------

    def _options(self) -> Mapping[str, Mapping[str, Any]]:
        loaded = registry.load(self.plugin) if isinstance(self.plugin, str) else self.plugin
        return self.options if issubclass(loaded, Method) else {loaded.name: self.options}

    def _reasons(self, architecture: str) -> str | None:
        plan = resolve([self.plugin], options=self._options())
        row = architecture_named(architecture)
        reasons = (plugin.unsupported(row, options) for plugin, options in plan.plugins)
        return next((reason for reason in reasons if reason is not None), None)

    def _trainer(
        self,
        architecture: str,
        *,
        dtype: torch.dtype = torch.float32,
        beside: _Beside | None = None,
        training: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Any:
        others = beside or {}
        options = {**self._options(), **{plugin.name: given for plugin, given in others.items()}}
        with plugins(*others, self.plugin, options=options, training=training):
            return tiny_trainer(tiny_sae(architecture, dtype=dtype), self._batches(), **config)

    def _batches(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return tiny_batches(steps=self.steps, dtype=dtype)

    def _trained(self, architecture: str, **config: Any) -> Any:
        trainer = self._trainer(architecture, **config)
        advance(trainer, self._batches())
        trainer.set_final_sae_metadata()
        return trainer
