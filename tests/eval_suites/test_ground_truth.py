"""SAEs of synthetic models against the features that these are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.ground_truth import GroundTruth
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.true_features import edges
from sae_plugins.world.synthetic_models import SYNTHETIC_MODELS

SUITE = GroundTruth()
FEW = SUITE.settings("quick", {"samples": 3000})


@pytest.fixture(scope="module")
def toy() -> SyntheticModel:
    return SYNTHETIC_MODELS["toy"]("cpu")


def saved(folder: Path, features: torch.Tensor, model_name: str = "synthetic:toy") -> Subject:
    """An SAE whose decoder rows are these features, and its encoder their transpose."""
    d_sae, d_in = features.shape
    metadata = SAEMetadata(model_name=model_name)
    if not model_name.startswith("synthetic:"):
        metadata.hook_name = "blocks.0.hook_resid_post"
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=metadata))
    with torch.no_grad():
        sae.W_dec.copy_(features)
        sae.W_enc.copy_(features.T)
        sae.b_enc.fill_(-0.4)
    sae.save_model(folder)
    return load_subject(str(folder))


def scores(subject: Subject, seed: int = 0, settings: Any = FEW) -> dict[str, float | None]:
    found = SUITE.evaluate(subject, None, settings, seed, None)  # type: ignore[arg-type]
    return {name: value.value for name, value in found.metrics.items()}


def test_an_sae_that_knows_the_features(tmp_path, toy):
    features = toy.feature_dict.feature_vectors.detach()
    known = scores(saved(tmp_path / "known", features))
    random = scores(saved(tmp_path / "random", torch.randn(96, 48)))

    assert known["mcc"] == pytest.approx(1, abs=1e-4)
    assert (known["recovered"], random["recovered"]) == (1, 0)
    assert known["matched_f1"] > random["matched_f1"] + 0.2
    assert known["absorption"] == 0, "no decoder row holds a parent"
    assert random["absorption"] is None, "no decoder row holds a child"
    assert known["uniqueness"] == 1
    assert known["classification/f1_score"] > random["classification/f1_score"] + 0.2
    assert known["explained_variance"] > random["explained_variance"]
    assert random["mcc"] < 0.7
    assert known["true_l0"] == random["true_l0"]  # the same samples
    assert set(known) == {metric.name for metric in SUITE.metrics}


def test_the_seed_draws_the_samples_and_nothing_else_does(tmp_path, toy):
    subject = saved(tmp_path / "sae", toy.feature_dict.feature_vectors.detach())
    state = torch.get_rng_state()
    first = scores(subject, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.randn(7)
    assert scores(subject, seed=1) == first
    assert scores(subject, seed=2)["true_l0"] != first["true_l0"]


def test_it_is_what_saelens_computes(tmp_path, toy):
    from sae_lens.synthetic.evals import eval_sae_on_synthetic_data

    subject = saved(tmp_path / "sae", toy.feature_dict.feature_vectors.detach())
    torch.manual_seed(3)
    expected = eval_sae_on_synthetic_data(
        subject.sae, toy.feature_dict, toy.activation_generator, 3000, batch_size=4096
    ).to_log_dict()
    found = scores(subject, seed=3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found.keys() - expected == {"recovered", "matched_f1", "absorption"}


def test_parents_that_children_absorb_are_found(tmp_path, toy):
    features = toy.feature_dict.feature_vectors.detach()
    subject = saved(tmp_path / "sae", features)
    with torch.no_grad():
        for parent, child in edges(toy.hierarchy):
            subject.sae.W_dec[child] += features[parent]
            subject.sae.W_enc[:, parent] -= 3 * features[child]
    assert scores(subject)["absorption"] > 0.3


@pytest.mark.parametrize("preset", SYNTHETIC_MODELS)
def test_absorption_is_there_where_features_have_parents(tmp_path, preset):
    model = SYNTHETIC_MODELS[preset]("cpu")
    undefined = SUITE.undefined_on(f"synthetic:{preset}")
    assert ("absorption" in undefined) == (not edges(model.hierarchy))
    features = model.feature_dict.feature_vectors.detach()
    found = scores(saved(tmp_path / "sae", features, f"synthetic:{preset}"))
    assert set(found) == {metric.name for metric in SUITE.metrics} - {*undefined}


def test_the_saved_model_goes_before_the_preset(tmp_path, toy):
    subject = saved(tmp_path / "sae", toy.feature_dict.feature_vectors.detach())
    other = SyntheticModel(SyntheticModelConfig(num_features=60, hidden_dim=48, seed=5))
    other.save(tmp_path / "sae" / "synthetic_model")
    assert scores(subject)["mcc"] < 0.7
    (tmp_path / "sae" / "synthetic_model" / "synthetic_model.safetensors").write_bytes(b"x")
    with pytest.raises(SuiteError, match=r"synthetic_model cannot be loaded .*move it away"):
        scores(subject)


def test_what_is_refused(tmp_path):
    elsewhere = saved(tmp_path / "elsewhere", torch.randn(96, 48), "gemma-2-2b")
    assert SUITE.refusal(elsewhere) == (
        "needs the known features of a synthetic model; this SAE was trained on gemma-2-2b"
    )
    assert SUITE.refusal(saved(tmp_path / "toy", torch.randn(96, 48))) is None
    with pytest.raises(SuiteError, match="trained on 20 dimensions, and synthetic:toy has 48"):
        scores(saved(tmp_path / "narrow", torch.randn(30, 20)))
    with pytest.raises(SuiteError, match=r"synthetic:tiy, .*did you mean 'toy'"):
        scores(saved(tmp_path / "unknown", torch.randn(30, 20), "synthetic:tiy"))


def test_presets(tmp_path):
    samples = [SUITE.settings(preset, {}).samples for preset in ("quick", "canonical", "paper")]
    assert samples == [20_000, 100_000, 100_000]
    subject = saved(tmp_path / "sae", torch.randn(96, 48))
    assert SUITE.cost(subject, SUITE.settings("quick", {})).sae_tokens == 20_000
