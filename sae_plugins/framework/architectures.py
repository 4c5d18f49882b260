"""What the framework must know about each SAELens training architecture, in one table.

The names are those of SAELens' training registry. An architecture that is missing here, or a
parameter that is missing from its row, is an error and never guessed from shapes: b_dec [d_in] and
b_enc [d_sae] look alike when d_in equals d_sae.

A new architecture is a row here and one in `tests/expected.py`; then all tests of the contract and
of combinations run on it. `python -m sae_plugins.settings.introspection` writes its settings into
`sae_lens_flags.json`, and with that they are flags; one that has no meaning below 0 gets its bound
in `settings.values`, a coefficient of its own its two defaults in `settings.defaults`. Only if a
saved SAE of it holds thresholds in another place than a parameter `threshold`,
`mechanisms.activation_threshold.raise_thresholds` must know it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sae_plugins.base.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig


@dataclass(frozen=True)
class Architecture:
    """One training architecture.

    Attributes:
        name: SAELens' name.
        tiny: the configuration of the SAE of 24 features that tests train.
        keeps_thresholds: an SAE that is saved can hold a threshold per feature.
        biases: per-feature vectors [d_sae] and the value a reset gives them; a string names the
            config field that holds it.
        log_scales: biases that act through exp(), so that merging features averages them.
        tied: the encoder is a view of the decoder, so W_dec is the only weight matrix; W_enc can be
            read.
        shared: parameters and buffers without a feature axis.
        sparsity_coefficient: the coefficient of the sparsity loss, if any, as SAELens names it in
            the coefficients of a step: "l1" for `l1_coefficient`.
        weighs_tokens: whether that coefficient multiplies each token's loss before the mean over
            the batch, so that it may be a vector [B].
        signed: activations may be negative; a feature is active where it is not 0.
        batch_coupled: why accumulating micro-batches is not the same as one large batch, if it is
            not: the loss is no mean over tokens, or it depends on how long features have not fired,
            which SAELens counts in micro-batches.
        batch_coupled_by: the same, by the settings that make it so.
        ordered: the position of a feature has a meaning (prefixes are trained to reconstruct).
        k_per: what has k active features: each token, so that k is a whole number, or the tokens of
            a batch on average; None where there is no k.
        rescaled: activations are divided by the norm of the feature's decoder row.
        straight_through: activations of 0 have a gradient, too.
        sparse: `use_sparse_activations` makes the activations sparse tensors in training.
        fast: `--fast_step` has a step for it, in `framework.fast.activations`.
        calibrated: thresholds can take the place of a saved SAE's rule, and give it an L0.
    """

    name: str
    tiny: Mapping[str, Any]
    keeps_thresholds: bool
    biases: Mapping[str, float | str] = field(default_factory=lambda: {"b_enc": 0.0})
    log_scales: frozenset[str] = frozenset()
    tied: bool = False
    shared: frozenset[str] = frozenset({"b_dec"})
    sparsity_coefficient: str | None = None
    weighs_tokens: bool = False
    signed: bool = False
    batch_coupled: str | None = None
    batch_coupled_by: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = False
    k_per: Literal["token", "batch"] | None = None
    rescaled: bool = False
    straight_through: bool = False
    sparse: bool = False
    fast: bool = False
    calibrated: bool = False

    @property
    def feature_axes(self) -> dict[str, int]:
        """The axis of the features in each parameter that has one."""
        weights = {"W_dec": 0} if self.tied else {"W_enc": 1, "W_dec": 0}
        return weights | dict.fromkeys(self.biases, 0)

    @property
    def lacks_coefficient(self) -> str | None:
        """Why what scales the sparsity coefficient cannot work; None where there is one."""
        if self.sparsity_coefficient is None:
            return "they have no sparsity coefficient to scale"
        return None

    @property
    def lacks_k(self) -> str | None:
        """Why what multiplies k cannot work; None where there is one."""
        return "they have no k to multiply" if self.k_per is None else None


_DEAD = (
    "its auxiliary loss trains dead features, and those are the ones that have not fired for "
    "dead_feature_window micro-batches, on fewer tokens each; equal as long as no feature is dead"
)
_BATCH_TOPK = (
    "its k is shared by the whole batch, so each micro-batch chooses other features; and its "
    "auxiliary loss trains features that are dead, as counted in micro-batches"
)

ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "standard",
            {"l1_coefficient": 0.1},
            keeps_thresholds=True,
            sparsity_coefficient="l1",
            weighs_tokens=True,
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "gated",
            {"l1_coefficient": 0.1},
            keeps_thresholds=True,
            biases={"b_gate": 0.0, "b_mag": 0.0, "r_mag": 0.0},
            log_scales=frozenset({"r_mag"}),
            sparsity_coefficient="l1",
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "jumprelu",
            {"l0_coefficient": 0.02, "jumprelu_init_threshold": 0.1},
            keeps_thresholds=True,
            biases={"b_enc": 0.0, "threshold": "jumprelu_init_threshold"},
            sparsity_coefficient="l0",
            weighs_tokens=True,
            batch_coupled_by={"pre_act_loss_coefficient": _DEAD},
            straight_through=True,
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "topk",
            {"k": 4},
            keeps_thresholds=False,
            sparse=True,
            batch_coupled=_DEAD,
            k_per="token",
            rescaled=True,
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "abstopk",
            {"k": 4},
            keeps_thresholds=False,
            signed=True,
            batch_coupled=_DEAD,
            k_per="token",
            rescaled=True,
        ),
        Architecture(
            "batchtopk",
            {"k": 4},
            keeps_thresholds=True,
            shared=frozenset({"b_dec", "topk_threshold"}),
            batch_coupled=_BATCH_TOPK,
            k_per="batch",
            rescaled=True,
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "matryoshka_batchtopk",
            {"k": 4, "matryoshka_widths": [6, 14, 24]},
            keeps_thresholds=True,
            shared=frozenset({"b_dec", "topk_threshold"}),
            batch_coupled=_BATCH_TOPK,
            k_per="batch",
            ordered=True,
            rescaled=True,
            fast=True,
            calibrated=True,
        ),
        Architecture(
            "matching_pursuit",
            {"decoder_init_norm": 1.0, "max_iterations": 4},
            keeps_thresholds=False,
            biases={},
            tied=True,
        ),
    )
}


SHARING_A_THRESHOLD = tuple(n for n, row in ARCHITECTURES.items() if "topk_threshold" in row.shared)
"""Those with one threshold for all features, which follows the activations while they train."""

CALIBRATED = tuple(name for name, row in ARCHITECTURES.items() if row.calibrated)
"""Those whose saved SAE can be given an L0 by thresholds."""

HAVING_A_FAST_STEP = tuple(name for name, row in ARCHITECTURES.items() if row.fast)


def architecture(name: str) -> Architecture:
    """The row for SAELens' architecture `name`; a `PluginError` if there is none."""
    if name not in ARCHITECTURES:
        raise PluginError(
            f"unknown architecture {name!r}: {did_you_mean(name, ARCHITECTURES)}. A new SAELens "
            "architecture needs a row in sae_plugins.framework.architectures.ARCHITECTURES."
        )
    return ARCHITECTURES[name]


def architecture_of(sae: "TrainingSAE[TrainingSAEConfig]") -> Architecture:
    """The row for a SAE, checked against its parameters.

    Raises:
        PluginError: the SAE has a parameter or a buffer that the row does not name.
    """
    row = architecture(sae.cfg.architecture())
    present = {name for name, _ in (*sae.named_parameters(), *sae.named_buffers())}
    unknown = sorted(present - row.feature_axes.keys() - row.shared)
    missing = sorted(row.feature_axes.keys() - present)
    if unknown or missing:
        what = f"unknown parameters {unknown}" if unknown else f"no parameter {missing}"
        raise PluginError(
            f"the {row.name} SAE has {what}: add them to its row in "
            "sae_plugins.framework.architectures, with their feature axis"
        )
    return row


def prefix_groups(sae: "TrainingSAE[TrainingSAEConfig]") -> list[tuple[int, int]]:
    """Ranges [start, end) of positions that features may be exchanged within.

    One range for most architectures; one per nested prefix for Matryoshka SAEs, whose prefix
    losses depend on which features a prefix holds, but not on their order inside it.
    """
    ends = list(sae.cfg.matryoshka_widths) if hasattr(sae.cfg, "matryoshka_widths") else []
    ends = [*ends, sae.cfg.d_sae] if not ends or ends[-1] != sae.cfg.d_sae else ends
    return list(zip([0, *ends[:-1]], ends, strict=True))
