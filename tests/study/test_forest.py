"""The forest plot shows each comparison with its interval, its margin and its verdict."""

import pytest

from sae_plugins.study.forest import draw, forest, plotly
from sae_plugins.study.statistics import Comparison

ROWS = [
    ("up", Comparison("better", 5, 0.05, (0.04, 0.07), margin=0.01)),
    ("down", Comparison("worse", 5, -0.05, (-0.06, -0.04), margin=0.01)),
    ("<same>", Comparison("equivalent", 5, 0.001, (-0.002, 0.004), margin=0.01)),
    ("$unclear$", Comparison("not distinguishable", 5, 0.004, (-0.01, 0.02), margin=0.01)),
    ("few", Comparison("underpowered", 5, 0.01, (-0.2, 0.2), margin=0.01)),
    ("one seed", Comparison("no verdict", 1, reason="one seed")),
]


def test_each_verdict_has_a_mark_and_an_interval_of_its_own():
    data, layout = plotly(forest("EV ↑", ROWS))
    assert [trace["name"] for trace in data] == [row.verdict for _, row in ROWS[:5]]
    marks = {(trace["marker"]["symbol"], trace["marker"]["color"]) for trace in data}
    assert len(marks) == 5
    assert data[0]["marker"]["symbol"] != data[1]["marker"]["symbol"]  # without colour, too
    assert data[0]["error_x"]["array"] == [pytest.approx(0.02)]
    assert data[0]["error_x"]["arrayminus"] == [pytest.approx(0.01)]
    assert layout["yaxis"]["categoryarray"][2] == "&lt;same&gt;"
    band = layout["shapes"][1]
    assert (band["x0"], band["x1"]) == (-0.01, 0.01)


def test_metrics_share_their_arms_and_what_was_not_compared_is_left_out():
    figure = draw([forest("EV ↑", ROWS), forest("MCC ↑", ROWS[1:3])])
    first, second = figure.axes[:2]
    assert [label.get_text() for label in first.get_yticklabels()][:2] == ["up", "down"]
    assert len(first.containers) == 5
    assert len(second.containers) == 2
    assert {round(line.get_ydata()[0]) for line in second.get_lines()[1:]} == {1, 2}
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["better", "worse"]


FAR = Comparison("worse", 5, -1.0, (-1.1, -0.9), margin=0.01)
WIDE = Comparison("underpowered", 5, 0.01, (-0.5, 0.7), margin=0.01)


def test_an_arm_far_off_is_an_arrow_at_the_edge_with_its_number():
    near = ROWS[:4]
    assert forest("EV ↑", [*near, ROWS[4]]).axis is None, "nothing is far off"
    shown = forest("EV ↑", [*near, ("untrained", FAR)])
    low, high = shown.axis
    assert -0.1 < low < -0.06
    assert 0.07 < high < 0.1
    (edge,) = shown.edges
    assert (edge.arm, edge.x, edge.side, edge.text) == ("untrained", low, "left", "◀ ▼ -1.00")
    _, layout = plotly(shown)
    assert layout["xaxis"]["range"] == [low, high]
    assert [note["text"] for note in layout["annotations"]] == ["◀ ▼ -1.00"]
    (axis,) = draw([shown]).axes
    assert axis.get_xlim() == (low, high)
    assert [text.get_text().strip() for text in axis.texts] == ["◀ ▼ -1.00"]


def test_an_interval_that_ends_off_the_axis_has_arrows_without_a_number():
    shown = forest("EV ↑", [*ROWS[:4], ("noisy", WIDE)])
    assert [(edge.side, edge.text) for edge in shown.edges] == [("left", "◀"), ("right", "▶")]


def test_arms_that_grow_further_by_and_by_are_all_on_the_axis():
    rows = [
        (str(reach), Comparison("worse", 5, -reach, (-1.1 * reach, -0.9 * reach)))
        for reach in (0.01, 0.01, 0.018, 0.033, 0.06, 0.11)
    ]
    assert forest("EV ↑", rows).axis is None
    assert forest("EV ↑", []).axis is None
