"""A k that is found while training: ours, after Chanin and Garriga-Alonso 2025 on wrong L0s.

An SAE that is given more active features than its data have fills them with what is left of many
features, and one that is given fewer mixes features. At the k of the data, the activations of
features that are there stand apart from all others, and so do decoder rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share, warn_if_never
from sae_plugins.mechanisms.decoder_orthogonality import nearest

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)

NEAR = 1.5
"""A factor: activations that differ less from the least active one are near it."""
SMOOTHED = 21
"""Looks whose mean is compared."""
BOTTOM = 0.02
"""What exceeds a minimum by no more than this share of it is as good; of these, the least k is."""
BEFORE = 0.15
"""How much higher than its minimum a curve must have been before, as a share of that."""
BELOW = 1.5
"""How much smaller than the first k a k must be to be chosen; else too few above it were seen."""
_LOOKS = {"activations": "crowding", "rows": "nearness"}
"""What is logged of either."""


@torch.no_grad()
def crowding(pre: Tensor, k: float) -> float:
    """How fast the activations grow in number as a threshold falls: -d log count / d log bound.

    Args:
        pre: hidden pre-activations, [B, n].
        k: features that are active on a token, on average.

    Returns:
        The slope around the bound between the activations that k lets through and the others; NaN
        where it lets through some that are not above 0.
    """
    acts = pre.detach().flatten()
    count = min(max(1, round(k * len(pre))), len(acts) - 1)
    others, least = acts.topk(count + 1, sorted=False).values.topk(2, largest=False).values.tolist()
    if least <= 0:
        return math.nan
    bound = math.sqrt(least * max(others, least / NEAR**2))
    above, below = int((acts > bound * NEAR).sum()), int((acts > bound / NEAR).sum())
    return math.log(below / max(above, 1)) / (2 * math.log(NEAR))


@torch.no_grad()
def nearness(rows: Tensor) -> float:
    """The mean over rows [n, d] of each row's largest |cosine| to another one; NaN of none."""
    cosines, _ = nearest(torch.nn.functional.normalize(rows.detach().float(), dim=1))
    return float(cosines.abs().mean())


def valley(curve: Sequence[float], rise: float) -> int | None:
    """The last place that is as good as the minimum of a curve so far, after smoothing.

    Args:
        curve: the values in turn.
        rise: how much higher than its minimum the curve must end, as a share of that.

    Returns:
        Its index; None where the curve has not risen enough since, or has not fallen by `BEFORE`
        until then.
    """
    half = SMOOTHED // 2
    smooth = [sum(curve[i : i + SMOOTHED]) / SMOOTHED for i in range(len(curve) - 2 * half)]
    if not smooth:
        return None
    least = min(smooth)
    last = smooth.index(least)
    if smooth[-1] < least * (1 + rise) or max(smooth[: last + 1]) < least * (1 + BEFORE):
        return None
    while smooth[last + 1] <= least * (1 + BOTTOM):
        last += 1
    return last + half


class AutoK(Plugin):
    """Let k fall until it is seen to be too small, go back to the best one, and train with that.

    k falls geometrically from one multiple of the given k to another. At each look, the activations
    near the least active one are counted (or, as a comparison, each live decoder row's largest
    |cosine| is watched, which costs a product of d_sae^2 d_in): the k with the fewest is the one
    that separates features from the rest. It stays for the rest of the run, and is saved with the
    SAE. Where there is no distinct minimum, the k that was given comes back, with a warning.

    Give more than you expect, and train for a third longer: the search takes up to that.
    """

    name = "auto-k"
    requires = ("firing-window",)
    meanings = {
        "crowding": "growth of the number of activations as their threshold falls, at the k tried",
        "nearness": "mean over live features of the largest |cosine| to another decoder row",
        "k": "the k of the step: tried at first, in the end the one that was chosen",
        "distinct": "1: k was chosen; 0: there is no distinct minimum, and the given k came back",
    }

    class Options(Plugin.Options):
        """What is tried, when, and what counts as a minimum."""

        most: float = Field(1.0, gt=0, description="multiple of k that it begins with")
        least: float = Field(0.1, gt=0, description="multiple of k that it falls to")
        start: Steps = Field(share(0.05), description="last step before it falls")
        until: Steps = Field(share(0.6), description="last step of the fall, if nothing is found")
        looks: int = Field(300, ge=50, description="comparisons while it falls")
        rise: float = Field(
            0.5, gt=0, description="how much worse than the best a k must be to end the search"
        )
        factor: float = Field(
            1.05,
            gt=0,
            description="multiple of the best k that stays; the best one is of the features that "
            "have been found by then, which are not all",
        )
        watch: Literal["activations", "rows"] = Field(
            "activations", description="what should stand apart"
        )

        @field_validator("least")
        @classmethod
        def _falls(cls, least: float, given: ValidationInfo) -> float:
            if least >= given.data.get("most", math.inf):
                raise ValueError("k must fall: give less than auto-k.most")
            return least

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a k."""
        return architecture.lacks_k

    @hookimpl
    def attached(self, run: Run) -> None:
        """Begin with the greatest k."""
        chosen = self.options
        warn_if_never(run, self.name, chosen.start + 1, chosen.until)
        self.given: float = self._k(run)
        self.curve: list[float] = []
        self.tried: list[float] = []
        self.chosen: float | None = None

    @hookimpl
    def before_forward(self, run: Run) -> dict[str, float]:
        """Multiply k."""
        return {"k": self._falling(run.step) if self.chosen is None else self.chosen}

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Look; choose where it has become worse again."""
        chosen, step = self.options, run.step
        run.log(f"{self.name}/k", self._k(run))
        if self.chosen is not None or step <= chosen.start:
            return
        best = None
        if (step - chosen.start) % max(1, (chosen.until - chosen.start) // chosen.looks) == 0:
            value = self._look(run, output)
            if not math.isnan(value):
                self.curve.append(value)
                self.tried.append(self._k(run))
                best = valley(self.curve, chosen.rise)
        if self.curve:
            run.log(f"{self.name}/{_LOOKS[chosen.watch]}", self.curve[-1])
        if best is not None:
            self._end(run, self.tried[best])
        elif step >= min(chosen.until, run.total_steps):
            self._end(run, math.inf)

    def _k(self, run: Run) -> float:
        sae: Any = run.sae
        k: float = sae.cfg.k
        return k

    def _falling(self, step: int) -> float:
        chosen = self.options
        part = (step - chosen.start) / max(1, chosen.until - chosen.start)
        share: float = (chosen.least / chosen.most) ** min(max(part, 0.0), 1.0)
        return chosen.most * share

    def _look(self, run: Run, output: TrainStepOutput) -> float:
        if self.options.watch == "activations":
            return crowding(output.hidden_pre, self._k(run))
        return nearness(run.sae.W_dec[run.plugin("firing-window").steps_fired > 0])

    def _end(self, run: Run, k: float) -> None:
        distinct = k * BELOW <= self.given * self.options.most
        k *= self.options.factor
        self.chosen = k / self.given if distinct else 1.0
        run.summarise(f"{self.name}/distinct", int(distinct))
        run.summarise(f"{self.name}/k", k if distinct else self.given)
        if distinct:
            logger.info(
                "auto-k: after %d of %d steps, the run goes on with a k of %.3g",
                *(run.step, run.total_steps, k),
            )
            return
        tried = self.tried or [self.given]
        logger.warning(
            "auto-k: no k from %.3g to %.3g is distinctly better than those on both sides, and the "
            "run goes on with the %.3g that was given: begin with more, fall further "
            "(--auto-k.most, --auto-k.least), or train for longer",
            *(max(tried), min(tried), self.given),
        )
