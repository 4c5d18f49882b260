"""Our mixing buffer serves SAELens' batches, in time and memory that do not grow with its size."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sae_lens.training.mixing_buffer import mixing_buffer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_plugins.resume.mixing import MixingBuffer, most_rows


def rows(lengths: list[int], dtype: torch.dtype = torch.float32, shape: Any = (2,)) -> list[Any]:
    """Activations, numbered, that come so many at a time."""
    numbers = torch.arange(sum(lengths) * math.prod(shape)).view(-1, *shape)
    return list(numbers.to(dtype).split(lengths)) if lengths else []


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


def drawn(buffer: Iterator[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """All batches from torch's seed 3, and the random state after them."""
    torch.manual_seed(3)
    return list(buffer), torch.get_rng_state()


BUFFERS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 9),
        "more": st.integers(0, 30),  # than a batch
        "mix_fraction": st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1]),
        "lengths": st.integers(1, 13).flatmap(lambda n: st.lists(st.integers(0, n), max_size=50)),
    }
)


@settings(max_examples=150, deadline=None)
@given(fields=BUFFERS, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
@example(
    fields={"batch_size": 4, "more": 0, "mix_fraction": 1, "lengths": [9] * 20},
    dtype=torch.float16,
)
def test_the_batches_and_random_numbers_are_those_of_saelens(
    fields: dict[str, Any], dtype: torch.dtype
) -> None:
    batch, mix, lengths = fields["batch_size"], fields["mix_fraction"], fields["lengths"]
    size, largest = batch + fields["more"], max(lengths, default=0)
    expected, random = drawn(mixing_buffer(size, batch, iter(rows(lengths, dtype)), mix))
    buffer = MixingBuffer(size, batch, rows(lengths, dtype), mix, largest)
    got, state = drawn(buffer)
    assert same(got, expected)
    assert torch.equal(state, random)
    if lengths:
        assert buffer._rows is not None
        assert len(buffer._rows) == most_rows(size, batch, mix, largest)
    # it grows where more rows come than it was told
    got, state = drawn(MixingBuffer(size, batch, rows(lengths, dtype), mix))
    assert same(got, expected)
    assert torch.equal(state, random)


@settings(max_examples=100, deadline=None)
@given(fields=BUFFERS, stops=st.sets(st.integers(0, 40), max_size=4))
def test_one_that_is_stopped_goes_on_from_its_state(
    fields: dict[str, Any], stops: set[int]
) -> None:
    batch, mix, lengths = fields["batch_size"], fields["mix_fraction"], fields["lengths"]
    size, largest = batch + fields["more"], max(lengths, default=0)
    expected, _ = drawn(mixing_buffer(size, batch, iter(rows(lengths)), mix))
    torch.manual_seed(3)
    activations = iter(rows(lengths))
    buffer, got = MixingBuffer(size, batch, activations, mix, largest), []
    for number in range(len(expected)):
        if number in stops:
            undelivered, kept = buffer.state()
            # the other one shares no memory with it
            undelivered = [each.clone() for each in undelivered]
            kept = None if kept is None else kept.clone()
            buffer = MixingBuffer(size, batch, activations, mix, largest)
            buffer.load(undelivered, kept, torch.device("cpu"))
        if number + 1 in stops:
            buffer.state()  # looking at it changes nothing
        got.append(next(buffer))
    assert same(got, expected)


@pytest.mark.parametrize("mix", [0, 0.5, 1])
def test_its_state_is_what_checkpoints_of_earlier_versions_hold(mix: float) -> None:
    """They took it from the variables of SAELens' generator."""
    theirs: Any = inspect.unwrap(mixing_buffer)(30, 4, iter(rows([7] * 40)), mix)
    torch.manual_seed(3)
    batches, states = [], []
    for batch in theirs:
        batches.append(batch)
        variables = inspect.getgeneratorlocals(theirs)
        if "remaining_batches" not in variables:
            served = (variables["batch_idx"] + 1) * 4
            states.append((variables["serving_buffer"][served:], variables["storage_buffer"]))
    torch.manual_seed(3)
    ours = MixingBuffer(30, 4, rows([7] * 40), mix, 7)
    assert len(states) > 40
    for number, (undelivered, kept) in enumerate(states):
        assert torch.equal(next(ours), batches[number])
        found, mixed = ours.state()
        assert same(found, [undelivered] if len(undelivered) else [])
        assert mixed is not None
        assert torch.equal(mixed, kept)


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    expected, _ = drawn(mixing_buffer(9, 4, iter(rows([5] * 9, shape=shape))))
    got, _ = drawn(MixingBuffer(9, 4, rows([5] * 9, shape=shape), largest=5))
    assert same(got, expected)


def test_a_batch_is_its_owners_and_nothing_comes_with_a_gradient() -> None:
    activations = [part.requires_grad_() for part in rows([5] * 9)]
    buffer = MixingBuffer(9, 4, activations, largest=5)
    first = next(buffer)
    as_it_came = first.clone()
    assert not first.requires_grad
    assert first.untyped_storage().nbytes() == first.numel() * first.itemsize
    list(buffer)
    assert torch.equal(first, as_it_came)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 3}, "Buffer size must be greater than or equal to batch size"),
        ({"mix_fraction": 1.5}, "mix_fraction must be in"),
        ({"mix_fraction": -0.1}, "mix_fraction must be in"),
    ],
)
def test_what_saelens_refuses(fields: dict[str, Any], says: str) -> None:
    given = {"size": 8, "mix_fraction": 0.5, **fields}
    with pytest.raises(ValueError, match=says):
        next(mixing_buffer(given["size"], 4, iter([]), given["mix_fraction"]))
    with pytest.raises(ValueError, match=says):
        MixingBuffer(batch_size=4, activations=[], **given)


class Allocated(TorchDispatchMode):
    """Bytes of memory that operations take for activations, and the bytes that they move."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[tuple[str, int]] = []
        self.moved = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        known = {a.untyped_storage().data_ptr() for a in tree_leaves(args) if torch.is_tensor(a)}
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        for tensor in tree_leaves(made):
            if not torch.is_tensor(tensor) or not tensor.is_floating_point():
                continue
            if tensor.untyped_storage().data_ptr() not in known:
                self.bytes.append((name, tensor.numel() * tensor.itemsize))
            if name not in ("new_empty", "split"):  # which move nothing
                changed = args[3] if name == "index_copy_" else tensor
                self.moved += changed.numel() * tensor.itemsize
        return made


@pytest.mark.parametrize("contexts", [16, 256])
def test_each_activation_is_written_once_and_read_once_at_any_size(contexts: int) -> None:
    batch, each, size = 32, 40, 32 * contexts
    activations = rows([each] * (3 * size // each), shape=(64,))
    row = 64 * 4
    with Allocated() as memory:
        buffer = MixingBuffer(size, batch, activations, 0.5, each)
        served = sum(len(rows) for rows in buffer)
    came = each * len(activations)
    room = most_rows(size, batch, 0.5, each)
    assert came - served < batch
    assert memory.bytes[0] == ("new_empty", room * row)
    assert memory.bytes[1:] == [("index_select", batch * row)] * (served // batch)
    assert memory.moved == (came + served) * row
    assert room < size + each


def test_a_state_is_made_without_a_copy_of_the_buffer() -> None:
    size, each, row = 32 * 256, 40, 64 * 4
    buffer = MixingBuffer(size, 32, rows([each] * 800, shape=(64,)), 0.5, each)
    for _ in range(300):
        next(buffer)
    assert buffer._rows is not None
    place = buffer._rows.untyped_storage().data_ptr()
    with Allocated() as memory:
        undelivered, kept = buffer.state()
    assert kept is not None
    assert len(kept) + sum(map(len, undelivered)) > size / 2
    assert {part.untyped_storage().data_ptr() for part in [*undelivered, kept]} == {place}
    assert max(count for _, count in memory.bytes) == 32 * row  # a batch at a time
