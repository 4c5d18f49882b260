"""The tables and the chart of `speed.md`, of what `benchmarks/speed.py` has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from reading import table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "speed.json"
CHART = Path(__file__).parent / "assets" / "speed.svg"
COLOURS = {"SAELens": "#8a97a6", "fast": "#1f8a70", "floor": "#c9d1d9"}
OTHERS = "#c7873b"
KINDS = {
    "standard": "standard",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "groupmax": "GroupMax",
    "matryoshka_batchtopk": "Matryoshka",
    "jumprelu": "JumpReLU",
    "gated": "gated",
}
LABEL, BAR, ROW = 250, 400, 22
"""Where bars begin, how long one of 1 is, and how high a row is."""

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
    yield from table(["arm", *heads], rows)


def memory(_: str) -> Iterator[str]:
    """Peak memory over that of SAELens' step of the same kind."""
    shapes = measured()["shapes"]
    found = {(row["arm"], s["shape"]): row for s in shapes for row in s["memory"]}
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in found):
        cells = [found.get((arm, s["shape"])) for s in shapes]
        rows.append([arm, *("{ratio:.3f} ({mib:.0f} MiB)".format(**c) if c else "" for c in cells)])
    yield from table(["arm", *(s["shape"] for s in shapes)], rows)


def chart() -> str:
    """The first shape's times as bars, in groups by kind of SAE."""
    results = measured()
    first = results["shapes"][0]
    rows = [{"arm": "standard, SAELens", "ratio": 1.0, "low": 1.0, "high": 1.0}, *first["time"]]
    lines, y = [], 58
    for name, group in _groups(rows).items():
        lines.append(_text(16, y + 15, name, "font-weight='600'"))
        for row in group:
            y += ROW
            lines += _bar(row, y)
        y += ROW + 12
    width, height = LABEL + int(BAR * 1.75), y + 44
    title = f"Time of a training step over SAELens' standard step, {first['shape']}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#1c2733">'
    )
    back = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    sub = f"d_in / d_sae / batch {first['shape']}; L0 {results['l0']}; shorter is faster"
    x = LABEL + BAR
    line = f'<path d="M{x} 52V{y}" stroke="#8a97a6" stroke-dasharray="3 3"/>'
    foot = conditions(results)
    top = [
        _text(16, 26, "Time of a training step, SAELens' standard step = 1", "font-size='16'"),
        _text(16, 45, sub, "fill='#3c4a58'"),
    ]
    bottom = _text(16, height - 16, foot, "fill='#3c4a58' font-size='10'")
    body = [head, f"<title>{escape(title)}</title>", back, *top, line, *lines, bottom, "</svg>"]
    return "\n".join(body) + "\n"


def _groups(rows: list[Results]) -> dict[str, list[Results]]:
    """Rows by kind of SAE, each kind's slowest first; those of both methods and the floor last."""
    groups: dict[str, list[Results]] = {shown: [] for shown in KINDS.values()}
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        kinds = [KINDS[part] for part in row["arm"].split(", ") if part in KINDS]
        other = "nothing but products" if row["arm"].startswith("floor") else "both methods"
        groups.setdefault(kinds[0] if kinds else other, []).append(row)
    last = groups.pop("nothing but products", [])
    shown = {name: group for name, group in groups.items() if group}
    return {**shown, "nothing but products": last} if last else shown


def _bar(row: Results, y: int) -> list[str]:
    parts = [part for part in row["arm"].split(", ") if part not in KINDS]
    side = next((part for part in parts if part in COLOURS), None)
    fill, length = COLOURS.get(side or "", OTHERS), round(BAR * min(row["ratio"], 1.6), 1)
    label = ", ".join(parts).replace("fast", "ours, fast step")
    low, high = (LABEL + round(BAR * min(row[end], 1.6), 1) for end in ("low", "high"))
    value = f"{row['ratio']:.2f}" + (" (cut off)" if row["ratio"] > 1.6 else "")
    return [
        _text(LABEL - 8, y + 15, label, "text-anchor='end'"),
        f'<rect x="{LABEL}" y="{y + 3}" width="{length}" height="{ROW - 6}" rx="2" fill="{fill}"/>',
        f'<path d="M{low} {y + ROW // 2}H{high}" stroke="#1c2733"/>',
        _text(max(LABEL + length, high) + 8, y + 15, value, "font-weight='600'"),
    ]


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
