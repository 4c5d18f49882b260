"""What is asked of a language model elsewhere: once, with a key that nobody else sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from judge import KEY, Judge, completion

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.cache import Cache
from sae_plugins.eval_suites.inputs.chat import Asked, Endpoint, NoAnswer, check_address, key_of

Make = Callable[..., Asked]
MESSAGES = [{"role": "system", "content": "Say yes."}, {"role": "user", "content": "Now."}]


@pytest.fixture
def judge() -> Iterator[Judge]:
    judge = Judge()
    judge.answer = lambda request: completion(" yes ")
    yield judge
    judge.close()


@pytest.fixture
def make(judge: Judge, tmp_path: Path) -> Iterator[Make]:
    made = []

    def make(retries: int = 2, address: str = judge.address, model: str = "judge-1") -> Asked:
        made.append(Asked(Endpoint(address, model, KEY, retries, 5.0), Cache(tmp_path / "cache")))
        return made[-1]

    yield make
    for asked in made:
        asked.close()


def say(asked: Asked, messages: list[dict[str, str]] = MESSAGES, max_tokens: int = 7) -> str:
    create = asked.chat.completions.create
    completion = create(
        model="gpt-4o-mini", messages=messages, n=1, max_tokens=max_tokens, stream=False
    )
    content: str = completion.choices[0].message.content
    return content


def test_a_request_is_paid_once(judge: Judge, make: Make, tmp_path: Path) -> None:
    first = make()
    assert say(first) == " yes "
    (request,), (header,) = judge.requests, judge.keys
    assert request == {
        "path": "/v1/chat/completions", "model": "judge-1", "messages": MESSAGES, "n": 1,
        "max_tokens": 7,
    }  # fmt: skip
    assert header == f"Bearer {KEY}"
    assert (first.sent, first.known, first.tokens_in, first.tokens_out) == (1, 0, 100, 5)
    second = make()
    assert say(second) == " yes "
    assert (second.sent, second.known, second.tokens_in) == (0, 1, 0)
    assert second.models == {"judge-1"}
    say(second, MESSAGES[:1])
    say(second, max_tokens=8)
    say(make(model="judge-2"))
    assert len(judge.requests) == 4
    assert all(KEY.encode() not in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert KEY not in repr(first.endpoint)


def test_ten_at_once(judge: Judge, make: Make) -> None:
    judge.answer = lambda request: completion(request["messages"][0]["content"])
    asked = make()
    with ThreadPoolExecutor(10) as pool:
        said = [*pool.map(lambda n: say(asked, [{"role": "user", "content": str(n)}]), range(12))]
    assert said == [str(n) for n in range(12)]
    assert asked.sent == 12


def test_what_is_too_much_or_broken_is_tried_again(judge: Judge, make: Make) -> None:
    answers = iter([(429, {"error": {"message": "slow down"}}), (503, "busy"), completion("yes")])
    judge.answer = lambda request: next(answers)
    assert say(make(retries=2)) == "yes"
    assert len(judge.requests) == 3


ECHO = (401, {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid"}})


@pytest.mark.parametrize(
    ("answer", "requests", "words"),
    [
        (ECHO, 1, "answered 401 for model judge-1: .*provided: \\*{3}$"),
        ((404, {"error": {"message": "no such model"}}), 1, "answered 404 .*no such model"),
        ((429, {"error": {"message": "slow"}}), 2, "answered 429 .*after 2 tries"),
        ((500, "oops"), 2, "answered 500 .*after 2 tries"),
        ((200, "<html>Welcome</html>"), 1, "no chat completion: is the address right"),
        ((200, {"choices": []}), 1, "no chat completion"),
        ((200, {"hello": 1}), 1, "no chat completion"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(
    answer: Any, requests: int, words: str, judge: Judge, make: Make, tmp_path: Path
) -> None:
    judge.answer = lambda request: answer
    with pytest.raises(SuiteError, match=words) as caught:
        say(make(retries=1))
    assert str(caught.value).startswith(judge.address)
    assert KEY not in str(caught.value)
    assert len(judge.requests) == requests
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "answer",
    [
        completion("", "length"),
        completion(" \n"),
        completion(None, "length"),
        (400, {"error": {"message": "no", "code": "content_filter"}}),
    ],
)
def test_an_empty_answer_is_none_and_is_not_kept(answer: Any, judge: Judge, make: Make) -> None:
    judge.answer = lambda request: answer
    with pytest.raises(NoAnswer):
        say(make())
    judge.answer = lambda request: completion("yes")
    assert say(make()) == "yes"


def test_nobody_is_there(make: Make) -> None:
    with pytest.raises(SuiteError, match=r"127.0.0.1:9/v1 cannot be reached, after 1 tries"):
        say(make(retries=0, address="http://127.0.0.1:9/v1"))


def test_nothing_is_imported_or_connected_before_it_is_asked(make: Make) -> None:
    before = threading.active_count()
    assert "_client" not in vars(make())
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "address", ["https://api.openai.com/v1/", "http://localhost:8000/v1", "http://[::1]:80"]
)
def test_addresses(address: str) -> None:
    assert check_address(address) == address.rstrip("/")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("api.openai.com/v1", "it must be an address such as"),
        ("file:///etc/passwd", "it must be an address such as"),
        ("https://", "it must be an address such as"),
        ("http://[::1", "no address"),
        ("http://a:port/", "no address"),
        ("https://user:word@host/v1", "no user, password"),
        ("https://host/v1?api-key=abc", "no user, password, query"),
    ],
)
def test_what_is_no_address(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_address(address)


def test_where_the_key_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    monkeypatch.delenv("OTHER", raising=False)
    assert key_of("MY_KEY", "https://host/v1") == KEY
    assert key_of("MY_KEY", "http://127.0.0.1:80/v1") == KEY
    assert key_of("MY_KEY", "http://localhost/v1") == KEY
    assert key_of(None, "http://host/v1") is None
    with pytest.raises(SuiteError, match="OTHER with the key of https://host/v1 is not set"):
        key_of("OTHER", "https://host/v1")
    for address in ("http://host/v1", "http://10.0.0.1/v1", "http://localhost.evil.com"):
        with pytest.raises(SuiteError, match="in plain text") as caught:
            key_of("MY_KEY", address)
        assert KEY not in str(caught.value)
