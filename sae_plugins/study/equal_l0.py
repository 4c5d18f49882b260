"""At which L0 arms are compared: exactly the wanted one, or between the L0s of their SAEs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sae_plugins.eval_suites.evaluation.metrics import HELDOUT
from sae_plugins.framework.calibration import TOLERANCE, Calibration
from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.study.words import Table, difference, mean_interval, number

if TYPE_CHECKING:
    from sae_plugins.study.facts import Facts
    from sae_plugins.study.findings import Trained

_SHOWN = {"l0": "L0", "explained_variance": f"explained variance ({HELDOUT})"}
"""Held-out metrics that are shown with and without a calibration."""
_KINDS = {HELDOUT: "set for it", UNCALIBRATED: "its own thresholds"}


def in_words(trained: Iterable[Trained], reference: str, unit: str = "tokens") -> str:
    """How L0 is made equal between the SAEs of one model, in sentences; empty without any."""
    there = [one for one in trained if one.l0]
    exact = _exact(there)
    # an arm is compared at measured L0s where one of its SAEs is, and where the reference is
    measured = dict.fromkeys(one.arm for one in there if not one.exact_l0)
    if not exact or reference in measured:
        is_set = any(one.calibration for one in there)
        why = f", since {reference} has SAEs that miss the wanted L0" if is_set else ""
        return (
            f"L0 is interpolated{why}: scores at equal L0 are read between those of SAEs, on "
            "straight lines over log L0."
            if there
            else ""
        )
    arms = ", ".join(measured)
    set_on = min(found.tokens for _, found in exact)
    known = [one.tokens for one, _ in exact if one.tokens]
    other = f"{min(known):,} other" if known else "other"
    worst = max(abs(one.l0 / found.l0 - 1) for one, found in exact if one.l0)
    errors = [one.l0_error / one.l0 for one, _ in exact if one.l0_error and one.l0]
    error = f" (the standard error is up to {max(errors):.2%})" if errors else ""
    text = (
        f"{f'Except for {arms}, each' if arms else 'Each'} SAE has exactly the wanted L0 on the "
        f"{set_on:,} {unit} that its thresholds were set on, which it was not trained on. On the "
        f"{other} held-out {unit} that measure L0, it is within {worst:.2%} of that{error}, and "
        f"SAEs of the same seed that want the same L0 are within {_apart(exact):.2%} of each other."
        " "
    )
    if not arms:
        return f"{text}Arms are compared at the wanted L0s, and no score is interpolated."
    return (
        f"{text}{arms} and {reference} are compared at the L0s that were measured, between which "
        "scores are read off straight lines over log L0; other arms are compared at the wanted L0s."
    )


def _apart(exact: Sequence[tuple[Trained, Calibration]]) -> float:
    """How far the L0s of SAEs that share their text and the wanted L0 are apart, as a share."""
    alike: dict[tuple[int, float], list[float]] = {}
    for one, found in exact:
        alike.setdefault((one.seed, found.l0), []).append(one.l0 or found.l0)
    return max(max(l0s) / min(l0s) - 1 for l0s in alike.values())


def _exact(trained: Iterable[Trained]) -> list[tuple[Trained, Calibration]]:
    """The SAEs that have exactly the wanted L0, with how that was done."""
    found = [(one, one.calibration) for one in trained if one.l0]
    return [(one, how) for one, how in found if how is not None and how.is_exact]


def warnings(trained: Sequence[Trained], samples: Collection[str] = ()) -> Iterator[str]:
    """SAEs that have not the wanted L0, and text that is too short to tell.

    Args:
        trained: of all models.
        samples: models that give samples, and no text.
    """
    short: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for one in trained:
        if one.calibration is not None and one.calibration.shortfall:
            place = (one.model, one.arm)
            short.setdefault(place, []).append((one.seed, one.calibration.shortfall))
    for (model, arm), ((seed, reason), *others) in short.items():
        more = f" (and {len(others)} more of its SAEs)" if others else ""
        cure = (
            "; more values under sparsity, closer to each other, tell its coefficients better"
            if reason.endswith("train with less sparsity")
            else ""
        )
        yield f"{model}, {arm}, seed {seed}{more}: {reason}{cure}"
    for model in dict.fromkeys(one.model for one in trained):
        exact = _exact(one for one in trained if one.model == model)
        far = [
            (abs(one.l0 / found.l0 - 1), one, found)
            for one, found in exact
            if one.l0 and abs(one.l0 / found.l0 - 1) > TOLERANCE
        ]
        if far:
            _, one, found = max(far, key=lambda each: each[0])
            unit = "samples" if model in samples else "tokens"
            yield (
                f"{model}: on the held-out {unit} that measure L0, {len(far)} of {len(exact)} SAEs "
                f"miss the wanted one by more than {TOLERANCE:.1%} ({one.arm} has {one.l0:.4g} for "
                f"{found.l0:g}). The {found.tokens:,} {unit} that set thresholds tell the L0 of as "
                f"many others to {found.spread:.1%}: give more calibrate_tokens, and as many "
                "heldout_tokens. SAEs of the same seed share them, and miss it alike"
            )


def differences(facts: Facts, model: str) -> Table | None:
    """What arms differ by from the reference at single L0s, a metric a column."""
    metrics = facts.compared(model)
    rows = []
    for arm in facts.arms:
        found = [facts.by_l0.get((model, arm, m.suite, m.name), []) for m in metrics]
        cells = [{f"{at.l0:.3g}": difference(at) for at in one} for one in found]
        l0s = sorted({l0 for one in cells for l0 in one}, key=float)
        rows += [(arm, l0, *(one.get(l0, "") for one in cells)) for l0 in l0s]
    labels = (facts.label(model, metric) for metric in metrics)
    return Table(model, ("arm", "L0", *labels), rows) if rows else None


def table(facts: Facts, model: str) -> Table | None:
    """Held-out scores of SAEs with exact L0s, and with the thresholds of their training."""
    rows = []
    for arm in facts.arms:
        for sparsity, runs in facts.runs.get((model, arm), {}).items():
            wanted = next((run.calibration.l0 for run in runs if run.calibration), None)
            if wanted is not None:
                places = [(model, arm, kind, metric) for metric in _SHOWN for kind in _KINDS]
                scores = (facts.values.get(place, {}).get(sparsity, {}) for place in places)
                shown = (mean_interval([*by_seed.values()]) for by_seed in scores)
                rows.append((arm, number(wanted), sparsity.partition(" ")[0], *shown))
    heads = (f"{label}, {kind}" for label in _SHOWN.values() for kind in _KINDS.values())
    return Table(model, ("arm", "wanted L0", "trained with", *heads), rows) if rows else None
