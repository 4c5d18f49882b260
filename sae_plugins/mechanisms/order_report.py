"""What HybridOrder reports of the feature order (sections 6.3 and 6.4), as measured here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_plugins.base.saelens import TRAINER_COUNTERS
from sae_plugins.framework.plugin import Stateful

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    from sae_plugins.framework.plugin import Plugin
    from sae_plugins.framework.run import Run

STABLE = 0.95
"""Rank correlation of two successive orders from which on the order counts as stable."""
MOVED = 0.01
"""Share of all positions from which on a move back and forth counts as an oscillation."""
RELATED = 0.3
"""|cos| of two decoder rows from which on two features count as related."""

MEANINGS = {
    "periodic": "reorderings that were due",
    "triggered": "reorderings because activity drifted",
    "variance": "of firing frequencies over the window, of which a drift is read",
    "threshold": "of the variance, above which features are reordered",
    "variance_of_count": "the variance of Eq. 1 of counts, as printed",
    "variance_of_frequency": "the variance of Eq. 1 of frequencies, as printed",
    "loss_before": "reconstruction loss of a batch right before a reordering",
    "loss_after": "reconstruction loss of the same batch right after it",
    "rank_correlation": "Spearman's, of positions before and after a reordering",
    "reorderings": "how many there were",
    "largest_loss_change": "by a reordering, relative",
    "order_stable_from_step": f"later orders correlate above {STABLE}",
    "oscillating_share": "features that still move back and forth",
    "features_firing_above_0.5": "on more than half of the tokens",
    "features_firing_below_0.01": "on less than 1% of the tokens",
    "related_neighbours": f"decoder |cos| above {RELATED}, share",
    "related_random_pairs": "the same of random pairs",
    "memory_ratio": "training state, over one without plugin",
}
"""What the report's metrics and lines are."""


def rank_correlation(order: Tensor) -> float:
    """Spearman's correlation between the positions [n] before and after a permutation."""
    n = len(order)
    if n < 2:
        return 1.0
    moved = (order.double() - torch.arange(n, device=order.device)).square().sum()
    return float(1 - 6 * moved / (n * (n**2 - 1)))


def oscillating_share(positions: Tensor) -> float | None:
    """Share of features whose last three moves alternate in direction, each of `MOVED` or more.

    `positions` [events, n] holds each feature's position after each event, features in a fixed
    order; None with fewer than four events.
    """
    if len(positions) < 4:
        return None
    moves = positions[-4:].double().diff(dim=0)
    large = (moves.abs() >= MOVED * positions.shape[1]).all(dim=0)
    alternating = (moves[1:].sign() * moves[:-1].sign() < 0).all(dim=0)
    return float((large & alternating).double().mean())


def related_share(rows: Tensor, left: Tensor, right: Tensor) -> float:
    """Share of the pairs (left [k], right [k]) of rows [n, d] with |cos| above `RELATED`."""
    cosine = torch.nn.functional.cosine_similarity(rows[left], rows[right], dim=-1)
    return float((cosine.abs() > RELATED).double().mean())


def reconstruction_loss(sae: TrainingSAE[Any], sae_in: Tensor) -> Tensor:
    """The loss that SAELens calls mse_loss, of inputs [B, d_in]."""
    sae_out = sae.decode(sae.encode(sae_in))
    return sae.mse_loss_fn(sae_out, sae_in).sum(dim=-1).mean()


class OrderReport(Stateful):
    """Collects one row per reordering, and the closing summary."""

    transient = ("owner",)

    def __init__(self, owner: Plugin, run: Run) -> None:
        """Track each feature's identity: its position when training began."""
        self.owner = owner
        identity = torch.arange(run.features.d_sae, device=run.sae.device)
        # a reset feature keeps its identity: it is the slot that is followed
        self.identity = run.features.track(owner, "identity", identity, reset=None)
        self.causes: list[str] = []
        self.steps: list[int] = []
        self.correlations: list[float] = []
        self.loss_changes: list[float] = []
        self.positions: deque[Tensor] = deque(maxlen=4)
        self._pending: tuple[Tensor, Tensor, str] | None = None

    def before(self, run: Run, sae_in: Tensor, cause: str) -> None:
        """A new order is being requested: measure the loss of this step's inputs."""
        self._pending = (sae_in, reconstruction_loss(run.sae, sae_in), cause)

    def again(self, run: Run) -> None:
        """Features were merged or reset first, which does change the loss: measure it again."""
        if self._pending is not None:
            self.before(run, self._pending[0], self._pending[2])

    def after(self, run: Run, order: Tensor) -> None:
        """The order has changed: measure the same inputs again."""
        if self._pending is None:
            return
        sae_in, loss_before, cause = self._pending
        self._pending = None
        loss_after = reconstruction_loss(run.sae, sae_in)
        change = float((loss_after - loss_before) / loss_before)
        self.causes.append(cause)
        self.steps.append(run.step)
        self.correlations.append(rank_correlation(order))
        self.loss_changes.append(change)
        self.positions.append(torch.argsort(self.identity).cpu())
        run.log(f"reorder/{cause}", 1)
        run.log("reorder/loss_before", loss_before)
        run.log("reorder/loss_after", loss_after)
        run.log("reorder/rank_correlation", self.correlations[-1])

    def summarise(self, run: Run, frequency: Tensor) -> None:
        """Write the closing lines, from the firing frequency [d_sae] of each feature."""
        unstable = [i for i, value in enumerate(self.correlations) if value < STABLE]
        stable = self.steps[unstable[-1] + 1 :] if unstable else self.steps
        left = torch.arange(run.features.d_sae - 1, device=run.sae.device)
        shuffled = torch.randperm(run.features.d_sae, generator=self.owner.rng).to(left.device)
        rows = run.sae.W_dec.detach()
        lines: dict[str, float | int | None] = {
            "reorderings": len(self.causes),
            "triggered": self.causes.count("triggered"),
            "largest_loss_change": max((abs(c) for c in self.loss_changes), default=None),
            "order_stable_from_step": stable[0] if stable else None,
            "oscillating_share": oscillating_share(torch.stack(list(self.positions)))
            if self.positions
            else None,
            "features_firing_above_0.5": int((frequency > 0.5).sum()),
            "features_firing_below_0.01": int((frequency < 0.01).sum()),
            "related_neighbours": related_share(rows, left, left + 1),
            "related_random_pairs": related_share(rows, shuffled[:-1], shuffled[1:]),
            "memory_ratio": memory_ratio(run, self.owner.name),
        }
        for name, value in lines.items():
            run.summarise(f"{self.owner.name}/{name}", value)
        run.sae.cfg.metadata.sae_plugins["reorderings"] = {
            "steps": self.steps,
            "causes": self.causes,
        }


def memory_ratio(run: Run, owner: str) -> float:
    """Bytes of the training state with the plugin's tensors, over those without.

    The training state is weights, gradients, Adam's moments and SAELens' counters; the peak of a
    step, activations included, is measured by `benchmarks/`.
    """
    weights = sum(p.numel() * p.element_size() for p in run.sae.parameters())
    own = counters = 0
    for entry in run.features.tracked():
        tensor = entry.get()
        size = tensor.numel() * tensor.element_size()
        own += size if entry.name.startswith(f"{owner}/") else 0
        counters += size if entry.name in TRAINER_COUNTERS else 0
    return (4 * weights + counters + own) / (4 * weights + counters)
