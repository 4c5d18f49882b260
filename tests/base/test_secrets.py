"""Secrets are hidden wherever a text or a value is shown, and nothing else is."""

import json
from pathlib import Path

import pytest
import yaml

from sae_plugins.base import yaml_files
from sae_plugins.base.files import write
from sae_plugins.base.secrets import (
    HIDDEN,
    holds_hidden,
    is_secret,
    line_with_secret,
    redacted,
    redacted_words,
    without_secrets,
)
from sae_plugins.framework import registry
from sae_plugins.settings.flags import all_flags

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN} refused", "Bearer *** refused"),
        ("https://jane:pass@host/data", "https://***@host/data"),
        ("https://token@host/data?x=1&y=2 is gone", "https://***@host/data?*** is gone"),
        (
            '{"url": "https://host/a?Signature=abc", "k": 1}',
            '{"url": "https://host/a?***", "k": 1}',
        ),
        ("https://jane:p@ss:w@host/data", "https://***@host/data"),
        ("{'token': 'abc', 'k': 3}", "{'token': '***', 'k': 3}"),
        ('{"headers": {"Authorization": "Basic abc"}}', '{"headers": {"Authorization": "***"}}'),
        ('is not JSON: {\\"api_key\\": \\"abc\\"}', 'is not JSON: {\\"api_key\\": \\"***\\"}'),
        ("get(url, password=abc, k=3)", "get(url, password=***, k=3)"),
        ('--model_kwargs {"hf_token": "abc', '--model_kwargs {"hf_token": "***"'),
        ("header b'Bearer abcdefgh\\n'", "header b'Bearer ***\\n'"),
        ("sk-abcdefghijklmnopqrst and ghp_abcdefgh123", "*** and ***"),
        ('{"token": null, "secret": "", "key": "k"}', '{"token": null, "secret": "", "key": "k"}'),
        (
            "sequence_separator_token: 'bos', tokens='a'",
            "sequence_separator_token: 'bos', tokens='a'",
        ),
        ("--spread.token: it must be a text", "--spread.token: it must be a text"),
        ("hf_hub_download of user/repo@main failed", "hf_hub_download of user/repo@main failed"),
        ("is a = b? yes", "is a = b? yes"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


NAMES = (
    *("token", "HF_TOKEN", "hf_token", "use_auth_token", "api_key", "apiKey", "password", "db_pwd"),
    *("secret", "client_secret", "awsSecretAccessKey", "Authorization", "x-api-key", "private_key"),
    *("spread.token", "credentials", "cookie", "passphrase"),
)
PLAIN = (
    *("tokens", "training_tokens", "sequence_separator_token", "bos_token", "tokenizer", "key"),
    *("tokenizer_name", "author", "k", "keep_checkpoints", "heldout_tokens", "token_ids"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    tree = {"kwargs": {name: "abc", "k": 3}, "all": [{name: {"a": ["abc", 5]}}]}
    shown = redacted(tree)
    assert shown == {
        "kwargs": {name: HIDDEN, "k": 3},
        "all": [{name: {"a": [HIDDEN, HIDDEN]}}],
    }
    assert tree["kwargs"] == {name: "abc", "k": 3}, "it stays as it is"
    assert holds_hidden(shown)
    assert not holds_hidden(tree)
    assert redacted({name: None}) == {name: None}
    assert redacted({name: True}) == {name: True}, "take the token that is stored"


@pytest.mark.parametrize("name", PLAIN)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret(name)


def test_no_flag_and_no_option_of_ours_is_taken_for_a_secret() -> None:
    options = [f"{plugin}.{name}" for plugin, names in registry.options().items() for name in names]
    assert [name for name in (*all_flags(), *options) if is_secret(name)] == []


def test_command_lines() -> None:
    words = ["--plugin", "x", "--x.api_key", "abc", "--model_kwargs", '{"token": "abc"}', "--x.pwd"]
    shown = [
        "--plugin",
        "x",
        "--x.api_key",
        HIDDEN,
        "--model_kwargs",
        '{"token": "***"}',
        "--x.pwd",
    ]
    assert redacted_words(words) == shown


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import os\n\ndef f(tok):\n    return g(token=tok, api_key=os.environ['API_KEY'])\n",
            None,
        ),
        ("token_ids = 'a b'\npad_token: str = ''\n", None),
        ("import os\nTOKEN = 'hf_" + "a" * 20 + "'\n", 2),
        ("f(password='hunter2')\n", 1),
        ("\n\nurl = 'https://me:word@host/x'\n", 3),
        ('x = 1\nos.environ["WANDB_API_KEY"] = "abc"', 2),
        ('os.environ.setdefault("API_KEY", f"abc{x}")', 1),
        ('password = (\n    "abc"\n    "def"\n)', 2),
        ("login(\n    user,\n    password='a' + rest,\n)", 3),
        ('headers = {\n    "api_key":\n        b"abc",\n}', 3),
        ('def login(user, *, password="abc"): ...', 1),
        ('def login(user, password="abc", x=""): ...', 1),
        ('self.password: str = "abc"', 1),
        (
            'password = os.environ["PASSWORD"]\nlogin(password=password)\ntoken = decode("abc")',
            None,
        ),
        ('password = ""\nbos_token = "<s>"\nd = {**a, "b": "c"}\nf("x", y)', None),
    ],
)
def test_code_is_looked_at_and_not_rewritten(code: str, line: int | None) -> None:
    assert line_with_secret(code) == line


def test_files_are_written_without_secrets(tmp_path: Path) -> None:
    tree = {"kwargs": {"token": "abc", "n": 1.5}, "url": "https://jane:pass@host/a"}
    shown = {"kwargs": {"token": HIDDEN, "n": 1.5}, "url": "https://***@host/a"}
    write(tmp_path / "a.json", json.dumps(tree))
    assert json.loads((tmp_path / "a.json").read_text()) == shown
    assert yaml.safe_load(yaml_files.dump(tree)) == shown
    assert redacted({"folder": "runs/hf_pythia70m"}) == {"folder": "runs/hf_pythia70m"}
    assert redacted({"folder": f"runs/{TOKEN}"}) == {"folder": f"runs/{HIDDEN}"}
    harmless = '{"a": NaN,  "b": 1e-5}'
    write(tmp_path / "b.json", harmless)
    assert (tmp_path / "b.json").read_text() == harmless, "to the byte"
