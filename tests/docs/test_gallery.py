"""The gallery's pages can be made of what is kept, and the front page's figure is made of it."""

import re
import runpy
from pathlib import Path

import pytest
from snippets import DOCS

GALLERY = runpy.run_path(str(DOCS / "gallery.py"))


@pytest.mark.slow
def test_its_pages_are_where_it_links_to(tmp_path: Path) -> None:
    made = GALLERY["main"]
    made.__globals__.update(SITE=tmp_path / "gallery", FRONT_FIGURE=tmp_path / "frontiers.png")
    made()
    links = re.findall(r'href="([^"]+)"', (DOCS / "gallery.md").read_text("utf-8"))
    assert len(links) == 2
    assert all((tmp_path / link).is_file() for link in links)
    assert (tmp_path / "frontiers.png").is_file()


def test_what_is_kept_of_quick_is_what_the_page_says() -> None:
    found = GALLERY["findings"]("quick")
    arms = {arm.name for arm in found.arms}
    said = (DOCS / "studies.md").read_text("utf-8").partition("<!-- quick: generated -->")[2]
    rows = set(re.findall(r"^\| ([a-z0-9-]+) \|", said.partition("<!-- end -->")[0], re.M))
    assert arms - {"l1"} == rows - {"arm", "---"}
