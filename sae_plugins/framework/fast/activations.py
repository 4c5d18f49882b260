"""A training step of each architecture, written once for all pairs and for those that fire.

Each function is SAELens' `training_forward_pass` of its class: the same losses by the same names in
the same order, the same side effects.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.gated_sae import GatedTrainingSAE
from sae_lens.saes.jumprelu_sae import JumpReLU, JumpReLUTrainingSAE, Step
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from torch.linalg import vector_norm

from sae_plugins.framework.fast.choice import Choice
from sae_plugins.framework.fast.encoder import encode
from sae_plugins.framework.fast.output import FastOutput
from sae_plugins.framework.fast.pairs import Dense, Pairs, Sparse, above
from sae_plugins.framework.fast.topk import batch_top_k, top_k

Losses = dict[str, Tensor]


def standard(sae: Any, step_input: TrainStepInput, choice: Choice) -> FastOutput:
    """ReLU, and an L1 penalty weighted by the decoder's norms."""
    fires = partial(_fires, choice, step_input, 0.0, masked=False)
    pre, values, pairs = _encode(sae, step_input, sae.W_enc, sae.b_enc, fires)
    acts = values.relu()
    sae_out = pairs.times(acts, sae.W_dec) + sae.b_dec
    sums = pairs.token_sums(acts, vector_norm(sae.W_dec, dim=1))
    losses = {"l1_loss": (step_input.coefficients["l1"] * sums).mean()}
    return _output(sae, step_input, sae_out, losses, pairs, acts, lambda: pre)


def jumprelu(sae: Any, step_input: TrainStepInput, choice: Choice) -> FastOutput:
    """A threshold per feature, which learns from what is near it."""
    with torch.no_grad():
        sae.threshold.data.clamp_(min=0.0)
        least = sae.threshold - sae.bandwidth / 2
    fires = partial(_fires, choice, step_input, least, masked=False)
    pre, values, pairs = _encode(sae, step_input, sae.W_enc, sae.b_enc, fires)
    # SAELens' functions sum the thresholds' gradient over a first axis
    rows = values if isinstance(pairs, Dense) else values[None]
    threshold = pairs.by_feature(sae.threshold.to(values.dtype))
    shape = (threshold, sae.bandwidth, sae.cfg.jumprelu_ste_to_input)
    acts = JumpReLU.apply(rows, *shape).view_as(values)
    steps = Step.apply(rows, *shape).view_as(values)
    sae_out = pairs.times(acts, sae.W_dec) + sae.b_dec
    losses = {"l0_loss": (step_input.coefficients["l0"] * pairs.token_sums(steps)).mean()}
    return _output(sae, step_input, sae_out, losses, pairs, acts, lambda: pre)


def gated(sae: Any, step_input: TrainStepInput, choice: Choice) -> FastOutput:
    """Gates and magnitudes, which differ by a scale and a bias, of one product."""
    fires = partial(_fires, choice, step_input, 0.0, masked=True)
    pre, values, pairs = _encode(sae, step_input, sae.W_enc, sae.b_gate, fires)
    scale = sae.r_mag.exp()
    shift = sae.b_mag - sae.b_gate * scale
    acts = pairs.only((values * pairs.by_feature(scale) + pairs.by_feature(shift)).relu())
    gates = values.relu()
    sae_out = pairs.times(acts, sae.W_dec) + sae.b_dec
    via_gate = pairs.times(gates, sae.W_dec) + sae.b_dec
    sums = pairs.token_sums(gates, vector_norm(sae.W_dec, dim=1))
    losses = {
        "l1_loss": step_input.coefficients["l1"] * sums.mean(),
        "auxiliary_reconstruction_loss": (via_gate - step_input.sae_in).pow(2).sum(dim=-1).mean(),
    }
    return _output(sae, step_input, sae_out, losses, pairs, acts, lambda: pre * scale + shift)


def topk(sae: Any, step_input: TrainStepInput, choice: Choice) -> FastOutput:
    """The k largest of each token."""

    def largest(scaled: Tensor) -> Pairs:
        k = sae.activation_fn.k  # which a plugin may change as it goes
        indices = top_k(scaled, k)
        if choice.largest(scaled, k / scaled.shape[1]):
            return Sparse.of_rows(indices, scaled.shape[1])
        return Dense(torch.zeros_like(scaled).scatter_(1, indices, 1))

    return _topk(sae, step_input, largest)


def batchtopk(sae: Any, step_input: TrainStepInput, choice: Choice) -> FastOutput:
    """The largest of all tokens together, k per token on average."""

    def largest(scaled: Tensor) -> Pairs:
        k = sae.activation_fn.k
        flat = batch_top_k(scaled, int(k * len(scaled)))
        if choice.largest(scaled, k / scaled.shape[1]):
            return Sparse.of_flat(flat, scaled.shape)
        return Dense(torch.zeros_like(scaled).view(-1).index_fill_(0, flat, 1).view_as(scaled))

    output = _topk(sae, step_input, largest)
    sae.update_topk_threshold(output.acts)
    output.metrics["topk_threshold"] = sae.topk_threshold
    return output


STEPS: dict[type[Any], Callable[[Any, TrainStepInput, Choice], FastOutput]] = {
    StandardTrainingSAE: standard,
    JumpReLUTrainingSAE: jumprelu,
    GatedTrainingSAE: gated,
    TopKTrainingSAE: topk,
    BatchTopKTrainingSAE: batchtopk,
    MatryoshkaBatchTopKTrainingSAE: batchtopk,
}
"""The step of each of SAELens' classes that has a fast one."""


def _topk(sae: Any, step_input: TrainStepInput, largest: Callable[[Tensor], Pairs]) -> FastOutput:
    """The largest activations, scaled by the decoder's norms or not, and the dead ones' loss.

    In the reconstruction the norms cancel; to choose has no gradient. So only activations that a
    plugin looks at have one through the norms.
    """
    scale = vector_norm(sae.W_dec, dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None

    def scaled(pre: Tensor) -> Tensor:
        return pre if scale is None else pre * scale

    pre, values, pairs = _encode(
        sae, step_input, sae.W_enc, sae.b_enc, lambda pre: largest(scaled(pre).detach())
    )
    raw = pairs.only(values.relu())
    widths = getattr(sae.cfg, "matryoshka_widths", [])
    inner: Losses = {}
    if len(widths) > 1:
        parts = pairs.nested(raw, sae.W_dec, widths)
        *levels, sae_out = _RunningSums.apply(parts, sae.b_dec)
        for width, level in zip(widths, levels, strict=False):
            inner[f"inner_mse_loss_{width}"] = _mse(sae, step_input, level)
    else:
        sae_out = pairs.times(raw, sae.W_dec) + sae.b_dec
    losses = {"auxiliary_reconstruction_loss": _of_dead(sae, step_input, sae_out), **inner}
    acts = raw if scale is None else raw * pairs.by_feature(scale)
    return _output(sae, step_input, sae_out, losses, pairs, acts, lambda: scaled(pre))


def _of_dead(sae: Any, step_input: TrainStepInput, sae_out: Tensor) -> Tensor:
    """SAELens' auxiliary loss: the dead features' reconstruction of what the others leave."""
    mask, half = step_input.dead_neuron_mask, step_input.sae_in.shape[-1] // 2
    if mask is None or not mask.any():
        return sae_out.new_tensor(0.0)
    dead = mask.nonzero().squeeze(1)
    pre, *_ = _encode(sae, step_input, sae.W_enc[:, dead], sae.b_enc[dead])
    W, scaled = sae.W_dec[dead], pre.detach()
    if sae.cfg.rescale_acts_by_decoder_norm:
        scaled = scaled * vector_norm(W.detach(), dim=-1)
    chosen = scaled.topk(min(half, len(dead)), sorted=False).indices
    acts = torch.zeros_like(pre).scatter(-1, chosen, pre.gather(-1, chosen))
    residual = (step_input.sae_in - sae_out).detach()
    loss: Tensor = (acts @ W - residual).pow(2).sum(dim=-1).mean()
    weight: float = sae.cfg.aux_loss_coefficient * min(len(dead) / half, 1.0)
    return loss * weight


def _encode(
    sae: Any, step_input: TrainStepInput, W: Tensor, b: Tensor, *choose: Callable[[Tensor], Pairs]
) -> tuple[Tensor, Tensor, Pairs]:
    b_dec = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    return encode(step_input.sae_in.to(sae.dtype), W, b, b_dec, *choose)


def _fires(
    choice: Choice, step_input: TrainStepInput, bound: float | Tensor, pre: Tensor, masked: bool
) -> Pairs:
    step = step_input.n_training_steps
    return choice.pairs(pre, step, lambda: above(pre, bound), masked)


def _mse(sae: Any, step_input: TrainStepInput, sae_out: Tensor) -> Tensor:
    loss: Tensor = sae.mse_loss_fn(sae_out, step_input.sae_in).sum(dim=-1).mean()
    return loss


def _output(
    sae: Any,
    step_input: TrainStepInput,
    sae_out: Tensor,
    losses: Losses,
    pairs: Pairs,
    acts: Tensor,
    hidden_pre: Callable[[], Tensor],
) -> FastOutput:
    losses = {"mse_loss": _mse(sae, step_input, sae_out), **losses}
    return FastOutput(
        pairs,
        acts,
        hidden_pre,
        sae_in=step_input.sae_in,
        sae_out=sae_out,
        loss=sum(losses.values()),
        losses=losses,
    )


class _RunningSums(torch.autograd.Function):
    """What a vector [d] and the parts [levels, B, d] up to each level add up to."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, start: Tensor) -> Tensor:
        dtype = torch.promote_types(parts.dtype, start.dtype)  # bfloat16 is added up in float32
        sums = torch.empty_like(parts, dtype=dtype)
        for level, part in enumerate(parts):
            torch.add(part, sums[level - 1] if level else start, out=sums[level])
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        # torch's own gradient of a cumulative sum has three copies of it
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        for later, earlier in pairwise(reversed(gradient.unbind())):
            earlier += later
        return gradient, gradient[0].sum(0)
