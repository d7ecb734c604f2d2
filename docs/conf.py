"""How Sphinx builds these pages: `make docs`, which ends with an error at the first warning.

Sphinx with furo, because both are kept and released, because MyST reads the Markdown that is here as it is, links between
files included, and because nothing of the pages is fetched when they are read: no font, no script, no search service.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tuneful

project = "Tuneful"
author = "The Tuneful authors"
release = tuneful.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]  # JSON with "..." in it, and YAML with patterns
smartquotes = False
html_theme = "furo"
html_title = f"Tuneful {release}"
html_static_path = ["images"]
html_theme_options = {"source_directory": "docs/"}
html_copy_source = False
html_show_sourcelink = False
html_extra_path = ["notebooks"]

_ROOT = Path(__file__).resolve().parents[1]
_OUTWARDS = re.compile(r"\[([^\]]*)\]\((\.\./[^)#]+)(#[^)]*)?\)")


def _without_links_outwards(app: Any, name: str, source: list[str]) -> None:
    """Links to files beside docs/, which the built pages do not have, become the path in the repository."""
    del app, name
    source[0] = _OUTWARDS.sub(lambda found: f"{found[1]} (`{found[2].removeprefix('../')}`)", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _without_links_outwards)
