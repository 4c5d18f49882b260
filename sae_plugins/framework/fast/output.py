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

    SAELens only counts what fires in `feature_acts`: where the step lists pairs, these are a sparse
    tensor without gradients. `seen` is the same output as plugins look at it, with activations that
    are a matrix and have gradients, as in SAELens' own step.
    """

    def __init__(
        self, pairs: Pairs, acts: Tensor, make_pre: Callable[[], Tensor], **fields: Any
    ) -> None:
        """Take activations at pairs, a function that makes the pre-activations, and the rest."""
        self.pairs, self.acts, self.make_pre = pairs, acts, make_pre
        vars(self).update(fields, feature_acts=pairs.counted(acts.detach()), metrics={})

    @cached_property
    def hidden_pre(self) -> Tensor:  # type: ignore[override]
        """The pre-activations [B, d_sae]."""
        with torch.enable_grad():  # whoever looks first may not want gradients
            return self.make_pre()

    @cached_property
    def matrix(self) -> Tensor:
        """The activations [B, d_sae]."""
        with torch.enable_grad():
            return self.pairs.dense(self.acts)

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


def seen(output: TrainStepOutput) -> TrainStepOutput:
    """An output as plugins see it."""
    return output.seen if isinstance(output, FastOutput) else output
