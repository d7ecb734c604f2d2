"""The pictures of the README: the report of a run, and the page of `tuneful serve`, as a browser shows them.

    python tools/pictures.py RUN                  docs/images/report.png and report-dark.png (1280 wide), and report-400.png
    python tools/pictures.py --page URL QUESTION  docs/images/page.png, of a server that is running and answers the question

Needs chromium and playwright, as the tests do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
_PAGE = {"width": 1000, "height": 640}
_WIDE, _NARROW = {"width": 1280, "height": 820}, {"width": 400, "height": 820}


def shots(url: str, wanted: dict[str, dict[str, Any]], question: str = "") -> None:
    """One picture a name: `wanted` has the options of the browser's page, such as its viewport and colour scheme.

    A `question` is asked first, of the page of `tuneful serve`.
    """
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, options in wanted.items():
            page = browser.new_page(**options)
            page.goto(url)
            page.wait_for_timeout(500)
            if question:
                page.get_by_placeholder("Write a message").first.fill(question)
                page.keyboard.press("Enter")
                page.get_by_role("button", name="Copy").wait_for()
            page.screenshot(path=str(IMAGES / name))
            page.close()
        browser.close()


def main(arguments: list[str]) -> None:
    """Take the pictures that the command line asks for."""
    IMAGES.mkdir(exist_ok=True)
    if arguments[0] == "--page":
        shots(arguments[1], {"page.png": {"viewport": _PAGE}}, arguments[2])
        return
    report = Path(arguments[0]).resolve() / "report.html"
    shots(
        report.as_uri(),
        {
            "report.png": {"viewport": _WIDE},
            "report-dark.png": {"viewport": _WIDE, "color_scheme": "dark"},
            "report-400.png": {"viewport": _NARROW},
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
