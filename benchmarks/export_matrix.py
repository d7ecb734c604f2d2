"""Every family, type and kind of adapter that is exported, each proved in llama.cpp on a tiny random model: a table.

    python benchmarks/export_matrix.py > benchmarks/results/<date>-export-matrix.md

A cell holds the two figures of the proof that are no equality: what llama.cpp does otherwise than our forward with the numbers of
the file (in f32 a share of the largest logit, else the mean KL in nats), and what the type costs (KL). All that has to be equal
was equal where a cell has figures: a fault stands in its place, by name.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.exported import byte_level_tokenizer, tiny_adapter, tiny_folder

import tuneful
from tuneful.errors import TunefulError
from tuneful.export.gguf_types import TYPES, GgufType

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2")
KINDS: dict[str, dict[str, bool] | None] = {"full": None, "LoRA": {}, "rsLoRA": {"use_rslora": True}}


def cell(model: Path, type: GgufType, output: Path) -> str:
    """The figures of one export."""
    try:
        proof = tuneful.export(model, "gguf", type=type, output=output).proof
    except TunefulError as error:
        return str(error).partition("removed: ")[2] or str(error)
    parts = {part.name: part for part in proof.parts}
    return f"{parts['logits'].figure} / {parts['rounding'].figure}"


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield "| family | trained | " + " | ".join(TYPES) + " | as a GGUF adapter |"
    yield "|---|---" + "|---" * (len(TYPES) + 1) + "|"
    for family in FAMILIES:
        for kind, options in KINDS.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                if options is None:
                    model = tiny_folder(family, byte_level_tokenizer(), folder / "model")
                else:
                    model = tiny_adapter(family, folder, **options)
                cells = [cell(model, type, folder / f"out-{type}") for type in TYPES]
                cells.append("" if options is None else adapter_cell(model, folder / "adapter-out"))
            yield f"| {family} | {kind} | " + " | ".join(cells) + " |"


def adapter_cell(model: Path, output: Path) -> str:
    """The figure of a GGUF adapter on the GGUF of its base."""
    try:
        proof = tuneful.export(model, "adapter", type="gguf", output=output).proof
    except TunefulError as error:
        return str(error).partition("removed: ")[2] or str(error)
    return next(part.figure or part.note for part in proof.parts if part.name == "logits")


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
