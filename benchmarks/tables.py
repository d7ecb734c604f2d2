"""The tables of `benchmarks/README.md`, made from the dated documents in `results/`.

    python benchmarks/tables.py            after a benchmark that was not run here; the benchmarks do it themselves

Of each benchmark, model, work and processor the newest document counts. Documents of programs before these (without `format`) are left out:
their figures stand where they are quoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_peers import machine

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results"
README = BENCHMARKS / "README.md"
BEGIN, END = "<!-- results: made by tables.py -->\n", "<!-- results: end -->\n"
NOTHING = "No document of the programs as they are now is in `results/` yet.\n"


def update(written: Path | None) -> None:
    """Make the README's tables again where a benchmark has `written` a document among the results."""
    if written is not None and written.resolve().parent == RESULTS:
        README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str, folder: Path = RESULTS) -> str:
    """The README's text with the tables of the documents in `folder` between its marks."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{''.join(sections(folder)) or NOTHING}\n{END}{tail}"


def sections(folder: Path) -> Iterator[str]:
    """A heading and a table for each benchmark, model, work and processor that was measured."""
    newest: dict[tuple[str, ...], str] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.get("format") == 2:
            newest.update(_document_sections(path, document))
    yield from (newest[key] for key in sorted(newest))


def _document_sections(path: Path, document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    name, model = document["benchmark"], Path(document["model"]).name
    processor = document["hardware"]["processor"]
    for part in document["works"]:
        work = part["work"]["name"]
        lines = [
            f"### {name}, {work}, {model}, {processor}",
            "",
            f"{part['description']}. {machine.hardware_line(document['hardware'], document['num_threads'])}. "
            f"[{path.stem}](results/{path.name})",
            "",
            *part["table"],
            *(["", *(f"Warning: {warning}." for warning in document["warnings"])] if document["warnings"] else []),
            "",
        ]
        yield (name, model, work, processor), "\n".join([*lines, ""])


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
