"""The documentation's site: built strictly, whole, from this disk alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
import yaml
from browser import DESKTOP, PHONE

ROOT = Path(__file__).parents[2]
ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Tags that load something, and the attribute that says what."""
LOOKED_AT = (
    "index.html",
    "methods/hybrid-order.html",
    "events.html",
    "cli.html",
    "mechanisms.html",
    "steering.html",
)


def build(site: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = build(folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        relative = page.relative_to(ROOT / "docs").with_suffix(".html")
        relative = relative.with_name("index.html") if page.stem == "README" else relative
        assert (site / relative).is_file()
    assert not list(site.rglob("*.py"))
    start = (site / "index.html").read_text("utf-8")
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            assert f'href="{page.relative_to(site).as_posix()}"' in start, f"{page.name} is hidden"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag, attributes in Tags(page).found:
            loads = attributes.get("href" if tag == "link" else ASSETS.get(tag, ""), "")
            assert "//" not in loads, f"{page.name} loads {loads}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text("utf-8"))


def test_all_links_lead_to_files_of_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # which is served from anywhere
            continue
        for tag, attributes in Tags(page).found:
            link = attributes.get("href", attributes.get("src", "")).partition("#")[0]
            if link.startswith("gallery/"):
                continue  # made afterwards: see test_gallery.py
            if tag in ("a", "link", "img", "script") and link and "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


BROKEN = {
    "page": ("[a page](nowhere.md)", "nowhere.md"),
    "heading": ("[a heading](index.md#nowhere)", "nowhere"),
    "code": ("[a file of the code](../sae_plugins/framework/run.py)", "run.py"),
    "absolute": ("[absolute](/index.md)", "/index.md"),
}
"""Links with words of the complaint, by the page that has them."""


def test_a_broken_link_breaks_the_build(tmp_path: Path) -> None:
    """Each has a warning, and any warning breaks it."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    kept = {name: config[name] for name in ("site_name", "strict", "validation")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**kept, "plugins": []}))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n")
    for page, (text, _) in BROKEN.items():
        (tmp_path / "docs" / f"{page}.md").write_text(f"# Page\n\n{text}\n")
    built = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert built.returncode != 0
    warnings = [line for line in built.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(BROKEN), built.stderr
    for page, (_, complaint) in BROKEN.items():
        assert any(f"'{page}.md'" in line and complaint in line for line in warnings), built.stderr


def test_the_tables_have_no_stray_backslashes(site: Path) -> None:
    """A bar inside code is escaped in Markdown's tables, and must not be on the page."""
    for page in site.rglob("*.html"):
        cells = re.findall(r"<td>.*?</td>", page.read_text("utf-8"), re.S)
        assert not [cell for cell in cells if "\\|" in cell], page.name


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from browser.start(tmp_path_factory.mktemp("profile"))


@pytest.mark.browser
@pytest.mark.parametrize("page", LOOKED_AT)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_page_looks_right(driver: Any, site: Path, page: str, width: int) -> None:
    browser.open_page(driver, site / page, width)
    assert driver.get_log("browser") == []
    assert browser.loaded_from_elsewhere(driver) == []
    assert not browser.is_wider_than_its_window(driver)
    assert browser.too_small(driver) == []
    narrow = (
        "return [...document.querySelectorAll('article td')].filter(cell => cell.offsetParent"
        "&& cell.textContent.length > 60 && cell.clientWidth < 120)"
        ".map(cell => cell.textContent.slice(0, 40))"
    )
    assert driver.execute_script(narrow) == [], "columns too narrow to read"


@pytest.mark.browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_no_table_is_wider_than_its_page(driver: Any, site: Path, width: int) -> None:
    beyond = (
        "return [...document.querySelectorAll('article table')].filter(t => t.offsetParent)"
        ".filter(t => [t, t.closest('.md-typeset__scrollwrap'), ...t.querySelectorAll('td')]"
        ".some(e => e && (e.getBoundingClientRect().left + e.scrollWidth > innerWidth"
        " || e.getBoundingClientRect().right > innerWidth))).map(t => t.rows[0].textContent)"
    )
    for page in sorted(site.rglob("*.html")):
        if page.name != "404.html":
            browser.open_page(driver, page, width)
            assert driver.execute_script(beyond) == [], page.name


@pytest.mark.browser
def test_heads_stand_above_their_numbers_on_a_phone(driver: Any, site: Path) -> None:
    browser.open_page(driver, site / "calibration.html", PHONE)
    lefts = (
        "return [...document.querySelectorAll('.numbers table')].map(t => [t.rows[0], t.rows[1]]"
        ".map(row => [...row.cells].map(cell => Math.round(cell.getBoundingClientRect().left))))"
    )
    tables = driver.execute_script(lefts)
    assert len(tables) == 8
    for head, row in tables:
        assert head == row
        assert len({*row}) == 3, "three to a line"
    sticks = "return getComputedStyle(document.querySelector('.numbers thead')).position"
    assert driver.execute_script(sticks) == "sticky"


@pytest.mark.browser
def test_search_works_from_disk(driver: Any, site: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.open_page(driver, site / "methods" / "hybrid-order.html", DESKTOP)
    driver.find_element("css selector", "[data-md-component=search-query]").send_keys("padding")
    results = ".md-search-result__link"
    WebDriverWait(driver, 30).until(lambda _: driver.find_elements("css selector", results))
    links = [e.get_attribute("href") for e in driver.find_elements("css selector", results)]
    assert any("saebench-hazards.html" in link for link in links)
    assert driver.get_log("browser") == []


@pytest.mark.browser
def test_the_picture_is_drawn(driver: Any, site: Path) -> None:
    browser.open_page(driver, site / "architecture.html", PHONE, dark=True)
    width = "return document.querySelector('article img').naturalWidth"
    assert driver.execute_script(width) > 0
    assert not browser.is_wider_than_its_window(driver)
