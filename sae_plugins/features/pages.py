"""What is shown, as the data of a page: an index of all features, and shards with all of each."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae_plugins.features.collect import AFTER, BEFORE, Collected, Collector
from sae_plugins.features.firings import partners
from sae_plugins.features.histogram import BINS
from sae_plugins.features.history import History
from sae_plugins.features.keep import Entries
from sae_plugins.features.logits import Readout, promoted
from sae_plugins.features.neighbours import nearest
from sae_plugins.features.order import Order
from sae_plugins.features.shards import FEATURES, Words
from sae_plugins.features.twins import Twins
from sae_plugins.features.vocabulary import Vocabulary
from sae_plugins.runs.feature_history import Past
from sae_plugins.runs.silent import Silent

BANDS = 4
"""Parts of equal size into which the firings of a feature are divided by their strength."""
_PER_BAND = 2
_TOKENS, _OTHERS, _WORDS = 8, 6, 3
"""Tokens promoted, other features, and top tokens that are shown of a feature."""


@dataclass(frozen=True)
class Shown:
    """An SAE, and everything that its pages need besides the text.

    Attributes:
        name: short.
        facts: of its place and training, a label and a value each.
        notes: what a reader should know.
        W_dec: [d_sae, d_in].
        directions: decoder rows of length 1.
        readout: how its features reach the logits, if they do.
        silent: how many of them its run found silent, and at which tokens.
        history: what happened to its features.
        order: a picture of their order, if that means something.
        twins: those in the other SAE, if there is one.
    """

    name: str
    facts: list[tuple[str, str]]
    notes: list[str]
    W_dec: Tensor
    directions: Tensor
    readout: Readout | None
    silent: Sequence[Silent] = ()
    history: History = field(default_factory=History)
    order: Order | None = None
    twins: Twins | None = None


class Pages:
    """The data of one SAE's pages."""

    def __init__(
        self, number: int, shown: Shown, collected: Collected, vocabulary: Vocabulary
    ) -> None:
        """Compute what is not there yet: neighbours, partners, promoted tokens."""
        self.shown = shown
        self._collected = collected
        self._vocabulary = vocabulary
        self._sae: Collector = collected.saes[number]
        self._near = [each.cpu().numpy() for each in nearest(shown.directions, _OTHERS)]
        self._partners = partners(collected.acts[number], _OTHERS)
        self._logits = None
        if shown.readout is not None:
            found = promoted(shown.readout, shown.W_dec, _TOKENS)
            self._logits = [each.numpy() for each in found]
        self._top = _Examples(self._sae.top.kept(), collected.tokens, vocabulary)
        sample = self._sae.sample.kept()
        self._sample = _Examples(sample, collected.tokens, vocabulary)
        shares = self._sae.histogram.quantile(sample.feature.long(), sample.value)
        self._band = (shares * BANDS).long().clamp(max=BANDS - 1).cpu().numpy()
        self._counts = self._sae.histogram.counts.cpu().numpy()
        self._ends = np.exp2(self._sae.histogram.exponent.cpu().numpy().astype(float))

    @property
    def d_sae(self) -> int:
        """How many features there are."""
        return self._sae.d_sae

    def index(self) -> dict[str, Any]:
        """What a list of all features shows, and what is said of the SAE as a whole."""
        words, shown = Words(), self.shown
        tops = [[*map(words.number, self._top_tokens(i))] for i in range(self.d_sae)]
        twins, order = shown.twins, shown.order
        return {
            "name": shown.name,
            "facts": shown.facts,
            "notes": shown.notes,
            "history": shown.history.sentences,
            "silent": [(each.name, f"{each.count} {each.tokens}") for each in shown.silent],
            "readout": None if shown.readout is None else shown.readout.path,
            "words": self._texts(words),
            "tops": tops,
            "count": self._sae.count.tolist(),
            "largest": [_short(value) for value in self._sae.histogram.largest.tolist()],
            "near": _percent(self._near[1][:, 0] if self._near[1].size else np.zeros(self.d_sae)),
            "order": None if order is None else asdict(order),
            "twin": None if twins is None else _percent(twins.activation_cosine),
            "twins": None if twins is None else _short(twins.share),
            "twins_median": None if twins is None else _short(twins.median),
            "started": self._pasts("started"),
            "merges": self._pasts("times"),
        }

    def _pasts(self, what: str) -> list[int] | None:
        """A number of each feature's past; None where it is 0 for all."""
        past, nothing = self.shown.history.past, Past(0)
        found = [getattr(past.get(number, nothing), what) for number in range(self.d_sae)]
        return found if any(found) else None

    def shards(self) -> Iterator[dict[str, Any]]:
        """All of each feature, some at a time."""
        for first in range(0, self.d_sae, FEATURES):
            words = Words()
            features = [
                self._feature(i, words) for i in range(first, min(self.d_sae, first + FEATURES))
            ]
            yield {"words": self._texts(words), "features": features}

    def _texts(self, words: Words) -> list[str]:
        return [self._vocabulary.text(*tokens) for tokens in words.tokens()]

    def _top_tokens(self, feature: int) -> list[int]:
        """The tokens at which a feature fires most strongly, the most common ones first."""
        found = Counter(self._top.token(entry) for entry in self._top.of(feature))
        return [token for token, _ in found.most_common(_WORDS)]

    def _feature(self, feature: int, words: Words) -> dict[str, Any]:
        counts = self._counts[feature]
        used = int(counts.nonzero()[0][-1]) + 1 if counts.any() else 0
        found: dict[str, Any] = {
            "bars": counts[:used].tolist(),
            "bar": _short(self._ends[feature] / BINS),
            "top": [self._top.example(entry, words) for entry in self._top.of(feature)],
            "sample": self._samples(feature, words),
            "near": _pairs(self._near[0][feature], self._near[1][feature]),
            "with": [[i, _short(share), n] for i, share, n in self._partners[feature]],
        }
        if self._logits is not None:
            up, ups, down, downs = (each[feature] for each in self._logits)
            found["up"] = _pairs(map(words.number, up.tolist()), ups)
            found["down"] = _pairs(map(words.number, down.tolist()), downs)
        if (twins := self.shown.twins) is not None:
            found["twin"] = [
                int(twins.index[feature]), _short(twins.activation_cosine[feature]),
                _short(twins.decoder_cosine[feature]), int(twins.by_decoder[feature]),
                _short(twins.by_decoder_cosine[feature]),
            ]  # fmt: skip
        if (past := self.shown.history.past.get(feature)) is not None:
            found["past"] = asdict(past)
        return found

    def _samples(self, feature: int, words: Words) -> list[list[Any]]:
        """Some firings of each band, the strongest band first, each of a prompt of its own."""
        chosen: list[list[Any]] = [[] for _ in range(BANDS)]
        seen = {self._top.prompt(entry) for entry in self._top.of(feature)}
        for entry in self._sample.of(feature):
            band, prompt = chosen[self._band[entry]], self._sample.prompt(entry)
            if prompt not in seen and len(band) < _PER_BAND:
                seen.add(prompt)
                band.append(self._sample.example(entry, words))
        return chosen[::-1]


class _Examples:
    """Kept firings, with the text around them."""

    def __init__(self, entries: Entries, tokens: Tensor, vocabulary: Vocabulary) -> None:
        self._tokens, self._size = tokens.numpy().ravel(), tokens.shape[1]
        self._vocabulary = vocabulary
        parts = [token for token in np.unique(self._tokens) if vocabulary.is_part(int(token))]
        self._is_part = np.isin(self._tokens, parts)
        self._position = entries.position.cpu().numpy()
        self._value, self._window = entries.value.cpu().numpy(), entries.window.cpu().numpy()
        feature = entries.feature.cpu().numpy()
        self._starts = np.searchsorted(feature, np.arange(feature.max(initial=-1) + 2))

    def of(self, feature: int) -> range:
        """The firings of a feature."""
        if feature + 1 >= len(self._starts):
            return range(0)
        return range(int(self._starts[feature]), int(self._starts[feature + 1]))

    def token(self, entry: int) -> int:
        """The token at which a firing is."""
        return int(self._tokens[self._position[entry]])

    def prompt(self, entry: int) -> int:
        """The prompt in which a firing is."""
        return int(self._position[entry]) // self._size

    def example(self, entry: int, words: Words) -> list[Any]:
        """Which of the texts shown it is, these texts, and where the feature fires how much.

        Tokens that make a letter only together are one text, at which the feature fires as
        strongly as at the strongest of them.
        """
        position = int(self._position[entry])
        start = position // self._size * self._size
        first, last = max(start, position - BEFORE), min(start + self._size, position + AFTER + 1)
        tokens = self._tokens[first:last].tolist()
        offset = first - (position - BEFORE)
        window = self._window[entry, offset : offset + len(tokens)]
        values = self._value[entry] * window.astype(np.float32)
        begins = [*range(len(tokens))]
        if self._is_part[first:last].any():
            begins = self._vocabulary.letters(tokens)
            values = np.maximum.reduceat(values, begins)
        ends = [*begins[1:], len(tokens)]
        texts = [words.number(*tokens[i:j]) for i, j in zip(begins, ends, strict=True)]
        where = values.nonzero()[0]
        fires = [x for i in where.tolist() for x in (i, _short(values[i]))]
        return [bisect_right(begins, position - first) - 1, texts, fires]


def _short(number: float) -> float:
    """A number in three digits."""
    return float(f"{number:.3g}")


def _pairs(numbers: Any, values: NDArray[Any]) -> list[Any]:
    return [[int(i), _short(x)] for i, x in zip(numbers, values.tolist(), strict=True)]


def _percent(values: NDArray[Any]) -> list[int]:
    rounded: list[int] = np.rint(100 * values).astype(int).tolist()
    return rounded
