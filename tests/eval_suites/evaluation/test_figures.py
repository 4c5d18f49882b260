"""The figures of an evaluation show the results that there are, of one SAE and of twelve."""

import string

import numpy as np
import pytest

from sae_plugins.eval_suites.evaluation.figures import (
    absorption_by_letter,
    core_overview,
    probing_by_k,
    save_all,
    scr_by_ablations,
    tpp_by_ablations,
)
from sae_plugins.eval_suites.evaluation.results import Result, SAEInfo
from sae_plugins.eval_suites.suite import Value


def result(metrics, details=None, seed=42):
    info = SAEInfo(
        name="a", source="a", hash="h", architecture="topk", d_in=4, d_sae=8, hook_name="hook"
    )
    return Result(
        suite="suite", status="ok", sae=info, seed=seed, preset="quick", details=details or {},
        metrics={name: Value(value=value) for name, value in metrics.items()},
    )  # fmt: skip


def core(variance=0.9):
    values = {"explained_variance_centred": variance, "ce_loss_score": 0.95, "kl_div_score": 0.9}
    return result({**values, "l0": 32.3})


def absorption(rate=0.3, letters=string.ascii_lowercase, words=10):
    row = {
        "full_absorption_rate": rate,
        "num_full_absorption": round(rate * words),
        "num_probe_true_positives": words,
    }
    return result({}, dict.fromkeys(letters, row))


def scr(scale=1.0, seed=42):
    return result({f"scr_metric_threshold_{n}": scale * n / 500 for n in (2, 20, 500)}, seed=seed)


def tpp(scale=1.0, seed=42):
    return result({f"tpp_threshold_{n}_total_metric": scale * n for n in (2, 20)}, seed=seed)


def probing():
    sae = {f"sae_top_{k}_test_accuracy": 0.6 + k / 100 for k in (1, 2, 5)}
    llm = {f"llm_top_{k}_test_accuracy": 0.55 for k in (1, 2, 5)}
    return result({**sae, **llm, "llm_test_accuracy": 0.9, "sae_test_accuracy": 0.85})


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_core_has_a_bar_per_metric_and_sae_and_tells_l0():
    panel = core_overview({"a, L0 32.3": [core()], "b": [core(0.5)]}).axes[0]
    assert [bar.get_width() for bar in panel.containers[0]] == [0.9, 0.5]
    assert panel.get_yticklabels()[0].get_text() == "a\nL0 32.3"


def test_core_shows_spread_over_seeds_and_values_below_zero():
    figure = core_overview({"a": [core(-0.4), core(-0.6)]})
    assert figure.axes[0].get_xlim()[0] < -0.5
    assert "2 seeds" in figure.axes[0].get_title("left")


def test_absorption_has_a_bar_per_letter_that_any_sae_has():
    saes = {"a": [absorption(0.3)], "b": [absorption(0.6, "xyz")]}
    figure = absorption_by_letter(saes)
    panel = figure.axes[0]
    assert len(panel.get_xticklabels()) == 26
    heights = np.array([bar.get_height() for bar in panel.containers[3]])
    np.testing.assert_array_equal(np.isnan(heights), [True] * 23 + [False] * 3)
    assert names(figure) == ["a", "b"]


def test_absorption_has_an_interval_by_the_number_of_words_and_the_mean_of_letters():
    found = [result({}, absorption(0.5, "a").details | absorption(0.1, "b", 1000).details)]
    panel = absorption_by_letter({"a": found}).axes[0]
    (few, many) = panel.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(few[:, 1], [0.2366, 0.7634], atol=1e-4)  # Wilson, 5 of 10
    assert many[1, 1] - many[0, 1] < 0.04
    assert [line.get_ydata()[0] for line in panel.get_lines() if line.get_linestyle() == ":"] == [
        pytest.approx(0.3)
    ]


def test_scr_is_a_line_per_sae_with_a_band_where_seeds_differ():
    panel = scr_by_ablations({"a": [scr(1, 1), scr(2, 2)], "b": [scr()]}).axes[0]
    np.testing.assert_allclose(panel.get_lines()[0].get_ydata(), [0.006, 0.06, 1.5])
    assert len(panel.collections) == 1
    assert panel.get_xscale() == "log"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["2", "20", "500"]


def test_tpp_is_a_line_per_sae_over_the_number_in_the_middle_of_its_name():
    panel = tpp_by_ablations({"a": [tpp(1, 1), tpp(2, 2)], "b": [tpp()]}).axes[0]
    np.testing.assert_allclose(panel.get_lines()[0].get_ydata(), [3, 30])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["2", "20"]


def test_probing_has_the_models_own_accuracy_dashed():
    figure = probing_by_k({"a": [probing()]})
    lines = figure.axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "--", ":"]
    assert names(figure) == ["a", "language model's own channels", "language model, all channels"]


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.ci)])
def test_all_are_saved_whatever_the_number_of_saes(count, tmp_path):
    labels = [f"batchtopk_hybrid-order_seed{n}" for n in range(count)]
    saes = {
        "core": {label: [core()] for label in labels},
        "absorption": {label: [absorption()] for label in labels},
        "scr": {label: [scr()] for label in labels},
        "tpp": {label: [tpp()] for label in labels},
        "sparse-probing": {label: [probing()] for label in labels},
        "sae-probes": {label: [probing()] for label in labels},
        "ground-truth": {label: [core()] for label in labels},
    }
    files = save_all(saes, tmp_path / "figures")
    assert len(files) == 6
    assert all(file.stat().st_size > 5000 for file in files)


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert save_all({"core": {}, "scr": {"a": [core()]}}, tmp_path) == []
