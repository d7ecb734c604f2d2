"""The page in a real browser: it streams, rates by keyboard, fits a phone and a desk, and takes no text for markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.rated_runs import PageServer, page_app, plain_items, write_run
from tests.doubles.script_payloads import payloads
from tests.machine import browser_path, needs
from tests.report.conftest import RunFolder
from tests.report.test_browser import SWITCHES

from tuneful.report.build import build_report, script_source
from tuneful.serve.pages import Reports

pytestmark = [
    needs("chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NUM_TOGETHER = 15
"""Payloads that one text of chat holds."""
ELEMENTS = """
() => ({
  made: [...document.querySelectorAll('*')].filter(one =>
    !/^(html|head|meta|title|link|script|body|a|header|p|img|nav|ul|li|noscript|main|section|div|h1|h2|h3|ol|form|label|textarea|small|kbd|button|details|summary|select|option|input|table|caption|thead|tbody|tr|th|td|article|span|progress|dl|dt|dd)$/.test(one.localName)
    || one.getAttributeNames().some(name => name.startsWith('on') || name === 'style' || name === 'srcdoc' || name === 'autofocus')
    || /^\\s*(javascript|data|vbscript):/i.test(one.getAttribute('href') ?? '')).map(one => one.outerHTML),
  images: document.images.length, scripts: document.scripts.length, links: document.querySelectorAll('link, meta, base').length,
  obeyed: Boolean(window.obeyed), title: document.title })
"""  # noqa: E501

REFUSED = "data: " + json.dumps({"error": {"message": "\n".join(payloads())}}) + "\n\n"


def say(model: str, prompt: str) -> str:
    if prompt == "models":
        return "tuned|base|<img src=x onerror=alert(1)>"
    if prompt.startswith("count"):
        return " ".join(f"{model}-{n}" for n in range(12))
    return prompt


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "small", plain_items(4), sentence="It cannot tell.")
    write_run(folder / "equal", [*plain_items(3), *[("Task.", "Reference.", "the same", "the same")] * 111])
    RunFolder(folder / "whole").write_all(num_items=12)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[PageServer]:
    with PageServer(page_app(runs, say, Reports(build_report, script_source()))) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a busy machine takes longer than the five seconds that there are by default
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser_path(), args=SWITCHES)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, server: PageServer) -> Iterator[Any]:
    """A function that opens a part of the page; at the end nothing was logged, and nobody else was asked for anything."""
    troubles: list[str] = []
    context = browser.new_context()

    def open_page(part: str, width: int = 1280, scheme: str = "light", url: str = server.url) -> Any:
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda one: one.url.startswith(url) or troubles.append(one.url))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{url}/page/#{part}")
        return page

    yield open_page
    context.close()
    assert troubles == []


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def said(page: Any, text: str, part: str = "chat") -> None:
    """Send `text` in chat or compare, and wait for the end of all answers."""
    number = page.locator(f"#{part} .message.assistant").count() if part == "chat" else 0
    page.fill(f"#{part}-text", text)
    page.click(f"#{part}-send")
    expect(page.locator(f"#{part} .message.assistant .foot button")).to_have_count(
        number + (1 if part == "chat" else 2)
    )


def test_chat_streams_sends_its_history_and_copies(opened: Any) -> None:
    page = opened("chat")
    asked: list[Any] = []
    page.on("request", lambda one: asked.append(one.post_data_json) if one.url.endswith("completions") else None)
    expect(page.locator("#chat-model")).to_have_value("tuned")
    page.fill("#chat-system", "Be brief.")
    said(page, "count one")
    expect(page.locator(".message.assistant .text")).to_have_text(" ".join(f"tuned-{n}" for n in range(12)) + " ")
    page.fill("#chat-max", "3")
    page.select_option("#chat-model", "base")
    page.fill("#chat-text", "count two")
    page.press("#chat-text", "Enter")
    expect(page.locator(".message.assistant .text").nth(1)).to_have_text("base-0 base-1 base-2 ")
    expect(page.locator(".message.assistant .foot").nth(1)).to_contain_text("cut off")
    assert [one["role"] for one in asked[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert (asked[1]["max_tokens"], asked[1]["temperature"], asked[1]["seed"], asked[1]["model"]) == (3, 0, 0, "base")
    expect(page.locator("#status")).to_contain_text("base has answered: base-0")
    page.click("#chat-new")
    expect(page.locator(".message")).to_have_count(0)


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["a clipboard", "none, as from another machine"])
def test_an_answer_is_copied_as_it_was_said(opened: Any, has_clipboard: bool) -> None:
    page = opened("chat")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    text = "<b>one</b> &amp; two \u2028 \u05e9\u05dc\u05d5\u05dd\nthree"
    said(page, text)
    button = page.locator(".message.assistant .foot button")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_text("Copied")
    expect(page.locator("#status")).to_have_text("Copied")
    expect(button).to_be_focused()
    page.focus("#chat-text")
    page.keyboard.press("Control+v")
    expect(page.locator("#chat-text")).to_have_value(f"{text} ")
    expect(button).to_have_text("Copy")


def test_all_is_reached_by_keyboard_and_seen_where_it_is(opened: Any) -> None:
    page = opened("")
    expect(page.locator("#chat-model")).to_have_value("tuned")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    for part, last in (("chat", "#chat-send"), ("compare", "#compare-send"), ("rate", "#rate-setup .primary")):
        page.goto(re.sub(r"#.*", f"#{part}", page.url))
        expect(page.locator(f"#{part}")).to_be_visible()
        page.locator(f"nav a[href='#{part}']").focus()
        passed: list[Any] = []
        for _ in range(30):
            page.keyboard.press("Tab")
            passed.append(page.evaluate(FOCUSED))
            if page.locator(last).evaluate("one => one === document.activeElement"):
                break
        expect(page.locator(last)).to_be_focused()
        assert all(one["shown"] and one["outlined"] for one in passed), passed
        wanted = page.locator(f"#{part} :is(input, select, textarea, button, summary):visible").count()
        assert len({one["id"] for one in passed if one["inside"]}) >= wanted - 1, passed
    page.goto(re.sub(r"#.*", "#compare", page.url))
    page.focus("#compare-text")
    page.keyboard.type("count")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#compare-answers .foot button")).to_have_count(2)
    page.locator("nav a[href='#runs']").focus()
    page.keyboard.press("Enter")
    page.locator("#runs-rows a", has_text="whole").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#run-h")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#run-report")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#run-rate")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#rate-run")).to_have_value("whole")


FOCUSED = """
() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  return { id: one.id || one.textContent.trim().slice(0, 30), inside: Boolean(one.closest('main')),
    shown: box.width > 1 && box.height > 1 && box.top >= 0 && box.bottom <= innerHeight,
    outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 };
}
"""


def test_stop_ends_an_answer_and_keeps_what_came(opened: Any) -> None:
    page = opened("chat")
    page.fill("#chat-text", "before WAIT after")
    page.press("#chat-text", "Enter")
    expect(page.locator(".message.assistant .text")).to_have_text("before WAIT ")
    page.click("#chat-stop")
    expect(page.locator(".message.assistant .foot")).to_contain_text("stopped")
    expect(page.locator("#chat-send")).to_be_enabled()
    said(page, "count on")


def test_an_error_is_said_and_the_message_goes_back_into_its_field(opened: Any) -> None:
    page = opened("chat")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, body='data: {"error":{"message":"no <b>room</b>"}}\n\n'),
    )
    page.fill("#chat-text", "hello")
    page.press("#chat-text", "Enter")
    expect(page.locator("#chat-error")).to_have_text("no <b>room</b>")
    expect(page.locator("#chat-text")).to_have_value("hello")
    expect(page.locator(".message")).to_have_count(0)


def test_compare_asks_both_models_and_shows_them_side_by_side(opened: Any) -> None:
    page = opened("compare")
    expect(page.locator("#compare-a")).to_have_value("base")
    expect(page.locator("#compare-b")).to_have_value("tuned")
    said(page, "count", "compare")
    boxes = [page.locator("#compare-answers .message").nth(n).bounding_box() for n in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    expect(page.locator("#compare-answers .text").nth(0)).to_contain_text("base-11")
    expect(page.locator("#compare-answers .text").nth(1)).to_contain_text("tuned-11")


def test_who_begins_before_the_runs_are_there_begins_when_they_are(opened: Any) -> None:
    page, held = opened("chat"), list[Any]()
    page.route("**/page/api/runs", lambda route: held.append(route))
    page.evaluate("location.hash = '#rate/small'")
    page.fill("#rate-rater", "Early")
    page.press("#rate-rater", "Enter")
    page.wait_for_timeout(200)
    assert held
    for route in held:
        route.continue_()
    expect(page.locator("#rate-count")).to_have_text("0 of 4 rated")


def test_a_person_rates_by_keyboard_undoes_remarks_and_goes_on_later(opened: Any, runs: Path) -> None:
    page = opened("rate/small")
    expect(page.locator("#rate-b")).to_have_value("tuned")
    page.fill("#rate-rater", "Ada")
    page.press("#rate-rater", "Enter")
    counted = page.locator("#rate-count")
    expect(counted).to_have_text("0 of 4 rated")
    for number in range(1, 3):
        key = "1" if page.locator("#rate-one").inner_text().startswith("tuned") else "2"
        page.keyboard.press(key)
        expect(counted).to_have_text(f"{number} of 4 rated")
    page.keyboard.press("u")
    expect(counted).to_have_text("1 of 4 rated")
    page.keyboard.press("r")
    page.keyboard.type("1 reason")
    expect(counted).to_have_text("1 of 4 rated")
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    expect(counted).to_have_text("2 of 4 rated")
    expect(page.locator("#rate-remark")).to_have_value("")
    page.reload()
    expect(page.locator("#rate-rater")).to_have_value("Ada")
    page.click("#rate-setup button[type=submit]")
    expect(counted).to_have_text("2 of 4 rated")
    page.keyboard.press("b")
    expect(counted).to_have_text("3 of 4 rated")
    page.keyboard.press("2")
    expect(page.locator("#rate-done")).to_have_text("You have rated every item. Thank you.")
    expect(page.locator("#rate-results dl")).to_contain_text("Ada 4")
    rows = [json.loads(line) for line in (runs / "small" / "ratings.jsonl").read_text().splitlines()]
    assert [row["preference"] for row in rows[:3]] == ["b", "tie", "both_bad"]
    assert [row["remark"] for row in rows] == ["", "1 reason", "", ""]


def test_runs_are_browsed_searched_and_their_report_opens_in_a_sandbox(opened: Any) -> None:
    page = opened("runs")
    expect(page.locator("#runs-rows tr")).to_have_count(3)
    page.click("text=whole")
    expect(page.locator("#run-items article")).to_have_count(12)
    page.fill("#run-query", "portugal LISBON")
    expect(page.locator("#run-found")).to_have_text("2 of 12 items, 2 shown")
    with page.context.expect_page() as coming:
        page.click("#run-report")
    report = coming.value
    report.wait_for_load_state()
    assert report.title().startswith("smollm2-135m-instruct tuned on starter")
    assert report.evaluate("origin") == "null"
    report.locator("#every > summary").click()
    report.locator("#search").fill("no such words")
    report.locator("#nothing").wait_for(state="visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window_and_colours_can_be_read(opened: Any, width: int, scheme: str) -> None:
    for part in ("chat", "compare", "rate", "runs", "runs/whole", "rate/whole", "rate/equal"):
        page = opened(part, width, scheme)
        if part in ("chat", "compare"):
            said(page, "W" * 400, part)
        if part in ("rate/whole", "rate/equal"):
            page.fill("#rate-rater", "W" * 60)
            page.click("#rate-setup button[type=submit]")
            expect(page.locator("#rate-count")).to_contain_text("0 of")
        if part == "runs/whole":
            expect(page.locator("#run-items article")).to_have_count(12)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, part
        pale = page.evaluate(CONTRAST)
        assert pale == [], (part, pale)
        page.close()


CONTRAST = """
() => {
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = one => { for (let at = one; at; at = at.parentElement) { const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor); if (a > 0) return [r, g, b]; } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && !one.disabled
      && (one.placeholder || [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim()))).flatMap(one => {
    const style = getComputedStyle(one, one.placeholder ? '::placeholder' : null);
    const [a, b] = [light(parse(style.color).slice(0, 3)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return ratio < 4.5 ? [`${one.localName} ${one.textContent.slice(0, 30)} ${ratio.toFixed(2)}`] : [];
  });
}
"""  # noqa: E501


def test_every_control_has_a_name_and_every_part_a_heading(opened: Any) -> None:
    page = opened("chat")
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, progress')]"
        ".filter(one => !one.labels.length && !one.ariaLabel).map(one => one.id)"
    )
    assert nameless == []
    for part in ("chat", "compare", "rate", "runs"):
        page.goto(re.sub(r"#.*", f"#{part}", page.url))
        expect(page.locator(f"#{part}")).to_be_visible()
        expect(page.locator("nav a[aria-current=page]")).to_have_attribute("href", f"#{part}")
        expect(page.get_by_role("region", name=part.capitalize(), exact=True)).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("status").first).to_be_attached()
    page.keyboard.press("Tab")


def test_no_payload_runs_or_makes_an_element_in_chat_and_compare(opened: Any) -> None:
    every = payloads()
    assert len(every) >= 150
    for part in ("chat", "compare"):
        page = opened(part)
        before = page.evaluate(ELEMENTS)
        assert before["made"] == []
        for start in range(0, len(every), NUM_TOGETHER):
            text = "\n".join(every[start : start + NUM_TOGETHER])
            page.fill(f"#{part}-max", "4000")
            page.fill(f"#{part}-system", text)
            said(page, text, part)
            shown = page.locator(f"#{part} .message.assistant .text").last.text_content()
            assert " ".join(shown.split()) == " ".join(text.split())
        if part == "chat":
            page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=REFUSED))
            page.fill("#chat-text", "hello")
            page.press("#chat-text", "Enter")
            expect(page.locator("#chat-error")).to_contain_text("__proto__")
        assert page.evaluate(ELEMENTS) == before


def test_no_payload_runs_or_makes_an_element_in_runs_answers_and_ratings(opened: Any, tmp_path: Path) -> None:
    every = payloads()
    items = [(text, every[-n], f"base {text}", f"tuned {every[-n]}") for n, text in enumerate(every, start=1)]
    write_run(tmp_path / "hostile", items, sentence="\n".join(every))
    for number, text in enumerate(every[:20]):
        run = write_run(tmp_path / f"n{number} {text}".replace("/", "\u2215").replace("\n", " ")[:80], [], names=())
        (run / "run.json").write_text(json.dumps({"data": every, "started": text, "finished": text}))
        (run / "environment.json").write_text(json.dumps({"model": {"name": "\n".join(every)}}))
        (run / "comparison.json").write_text(json.dumps({"headline": "x", "metrics": [{"name": "x", "verdict": text}]}))
    with PageServer(page_app(tmp_path, say)) as server:
        page = opened("runs", url=server.url)
        expect(page.locator("#runs-rows tr")).to_have_count(21)
        before = page.evaluate(ELEMENTS)
        assert before["made"] == []
        page.click("#runs-rows >> text=hostile")
        for number in range(50, len(every), 50):
            expect(page.locator("#run-items article")).to_have_count(number)
            page.click("#run-more")
        expect(page.locator("#run-items article")).to_have_count(len(every))
        assert page.evaluate(ELEMENTS) == before
        page.click("#run-rate")
        page.fill("#rate-rater", "<img src=x onerror=alert(1)>")
        page.press("#rate-rater", "Enter")
        for number in range(len(every)):
            expect(page.locator("#rate-count")).to_have_text(f"{number} of {len(every)} rated")
            if number % 10 == 0:
                page.fill("#rate-remark", every[number][:2000])
                page.keyboard.press("Escape")
                found = page.evaluate(ELEMENTS)
                assert found == {**before, "title": found["title"]}
            page.keyboard.press("1" if number % 3 else "b")
        expect(page.locator("#rate-results dl")).to_contain_text("<img src=x onerror=alert(1)>")
        found = page.evaluate(ELEMENTS)
        assert found == {**before, "title": "Rate · Tuneful"}
