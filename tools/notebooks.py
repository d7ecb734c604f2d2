"""The notebooks of docs/notebooks, made from pages: `python tools/notebooks.py`.

A page's Python blocks become cells of code and all else cells of text, so that page and notebook cannot differ. The first cell of
code holds what a reader changes (data, model, epochs, length of answers); tests/house/test_notebooks.py runs every notebook with
small ones. Outputs that a notebook was once run with stay, cell by cell, as long as the code of the cell is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS: Mapping[str, str] = {"chapter-7.ipynb": "book.md", "one-gpu.ipynb": "one-gpu.md"}
"""Each notebook with the page that it is made from."""
_ON_A_GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
"""By which Colab begins a session with a GPU."""

_CODE = re.compile(r"^```python\n(.*?)^```\n", re.S | re.M)
_LINK = re.compile(r"\]\(([a-z-]+\.md)")
_FENCE = re.compile(r"^```\{code-block\} python\n:class: [a-z-]+\n\n", re.M)


def notebook(page: str, before: Mapping[str, Any] | None = None, *, on_gpu: bool = False) -> dict[str, Any]:
    """The notebook of a page's Markdown, in format 4.5; outputs are taken from `before` where the code is the same."""
    ran = {
        "".join(cell["source"]): (cell["outputs"], cell["execution_count"])
        for cell in (before or {}).get("cells", ())
        if cell["cell_type"] == "code"
    }
    cells: list[dict[str, Any]] = []
    for kind, text in _parts(page):
        cell: dict[str, Any] = {"cell_type": kind, "id": _cell_id(len(cells), text), "metadata": {}}
        if kind == "code":
            outputs, count = ran.get(text, ([], None))
            cell |= {"execution_count": count, "outputs": outputs}
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, **(_ON_A_GPU if on_gpu else {})}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _parts(page: str) -> Iterator[tuple[str, str]]:
    end = 0
    for found in _CODE.finditer(page):
        yield from _text(page[end : found.start()])
        yield "code", found[1].rstrip("\n")
        end = found.end()
    yield from _text(page[end:])


def _text(text: str) -> Iterator[tuple[str, str]]:
    """A cell of text, if there is any: links lead to the pages beside the folder of notebooks."""
    if plain := _FENCE.sub("```python\n", _LINK.sub(r"](../\1", text)).strip("\n"):
        yield "markdown", plain


def _cell_id(number: int, text: str) -> str:
    return hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:8]


def as_json(document: Mapping[str, Any]) -> str:
    """A notebook as its file holds it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def made(name: str) -> str:
    """What the notebook's file has to hold, by its page."""
    file = DOCS / "notebooks" / name
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    page = (DOCS / NOTEBOOKS[name]).read_text(encoding="utf-8")
    return as_json(notebook(page, before, on_gpu="gpu" in name))


if __name__ == "__main__":
    for name in NOTEBOOKS:
        (DOCS / "notebooks" / name).write_text(made(name), encoding="utf-8")
