"""Lengths of time as people write them."""

from __future__ import annotations

import pytest

from sae_plugins.base import clock
from sae_plugins.base.errors import SaePluginsError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("3h50m", 13_800), ("90min", 5_400), ("2d", 172_800), ("13800", 13_800), ("45s", 45)),
        *(("1d12h", 129_600), ("1h30min5s", 5_405)),
    ],
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert clock.seconds_in(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0s",
        "0h",
        " 1h",
        "-5m",
        "1.5h",
        "50m3h",
        "3 hours",
        "3h 50m",
        "04:00:00",
        "h",
        "1h5",
        "5M",
    ],
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(SaePluginsError, match="is no length of time: give one such as 3h50m"):
        clock.seconds_in(text)
