"""The notebooks are the pages that they are made from, and run from top to bottom.

They run as they stand, but for the settings that a reader changes. One process runs them all, and what is compiled is taken from
the user's cache, as in other tests: importing torch, and compiling, take longer than all the cells together.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from tools.notebooks import DOCS, NOTEBOOKS, made

_WORDS = ("tree", "lake", "stone", "river", "cloud", "fire", "grass", "rain", "sand", "snow", "wind", "moss", "wave")
_RECORDS = [
    {"instruction": f"Say {word} in {how} letters.", "input": "", "output": word.upper() if how == "large" else word}
    for word in _WORDS
    for how in ("large", "small")
]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID = {
    "chapter-7.ipynb": (
        "26 of 26 records can be used",
        r"\d+ of \d+ tokens are trained",
        r"test items|cannot tell|test set",
    ),
    "one-gpu.ipynb": (
        r"^(cpu|cuda|mps) computes, all weights of a model in (float32|bfloat16)$",
        "^26 of 26 records can be used$",
        r"^trained: \S+<\|im_end\|>$",
        r"^\d+ of \d+ tokens are trained$",
        r"^full: at least 0\.\d GB of [\d.]+ GB: fits$",
        r"^qlora: at least 0\.\d GB of [\d.]+ GB: fits$",
        r"^3 steps, about 0 minutes in all$",
        r"^training: [\d.]+ GB of [\d.]+ GB$",
        r"^computed on (cpu|cuda:0|mps:0) in \w+ as trie $",
        r"^validation loss \[\d\.\d+, \d\.\d+",
        r"^The test cannot tell whether the tuned model's answers are better.*\n.*report\.html$",
        r"^The test cannot tell whether B's answers are better",
        r"^exported to .*ollama-q8_0$",
        r"^Modelfile .* holds$",
    ),
}
"""What each notebook has to print, as lines of the outputs of all its cells."""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_page(name: str) -> None:
    assert (DOCS / "notebooks" / name).read_text(encoding="utf-8") == made(name), "run: python tools/notebooks.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name: str, kernel: KernelManager, tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    (tmp_path / "records.json").write_text(json.dumps(_RECORDS))
    book = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    _set(book, DATA=str(tmp_path / "records.json"), MODEL=str(model), EPOCHS=1, NEW_TOKENS=4)
    # What another notebook has bound is gone, as in a kernel of its own.
    book.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\nimport os\nos.chdir({str(tmp_path)!r})\ndel os"))
    client = NotebookClient(book, timeout=120, km=kernel)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()  # of a kernel that it has not started it leaves them open
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    missing = [line for line in SAID[name] if not re.search(line, said, re.M)]
    assert not missing, said


def _set(book: nbformat.NotebookNode, **settings: object) -> None:
    """Change what the first cell of code binds."""
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    for key, value in settings.items():
        first.source, count = re.subn(rf"^{key} = .*", f"{key} = {value!r}", first.source, flags=re.M)
        assert count == 1, f"the first cell of code does not set {key}"
