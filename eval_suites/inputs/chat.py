"""A language model at an OpenAI-compatible address, of which no answer is paid twice.

An answer is kept in the cache by its request: the address and the body, never the key. The key is
read from the environment, is handed to OpenAI's client alone, and is taken out of all that the
other side says.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.kept import Cached
from sae_plugins.base.secrets import HIDDEN, without_secrets
from sae_plugins.eval_suites.inputs.cache import Cache

NO_KEY = "none"
"""What an address gets that wants no key: OpenAI's client insists on one."""
_SHORTEST = 8
"""Characters of a key that is worth hiding."""


class NoAnswer(Exception):
    """The other side answered, and said nothing."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is, and how it is asked."""

    address: str
    """That of its API, such as `https://api.openai.com/v1`."""
    model: str
    key: str | None = field(default=None, repr=False)
    retries: int = 5
    timeout: float = 120.0
    """Seconds that an answer may take."""


def check_address(address: str) -> str:
    """An address, as it may be written into files.

    Raises:
        ValueError: it is none, or holds a password or a query.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"it is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("it must be an address such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "it must hold no user, password, query or fragment: a key comes from the environment"
        )
    return address.rstrip("/")


def key_of(variable: str | None, address: str) -> str | None:
    """The key in an environment variable; None where there is to be none.

    Raises:
        SuiteError: it is not set, or would travel in plain text.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SuiteError(
            f"the environment variable {variable} with the key of {address} is not set: set it, "
            "name another one with --autointerp.key_variable, or none where no key is wanted"
        )
    if not address.startswith("https:") and not _is_here(str(urlsplit(address).hostname)):
        raise SuiteError(
            f"the key in {variable} would travel in plain text to {address}: give an address with "
            "https, or --autointerp.key_variable none"
        )
    return key


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Asked:
    """Stands in for an instance of the class OpenAI: asks the endpoint what nobody has asked.

    `sent`, `known`, `tokens_in` and `tokens_out` count what it did since it was made.
    """

    def __init__(self, endpoint: Endpoint, cache: Cache) -> None:
        """Nothing is sent yet."""
        self.endpoint = endpoint
        self._cache = cache
        self._counting = threading.Lock()
        self.sent = self.known = self.tokens_in = self.tokens_out = 0
        self.models: set[str] = set()
        """What those that answered call themselves."""
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        endpoint = self.endpoint
        return OpenAI(
            api_key=endpoint.key or NO_KEY, base_url=endpoint.address,
            max_retries=endpoint.retries, timeout=endpoint.timeout,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the connections."""
        if "_client" in vars(self):
            self._client.close()

    def _create(
        self, *, messages: Sequence[Mapping[str, str]], max_tokens: int, n: int, **_: Any
    ) -> Any:
        """What OpenAI's client gives, as far as SAEBench looks at it.

        Raises:
            NoAnswer: what came is empty.
            SuiteError: nothing came, or no answer.
        """
        body = {
            "model": self.endpoint.model, "messages": [dict(each) for each in messages], "n": n,
            "max_tokens": max_tokens,
        }  # fmt: skip
        was_sent = []

        def ask() -> Cached:
            was_sent.append(True)
            return {}, self._said(body)

        key = fingerprint("chat", self.endpoint.address, body)
        _, answer = self._cache.get("answers", key, ask, by_code=False)
        with self._counting:
            self.models.add(answer["model"])
            if was_sent:
                self.sent += 1
                self.tokens_in += int(answer["tokens_in"])
                self.tokens_out += int(answer["tokens_out"])
            else:
                self.known += 1
        message = SimpleNamespace(content=answer["content"])
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    def _said(self, body: dict[str, Any]) -> dict[str, str]:
        completion = self._completion(body)
        try:
            (choice,) = completion.choices
            content, finish = choice.message.content, choice.finish_reason
            usage = completion.usage
        except (AttributeError, TypeError, ValueError):
            raise SuiteError(
                f"{self.endpoint.address} answered with something that is no chat completion: is "
                "the address right? It often ends in /v1"
            ) from None
        if not isinstance(content, str) or not content.strip():
            raise NoAnswer(f"finish_reason {finish}")
        return {
            "content": self._without_key(content),
            "model": str(completion.model or self.endpoint.model),
            "tokens_in": str(usage.prompt_tokens if usage else 0),
            "tokens_out": str(usage.completion_tokens if usage else 0),
        }

    def _completion(self, body: dict[str, Any]) -> Any:
        import openai

        address, model = self.endpoint.address, self.endpoint.model
        tries = f"{self.endpoint.retries + 1} tries"
        try:
            return self._client.chat.completions.create(**body)
        except openai.APIStatusError as error:
            if error.code == "content_filter":
                raise NoAnswer("content_filter") from None
            again = f", after {tries}" if error.status_code in (408, 409, 429) else ""
            again = f", after {tries}" if error.status_code >= 500 else again
            reason = f"answered {error.status_code} for model {model}{again}: {error.message}"
        except openai.APIConnectionError as error:
            reason = f"cannot be reached, after {tries}: {error.__cause__ or error}"
        except openai.OpenAIError as error:
            reason = f"cannot be asked: {error}"
        except ValueError as error:  # what came is no JSON
            reason = f"answered with something that cannot be read: {error}"
        raise SuiteError(f"{address} {self._without_key(reason)[:400]}")

    def _without_key(self, text: str) -> str:
        key = self.endpoint.key
        if key is not None and len(key) >= _SHORTEST:
            text = text.replace(key, HIDDEN)
        return without_secrets(text)
