"""The page of events keeps its word: every event is drawn, described, and tested here by name."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework import hookspecs
from sae_plugins.framework.features import Permuted
from sae_plugins.framework.host import EVENTS
from sae_plugins.testing import (
    D_IN,
    D_SAE,
    STEPS,
    TOKENS,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)


class Recorder(Plugin):
    """Every event with its arguments, and what the weights were at it."""

    name = "recorder-of-events"
    claims = ("decoder_norm",)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, **arguments: Any) -> None:
        weights = {name: p.detach().clone() for name, p in arguments["run"].sae.named_parameters()}
        grads = {name for name, p in arguments["run"].sae.named_parameters() if p.grad is not None}
        extra = {"weights": weights, "grads": grads, "updates": arguments["run"].updates}
        self.calls.append((event, arguments | extra | {"step": arguments["run"].step}))
        if event == "step_ended" and arguments["run"].step == 2:
            arguments["run"].features.permute(torch.arange(D_SAE).roll(1))


def _recording(event: str) -> Any:
    names = list(inspect.signature(getattr(hookspecs, event)).parameters)
    passed = ", ".join(f"{name}={name}" for name in names)
    source = f"lambda self, {', '.join(names)}: self.record({event!r}, {passed})"
    return hookimpl(eval(source))


for _event in EVENTS:
    setattr(Recorder, _event, _recording(_event))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any]]]:
    """All events of one run of SAELens' own `fit`, and of a save."""
    with plugins(Recorder):
        sae = tiny_sae("standard", normalize_activations="expected_average_only_in")
        batches = tiny_batches(steps=STEPS + 2)
        trainer = tiny_trainer(
            sae,
            batches,
            n_batches_for_norm_estimate=2,
            total_training_samples=STEPS * TOKENS,
        )
    trainer.fit()
    trainer.sae.save_inference_model(tmp_path_factory.mktemp("inference"))
    return trainer.host.plugins[0].calls


@pytest.fixture
def calls(request: pytest.FixtureRequest, recorded: Any) -> list[dict[str, Any]]:
    """The calls of the event that the test is named after."""
    event = request.node.originalname.removeprefix("test_event_")
    return [arguments for name, arguments in recorded if name == event]


def test_events_are_drawn_in_the_order_in_which_they_are_declared_and_occur(recorded: Any) -> None:
    drawn = re.findall(r"\.{5,} (\w+)", hookspecs.__doc__ or "")
    assert tuple(drawn) == EVENTS
    occurred = [event for event, _ in recorded]
    assert tuple(dict.fromkeys(occurred)) == EVENTS
    step = list(EVENTS[1:8])
    assert occurred[1 : 1 + 2 * len(step) + 1] == [*step, *step, "features_changed"]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_has_one_sentence_types_and_a_test(event: str) -> None:
    specification = getattr(hookspecs, event)
    assert re.fullmatch(r"[A-Z][^\n]*\.", specification.__doc__), specification.__doc__
    signature = inspect.signature(specification)
    annotations = [p.annotation for p in signature.parameters.values()]
    assert inspect.Parameter.empty not in [*annotations, signature.return_annotation]
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"test_event_{event}" in tests, "test what the event promises"


def test_there_are_eleven_events() -> None:
    assert len(EVENTS) == 11


def test_event_attached(calls: Any) -> None:
    (call,) = calls
    assert call["run"].optimizer is call["run"]._trainer.optimizer
    assert differences(call["weights"], dict(tiny_sae("standard").named_parameters())) == {}


def test_event_before_forward(calls: Any) -> None:
    assert [call["step"] for call in calls] == list(range(1, STEPS + 1))
    batch = tiny_batches(steps=STEPS + 2)[2]  # two went into the scale
    scale = D_IN**0.5 / torch.stack([b.norm(dim=1).mean() for b in tiny_batches()[:2]]).mean()
    torch.testing.assert_close(calls[0]["step_input"].sae_in, scale * batch)
    assert calls[0]["step_input"].coefficients == {"l1": 0.1}


def test_event_after_forward(calls: Any) -> None:
    assert len(calls) == STEPS
    output = calls[0]["output"]
    assert output.feature_acts.shape == (TOKENS, D_SAE)
    assert output.sae_in is calls[0]["step_input"].sae_in


def test_event_extra_losses(calls: Any) -> None:
    assert len(calls) == STEPS
    assert calls[0]["output"].losses.keys() == {"mse_loss", "l1_loss"}


def test_event_project(calls: Any) -> None:
    assert [call["updates"] for call in calls] == list(range(STEPS))
    for call in calls:
        assert call["rows"].data_ptr() == call["run"].sae.W_dec.data_ptr()
        assert call["gradient"].shape == (D_SAE, D_IN)


def test_event_before_update(calls: Any, recorded: Any) -> None:
    assert [call["updates"] for call in calls] == list(range(STEPS))
    assert all(call["grads"] == {"W_enc", "W_dec", "b_enc", "b_dec"} for call in calls)
    after = next(arguments for name, arguments in recorded if name == "after_update")
    assert "W_dec" in differences(calls[0]["weights"], after["weights"])


def test_event_after_update(calls: Any) -> None:
    assert [call["updates"] for call in calls] == list(range(1, STEPS + 1))


def test_event_step_ended(calls: Any) -> None:
    assert [call["step"] for call in calls] == list(range(1, STEPS + 1))
    assert all(call["grads"] == set() for call in calls)


def test_event_features_changed(calls: Any, recorded: Any) -> None:
    (call,) = calls
    order = torch.arange(D_SAE).roll(1)
    assert isinstance(call["change"], Permuted)
    assert torch.equal(call["change"].order, order)
    before = [arguments for name, arguments in recorded if name == "step_ended"][1]["weights"]
    assert call["step"] == 2
    assert torch.equal(call["weights"]["W_dec"], before["W_dec"][order])


def test_event_training_ended(calls: Any, recorded: Any) -> None:
    (call,) = calls
    last = [arguments for name, arguments in recorded if name == "step_ended"][-1]["weights"]
    folded = last["W_enc"] * call["activation_scale"]
    torch.testing.assert_close(call["weights"]["W_enc"], folded)


def test_event_export_inference(calls: Any) -> None:
    (call,) = calls
    saved = call["run"].sae.state_dict()
    assert differences({name: call["weights"][name] for name in saved}, saved) == {}
    assert call["config"]["architecture"] == "standard"
    assert snapshot(call["run"]._trainer).keys() >= call["weights"].keys()
