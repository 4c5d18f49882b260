"""How long this process has lived, and lengths of time as people write them."""

from __future__ import annotations

import re
import time

from sae_plugins.base.errors import SaePluginsError

_STARTED = time.monotonic()
_LENGTH = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")


def age() -> float:
    """Seconds since this process imported sae_plugins, with which a command begins."""
    return time.monotonic() - _STARTED


def seconds_in(text: str) -> int:
    """A length of time as people write it: 3h50m, 90min, 2d, or seconds.

    Raises:
        SaePluginsError: it is none.
    """
    text = f"{text}s" if text.isdecimal() else text
    match = _LENGTH.fullmatch(text)
    numbers = [int(number or 0) for number in match.groups()] if match else []
    if not any(numbers):
        raise SaePluginsError(
            f"{text!r} is no length of time: give one such as 3h50m, 90min, 2d or 13800 (seconds)"
        )
    return sum(n * unit for n, unit in zip(numbers, (86_400, 3_600, 60, 1), strict=True))
