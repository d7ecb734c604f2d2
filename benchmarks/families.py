"""Models of many families through the commands themselves: `tuneful train` in full and with LoRA, then `tuneful generate`.

    python benchmarks/families.py [FAMILY ...]      tiny random models, each a folder as transformers saves it

What a family's layout and answers are is examined in the process by `python -m tests.model.families` (docs/families.md), against
a plain loop. Here the whole way is walked as a user would: a folder is read, four steps are taken, the validation loss falls, and
what was saved answers under `generate --model RUN`: its greedy answers must be those that the run kept of the model in memory.
Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.exported import byte_level_tokenizer
from tests.doubles.families import tiny_family

FAMILIES = (
    *(
        "gpt2",
        "gpt_neox",
        "gptj",
        "opt",
        "bloom",
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
    ),
    *(
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "olmo2",
        "smollm3",
        "granite",
        "falcon",
        "stablelm",
        "cohere",
        "gpt_oss",
    ),
)
METHODS = {"full": ("train.learning_rate=1e-3",), "LoRA": ("train.method=lora", "lora.r=4", "train.learning_rate=1e-2")}
COLOURS = ("red", "green", "blue", "grey", "black", "white", "pink", "gold")
Row = dict[str, str]


def main() -> None:
    """Walk the way with every family, print a line each, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    found = []
    for row in rows(parser.parse_args().families):
        print(f"{row['family']:<14}{row['full']:<44}{row['LoRA']}", flush=True)
        found.append(row)
    versions = {name: metadata.version(name) for name in ("tuneful", "torch", "transformers", "peft")}
    document = {"date": str(date.today()), "versions": versions, "families": found}
    file = Path(__file__).parent / "results" / f"families-{date.today()}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(any("failed" in text for row in found for text in row.values()))


def rows(families: tuple[str, ...]) -> Iterator[Row]:
    """For each family what came of each method."""
    for family in families:
        with tempfile.TemporaryDirectory() as place:
            model, data = Path(place) / "model", Path(place) / "data.json"
            _write_model(family, model)
            records = [
                {"instruction": f"Name it {number} times.", "input": colour, "output": f"{colour} " * (1 + number % 3)}
                for number, colour in enumerate(COLOURS * 4)
            ]
            data.write_text(json.dumps(records), encoding="utf-8")
            yield {"family": family, **{name: _walked(model, data, name) for name in METHODS}}


def _write_model(family: str, folder: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = tiny_family(family)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _walked(model: Path, data: Path, method: str) -> str:
    """Validation losses and how the records were laid out; or `failed` and the last line that was said."""
    run = model.parent / method
    asked = ("generate.max_new_tokens=8", "generate.temperature=0", "template.name=chatml")
    held_out = ("data.validation_share=0.2", "data.test_share=0.2", "report.general=none")
    settings = (f"model.name_or_path={model}", "train.max_steps=4", *METHODS[method], *held_out, *asked)
    if reason := _failure("run", str(data), *settings, "--output", str(run), "--quiet"):
        return f"failed: {reason}"
    again = model.parent / f"{method}.jsonl"
    if reason := _failure(
        "generate", "--model", str(run), "--data", str(run / "data" / "test.jsonl"), "-o", str(again), *asked
    ):
        return f"failed: {reason}"
    if [row["text"] for row in _lines(again)] != [row["text"] for row in _lines(run / "answers" / "tuned.jsonl")]:
        return "failed: the folder answers otherwise than the run"
    losses = [row["validation_loss"] for row in _lines(run / "metrics.jsonl") if "validation_loss" in row]
    if not losses[-1] < losses[0]:
        return f"failed: the validation loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    return f"{losses[0]:.3f} -> {losses[-1]:.3f}, {json.loads((run / 'environment.json').read_text())['layout']}"


def _failure(*arguments: str) -> str | None:
    """The last line that a command said where it failed."""
    command = [sys.executable, "-m", "tuneful.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    return next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing was said")[:200]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
