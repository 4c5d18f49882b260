"""SAELens' synthetic models by name, with known features."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens.synthetic import LowRankCorrelationMatrix, SyntheticModel, SyntheticModelConfig


SYNTHETIC = "synthetic:"
"""How the names of synthetic models begin."""


def toy(device: str = "cpu") -> SyntheticModel:
    """96 features in 48 dimensions: 16 parents with 3 children each, and 32 that stand alone.

    A child fires only where its parent does, and never together with a sibling: the bait for
    absorption. Parents fire on 17 to 20% of samples, a third of the times with a child; those that
    stand alone on 2 to 8%. The first 16 of these are 8 pairs: where one fires, the other one does
    in six of ten cases. It is the toy of the project's studies.
    """
    import torch
    from sae_lens.synthetic import (
        HierarchyConfig,
        LinearFiringProbabilityConfig,
        LowRankCorrelationMatrix,
        OrthogonalizationConfig,
        SyntheticModelConfig,
    )

    config = SyntheticModelConfig(
        num_features=96,
        hidden_dim=48,
        # parents first, then children, whose probabilities are those given their parent
        firing_probability=LinearFiringProbabilityConfig(max_prob=0.2, min_prob=0.02),
        hierarchy=HierarchyConfig(
            total_root_nodes=16, branching_factor=3, max_depth=1, mutually_exclusive_portion=1.0
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100),
        mean_firing_magnitudes=1.0,
        std_firing_magnitudes=0.3,
        bias=False,
        seed=0,
    )
    # SAELens' config has random correlations of all features only; its model takes a matrix
    factor = torch.zeros(96, 8, device=device)
    pair = torch.arange(8)
    factor[64 + 2 * pair, pair] = factor[65 + 2 * pair, pair] = 0.9**0.5
    return _build(config, device, LowRankCorrelationMatrix(factor, 1 - factor.square().sum(dim=1)))


def small(device: str = "cpu") -> SyntheticModel:
    """256 independent features in 64 dimensions, whose frequencies follow Zipf's law."""
    from sae_lens.synthetic import (
        OrthogonalizationConfig,
        SyntheticModelConfig,
        ZipfianFiringProbabilityConfig,
    )

    config = SyntheticModelConfig(
        num_features=256,
        hidden_dim=64,
        firing_probability=ZipfianFiringProbabilityConfig(max_prob=0.3, min_prob=0.005),
        orthogonalization=OrthogonalizationConfig(num_steps=100),
        mean_firing_magnitudes=1.0,
        std_firing_magnitudes=0.2,
        bias=False,
        seed=0,
    )
    return _build(config, device)


def _build(
    config: SyntheticModelConfig, device: str, correlation: LowRankCorrelationMatrix | None = None
) -> SyntheticModel:
    """SAELens' model, without the progress bar that it draws for every one."""
    from sae_lens.synthetic import SyntheticModel

    with contextlib.redirect_stderr(io.StringIO()):
        return SyntheticModel(config, correlation_matrix=correlation, device=device)


SYNTHETIC_MODELS: dict[str, Callable[[str], SyntheticModel]] = {"toy": toy, "small": small}
"""Synthetic models by name. Their own seed is fixed; `--seed` is the training's."""


@functools.cache
def synthetic_model(preset: str, device: str) -> SyntheticModel:
    """The model of a preset, made once, which takes seconds."""
    return SYNTHETIC_MODELS[preset](device)
