"""The architectures that a plugin's contract runs on by default."""

from __future__ import annotations

import zlib

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By default a contract runs on two architectures a promise: standard, and one by its name.

    `make combinations` runs all.
    """
    from sae_plugins.framework.architectures import ARCHITECTURES

    architectures = list(ARCHITECTURES)
    for item in items:
        architecture = getattr(getattr(item, "callspec", None), "params", {}).get("architecture")
        contract = getattr(item, "cls", None)
        if architecture is None or not hasattr(contract, "plugin"):
            continue
        promise = item.nodeid.partition("[")[0]
        chosen = architectures[zlib.crc32(promise.encode()) % len(architectures)]
        if architecture not in ("standard", chosen):
            item.add_marker(pytest.mark.combinations)
