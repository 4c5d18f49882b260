"""Thresholds: Eq. 2, the gate, what is saved, and the control that trains without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expected import NO_THRESHOLDS
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.mechanisms.activation_threshold import ActivationThreshold, gate, thresholds
from sae_plugins.mechanisms.post_hoc_threshold import PostHocThreshold
from sae_plugins.testing import (
    CASES,
    PluginContract,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)

NAME = "activation-threshold"
EXPRESSIBLE = [name for name in CASES if name not in NO_THRESHOLDS]


class TestAsPrinted(PluginContract):
    plugin = ActivationThreshold


class TestPortable(PluginContract):
    plugin = NAME
    options = {
        "base": 0.5,
        "unit": "mean_active",
        "variance": "relative",
        "sensitivity": -0.5,
        "start": 3,
    }


class TestPostHoc(PluginContract):
    plugin = PostHocThreshold


@given(
    st.floats(0, 2),
    st.floats(-4, 4),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_thresholds_are_eq_2_and_never_negative(
    base: float, sensitivity: float, variance: list[float]
) -> None:
    tau = thresholds(base, sensitivity, torch.tensor(variance))
    expected = [max(0, base * (1 - sensitivity * v)) for v in variance]
    assert tau.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_gate_shuts_what_is_not_above_and_its_gradient() -> None:
    acts = torch.tensor([[0.0, 0.2, 0.3, 0.4]], requires_grad=True)
    passed = gate(acts, torch.full((4,), 0.3))
    assert passed.tolist() == [[0, 0, 0, pytest.approx(0.4)]]
    passed.sum().backward()
    assert acts.grad.tolist() == [[1, 0, 0, 1]]
    assert gate(acts.bfloat16(), torch.full((4,), 0.3)).dtype == torch.bfloat16


def plugin_of(trainer: Any, name: str = NAME) -> Any:
    return trainer.run.plugin(name)


def test_the_statistics_are_of_activations_before_the_gate() -> None:
    """Beside a threshold that nothing passes, frequencies are those of an SAE without one."""
    gated = train(ActivationThreshold, options={NAME: {"base": 1e6}}, lr=1e-9, lr_end=1e-9)
    free = train("firing-frequency", lr=1e-9, lr_end=1e-9)
    closed, open_ = (trainer.run.plugin("firing-frequency").mean() for trainer in (gated, free))
    assert open_.max() > 0.1
    torch.testing.assert_close(closed, open_, rtol=1e-5, atol=1e-6)
    assert gated.run.firing_counts.sum() == 0


def test_tau_follows_eq_2_by_its_options() -> None:
    def tau(**options: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        trainer = train(ActivationThreshold, options={NAME: options})
        p = trainer.run.plugin("firing-frequency").mean()
        return plugin_of(trainer).tau, p, trainer

    found, p, _ = tau()
    torch.testing.assert_close(found, 0.3 * (1 - p * (1 - p)))
    found, p, _ = tau(base=0.5, sensitivity=-2)
    torch.testing.assert_close(found, 0.5 * (1 + 2 * p * (1 - p)))
    found, _, _ = tau(sensitivity=0)
    torch.testing.assert_close(found, torch.full_like(found, 0.3))
    found, _, trainer = tau(base=0.5, variance="relative")
    relative = trainer.run.plugin("firing-frequency").relative_variance()
    torch.testing.assert_close(found, (0.5 * (1 - relative)).clamp_min(0))


def test_the_portable_unit_is_the_mean_active_activation() -> None:
    seen: list[torch.Tensor] = []

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def attached(self, run: Any) -> None:
            keep = lambda acts, hook: seen.append(acts.detach())  # noqa: E731
            run.sae.hook_sae_acts_post.add_hook(keep, is_permanent=True)

    options = {
        NAME: {"base": 0.2, "unit": "mean_active", "sensitivity": 0},
        "firing-frequency": {"decay": 0.5},
    }
    trainer = train(Spy, ActivationThreshold, options=options)
    weights = torch.tensor([0.5 ** (11 - step) for step in range(12)])
    sums = torch.stack([acts.sum() for acts in seen])
    counts = torch.stack([(acts > 0).sum() for acts in seen])
    mean = (weights * sums).sum() / (weights * counts).sum()
    torch.testing.assert_close(plugin_of(trainer).tau, (0.2 * mean).expand(24))


@pytest.mark.parametrize("architecture", EXPRESSIBLE)
def test_before_start_nothing_changes(architecture: str) -> None:
    options = {NAME: {"start": 13, "base": 1e6}}
    waiting = train(ActivationThreshold, architecture=architecture, options=options)
    plain = train(architecture=architecture)
    assert (plugin_of(waiting).tau > 0).all()  # the next step would be the first
    for name, value in plain.sae.state_dict().items():
        assert torch.equal(waiting.sae.state_dict()[name], value), name


@pytest.mark.parametrize(("decay", "steps"), [(0.75, 4), (0.999, 5)])
def test_a_reset_feature_has_no_threshold_until_its_frequency_is_known(
    decay: float, steps: int
) -> None:
    """For 1 / (1 - decay) steps, or a tenth of the run's 50."""
    seen = []

    class Resetter(Plugin):
        name = "resetter"

        @hookimpl
        def step_ended(self, run: Any) -> None:
            if run.step == 6:
                run.features.reset(torch.tensor([5]), torch.ones(1, 8))

        @hookimpl
        def before_forward(self, run: Any) -> None:
            seen.append(run.plugin(NAME).tau.clone())

    train(ActivationThreshold, Resetter, options={"firing-frequency": {"decay": decay}}, steps=50)
    shut = torch.stack(seen)[1:] > 0  # the first step has none
    assert shut[:, torch.arange(24) != 5].all()
    expected = [True] * 5 + [False] * steps + [True] * (44 - steps)
    assert shut[:, 5].tolist() == expected


def test_a_checkpoint_of_sae_lens_has_the_gate(tmp_path: Path) -> None:
    sae, batches = tiny_sae("standard"), tiny_batches()
    with plugins(ActivationThreshold):
        trainer = tiny_trainer(
            sae, batches, n_checkpoints=1, save_final_checkpoint=True, checkpoint_path=str(tmp_path)
        )
    trainer.fit()
    folders = [path.parent for path in tmp_path.rglob("cfg.json")]
    assert len(folders) == 2
    for folder in folders:
        assert SAE.load_from_disk(str(folder)).cfg.architecture() == "jumprelu"


@pytest.mark.ci
def test_the_gate_works_compiled_and_under_autocast() -> None:
    def trained(compiles: bool) -> Any:
        batches = tiny_batches(steps=4)
        with plugins(ActivationThreshold):
            trainer: Any = tiny_trainer(tiny_sae("standard"), batches, autocast=True)
        if compiles:
            forward = torch.compile(trainer.sae.training_forward_pass, backend="aot_eager")
            trainer.sae.training_forward_pass = forward
        advance(trainer, batches)
        return trainer

    eager, compiled = trained(False), trained(True)
    torch.testing.assert_close(plugin_of(eager).tau, plugin_of(compiled).tau)
    torch.testing.assert_close(eager.sae.W_dec, compiled.sae.W_dec, rtol=1e-3, atol=1e-4)
    assert plugin_of(compiled).tau.dtype == torch.float32
    shut = eager.run.metrics[f"{NAME}/shut"]()
    assert 0 < shut < 1


# -- what is saved ---------------------------------------------------------------------------------


def fitted(
    architecture: str,
    normalize: str,
    *names: Any,
    options: Any = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Any:
    """A trainer after `fit`, which folds the activation scale, and a batch of raw activations."""
    batches = [3 * batch for batch in tiny_batches(steps=16, dtype=dtype)]
    with plugins(*names, options=options):
        sae = tiny_sae(architecture, normalize_activations=normalize, dtype=dtype)
        trainer: Any = tiny_trainer(sae, batches, n_batches_for_norm_estimate=4, **config)
        trainer.cfg.total_training_samples = 12 * len(batches[0])
        trainer.fit()
    return trainer, torch.cat(batches)


def without_ties(acts: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Where an activation is not so near its threshold that rounding decides."""
    return ((acts - tau).abs() > 1e-4).all(dim=1)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "layer_norm"])
@pytest.mark.parametrize("architecture", EXPRESSIBLE)
def test_what_is_saved_is_what_was_trained(
    architecture: str, normalize: str, tmp_path: Path
) -> None:
    if "topk" in architecture and normalize == "layer_norm":
        pytest.skip("SAELens' auxiliary loss does not support it")
    trainer, batch = fitted(
        architecture, normalize, ActivationThreshold, options={NAME: {"base": 0.4}}
    )
    tau = plugin_of(trainer).tau
    trainer.sae.save_inference_model(tmp_path / "ours")
    type(trainer.sae).save_inference_model(trainer.sae, tmp_path / "theirs")
    ours = SAE.load_from_disk(str(tmp_path / "ours"))
    theirs = SAE.load_from_disk(str(tmp_path / "theirs"))
    with torch.no_grad():
        before = theirs.encode(batch)
        clear = without_ties(before, tau)
        assert clear.float().mean() > 0.9
        batch, before = batch[clear], before[clear]
        expected = gate(before, tau)
        assert (expected != before).any()
        torch.testing.assert_close(ours.encode(batch), expected)
        if "topk" not in architecture:  # whose training chooses by batch
            torch.testing.assert_close(trainer.sae.eval().encode(batch), expected)
        output = ours(batch)
        ours.fold_W_dec_norm()
        torch.testing.assert_close(ours.encode(batch) != 0, expected != 0)
        torch.testing.assert_close(ours(batch), output, rtol=1e-4, atol=1e-5)
    assert ours.cfg.architecture() == ("gated" if architecture == "gated" else "jumprelu")
    assert ours.cfg.metadata.sae_plugins["plugins"][-1]["name"] == NAME


@pytest.mark.parametrize("precision", ["bfloat16 weights", "autocast"])
@pytest.mark.parametrize("architecture", EXPRESSIBLE)
def test_what_is_saved_gates_the_same_entries_in_bfloat16(
    architecture: str, precision: str, tmp_path: Path
) -> None:
    """Ties and roundings included; but a gated SAE's bias cannot hold a threshold so exactly."""
    autocast = precision == "autocast"
    dtype = torch.float32 if autocast else torch.bfloat16
    trainer, batch = fitted(
        architecture,
        "expected_average_only_in",
        ActivationThreshold,
        options={NAME: {"base": 0.4}},
        dtype=dtype,
        autocast=autocast,
    )
    trainer.sae.save_inference_model(tmp_path / "ours")
    type(trainer.sae).save_inference_model(trainer.sae, tmp_path / "theirs")
    ours, theirs = (SAE.load_from_disk(str(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.W_enc.dtype == dtype
    tau = plugin_of(trainer).tau
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, before = ours.encode(batch), theirs.encode(batch)
        expected = gate(before, tau)
        if "topk" not in architecture:  # whose training chooses by batch
            assert torch.equal(trainer.sae.encode_with_hidden_pre(batch)[0], expected)
    assert 0 < (expected != 0).sum() < (before != 0).sum()
    other = found != expected
    if architecture == "gated":
        assert other.float().mean() < 0.005
        assert ((before - tau)[other].abs() < 0.1 * tau.max()).all()
    else:
        assert not other.any()


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_thresholds_are_exported_exactly(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    architecture = data.draw(st.sampled_from(["standard", "gated", "jumprelu", "batchtopk"]))
    folder = tmp_path_factory.mktemp("export")
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    with plugins(ActivationThreshold):
        trainer: Any = tiny_trainer(tiny_sae(architecture, dtype=torch.float64))
    for parameter in trainer.sae.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    tau = plugin_of(trainer).tau
    tau.copy_(2 * torch.rand(24, generator=draws) * (torch.rand(24, generator=draws) < 0.8))
    trainer.sae.save_inference_model(folder / "ours")
    type(trainer.sae).save_inference_model(trainer.sae, folder / "theirs")
    ours, theirs = (
        SAE.load_from_disk(str(folder / name), dtype="float64") for name in ("ours", "theirs")
    )
    (batch,) = tiny_batches(steps=1, dtype=torch.float64)
    with torch.no_grad():
        before = theirs.encode(batch)
        torch.testing.assert_close(ours.encode(batch), gate(before, tau))


@pytest.mark.parametrize("plugin", [ActivationThreshold, PostHocThreshold])
def test_what_cannot_be_saved_is_refused(plugin: Any) -> None:
    for architecture in NO_THRESHOLDS:
        with pytest.raises(PluginError, match="choose batchtopk"):
            train(plugin, architecture=architecture)
    with plugins(plugin), pytest.raises(PluginError, match="covariance_whitening"):
        tiny_trainer(tiny_sae("standard", normalize_activations="covariance_whitening"))


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", EXPRESSIBLE)
def test_post_hoc_thresholds_are_a_share_of_each_features_mean(
    architecture: str, normalize: str, tmp_path: Path
) -> None:
    options = {"post-hoc-threshold": {"share": 0.8, "decay": 0.9}}
    trainer, batch = fitted(architecture, normalize, PostHocThreshold, options=options)
    plain, _ = fitted(architecture, normalize)
    for name, value in plain.sae.state_dict().items():
        assert torch.equal(trainer.sae.state_dict()[name], value), name  # training is left alone
    trainer.sae.save_inference_model(tmp_path / "ours")
    plain.sae.save_inference_model(tmp_path / "theirs")
    ours = SAE.load_from_disk(str(tmp_path / "ours"))
    theirs = SAE.load_from_disk(str(tmp_path / "theirs"))
    kept = plugin_of(trainer, "post-hoc-threshold")
    tau = 0.8 * kept.sums / kept.counts.clamp_min(1e-30) / kept.scale
    with torch.no_grad():
        before = theirs.encode(batch)
        active = before.sum(dim=0) / (before > 0).sum(dim=0).clamp_min(1)
        often = (before > 0).float().mean(dim=0) > 0.1
        assert (tau[often] / (0.8 * active[often]) - 1).abs().median() < 0.5
        clear = without_ties(before, tau)
        expected = gate(before, tau)[clear]
        torch.testing.assert_close(ours.encode(batch[clear]), expected)
    assert (expected != before[clear]).any()


def test_two_gates_are_one_too_many() -> None:
    class Rival(Plugin):
        name = "rival"
        claims = ("activation_gate",)

    with pytest.raises(PluginError, match="both claim the activation_gate"):
        train(ActivationThreshold, Rival)
