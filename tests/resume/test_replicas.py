"""Replicas are compared to the bit, and what has drifted is named."""

from __future__ import annotations

from itertools import islice, permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.base.ranks import RankError, Ranks, join
from sae_plugins.framework.forked import on_ranks
from sae_plugins.framework.two_ranks import samples
from sae_plugins.resume.replicas import check_replicas, checksum
from sae_plugins.testing import D_IN, D_SAE, TOKENS, advance, tiny_sae, tiny_trainer

NAN, INF = torch.nan, torch.inf


class Keeps(Plugin):
    """Tracked state, state of its own, and a figure of a step."""

    name = "keeps"

    @hookimpl
    def attached(self, run: Any) -> None:
        self.mean = run.features.track(self, "mean", torch.zeros(D_SAE))
        self.count = torch.zeros(1, dtype=torch.int64)
        self.number, self.word, self.no_number = 1, "a", float("nan")
        self.places = [*range(100)]
        self.nested = {"rows": [1, torch.zeros(2), {"deep": (1.0, 2.0)}]}


class Watches(Keeps):
    name = "watches"
    observes_only = True


def trainer_of(*names: Any) -> Any:
    with plugins(*names, seed=0, data_shards=2):
        trainer: Any = tiny_trainer(tiny_sae("standard"), samples(D_IN, TOKENS))
    advance(trainer, islice(trainer.data_provider, 3))
    return trainer


def drift(trainer: Any, what: str) -> None:
    """Change the last bit of one number of it."""
    sae, keeps, watches = trainer.sae, *trainer.host.plugins[:2]
    moments = trainer.optimizer.state[sae.W_enc]
    plain = {
        "number": lambda: setattr(keeps, "number", 2),
        "word": lambda: setattr(keeps, "word", "b"),
        "list": lambda: keeps.places.__setitem__(70, 0),
        "nested": lambda: keeps.nested["rows"][2].update(deep=(1.0, 2.5)),
        "rate": lambda: trainer.optimizer.param_groups[0].update(lr=0.5),
        "updates": lambda: setattr(trainer.run, "updates", 5),
        "observer's word": lambda: setattr(watches, "word", "b"),
        "observer's line": lambda: trainer.run.summary.update(seconds=5.0),
    }
    if what in plain:
        plain[what]()
        return
    tensor = {
        "weight": sae.W_dec.data,
        "moment": moments["exp_avg_sq"],
        "counter": trainer.act_freq_scores,
        "tracked": keeps.mean,
        "kept": keeps.count,
        "observer": watches.count,
        "nothing": torch.zeros(1),
    }[what]
    whole = tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor
    whole.view(-1)[-1] += 1


NAMES = {
    "weight": "sae.W_dec is ",
    "moment": "exp_avg_sq is ",
    "counter": "counters.act_freq_scores is ",
    "tracked": "keeps",
    "kept": "plugins.keeps.count is ",
    "number": "plugins.keeps.number is 1 on rank 0 and 2 on rank 1",
    "word": "plugins.keeps.word is 'a' on rank 0 and 'b' on rank 1",
    "list": "plugins.keeps.places is ",
    "nested": "plugins.keeps.nested.rows.2.deep is (1.0, 2.0) on rank 0 and (1.0, 2.5) on rank 1",
    "rate": "optimizer.param_groups.0.lr is ",
    "updates": "run.updates is 3 on rank 0 and 5 on rank 1",
    "observer": None,
    "observer's word": None,
    "observer's line": None,
    "nothing": None,
}


def test_what_has_drifted_on_one_rank_is_named() -> None:
    def act() -> dict[str, Any]:
        ranks, found = join(30), {}
        for what in NAMES:
            trainers = [trainer_of(Keeps, Watches)]
            if ranks.rank:
                drift(trainers[0], what)
            try:
                check_replicas(trainers, ranks)
                found[what] = None
            except RankError as error:
                found[what] = (error.args, error.exit_code)
        return found

    first, second = on_ranks(2, act)
    for what, name in NAMES.items():
        if name is None:
            assert first[what] is second[what] is None, what
            continue
        (sentence,), _ = first[what]
        assert sentence.startswith("after step 3, what is trained (a plugin may draw from"), what
        assert name in sentence, (what, sentence)
        assert sentence.count(" on rank 0 and ") == 1, sentence
        assert second[what] == ((), first[what][1])


@pytest.mark.ci
def test_of_several_saes_the_number_is_told() -> None:
    def act() -> Any:
        ranks, trainers = join(30), [trainer_of(Keeps, Watches) for _ in range(2)]
        if ranks.rank:
            drift(trainers[1], "weight")
        with pytest.raises(RankError) as caught:
            check_replicas(trainers, ranks)
        return caught.value.args

    (sentence,), silent = on_ranks(2, act)
    assert "SAE 2, sae.W_dec is " in sentence
    assert "SAE 1" not in sentence
    assert silent == ()


def test_one_rank_has_nobody_to_differ_from() -> None:
    check_replicas([trainer_of(Keeps, Watches)], Ranks())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.eye(3), torch.eye(3)[[1, 0, 2]]),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])),
        (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).flip(0)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, INF])),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16) * 1.01),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.tensor([1 + 2j]), torch.tensor([2 + 1j])),
    ],
)
def test_a_checksum_tells_apart(one: torch.Tensor, other: torch.Tensor) -> None:
    assert checksum(one) == checksum(one.clone())
    assert checksum(one) != checksum(other)


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    place=st.integers(0, 10**6),
    bit=st.integers(0, 30),
)
def test_a_checksum_sees_every_bit(shape: list[int], place: int, bit: int) -> None:
    draw = torch.Generator().manual_seed(place)
    tensor = torch.randn(shape, generator=draw)
    before = checksum(tensor)
    if not tensor.numel():
        assert before == 0
        return
    bits = tensor.view(torch.int32).view(-1)
    bits[place % len(bits)] ^= 1 << bit
    assert checksum(tensor) != before


def test_every_permutation_of_rows_has_a_checksum_of_its_own() -> None:
    """Those that keep the sums of all rows and columns, too."""
    sums = {checksum(torch.eye(6)[list(order)]) for order in permutations(range(6))}
    assert len(sums) == 720


def test_nan_equals_itself_and_strides_do_not_count() -> None:
    nan = torch.full((3, 2), NAN)
    assert checksum(nan) == checksum(nan.clone())
    rows = torch.randn(4, 3)
    assert checksum(rows.T) == checksum(rows.T.contiguous())
    assert checksum(rows.T) != checksum(rows)
