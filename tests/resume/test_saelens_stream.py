"""One test per seam of SAELens that `sae_plugins.resume.stream` relies on."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features
from sae_lens.training import activations_store
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.prefetch import PrefetchingIterator

from sae_plugins.base.torchvision import without_videos


def seam(beginning: str) -> Callable[[Any], Any]:
    """Name the entry of the list in `sae_plugins.base.saelens`, by its beginning."""
    return lambda test: test


HOOK = "blocks.0.hook_resid_post"
D_IN, CONTEXT = 2, 3


class Model(torch.nn.Module):
    """Gives each token's number, times 1 and 2, and at a second hook times 3."""

    def __init__(self) -> None:
        super().__init__()
        self.W_E = torch.nn.Parameter(torch.zeros(1))

    def run_with_cache(self, tokens: Any, names_filter: Any, **_: Any) -> Any:
        numbers = tokens[..., None].float()
        given = [torch.cat([numbers, 2 * numbers], dim=2), 3 * numbers]
        return None, dict(zip(names_filter, given, strict=False))


def fields(sequences: int) -> dict[str, Any]:
    tokens = torch.arange(sequences * CONTEXT).view(sequences, CONTEXT).tolist()
    return {
        "model": Model(),
        "dataset": [{"tokens": row} for row in tokens],
        "streaming": False,
        "context_size": CONTEXT,
        "n_batches_in_buffer": 4,
        "total_training_tokens": 10,
        "store_batch_size_prompts": 2,
        "train_batch_size_tokens": 5,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
    }


def store(sequences: int = 5, **changed: Any) -> ActivationsStore:
    given = {"hook_name": HOOK, "hook_head_index": None, "d_in": D_IN, **fields(sequences)}
    return ActivationsStore(**(given | changed))


def called_with(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Any]:
    """The keyword arguments of the next call of a function that the store's module imports."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(activations_store, name, lambda **kwargs: seen.update(kwargs))
    return seen


@seam("`mixing_buffer`")
def test_the_mixing_buffers_arguments() -> None:
    """`test_mixing.py` compares its batches and random numbers with ours."""
    assert list(inspect.signature(mixing_buffer).parameters) == [
        "buffer_size",
        "batch_size",
        "activations_loader",
        "mix_fraction",
    ]


@seam("`ActivationsStore.get_data_loader()`")
def test_the_loader_mixes_the_filtered_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = called_with(monkeypatch, "mixing_buffer")
    made = store(activations_mixing_fraction=0.25, seqpos_slice=(1, None))
    made.get_data_loader()
    loader = seen.pop("activations_loader")
    assert seen == {"buffer_size": 4 * (CONTEXT - 1), "batch_size": 5, "mix_fraction": 0.25}
    assert made.training_context_size == CONTEXT - 1
    assert loader.__qualname__ == "ActivationsStore._iterate_filtered_activations"


@seam("`ActivationsStore.get_multi_hook_data_loader()`")
def test_the_multi_hook_loader_packs_hooks_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = {HOOK: 2, "blocks.1.hook_in": 1}
    made = ActivationsStore.from_config_multi_hook(
        hook_names=list(hooks), hook_d_ins=hooks, hook_head_indices={HOOK: None}, **fields(20)
    )
    assert (made._hook_names, made._hook_d_ins) == (list(hooks), hooks)
    assert made._hook_head_indices == {HOOK: None}
    for batch in (next(made.get_multi_hook_data_loader()) for _ in range(3)):
        assert list(batch) == list(hooks)
        first, second = batch.values()
        assert (first[:, 1:] * 3 == second * 2).all()  # of the same token
        assert first._base is second._base  # views of one packed batch
        assert first._base.shape[1] == 3
    seen = called_with(monkeypatch, "multi_hook_concat_split_iter")
    made.get_multi_hook_data_loader()
    loader = seen.pop("activations_loader")
    assert loader.__qualname__ == "ActivationsStore._iterate_filtered_multi_hook_activations"
    assert seen == {
        "buffer_size": 4 * CONTEXT,
        "batch_size": 5,
        "hook_names": list(hooks),
        "mix_fraction": 0.5,
    }


@seam("`ActivationsStore._dataloader`")
def test_the_store_makes_its_loader_at_the_first_batch_and_pulls_from_it() -> None:
    made = store()
    assert made._dataloader is None
    assert iter(made) is made
    made.get_data_loader = lambda: iter(["a", "b"])  # type: ignore[method-assign]
    assert [next(made), made.next_batch()] == ["a", "b"]


@seam("`ActivationsStore.iterable_sequences`")
def test_all_text_is_read_through_one_generator_which_each_epoch_makes_anew() -> None:
    made = store(sequences=5)
    sequences = made.iterable_sequences
    assert inspect.getgeneratorstate(sequences) == inspect.GEN_CREATED
    begin, begun = made._iterate_tokenized_sequences, []

    def beginning() -> Any:
        begun.append(made.n_dataset_processed)
        return begin()

    made._iterate_tokenized_sequences = beginning  # type: ignore[method-assign]
    activations = made._iterate_filtered_activations()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = [next(activations)[:, 0].tolist() for _ in range(3)]
    # the fifth sequence is alone in its batch, and dropped
    assert read == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]]
    assert begun == [5]
    assert inspect.getgeneratorstate(sequences) == inspect.GEN_CLOSED
    assert made.n_dataset_processed == 6  # the last one counts when the next one is read
    made.iterable_sequences = iter([torch.zeros(CONTEXT)] * 2)  # type: ignore[assignment]
    assert made.get_batch_tokens().shape == (2, CONTEXT)


@seam("`ActivationsStore.load`")
def test_saelens_own_fast_forward_stays_where_the_count_is_right(tmp_path: Any) -> None:
    made = store()
    made.get_batch_tokens()
    made.save_to_checkpoint(tmp_path)
    other = store()
    other.n_dataset_processed = made.n_dataset_processed
    other.load_from_checkpoint(tmp_path)
    assert inspect.getgeneratorstate(other.iterable_sequences) == inspect.GEN_CREATED


@seam("`ActivationsStore.current_row_idx`")
def test_cached_activations_are_read_by_row(tmp_path: Any) -> None:
    without_videos()
    rows = torch.arange(5 * CONTEXT * D_IN).view(5, CONTEXT, D_IN).float()
    features = Features({HOOK: Array2D((CONTEXT, D_IN), "float32")})
    Dataset.from_dict({HOOK: rows.numpy()}, features=features).save_to_disk(tmp_path / "cached")
    made = store(dataset=None, cached_activations_path=str(tmp_path / "cached"))
    assert not hasattr(made, "iterable_sequences")
    assert made.cached_activation_dataset is not None
    assert made.current_row_idx == 0
    made.current_row_idx = 2
    assert torch.equal(made.get_filtered_llm_batch(), rows[2:4].flatten(0, 1))
    assert made.current_row_idx == 4
    assert torch.equal(made.cached_activation_dataset[3:4][HOOK], rows[3:4])
    with pytest.raises(StopIteration):
        made.get_filtered_llm_batch(raise_on_epoch_end=True)
    assert made.current_row_idx == 0


@seam("`PrefetchingIterator`")
def test_prefetching_hands_on_the_very_objects_in_order() -> None:
    pulled_by = set()

    def batches() -> Any:
        for i in range(6):
            pulled_by.add(threading.current_thread())
            pulled.append(torch.full((1,), float(i)))
            yield pulled[-1]

    pulled: list[Any] = []
    provider = PrefetchingIterator(batches(), prefetch=2)
    got = list(provider)
    assert list(map(id, got)) == list(map(id, pulled))
    assert threading.main_thread() not in pulled_by
    provider.close()


@seam("the settings of an `ActivationsStore`")
def test_what_the_facts_are_made_of() -> None:
    made = store(exclude_special_tokens=torch.tensor([1]))
    given = inspect.signature(ActivationsStore.__init__).parameters.keys()
    # a new parameter may change the batches: then it belongs into `Stream.facts`
    assert given == {
        *("self", "model", "dataset", "streaming", "hook_name", "hook_head_index"),
        *("context_size", "d_in", "n_batches_in_buffer", "total_training_tokens"),
        *("store_batch_size_prompts", "train_batch_size_tokens", "prepend_bos"),
        *("normalize_activations", "device", "dtype", "cached_activations_path", "model_kwargs"),
        *("autocast_lm", "dataset_trust_remote_code", "seqpos_slice", "exclude_special_tokens"),
        *("disable_concat_sequences", "sequence_separator_token"),
        *("activations_mixing_fraction", "use_chat_formatting"),
    }
    assert (made.dtype, made.seqpos_slice) == (torch.float32, (None,))
    assert made.exclude_special_tokens.tolist() == [1]
