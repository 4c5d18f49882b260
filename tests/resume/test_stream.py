"""The stream's batches are those of SAELens' loader, and go on from a state as if never stopped."""

from __future__ import annotations

import copy
import gc
import json
import threading
import time
import warnings
from contextlib import closing
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sae_lens.training.prefetch import PrefetchingIterator
from stores import D_IN, HOOKS, PADDING, make_store
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import prefetched
from sae_plugins.base.torchvision import without_videos
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.resume.stream import Stream, batches


def make_stream(**fields: Any) -> Stream:
    return Stream(make_store(**fields), multi_hook=bool(fields.get("multi_hook")))


def tensors(batch: Any) -> list[torch.Tensor]:
    return list(batch.values()) if isinstance(batch, dict) else [batch]


def upstreams(n: int, **fields: Any) -> list[Any]:
    """The first `n` batches of SAELens' own loader, from torch's seed 0."""
    without_videos()  # a `Stream` does it itself
    torch.manual_seed(0)
    store = make_store(**fields)
    multi_hook = fields.get("multi_hook")
    loader = store.get_multi_hook_data_loader() if multi_hook else store.get_data_loader()
    return [next(loader) for _ in range(n)]


def same(got: Any, expected: Any) -> None:
    assert len(got) == len(expected)
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        if isinstance(other, dict):
            assert list(one) == list(other)
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b), f"batch {number} differs"
            assert a.stride() == b.stride()
            assert a.dtype == b.dtype
            assert not a.requires_grad


def on_disk(state: dict[str, Any], folder: Any) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    write_state(folder / "state.safetensors", state)
    return read_state(folder / "state.safetensors")


def pulls(stream: Stream, n: int) -> list[Any]:
    """Train on `n` batches."""
    batches = []
    for _ in range(n):
        batch = next(stream)
        stream.taken(tensors(batch)[-1])
        batches.append(batch)
    return batches


def pulled_ahead(stream: Stream, n: int) -> list[Any]:
    """Batches that another thread pulls, as SAELens' prefetching does."""
    batches: list[Any] = []
    thread = threading.Thread(target=lambda: batches.extend(next(stream) for _ in range(n)))
    thread.start()
    thread.join()
    return batches


def pulls_with_stops(stops: list[tuple[int, int]], n: int, folder: Any, **fields: Any) -> list[Any]:
    """As many batches as training takes, in a run that is stopped and resumed.

    Args:
        stops: after how many more batches each, and how many more were pulled but not taken.
        n: batches after the last stop.
        folder: for checkpoints.
        fields: of the store.
    """
    torch.manual_seed(0)
    stream, batches = make_stream(**fields), []
    for taken, untaken in stops:
        batches += pulls(stream, taken)
        waiting = pulled_ahead(stream, untaken)
        with stream.lock:
            state, random = on_disk(stream.state_dict(), folder), torch.get_rng_state()
        del waiting
        torch.manual_seed(99)
        stream = make_stream(**fields)
        stream.load_state_dict(state)
        torch.set_rng_state(random)
    return batches + pulls(stream, n)


@pytest.fixture(autouse=True)
def _silent() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All samples in the training dataset")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: Any) -> dict[str, str]:
    """Two datasets of cached activations: one, and one with other activations."""
    paths = {}
    for seed, name in enumerate(["this", "other"]):
        draw = torch.Generator().manual_seed(seed)
        activations = torch.randn(9, 4, D_IN, generator=draw)
        tokens = torch.randint(PADDING, 3, (9, 4), generator=draw)
        hook = next(iter(HOOKS))
        features = {
            hook: Array2D((4, D_IN), "float32"),
            "token_ids": Sequence(Value("int32"), length=4),
        }
        columns = {hook: activations.numpy(), "token_ids": tokens.numpy()}
        paths[name] = str(tmp_path_factory.mktemp("cached") / name)
        Dataset.from_dict(columns, features=Features(features)).save_to_disk(paths[name])
    return paths


STORES = st.fixed_dictionaries(
    {
        "raw": st.booleans(),
        "multi_hook": st.booleans(),
        "exclude": st.booleans(),
        "sequences": st.integers(6, 17),
        "n_batches_in_buffer": st.integers(2, 9),
        "store_batch_size_prompts": st.integers(1, 3),
        "train_batch_size_tokens": st.integers(1, 8),
        "activations_mixing_fraction": st.sampled_from([0, 0.25, 0.5, 0.9, 1]),
    }
)
STOPS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=3)
BRIEF = {"sequences": 6, "store_batch_size_prompts": 1, "train_batch_size_tokens": 5}


def stops_are_no_matter(
    folder: Any, fields: dict[str, Any], stops: list[tuple[int, int]], n: int
) -> None:
    expected = upstreams(sum(taken for taken, _ in stops) + n, **fields)
    same(pulls_with_stops(stops, n, folder, **fields), expected)


DRAWN = {"fields": STORES, "stops": STOPS, "n": st.integers(1, 15)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**DRAWN)
@example(fields={}, stops=[], n=60)
@example(fields={"activations_mixing_fraction": 0}, stops=[(3, 0), (1, 0)], n=20)
@example(fields={"activations_mixing_fraction": 1}, stops=[(3, 0), (1, 0)], n=20)
@example(fields={**BRIEF, "raw": True}, stops=[(40, 2), (1, 1), (0, 0), (0, 2)], n=20)
def test_a_run_with_stops_trains_on_the_batches_of_saelens(
    folder: Any, fields: dict[str, Any], stops: list[tuple[int, int]], n: int
) -> None:
    stops_are_no_matter(folder, fields, stops, n)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**DRAWN)
def test_runs_with_more_stops_train_on_the_batches_of_saelens(
    folder: Any, fields: dict[str, Any], stops: list[tuple[int, int]], n: int
) -> None:
    stops_are_no_matter(folder, fields, stops, n)


@pytest.mark.parametrize(
    "fields",
    [{}, {"raw": True, "exclude": True}, {"multi_hook": True}],
    ids=["tokens", "raw", "hooks"],
)
def test_stopping_after_any_batch(fields: dict[str, Any], folder: Any) -> None:
    fields = {"sequences": 7, **fields}
    expected = upstreams(32, **fields)  # four epochs
    for k in range(24):
        same(pulls_with_stops([(k, 0)], 32 - k, folder, **fields), expected)
        same(pulls_with_stops([(k, 0), (1, 0)], 31 - k, folder, **fields), expected)


@pytest.mark.parametrize("exclude", [False, True])
def test_cached_activations(exclude: bool, cached: Any, folder: Any) -> None:
    fields = {"cached": cached["this"], "exclude": exclude}
    expected = upstreams(20, **fields)
    for k in range(12):
        same(pulls_with_stops([(k, 1), (1, 0)], 19 - k, folder, **fields), expected)


def test_other_cached_activations_are_refused(cached: Any) -> None:
    stream = make_stream(cached=cached["this"])
    pulls(stream, 3)
    with pytest.raises(PluginError, match="cached activations are not those"):
        make_stream(cached=cached["other"]).load_state_dict(stream.state_dict())


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("multi_hook", [False, True])
def test_prefetching_with_stops(size: int, multi_hook: bool, folder: Any) -> None:
    """Norm estimation first, which takes batches without a word; then a slow training."""
    fields = {"multi_hook": multi_hook, "sequences": 30}
    expected = upstreams(60, **fields)
    state = random = None
    trained = 0
    for steps in (0, 3, 1, 17, 0, 9):
        torch.manual_seed(7 if random is not None else 0)
        stream = make_stream(**fields)
        if state is not None:
            stream.load_state_dict(state)
            torch.set_rng_state(random)
        source: Any = stream
        if not multi_hook:
            stream.store._dataloader = stream
            source = iter(stream.store)
        provider = PrefetchingIterator(source, prefetch=size)
        # Being alive means nothing: the thread keeps the last batch until it has pulled another.
        with closing(provider), prefetched(stream.whole):
            if state is None:
                estimated = [next(provider) for _ in range(10)]  # as the multi-SAE trainer does
            for _ in range(steps):
                batch = next(provider)
                same([batch], [expected[10 + trained]])
                time.sleep(0.002 * (trained % 3))
                for hook in tensors(batch):  # again, by a trainer each
                    stream.taken(hook)
                trained += 1
            with stream.lock:
                state, random = on_disk(stream.state_dict(), folder), torch.get_rng_state()
    assert len(estimated) == 10
    assert trained == 30


def test_on_the_embedded_world(folder: Any) -> None:
    model = world.load_hooked_transformer()
    fields = {
        "model": model,
        "text": world.load_text("train", 20),
        "raw": True,  # that is, with BOS
        "context_size": 24,
        "n_batches_in_buffer": 12,
        "store_batch_size_prompts": 3,
        "train_batch_size_tokens": 32,
        "hook_name": "blocks.0.hook_resid_post",
        "d_in": model.cfg.d_model,
    }
    expected = upstreams(90, **fields)  # more than an epoch
    same(pulls_with_stops([(20, 0), (3, 2), (50, 1)], 17, folder, **fields), expected)


def test_without_rows_the_buffer_is_filled_from_the_same_place_in_the_text(folder: Any) -> None:
    fields: dict[str, Any] = {"raw": True, "sequences": 40}
    stream = make_stream(**fields)
    pulls(stream, 9)
    state = on_disk(stream.state_dict(rows=False), folder)
    assert state.keys() == {"sequences", "n_dataset_processed", "last_sequence"}
    resumed = make_stream(**fields)
    resumed.load_state_dict(state)
    assert torch.equal(
        resumed.store.get_batch_tokens(), stream.store.get_batch_tokens()
    )  # whoever reads first finds the place
    assert resumed.store.n_dataset_processed == stream.store.n_dataset_processed
    assert resumed.state_dict(rows=False)["sequences"] == state["sequences"] + 2


def test_the_text_is_read_as_late_as_possible_and_without_the_model() -> None:
    stream = make_stream()
    pulls(stream, 4)
    state = stream.state_dict()
    resumed = make_stream()
    resumed.load_state_dict(state)
    undelivered = sum(map(len, state["undelivered"])) // 5
    assert undelivered
    position = {name: state[name] for name in ("sequences", "n_dataset_processed")}
    for _ in range(undelivered):
        again = resumed.state_dict()
        assert {name: again[name] for name in position} == position
        assert torch.equal(again["last_sequence"], state["last_sequence"])
        assert resumed.store.n_dataset_processed == position["n_dataset_processed"]
        pulls(resumed, 1)
    assert resumed.store.model.forwards == 0
    before = stream.store.model.forwards
    pulls(stream, undelivered + 1)
    pulls(resumed, 1)
    assert resumed.store.model.forwards == stream.store.model.forwards - before
    assert resumed.store.n_dataset_processed == stream.store.n_dataset_processed


@pytest.mark.parametrize(
    ("changed", "says"), [({"seed": 6}, "differs"), ({"sequences": 3}, "ends")]
)
@pytest.mark.parametrize("kept", [True, False])
def test_another_text_is_refused(changed: dict[str, Any], says: str, kept: bool) -> None:
    stream = make_stream(sequences=40)
    pulls(stream, 8)
    resumed = make_stream(**{"sequences": 40, **changed})
    resumed.load_state_dict(stream.state_dict(rows=kept))
    with pytest.raises(PluginError, match=f"not the one that the checkpoint .* it {says} before"):
        pulls(resumed, 9)


def test_a_shorter_text_is_refused_even_where_it_repeats_itself() -> None:
    repeated = [{"tokens": [7, 8, 9, 7]}] * 40
    stream = make_stream(text=repeated)
    pulls(stream, 8)
    resumed = make_stream(text=repeated[:3])
    resumed.load_state_dict(stream.state_dict())
    with pytest.raises(PluginError, match="it ends before"):
        pulls(resumed, 9)


def test_other_readers_of_the_text_count() -> None:
    """SAELens' evaluator reads on in the training text."""
    stream = make_stream(sequences=50)
    pulls(stream, 2)
    stream.store.get_batch_tokens(7)
    # the rows are views, which hold until the next pull
    state, random = copy.deepcopy(stream.state_dict()), torch.get_rng_state()
    expected = pulls(stream, 12)
    resumed = make_stream(sequences=50)
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    same(pulls(resumed, 12), expected)


def test_a_text_that_was_being_read_is_refused() -> None:
    store = make_store()
    store.get_batch_tokens()
    with pytest.raises(PluginError, match=r"build the runner .* inside"):
        Stream(store)


def test_a_state_is_loaded_first() -> None:
    stream = make_stream()
    state = stream.state_dict()
    position = {"sequences": 0, "n_dataset_processed": 0}
    assert state == {**position, "undelivered": [], "kept": None}
    stream.load_state_dict(state)
    pulls(stream, 1)
    state = stream.state_dict()
    assert len(state["undelivered"])
    with pytest.raises(RuntimeError, match="before the first batch"):
        stream.load_state_dict(state)
    resumed = make_stream()
    resumed.load_state_dict(state)
    pulls(resumed, 1)
    with pytest.raises(RuntimeError, match="before the first batch"):
        resumed.load_state_dict(state)


def test_an_interrupted_pull_leaves_no_exact_state() -> None:
    stream = make_stream(sequences=40)
    pulls(stream, 3)
    model = stream.store.model
    model.fails_at = model.forwards + 1
    with pytest.raises(KeyboardInterrupt):
        pulls(stream, 9)
    with pytest.raises(PluginError, match="interrupted while SAELens was preparing a batch"):
        stream.state_dict()
    assert stream.state_dict(rows=False)["sequences"] == 2 * model.forwards


def test_what_was_taken_and_what_is_gone_is_not_in_flight() -> None:
    stream = make_stream()

    def in_flight() -> int:
        return len(stream._in_flight.rows())

    estimated = pulled_ahead(stream, 3)
    assert in_flight() == 3
    del estimated[:]
    assert in_flight() == 0
    held = [next(stream) for _ in range(3)]  # by the training's own thread
    assert in_flight() == 0
    del held
    first, gone, second, third = pulled_ahead(stream, 4)
    del gone
    assert in_flight() == 3
    stream.taken(second)
    assert in_flight() == 1
    stream.taken(first)  # again, by another trainer
    stream.taken(third.clone())  # nobody's
    assert in_flight() == 1
    stream.taken(third)
    assert in_flight() == 0
    for _ in range(50):
        next(stream)
    assert len(stream._in_flight._delivered) <= 1


def test_of_a_dict_that_is_gone_one_tensor_may_live_on() -> None:
    stream = make_stream(multi_hook=True)
    remembered = next(iter(pulled_ahead(stream, 1)[0].values()))
    assert not stream._in_flight.rows()
    assert len(remembered)


def test_the_lock_waits_for_the_pull_of_another_thread() -> None:
    stream = make_stream()
    inside, go_on = threading.Event(), threading.Event()
    forward = stream.store.model.run_with_cache

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        go_on.wait()
        return forward(*args, **kwargs)

    stream.store.model.run_with_cache = slow
    thread = threading.Thread(target=lambda: next(stream))
    thread.start()
    inside.wait()
    assert not stream.lock.acquire(blocking=False)
    stream.taken(torch.zeros(1))  # training does not wait
    go_on.set()
    with stream.lock:
        assert stream.state_dict()["kept"] is not None
    thread.join()


def test_a_state_keeps_nothing_of_the_buffer_alive_and_copies_nothing_of_it() -> None:
    stream = make_stream()
    pulls(stream, 1)
    state = stream.state_dict()
    (undelivered,) = state["undelivered"]
    assert undelivered.untyped_storage().data_ptr() == state["kept"].untyped_storage().data_ptr()
    kept = TensorWeakRef(state["kept"])
    del undelivered, state
    gc.collect()
    assert kept() is None


def test_restored_rows_are_freed_when_they_are_served() -> None:
    stream = make_stream()
    pulls(stream, 1)
    resumed = make_stream()
    resumed.load_state_dict(copy.deepcopy(stream.state_dict()))
    ready = TensorWeakRef(resumed._mixer._ready[0])
    kept = TensorWeakRef(resumed._mixer._kept)
    pulls(resumed, 12)
    gc.collect()
    assert ready() is None
    assert kept() is None


class Operations(TorchDispatchMode):
    """Names of what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("multi_hook", [False, True])
def test_a_stream_does_nothing_that_batches_without_a_state_do_not(multi_hook: bool) -> None:
    names = []
    for make in (make_store, make_stream):
        made: Any = make(multi_hook=multi_hook, exclude=True)
        source = batches(made, multi_hook) if make is make_store else made
        with Operations() as operations:
            for _ in range(20):
                batch = next(source)
                if make is make_stream:
                    made.taken(tensors(batch)[0])
        names.append(operations.names)
    assert names[0]
    assert names[0] == names[1]


@pytest.mark.parametrize("multi_hook", [False, True])
@pytest.mark.parametrize("seqpos_slice", [(None,), (1, 3)])
@pytest.mark.parametrize("exclude", [False, True])
def test_the_buffer_has_room_for_what_a_store_gives(
    multi_hook: bool, seqpos_slice: Any, exclude: bool
) -> None:
    """It would copy itself to make room."""
    fields = {"multi_hook": multi_hook, "exclude": exclude, "seqpos_slice": seqpos_slice}
    expected = upstreams(40, **fields)
    torch.manual_seed(0)
    source: Any = batches(make_store(**fields), multi_hook)
    with Operations() as operations:
        same([next(source) for _ in range(40)], expected)
    assert operations.names.count("aten.new_empty.default") == 1


def test_the_buffer_has_room_for_cached_activations(cached: Any) -> None:
    fields = {"cached": cached["this"], "seqpos_slice": (1, 3)}  # which SAELens does not slice
    expected = upstreams(20, **fields)
    torch.manual_seed(0)
    source = batches(make_store(**fields), False)
    with Operations() as operations:
        same([next(source) for _ in range(20)], expected)
    assert operations.names.count("aten.new_empty.default") == 1


# -- what must be equal ------------------------------------------------------------------------


def test_facts_are_json_and_tell_every_difference(cached: Any) -> None:
    facts = make_stream().facts()
    assert json.loads(json.dumps(facts)) == facts
    assert make_stream().facts() == facts
    changes: dict[str, Any] = {
        "hooks": {"multi_hook": True},
        "store_batch_size_prompts": {"store_batch_size_prompts": 3},
        "train_batch_size_tokens": {"train_batch_size_tokens": 6},
        "n_batches_in_buffer": {"n_batches_in_buffer": 7},
        "activations_mixing_fraction": {"activations_mixing_fraction": 0.25},
        "exclude_special_tokens": {"exclude": True},
        "use_cached_activations": {"cached": cached["this"]},
        "context_size": {"context_size": 3},
        "prepend_bos": {"raw": True},
        "seqpos_slice": {"seqpos_slice": (1, None)},
        "sequence_separator_token": {"sequence_separator_token": "eos"},
        "disable_concat_sequences": {"disable_concat_sequences": True},
        "autocast_lm": {"autocast_lm": True},
        "model_kwargs": {"model_kwargs": {"start_at_layer": 1}},
    }
    for name, fields in changes.items():
        other = make_stream(**fields).facts()
        assert {fact for fact in facts if other[fact] != facts[fact]} == {name}
        assert json.loads(json.dumps(other)) == other
