"""What the benchmarks beside lm-evaluation-harness share: a server, the harness's samples, the document of the figures.

`lm_eval_choices.py` and `serve_lm_eval.py` make tasks of a few rows, have the harness put them to `tuneful serve`, and compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from train_peers import machine

IN_FLOAT64 = "import torch, tuneful.model.precision as p; p.choose_dtype = lambda *_: torch.float64; "
"""Before anything else of Tuneful is imported: every model answers and is scored in float64, which no setting asks for."""


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """The command line that both have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", type=Path, required=True, help="the command lm_eval of an environment that has it")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A JSONL file of them."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@contextlib.contextmanager
def served(model: str, *, float64: bool = False) -> Iterator[str]:
    """The address of `tuneful serve --model MODEL`, in a process of its own, in float32 or in float64."""
    program = f"{IN_FLOAT64 if float64 else ''}from tuneful.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--model", model, "--port", "0", "model.dtype=float32"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 300
            while not (found := re.search(r"Ollama's protocol: (http://\S+)", _all_of(said))):
                assert process.poll() is None, _all_of(said)
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.2)
            yield found[1]
        finally:
            process.terminate()
            process.wait(timeout=60)


def _all_of(said: Any) -> str:
    said.seek(0)
    return str(said.read())


def samples_of(
    lm_eval: Path, kind: str, tasks: str, model_args: str, folder: Path, *more: str
) -> dict[str, list[dict[str, Any]]]:
    """The samples that the harness wrote, by task, each in the order of its rows; the tasks' YAML lies in `folder`."""
    with tempfile.TemporaryDirectory() as output:
        command = [str(lm_eval), "--model", kind, "--tasks", tasks, "--include_path", str(folder)]
        command += ["--model_args", model_args, "--log_samples", "--output_path", output, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted(Path(output).rglob("samples_*.jsonl")):
            name = file.name.removeprefix("samples_").rpartition("_")[0]
            samples = map(json.loads, file.read_text().splitlines())
            found[name] = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return found


def keep(arguments: argparse.Namespace, benchmark: str, wrong: Sequence[object], figures: dict[str, Any]) -> int:
    """Print what is `wrong` and write the `figures` where that was asked for; 1 where anything is wrong."""
    for item in wrong:
        print(f"wrong: {item}")
    if arguments.output:
        document = {
            "benchmark": benchmark,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": machine.commit(Path(__file__).parents[1]),
            "hardware": machine.hardware(),
            "lm_eval": _version(arguments.lm_eval.parent / "python"),
            "model": arguments.model,
            **figures,
            "wrong": len(wrong),
        }
        arguments.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 1 if wrong else 0


def _version(python: Path) -> str:
    program = "import importlib.metadata as metadata; print(metadata.version('lm_eval'))"
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip()
