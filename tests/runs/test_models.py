"""Whether a run's settings suit its language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.models import with_tokens_there
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
