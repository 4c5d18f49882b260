"""What is gathered in one streamed pass is what a naive loop finds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from language_models import tokenizer as on_bytes
from sae_lens import StandardSAE, StandardSAEConfig
from scipy import sparse

from sae_plugins.base.errors import SuiteError
from sae_plugins.features import collect as module
from sae_plugins.features.collect import AFTER, BEFORE, collect, fire
from sae_plugins.features.firings import Firings, activation_twins, partners
from sae_plugins.features.histogram import BINS
from sae_plugins.features.history import History
from sae_plugins.features.keep import Best, Entries, rank_at_random
from sae_plugins.features.neighbours import directions
from sae_plugins.features.order import order_of
from sae_plugins.features.pages import Pages, Shown
from sae_plugins.features.shards import activations, script
from sae_plugins.features.twins import twins_of
from sae_plugins.features.vocabulary import Vocabulary

TOP = module.TOP


@pytest.fixture(params=[(1, 1 << 23), (7, 60), (64, 1 << 23)], ids=["one", "odd", "all"])
def collected(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    given_prompts: Any,
    encoders: list[Any],
) -> Any:
    """The same in batches of any size."""
    at_once, numbers = request.param
    monkeypatch.setattr(module, "_AT_ONCE", numbers)
    monkeypatch.setattr("sae_plugins.features.keep._LEAST_WAITING", numbers)
    return collect(given_prompts, encoders, given_prompts.tokens.numel(), at_once)


@pytest.fixture(scope="module")
def dense(given_prompts: Any, encoders: list[Any]) -> list[np.ndarray]:
    """All activations [prompts, context, d_sae], 0 where tokens do not count."""
    with torch.no_grad():
        counts = given_prompts.counting(given_prompts.tokens)[..., None]
        return [(sae.encode(given_prompts.acts) * counts).numpy() for sae in encoders]


def window(tokens: Any, prompt: int, place: int) -> tuple[int, ...]:
    row = [-1] * BEFORE + tokens[prompt].tolist() + [-1] * AFTER
    return tuple(row[place : place + BEFORE + 1 + AFTER])


def naive_top(acts: np.ndarray, tokens: Any, feature: int) -> list[tuple[float, int]]:
    """The best place of each prompt, the best of equal windows, the strongest first."""
    best = []
    for prompt in range(len(acts)):
        place = int(acts[prompt, :, feature].argmax())
        if acts[prompt, place, feature] > 0:
            best.append((float(acts[prompt, place, feature]), prompt, place))
    best.sort(key=lambda each: (-each[0], each[1]))
    seen, found = set(), []
    for value, prompt, place in best:
        if window(tokens, prompt, place) not in seen:
            seen.add(window(tokens, prompt, place))
            found.append((value, prompt * tokens.shape[1] + place))
    return found[:TOP]


def test_top_activations_are_those_of_a_naive_loop(
    collected: Any, dense: list[np.ndarray], given_prompts: Any
) -> None:
    repeated = 0
    for acts, sae in zip(dense, collected.saes, strict=True):
        kept = sae.top.kept()
        for feature in range(sae.d_sae):
            own = kept[kept.feature == feature]
            found = list(zip(own.value.tolist(), own.position.tolist(), strict=True))
            expected = naive_top(acts, given_prompts.tokens, feature)
            assert [p for _, p in found] == [p for _, p in expected]
            assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], rel=1e-4)
            repeated += (acts.max(axis=1)[:, feature] > 0).sum() > len(expected)
    assert repeated > 3, "no window was there twice"


def test_windows_hold_the_activations_around(collected: Any, dense: list[np.ndarray]) -> None:
    for kept in (collected.saes[0].top.kept(), collected.saes[0].sample.kept()):
        for entry in range(0, len(kept), 5):
            prompt, place = divmod(int(kept.position[entry]), dense[0].shape[1])
            row = np.pad(dense[0][prompt, :, int(kept.feature[entry])], (BEFORE, AFTER))
            found = kept.window[entry].float() * kept.value[entry]
            assert found.numpy() == pytest.approx(row[place:][: len(found)], rel=1e-3, abs=1e-6)
            assert float(kept.window[entry, BEFORE]) == 1


def test_counts_largest_and_histogram_are_those_of_a_naive_loop(
    collected: Any, dense: list[np.ndarray]
) -> None:
    for acts, sae in zip(dense, collected.saes, strict=True):
        flat = acts.reshape(-1, sae.d_sae)
        assert sae.count.tolist() == (flat > 0).sum(axis=0).tolist()
        assert sae.histogram.largest.numpy() == pytest.approx(flat.max(axis=0))
        for feature in range(sae.d_sae):
            fired = flat[flat[:, feature] > 0, feature]
            if not len(fired):
                continue
            end = 2.0 ** math.frexp(fired.max())[1]
            assert end / 2 <= fired.max() < end
            expected = np.histogram(fired, BINS, (0, end))[0]
            assert sae.histogram.counts[feature].tolist() == expected.tolist()
            assert 2.0 ** int(sae.histogram.exponent[feature]) == end


def test_special_tokens_do_not_count(collected: Any, given_prompts: Any) -> None:
    assert collected.counted == int((given_prompts.tokens != 0).sum())
    for sae in collected.saes:
        for kept in (sae.top.kept(), sae.sample.kept()):
            assert (collected.tokens.flatten()[kept.position] != 0).all()


def test_a_feature_that_never_fires_has_nothing(collected: Any) -> None:
    sae = collected.saes[0]
    assert sae.count[3] == sae.histogram.largest[3] == sae.histogram.counts[3].sum() == 0
    assert not (sae.top.kept().feature == 3).any()


def test_quantiles_are_about_those_of_all_firings(collected: Any, dense: list[np.ndarray]) -> None:
    sae = collected.saes[0]
    kept = sae.sample.kept()
    found = sae.histogram.quantile(kept.feature.long(), kept.value)
    flat = dense[0].reshape(-1, sae.d_sae)
    for feature, value, share in zip(kept.feature.tolist(), kept.value, found, strict=True):
        fired = flat[flat[:, feature] > 0, feature]
        width = float(2.0 ** int(sae.histogram.exponent[feature])) / BINS
        near = [float((fired < float(value) + by).mean()) for by in (-width, width)]
        assert near[0] - 1e-6 <= share <= near[1] + 1e-6


def test_partners_are_those_of_a_naive_loop(collected: Any, dense: list[np.ndarray]) -> None:
    fired = dense[0].reshape(-1, dense[0].shape[-1]) > 0
    found = partners(collected.acts[0], 5)
    for feature, others in enumerate(found):
        shares = {}
        for other in range(fired.shape[1]):
            both = int((fired[:, feature] & fired[:, other]).sum())
            either = int((fired[:, feature] | fired[:, other]).sum())
            if other != feature and both >= 2:
                shares[other] = (both / either, both)
        assert [s for _, s, _ in others] == pytest.approx(
            sorted((share for share, _ in shares.values()), reverse=True)[:5]
        )
        for other, share, both in others:
            assert (pytest.approx(share), both) == shares[other]


def test_activation_twins_are_those_of_a_naive_loop(
    collected: Any, dense: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_plugins.features.firings._BLOCK", 100)
    own, other = (acts.reshape(-1, acts.shape[-1]).astype(float) for acts in dense)
    norms = np.linalg.norm(own, axis=0)[:, None] * np.linalg.norm(other, axis=0)
    cosines = own.T @ other / np.maximum(norms, 1e-30)
    index, cosine = activation_twins(*collected.acts)
    assert cosine == pytest.approx(cosines.max(axis=1), rel=1e-5)
    assert index.tolist() == [-1 if i == 3 else int(r.argmax()) for i, r in enumerate(cosines)]


def test_a_feature_that_fires_where_no_other_does_counts_as_one_without_a_twin() -> None:
    own = sparse.csr_matrix(np.array([[1.0, 0, 0], [0, 2, 0]]))  # the last one never fires
    other = sparse.csr_matrix(np.array([[3.0, 0], [0, 0]]))
    found = twins_of([own, other], [torch.eye(3), torch.eye(3)[:2]], 0)
    assert found.index.tolist() == [0, -1, -1]
    assert found.share == 0.5
    assert found.median == pytest.approx(1)


def test_too_many_firings_are_thinned_out_alike_for_all_saes(
    given_prompts: Any, encoders: list[Any]
) -> None:
    found = Firings([2, 2], most=20)
    for context in range(37):
        rows = [(np.array([1, 0]), np.array([sae]), np.array([context], np.float32))
                for sae in (0, 1)]  # fmt: skip
        found.add(context, rows)
    assert found.every == 4
    first, second = found.matrices()
    assert first.data.tolist() == second.data.tolist() == [*range(0, 37, 4)]
    assert first.shape == (20, 2)


def test_a_sample_is_random_and_does_not_depend_on_batches(collected: Any, dense: Any) -> None:
    kept = collected.saes[0].sample.kept()
    flat = torch.tensor(dense[0]).reshape(-1, dense[0].shape[-1])
    token, feature = flat.nonzero(as_tuple=True)
    rank = rank_at_random(feature, token)
    for number in range(flat.shape[1]):
        ranks = rank[feature == number].sort().values.tolist()
        own = kept[kept.feature == number].rank.tolist()
        assert own == sorted(own)
        assert {*own} <= {*ranks}
        assert own[:1] == ranks[:1]
    spread = (
        rank_at_random(torch.zeros(4000, dtype=torch.long), torch.arange(4000)).double() / 2**31
    )
    assert 0.45 < spread.mean() < 0.55
    assert np.histogram(spread, 4, (0, 1))[0].min() > 900


def test_of_equal_ranks_the_earlier_one_stays() -> None:
    best = Best(1, 2, torch.device("cpu"))
    for position in range(4):
        one = torch.tensor([position])
        best.add(Entries(one * 0, (one * 0).int(), one, one, one.float(), torch.zeros(1, 3).half()))
        best.kept()
    assert best.kept().position.tolist() == [0, 1]


def test_an_sae_that_never_fires_has_pages(given_prompts: Any) -> None:
    silent: Any = StandardSAE(StandardSAEConfig(d_in=8, d_sae=5))
    with torch.no_grad():
        silent.b_enc.fill_(-1e9)
    found = collect(given_prompts, [silent], 200, 4)
    rows = directions(silent.W_dec)
    order = order_of(np.zeros(5), rows)
    twins = twins_of([found.acts[0], found.acts[0]], [rows, rows], 0)
    shown = Shown("silent", [], [], silent.W_dec, rows, None, (), History(), order, twins)
    pages = Pages(0, shown, found, Vocabulary(on_bytes()))
    assert pages.index()["count"] == [0] * 5
    (shard,) = pages.shards()
    for each in shard["features"]:
        assert each["top"] == each["with"] == each["bars"] == []
        assert not any(each["sample"])
    assert script("shard", 0, 0, shard)


def test_tokens_that_make_a_letter_together_are_shown_as_it(given_prompts: Any) -> None:
    """Half of the letter's two tokens fire weakly, and half strongly."""
    made = on_bytes()
    made.add_tokens(["Ġĉ"])
    a, first, second = (made.convert_tokens_to_ids(letter) for letter in "aÃ¶")
    tokens = torch.tensor([[a, first, second, a, second] + [a] * 11])
    acts = torch.zeros(1, 16, 8)
    acts[0, :5, 0] = torch.tensor([0.0, 2.0, 5.0, 0.0, 3.0])
    sae: Any = StandardSAE(StandardSAEConfig(d_in=8, d_sae=1))
    with torch.no_grad():
        sae.W_enc[:] = torch.eye(8)[:, :1]
    found = collect(type(given_prompts)(tokens, acts), [sae], 16, 1)
    shown = Shown("one", [], [], sae.W_dec, directions(sae.W_dec), None)
    pages = Pages(0, shown, found, Vocabulary(made))
    ((one,), words) = (shard := next(pages.shards()))["features"], shard["words"]
    peak, texts, _ = one["top"][0]
    read = [words[text] for text in texts]
    assert read[:4] == ["a", "ö", "a", "⟨B6⟩"]
    assert peak == 1
    assert activations(one["top"][0])[:4] == [0, 5, 0, 3]
    assert [pages.index()["words"][word] for word in pages.index()["tops"][0]] == ["⟨B6⟩"]


def test_activations_that_are_no_numbers_are_refused(encoders: list[Any]) -> None:
    with pytest.raises(SuiteError, match="not all numbers"):
        fire(encoders[0], torch.full((2, 8), torch.inf))


def test_text_without_a_prompt_is_refused(given_prompts: Any, encoders: list[Any]) -> None:
    nothing = dataclasses.replace(given_prompts)
    nothing.batches = lambda prompts, at_once: iter(())
    with pytest.raises(SuiteError, match="shorter than one prompt of 16 tokens"):
        collect(nothing, encoders, 100, 4)


def test_what_is_beside_a_tiny_firing_is_finite() -> None:
    place, value = torch.tensor([0, 1]), torch.tensor([1e-6, 9.0])
    tokens = torch.arange(4).reshape(1, 4)
    batch = module.Batch(tokens, 0, 1, place, torch.zeros(2, dtype=torch.long), value)
    assert torch.isfinite(batch._windows(torch.tensor([0]))).all()
