"""A threshold per feature that follows its firing: Dynamic Feature Disentanglement, Eq. 2.

The paper does not say what the threshold does. Here it gates activations, f 1[f > tau], with no
gradient of its own: passing one through the gate, or subtracting the threshold, were worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, warn_if_never
from sae_plugins.mechanisms.importance import column_sums

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

_AT_ONCE = 2**21
"""Numbers that are gated at once."""

Variance = Literal["bernoulli", "relative"]


def thresholds(base: Tensor | float, sensitivity: float, variance: Tensor) -> Tensor:
    """tau_i = tau_base (1 - beta var(freq(f_i))), Eq. 2, at least 0: [n] for variances [n]."""
    return (base * (1 - sensitivity * variance)).clamp_min(0)


def gate(feature_acts: Tensor, tau: Tensor) -> Tensor:
    """f 1[f > tau] of activations [B, n] for thresholds [n], compared in the activations' dtype.

    An activation of 0 keeps its gradient, from which a JumpReLU SAE's own thresholds learn.
    """
    gated: Tensor = _Gate.apply(feature_acts, tau.to(feature_acts.dtype))
    return gated


class _Gate(torch.autograd.Function):
    """The gate, whose mask is not kept: on a CPU, new memory costs more than it saves."""

    @staticmethod
    def forward(ctx: Any, acts: Tensor, tau: Tensor) -> Tensor:
        ctx.save_for_backward(acts, tau)
        return _where_open(acts, acts, tau)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _where_open(gradient, *ctx.saved_tensors), None


def _where_open(values: Tensor, acts: Tensor, tau: Tensor) -> Tensor:
    """Values [B, n] where the gate lets activations [B, n] through, else 0."""
    result = torch.empty_like(acts)
    size = max(1, _AT_ONCE // acts.shape[-1])
    for part, a, v in zip(*(t.split(size) for t in (result, acts, values)), strict=True):
        # masks as numbers take a CPU half the time
        torch.gt(a, tau, out=part)
        part += torch.le(a, 0, out=torch.empty_like(a))
        part *= v
    return result


def inexpressible(architecture: Architecture) -> str | None:
    """Why no SAELens inference SAE of this kind can hold a threshold per feature, if none can."""
    if not architecture.keeps_thresholds:
        return (
            "their inference SAE has no thresholds, so what is saved would not be what was "
            "trained; choose batchtopk, which is saved with thresholds"
        )
    return None


def refuse_whitening(run: Run) -> None:
    """Raise if the SAE's thresholds would have to be folded with a whitening."""
    if run.sae.cfg.normalize_activations == "covariance_whitening":
        raise PluginError(
            "normalize_activations = covariance_whitening: how it folds into thresholds is "
            "untested; choose expected_average_only_in"
        )


def folded_scale(run: Run, activation_scale: float | None) -> float:
    """What activations are divided by once the activation scale is folded into the weights.

    Only those that are multiplied by the norm of a decoder row, which the fold divides, change.
    """
    follows_decoder = getattr(run.sae.cfg, "rescale_acts_by_decoder_norm", False)
    return activation_scale if activation_scale and follows_decoder else 1.0


def raise_thresholds(weights: dict[str, Tensor], config: dict[str, Any], tau: Tensor) -> None:
    """Make an inference SAE let a feature through only above tau [n], its own rules besides.

    A standard SAE becomes a JumpReLU SAE, whose thresholds SAELens moves along when it folds
    decoder norms. JumpReLU SAEs, and with them those that SAELens saves as such, get the greater of
    both thresholds. A gated SAE's magnitude is (pi - b_gate) exp(r_mag) + b_mag, so it exceeds tau
    where its gate's pre-activation pi exceeds a number; the gate's bias sees to that, in bfloat16
    up to its rounding.
    """
    if "r_mag" in weights:
        mag = weights["b_mag"].double()
        bias = (mag - tau.to(mag)) * torch.exp(-weights["r_mag"].double())
        gate_bias = weights["b_gate"]
        weights["b_gate"] = torch.minimum(gate_bias, bias.to(gate_bias))
        return
    tau = tau.to(weights["b_enc"])
    if weights.keys() == {"W_enc", "b_enc", "W_dec", "b_dec"}:
        config["architecture"], weights["threshold"] = "jumprelu", tau
    else:
        own = weights["threshold"]
        weights["threshold"] = torch.maximum(own, tau.to(own))


class ActivationThreshold(Plugin):
    """Shut off activations below a threshold that depends on how steadily the feature fires.

    As printed, a varying feature's threshold is lower; a negative sensitivity raises it, as the
    paper's prose says. Frequencies are of activations before the gate. A feature that starts again,
    with small weights, has no threshold until its frequency is known, after 1 / (1 - decay) steps
    or a tenth of the run: it could never pass one, nor learn to.
    """

    name = "activation-threshold"
    meanings = {
        "shut": "share of positive activations that the thresholds set to zero",
        "mean": "mean threshold, in the units of the training",
        "least": "least threshold of the saved SAE",
        "greatest": "greatest threshold of the saved SAE",
    }
    requires = ("firing-frequency",)
    claims = ("activation_gate",)
    transient = ("ungated",)

    class Options(Plugin.Options):
        """The thresholds."""

        base: float = Field(0.3, ge=0, title="tau_base", description="threshold at no variance")
        unit: Literal["activation", "mean_active"] = Field(
            "activation",
            description="of the base: the activations' own, or their moving mean where they are "
            "not 0, over all features; the paper's 0.3 is about 0.06 of that mean",
        )
        sensitivity: float = Field(
            1.0,
            ge=-4,
            le=4,
            title="beta",
            description="to the variance; 0 is a constant threshold, below 0 variance raises it",
        )
        variance: Variance = Field(
            "bernoulli",
            title="var(freq)",
            description="p (1 - p) of the frequency p, or the variance of a step's frequency over "
            "p^2; unscaled, that is near 1e-5, as good as a sensitivity of 0",
        )
        start: Steps = Field(0, description="first step with the gate")

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """What is trained must be what is saved."""
        return inexpressible(architecture)

    @hookimpl
    def attached(self, run: Run) -> None:
        """Put the gate in place, open."""
        refuse_whitening(run)
        warn_if_never(run, self.name, self.options.start)
        size, device = run.features.d_sae, run.sae.device
        self.tau = run.features.track(self, "tau", torch.zeros(size, device=device))
        decay = run.plugin("firing-frequency").options.decay
        grace = min(1 / (1 - decay), 0.1 * run.total_steps)
        self.grace = run.features.track(
            self, "grace", torch.zeros(size, device=device), reset=grace
        )
        # moving sums over all features and tokens: of activations, and of how many are not 0
        self.active = torch.zeros(2, device=device)
        self.ungated: Tensor | None = None
        run.sae.hook_sae_acts_post.add_hook(self._gate, is_permanent=True)

    def _gate(self, tensor: Tensor, *, hook: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.ungated = tensor.detach()  # only of passes that train
        return gate(tensor, self.tau)

    @hookimpl
    def after_forward(self, run: Run) -> None:
        """Count what fired before the gate."""
        acts, self.ungated = self.ungated, None
        assert acts is not None
        firing = column_sums(acts, lambda chunk: chunk > 0).to(self.tau.dtype)
        run.plugin("firing-frequency").before_gate(firing)
        if self.options.unit == "mean_active":
            dtype = self.active.dtype
            sums = torch.stack([acts.sum(dim=0, dtype=dtype).sum(), firing.sum()])
            self.active.lerp_(sums, 1 - run.plugin("firing-frequency").options.decay)
        run.log(f"{self.name}/shut", lambda: 1 - run.firing_counts.sum() / firing.sum())

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Set the thresholds of the next step."""
        self.grace -= 1
        if run.step + 1 < self.options.start:
            return
        frequency, base = run.plugin("firing-frequency"), self.options.base
        relative = self.options.variance == "relative"
        variance = frequency.relative_variance() if relative else frequency.bernoulli_variance()
        unit: Tensor | float = 1.0
        if self.options.unit == "mean_active":
            unit = self.active[0] / self.active[1].clamp_min(torch.finfo(self.tau.dtype).tiny)
        tau = thresholds(base * unit, self.options.sensitivity, variance)
        self.tau.copy_(tau.masked_fill(self.grace > 0, 0))
        run.log(f"{self.name}/mean", self.tau.mean)

    @hookimpl
    def training_ended(self, run: Run, activation_scale: float | None) -> None:
        """Follow the activations when a scale is folded into the weights; summarise."""
        self.tau /= folded_scale(run, activation_scale)
        for name, value in (("least", self.tau.min()), ("greatest", self.tau.max())):
            run.summarise(f"{self.name}/{name}", float(value))

    @hookimpl
    def export_inference(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Give the inference SAE the thresholds."""
        raise_thresholds(weights, config, self.tau)
