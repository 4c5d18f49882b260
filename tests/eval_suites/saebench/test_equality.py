"""Our suites give SAEBench's own numbers, whatever came before and wherever they run."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expected import SUITES

from sae_plugins.base.patches import replaced

PROBING = "sparse-probing"
SAES = ("standard", "topk")
DEPENDS_ON_PLACE = (PROBING, "tpp", "unlearning")
"""Suites in which an SAE that is not the first of a call has other numbers (hazards 20 and 42)."""
SLOWER = ("absorption", "tpp", "sae-probes", "autointerp", "ravel")
"""Suites that take seconds even in tiny settings."""
QUICK = ("core", PROBING, "unlearning")
"""Suites whose own numbers SAEBench finds in a second."""
OURS = {
    "explained_variance_centred", "num_letters", "latents_scored", "random_active",
    "interventions_kept",
}  # fmt: skip
"""Metrics that SAEBench does not have, beside those of padding."""


def numbers(scores: Any) -> dict[str, float | None]:
    """Value by name, of the metrics that are SAEBench's too."""
    return {
        name: metric.value
        for name, metric in scores.metrics.items()
        if name not in OURS and not name.startswith("padding_leak_")
    }


def check_equal(scores: Any, theirs: dict[str, float]) -> None:
    """Compare every metric; SAEBench's standard deviations and counts are elsewhere in ours."""
    expected = {n: v for n, v in theirs.items() if not n.startswith(("std_dev_", "total_tokens_"))}
    assert numbers(scores) == pytest.approx(expected, abs=1e-6, nan_ok=False)
    for name, value in theirs.items():
        if name.startswith("std_dev_"):
            mean = scores.metrics[f"mean_{name.removeprefix('std_dev_')}"]
            assert mean.std == pytest.approx(value, abs=1e-6)


def everything(scores: Any) -> dict[str, Any]:
    """All that is said about an SAE, but for when, of SAEBench's JSON."""
    raw = json.loads(scores.raw)
    for name in ("eval_id", "datetime_epoch_millis", "unique_id"):
        raw.pop(name, None)
    return {**vars(scores), "raw": raw}


def ci(value):
    return pytest.param(value, marks=pytest.mark.ci)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("suite", "sae"),
    [
        *(
            pytest.param(suite, "topk", marks=() if suite in QUICK else pytest.mark.ci)
            for suite in SUITES
        ),
        *(
            pytest.param(
                suite,
                "standard",
                marks=pytest.mark.ci if suite in QUICK else pytest.mark.slow,
            )
            for suite in SUITES
        ),
    ],
)
def test_without_shortcuts_every_number_is_saebenchs(suite, sae, lab):
    subject = getattr(lab, sae)
    if suite == PROBING and sae == "standard":
        # one call for both: a second would find another random state
        both = lab.saebench(suite, lab.standard, lab.topk)
        theirs = both[SAES.index(sae)]
    else:
        (theirs,) = lab.saebench(suite, subject, **SUITES[suite].exact)
    check_equal(lab.scores(suite, subject, **SUITES[suite].exact), theirs)


@contextmanager
def one_random_state() -> Iterator[None]:
    """SAEBench's absorption goes on from one random state for all SAEs of a call."""
    from sae_bench.evals.absorption import k_sparse_probing

    own, states = k_sparse_probing.load_or_train_probe, []

    def load_or_train_probe(*args: Any, **options: Any) -> Any:
        probe = own(*args, **options)  # trained for the first SAE, found by the second
        states.append((random.getstate(), torch.get_rng_state()))
        random.setstate(states[0][0])
        torch.set_rng_state(states[0][1])
        return probe

    with replaced(k_sparse_probing, load_or_train_probe=load_or_train_probe):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite not in DEPENDS_ON_PLACE])
def test_the_second_sae_of_a_call_has_saebenchs_numbers(suite, lab):
    """Nothing of the first SAE reaches the second, neither in SAEBench nor here."""
    with one_random_state():
        _, theirs = lab.saebench(suite, lab.standard, lab.topk)
    exact = {**SUITES[suite].exact, "cache": "in one call"}
    _, ours = (lab.scores(suite, subject, **exact) for subject in (lab.standard, lab.topk))
    check_equal(ours, theirs)


@pytest.mark.parametrize("sae", ["topk", slow("standard")])
@pytest.mark.parametrize("suite", ["core", ci("absorption"), "scr", ci("tpp")])
def test_shortcuts_move_no_number(suite, sae, lab):
    subject = getattr(lab, sae)
    exact, fast = lab.scores(suite, subject, **SUITES[suite].exact), lab.scores(suite, subject)
    assert numbers(fast) == pytest.approx(numbers(exact), abs=1e-6)
    assert fast.details.keys() == exact.details.keys()
    for item, row in exact.details.items():
        assert fast.details[item] == pytest.approx(row, abs=1e-6)


@pytest.mark.ci
def test_with_shared_probes_it_is_what_saebench_says_of_a_second_sae(lab):
    """Then its artifacts are there already, and its random state is that of the seed."""
    _, theirs = lab.saebench(PROBING, lab.standard, lab.topk)
    ours = lab.scores(PROBING, lab.topk)
    of_the_sae = {name for name in theirs if name.startswith("sae_")}
    assert len(of_the_sae) == 3
    for name in of_the_sae:
        assert ours.metrics[name].value == pytest.approx(theirs[name], abs=1e-6), name


@pytest.mark.parametrize(
    "suite",
    [
        "core",
        ci("scr"),
        ci("tpp"),
        ci(PROBING),
        ci("sae-probes"),
        ci("autointerp"),
        ci("ravel"),
        "unlearning",
        slow("absorption"),
    ],
)
def test_the_order_of_saes_and_the_cache_change_nothing(suite, lab):
    """Not a bit, whether an SAE finds no cache, or one that is warm from another SAE."""
    first, second = (everything(lab.scores(suite, s)) for s in (lab.standard, lab.topk))
    other, another = (everything(lab.scores(suite, s, "else")) for s in (lab.topk, lab.standard))
    assert first == another
    assert second == other


@pytest.mark.parametrize("suite", [ci(s) if s in SLOWER else s for s in SUITES])
def test_evaluations_leave_no_trace(suite, lab, tmp_path, monkeypatch):
    """Neither in random states, grad mode and environment nor in the working folder."""
    importlib.import_module(f"sae_bench.evals.{SUITES[suite].module}")  # scikit-learn sets one
    monkeypatch.chdir(tmp_path)
    torch.set_grad_enabled(False)
    before = dict(os.environ), random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    tokenizer = lab.model.hooked.tokenizer
    sides = tokenizer.truncation_side, tokenizer.padding_side
    try:
        lab.evaluate(suite, lab.topk)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    after = dict(os.environ), random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert (before[3] == after[3]).all()
    assert not list(tmp_path.iterdir())
    assert "run_with_cache" not in vars(lab.model.hooked)
    assert (tokenizer.truncation_side, tokenizer.padding_side) == sides


IN_A_PROCESS = """
import importlib.util, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
spec = importlib.util.spec_from_file_location("conftest_of_eval_suites", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
sys.modules["conftest_of_eval_suites"] = conftest
spec.loader.exec_module(conftest)
lab = conftest.Lab(Path(sys.argv[2]))
found = {}
for suite in conftest.SUITES:
    scores = lab.scores(suite, lab.topk)
    found[suite] = [{n: v.model_dump() for n, v in scores.metrics.items()}, scores.details]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_process_gives_the_same_numbers(lab, tmp_path):
    tests = Path(__file__).parents[2]
    conftest = tests / "eval_suites" / "conftest.py"
    found = []
    for number in (1, 2):
        result = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, conftest, tmp_path / str(number), tests],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(result.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    for suite, (metrics, details) in found[0].items():
        scores = lab.scores(suite, lab.topk)
        assert {n: v.model_dump() for n, v in scores.metrics.items()} == metrics
        assert scores.details == details


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_scr_of_saes_that_scale_each_token(scaling, lab):
    """Their decoders are not affine in the sum of codes, which must be found out."""
    subject = lab.sae("standard", scaling, normalize_activations=scaling)
    exact, fast = lab.scores("scr", subject, **SUITES["scr"].exact), lab.scores("scr", subject)
    assert numbers(fast) == pytest.approx(numbers(exact), abs=1e-6)
    assert not any("added up" in text for text in fast.deviations)
