"""At which L0 arms are compared, in words."""

from __future__ import annotations

from typing import Any

from sae_plugins.framework.calibration import Calibration
from sae_plugins.study.equal_l0 import in_words, warnings
from sae_plugins.study.findings import Trained


def sae(
    l0: float, wanted: float | None = 8, arm: str = "l1", seed: int = 0, **found: Any
) -> Trained:
    how = {"reached": wanted, "most": 20.0, "spread": 0.003, "tokens": 65_536, "threshold": 0.1,
           "lowers": False, **found}  # fmt: skip
    calibration = None if wanted is None else Calibration(l0=wanted, **how)
    return Trained(model="toy", arm=arm, sparsity=f"l0={wanted}", seed=seed, folder="here",
                   status="ok", l0=l0, calibration=calibration)  # fmt: skip


def test_exact_l0s_are_compared_at_what_is_wanted() -> None:
    assert sae(8.01).at == 8
    assert sae(7.2, reached=7.2, most=7.2).at == 7.2, "which it has not"
    assert sae(8.01, wanted=None).at == 8.01


def test_exact_l0s_are_told_from_interpolated_ones() -> None:
    exact = [sae(8.01), sae(7.98, arm="topk"), sae(4.004, wanted=4)]
    text = in_words(exact)
    assert text.startswith("L0 is exactly equal: the thresholds of each SAE were set on 65,536")
    assert "it is within 0.25% of that, and SAEs of the same seed that want the same" in text
    assert "are within 0.38% of each other. No score is interpolated." in text
    assert in_words([*exact, sae(8.0, wanted=None, arm="abstopk")]).endswith("is interpolated.")
    short = sae(7.2, arm="short", reached=7.2, most=7.2)
    assert in_words([*exact, short]).endswith(
        "It is interpolated for short, which have another L0."
    )
    assert in_words([sae(8.3, wanted=None), sae(7.9, wanted=None)]).startswith(
        "L0 is interpolated: scores at equal L0 are read between those of SAEs"
    )
    assert in_words([]) == ""


def test_what_misses_its_l0_is_said_once_for_an_arm() -> None:
    short = [sae(7.2, seed=seed, reached=7.2, most=7.2) for seed in (0, 1, 2)]
    (warning,) = warnings([*short, sae(8.01, arm="topk")])
    assert warning == (
        "toy, l1, seed 0 (and 2 more of its SAEs): an L0 of 8 is wanted, and without any threshold "
        "it is 7.2: train with less sparsity"
    )


def test_text_that_is_too_short_is_said() -> None:
    assert list(warnings([sae(8.03), sae(7.97)])) == []
    (warning,) = warnings([sae(8.03), sae(7.9, spread=0.013, tokens=4096, arm="topk")])
    assert warning == (
        "toy: on held-out text, 1 of 2 SAEs with exact L0s miss them by more than 0.5% (topk has "
        "7.9 for 8). The 4,096 tokens that set thresholds tell the L0 of as many others to 1.3%: "
        "give more calibrate_tokens, and as many heldout_tokens. SAEs of the same seed share both "
        "texts, and miss it alike"
    )
