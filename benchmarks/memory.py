"""Peak memory of every phase of a run, beside what `--dry-run` says of it beforehand.

    python benchmarks/memory.py                                    the built-in model: full finetuning and LoRA
    python benchmarks/memory.py --shape qwen2-0.5b                 random weights of that shape in bfloat16, LoRA
    python benchmarks/memory.py --shape qwen2-1.5b --steps 3       3 GB on disk
    python benchmarks/memory.py --model FOLDER train.method=lora   another model, other settings

Both are the product's own code in a process of its own, on starter records. The kernel counts: the peak of resident memory
(VmHWM), set back (`clear_refs`) where a phase begins. It is as valid on a busy machine as on a quiet one; seconds would not be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".bench" / "memory"

SHAPES = {
    "qwen2-0.5b": (896, 4864, 24, 14, 2, 151_936, True),
    "qwen2-1.5b": (1536, 8960, 28, 12, 2, 151_936, True),
}
"""hidden_size, intermediate_size, layers, heads, key-value heads, vocabulary, tied: as published."""

LORA = ("train.method=lora", "lora.r=16")
PHASES = {
    "loading": ("set_up", "prepare_engine"),
    "answers": ("measure",),
    "training": ("train", "finish_training"),
    "saving": ("save",),
}
"""Which functions of runs/job.py a phase is."""


def main() -> None:
    """Measure each of the settings, print a table, write the record."""
    options = _parsed()
    if options.worker:
        _worker(options.worker, options.model, options.settings, Path(options.output))
        return
    model = str(made_folder(options.shape)) if options.shape else options.model
    methods = [tuple(options.settings)] if options.settings else [LORA] if options.shape else [(), LORA]
    rows = [_compared(model, [*method, f"train.max_steps={options.steps}"]) for method in methods]
    for row in rows:
        _show(row)
    if options.record:
        versions = {name: version(name) for name in ("tuneful", "torch", "transformers", "peft")}
        document = {"date": str(date.today()), "versions": versions, "runs": rows}
        file = ROOT / "benchmarks" / "results" / f"memory-{date.today()}.json"
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a folder of random weights is made in .bench/memory")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/memory-DATE.json")
    parser.add_argument("--worker", choices=["run", "estimate"], help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args()


def _compared(model: str, settings: Sequence[str]) -> dict[str, Any]:
    """Peaks of a run and of its estimate, each in a process of its own."""
    found = {kind: _in_a_process(kind, model, settings) for kind in ("estimate", "run")}
    return {"model": model, "settings": list(settings), **found}


def _in_a_process(kind: str, model: str, settings: Sequence[str]) -> dict[str, int]:
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--worker", kind, "--model", model, "--output", str(result), *settings]
        subprocess.run(command, check=True)
        found: dict[str, int] = json.loads(result.read_text())
        return found


def _show(row: Mapping[str, Any]) -> None:
    print(f"\n{row['model']}  {' '.join(row['settings'])}")
    print(f"  {'phase':<10}{'estimated':>12}{'measured':>12}{'off by':>9}   GB")
    for phase, measured in row["run"].items():
        estimated = row["estimate"].get(phase)
        off = f"{estimated / measured - 1:+9.1%}" if estimated else ""
        print(f"  {phase:<10}{(estimated or 0) / 1e9:>12.2f}{measured / 1e9:>12.2f}{off}")


# In the process that is measured


def _worker(kind: str, model: str, settings: Sequence[str], result: Path) -> None:
    from tuneful.config import load_config

    config = load_config(overrides=[f'model.name_or_path="{model}"', *settings])
    with TemporaryDirectory() as folder:
        found = (_estimated if kind == "estimate" else _measured)(config, Path(folder) / "run")
    result.write_text(json.dumps(found))


def _estimated(config: Any, folder: Path) -> dict[str, int]:
    from tuneful.commands.run import dry_run

    estimate = dry_run("run", config.data.train_file or "starter", config=config, output=folder)
    return {**estimate.phase_memory_bytes, "whole run": estimate.peak_memory_bytes}


def _measured(config: Any, folder: Path) -> dict[str, int]:
    """The peak of each phase of a real run; what is between them, and after the last, is counted to the whole."""
    from tuneful.console import Terminal
    from tuneful.runs import job

    peaks = {"whole run": 0}
    for phase, names in PHASES.items():
        for name in names:
            setattr(job, name, _counted(getattr(job, name), phase, peaks))
    job.run_job("run", config.data.train_file or "starter", config, folder, Terminal(quiet=True))
    peaks["whole run"] = max(*peaks.values(), peak_bytes())
    return {**{name: peaks[name] for name in PHASES}, "whole run": peaks["whole run"]}


def _counted(work: Callable[..., Any], phase: str, peaks: dict[str, int]) -> Callable[..., Any]:
    @wraps(work)
    def counted(*arguments: Any, **settings: Any) -> Any:
        peaks["whole run"] = max(peaks["whole run"], peak_bytes())
        forget_peak()
        try:
            return work(*arguments, **settings)
        finally:
            peaks[phase] = max(peaks.get(phase, 0), peak_bytes())

    return counted


def peak_bytes() -> int:
    """The most resident memory that this process has had since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def forget_peak() -> None:
    """Count anew from here on."""
    Path("/proc/self/clear_refs").write_text("5")


# A model of a known shape


def made_folder(shape: str) -> Path:
    """A folder with random weights of `shape` in bfloat16 and the built-in model's tokenizer, made once."""
    folder = WORK / shape
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from tuneful.model.builtin import builtin_folder

    hidden, inner, layers, heads, groups, vocabulary, tied = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder(print))
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
