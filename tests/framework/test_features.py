"""The feature axis: permuting, resetting and merging move everything that belongs to a feature."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.architectures import ARCHITECTURES, prefix_groups
from sae_plugins.framework.features import ENCODER_RESET_SCALE, Features, Merged, Permuted, Reset
from sae_plugins.framework.run import Run
from sae_plugins.testing import (
    CASES,
    D_IN,
    D_SAE,
    PluginContract,
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

Request = Callable[[Features], None]


class Stateful(Plugin):
    """Tracks a vector, a ring and a co-activation matrix, all of which steer the training."""

    name = "stateful"

    @hookimpl
    def attached(self, run: Run) -> None:
        track, options = run.features.track, {"dtype": run.sae.dtype}
        self.rate = track(self, "rate", torch.zeros(D_SAE, **options), reset=0.25)
        self.ring = track(self, "ring", torch.zeros(10, D_SAE, **options), axes=(1,))
        together = torch.zeros(D_SAE, D_SAE, **options)
        self.together = track(self, "together", together, axes=(0, 1), reset=-1.0)
        self.born = track(self, "born", torch.arange(D_SAE), reset=None)

    @hookimpl
    def after_forward(self, run: Run, output: Any) -> None:
        active = (output.feature_acts.to_dense() != 0).to(self.rate)
        self.rate.lerp_(active.mean(dim=0), 0.1)
        self.ring[run.step % 10] = active.mean(dim=0)
        self.together.lerp_(active.T @ active / len(active), 0.1)

    @hookimpl
    def extra_losses(self, run: Run) -> dict[str, torch.Tensor]:
        cosines = run.sae.W_dec @ run.sae.W_dec.T
        weight = self.rate + self.ring.mean(dim=0) ** 2
        return {"pull": (self.together * cosines).mean() + (weight * cosines.diagonal()).mean()}


class TestContract(PluginContract):
    """Permutation equivariance, with state on one and on two axes, on every architecture."""

    plugin = Stateful


class Listener(Plugin):
    """Requests what the test scripted, by step, and records what was done."""

    name = "listener"
    script: dict[int, list[Request]] = {}

    @hookimpl
    def attached(self) -> None:
        self.changes: list[Any] = []

    @hookimpl
    def step_ended(self, run: Run) -> None:
        for request in self.script.get(run.step, ()):
            request(run.features)

    @hookimpl
    def features_changed(self, run: Run, change: Any) -> None:
        self.changes.append((run.step, change))


def make_trainer(architecture: str, script=None, dtype=torch.float64, **training: Any) -> Any:
    class Scripted(Listener):
        pass

    Scripted.script = script or {}
    with plugins(Stateful, Scripted, training=training):
        return tiny_trainer(tiny_sae(architecture, dtype=dtype), tiny_batches(steps=16))


def train(architecture: str, script=None, steps: int = 6, **training: Any) -> Any:
    trainer = make_trainer(architecture, script, **training)
    advance(trainer, tiny_batches(steps=steps, dtype=torch.float64))
    return trainer


def changes(trainer: Any) -> list[Any]:
    return trainer.host.plugins[1].changes


def carry_out(trainer: Any) -> list[Any]:
    return list(trainer.run.features.carry_out())


# -- permute -----------------------------------------------------------------------------------


@cache
def trained_once(architecture: str) -> Any:
    return train(architecture)


@pytest.mark.parametrize("architecture", CASES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_permuting_there_and_back_is_the_identity(architecture: str, data: st.DataObject) -> None:
    trainer = trained_once(architecture)
    features: Features = trainer.run.features
    parts = [
        data.draw(st.permutations(range(start, end)), label=f"[{start}, {end})")
        for start, end in features.groups
    ]
    order = torch.tensor([position for part in parts for position in part])
    before = snapshot(trainer)
    features.permute(order)
    carry_out(trainer)
    after = snapshot(trainer)
    for entry in features.tracked():
        expected = before[entry.name]
        for axis in entry.axes:
            expected = expected.index_select(axis, order)
        assert torch.equal(after[entry.name], expected), entry.name
    features.permute(order.argsort())
    carry_out(trainer)
    assert differences(snapshot(trainer), before) == {}


@pytest.mark.parametrize("architecture", CASES)
def test_every_parameter_moment_and_counter_is_on_the_feature_axis(architecture: str) -> None:
    """All that training changes, but for what the architecture's row calls shared."""
    trainer = trained_once(architecture)
    row = ARCHITECTURES[architecture]
    shared = {name for name in snapshot(trainer) if name.split(".")[-1] in row.shared}
    steps = {name for name in snapshot(trainer) if name.startswith("step.")}
    names = [entry.name for entry in trainer.run.features.tracked()]
    assert len(names) == len(set(names))
    assert set(names) == snapshot(trainer).keys() - shared - steps
    for entry in trainer.run.features.tracked():
        assert all(entry.get().shape[axis] == D_SAE for axis in entry.axes), entry.name


def test_matryoshka_features_must_stay_within_their_prefix() -> None:
    trainer = make_trainer("matryoshka_batchtopk")
    order = torch.arange(D_SAE)
    order[[0, 5]] = order[[5, 0]]  # inside [0, 6)
    trainer.run.features.permute(order)
    (change,) = carry_out(trainer)
    assert torch.equal(change.order, order)
    order = torch.arange(D_SAE)
    order[[5, 6]] = order[[6, 5]]
    with pytest.raises(
        PluginError, match=r"across the Matryoshka prefix \[0, 6\).*features.groups"
    ):
        trainer.run.features.permute(order)


def test_prefix_groups() -> None:
    assert prefix_groups(tiny_sae("standard")) == [(0, D_SAE)]
    expected = [(0, 6), (6, 14), (14, D_SAE)]
    assert prefix_groups(tiny_sae("matryoshka_batchtopk")) == expected
    with pytest.warns(UserWarning, match="final matryoshka level"):
        short = tiny_sae("matryoshka_batchtopk", matryoshka_widths=[6, 14])
    assert prefix_groups(short) == expected


def test_of_two_permutations_the_first_wins(caplog: pytest.LogCaptureFixture) -> None:
    there, back = torch.arange(D_SAE).roll(1), torch.arange(D_SAE).roll(-1)
    trainer = train("standard", {3: [lambda f: f.permute(there), lambda f: f.permute(back)]})
    ((step, change),) = changes(trainer)
    assert step == 3
    assert torch.equal(change.order, there)
    assert "a second order is requested" in caplog.text
    assert torch.equal(trainer.host.plugins[0].born, there)


def test_moments_can_be_left_behind_as_a_control() -> None:
    trainer = train("standard")
    before = snapshot(trainer)
    trainer.run.features.permute(torch.arange(D_SAE).roll(1), move_moments=False)
    carry_out(trainer)
    after = snapshot(trainer)
    assert torch.equal(after["exp_avg.W_dec"], before["exp_avg.W_dec"])
    assert torch.equal(after["W_dec"], before["W_dec"].roll(1, dims=0))


# -- reset -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CASES)
def test_a_reset_starts_features_anew_and_leaves_the_others_alone(architecture: str) -> None:
    trainer = train(architecture)
    row, features = ARCHITECTURES[architecture], trainer.run.features
    index = torch.tensor([20, 3, 7])
    rest = torch.tensor([i for i in range(D_SAE) if i not in index])
    directions = torch.randn(3, D_IN, dtype=torch.float64)
    probe = tiny_batches(5, steps=1, dtype=torch.float64)[0]
    before, acts_before = snapshot(trainer), trainer.sae.encode(probe).detach()
    features.reset(index, 100 * directions)
    (change,) = carry_out(trainer)
    after = snapshot(trainer)
    assert isinstance(change, Reset)
    assert torch.equal(change.index, index)

    unit = directions / directions.norm(dim=1, keepdim=True)
    decoder_norm = before["W_dec"][rest].norm(dim=1).mean()
    torch.testing.assert_close(after["W_dec"][index], unit * decoder_norm)
    if not row.tied:
        encoder_norm = before["W_enc"][:, rest].norm(dim=0).mean()
        expected = (ENCODER_RESET_SCALE * encoder_norm * unit).T
        torch.testing.assert_close(after["W_enc"][:, index], expected)
    for bias, value in row.biases.items():
        expected = getattr(trainer.sae.cfg, value) if isinstance(value, str) else value
        assert (after[bias][index] == expected).all(), bias
    for name in after:
        if name.startswith("exp_avg") and name.split(".")[1] in row.feature_axes:
            axis = row.feature_axes[name.split(".")[1]]
            assert not after[name].index_select(axis, index).any(), name
            assert before[name].index_select(axis, rest).any(), name
    assert not after["act_freq_scores"][index].any()
    assert not after["n_forward_passes_since_fired"][index].any()
    assert (after["stateful/rate"][index] == 0.25).all()
    assert not after["stateful/ring"][:, index].any()
    assert (after["stateful/together"][index] == -1).all()
    assert (after["stateful/together"][:, index] == -1).all()
    assert torch.equal(after["stateful/born"], torch.arange(D_SAE))

    for entry in features.tracked():
        one, other = before[entry.name], after[entry.name]
        for axis in entry.axes:
            one, other = one.index_select(axis, rest), other.index_select(axis, rest)
        assert torch.equal(one, other), entry.name
    if architecture in ("standard", "gated", "jumprelu"):  # features do not compete for k
        assert torch.equal(trainer.sae.encode(probe)[:, rest], acts_before[:, rest])
    (losses,) = advance(trainer, [probe])
    assert torch.tensor(losses["loss"]).isfinite()
    assert "W_dec" in differences(after, snapshot(trainer))


# -- merge -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_merging_exact_duplicates_by_their_sum_keeps_the_reconstruction(architecture: str) -> None:
    trainer = train(architecture)
    row, sae = ARCHITECTURES[architecture], trainer.sae
    into, source = torch.tensor([2, 9]), torch.tensor([11, 4])
    for name, axis in row.feature_axes.items():
        data = dict(sae.named_parameters())[name].data.movedim(axis, 0)
        data[source] = data[into]
    probe = tiny_batches(5, steps=1, dtype=torch.float64)[0]
    assert sae.encode(probe)[:, into].any(dim=0).all()
    before = sae(probe).detach()
    nowhere = torch.zeros(2, D_IN, dtype=torch.float64)  # so that the sources add nothing
    for weight in (1.0, torch.ones(2)):
        with torch.no_grad():
            saved = {name: p.clone() for name, p in sae.named_parameters()}
            trainer.run.features.merge(into, source, nowhere, weight=weight)
            (change,) = carry_out(trainer)
            assert isinstance(change, Merged)
            assert (change.into.tolist(), change.source.tolist()) == ([2, 9], [11, 4])
            torch.testing.assert_close(sae(probe), before, atol=1e-6, rtol=0)
            assert not trainer.optimizer.state[sae.W_dec]["exp_avg"][into].any()
            assert not trainer.optimizer.state[sae.W_dec]["exp_avg_sq"][source].any()
            for name, p in sae.named_parameters():
                p.copy_(saved[name])
    with torch.no_grad():
        trainer.run.features.merge(into, source, nowhere)  # the average halves what they wrote
        carry_out(trainer)
        assert (sae(probe) - before).abs().max() > 1e-3


def test_a_merge_keeps_the_survivors_statistics_and_restarts_the_source() -> None:
    trainer = train("standard")
    before = snapshot(trainer)
    direction = torch.randn(1, D_IN, dtype=torch.float64)
    trainer.run.features.merge(torch.tensor([2]), torch.tensor([11]), direction)
    carry_out(trainer)
    after = snapshot(trainer)
    assert torch.equal(after["stateful/rate"][2], before["stateful/rate"][2])
    assert after["stateful/rate"][11] == 0.25
    assert after["act_freq_scores"][2] == before["act_freq_scores"][2]
    assert after["act_freq_scores"][11] == 0
    cosine = torch.cosine_similarity(after["W_dec"][11], direction[0], dim=0)
    assert cosine == pytest.approx(1)
    summed = before["W_dec"][2] + before["W_dec"][11]
    assert torch.cosine_similarity(after["W_dec"][2], summed, dim=0) == pytest.approx(1)
    norms = before["W_dec"][[2, 11]].norm(dim=1)
    assert after["W_dec"][2].norm() == pytest.approx(norms.mean().item())
    torch.testing.assert_close(after["W_enc"][:, 2], before["W_enc"][:, [2, 11]].mean(dim=1))


def test_merging_a_gated_sae_averages_what_acts_through_an_exponential() -> None:
    trainer = train("gated")
    before = snapshot(trainer)
    direction = torch.zeros(1, D_IN, dtype=torch.float64)
    trainer.run.features.merge(torch.tensor([2]), torch.tensor([11]), direction, weight=1.0)
    carry_out(trainer)
    after = snapshot(trainer)
    assert after["r_mag"][2] == pytest.approx(before["r_mag"][[2, 11]].mean().item())
    assert after["b_mag"][2] == pytest.approx(before["b_mag"][[2, 11]].sum().item())


# -- several requests --------------------------------------------------------------------------


def directions(k: int) -> torch.Tensor:
    return torch.ones(k, D_IN)


def test_requests_are_carried_out_in_one_order_and_the_first_claim_wins() -> None:
    """Indices mean positions before the step's changes; merge -> reset -> permute."""
    order = torch.arange(D_SAE).roll(1)
    requests: list[Request] = [
        lambda f: f.permute(order),
        lambda f: f.reset(torch.tensor([1, 5]), directions(2)),
        lambda f: f.reset(torch.tensor([5, 6]), -directions(2)),
        lambda f: f.merge(torch.tensor([1, 8]), torch.tensor([2, 1]), directions(2)),
    ]
    trainer = train("standard", {3: requests}, steps=3)
    merged, first, second, permuted = (change for _, change in changes(trainer))
    assert (merged.into.tolist(), merged.source.tolist()) == ([1], [2])  # 1 is taken for 8
    assert isinstance(first, Reset)
    assert first.index.tolist() == [5]  # 1 was merged
    assert second.index.tolist() == [6]  # 5 was reset
    assert isinstance(permuted, Permuted)
    rows = trainer.sae.W_dec[[6, 7]]  # where 5 and 6 stand after the roll
    assert (rows[0] > 0).all()
    assert (rows[1] < 0).all()


def test_a_dropped_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sae_plugins")
    reset: Request = lambda f: f.reset(torch.tensor([1]), directions(1))  # noqa: E731
    trainer = train("standard", {3: [reset, reset]})
    assert len(changes(trainer)) == 1
    assert "dropped 1 of 1" in caplog.text


def test_requests_inside_an_accumulation_window_wait_for_its_end() -> None:
    order = torch.arange(D_SAE).roll(1)
    script = {
        2: [lambda f: f.permute(order)],
        5: [lambda f: f.reset(torch.tensor([1]), directions(1))],
        13: [lambda f: f.permute(order)],
    }
    trainer = train("standard", script, steps=16, accumulate=6)
    assert [step for step, _ in changes(trainer)] == [6, 6, 16]  # 16 is the run's last step
    assert [type(change) for _, change in changes(trainer)] == [Reset, Permuted, Permuted]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda f: f.permute(torch.zeros(D_SAE)), "not a permutation of 24 features"),
        (lambda f: f.permute(torch.arange(D_SAE - 1)), "not a permutation of 24 features"),
        (lambda f: f.reset(torch.tensor([1, 1]), directions(2)), "must not repeat"),
        (lambda f: f.reset(torch.tensor([D_SAE]), directions(1)), r"within 0\.\.23"),
        (lambda f: f.reset(torch.tensor([-1]), directions(1)), r"within 0\.\.23"),
        (lambda f: f.reset(torch.tensor([[1]]), directions(1)), r"must be \[k\]"),
        (lambda f: f.reset(torch.tensor([1]), directions(2)), r"shape \(1, 8\), not \(2, 8\)"),
        (
            lambda f: f.merge(torch.tensor([1, 2]), torch.tensor([3]), directions(1)),
            "2 features cannot be merged with 1",
        ),
        (
            lambda f: f.merge(
                torch.tensor([1]), torch.tensor([3]), directions(1), weight=torch.ones(3)
            ),
            r"weight must be a number or \[1\]",
        ),
    ],
)
def test_bad_requests_name_the_plugin_and_the_problem(request_: Request, message: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'listener', event 'step_ended': .*{message}"):
        train("standard", {2: [request_]})


# -- track -------------------------------------------------------------------------------------


def test_tracking_a_name_twice_or_a_wrong_size_is_refused() -> None:
    trainer = make_trainer("standard")
    plugin, features = trainer.host.plugins[0], trainer.run.features
    with pytest.raises(PluginError, match="'stateful' tracks 'rate' twice"):
        features.track(plugin, "rate", torch.zeros(D_SAE))
    with pytest.raises(PluginError, match=r"of shape \(10, 24\).* along \(0,\) must be d_sae = 24"):
        features.track(plugin, "other", torch.zeros(10, D_SAE))


@pytest.mark.parametrize("attribute", ["parameter", "buffer"])
def test_an_unknown_tensor_of_the_sae_is_refused(attribute: str) -> None:
    """It might have a feature axis, which a permutation would miss."""
    sae = tiny_sae("standard")
    if attribute == "parameter":
        sae.gain = torch.nn.Parameter(torch.ones(D_SAE))
    else:
        sae.register_buffer("gain", torch.ones(D_SAE))
    with plugins(Stateful), pytest.raises(PluginError, match=r"unknown parameters \['gain'\].*row"):
        tiny_trainer(sae)


def test_a_missing_parameter_is_refused() -> None:
    sae = tiny_sae("standard")
    del sae.b_enc
    with plugins(Stateful), pytest.raises(PluginError, match=r"no parameter \['b_enc'\]"):
        tiny_trainer(sae)


@pytest.mark.parametrize("event", ["before_forward", "step_ended"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_tracked_tensor_that_is_replaced_is_refused(event: str, step: int) -> None:
    """It would train on silently, and no longer move with its features."""

    class Replacing(Plugin):
        name = "replacing"

        @hookimpl
        def attached(self, run: Run) -> None:
            self.rate = run.features.track(self, "moving_rate", torch.zeros(D_SAE))

        def replace(self, run: Run) -> None:
            if run.step == step:
                self.rate = 0.9 * self.rate

        if event == "step_ended":

            @hookimpl
            def step_ended(self, run: Run) -> None:
                self.replace(run)
        else:

            @hookimpl
            def before_forward(self, run: Run) -> None:
                self.replace(run)

    with plugins(Replacing):
        trainer = tiny_trainer(tiny_sae("standard"))
    advance(trainer, tiny_batches(steps=step - 1))
    with pytest.raises(PluginError, match=r"'replacing' has replaced its attribute 'rate'.*"
                       r"'replacing/moving_rate'.*self\.rate\.copy_"):  # fmt: skip
        advance(trainer, tiny_batches(steps=1))
