"""Thresholds of activations, set such that as many features are active as are wanted.

Whatever rule an SAE was trained with, what is calibrated is saved as a JumpReLU SAE, which has a
threshold per feature: a standard SAE's were 0, a gated SAE's follow from its gates, and a TopK SAE
gets one in place of its rule. One number then bounds them all, in units of what an activation adds
to the reconstruction (times the norm of its decoder row): from below where fewer activations are
wanted, so that the smallest go, and from above where more are, so that the largest come.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from sae_lens import SAE
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import interruption
from sae_plugins.framework.architectures import SHARING_A_THRESHOLD, Architecture
from sae_plugins.framework.calibration import Calibration

logger = logging.getLogger(__name__)

_AT_ONCE = 4096
"""Tokens that are encoded together."""
_ENOUGH_BATCHES = 8
"""So many tell how much their means vary."""
_OF_TOPK = ("k", "rescale_acts_by_decoder_norm")
"""What the config of a TopK SAE has that no other one has."""


@torch.no_grad()
def threshold_for_l0(acts: Tensor, l0: float) -> float:
    """The threshold above which `l0` activations per token lie, on average over these tokens.

    Args:
        acts: before any threshold, [n, d_sae]; those that are not positive never count.
        l0: active features per token that are wanted; times n it is rounded to a whole number.

    Returns:
        A number between the last activation that is to be active and the next; 0 where no more are
        positive than are wanted. Where both are equal, no threshold tells them apart, and neither
        is active.
    """
    largest = _Largest(round(l0 * len(acts)))
    largest.add(acts.flatten())
    return largest.threshold()


class _Largest:
    """The largest of the positive numbers that it is given, and the threshold below them."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.floor = 0.0
        self.values: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Look at more numbers, [n]; those that cannot be among the wanted and one are dropped."""
        self.values.append(values[values > self.floor])
        if sum(map(len, self.values)) > 2 * (self.wanted + 1):
            together = torch.cat(self.values)
            floor = _nth_largest(together, self.wanted + 1)
            self.floor, self.values = float(floor), [together[together >= floor]]

    def threshold(self, wanted: int | None = None) -> float:
        """What lies between the last of so many numbers and the next; 0 where there are fewer."""
        wanted = self.wanted if wanted is None else wanted
        values = torch.cat(self.values)
        if wanted > len(values) or not len(values):
            return 0.0
        values = torch.cat([values, values.new_zeros(1)])  # what is not positive comes next
        last, following = (_nth_largest(values, max(1, n)) for n in (wanted, wanted + 1))
        middle = last / 2 + following / 2
        # between neighbours in the dtype there is nothing, and what equals the threshold is not
        # active
        return float(middle if middle < last else following)


def _nth_largest(values: Tensor, n: int) -> Tensor:
    return values.kthvalue(len(values) - n + 1).values


def check_calibration(architecture: Architecture, l0: float | None) -> None:
    """Refuse to calibrate an SAE that has no threshold, to its k, or that can have none, to an L0.

    Raises:
        PluginError: names its architecture.
    """
    name = architecture.name
    if l0 is None and name not in SHARING_A_THRESHOLD:
        raise PluginError(
            f"calibrate_threshold is for {' and '.join(SHARING_A_THRESHOLD)} SAEs, and {name} SAEs "
            "have no threshold that lags: leave it out, or give calibrate_l0"
        )
    if not architecture.calibrated:
        raise PluginError(
            f"{name} SAEs cannot be calibrated, since no threshold can take the place of their "
            "rule: leave calibrate_l0 out"
        )


def as_jumprelu(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Make an inference SAE a JumpReLU SAE that does the same; a TopK SAE loses its rule.

    A gated SAE's magnitude is (pi - b_gate) exp(r_mag) + b_mag, so that its gate, pi > 0, is open
    where the magnitude exceeds a number.
    """
    if "r_mag" in weights:
        scale = weights.pop("r_mag").exp()
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * scale, weights.pop("b_mag")
        weights["threshold"] = weights["b_enc"] - weights.pop("b_gate") * scale
    elif "threshold" not in weights:
        weights["threshold"] = torch.zeros_like(weights["b_enc"])
    config["architecture"] = "jumprelu"
    for name in _OF_TOPK:
        config.pop(name, None)


def calibrate(weights: dict[str, Tensor], config: dict[str, Any], found: Calibration) -> None:
    """Give an inference SAE the thresholds that were found, and say so in its metadata."""
    as_jumprelu(weights, config)
    own = weights["threshold"]
    bound = (found.threshold / _norms(weights)).to(own)
    weights["threshold"] = (torch.minimum if found.lowers else torch.maximum)(own, bound)
    config["metadata"] |= {"l0": found.reached, "calibration": asdict(found)}


@torch.no_grad()
def calibrated(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    batches: Sequence[Tensor],
    l0: float,
) -> Calibration:
    """Find the threshold with which an inference SAE has an L0.

    Args:
        weights: of the SAE as SAELens saves it.
        config: likewise.
        batches: activations [B, d_in] that it was not trained on.
        l0: what is wanted.
    """
    plain, about = dict(weights), dict(config)
    as_jumprelu(plain, about)
    own, norms = plain["threshold"], _norms(plain)
    free = _inference({**plain, "threshold": torch.full_like(own, -math.inf)}, about)
    tokens = sum(map(len, batches))
    wanted = round(l0 * tokens)
    active, silent = _Largest(wanted), _Largest(wanted)
    fires = positive = 0
    for acts in _acts(free, batches):
        open_ = acts > own.to(acts.device)
        added = acts * norms.to(acts.device)
        active.add(added[open_])
        silent.add(added[~open_])
        fires += int((open_ & (acts > 0)).sum())
        positive += int((acts > 0).sum())
    lowers = wanted > fires
    threshold = silent.threshold(wanted - fires) if lowers else active.threshold()
    found = Calibration(
        l0, fires / tokens, positive / tokens, 0.0, tokens, threshold, lowers=lowers
    )
    calibrate(plain, {**about, "metadata": {}}, found)
    sae = _inference(plain, about)
    counts = [
        torch.cat([(acts > 0).sum(dim=-1).double() for acts in _acts(sae, [batch])])
        for batch in batches
    ]
    reached = float(torch.cat(counts).mean())
    found = replace(found, reached=reached, spread=_spread(counts) / reached if reached else 0.0)
    if found.shortfall:
        logger.warning("%s", found.shortfall)
    return found


def _spread(counts: Sequence[Tensor]) -> float:
    """Half the 95% interval of the mean, by batches where there are enough.

    Tokens of one document are alike, so that a text has less to say than as many single tokens.
    """
    of_batches = torch.stack([each.mean() for each in counts])
    one = torch.cat(list(counts)) if len(counts) < _ENOUGH_BATCHES else of_batches
    return 1.96 * float(one.std(correction=0)) / math.sqrt(len(one))


def _norms(weights: Mapping[str, Tensor]) -> Tensor:
    """Of the decoder rows, at least float32; a row of zeros adds nothing, but divides."""
    rows = weights["W_dec"]
    norms: Tensor = rows.to(torch.promote_types(rows.dtype, torch.float32)).norm(dim=-1)
    return norms.clamp_min(torch.finfo(torch.float32).tiny)


def _inference(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Any:
    """The inference SAE of these weights, which takes activations as training does."""
    sae: Any = SAE.from_dict({**config, "metadata": {}})
    sae.load_state_dict({name: tensor.to(sae.device) for name, tensor in weights.items()})
    if sae.hook_z_reshaping_mode:  # heads are concatenated already
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae


def _acts(sae: Any, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        for part in batch.split(_AT_ONCE):
            yield sae.encode(part.to(sae.device, sae.dtype))


class HeldOut(Protocol):
    """What has text that is held out of a training, and not needed to score its SAE."""

    def unseen(self, tokens: int) -> list[Tensor]:
        """Activations [B, d_in] of so many tokens, or of as many as there are."""
        ...


def unseen(text: HeldOut | None, tokens: int) -> list[Tensor]:
    """Activations of held-out text, if there is any; what fails here must not cost the training."""
    try:
        return [] if text is None else text.unseen(tokens)
    except Exception as error:
        if _ends_all(error):
            raise
        logger.warning("no held-out text can be read, and what follows is taken: %r", error)
        return []


def following(provider: Iterator[Tensor], count: int, last: Tensor | None) -> list[Tensor]:
    """So many batches that follow in the buffer, or as many as can be read; else the last one.

    What fails here must not cost the training.
    """
    batches: list[Tensor] = []
    try:
        while len(batches) < count:
            batches.append(next(provider))
    except StopIteration:
        pass
    except Exception as error:
        if _ends_all(error):
            raise
        logger.warning("the threshold is set on fewer tokens: no more can be read: %r", error)
    return batches or ([] if last is None else [last])


def _ends_all(error: Exception) -> bool:
    """Whether an error must not pass for a want of text: of several ranks, all must go on alike."""
    return isinstance(error, interruption()) or ranks().size > 1
