"""Every family, type and kind of adapter that is exported, each proved in llama.cpp on a tiny random model: a table.

    python benchmarks/export_matrix.py [FAMILY ...] [--output FILE.json]     some families; the rows of the others stay in FILE
    python benchmarks/export_matrix.py --model RUN [--output FILE.json]      the types of a run of a real model

A cell holds the two figures of the proof that are no equality: what llama.cpp does otherwise than our forward with the numbers of
the file (in f32 a share of the largest logit, else the mean KL in nats), and what the type costs (KL). All that has to be equal
was equal where a cell has figures: a fault stands in its place, by name. A star marks a model that is too sharp for the bounds in
nats, and was held to how far rounding alone brings it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.exported import byte_level_tokenizer, tiny_adapter, tiny_folder

import tuneful
from tuneful.config import load_config
from tuneful.errors import TunefulError
from tuneful.export.gguf_types import TYPES, GgufType

RESULTS = Path(__file__).parent / "results"
Row = dict[str, str]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2")
KINDS: dict[str, dict[str, bool] | None] = {"full": None, "LoRA": {}, "rsLoRA": {"use_rslora": True}}


def cell(model: Path, type: GgufType, output: Path) -> str:
    """The figures of one export."""
    try:
        proof = tuneful.export(model, "gguf", type=type, output=output).proof
    except TunefulError as error:
        return str(error).partition("removed: ")[2] or str(error)
    parts = {part.name: part for part in proof.parts}
    return " / ".join(f"{part.figure}{'*' if part.note else ''}" for part in (parts["logits"], parts["rounding"]))


def rows(families: list[str]) -> Iterator[Row]:
    """A row for each family and kind of training."""
    for family in families:
        for kind, options in KINDS.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                if options is None:
                    model = tiny_folder(family, byte_level_tokenizer(), folder / "model")
                else:
                    model = tiny_adapter(family, folder, **options)
                cells: Row = {type: cell(model, type, folder / f"out-{type}") for type in TYPES}
                adapter = "" if options is None else adapter_cell(model, folder / "adapter-out")
            yield {"family": family, "trained": kind, **cells, "as a GGUF adapter": adapter}


def row_of(run: Path) -> Row:
    """The row of a run of a real model."""
    config = load_config(run / "config.yaml")
    kind = "full" if config.train.method == "full" else "rsLoRA" if config.lora.use_rslora else "LoRA"
    with tempfile.TemporaryDirectory() as place:
        cells: Row = {type: cell(run, type, Path(place) / f"out-{type}") for type in TYPES}
        adapter = "" if kind == "full" else adapter_cell(run, Path(place) / "adapter-out")
    return {"family": Path(config.model.name_or_path).name, "trained": kind, **cells, "as a GGUF adapter": adapter}


def adapter_cell(model: Path, output: Path) -> str:
    """The figure of a GGUF adapter on the GGUF of its base."""
    try:
        proof = tuneful.export(model, "adapter", type="gguf", output=output).proof
    except TunefulError as error:
        return str(error).partition("removed: ")[2] or str(error)
    return next(part.figure or part.note for part in proof.parts if part.name == "logits")


def main() -> None:
    """Print the rows and write them, beside those that the document has of other families."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("families", nargs="*", metavar="FAMILY")
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    output = given.output or RESULTS / f"export_matrix-{date[:10]}.json"
    made = iter([row_of(given.model)]) if given.model else rows(given.families or [*FAMILIES])
    for number, row in enumerate(made):
        if number == 0:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(row.values())} |", flush=True)
        _write(output, row, date)


def _write(output: Path, row: Row, date: str) -> None:
    """Put `row` into the document, in place of the one it has of the same."""
    kept = json.loads(output.read_text(encoding="utf-8"))["rows"] if output.is_file() else []
    others = [one for one in kept if (one["family"], one["trained"]) != (row["family"], row["trained"])]
    versions = {name: metadata.version(name) for name in ("xllamacpp", "gguf", "torch", "transformers", "peft")}
    document = {"date": date, "versions": {"tuneful": tuneful.__version__, **versions}, "rows": [*others, row]}
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
