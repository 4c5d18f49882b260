"""What a study's models are, in its report."""

from types import SimpleNamespace
from typing import Any

import pytest

from sae_plugins.eval_suites.evaluation.results import Result, SAEInfo
from sae_plugins.eval_suites.suite import Value
from sae_plugins.study.described import models
from sae_plugins.world.synthetic_models import SYNTHETIC_MODELS


def cell(model_name: str, tokens: int = 4096, *, existing: bool = False) -> Any:
    values = {"hook_name": "blocks.1.hook_resid_post", "training_tokens": tokens}
    settings = SimpleNamespace(
        model_name=model_name, is_synthetic=model_name.startswith("synthetic:"), get=values.get
    )
    return SimpleNamespace(model="mine", settings=settings, existing=existing)


def result(d_in: int, **metrics: float) -> Result:
    sae = SAEInfo(name="a", source="a", hash="1", architecture="jumprelu", d_in=d_in, d_sae=96,
                  hook_name="")  # fmt: skip
    values = {name: Value(value=value) for name, value in metrics.items()}
    return Result(
        suite="ground-truth", status="ok", sae=sae, seed=0, preset="quick", metrics=values
    )


def test_a_synthetic_model_has_its_features_and_its_true_l0() -> None:
    results = {"mine": {"ground-truth": result(48, true_l0=5.53)}}
    (one,) = models([cell("synthetic:toy")], results, {"mine": {128, 96}}).values()
    assert one.what.startswith("96 features in 48 dimensions: 16 parents")
    assert (one.is_synthetic, one.hook_name, one.true_l0) == (True, "", 5.53)
    assert (one.d_in, one.d_sae) == (48, [96, 128])


def test_a_language_model_has_its_hook_and_what_is_not_known_yet_is_left_out() -> None:
    cells = [cell("gpt2"), cell("gpt2", 8192), cell("gpt2", 10**9, existing=True)]
    (one,) = models(cells, {}, {}).values()
    assert (one.name, one.what, one.hook_name) == ("gpt2", "", "blocks.1.hook_resid_post")
    assert (one.d_in, one.d_sae, one.training_tokens) == (None, [], [4096, 8192])


@pytest.mark.parametrize(
    "name", ["sae-plugins-world", *map("synthetic:{}".format, SYNTHETIC_MODELS)]
)
def test_models_of_the_package_are_described_in_one_line(name: str) -> None:
    (one,) = models([cell(name)], {}, {}).values()
    assert 40 < len(one.what) < 100
    assert not one.what.endswith(".")
