"""The report in headless Chromium: it draws, complains of nothing, and is readable on a phone."""

import shutil

import pytest

from sae_plugins.study.report import write

pytestmark = pytest.mark.browser

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run")  # fmt: skip
DESKTOP, PHONE = 1280, 390


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
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium or chromedriver is not on PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield started
    started.quit()


def open_page(driver, page, width, dark=False):
    """Open the page in a window so high that all of it is in view, and wait for its figures."""
    from selenium.webdriver.support.ui import WebDriverWait

    def resize(height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    resize(900)
    driver.get_log("browser")  # of an earlier page
    driver.get(page.as_uri())
    resize(driver.execute_script("return document.documentElement.scrollHeight"))
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
    loaded = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert [name for name in opened.execute_script(loaded) if not name.startswith("data:")] == []
    empty = (
        "return [...document.querySelectorAll('.js-plotly-plot')].filter(plot =>"
        "!plot.querySelector('.scatterlayer .trace, .heatmaplayer image')).length"
    )
    assert opened.execute_script(empty) == 0
    assert opened.execute_script("return document.querySelectorAll('.js-plotly-plot').length") > 20


def test_page_is_not_wider_than_the_window(opened):
    width = opened.execute_script("return document.documentElement.clientWidth")
    assert opened.execute_script("return document.documentElement.scrollWidth") == width
    beyond = (
        "return [...document.querySelectorAll('p, li, h1, h2, h3, dd, .scroll, figure')].filter("
        "e => e.offsetParent && e.getBoundingClientRect().right > innerWidth).map(e => e.innerText)"
    )
    assert opened.execute_script(beyond) == []


def test_all_text_is_large_enough_to_read(opened):
    small = (
        "return [...document.querySelectorAll('body *')].filter(e => e.offsetParent"
        "&& [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())"
        "&& parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML.slice(0, 80))"
    )
    assert opened.execute_script(small) == []


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
