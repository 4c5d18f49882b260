"""Whether a run's settings suit its language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.models import refuse_unknown_tokens, with_tokens_there
from sae_plugins.runs.setup import SAELensSettings


def settled(bos: int | None, **runner: Any) -> Any:
    tokenizer = SimpleNamespace(bos_token_id=bos, eos_token_id=7, sep_token_id=None)
    model = SimpleNamespace(tokenizer=tokenizer)
    return with_tokens_there(model, SAELensSettings("m", runner=runner)).runner


def test_special_tokens_that_the_tokenizer_lacks_are_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert settled(0) == {}
    assert not caplog.messages
    assert settled(None) == {"prepend_bos": False, "sequence_separator_token": None}
    assert len(caplog.messages) == 2
    assert "--prepend_bos: the tokenizer of m has no BOS token" in caplog.text
    given = {"prepend_bos": False, "sequence_separator_token": "eos"}
    assert settled(None, **given) == given


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ({"prepend_bos": True}, "--prepend_bos true: the tokenizer of m has no BOS token; give "),
        (
            {"prepend_bos": False, "sequence_separator_token": "sep"},
            "--sequence_separator_token sep: the tokenizer of m has no SEP token; give "
            "--sequence_separator_token none",
        ),
    ],
)
def test_special_tokens_that_are_asked_for_must_be_there(
    runner: dict[str, Any], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        settled(None, **runner)


class Waits(TorchDispatchMode):
    """How often a GPU would be waited for: what it computes is read, or copied to the host."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += str(function) in ("aten._local_scalar_dense.default", "aten._to_copy.default")
        return function(*args, **(kwargs or {}))


def test_tokens_are_checked_and_a_gpu_is_waited_for_once() -> None:
    model = torch.nn.Embedding(9, 2)
    refuse_unknown_tokens(model, 5, "m")
    with Waits() as waits:
        model(torch.tensor([[0, 4], [2, 3]]))
    assert waits.count <= 1
    model(torch.empty(2, 0, dtype=torch.long))
    for wrong in (5, -1):
        with pytest.raises(PluginError, match=f"has the token {wrong}, and those of m are 0 to 4"):
            model(torch.tensor([[0, 4], [2, wrong]]))
