"""The architectures that contracts and invariants run on by default."""

from __future__ import annotations

import zlib

import pytest


@pytest.hookimpl(tryfirst=True)  # before the contract says on which architectures it is tested
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Here, every architecture is trained on two ranks."""
    if hasattr(metafunc.cls, "all_on_two_ranks"):
        metafunc.cls.all_on_two_ranks = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By default a promise is tested on two architectures: standard, and one by its name.

    That holds for the contracts of plugins, and for tests marked `two_architectures`. The whole
    check has one in sixteen of the rest, by its name; `make combinations` runs all.
    """
    from sae_plugins.framework.architectures import ARCHITECTURES

    architectures = list(ARCHITECTURES)
    for item in items:
        architecture = getattr(getattr(item, "callspec", None), "params", {}).get("architecture")
        is_contract = hasattr(getattr(item, "cls", None), "plugin")
        if not is_contract and item.get_closest_marker("two_architectures") is None:
            continue
        if "on_two_ranks" in item.name:
            if architecture != "standard" or item.cls.__name__ != "TestGood":
                item.add_marker(pytest.mark.ci)
            if architecture != "standard" and item.cls.__name__ != "TestContract":
                item.add_marker(pytest.mark.slow)  # the same plugin with other options
            continue
        promise = item.nodeid.partition("[")[0]
        chosen = architectures[zlib.crc32(promise.encode()) % len(architectures)]
        if architecture not in (None, "standard", chosen):
            item.add_marker(pytest.mark.combinations)
    for item in items:
        if item.get_closest_marker("combinations") and zlib.crc32(item.nodeid.encode()) % 16:
            item.add_marker(pytest.mark.slow)
