"""The notebooks are the pages that they are made from, and run from top to bottom."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient
from tests.doubles.tiny import make_tiny_model
from tools.notebooks import DOCS, NOTEBOOKS, made

_RECORDS = [
    {"instruction": f"Say {word} in {how} letters.", "input": "", "output": word.upper() if how == "large" else word}
    for word in (
        "tree",
        "lake",
        "stone",
        "river",
        "cloud",
        "fire",
        "grass",
        "rain",
        "sand",
        "snow",
        "wind",
        "moss",
        "wave",
    )
    for how in ("large", "small")
]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_page(name: str) -> None:
    assert (DOCS / "notebooks" / name).read_text(encoding="utf-8") == made(name), "run: python tools/notebooks.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path, monkeypatch) -> None:
    model = make_tiny_model(tmp_path / "model", [record["output"] for record in _RECORDS])
    (tmp_path / "records.json").write_text(json.dumps(_RECORDS))
    book = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    for key, value in {"DATA": str(tmp_path / "records.json"), "MODEL": str(model), "EPOCHS": 1}.items():
        first.source, count = re.subn(rf"^{key} = .*", f"{key} = {value!r}", first.source, flags=re.M)
        assert count == 1, f"the first cell of code does not set {key}"
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "records can be used" in said
    assert "tokens are trained" in said
    assert "test items" in said or "cannot tell" in said or "test set" in said
