"""Autointerp: what is asked, what it costs, and what comes of answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from judge import KEY, completion, is_explaining, sensible

from sae_plugins.base.errors import SaePluginsError, SuiteError
from sae_plugins.base.secrets import without_secrets
from sae_plugins.eval_suites.autointerp import NEEDS, AutoInterp
from sae_plugins.eval_suites.suite import Sent

SUITE = AutoInterp()
HERE = "http://127.0.0.1:9/v1"
SAE: Any = SimpleNamespace(d_sae=64, d_in=192, model_name="gpt2")


@pytest.fixture
def judge(lab: Any) -> Iterator[Any]:
    """That of the lab, with no request yet, and put back at the end."""
    lab.judge.requests.clear()
    lab.judge.keys.clear()
    yield lab.judge
    lab.judge.answer = sensible


def settings(**given: Any) -> Any:
    return SUITE.settings("canonical", given)


def test_nothing_is_sent_unless_an_address_is_given() -> None:
    assert SUITE.lack(settings(), None) == NEEDS
    assert SUITE.cost(SAE, settings()).sent is None
    assert "--autointerp.endpoint" in NEEDS


def test_a_key_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SuiteError, match=r"OPENAI_API_KEY with the key of .* is not set"):
        SUITE.lack(settings(endpoint=HERE), None)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert SUITE.lack(settings(endpoint=HERE), None) is None
    assert SUITE.lack(settings(endpoint="http://host", key_variable=None), None) is None


def test_what_it_costs_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = SUITE.cost(SAE, settings(endpoint=HERE)).sent
    assert sent == Sent(HERE, 128, 64 * 1650, 64 * 63)  # of 64 latents that there are
    priced = settings(endpoint=HERE, n_latents=10, price_in=2.0, price_out=10.0)
    sent = SUITE.cost(SAE, priced).sent
    assert sent is not None
    assert sent.price == pytest.approx((16500 * 2 + 630 * 10) / 1e6)
    assert str(sent + sent) == (
        f"sends to {HERE} up to 40 requests, about 33,000 tokens in and up to 1,260 out: about "
        "0.0786 at the given prices"
    )


def test_what_changes_no_number_is_no_part_of_a_result() -> None:
    beside = {"price_in": 1.0, "price_out": 1.0, "retries": 0, "timeout": 1.0, "key_variable": "X"}
    one, other = settings(endpoint=HERE), settings(endpoint=HERE, **beside)
    assert one.model_dump() == other.model_dump()
    assert one.model_dump() != settings(endpoint=HERE, model="another").model_dump()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"endpoint": "host/v1"}, "--autointerp.endpoint host/v1: it must be an address"),
        ({"endpoint": "https://me:word@host/v1"}, "no user, password"),
        ({"key_variable": KEY}, "--autointerp.key_variable"),
        ({"model": ""}, "--autointerp.model"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SaePluginsError, match=words) as caught:
        settings(**given)
    said = without_secrets(str(caught.value))  # as the command prints it
    assert KEY not in said
    assert "word@" not in said


@pytest.mark.ci
def test_the_judge_is_the_one_that_was_named(
    lab: Any, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_MY_OWN", KEY)
    stages: list[str] = []
    scores = lab.evaluate(
        "autointerp", lab.topk, lab.bench("named", stage=stages.append), model="judge-9",
        key_variable="OF_MY_OWN",
    )  # fmt: skip
    assert {each["model"] for each in judge.requests} == {"judge-9"}
    assert {*judge.keys} == {f"Bearer {KEY}"}
    assert "the judge is judge-9, not gpt-4o-mini" in scores.deviations
    assert any("answered as judge-1" in each for each in scores.warnings)
    assert KEY not in scores.raw
    n = len(judge.requests)
    assert stages[-1] == f"{n} requests sent, 0 answers known before: {100 * n:,} tokens in, " + (
        f"{5 * n} out"
    )
    files = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in files)


@pytest.mark.ci
def test_an_interrupted_evaluation_pays_nothing_twice(lab: Any, judge: Any) -> None:
    """The cache has the answers of the one that failed; one of them is asked for again."""
    failing = lab.bench("twice")

    def fail_late(request: Any) -> Any:
        return sensible(request) if is_explaining(request) else (400, {"error": "no"})

    judge.answer = fail_late
    with pytest.raises(SuiteError, match="answered 400"):
        lab.evaluate("autointerp", lab.topk, failing)
    explained = [each for each in judge.requests if is_explaining(each)]
    assert explained
    judge.answer = sensible
    judge.requests.clear()
    scores = lab.evaluate("autointerp", lab.topk, lab.bench("twice"))
    again = [each for each in judge.requests if is_explaining(each)]
    assert len(explained) + len(again) == scores.metrics["latents_scored"].value
    judge.requests.clear()
    once_more = lab.evaluate("autointerp", lab.topk, lab.bench("twice"))
    assert judge.requests == []
    assert once_more.metrics == scores.metrics


@pytest.mark.ci
def test_answers_that_are_none_are_left_out_and_told_of(lab: Any, judge: Any) -> None:
    predictions = iter([completion("", "length"), completion("certainly: 3 and 5 fit")])

    def answer(request: Any) -> Any:
        return sensible(request) if is_explaining(request) else next(predictions, sensible(request))

    judge.answer = answer
    scores = lab.evaluate("autointerp", lab.topk, lab.bench("none"))
    assert scores.metrics["latents_scored"].value == len(scores.details) == 4
    assert scores.metrics["autointerp_score"].n == 4
    (told,) = (each for each in scores.warnings if "leaves out" in each)
    assert "1 got no answer (finish_reason length)" in told
    assert "1 got predictions that are no list" in told

    judge.answer = lambda request: completion("", "length")
    with pytest.raises(SuiteError, match=r"no latent of topk has a score: 6 got no answer"):
        lab.evaluate("autointerp", lab.topk, lab.bench("nothing"))


@pytest.mark.ci
def test_in_a_notebook(lab: Any, judge: Any) -> None:
    """Where a loop runs already."""

    async def cell() -> Any:
        return lab.evaluate("autointerp", lab.topk)

    scores = asyncio.run(cell())
    assert scores.metrics == lab.scores("autointerp", lab.topk).metrics


@pytest.mark.ci
def test_text_that_ends_too_soon(lab: Any) -> None:
    from datasets import Dataset

    data: Any = SimpleNamespace(
        text=lambda *_: Dataset.from_dict({"text": ["a text of some words " * 9]})
    )
    with pytest.raises(SuiteError, match="has fewer than 4000 tokens"):
        lab.evaluate("autointerp", lab.topk, lab.bench(data=data))
