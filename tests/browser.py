"""Headless Chromium for tests that look at pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run")  # fmt: skip
DESKTOP, PHONE = 1280, 390


def start(profile: Path) -> Iterator[Any]:
    """A driver, until it is not needed any more; the test is skipped where there is no browser."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium or chromedriver is not on PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield started
    started.quit()


def open_page(driver: Any, page: Path, width: int, dark: bool = False) -> None:
    """Open the page in a window so high that all of it is in view."""

    def resize(height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    resize(900)
    driver.get_log("browser")  # of an earlier page
    driver.get(page.as_uri())
    resize(driver.execute_script("return document.documentElement.scrollHeight"))


def loaded_from_elsewhere(driver: Any) -> list[str]:
    """What the page has loaded that is neither in it nor on this disk."""
    entries = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    found = driver.execute_script(entries)
    return [name for name in found if not name.startswith(("data:", "file:"))]


def too_small(driver: Any) -> list[str]:
    """The beginnings of elements whose text is too small to read."""
    script = (
        "return [...document.querySelectorAll('body *')].filter(e => e.offsetParent"
        "&& [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())"
        "&& parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML.slice(0, 80))"
    )
    found: list[str] = driver.execute_script(script)
    return found


def is_wider_than_its_window(driver: Any) -> bool:
    """Whether the page scrolls sideways."""
    width = driver.execute_script("return document.documentElement.clientWidth")
    return bool(driver.execute_script("return document.documentElement.scrollWidth") > width)
