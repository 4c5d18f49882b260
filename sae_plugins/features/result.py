"""Feature pages that are there: their place, and what a notebook shows of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from sae_plugins.features.shards import INDEX, activations, read, shard_name

_SHOWN = 8
"""Features that a notebook shows."""


@dataclass(frozen=True)
class FeaturePages:
    """A folder of feature pages; `index.html` in it is the page to open.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def page(self) -> Path:
        """The file that a browser opens."""
        return self.path / "index.html"

    @cached_property
    def index(self) -> Any:
        """What the list of features shows, of each SAE."""
        return read(self.path / INDEX)

    def feature(self, number: int, sae: int = 0) -> Feature:
        """One feature.

        Args:
            number: which one.
            sae: of the first or the second SAE.

        Raises:
            IndexError: there is none.
        """
        about = self.index["saes"][sae]
        if not 0 <= number < len(about["count"]):
            raise IndexError(f"{about['name']} has the features 0 to {len(about['count']) - 1}")
        shard, place = divmod(number, self.index["shard"])
        found = read(self.path / shard_name(sae, shard))
        words = [about["words"][i] for i in about["tops"][number]]
        share = about["count"][number] / self.index["counted"]
        return Feature(number, words, share, found["words"], found["features"][place])

    def _repr_html_(self) -> str:
        """A few features, and where all of them are."""
        about = self.index["saes"][0]
        alive = [i for i, count in enumerate(about["count"]) if count]
        some = alive[:: max(1, len(alive) // _SHOWN)][:_SHOWN]
        rows = "".join(self.feature(number).row() for number in some)
        name, place = escape(about["name"]), escape(str(self.page))
        link = escape(self.page.resolve().as_uri(), quote=True)
        return (
            f"<p><b>{name}</b>: {len(alive):,} of {len(about['count']):,} features fire on "
            f"{self.index['counted']:,} tokens. All of them: <a href='{link}'>{place}</a></p>"
            f"<table>{rows}</table>"
        )


@dataclass(frozen=True)
class Feature:
    """One feature as its page has it.

    Attributes:
        number: which one.
        tops: the tokens at which it fires most strongly.
        density: the share of tokens at which it fires.
        words: texts of the tokens that `data` numbers.
        data: everything else; see `pages.Pages`.
    """

    number: int
    tops: list[str]
    density: float
    words: list[str]
    data: dict[str, Any]

    def examples(self) -> list[list[tuple[str, float]]]:
        """Its strongest firings: tokens, each with the activation there."""
        return [
            [*zip((self.words[token] for token in each[1]), activations(each), strict=True)]
            for each in self.data["top"]
        ]

    def row(self, examples: int = 1) -> str:
        """A row of a table, in HTML."""
        shown = self.examples()
        largest = max((value for each in shown for _, value in each), default=1.0)
        texts = "<br>".join(
            "".join(_token(text, value / largest) for text, value in each)
            for each in shown[:examples]
        )
        return (
            f"<tr><td><b>{self.number}</b></td><td>{self.density:.2%}</td>"
            f"<td style='text-align:left'>{texts or 'never fires'}</td></tr>"
        )

    def _repr_html_(self) -> str:
        return f"<table>{self.row(len(self.data['top']))}</table>"


def _token(text: str, strength: float) -> str:
    shown = escape(text.replace("\n", "↵"))
    if strength <= 0:
        return shown
    return f"<span style='background:rgba(240,120,0,{0.1 + 0.6 * strength:.2f})'>{shown}</span>"
