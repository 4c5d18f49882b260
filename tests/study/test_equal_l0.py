"""At which L0 arms are compared, in words."""

from __future__ import annotations

from typing import Any

import pytest

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


def test_an_sae_is_exact_if_it_has_the_wanted_l0() -> None:
    assert sae(8.01).exact_l0 == 8
    assert sae(7.2, reached=7.2, most=7.2).exact_l0 is None, "which it has not"
    assert sae(8.01, wanted=None).exact_l0 is None


def test_exact_l0s_are_told_from_interpolated_ones() -> None:
    exact = [sae(8.01), sae(7.98, arm="topk"), sae(4.004, wanted=4)]
    text = in_words(exact, "l1")
    assert text == (
        "Each SAE has exactly the wanted L0 on the 65,536 tokens that its thresholds were set on, "
        "which it was not trained on. On the other held-out tokens that measure L0, it is within "
        "0.25% of that, and SAEs of the same seed that want the same L0 are within 0.38% of each "
        "other. Arms are compared at the wanted L0s, and no score is interpolated."
    )
    samples = in_words(exact, "l1", "samples")
    assert "65,536 samples" in samples
    assert "held-out samples" in samples
    assert "text" not in samples
    assert "tokens" not in samples
    assert in_words([sae(8.3, wanted=None), sae(7.9, wanted=None)], "l1").startswith(
        "L0 is interpolated: scores at equal L0 are read between those of SAEs"
    )
    assert in_words([], "l1") == ""
    none = in_words([sae(7.2, reached=7.2, most=7.2)], "l1")
    assert none.startswith("L0 is interpolated, since l1 has SAEs that miss the wanted L0: ")


@pytest.mark.parametrize(
    "other", [{"wanted": None}, {"reached": 7.2, "most": 7.2}], ids=["abstopk", "short"]
)
def test_arms_with_another_l0_are_said_to_be_interpolated(other: Any) -> None:
    exact = [sae(8.01), sae(7.98, arm="topk"), sae(4.004, wanted=4)]
    text = in_words([*exact, sae(8.0, arm="other", **other)], "l1")
    assert text.startswith("Except for other, each SAE has exactly the wanted L0 on the 65,536")
    assert "other and l1 are compared at the L0s that were measured" in text
    assert text.endswith("other arms are compared at the wanted L0s.")
    of_reference = in_words([*exact, sae(8.0, **other)], "l1")
    assert of_reference.startswith(
        "L0 is interpolated, since l1 has SAEs that miss the wanted L0: scores at equal L0 are read"
    )
    assert "exactly" not in of_reference


def test_what_misses_its_l0_is_said_once_for_an_arm() -> None:
    short = [sae(7.2, seed=seed, reached=7.2, most=7.2) for seed in (0, 1, 2)]
    (warning,) = warnings([*short, sae(8.01, arm="topk")])
    assert warning == (
        "toy, l1, seed 0 (and 2 more of its SAEs): an L0 of 8 is wanted, and without any threshold "
        "it is 7.2: train with less sparsity; more values under sparsity, closer to each other, "
        "tell its coefficients better"
    )


def test_an_l0_has_the_standard_error_of_the_text_that_it_is_measured_on() -> None:
    """A quarter of the tokens that set thresholds tell it half as well as these."""
    one = sae(15.7, wanted=16, spread=0.0098, tokens=262_144)
    measured = one.model_copy(update={"tokens": 65_536})
    assert measured.l0_error == pytest.approx(15.7 * 0.005 * 2)
    assert one.l0_error is None, "earlier findings do not say how many tokens"
    said = "On the 65,536 other held-out tokens that measure L0, it is within 1.88% of that (the "
    assert f"{said}standard error is up to 1.00%), and SAEs" in in_words([measured], "l1")


def test_text_that_is_too_short_is_said() -> None:
    assert list(warnings([sae(8.03), sae(7.97)])) == []
    (warning,) = warnings([sae(8.03), sae(7.9, spread=0.013, tokens=4096, arm="topk")])
    assert warning == (
        "toy: on the held-out tokens that measure L0, 1 of 2 SAEs miss the wanted one by more than "
        "0.5% (topk has 7.9 for 8). The 4,096 tokens that set thresholds tell the L0 of as many "
        "others to 1.3%: give more calibrate_tokens, and as many heldout_tokens. SAEs of the same "
        "seed share them, and miss it alike"
    )
    (of_samples,) = warnings([sae(8.03), sae(7.9, arm="topk")], ["toy"])
    assert "65,536 samples that set thresholds" in of_samples
