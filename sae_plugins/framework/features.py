"""The feature axis: one registry of everything that has one, and the changes made along it.

Weights, biases, Adam's moments, SAELens' firing counters and the plugins' own statistics all carry
an entry per feature. Whoever moves a feature must move them all, so plugins only *request*
changes; the framework carries them out, at one point of the step, and tells everyone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import ADAM_MOMENTS, TRAINER_COUNTERS
from sae_plugins.framework.architectures import architecture_of, prefix_groups
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer

logger = logging.getLogger(__name__)

ENCODER_RESET_SCALE = 0.2
"""Norm of a reset encoder column relative to the mean of the others (Bricken et al. 2023)."""


_REQUESTS = ("_permutation", "_move_moments", "_resets", "_merges")


@dataclass(frozen=True)
class Permuted:
    """Position i now holds the feature that was at `order[i]`; [d_sae], int64."""

    order: Tensor


@dataclass(frozen=True)
class Reset:
    """The features at `index` [k] start again, along given directions."""

    index: Tensor


@dataclass(frozen=True)
class Merged:
    """Features `source` [k] were merged into `into` [k]; the sources start again."""

    into: Tensor
    source: Tensor


FeatureChange = Permuted | Reset | Merged


@dataclass(frozen=True)
class Tracked:
    """A tensor with one or more feature axes; `reset` is None where a reset leaves it alone."""

    name: str
    get: Callable[[], Tensor]
    axes: tuple[int, ...]
    reset: float | None


class Features:
    """The feature axis of one trainer: `track` tensors on it, request changes of it."""

    def __init__(self, trainer: SAETrainer[Any, Any]) -> None:
        """Register the SAE's parameters, Adam's moments and the trainer's counters."""
        self._trainer = trainer
        self._sae = trainer.sae
        self.architecture = architecture_of(trainer.sae)
        self.d_sae: int = trainer.sae.cfg.d_sae
        self.groups = prefix_groups(trainer.sae)
        """Ranges [start, end) that permutations must stay within (`ordered` architectures)."""
        self._plugin_state: dict[str, Tracked] = {}
        self._held: dict[str, tuple[Plugin, str | None]] = {}
        """By tracked tensor, its plugin and the attribute of it that holds the tensor."""
        self._permutation: Tensor | None = None
        self._move_moments = True
        self._resets: list[tuple[Tensor, Tensor]] = []
        self._merges: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    # -- what plugins call ---------------------------------------------------------------------

    def track(
        self,
        plugin: Plugin,
        name: str,
        tensor: Tensor,
        *,
        axes: tuple[int, ...] = (0,),
        reset: float | None = 0.0,
    ) -> Tensor:
        """Register per-feature state of a plugin and return it; keep it by updating in place.

        Args:
            plugin: the owner.
            name: unique among the owner's tensors.
            tensor: its size is d_sae along each of `axes`.
            axes: where the features are; two axes for a co-activation matrix.
            reset: the value for a feature that is reset; None leaves it alone.

        Raises:
            PluginError: the name is taken, or a size is not d_sae.
        """
        key = f"{plugin.name}/{name}"
        if key in self._plugin_state:
            raise PluginError(f"plugin {plugin.name!r} tracks {name!r} twice")
        if any(tensor.shape[axis] != self.d_sae for axis in axes):
            raise PluginError(
                f"plugin {plugin.name!r} tracks {name!r} of shape {tuple(tensor.shape)}: its size "
                f"along {axes} must be d_sae = {self.d_sae}"
            )
        self._plugin_state[key] = Tracked(key, lambda: tensor, axes, reset)
        self._held[key] = plugin, None
        return tensor

    def check_held(self) -> None:
        """Refuse that a plugin keeps another tensor, from one step to the next, than it tracks.

        Raises:
            PluginError: names the attribute and what it was tracked as.
        """
        for key, (plugin, attribute) in self._held.items():
            tensor = self._plugin_state[key].get()
            if attribute is None:
                held = (name for name, value in vars(plugin).items() if value is tensor)
                self._held[key] = plugin, next(held, None)
            elif getattr(plugin, attribute, None) is not tensor:
                raise PluginError(
                    f"plugin {plugin.name!r} has replaced its attribute {attribute!r} since the "
                    f"step before, so that it is no longer the tensor that run.features tracks as "
                    f"{key!r}, and would not move with the features: change it in place, as in "
                    f"self.{attribute}.copy_(...)"
                )

    def permute(self, order: Tensor, *, move_moments: bool = True) -> None:
        """Request that position i holds the feature now at `order[i]`; [d_sae] indices.

        `move_moments=False` leaves Adam's moments behind, which is wrong on purpose: a control.

        Raises:
            PluginError: `order` is no permutation, or it leaves a Matryoshka prefix.
        """
        order = order.to(self._sae.device, torch.int64)
        positions = torch.arange(self.d_sae, device=order.device)
        if order.shape != (self.d_sae,) or not torch.equal(order.sort().values, positions):
            raise PluginError(f"not a permutation of {self.d_sae} features")
        for start, end in self.groups if self.architecture.ordered else []:
            moved = order[start:end]
            if bool(((moved < start) | (moved >= end)).any()):
                raise PluginError(
                    f"the permutation moves features across the Matryoshka prefix [{start}, {end})"
                    ": permute within `run.features.groups`"
                )
        if self._permutation is not None:
            logger.warning("a second order is requested before the first is carried out: dropped")
            return
        self._permutation = order
        self._move_moments = move_moments

    def reset(self, index: Tensor, directions: Tensor) -> None:
        """Request that features `index` [k] start again along `directions` [k, d_in].

        Directions live in the space of the SAE's processed input. Their length is ignored; a zero
        direction leaves the feature silent.
        """
        self._resets.append((self._indices(index), self._directions(index, directions)))

    def merge(
        self, into: Tensor, source: Tensor, directions: Tensor, *, weight: Tensor | float = 0.5
    ) -> None:
        """Request that each feature of `source` [k] is merged into its partner in `into` [k].

        Encoder columns and biases become `weight` ([k] or a number) times their sum: 0.5 is right
        for features that fire on different tokens, 1 for exact duplicates, which fire together.
        The decoder row gets the direction of the sum and the mean norm. The sources start again
        along `directions` [k, d_in].
        """
        pairs = self._indices(into), self._indices(source)
        if len(into) != len(source):
            raise PluginError(
                f"{len(into)} features cannot be merged with {len(source)}: pair them"
            )
        weights = torch.as_tensor(weight, device=self._sae.device)
        if weights.shape not in ((), into.shape):
            raise PluginError(
                f"the weight must be a number or [{len(into)}], not {tuple(weights.shape)}"
            )
        weights = weights.expand(len(into))
        self._merges.append((*pairs, self._directions(source, directions), weights))

    def tracked(self) -> Iterator[Tracked]:
        """Everything on the feature axis: parameters, moments, counters and plugin state."""
        parameters = dict(self._sae.named_parameters())
        biases = self.architecture.biases
        for name, axis in self.architecture.feature_axes.items():
            parameter = parameters[name]
            reset = biases.get(name)
            value = getattr(self._sae.cfg, reset) if isinstance(reset, str) else reset
            yield Tracked(name, lambda p=parameter: p.data, (axis,), value)  # type: ignore[misc]
            state = self._trainer.optimizer.state.get(parameter, {})
            for moment in ADAM_MOMENTS:
                if moment in state:
                    yield Tracked(
                        f"{moment}.{name}",
                        lambda s=state, m=moment: s[m],  # type: ignore[misc]
                        (axis,),
                        0.0,
                    )
        for name in TRAINER_COUNTERS:
            # SAELens rebinds its counters, so they are looked up each time
            yield Tracked(name, lambda n=name: getattr(self._trainer, n), (0,), 0.0)  # type: ignore[misc]
        yield from self._plugin_state.values()

    # -- what the trainer calls ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What plugins track, and the requests that wait for the end of a window."""
        return {
            "tracked": {name: entry.get() for name, entry in self._plugin_state.items()},
            **{name: getattr(self, name) for name in _REQUESTS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's; what is tracked is filled in place.

        Raises:
            PluginError: other tensors were tracked then.
        """
        changed = sorted(state["tracked"].keys() ^ self._plugin_state.keys())
        if changed:
            raise PluginError(
                f"the checkpoint and the plugins do not track the same tensors ({changed[0]}, ...)"
                ": go on with the version of the plugin that wrote it, and track in `attached`"
            )
        for name, entry in self._plugin_state.items():
            entry.get().copy_(state["tracked"][name])
        for name in _REQUESTS:
            setattr(self, name, state[name])

    @torch.no_grad()
    def carry_out(self) -> Iterator[FeatureChange]:
        """Carry out what was requested, merge -> reset -> permute, yielding each change done.

        A feature that two requests touch goes to the first; the loser is dropped and logged.
        """
        taken = torch.zeros(self.d_sae, dtype=torch.bool, device=self._sae.device)
        merges, self._merges = self._merges, []
        resets, self._resets = self._resets, []
        order, self._permutation = self._permutation, None
        for into, source, directions, weight in merges:
            free = self._claim(taken, into, source)
            if free.any():
                self._merge(into[free], source[free], weight[free])
                self._restart(source[free], directions[free])
                yield Merged(into[free], source[free])
        for index, directions in resets:
            free = self._claim(taken, index)
            if free.any():
                self._restart(index[free], directions[free])
                yield Reset(index[free])
        if order is not None:
            for entry in self.tracked():
                if self._move_moments or not entry.name.startswith(ADAM_MOMENTS):
                    for axis in entry.axes:
                        tensor = entry.get()
                        tensor.copy_(tensor.index_select(axis, order))
            yield Permuted(order)

    # -- the arithmetic ------------------------------------------------------------------------

    def _indices(self, index: Tensor) -> Tensor:
        index = index.to(self._sae.device, torch.int64)
        if index.ndim != 1 or bool(((index < 0) | (index >= self.d_sae)).any()):
            raise PluginError(f"feature indices must be [k] within 0..{self.d_sae - 1}")
        if index.unique().numel() != index.numel():
            raise PluginError("feature indices must not repeat within one request")
        return index

    def _directions(self, index: Tensor, directions: Tensor) -> Tensor:
        if directions.shape != (len(index), self._sae.cfg.d_in):
            raise PluginError(
                f"directions must have shape ({len(index)}, {self._sae.cfg.d_in}), "
                f"not {tuple(directions.shape)}"
            )
        return directions.detach().to(self._sae.W_dec)

    def _claim(self, taken: Tensor, *indices: Tensor) -> Tensor:
        """Which of k requests touch no taken feature, first come first served; marks them."""
        if len(indices) == 1:  # no feature is twice in one request
            free = ~taken[indices[0]]
            taken[indices[0]] = True
        else:
            rows = torch.stack(indices, dim=1)
            free = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
            for row, features in enumerate(rows):
                if not taken[features].any() and len(features.unique()) == len(features):
                    free[row] = True
                    taken[features] = True
        if not free.all():
            dropped = int((~free).sum())
            logger.info("dropped %d of %d feature requests: taken", dropped, len(free))
        return free

    def _restart(self, index: Tensor, directions: Tensor) -> None:
        """Turn directions into parameters; moments, counters and plugin state to reset values."""
        rest = torch.ones(self.d_sae, dtype=torch.bool, device=index.device)
        rest[index] = False
        if not rest.any():
            rest[:] = True
        unit = torch.nn.functional.normalize(directions, dim=-1)
        decoder, encoder = self._sae.W_dec.data, self._sae.W_enc.data
        decoder_norm = decoder[rest].norm(dim=1).mean()
        encoder_norm = ENCODER_RESET_SCALE * encoder[:, rest].norm(dim=0).mean()
        decoder[index] = unit * decoder_norm
        if not self.architecture.tied:
            encoder[:, index] = (unit * encoder_norm).T
        self._fill_reset_values(index)

    def _merge(self, into: Tensor, source: Tensor, weight: Tensor) -> None:
        decoder = self._sae.W_dec.data
        norm = (decoder[into].norm(dim=1) + decoder[source].norm(dim=1)) / 2
        unit = torch.nn.functional.normalize(decoder[into] + decoder[source], dim=-1)
        merged = {"W_dec": unit * norm[:, None]}
        parameters = dict(self._sae.named_parameters())
        log_scales = self.architecture.log_scales
        for name, axis in self.architecture.feature_axes.items():
            data = parameters[name].data.movedim(axis, 0)
            if name not in merged:
                scale = weight.to(data).view(-1, *[1] * (data.ndim - 1))
                scale = torch.full_like(scale, 0.5) if name in log_scales else scale
                merged[name] = scale * (data[into] + data[source])
            data[into] = merged[name]
        self._fill_reset_values(into, only_moments=True)

    def _fill_reset_values(self, index: Tensor, only_moments: bool = False) -> None:
        for entry in self.tracked():
            if entry.reset is None or (only_moments and not entry.name.startswith(ADAM_MOMENTS)):
                continue
            for axis in entry.axes:
                entry.get().index_fill_(axis, index, entry.reset)
