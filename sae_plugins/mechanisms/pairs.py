"""The k pairs of features with the greatest |f_i.f_j|: exact, and never with n^2 memory.

Activations are [B, n]: B tokens, n features; f_i is a column. Three ways, of which the cheapest is
taken, from how many features fired on each token:

* Closed form, where no more than k pairs of features can have fired together: all are selected.
* Sparse, where few have: their products alone, by a sparse product.
* Streamed: tiles of the lower triangle of F^T F pass by, the features with the largest norms first.
  A buffer of 2k keeps the best products so far; the least of the best k is the bar for those that
  follow, so nothing is missed and no tile is computed twice. A tile's left side, the features with
  smaller norms, is taken as sparse where few of its entries are not 0.

The result depends neither on the way nor on the size of the tiles, but for rounding. Among products
that tie exactly at the bar, some are selected and some are not. Which ones may depend on where the
features stand; it repeats from run to run, and makes no difference to the sum.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae_plugins.mechanisms.importance import column_norms, column_sums

Way = Literal["sparse", "streamed"]

SPARSE_BELOW = 1 / 32
"""Share of nonzero entries below which a sparse product is the faster one (measured on a CPU)."""
SPARSE_WAY_BELOW = 1 / 20
"""The same for products of features that fired together, as a share of n^2."""
SPARSE_WAY_CAP = 2**24
"""Most such products, token by token: 40 bytes each."""
TILE = 2**23
"""Numbers in a tile."""


class Pairs(NamedTuple):
    """Pairs of features, and their products."""

    left: Tensor
    """[m], int32."""
    right: Tensor
    """[m], int32."""
    products: Tensor
    """f_left.f_right, [m], in the activations' dtype; none is 0."""


def co_activation(acts: Tensor, k: int, *, closed_form: bool = True, **how: Any) -> Tensor:
    """The sum of the k greatest |f_i.f_j| over i < j: a scalar, differentiable in `acts` [B, n].

    Which pairs these are is a constant to the gradient, and a product of 0 has none.

    Args:
        acts: in float32 or float64.
        k: a number of pairs; with fewer than k products that are not 0, all of them count.
        closed_form: allow it. It needs activations >= 0, and gives a gradient to entries that are
            not 0 alone, which is all of it except where an estimate passes straight through.
        how: to `top_pairs`.
    """
    meetings = _meetings(acts.detach())
    if closed_form and meetings <= k:
        return _sum_of_all_pairs(acts)
    how = {"way": _cheaper_way(meetings, acts.shape[1]), **how}
    total: Tensor = _SumOfPairs.apply(acts, *top_pairs(acts.detach(), k, **how))
    return total


@torch.no_grad()
def top_pairs(acts: Tensor, k: int, *, way: Way | None = None, tile: int = TILE) -> Pairs:
    """The k pairs with the greatest |f_i.f_j|, in no particular order; fewer if the rest are 0.

    Args:
        acts: [B, n], in float32 or float64.
        k: a number of pairs.
        way: None for the cheaper one.
        tile: numbers in a tile. The peak of memory is a copy of `acts`, 3k pairs and a few tiles.
    """
    if way is None:
        way = _cheaper_way(_meetings(acts), acts.shape[1])
    best = _Best(k, acts)
    if way == "sparse":
        entries = acts.to_sparse()
        with warnings.catch_warnings():  # of CSR, which torch uses inside
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            products = torch.sparse.mm(entries.t().coalesce(), entries)
        left, right = products.indices()
        once = (left < right) & (products.values() != 0)
        best.add(left[once], right[once], products.values()[once])
        return best.pairs()
    norms = column_norms(acts).cpu()
    norms, order = norms.sort(descending=True, stable=True)
    order = order[: int(norms.count_nonzero())]
    fired = column_sums(acts, _fired).cpu()[order]
    order = order.to(acts.device)
    ordered = acts.index_select(1, order)
    height, signed = _height(len(order), tile), bool(acts.amin() < 0)
    for start in range(0, len(order), height):
        block = ordered[:, start : start + height].contiguous()  # its transpose is read
        # |f_i.f_j| <= |f_i| |f_j|, and a little for rounding
        reach = int((norms[start] * norms * 1.0001 >= best.bar).sum())
        reach = min(reach, start + block.shape[1])
        if reach == 0:
            break
        if float(fired[start : start + height].sum()) < SPARSE_BELOW * block.numel():
            products = torch.sparse.mm(block.T.to_sparse(), ordered[:, :reach])
        else:
            products = block.T @ ordered[:, :reach]
        products[:, start:].tril_(-1)  # each pair once
        row, column = ((products.abs() if signed else products) > best.bar).nonzero().unbind(1)
        best.add(order[start + row], order[column], products[row, column])
    return best.pairs()


class _Best:
    """The k greatest of the products added so far, in a buffer of 2k and what came last."""

    def __init__(self, k: int, acts: Tensor) -> None:
        self.k, self.bar, self.count = k, 0.0, 0
        none = torch.empty(0, dtype=torch.int32, device=acts.device)
        self.parts = [Pairs(none, none, acts.new_empty(0))]

    def add(self, left: Tensor, right: Tensor, products: Tensor) -> None:
        self.parts.append(Pairs(left.int(), right.int(), products))
        self.count += len(products)
        if self.count > 2 * self.k:
            self.pairs()

    def pairs(self) -> Pairs:
        """Those that are left; raises the bar, which a product must exceed from now on."""
        left, right, products = map(torch.cat, zip(*self.parts, strict=True))
        if len(products) > self.k:
            greatest, kept = products.abs().topk(self.k, sorted=False)
            self.bar = float(greatest.min())
            left, right, products = left[kept], right[kept], products[kept]
        self.parts, self.count = [Pairs(left, right, products)], len(products)
        return self.parts[0]


class _SumOfPairs(torch.autograd.Function):
    """Sum of |products|, whose gradient in f_i is the sum of sign(f_i.f_j) f_j over partners j."""

    @staticmethod
    def forward(ctx: Any, acts: Tensor, left: Tensor, right: Tensor, products: Tensor) -> Tensor:
        ctx.save_for_backward(acts, left, right, products < 0)
        return products.abs().sum(dtype=torch.float64).to(acts.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _sums_of_partners(*ctx.saved_tensors).mul_(gradient), None, None, None


def _sums_of_partners(acts: Tensor, left: Tensor, right: Tensor, negative: Tensor) -> Tensor:
    """For every feature the sum of its partners' columns, with the products' signs: [B, n].

    In blocks of rows of the matrix of signs. Features with many partners come first, and most
    partners are among these, so a block is rather full up to some column, and empty beyond.
    """
    n = acts.shape[1]
    degree = torch.bincount(torch.cat([left, right]), minlength=n)
    order = degree.argsort(descending=True, stable=True)[: int(degree.count_nonzero())]
    place = torch.empty_like(degree)
    place[order] = torch.arange(len(order), device=order.device)
    one, other = place[left.long()], place[right.long()]
    # each pair in both directions, by row and column, with the sign in the last bit
    edges = torch.cat([one * n + other, other * n + one]) * 2 + negative.repeat(2)
    del one, other
    edges = edges.sort().values
    partners = acts.index_select(1, order).T.contiguous()
    sums = acts.new_zeros(n, len(acts))
    height = _height(len(order), TILE)
    starts = range(0, len(order), height)
    ends = [(start + height) * 2 * n for start in starts]
    sizes = torch.searchsorted(edges, torch.tensor(ends).to(edges)).diff(prepend=edges.new_zeros(1))
    for start, block in zip(starts, edges.split(sizes.tolist()), strict=True):
        row, column = block // (2 * n) - start, block // 2 % n
        signs = 1 - 2 * (block % 2).to(acts.dtype)
        rows, columns = min(height, len(order) - start), int(column.max()) + 1
        if len(block) >= SPARSE_BELOW * rows * columns:
            matrix = signs.new_zeros(rows, columns)
            matrix[row, column] = signs
            sums_of_block = matrix @ partners[:columns]
        else:
            firsts = torch.searchsorted(row, torch.arange(rows, device=row.device))
            sums_of_block = torch.nn.functional.embedding_bag(
                column, partners, firsts, mode="sum", per_sample_weights=signs
            )
        sums[order[start : start + height]] = sums_of_block
    del partners
    return sums.T.contiguous()  # as the activations' other gradients lie in memory


def _height(features: int, tile: int) -> int:
    """Rows of a tile, which are fewer than the features, so that less than all n^2 is computed."""
    return max(1, min(tile // max(1, features), max(64, features // 8)))


def _meetings(acts: Tensor) -> int:
    """How often two features fired on a token: the sum of L0 (L0 - 1) / 2 over tokens."""
    fired = torch.cat([_fired(chunk) @ chunk.new_ones(chunk.shape[1]) for chunk in acts.split(256)])
    return int((fired.double() * (fired - 1)).sum()) // 2


def _cheaper_way(meetings: int, features: int) -> Way:
    limit = min(SPARSE_WAY_BELOW * features**2, SPARSE_WAY_CAP)
    return "sparse" if meetings <= limit else "streamed"


def _sum_of_all_pairs(acts: Tensor) -> Tensor:
    """The sum of f_i.f_j over all i < j, of activations >= 0."""
    token, feature = acts.detach().nonzero(as_tuple=True)
    fired = acts[token, feature].double()  # differences of sums must be exact
    sums = fired.new_zeros(len(acts)).index_add(0, token, fired)
    return ((sums[token] - fired) * fired).sum().div(2).to(acts.dtype)


def _fired(acts: Tensor) -> Tensor:
    """1 where an activation is not 0, in its dtype, else 0."""
    return torch.ne(acts, 0, out=torch.empty_like(acts))
