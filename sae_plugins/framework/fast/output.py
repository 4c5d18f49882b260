"""What a fast step gives to SAELens, and to plugins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from sae_plugins.framework.fast.pairs import Pairs


class FastOutput(TrainStepOutput):
    """A step's output, for which no matrix [B, d_sae] is made that nobody looks at.

    SAELens only counts what fires in `feature_acts`, which are a sparse tensor without gradients
    where the step lists the pairs that fire. `seen` is what plugins look at: the same output, with
    activations that are a matrix and have gradients, as in SAELens' own step.
    """

    acts: Tensor
    """The activations at the step's pairs."""

    def __init__(
        self, pairs: Pairs, acts: Tensor, hidden_pre: Callable[[], Tensor], **fields: Any
    ) -> None:
        """Take activations at pairs, and a function that makes the pre-activations."""
        vars(self).update(fields, metrics={}, acts=acts)
        vars(self).update(_pre=hidden_pre, _matrix=lambda: pairs.dense(acts))
        vars(self)["feature_acts"] = pairs.counted(acts.detach())

    @cached_property
    def hidden_pre(self) -> Tensor:  # type: ignore[override]
        """The pre-activations [B, d_sae], with gradients."""
        with torch.enable_grad():  # whoever looks first may not want them
            pre: Tensor = vars(self)["_pre"]()
            return pre

    @property
    def seen(self) -> TrainStepOutput:
        """The same output: what changes in one changes in the other."""
        shown = _Seen.__new__(_Seen)
        shown.__dict__ = self.__dict__
        return shown


class _Seen(FastOutput):
    @property
    def feature_acts(self) -> Tensor:  # type: ignore[override]
        return self.matrix

    @cached_property
    def matrix(self) -> Tensor:
        with torch.enable_grad():
            acts: Tensor = vars(self)["_matrix"]()
            return acts


def seen(output: TrainStepOutput) -> TrainStepOutput:
    """An output as plugins see it."""
    return output.seen if isinstance(output, FastOutput) else output
