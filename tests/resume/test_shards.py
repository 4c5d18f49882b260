"""A text in shards gives the same batches on any number of ranks, each part of it once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, IterableDataset, Sequence, Value
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.prefetch import PrefetchingIterator
from stores import D_IN, HOOKS, make_store, rows

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import Ranks, join
from sae_plugins.base.saelens import prefetched
from sae_plugins.base.seeds import random_states
from sae_plugins.base.torchvision import without_videos
from sae_plugins.framework.forked import on_ranks
from sae_plugins.framework.two_ranks import samples
from sae_plugins.resume.division import check_buffer, check_shards, own_shards, shards_for
from sae_plugins.resume.shards import Shards, divided, part_of, split, stream_of
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.resume.stream import Stream
from sae_plugins.resume.synthetic_shards import SyntheticShards
from sae_plugins.testing import equal_values, train

V, STEPS = 4, 12
KINDS = ("tokens", "texts", "several hooks", "special tokens left out", "kept activations")


def activations(folder: Path) -> str:
    """A cache of SAELens' on disk: 48 rows of 4 positions."""
    (hook,) = list(HOOKS)[:1]
    features = Features(
        {hook: Array2D((4, D_IN), "float32"), "token_ids": Sequence(Value("int32"))}
    )
    draw = torch.Generator().manual_seed(1)
    found = {
        hook: torch.randn(48, 4, D_IN, generator=draw).tolist(),
        "token_ids": [[number] * 4 for number in range(48)],
    }
    Dataset.from_dict(found, features=features).save_to_disk(str(folder / "kept"))
    return str(folder / "kept")


def stored(kind: str, folder: Path) -> Any:
    fields: dict[str, Any] = {"train_batch_size_tokens": 8, "n_batches_in_buffer": 8}
    if kind == "kept activations":
        return make_store(**fields, cached=str(folder / "kept"), text=[])
    raw = kind == "texts"
    return make_store(
        **fields,
        text=Dataset.from_list(rows(60, raw)),
        raw=raw,
        multi_hook=kind == "several hooks",
        exclude=kind == "special tokens left out",
    )


def shards(kind: str, folder: Path, ranks: Ranks) -> Shards:
    return Shards(stored(kind, folder), V, 3, ranks, multi_hook=kind == "several hooks")


def plain(batch: Any) -> Any:
    """What can be sent from a process to another."""
    if isinstance(batch, dict):
        return {name: plain(rows) for name, rows in batch.items()}
    return batch.numpy().copy()


def everywhere(act: Callable[[Ranks], Any], *sizes: int) -> Any:
    """What all ranks have, of one and of so many; it must be the same."""
    (wanted,) = on_ranks(1, lambda: act(join(60)))
    for size in sizes:
        for rank, found in enumerate(on_ranks(size, lambda: act(join(60)))):
            assert equal_values(found, wanted), (size, rank)
    return wanted


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.ci)])
def test_any_number_of_ranks_has_the_same_batches(size: int, tmp_path: Path) -> None:
    activations(tmp_path)

    def act(ranks: Ranks) -> Any:
        found = {}
        for kind in KINDS:
            stream = shards(kind, tmp_path, ranks)
            found[kind] = [plain(next(stream)) for _ in range(STEPS)]
        return found

    found = everywhere(act, size)
    for kind, batches in found.items():
        first = batches[0]
        if kind == "several hooks":
            assert {hook: rows.shape for hook, rows in first.items()} == {
                hook: (8, d_in) for hook, d_in in HOOKS.items()
            }
        else:
            assert first.shape == (8, D_IN)
            flat = [tuple(row) for batch in batches for row in batch.tolist()]
            assert len({*flat}) > 30, kind


def goes_on(kind: str, folder: Path, *, ahead: int = 0) -> Callable[[Ranks], Any]:
    """Batches, of which a state is taken after 5 while so many wait, and those that follow."""

    def act(ranks: Ranks) -> Any:
        stream = shards(kind, folder, ranks)
        batches = [plain(next(stream)) for _ in range(5)]
        waiting: list[Any] = []
        thread = threading.Thread(target=lambda: waiting.extend(next(stream) for _ in range(ahead)))
        thread.start()
        thread.join()
        with stream.lock:
            for k, state in stream.state_dict().items():
                write_state(folder / f"{kind}-{k}", state)
        ranks.patiently()
        again = shards(kind, folder, ranks)
        again.load_state_dict({str(k): read_state(folder / f"{kind}-{k}") for k in again.own})
        ranks.patiently()
        following = [plain(next(again)) for _ in range(STEPS - 5)]
        late = [plain(stream.whole(rows)) for rows in waiting]
        late += [plain(next(stream)) for _ in range(STEPS - 5 - ahead)]
        return batches, following, late

    return act


@pytest.mark.parametrize(
    ("kind", "ahead", "sizes"),
    [
        ("tokens", 3, [2]),
        *(pytest.param(k, n, [2, 4], marks=pytest.mark.ci) for k in KINDS for n in (0, 2)),
    ],
)
def test_a_state_with_batches_in_flight_goes_on(
    kind: str, ahead: int, sizes: list[int], tmp_path: Path
) -> None:
    activations(tmp_path)
    _, following, late = everywhere(goes_on(kind, tmp_path, ahead=ahead), *sizes)
    assert equal_values(following, late)


@pytest.mark.parametrize("kind", ["several hooks", pytest.param("tokens", marks=pytest.mark.ci)])
def test_a_thread_that_reads_ahead_leaves_the_exchange_to_the_training(
    kind: str, tmp_path: Path
) -> None:
    def act(ranks: Ranks) -> Any:
        def read(ahead: int) -> list[Any]:
            stream = shards(kind, tmp_path, ranks)
            if not ahead:
                return [plain(next(stream)) for _ in range(STEPS)]
            provider: Any = PrefetchingIterator(stream, prefetch=ahead)
            with closing(provider), prefetched(stream.whole):
                return [plain(next(provider)) for _ in range(STEPS)]

        return [read(ahead) for ahead in (0, 3)]

    plainly, ahead = on_ranks(2, lambda: act(join(60)))[1]
    assert equal_values(plainly, ahead)


def test_a_batch_is_one_exchange_of_this_ranks_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> Any:
        import torch.distributed as dist

        ranks, counted = join(60), Counter[str]()
        sent: list[int] = []

        def watch(name: str) -> None:
            own = getattr(dist, name)

            def counting(*args: Any, **kwargs: Any) -> Any:
                counted[name] += 1
                sent.append(args[1].numel() if "into_tensor" in name else 0)
                return own(*args, **kwargs)

            setattr(dist, name, counting)

        for name in ("all_gather_into_tensor", "all_reduce", "all_gather_object", "barrier"):
            watch(name)
        stream = shards("tokens", Path(), ranks)
        for _ in range(STEPS):
            next(stream)
        return dict(counted), {*sent}

    for counted, sent in on_ranks(2, act):
        assert counted == {"all_gather_into_tensor": STEPS}
        assert sent == {8 // 2 * D_IN * 4}  # bytes of float32


@pytest.mark.parametrize("raw", [False, True])
def test_the_shards_are_all_of_the_text_and_disjoint(raw: bool) -> None:
    without_videos()
    store = make_store(text=Dataset.from_list(rows(61, raw)), raw=raw, train_batch_size_tokens=8)
    parts = [[*map(str, part_of(store, k, V).dataset)] for k in range(V)]
    assert Counter(row for part in parts for row in part) == Counter(map(str, store.dataset))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_epoch_reads_every_shard_once_before_it_begins_again() -> None:
    """The rows of an epoch's batches are those of the text, which has no two alike."""
    text = [{"tokens": [4 * n + i + 3 for i in range(4)]} for n in range(64)]
    store = make_store(
        text=Dataset.from_list(text),
        train_batch_size_tokens=32,
        n_batches_in_buffer=8,
        activations_mixing_fraction=0.0,
    )
    stream = Shards(store, V, 3, Ranks())
    epoch = torch.cat([next(stream) for _ in range(8)])
    assert len({*map(tuple, epoch.tolist())}) == len(epoch) == 256
    again = torch.cat([next(stream) for _ in range(8)])
    assert {*map(tuple, again.tolist())} == {*map(tuple, epoch.tolist())}


def streamed(files: int) -> IterableDataset:
    def read(names: list[int]) -> Iterator[dict[str, Any]]:
        for name in names:
            yield from ({"tokens": [name, row, 3, 4]} for row in range(5))

    return IterableDataset.from_generator(read, gen_kwargs={"names": [*range(files)]})


@pytest.mark.parametrize(("files", "warns"), [(8, False), (4, False), (6, True), (1, True)])
def test_a_stream_is_divided_by_files_or_row_by_row_with_a_warning(
    files: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="sae_plugins"):
        parts = [[tuple(r["tokens"]) for r in split(streamed(files), k, V)] for k in range(V)]
    everything = [tuple(row["tokens"]) for row in streamed(files)]
    assert sorted(row for part in parts for row in part) == sorted(everything)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warns
    if warns:
        assert f"the text has {files} file" in said[0]
        assert f"the {V} data shards" in said[0]


def test_one_shard_on_one_rank_is_what_it_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_gather_into_tensor", "all_reduce", "all_gather_object", "barrier"):
        monkeypatch.setattr(torch.distributed, name, None)
    assert type(stream_of(make_store(), 1, 3)) is Stream
    for provider in (iter([]), samples(8, 32)):
        assert divided(provider, 1, 3) is provider
    monkeypatch.setattr(SyntheticShards, "__init__", None)
    monkeypatch.setattr(Shards, "__init__", None)
    train("reorder", steps=3)


def test_samples_are_drawn_by_shard_and_leave_the_global_state_alone() -> None:
    def act(ranks: Ranks) -> Any:
        torch.manual_seed(0)
        before = random_states()
        drawn = SyntheticShards(samples(8, 32), V, 3, ranks)
        first = [plain(next(drawn)) for _ in range(3)]
        state = drawn.state_dict()
        following = [plain(next(drawn)) for _ in range(3)]
        again = SyntheticShards(samples(8, 32), V, 3, ranks)
        again.load_state_dict(state)
        assert equal_values([plain(next(again)) for _ in range(3)], following)
        assert equal_values(random_states(), before)
        assert {*state} == {str(k) for k in range(V)}
        return first, following

    first, _ = everywhere(act, 2)
    parts = [part.tobytes() for batch in first for part in batch.reshape(V, -1)]
    assert len({*parts}) == len(parts)


def test_shards_for_a_number_of_ranks() -> None:
    assert [shards_for(ranks) for ranks in (1, 2, 3, 4, 6, 8, 16)] == [1, 8, 3, 8, 6, 8, 16]
    assert [[*own_shards(8, Ranks(rank, 4))] for rank in (0, 3)] == [[0, 1], [6, 7]]


@pytest.mark.parametrize(
    ("count", "batch", "ranks", "message"),
    [
        (
            4,
            64,
            3,
            "4 data shards cannot be shared by 3 ranks: start as many as divide 4.*set .* to 3",
        ),
        (0, 64, 1, "data_shards is 0: give 1 or more"),
        (3, 64, 1, "a batch of 64 tokens cannot be shared by them.*such as 66"),
    ],
)
def test_what_does_not_divide_is_refused(count: int, batch: int, ranks: int, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_shards(count, batch, ranks)


@pytest.mark.parametrize(
    ("count", "prompts", "positions", "such"),
    [
        (6, 8, 16, "that 3 divides, such as 9"),
        (5, 8, 15, None),
        (8, 9, 12, "2 divides, such as 10"),
    ],
)
def test_a_buffer_is_shared_to_the_row(
    count: int, prompts: int, positions: int, such: str | None
) -> None:
    if such is None:
        return check_buffer(count, prompts, positions)
    with pytest.raises(PluginError, match=f"--data_shards {count}: a buffer of {prompts}.*{such}"):
        check_buffer(count, prompts, positions)
    return None


def test_a_store_whose_buffer_or_rows_do_not_suffice_is_refused(tmp_path: Path) -> None:
    activations(tmp_path)  # 48 rows
    with pytest.raises(PluginError, match="a buffer of 9 prompts of 4 tokens cannot be shared"):
        stream_of(make_store(train_batch_size_tokens=8, n_batches_in_buffer=9), 8, 3)
    fields: dict[str, Any] = {"train_batch_size_tokens": 32, "n_batches_in_buffer": 32}
    store = make_store(**fields, cached=str(tmp_path / "kept"), text=[])
    assert store.store_batch_size_prompts == 2
    assert next(stream_of(store, 16, 3)).shape == (32, D_IN)
    with pytest.raises(PluginError, match="the 48 rows of cached activations to train on"):
        stream_of(store, 32, 3)
    with pytest.raises(PluginError, match="data_shards 8: the text to train on has 5 row"):
        stream_of(make_store(**fields, text=Dataset.from_list(rows(5, False))), 8, 3)


def test_batches_of_somebodys_own_cannot_be_divided() -> None:
    with pytest.raises(PluginError, match="from a list_iterator, which nobody can divide"):
        divided(iter([torch.zeros(4, 8)]), 2, 3)
    drawn = divided(samples(8, 32), 2, 3)
    assert isinstance(drawn, SyntheticShards)
    assert isinstance(drawn, SyntheticActivationIterator)
    with pytest.raises(PluginError, match="a batch of 32"):
        divided(samples(8, 32), 3, 3)
