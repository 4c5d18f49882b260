"""A study's verdicts as LaTeX tables, for a paper that has the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from sae_plugins.study.facts import Facts, Place
from sae_plugins.study.statistics import Verdict
from sae_plugins.study.words import difference

_SHOWN: dict[Verdict, str] = {
    "better": r"\textbf{%s}",
    "worse": r"\underline{%s}",
    "equivalent": r"\textit{%s}",
    "underpowered": "(%s)",
}
_CAPTION = (
    "Difference from {reference} at equal L0 on {model}, with the 95\\% interval over seeds of "
    "this comparison alone; verdicts are corrected for all of the study. Bold: better; underlined: "
    "worse; italic: equivalent within the margin; in brackets: underpowered; "
    "else: not distinguishable. Higher is better where nothing else is said."
)
_ESCAPED = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def verdicts(facts: Facts) -> str:
    """A table for each model."""
    return "\n".join(_table(facts, model) for model in facts.models if facts.compared(model))


def _table(facts: Facts, model: str) -> str:
    metrics = facts.compared(model)
    heads = [
        facts.label(model, metric) + (" (lower is better)" if metric.better == "lower" else "")
        for metric in metrics
    ]
    rows = [
        (
            _escaped(arm),
            *(_cell(facts, (model, arm, m.suite, m.name)) for m in metrics),
        )
        for arm in facts.arms
        if arm != facts.reference
    ]
    caption = _CAPTION.format(reference=_escaped(facts.reference), model=_escaped(model))
    lines = [
        r"\begin{table}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:verdicts-{model}}}",
        rf"\begin{{tabular}}{{l{'l' * len(metrics)}}}",
        r"\toprule",
        _row(["arm", *map(_escaped, heads)]),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(facts: Facts, place: Place) -> str:
    found = facts.comparisons.get(place)
    if found is None or found.verdict == "no verdict":
        return "n/a"
    but = f" ({facts.exceptions[place]})" if facts.exceptions[place] else ""
    return _SHOWN.get(found.verdict, "%s") % difference(found) + but


def _escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return " ".join(text.split()).translate(_ESCAPED)
