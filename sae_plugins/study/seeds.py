"""SAEs of one arm, compared over its seeds: how alike their features are, and whether they are one.

Matching features costs a product of all decoder rows for each pair of seeds, so the shares are kept
in the study's folder, by the hashes of the files that have the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_plugins.base.files import write
from sae_plugins.base.fingerprints import Remembered, hash_of
from sae_plugins.eval_suites.evaluation.metrics import SEEDS
from sae_plugins.study import stability, traces
from sae_plugins.study.cells import SAES, grouped
from sae_plugins.study.findings import Score, Trained

KEPT = "stability.json"
"""In a study's folder: shares of features that match, by the hashes of two SAEs' files."""
_HOW = {"match": stability.MATCH, "most": stability.MOST}
"""Shares of another way to match do not count."""

Hashes = Mapping[str, str]
"""Of the files with the decoder rows, by the SAEs' folders."""


def hashes(trained: Sequence[Trained], folder: Path) -> dict[str, str]:
    """Of the SAEs that have decoder rows; files are read again only when they move."""
    found = {}
    with Remembered("bytes", folder / SAES, hash_of) as remembered:
        for one in trained:
            file = traces.decoder_file(folder / one.folder)
            if one.status == "ok" and file is not None:
                found[one.folder] = remembered.of(file)
    return found


def twins(trained: Sequence[Trained], known: Hashes) -> Iterator[str]:
    """Seeds that are no two seeds, since their SAEs have the same features, bit for bit."""
    for (model, arm, _), members in _groups(trained, known):
        for same in grouped(members, lambda one: known[one.folder]).values():
            if len(same) > 1:
                seeds = " and ".join(str(one.seed) for one in same)
                yield (
                    f"{model}, {arm}: the SAEs of seeds {seeds} are the same one, which tells "
                    "nothing of what seeds do: verdicts take it for as many seeds; name it once"
                )


def scores(trained: Sequence[Trained], folder: Path, known: Hashes) -> Iterator[Score]:
    """How far each SAE's features are found by the SAEs of the other seeds."""
    before = _read(folder)
    kept = dict(before)
    for _, members in _groups(trained, known):
        shares = _shares(members, folder, known, kept)
        readable = np.isfinite(shares).any(axis=1).nonzero()[0]
        if len(readable) < 2:
            continue
        shares = shares[np.ix_(readable, readable)]
        found = zip(stability.stabilities(shares), stability.pseudo_values(shares), strict=True)
        for place, (value, pseudo_value) in zip(readable, found, strict=True):
            one = members[place]
            yield Score(
                model=one.model, arm=one.arm, sparsity=one.sparsity, seed=one.seed, suite=SEEDS,
                metric="stability", value=value, n=len(readable) - 1, pseudo_value=pseudo_value,
            )  # fmt: skip
    if kept != before:
        write(folder / KEPT, json.dumps({**_HOW, "shares": kept}, indent=1) + "\n")


def _groups(
    trained: Sequence[Trained], known: Hashes
) -> Iterator[tuple[tuple[str, str, str], list[Trained]]]:
    """SAEs that differ in their seeds alone, where there are several."""
    there = [one for one in trained if one.folder in known]
    for place, members in grouped(there, lambda one: (one.model, one.arm, one.sparsity)).items():
        if len(members) > 1:
            yield place, members


def _shares(
    members: Sequence[Trained], folder: Path, known: Hashes, kept: dict[str, float | None]
) -> NDArray[Any]:
    """`stability.matched_shares` of SAEs; what is not kept yet is added.

    It is NaN for those whose rows cannot be read.
    """
    names = [known[one.folder] for one in members]
    places = {(i, j): f"{names[i]} {names[j]}" for i, j in permutations(range(len(names)), 2)}
    if not kept.keys() >= {*places.values()}:
        rows = [traces.decoder_rows(folder / one.folder) for one in members]
        readable = [place for place, each in enumerate(rows) if each is not None]
        found = stability.matched_shares([each for each in rows if each is not None])
        kept |= dict.fromkeys(places.values())
        for i, j in permutations(range(len(readable)), 2):
            kept[places[readable[i], readable[j]]] = float(found[i, j])
    shares = np.full((len(names), len(names)), np.nan)
    for place, key in places.items():
        share = kept[key]
        shares[place] = np.nan if share is None else share
    return shares


def _read(folder: Path) -> dict[str, float | None]:
    try:
        contents = json.loads((folder / KEPT).read_text("utf-8"))
        is_ours = {name: contents[name] for name in _HOW} == _HOW
        return {str(k): v for k, v in contents["shares"].items()} if is_ours else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
