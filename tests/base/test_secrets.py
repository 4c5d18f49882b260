"""Secrets are hidden wherever a text or a value is shown, and nothing else is."""

import pytest

from sae_plugins.base.secrets import without_secrets

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN} refused", "Bearer ... refused"),
        ("https://jane:pass@host/data", "https://...host/data"),
        ("https://token@host/data?x=1&y=2 is gone", "https://...host/data?... is gone"),
        (
            '{"url": "https://host/a?Signature=abc", "k": 1}',
            '{"url": "https://host/a?...", "k": 1}',
        ),
        ("hf_hub_download of user/repo@main failed", "hf_hub_download of user/repo@main failed"),
        ("is a = b? yes", "is a = b? yes"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
