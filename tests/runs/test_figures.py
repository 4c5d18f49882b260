"""The figures hold the data they are given, whatever it is, and leave matplotlib alone."""

from pathlib import PurePath

import matplotlib
import numpy as np
import pytest

from sae_plugins.base.plots import save
from sae_plugins.runs.figures import (
    Snapshot,
    firing_by_position,
    groups,
    loss_and_l0,
    of_group,
)
from sae_plugins.runs.folder import metrics_figure


def row(step, **values):
    metrics = {
        "losses/overall_loss": 600.0 / step + 1,
        "losses/mse_loss": 600.0 / step,
        "losses/l1_loss": 1.0,
        "losses/never_used": 0.0,
        "metrics/l0": 40.0,
        "metrics/explained_variance": 0.5,
    }
    return {"step": step, **metrics, **values}


ROWS = [
    row(10),
    row(20, **{"losses/mse_loss": None}),
    {"step": 25, "changes/permuted": 64, "reorder/event": 1},
    row(30),
    row(300, **{"changes/reset": 2}),
]


def labels(panel):
    return [line.get_label() for line in panel.get_lines() if line.get_label()[0] != "_"]


def test_loss_terms_l0_and_explained_variance_over_steps():
    loss, l0, variance = loss_and_l0(ROWS).axes
    assert labels(loss) == ["mse_loss", "l1_loss", "total", "features changed"]
    np.testing.assert_allclose(loss.get_lines()[0].get_xydata(), [[10, 60], [30, 20], [300, 2]])
    assert loss.get_yscale() == "log"
    assert l0.get_yscale() == "linear"
    assert "log" in loss.get_ylabel()
    np.testing.assert_allclose(l0.get_lines()[0].get_ydata(), 40)
    np.testing.assert_allclose(variance.get_lines()[0].get_ydata(), 0.5)
    marks = [line.get_xdata()[0] for line in variance.get_lines()[1:]]
    assert marks == [25, 300]


def test_a_negative_loss_term_is_drawn_on_a_linear_axis():
    assert loss_and_l0([row(1, **{"losses/reward": -5.0}), *ROWS]).axes[0].get_yscale() == "linear"


def test_early_explained_variance_below_zero_does_not_squeeze_the_rest():
    rows = [row(1, **{"metrics/explained_variance": -40.0}), *(row(step) for step in range(2, 200))]
    assert loss_and_l0(rows).axes[2].get_ylim() == pytest.approx((0.45, 1.02))


def test_explained_variance_that_ends_below_zero_is_in_the_picture():
    rows = [row(step, **{"metrics/explained_variance": -0.4}) for step in range(1, 20)]
    assert loss_and_l0(rows).axes[2].get_ylim()[0] < -0.4


def test_firing_frequency_by_position():
    frequency = np.array([0.5, 0.1, 0.0, 0.001])
    shots = [Snapshot("start", 50, 1000, frequency), Snapshot("end", 9000, 1000, frequency)]
    figure = firing_by_position(shots, d_sae=4)
    first, last = figure.axes
    np.testing.assert_allclose(first.collections[0].get_offsets(), [[0, 0.5], [1, 0.1], [3, 0.001]])
    (silent,) = np.asarray(first.collections[1].get_offsets())
    assert silent[0] == 2
    assert first.get_ylim()[0] < silent[1] < 1 / 1000
    assert last.get_title() == "end: step 9,000\n1 of 4 silent in 1,000 tokens"


@pytest.mark.parametrize(
    "figure",
    [
        loss_and_l0([]),
        loss_and_l0(ROWS[2:3]),
        firing_by_position([], 8),
        firing_by_position([Snapshot("start", 1, 16, np.zeros(8))], 8),
    ],
    ids=["no rows", "no metrics", "no snapshots", "nothing fires"],
)
def test_degenerate_data_is_drawn_without_warnings(figure, tmp_path, recwarn):
    save(figure, tmp_path / "figure.png")
    assert not list(recwarn)


def test_saving_is_atomic_and_changes_no_global_state(tmp_path):
    settings = [name for name in matplotlib.rcParams if name != "backend"]  # set when looked at
    before = [matplotlib.rcParams[name] for name in settings]
    path = tmp_path / "figure.png"
    path.write_bytes(b"an older one")
    save(loss_and_l0(ROWS), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert [matplotlib.rcParams[name] for name in settings] == before


def test_a_plugin_s_metrics_have_a_panel_each_with_what_they_are():
    rows = [
        {"step": step, "mine/size": step, "mine/../odd": None, "theirs/a b/c": 1.0, "losses/l1": 1}
        for step in (1, 100)
    ]
    found = groups([*ROWS, *rows])
    assert found == {
        "reorder": ["reorder/event"],
        "mine": ["mine/size", "mine/../odd"],
        "theirs": ["theirs/a b/c"],
    }
    size, odd = of_group(rows, found["mine"], {"size": "how large it is"}).axes
    assert size.get_title() == "size (log scale)\nhow large it is"
    np.testing.assert_allclose(size.get_lines()[0].get_xydata(), [[1, 1], [100, 100]])
    assert odd.get_title() == "../odd"


def test_values_of_zero_are_on_the_axis():
    rows = [{"step": step, "mine/size": value} for step, value in ((1, 0.0), (2, 1.0), (3, 100.0))]
    assert of_group(rows, ["mine/size"], {}).axes[0].get_yscale() == "linear"


def test_any_name_of_a_metric_can_be_drawn(tmp_path):
    names = ["odd/cost $x^$", "/x", "plain", "a b/x", "a-b/x", f"{'g' * 300}/x", "n/é$\\frac$"]
    rows = [{"step": step, **dict.fromkeys(names, 1.0)} for step in (1, 2)]
    found = groups(rows)
    assert sorted(name for group in found.values() for name in group) == sorted(names)
    files = [metrics_figure(group, 1) for group in found]
    assert len(set(files)) == len(files)
    assert max(map(len, files)) < 100
    for group, members in found.items():
        path = tmp_path / metrics_figure(group, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(of_group(rows, members, {}), path)
    save(loss_and_l0([{"step": 1, "losses/$x^$": 1.0}]), tmp_path / "loss.png")


def test_no_two_groups_of_any_sae_share_a_figure():
    groups = ["a", "a-2", "a.2", "a-2-2", "..", "a/2", "A 2", "metrics-2/a"]
    files = {metrics_figure(group, number) for group in groups for number in (1, 2, 22)}
    assert len(files) == 3 * len(groups)
    assert {str(PurePath(file).parent) for file in files} == {
        *("figures/metrics", "figures/metrics-2", "figures/metrics-22"),
    }
    assert metrics_figure("reorder", 1) == "figures/metrics/reorder.png"


def test_a_figure_of_hundreds_of_metrics_says_how_many_it_leaves_out():
    names = [f"mine/{number}" for number in range(300)]
    figure = of_group([{"step": 1, **dict.fromkeys(names, 1.0)}], names, {})
    assert len(figure.axes) == 24
    assert figure.get_suptitle() == "276 more are in metrics.jsonl"
