"""Every pair of mechanisms on every architecture trains, resumes and exports, or is refused.

`tests/expected.py` says which.

By default, every architecture trains all the mechanisms that it takes, together. The CI also has a
covering part of the product: every pair on some architecture, and every mechanism on every
architecture. The rest has the marker `combinations`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from expected import MECHANISMS
from sae_lens import SAE
from torch import Tensor

from sae_plugins import PluginError, plugins
from sae_plugins.framework import registry
from sae_plugins.framework.resolve import choose
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.testing import (
    CASES,
    advance,
    differences,
    equal_values,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

STEPS, STOP = 20, 11
"""Of a run, and before its checkpoint: inside an accumulation window, with requests that wait."""
BATCHES = tiny_batches(steps=STEPS)
(PROBE,) = tiny_batches(1, steps=1, dtype=torch.float64)

ARCHITECTURES = tuple(expected.ARCHITECTURES)
CLASHES: dict[frozenset[str], str] = {}
"""Pairs that are refused everywhere, with words of the reason; no two claim the same as yet."""
THRESHOLDS = {"activation-threshold", "post-hoc-threshold"}

Names = tuple[str, ...]


def refusal(names: Names, architecture: str) -> str | None:
    """A pattern for the messages that the table expects; None if it expects a training."""
    reasons = {name: MECHANISMS[name].refused.get(architecture) for name in names}
    refused = [
        f"'{name}' does not work on {architecture} SAEs: .*{reason}"
        for name, reason in reasons.items()
        if reason
    ]
    clashes = [CLASHES[pair] for pair in map(frozenset, combinations(names, 2)) if pair in CLASHES]
    return "|".join(clashes or refused) or None


# -- which combinations ----------------------------------------------------------------------------


def covering() -> Iterator[tuple[Names, str]]:
    """Every pair where it trains and was seen least; what is then still to be seen, alone."""
    seen: Counter[Any] = Counter()
    for pair in combinations(MECHANISMS, 2):
        trains = [a for a in ARCHITECTURES if not refusal(pair, a)] or ARCHITECTURES
        uses = {a: (sum(seen[name, a] for name in pair), seen[a]) for a in trains}
        architecture = min(trains, key=lambda a: uses[a])
        seen.update([architecture, *((name, architecture) for name in pair)])
        yield pair, architecture
    for name, architecture in product(MECHANISMS, ARCHITECTURES):
        if not seen[name, architecture]:
            yield (name,), architecture


def together(architecture: str) -> Names:
    """All mechanisms that the architecture takes and that do not clash."""
    names: Names = ()
    for name in MECHANISMS:
        names += () if refusal((*names, name), architecture) else (name,)
    return names


def cases() -> list[Any]:
    """All combinations, each once; those that take too long for the quick tests are marked."""
    one_or_two = [*combinations(MECHANISMS, 1), *combinations(MECHANISMS, 2)]
    marks: dict[tuple[Names, str], Any] = dict.fromkeys(
        product(one_or_two, ARCHITECTURES), pytest.mark.combinations
    )
    marks |= dict.fromkeys(covering(), pytest.mark.ci)
    marks |= dict.fromkeys(((together(architecture), architecture) for architecture in CASES), ())
    called = {names: "+".join(names) if len(names) < 3 else "all" for names, _ in marks}
    return [
        pytest.param(*case, id=f"{case[1]}-{called[case[0]]}", marks=marks[case]) for case in marks
    ]


# -- what is tested of them ------------------------------------------------------------------------


def built(names: Names, architecture: str) -> Any:
    """A trainer with the mechanisms, and with what they require, all with the table's options.

    On every other architecture it accumulates gradients.
    """
    chosen = choose(names).plugins
    accumulate = 1 + 2 * (ARCHITECTURES.index(architecture) % 2)
    options = {n: {**MECHANISMS[n].alone, **MECHANISMS[n].on.get(architecture, {})} for n in chosen}
    with plugins(*names, options=options, training={"accumulate": accumulate}):
        return tiny_trainer(tiny_sae(architecture), BATCHES)


@cache
def trained_weights(names: Names, architecture: str) -> dict[str, Tensor]:
    """What comes of a whole run."""
    trainer = built(names, architecture)
    advance(trainer, BATCHES)
    return dict(trainer.sae.state_dict())


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which parts of two trainers' states differ."""
    return [
        f"{part}/{name}"
        for part in one
        for name in (one[part] if isinstance(one[part], dict) else [None])
        if not equal_values(*(s[part] if name is None else s[part][name] for s in (one, other)))
    ]


def own_rule(trainer: Any) -> Tensor:
    """Activations of the probe as the trained SAE has them, one token at a time."""
    sae, present = trainer.sae, {plugin.name: plugin for plugin in trainer.host.plugins}
    taus = []
    if "batchtopk" in sae.cfg.architecture():  # which chooses k per batch while it trains
        _, acts = sae.encode_with_hidden_pre(PROBE)
        taus.append(sae.topk_threshold)
        if gate := present.get("activation-threshold"):
            taus.append(gate.tau)
    else:
        if sae.cfg.architecture() == "jumprelu":
            sae.threshold.clamp_(min=0)  # as SAELens does before it trains on a batch
        acts = sae.encode(PROBE)
    if control := present.get("post-hoc-threshold"):
        taus.append(control.options.share * (control.sums / control.counts.clamp_min(1e-30)))
    for tau in taus:
        acts = acts.where(acts > tau, 0)
    return acts


@torch.no_grad()
def check_export(trainer: Any, folder: Path) -> None:
    """What plain SAELens loads computes what was trained, decoder norms folded or not."""
    sae = trainer.sae.to(torch.float64)  # so that no rounding decides
    sae.save_inference_model(folder / "ours")
    saved = SAE.load_from_disk(str(folder / "ours"))
    expected = own_rule(trainer)
    close = {"rtol": 1e-9, "atol": 1e-12}
    assert expected.any()
    torch.testing.assert_close(saved.encode(PROBE), expected, **close)
    torch.testing.assert_close(saved(PROBE), sae.decode(expected), **close)
    if saved.cfg.architecture() in ("standard", "gated", "jumprelu"):
        saved.fold_W_dec_norm()
        torch.testing.assert_close(saved.encode(PROBE) != 0, expected != 0)
        torch.testing.assert_close(saved(PROBE), sae.decode(expected), **close)
    if THRESHOLDS & {plugin.name for plugin in trainer.host.plugins}:
        type(sae).save_inference_model(sae, folder / "theirs")
        without = SAE.load_from_disk(str(folder / "theirs")).encode(PROBE)
        assert (expected != 0).sum() < (without != 0).sum(), "no threshold shuts anything"


@pytest.mark.parametrize(("names", "architecture"), cases())
def test_combination(names: Names, architecture: str, tmp_path: Path) -> None:
    message = refusal(names, architecture)
    if message is not None:
        with pytest.raises(PluginError, match=message):
            built(names, architecture)
        return

    one, other = (built(names, architecture) for _ in range(2))
    advance(one, BATCHES[:STOP])
    write_state(tmp_path / "state.safetensors", one.state_dict())
    other.load_state_dict(read_state(tmp_path / "state.safetensors"))
    assert advance(one, BATCHES[STOP:]) == advance(other, BATCHES[STOP:])
    assert not unequal(one.state_dict(), other.state_dict())
    weights = {name: value.clone() for name, value in one.sae.state_dict().items()}
    assert all(value.isfinite().all() for value in weights.values())

    for trainer in (one, other):
        trainer.set_final_sae_metadata()
    assert one.run.summary == other.run.summary
    check_export(other, tmp_path)

    for name in names if len(names) < 3 else ():
        rest = tuple(n for n in names if n != name)
        changed = differences(weights, trained_weights(rest, architecture))
        assert bool(changed) == (MECHANISMS[name].changes == "training"), (name, changed)


def test_the_table_has_every_mechanism_and_every_architecture() -> None:
    mechanisms = {
        line.name
        for line in registry.listing()
        if line.kind == "mechanism" and line.distribution == "sae-plugins"
    }
    assert MECHANISMS.keys() == mechanisms
    assert set(ARCHITECTURES) == CASES.keys()


def test_the_quick_part_trains_all_pairs_and_the_covering_part_each_by_itself() -> None:
    quick = [names for names, _ in (case.values for case in cases() if not case.marks)]
    pairs = {
        pair
        for pair in combinations(MECHANISMS, 2)
        if any(not refusal(pair, architecture) for architecture in ARCHITECTURES)
    }
    assert {pair for names in quick for pair in combinations(names, 2)} == pairs
    alone = list(covering())
    assert {names for names, a in alone if len(names) == 2 and not refusal(names, a)} == pairs
    singles = {(name, a) for names, a in alone for name in names}
    assert singles == set(product(MECHANISMS, ARCHITECTURES))
