"""The pages in a browser: every figure visible, nothing wider than the page, no request, no error."""

import os

import pytest

from tests.report.browser import Browser, installed

REQUIRED = "MINILM_REQUIRE_CHROMIUM"
PAGES = ("train/report.html", "ablation/report.html", "kernels/report.html", "scaling/scaling.html", "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = installed()
    if program is None:
        assert os.environ.get(REQUIRED) != "1", f"no Chromium is installed and {REQUIRED} is 1"
        pytest.skip("no Chromium is installed")
    with Browser(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def faults(seen):
    """What is wrong with a page, in words."""
    found = [f"asks for {url}" for url in seen["requests"]] + [f"error: {text}" for text in seen["errors"]]
    if seen["content"] > seen["page"]:
        found.append(f"{seen['content']} wide where the page is {seen['page']}")
    for figure in seen["figures"]:
        if not figure["drawn"] or figure["width"] < 100 or figure["height"] < 50:
            found.append(f"{figure['label']} cannot be seen")
        if figure["left"] < 0 or figure["right"] > seen["page"] + 0.5:
            found.append(f"{figure['label']} leaves the page")
    return found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_every_figure_can_be_seen_and_nothing_is_asked_for(browser, capstone_folder, name, width):
    seen = browser.open(capstone_folder / name, width, dark=width == 390)
    assert seen["page"] == width and seen["figures"] and seen["text"] > 1000
    assert faults(seen) == []


def test_light_and_dark_have_papers_of_their_own(browser, capstone_folder):
    papers = {browser.open(capstone_folder / "report.html", 1280, dark)["paper"] for dark in (False, True)}
    assert papers == {"rgb(250, 249, 246)", "rgb(20, 21, 24)"}


def test_a_page_with_faults_is_seen_through(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body><div style='width:2000px'>wide</div><img alt='lost' src='http://127.0.0.1:9/x.png'>"
        "<svg aria-label='empty' viewBox='0 0 9 9' style='width:200px;height:200px'></svg>"
        "<svg aria-label='outside' style='position:absolute;left:1500px;width:200px;height:90px'><path d='M0'/></svg>"
        "<script>console.error('oh')</script>"
    )
    found = " | ".join(faults(browser.open(page, 1280, dark=False)))
    for words in ("asks for http://127.0.0.1:9/x.png", "oh", "wide where the page is 1280", "lost cannot be seen",
                  "empty cannot be seen", "outside leaves the page"):  # fmt: skip
        assert words in found
