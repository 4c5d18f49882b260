"""How to read the verdicts of a study, in the words that its report's two forms share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import Findings
from sae_plugins.study.spec import Family

_CHANCE = "with a 5% chance of any wrong one among these tests"


def families(findings: Findings) -> dict[Family, int]:
    """How many tests are corrected together."""
    tested = [c.family for c in findings.contrasts if c.comparison.p is not None]
    return {family: tested.count(family) for family in get_args(Family) if family in tested}


def lead(facts: Facts) -> str:
    """What must be known before the first table."""
    return (
        "An interval is of one comparison, uncorrected. A verdict, and the difference that the "
        f"study detects, are after Holm's correction over {_corrected(families(facts.findings))}. "
        "So an interval may exclude zero without a verdict, and a difference must be several times "
        f"as large as half an interval to be detected. The row of {facts.reference} has its scores "
        "at one L0, the middle one; all other rows have differences from it, averaged over all L0s "
        "that both arms have."
    )


def _corrected(counts: Mapping[Family, int]) -> str:
    """What Holm's correction is over, in words."""
    if "all" in counts or not counts:
        return f"all {counts.get('all', 0)} tests of this study"
    return " and, apart, over ".join(f"its {n} {family} tests" for family, n in counts.items())


def lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """Terms and what they mean."""
    yield "↑, ↓", "higher is better, lower is better."
    yield "At equal L0", _at_equal_l0(facts)
    yield (
        "But worse at an L0 of ...",
        "at this L0 the difference has the other sign than on average, and its interval, "
        "uncorrected, is beyond zero. The table of differences by L0 has all of them.",
    )
    yield (
        "Seeds",
        "a seed decides the initial weights and the order of the training data, which all arms "
        "that are trained here share; the evaluation is the same for all. Intervals, and numbers "
        "after ±, are 95% t intervals over seeds.",
    )
    yield (
        "▲ better, ▼ worse",
        f"the difference is not zero, {_CHANCE}. < margin: as measured it is smaller than the "
        "margin, the smallest difference that matters, so that it may be of no use.",
    )
    yield (
        "≈ equivalent",
        f"two one-sided tests show that the difference is smaller than the margin, {_CHANCE}, by a "
        "Holm correction of their own.",
    )
    yield (
        "underpowered",
        "neither is shown, and the study misses a true difference as large as the margin in more "
        "than one of five cases: whether there is one stays open. An interval beyond zero is a "
        "hint, which more seeds or fewer comparisons can test. Detects: the true difference that "
        "is found with 80% power.",
    )
    yield (
        "not distinguishable",
        "neither is shown, and the study finds a true difference as large as the margin with 80% "
        "power. The difference is not shown to be smaller either. Where no margin is known, this "
        "does not mean equal.",
    )
    if "exploratory" in families(facts.findings):
        yield (
            "exploratory",
            "what the study did not name as primary comparisons; it suggests what to test next.",
        )
    yield "no verdict", "there is nothing to compare; the reasons are below the table."


def _at_equal_l0(facts: Facts) -> str:
    pairs = [(model, (arm, facts.reference)) for model, arm, *_ in facts.comparisons]
    exact = {facts.points.are_exact(model, pair) for model, pair in pairs}
    at_wanted = "at each wanted L0 that both have"
    if exact == {True}:
        how = f"the two arms' SAEs of a seed are compared {at_wanted}"
    else:
        how = (
            "the scores of the two arms' SAEs of a seed are compared over the L0s that both cover, "
            "and read between SAEs on straight lines over log L0"
        )
        if True in exact:
            how += f"; where all of them have exactly the wanted L0s, {at_wanted}"
    return f"{how}. The average is over log L0, from the lowest to the highest of these."


def where(facts: Facts) -> str:
    """Which L0s the figures have, a sentence; empty where no SAE has exactly a wanted one."""
    if not any(one.exact_l0 for one in facts.findings.trained):
        return ""
    exact = [model for model in facts.models if facts.points.are_exact(model, [*facts.arms])]
    which = "wanted" if exact else "measured"
    if 0 < len(exact) < len(facts.models):
        which = f"wanted one on {', '.join(exact)}, elsewhere the measured"
    return f"L0 is the {which} one; what was measured of each SAE stands under SAEs."
