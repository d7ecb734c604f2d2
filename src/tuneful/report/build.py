"""The report of a run folder, `report.html`: one page that shows what was trained and whether it got better.

    read_run (folder.py) -> view_page (sections.py) -> page.html.j2 -> report.html

The page is a single file that opens without a network: styles, drawings and the script for search are inside, and its
content security policy allows exactly those by their hashes and nothing else. Texts of models and users are escaped by
jinja2; the script reads nothing but attributes and the text that is already on the page. The trade: one file is large, since
every test answer stands in it, about 4 kB each.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from tuneful.files import write_text
from tuneful.report.folder import read_run
from tuneful.report.paths import without_folders
from tuneful.report.sections import Page, view_page

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def build_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path.

    Everything but `config.yaml` may be missing from the folder; the page says what is. The file appears whole or not at
    all. Raises `DataError` where `run_dir` is no run folder.
    """
    run_dir = Path(run_dir)
    page = render_page(view_page(read_run(run_dir)))
    write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def render_page(page: Page) -> str:
    """The HTML of a page."""
    style, script = resource("page.css"), resource("page.js")
    html = _template().render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src {_hash_source(style)}; script-src {_hash_source(script)}; "
        "base-uri 'none'; form-action 'none'",
    )
    return make_visible(html)


def render_in_style(template: str, **values: object) -> str:
    """The HTML of another page in the report's style: `template` (jinja2) gets `values`, `style` and `policy`; it has no
    script."""
    style = resource("page.css")
    html = (
        _environment()
        .from_string(template)
        .render(
            **values,
            style=Markup(style),
            policy=f"default-src 'none'; style-src {_hash_source(style)}; base-uri 'none'; form-action 'none'",
        )
    )
    return make_visible(html)


def script_source() -> str:
    """The source by which a content security policy allows the script of a report, and nothing else."""
    return _hash_source(resource("page.js"))


@cache
def _template() -> Template:
    """The page's template, compiled once: that takes longer than to fill it in."""
    return _environment().from_string(resource("page.html.j2"))


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["without_folders"] = without_folders
    return environment


def make_visible(html: str) -> str:
    """`html` without characters that it may not hold: control characters become their pictures (␀), lone surrogates �."""
    return _UNSEEN.sub(_picture, html.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def content_policy(style: str) -> str:
    """The content security policy of a page of ours without a script: it allows this style, and nothing else."""
    return f"default-src 'none'; style-src {_hash_source(style)}; base-uri 'none'; form-action 'none'"


def resource(name: str) -> str:
    """A file of this room that goes into a page."""
    return resources.files("tuneful.report").joinpath(name).read_text(encoding="utf-8")


def _hash_source(inline: str) -> str:
    digest = hashlib.sha256(inline.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
