"""What must not be written, printed or sent: tokens, passwords, and what signs an address.

Values are known by their names, such as `api_key`, wherever names are at hand, and by their shape
everywhere else. All that the package writes passes `redacted` or `without_secrets` in
`base.files.write`, `base.yaml_files.dump` and the events of a trainer; `hidden` does so for all
that a command prints.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.patches import replaced

HIDDEN = "***"
"""Stands where a secret was."""


def _shapes(least: int) -> re.Pattern[str]:
    """Tokens of the Hub, GitHub, GitLab, OpenAI, Slack and AWS, and those that are signed (JWT)."""
    return re.compile(
        rf"\b(?:(?:hf|api_org|gh[opsur]|glpat)[_-][A-Za-z0-9]{{{least},}}"
        rf"|github_pat_\w{{{least},}}|sk-[A-Za-z0-9_-]{{16,}}|xox[abprs]-[\w-]{{{least},}}"
        r"|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
    )


_IN_PROSE, _IN_VALUES = _shapes(8), _shapes(20)
"""Tokens, part of one included; a value by itself may be a folder's name such as hf_pythia70m."""
_BEARER = re.compile(r"(?i)(\b(?:bearer|authorization:\s*\w+)\s+)[\w.~+/=-]{6,}")
_USER = re.compile(r"(?<=://)[^/\s\"']+(?=@)")
_QUERY = re.compile(r"(?<=\?)[^\s\"'<>]+=[^\s\"'<>]+")
_PAIR = re.compile(
    r"""(?P<name>[\w.-]+)(?P<between>\\?["']?\s*[:=]\s*)
    (?P<value>"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|\\"[^"\\]*\\?"?|(?<==)[^\s,;&"')}\]]+)""",
    re.VERBOSE,
)
"""A name and its value in a text: quoted, or behind a bare "="."""
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = {
    *("password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"),
    *("authorization", "auth", "apikey", "cookie", "cookies", "jwt", "bearer"),
}
_KEYS = {"api", "access", "private", "secret", "auth", "account", "signing", "encryption", "ssh"}
"""What makes a key one that opens something."""
_OF_TEXT = {
    *("separator", "sequence", "bos", "eos", "pad", "padding", "sep", "unk", "cls", "mask"),
    *("special", "begin", "end", "start", "stop", "first", "last", "next", "prev", "per", "each"),
    *("document", "prompt", "image", "new", "batch", "target", "answer", "word", "text"),
}
"""What makes a token a piece of text."""


def is_secret(name: str) -> bool:
    """Whether what is called this must not be seen, such as `hf_token` or `spread.api_key`."""
    words = [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]
    if _SECRET_WORDS & {*words}:
        return True
    *before, last = words or [""]
    if last == "token":
        return not before or before[-1] not in _OF_TEXT
    return last == "key" and bool(before) and before[-1] in _KEYS


def without_secrets(text: str, shapes: re.Pattern[str] = _IN_PROSE) -> str:
    """A text without tokens, without `user:password@` in addresses, and without their queries."""
    text = _PAIR.sub(_hidden_pair, text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    for pattern in (shapes, _USER, _QUERY):
        text = pattern.sub(HIDDEN, text)
    return text


def line_with_secret(code: str) -> int | None:
    """The first line of a program with a token in it, or with a text under a secret name."""
    found = {value.lineno for name, value in _named(code) if is_secret(name) and _is_text(value)}
    for number, line in enumerate(code.splitlines(), 1):
        quoted = (pair for pair in _PAIR.finditer(line) if pair["value"][0] in "\"'")
        named = any(is_secret(pair["name"]) and len(pair["value"]) > 2 for pair in quoted)
        if named or any(pattern.search(line) for pattern in (_IN_PROSE, _BEARER, _USER)):
            found.add(number)
    return min(found, default=None)


def _named(code: str) -> Iterator[tuple[str, ast.expr]]:
    """What a program names, and the names: of variables, arguments, keys and `set(NAME, VALUE)`."""
    try:
        nodes = [*ast.walk(ast.parse(code))]
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [*zip(node.keys, node.values, strict=True)]
        elif isinstance(node, ast.arguments):
            plain = [*node.posonlyargs, *node.args]
            pairs = [*zip(reversed(plain), reversed(node.defaults), strict=False)]
            pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
        elif isinstance(node, ast.Call) and len(node.args) == 2:
            pairs = [(node.args[0], node.args[1])]
        yield from ((_name(name), value) for name, value in pairs if value is not None)


def _name(node: Any) -> str:
    """The name in a place that gets a value, or that a text says."""
    node = node.slice if isinstance(node, ast.Subscript) else node
    for attribute in ("id", "attr", "arg", "value"):
        if isinstance(found := getattr(node, attribute, node), str):
            return found
    return ""


def _is_text(node: ast.AST) -> bool:
    """Whether it is a text that is written there, if only in part, and not empty."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, bytes)) and bool(node.value)
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else parts
    return any(map(_is_text, parts))


def reason_of(error: Exception) -> str:
    """What an error says, in one line: all that ours say, and how those of others begin."""
    text = without_secrets(str(error)).strip()
    if isinstance(error, SaePluginsError):
        return " ".join(text.split())
    first = text.partition("\n")[0].strip()[:300]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _hidden_pair(match: re.Match[str]) -> str:
    value = match["value"]
    if not is_secret(match["name"]) or not value.strip("\\\"'"):
        return match[0]
    quote = re.match(r"\\?[\"']|", value)
    ends = quote[0] if quote else ""
    return f"{match['name']}{match['between']}{ends}{HIDDEN}{ends}"


def redacted(value: Any, name: str = "") -> Any:
    """A tree of plain values without secrets: by their names, and in all of its texts.

    Args:
        value: mappings, lists, tuples, and what is in them; it stays as it is.
        name: what it is called.
    """
    if isinstance(value, Mapping):
        return {key: redacted(item, _inner(name, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [redacted(item, name) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if is_secret(name) and value not in (None, "") and not isinstance(value, bool):
        return HIDDEN
    return without_secrets(value, _IN_VALUES) if isinstance(value, str) else value


def _inner(name: str, key: str) -> str:
    """The name of what is called `key` in what is called `name`, which may be a secret as whole."""
    return name if is_secret(name) else key


def redacted_json(text: str) -> str:
    """The text of a JSON file without secrets; as it is where it has none, or is no JSON."""
    try:
        tree = json.loads(text)
        shown = redacted(tree)
    except (ValueError, RecursionError):
        return without_secrets(text)
    return text if shown == tree else json.dumps(shown, indent=1) + "\n"


def redacted_text(text: str, suffix: str) -> str:
    """The text of a file that ends so without secrets."""
    if suffix != ".yaml":
        return redacted_json(text) if suffix == ".json" else without_secrets(text)
    import yaml

    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return without_secrets(text)
    shown = redacted(tree)
    return text if shown == tree else str(yaml.safe_dump(shown, sort_keys=False))


def redacted_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without secrets."""
    flags = ["", *(word.removeprefix("--") if word[:2] == "--" else "" for word in words)]
    return [
        HIDDEN if is_secret(flag) and word[:2] != "--" else without_secrets(word)
        for flag, word in zip(flags, words, strict=False)
    ]


def holds_hidden(value: Any) -> bool:
    """Whether a secret was taken out of a tree of plain values."""
    if isinstance(value, Mapping):
        return any(map(holds_hidden, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_hidden, value))
    return isinstance(value, str) and HIDDEN in value


@contextmanager
def hidden() -> Iterator[None]:
    """What anybody logs or warns of inside is without secrets, and so is a last traceback."""
    make, warn = logging.getLogRecordFactory(), warnings.formatwarning

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # logging itself says what is wrong with a message
            text = record.getMessage()
            if (shown := without_secrets(text)) != text:
                record.msg, record.args = shown, ()
        return record

    def ended(*error: Any) -> None:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(*error))))

    sys.excepthook = ended  # which is called when all is over
    logging.setLogRecordFactory(made)
    try:
        with replaced(warnings, formatwarning=lambda *a, **k: without_secrets(warn(*a, **k))):
            yield
    finally:
        logging.setLogRecordFactory(make)
