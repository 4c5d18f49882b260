"""The report in headless Chromium: it draws, complains of nothing, and is readable on a phone."""

import browser
import pytest
from browser import DESKTOP, PHONE

from sae_plugins.study.report import write

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(make_findings, tmp_path_factory):
    """The report of a study of two models and nine arms, some of which failed."""
    folder = tmp_path_factory.mktemp("study")
    found = make_findings(folder, models=("world", "toy"), grid=(8, 32))
    for metric in found.metrics["world"][-4:]:
        metric.compared = False
    found.warnings.append("a warning that is " + "quite long " * 20)
    found.failures.append(f"world, l1, seed 0: no such file: /{'a-long-name/' * 20}")
    return write(found, folder)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from browser.start(tmp_path_factory.mktemp("profile"))


def open_page(driver, page, width, dark=False):
    """Open the page, and wait for its figures."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.open_page(driver, page, width, dark)
    WebDriverWait(driver, 60).until(lambda _: not undrawn(driver))


def undrawn(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('.plot')]"
        ".filter(plot => plot.offsetParent && !plot.querySelector('.main-svg'))"
        ".map(plot => plot.parentElement.innerText)"
    )


@pytest.fixture(params=[DESKTOP, PHONE])
def opened(driver, page, request):
    open_page(driver, page, request.param)
    return driver


def test_page_draws_all_figures_without_complaint_or_network(opened):
    assert opened.get_log("browser") == []
    assert browser.loaded_from_elsewhere(opened) == []
    empty = (
        "return [...document.querySelectorAll('.js-plotly-plot')].filter(plot =>"
        "!plot.querySelector('.scatterlayer .trace, .heatmaplayer image')).length"
    )
    assert opened.execute_script(empty) == 0
    assert opened.execute_script("return document.querySelectorAll('.js-plotly-plot').length") > 20


def test_page_is_not_wider_than_the_window(opened):
    assert not browser.is_wider_than_its_window(opened)
    beyond = (
        "return [...document.querySelectorAll('p, li, h1, h2, h3, dd, .scroll, figure')].filter("
        "e => e.offsetParent && e.getBoundingClientRect().right > innerWidth).map(e => e.innerText)"
    )
    assert opened.execute_script(beyond) == []


def test_all_text_is_large_enough_to_read(opened):
    assert browser.too_small(opened) == []


def test_unticking_an_arm_hides_it_in_every_figure(driver, page):
    open_page(driver, page, DESKTOP)
    shown = (
        "return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
        ".filter(trace => trace.meta === 'hierarchical' && trace.visible).length"
    )
    assert driver.execute_script(shown) > 20
    driver.find_element("css selector", ".arms input[value=hierarchical]").click()
    assert driver.execute_script(shown) == 0


def test_choosing_a_score_draws_its_figure(driver, page):
    open_page(driver, page, DESKTOP)
    choose = """
        const choice = [...document.querySelectorAll(".choice")].find(
            choice => choice.querySelectorAll("option").length > 1);
        const select = choice.querySelector("select");
        select.value = "1";
        select.dispatchEvent(new Event("change"));
        return [...choice.querySelectorAll(":scope > div")].map(div => div.hidden);
    """
    assert driver.execute_script(choose)[:2] == [True, False]
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 30).until(lambda _: not undrawn(driver))
    assert driver.get_log("browser") == []


def test_dark_pages_have_light_figures_texts(driver, page):
    open_page(driver, page, DESKTOP, dark=True)
    colours = driver.execute_script(
        "return [getComputedStyle(document.body).color,"
        "getComputedStyle(document.querySelector('.xtick text')).fill]"
    )
    assert colours[0] == colours[1] == "rgb(230, 233, 237)"
