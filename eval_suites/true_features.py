"""What an SAE has found of features that are known: counted on samples, feature by feature.

SAELens' own scores are means over latents, so that a dead latent, or a second one of the same
feature, moves them. These are means over the true features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

RECOVERED = 0.9
"""|cosine| with a decoder row above which a true feature is recovered."""
STANDS_IN = 0.4
"""How much of the parent, for 1 of the child, makes a child's latent stand in for the parent.

SAEBench's absorption asks the absorbing latent for as large a share of the probe's direction.
"""


def cosines(features: Tensor, decoder: Tensor) -> Tensor:
    """[n_features, d_sae], the |cosine| of each true feature with each decoder row.

    Either sign counts, as in SAELens' MCC.
    """
    from sae_lens.util import cosine_similarities

    return cosine_similarities(features, decoder).abs()


def share_recovered(similar: Tensor) -> float:
    """The share of true features with a decoder row above `RECOVERED`, by their `cosines`."""
    return float((similar.amax(dim=1) > RECOVERED).double().mean())


def matched_latents(similar: Tensor) -> Tensor:
    """[n_features], the latent of each true feature, one to one as in SAELens' MCC, by `cosines`.

    It is -1 where there are fewer latents than features.
    """
    from scipy.optimize import linear_sum_assignment

    features, latents = linear_sum_assignment(1 - similar.cpu().numpy())
    found = torch.full((len(similar),), -1)
    found[torch.as_tensor(features)] = torch.as_tensor(latents)
    return found


def edges(hierarchy: Any) -> list[tuple[int, int]]:
    """Parent and child of each pair in a hierarchy of SAELens, by their places among the features.

    A node without a feature only groups: its children are its parent's.
    """

    def below(parent: int | None, nodes: Sequence[Any]) -> Iterator[tuple[int, int]]:
        for node in nodes:
            own = node.feature_index
            if parent is not None and own is not None:
                yield parent, own
            yield from below(parent if own is None else own, node.children)

    return [] if hierarchy is None else [*below(None, hierarchy.roots)]


def parts_of_children(features: Tensor, rows: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """What decoder rows hold, read as sums of a parent, its child, and a rest.

    A child whose true direction is close to its parent's holds nothing of the parent by that alone.

    Args:
        features: [n_features, d_in].
        rows: [n_pairs, d_in], of the children's latents.
        pairs: [n_pairs, 2], parents and children among the features.

    Returns:
        [n_pairs], how much of the parent a row holds, for 1 of the child; and [n_pairs], the
        |cosine| of the child with the row without its parent.
    """
    parent, child = torch.nn.functional.normalize(features, dim=1)[pairs].unbind(dim=1)
    alike = (parent * child).sum(dim=1)
    on_parent, on_child = ((rows * feature).sum(dim=1) for feature in (parent, child))
    of_parent, of_child = on_parent - alike * on_child, on_child - alike * on_parent
    without = rows - (of_parent / (1 - alike.square()))[:, None] * parent
    return of_parent / of_child, torch.cosine_similarity(without, child, dim=1).abs()


class Counts:
    """How latents fire where the true features do that they are matched with."""

    def __init__(self, features: Tensor, decoder: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
        """Match latents [d_sae, d_in] with true features [n_features, d_in]; nothing is counted.

        Args:
            features: the true ones.
            decoder: decoder rows.
            pairs: parents and children among the features.
        """
        similar = cosines(features, decoder)
        self.recovered = share_recovered(similar)
        self.latents = matched_latents(similar)
        self.pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
        of_children = self.latents[self.pairs[:, 1]]
        shares, alike = parts_of_children(features, decoder[of_children], self.pairs)
        self.has_child = (of_children >= 0) & (alike > RECOVERED)
        self.stands_in = shares > STANDS_IN
        self.active, self.fired, self.both = torch.zeros(3, len(features), dtype=torch.float64)
        self.together, self.absorbed = torch.zeros(2, len(self.pairs), dtype=torch.float64)

    def add(self, acts: Tensor, codes: Tensor) -> None:
        """Count samples: true activations [n, n_features], and what the SAE encodes, [n, d_sae]."""
        active = acts > 0
        fires = (codes[:, self.latents] != 0) & (self.latents >= 0)
        for count, of in ((self.active, active), (self.fired, fires), (self.both, active & fires)):
            count += of.sum(dim=0)
        parents, children = self.pairs.unbind(dim=1)
        together = active[:, parents] & active[:, children]
        self.together += together.sum(dim=0)
        self.absorbed += (together & ~fires[:, parents] & fires[:, children]).sum(dim=0)

    def f1(self) -> tuple[float | None, int]:
        """The F1 of each feature's latent as its detector, mean over features, and their number.

        A feature without a latent has 0; one that was never active is left out.
        """
        known = self.active > 0
        found = 2 * self.both[known] / (self.active + self.fired)[known]
        return _mean(found), len(found)

    def absorption(self) -> tuple[float | None, int]:
        """How often a parent is absorbed by a child, mean over pairs, and their number.

        It is so where both are active, the parent's latent is silent, and that of the child fires
        and stands in: its decoder row holds the parent, too. Pairs whose child has no latent are
        left out, as nothing there could absorb; a latent is the child's where its decoder row, but
        for the parent in it, recovers the child.
        """
        known = (self.together > 0) & self.has_child
        found = (self.absorbed * self.stands_in)[known] / self.together[known]
        return _mean(found), len(found)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
