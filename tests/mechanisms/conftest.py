"""By default a contract is tested on two architectures a promise; `make combinations` does all."""

from __future__ import annotations

import zlib

import pytest

from sae_plugins.architectures import ARCHITECTURES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave standard SAEs, and for every promise of a contract another architecture."""
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
