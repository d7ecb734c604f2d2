"""The page in a real browser without a network: it runs cleanly, filters, and fits a phone and a desk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.machine import browser_path, needs

from tuneful.report.build import build_report

pytestmark = [
    needs("chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue("run_folder_type")(tmp_path_factory.mktemp("browser") / "run")
    folder.write_all()
    with (folder.path / "answers" / "tuned.jsonl").open("a", encoding="utf-8") as answers:
        text = "<script>document.title = 'obeyed'</script>" + "\\u202e" + "W" * 3000
        answers.write(f'{{"source": "hostile", "prompt": "", "text": "{text}", "finish_reason": "stop"}}\n')
    return build_report(folder.path)


@pytest.fixture(scope="module")
def endless_words_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The page of a run in which every name is one word of 300 letters."""
    word = "W" * 300
    folder = request.getfixturevalue("run_folder_type")(tmp_path_factory.mktemp("endless") / "run")
    folder.write_all().write_json(
        "environment.json", {"model": {"name": word}, "packages": {word: word}, "device": word}
    )
    metric = {"name": word, "label": word, "unit": word, "verdict": word, "difference": 0.1, "low": 0, "high": 1}
    folder.write_json("comparison.json", {"sentence": word, "caution": word, "metrics": [metric]})
    token = {"text": word, "weight": 1.0}
    audit = {
        "source": word,
        "refused": [{"source": word, "reason": word}],
        "shown": [{"source": word, "tokens": [token]}],
    }
    return build_report(folder.write_json("data.json", audit | {"template": word, "rows_refused": 1}).path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser_path(), args=SWITCHES)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, page_path: Path) -> Iterator[Any]:
    """A function that opens the page; at the end nothing was asked of the network and nothing was logged."""
    troubles: list[str] = []
    requests: list[str] = []
    context = browser.new_context(offline=True)

    def open_page(width: int, scheme: str = "light", path: Path = page_path) -> Any:
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert troubles == []
    assert all(url.startswith("file:") for url in requests)


def visible_items(page: Any) -> int:
    return int(page.locator("#items > article:not([hidden])").count())


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_nothing_is_wider_than_the_window(opened: Any, width: int) -> None:
    page = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.title").startswith("smollm2-135m-instruct tuned on starter")


@pytest.mark.parametrize("width", [400, 1280])
def test_what_to_do_and_what_got_worse_stand_on_the_first_screen(opened: Any, width: int) -> None:
    page = opened(width)
    for part in (".decision", ".got-worse"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] < 900, part


@pytest.mark.parametrize("width", [400, 1280])
def test_endless_words_are_broken(opened: Any, endless_words_path: Path, width: int) -> None:
    page = opened(width, path=endless_words_path)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_search_filter_and_sort_of_the_answers(opened: Any) -> None:
    from playwright.sync_api import expect

    page = opened(1280)
    page.locator("#every > summary").click()
    assert visible_items(page) == 131
    page.locator("#search").fill("portugal LISBON")
    expect(page.locator("#shown")).to_have_text("22 of 131 shown")
    assert visible_items(page) == 22
    page.locator("#search").fill("no such words anywhere")
    page.locator("#nothing").wait_for(state="visible")
    page.locator("#search").fill("")
    expect(page.locator("#shown")).to_have_text("131 of 131 shown")
    page.locator("#filter").select_option("worse")
    shown = "[...document.querySelectorAll('#items > article:not([hidden])')].map(a => a.dataset.direction)"
    assert set(page.evaluate(shown)) == {"worse"}
    page.locator("#filter").select_option("")
    page.locator("#sort").select_option("-gain")
    gains = page.evaluate("[...document.querySelectorAll('#items > article')].map(a => Number(a.dataset.gain))")
    scored = gains[:130]
    assert scored == sorted(scored, reverse=True)


def test_the_curves_switch_without_script_and_the_dark_page_is_dark(opened: Any) -> None:
    page = opened(1280, "dark")
    assert page.locator(".by-steps").is_visible()
    page.locator("label[for=axis-tokens]").click()
    assert page.locator(".by-tokens").is_visible()
    assert not page.locator(".by-steps").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"
