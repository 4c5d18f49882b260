"""The tables and the chart of `speed.md`, of what `benchmarks/speed.py` has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

from reading import numbers, table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "speed.json"
CHART = Path(__file__).parent / "assets" / "speed.svg"
COLOURS = {"SAELens": "#8a97a6", "fast": "#1f8a70"}
OTHERS, FLOOR = "#c7873b", "#c9d1d9"
KINDS = {
    "standard": "standard",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "groupmax": "GroupMax",
    "matryoshka_batchtopk": "Matryoshka",
    "jumprelu": "JumpReLU",
    "gated": "gated",
    "floor": "the floor: nothing but products",
}
"""The kinds of SAEs, by the part of an arm's name that says so; an arm without one is standard."""
SMALL = "fill='#3c4a58' font-size='11'"
LABELS, BARS, ROW = 230, 500, 22
"""Room for labels, the longest bar, and the height of a row."""

Results = dict[str, Any]


def measured() -> Results:
    """What was measured last."""
    results: Results = json.loads(RESULTS.read_text("utf-8"))
    return results


def conditions(results: Results) -> str:
    """What was measured on, in a sentence."""
    machine = results["machine"]
    return (
        f"Measured on {machine['date']}: {machine['processor']}, one thread, load "
        f"{machine['load']}, torch {machine['torch']}, SAELens {machine['sae_lens']}, "
        f"{', '.join(results['peers'].values())}; {results['rounds']} rounds."
    )


def times(_: str) -> Iterator[str]:
    """Time over SAELens' standard step, by arm and shape."""
    results = measured()
    shapes = results["shapes"]
    found = {(row["arm"], s["shape"]): row for s in shapes for row in s["time"]}
    heads = [f"{s['shape']} ({s['seconds'] * 1e3:.0f} ms)" for s in shapes]
    yield f"{conditions(results)} {' '.join(results['missing'])}".strip()
    yield ""
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in found):
        cells = [found.get((arm, s["shape"])) for s in shapes]
        texts = ["{ratio:.3f} [{low:.3f}, {high:.3f}]".format(**c) if c else "" for c in cells]
        rows.append([arm, *texts])
    yield from numbers(table(["arm", *heads], rows))


def memory(_: str) -> Iterator[str]:
    """Peak memory over that of SAELens' step of the same kind."""
    shapes = measured()["shapes"]
    found = {(row["arm"], s["shape"]): row for s in shapes for row in s["memory"]}
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in found):
        cells = [found.get((arm, s["shape"])) for s in shapes]
        rows.append([arm, *("{ratio:.3f} ({mib:.0f} MiB)".format(**c) if c else "" for c in cells)])
    yield from numbers(table(["arm", *(s["shape"] for s in shapes)], rows))


def chart() -> str:
    """The first shape's times as bars, in groups by kind of SAE."""
    results = measured()
    first = results["shapes"][0]
    rows = [{"arm": "standard, SAELens", "ratio": 1.0, "low": 1.0, "high": 1.0}, *first["time"]]
    unit = BARS / max(row["high"] for row in rows)
    lines, y = [], 58
    for kind, group in _groups(rows).items():
        lines.append(_text(16, y + 15, kind, "font-weight='600'"))
        for row in group:
            y += ROW
            lines += _bar(row, y, unit)
        y += ROW + 12
    foot = wrap(conditions(results), 110)
    width, height = LABELS + BARS + 80, y + 28 + 14 * len(foot)
    what = "Time of a training step, SAELens' standard step = 1"
    where = f"d_in/d_sae/batch {first['shape']}; L0 {results['l0']}; shorter is faster"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13" fill="#1c2733">',
            f"<title>{escape(what)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            _text(16, 26, what, "font-size='16'"),
            _text(16, 45, where, "fill='#3c4a58'"),
            f'<path d="M{LABELS + unit:.1f} 52V{y}" stroke="#8a97a6" stroke-dasharray="3 3"/>',
            *lines,
            *(_text(16, y + 26 + 14 * i, text, SMALL) for i, text in enumerate(foot)),
            "</svg>\n",
        ]
    )


def _groups(rows: list[Results]) -> dict[str, list[Results]]:
    """Rows by kind of SAE, each kind's slowest first, and the floor last."""
    groups: dict[str, list[Results]] = {kind: [] for kind in KINDS.values()}
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        kinds = [KINDS[part] for part in row["arm"].split(", ") if part in KINDS]
        groups[kinds[0] if kinds else KINDS["standard"]].append(row)
    return {kind: group for kind, group in groups.items() if group}


def _bar(row: Results, y: int, unit: float) -> list[str]:
    parts = [part for part in row["arm"].split(", ") if part not in KINDS]
    side = next((part for part in parts if part in COLOURS), "")
    label = ", ".join(sorted(parts, key=lambda part: part != side)).replace("fast", "ours, fast")
    fill = COLOURS.get(side, FLOOR if row["arm"].startswith("floor") else OTHERS)
    end, low, high = (round(unit * row[name], 1) for name in ("ratio", "low", "high"))
    return [
        _text(LABELS - 8, y + 15, label, "text-anchor='end'"),
        f'<rect x="{LABELS}" y="{y + 3}" width="{end}" height="{ROW - 6}" rx="2" fill="{fill}"/>',
        f'<path d="M{LABELS + low} {y + ROW // 2}H{LABELS + high}" stroke="#1c2733"/>',
        _text(LABELS + max(end, high) + 8, y + 15, f"{row['ratio']:.2f}", "font-weight='600'"),
    ]


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(text)}</text>'
