"""A language model on this machine, which answers as OpenAI's API does, and always the same."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-not-a-real-key-0123456789"
Request = dict[str, Any]
Answer = tuple[int, Any]
"""A status, and what JSON there is; a text is sent as it is."""


def completion(content: Any, finish: str = "stop", model: str = "judge-1") -> Answer:
    """What a chat completion looks like."""
    choice = {
        "index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content},
    }  # fmt: skip
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    return 200, {
        "id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice],
        "usage": usage,
    }  # fmt: skip


def is_explaining(request: Request) -> bool:
    """Whether an explanation is asked for, not predictions."""
    return "activating documents" in request["messages"][1]["content"]


def sensible(request: Request) -> Answer:
    """Explains by the token that is marked most, and predicts where it stands."""
    text = request["messages"][1]["content"]
    if is_explaining(request):
        marked = re.findall(r"<<(.+?)>>", text)
        return completion(f"This neuron activates on {max(sorted(set(marked)), key=marked.count)}.")
    word = re.search(r"this neuron fires on (.*?)\.\n", text, re.S)
    assert word is not None
    examples = re.findall(r"^(\d+)\. (.*)$", text.partition("examples:\n\n")[2], re.M)
    active = [number for number, example in examples if word[1] in example]
    return completion(", ".join(active) or "None")


class Judge:
    """The server.

    Attributes:
        address: of its API.
        requests: what was asked, in the order of arrival.
        keys: the headers that came with it.
        answer: what is said to a request.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[Request], Answer] = sensible
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(size))
                judge.requests.append({"path": self.path, **request})
                judge.keys.append(self.headers["Authorization"])
                status, answer = judge.answer(request)
                kind = "text/html" if isinstance(answer, str) else "application/json"
                body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
