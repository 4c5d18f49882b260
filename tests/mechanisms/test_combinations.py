"""Every pair of mechanisms on every architecture trains, resumes and exports, or is refused.

`TABLE` and `ARCHITECTURES` say what is expected. They are declared and not derived from the code
under test, so that a combination that is refused from now on, or no longer, fails here.

A covering part of the product runs by default: every pair on some architecture, and every mechanism
on every architecture. The rest has the marker `combinations`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
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

ARCHITECTURES = tuple(CASES)
WITH_COEFFICIENT = ("standard", "gated", "jumprelu")
NO_COEFFICIENT = {
    name: "no sparsity coefficient" for name in ARCHITECTURES if name not in WITH_COEFFICIENT
}
NO_THRESHOLDS = dict.fromkeys(("topk", "abstopk", "matching_pursuit"), "has no thresholds")


@dataclass(frozen=True)
class Row:
    """What is expected of a mechanism.

    Attributes:
        options: with which it acts within STEPS steps.
        changes: the training, only the SAE that is saved, or nothing.
        refused: by architecture, words of the reason.
        on: options that differ by architecture.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Literal["training", "saved", "nothing"] = "training"
    refused: Mapping[str, str] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TABLE = {
    "reorder": Row({"start": 2, "interval": 5, "window": 3, "cooldown": 2}),
    "input-norm-l1": Row({"decay": 0.9}, refused=NO_COEFFICIENT, on={"gated": {"per": "batch"}}),
    "unit-norm-decoder": Row(),
    "linear-l1": Row({"floor": 0.1}, refused=NO_COEFFICIENT),
    "reconstruction-l1": Row(refused=NO_COEFFICIENT),
    "reconstruction-warm-up": Row({"steps": 4}, refused=NO_COEFFICIENT),
    "firing-window": Row({"window": 10}, changes="nothing"),
    "resample": Row(
        {"per": "token", "threshold": 0.3},
        on={dense: {"threshold": 0.6} for dense in WITH_COEFFICIENT},
    ),
    "merge": Row({"every": 5, "threshold": 0.4}),
    "firing-frequency": Row({"decay": 0.5}, changes="nothing"),
    "activation-threshold": Row(
        {"base": 1.1, "unit": "mean_active", "start": 2}, refused=NO_THRESHOLDS
    ),
    "post-hoc-threshold": Row({"share": 0.7, "decay": 0.9}, changes="saved", refused=NO_THRESHOLDS),
    "importance": Row(changes="nothing"),
    "importance-lr": Row({"start": 2}),
    "decoder-orthogonality": Row({"start": 2}),
    "coactivation-penalty": Row({"fraction": 0.1, "gain": 0.1}),
    "nan-guard": Row({"every": 2}, changes="nothing"),
}
CLASHES: dict[frozenset[str], str] = {}
"""Pairs that are refused everywhere, with words of the reason; no two claim the same as yet."""
THRESHOLDS = {"activation-threshold", "post-hoc-threshold"}

Names = tuple[str, ...]


def refusal(names: Names, architecture: str) -> str | None:
    """A pattern for the messages that the table expects; None if it expects a training."""
    refused = [
        f"'{name}' does not work on {architecture} SAEs: .*{TABLE[name].refused[architecture]}"
        for name in names
        if architecture in TABLE[name].refused
    ]
    clashes = [CLASHES[pair] for pair in map(frozenset, combinations(names, 2)) if pair in CLASHES]
    return "|".join(clashes or refused) or None


# -- which combinations ----------------------------------------------------------------------------


def covering() -> Iterator[tuple[Names, str]]:
    """Every pair where it trains and was seen least; what is then still to be seen, alone."""
    seen: Counter[Any] = Counter()
    for pair in combinations(TABLE, 2):
        trains = [a for a in ARCHITECTURES if not refusal(pair, a)] or ARCHITECTURES
        uses = {a: (sum(seen[name, a] for name in pair), seen[a]) for a in trains}
        architecture = min(trains, key=lambda a: uses[a])
        seen.update([architecture, *((name, architecture) for name in pair)])
        yield pair, architecture
    for name, architecture in product(TABLE, ARCHITECTURES):
        if not seen[name, architecture]:
            yield (name,), architecture


def together(architecture: str) -> Names:
    """All mechanisms that the architecture takes and that do not clash."""
    names: Names = ()
    for name in TABLE:
        names += () if refusal((*names, name), architecture) else (name,)
    return names


def cases() -> list[Any]:
    """All combinations, each once; those outside of the covering part are marked."""
    quick = [*covering(), *((together(architecture), architecture) for architecture in CASES)]
    one_or_two = [*combinations(TABLE, 1), *combinations(TABLE, 2)]
    marks = dict.fromkeys(product(one_or_two, ARCHITECTURES), pytest.mark.combinations)
    marks |= dict.fromkeys(quick, ())
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
    options = {n: {**TABLE[n].options, **TABLE[n].on.get(architecture, {})} for n in chosen}
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
        assert bool(changed) == (TABLE[name].changes == "training"), (name, changed)


def test_the_table_has_every_mechanism_and_every_architecture() -> None:
    mechanisms = {
        line.name
        for line in registry.listing()
        if line.kind == "mechanism" and line.distribution == "sae-plugins"
    }
    assert TABLE.keys() == mechanisms
    assert set(ARCHITECTURES) == CASES.keys()


def test_the_quick_part_covers_all_pairs_and_all_mechanisms_on_all_architectures() -> None:
    quick = [case.values for case in cases() if not case.marks]
    pairs = {names for names, a in quick if not refusal(names, a)}
    assert set(combinations(TABLE, 2)) <= pairs
    singles = {(name, a) for names, a in quick for name in names}
    assert singles == set(product(TABLE, ARCHITECTURES))
