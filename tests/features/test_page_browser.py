"""The page in headless Chromium: it complains of nothing, and is readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import DESKTOP, PHONE

from sae_plugins.features.build import Request, build
from sae_plugins.features.result import FeaturePages
from sae_plugins.features.vocabulary import Vocabulary

pytestmark = pytest.mark.browser

NASTY = "</script><img src=x onerror=\"document.title='broken'\">\u2028"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from browser.start(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def one(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> FeaturePages:
    """Of the reordered SAE alone, in a language in which every short token would break a page."""
    own = Vocabulary.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Vocabulary, "text",
            lambda self, *tokens: NASTY if len(own(self, *tokens)) == 2 else own(self, *tokens),
        )  # fmt: skip
        out = tmp_path_factory.mktemp("pages") / "one"
        return build(Request([str(runs[0])], out, tokens=20_000))


def show(driver: Any, pages: FeaturePages, where: str, width: int, dark: bool = False) -> None:
    """Open an address, and wait for what it shows."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get("about:blank")  # an address of the same page would not load it
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser")
    driver.get(pages.page.as_uri() + where)
    WebDriverWait(driver, 30).until(lambda _: text(driver, "#shown"))


def text(driver: Any, selector: str) -> str:
    script = "return document.querySelector(arguments[0])?.textContent ?? ''"
    return str(driver.execute_script(script, selector))


def numbers(driver: Any) -> list[int]:
    script = "return [...document.querySelectorAll('#rows .id')].map(e => +e.textContent.slice(1))"
    return [int(number) for number in driver.execute_script(script)]


def choose(driver: Any, sort: str, search: str = "") -> list[int]:
    driver.execute_script(
        "for (const [id, value, event] of [['sort', arguments[0], 'change'],"
        "['search', arguments[1], 'input']]) { const e = document.getElementById(id);"
        "e.value = value; e.dispatchEvent(new Event(event)); }",
        sort,
        search,
    )
    return numbers(driver)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("where", ["", "#17", "#about", "#2:17", "#2:about", "#95", "#4711"])
def test_pages_complain_of_nothing_and_need_no_network(
    driver: Any, pages: FeaturePages, one: FeaturePages, where: str, width: int
) -> None:
    for each in (pages, one):
        if each is one and ":" in where:
            continue
        show(driver, each, where, width)
        assert driver.get_log("browser") == []
        assert browser.loaded_from_elsewhere(driver) == []
        assert browser.too_small(driver) == []
        assert not browser.is_wider_than_its_window(driver)
        beyond = (
            "return [...document.querySelectorAll('#shown p, #shown h1, #shown table, #rows a')]"
            ".filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth)"
            ".map(e => e.textContent)"
        )
        assert driver.execute_script(beyond) == []


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_an_address_leads_to_its_feature(driver: Any, pages: FeaturePages, width: int) -> None:
    show(driver, pages, "#17", width)
    assert text(driver, "#shown h1") == "Feature 17"
    assert driver.execute_script("return document.querySelector('#shown h1').offsetParent !== null")
    shown = driver.execute_script(
        "return [...document.querySelectorAll('.columns .text')].map(e => "
        "[...e.querySelectorAll('.words span')].map(s => s.textContent).join(''))"
    )
    expected = ["".join(word for word, _ in each) for each in pages.feature(17).examples()]
    assert expected
    assert shown[: len(expected)] == [e.replace("\n", "↵").replace("\t", "→") for e in expected]
    loaded = [
        file
        for file in driver.execute_script(
            "return performance.getEntriesByType('resource').map(e => e.name)"
        )
        if "/data/" in file
    ]
    assert len(loaded) <= 3, "only the shards that are looked at are loaded"


def test_a_feature_of_the_second_sae_and_its_twin(driver: Any, pages: FeaturePages) -> None:
    show(driver, pages, "#2:17", DESKTOP)
    assert text(driver, "#switch [aria-current]") == "merged"
    twin = pages.feature(17, sae=1).data["twin"][0]
    if twin >= 0:
        assert f"#{twin}" in text(driver, ".twin")
        driver.find_element("css selector", ".twin a").click()
        assert driver.execute_script("return location.hash") == f"#{twin}"
        assert text(driver, "#switch [aria-current]") == "ordered"


def test_sorting(driver: Any, pages: FeaturePages) -> None:
    about = pages.index["saes"][0]
    show(driver, pages, "", DESKTOP)
    shown = choose(driver, "position")
    assert shown == [*range(len(shown))]
    assert len(shown) > 20
    for sort, key in (("density", "count"), ("near", "near"), ("twin", "twin")):
        expected = sorted(range(96), key=lambda i: -about[key][i])
        assert choose(driver, sort) == expected[: len(shown)], sort
    found = choose(driver, "token")
    firsts = [about["words"][about["tops"][i][0]].strip().lower() for i in found]
    readable = [word for word in firsts if word]
    assert readable == sorted(readable, key=lambda word: word.encode("utf-16-be"))
    assert firsts[: len(readable)] == readable


def test_what_happened_to_a_feature_is_said_on_its_page(driver: Any, pages: FeaturePages) -> None:
    about = pages.index["saes"][1]
    show(driver, pages, "#2:17", DESKTOP)
    for sort in ("started", "merges"):
        expected = sorted(range(96), key=lambda i: -about[sort][i])
        found = choose(driver, sort)
        assert found == expected[: len(found)], sort
    pasts = {i: pages.feature(i, 1).data.get("past", {}) for i in range(96)}
    for number in [i for i, past in pasts.items() if past.get("took") is not None][:3]:
        took = pasts[number]
        show(driver, pages, f"#2:{number}", DESKTOP)
        assert f"Merged at step {took['took_at']} with #{took['took']}, " in text(driver, ".past")
        driver.find_element("css selector", ".past a:last-of-type").click()
        assert driver.execute_script("return location.hash") == f"#2:{took['took']}"
    number = next(i for i, past in pasts.items() if past.get("into") is not None)
    show(driver, pages, f"#2:{number}", DESKTOP)
    assert f"merged at step {pasts[number]['into_at']} into #" in text(driver, ".past")


def test_searching(driver: Any, pages: FeaturePages) -> None:
    about = pages.index["saes"][0]
    show(driver, pages, "", DESKTOP)
    assert choose(driver, "position", "17")[0] == 17
    assert choose(driver, "position", "#17") == [17]
    word = next(w.strip() for w in about["words"] if len(w.strip()) > 2)
    hit = {i: [about["words"][t].lower() for t in tops] for i, tops in enumerate(about["tops"])}
    expected = {i for i, texts in hit.items() if any(word.lower() in text for text in texts)}
    assert {*choose(driver, "position", word)} == expected
    assert choose(driver, "position", "no such token") == []
    assert text(driver, "#found").startswith("0 of 96 features")


def test_a_search_tells_spaces_apart_and_has_exact_tokens_first(
    driver: Any, pages: FeaturePages
) -> None:
    about = pages.index["saes"][0]
    words = [about["words"][i].lower() for tops in about["tops"] for i in tops]
    spaced = next(w for w in words if w.startswith(" ") and len(w) > 2 and w.strip() in words)
    show(driver, pages, "", DESKTOP)
    for wanted in (spaced, spaced.strip()):
        found = choose(driver, "density", wanted)
        texts = [[about["words"][t].lower() for t in about["tops"][i]] for i in found]
        assert all(any(wanted in text for text in each) for each in texts)
        exact = [wanted in each for each in texts]
        assert exact == sorted(exact, reverse=True)
        assert exact[0], wanted


def test_bytes_are_subdued_and_twins_and_silence_explained(
    driver: Any, runs: list[Path], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        own = Vocabulary.text
        patch.setattr(
            Vocabulary, "text",
            lambda self, *tokens: own(self, *tokens).replace("e", "⟨C3⟩"),
        )  # fmt: skip
        made = build(Request([*map(str, runs)], tmp_path / "bytes", tokens=2048))
    show(driver, made, "#17", DESKTOP)
    assert "⟨C3⟩" in text(driver, ".byte")
    assert "if the cosine of their activations is at least 0.5" in text(driver, ".twin")
    show(driver, made, "#about", PHONE)
    said = text(driver, "#shown")
    assert "fire at none of these" in said
    assert "not known yet since a feature is dead after 200 silent steps" in said
    assert "Each count of silent features is at other tokens" in said


def test_a_token_that_is_only_spaces_shows_and_comes_last(
    driver: Any, runs: list[Path], tmp_path: Path
) -> None:
    own, vowels = Vocabulary.text, dict.fromkeys(map(ord, "aeiou"), " ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Vocabulary, "text",
            lambda self, *tokens: own(self, *tokens).translate(vowels),
        )  # fmt: skip
        made = build(Request([str(runs[0])], tmp_path / "spaces", tokens=2048))
    about = made.index["saes"][0]
    blank = [bool(tops) and not about["words"][tops[0]].strip() for tops in about["tops"]]
    assert any(blank)
    show(driver, made, f"#{blank.index(True)}", DESKTOP)
    script = "return [...document.querySelectorAll('.token')].map(each => each.textContent)"
    found = driver.execute_script(script)
    assert all(each.strip() for each in found)
    assert any("␣" in each for each in found)
    first = choose(driver, "token")[0]
    assert not blank[first]


def test_text_is_never_taken_for_markup(driver: Any, one: FeaturePages) -> None:
    number = next(
        i for i, tops in enumerate(one.index["saes"][0]["tops"])
        if any(one.index["saes"][0]["words"][t] == NASTY for t in tops)
    )  # fmt: skip
    for width in (DESKTOP, PHONE):
        show(driver, one, f"#{number}", width)
        assert "onerror" in text(driver, "#shown")
        assert driver.execute_script("return document.querySelectorAll('img').length") == 0
        assert driver.execute_script("return document.title") != "broken"
        assert not browser.is_wider_than_its_window(driver)


def test_the_order_can_be_walked(driver: Any, one: FeaturePages) -> None:
    show(driver, one, "#about", DESKTOP)
    assert "The order of the features" in text(driver, "#shown")
    assert "reordered 3 times" in text(driver, "#shown")
    drawn = (
        "const c = document.querySelector('canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; return d.some(x => x)"
    )
    assert driver.execute_script(drawn)
    driver.find_element("css selector", "canvas").click()  # in its middle
    reached = int(driver.execute_script("return location.hash")[1:])
    assert reached in (47, 48)
    driver.find_element("id", "next").click()
    assert driver.execute_script("return location.hash") == f"#{reached + 1}"


def test_a_feature_that_never_fires_says_so(driver: Any, pages: FeaturePages, one: Any) -> None:
    for each in (pages, one):
        counts = each.index["saes"][0]["count"]
        if 0 in counts:
            show(driver, each, f"#{counts.index(0)}", DESKTOP)
            assert "never fires on these" in text(driver, "#shown")


def test_dark_pages_are_dark(driver: Any, pages: FeaturePages) -> None:
    show(driver, pages, "#17", DESKTOP, dark=True)
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(colour) == "rgb(20, 23, 26)"
