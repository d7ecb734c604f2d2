"""Peak memory of every rank in every phase of a sharded run, beside its share of the model.

    python benchmarks/sharded_memory.py --record       3 ranks: LoRA of four layers of Llama 3's 8B, and full finetuning of eight
                                                       layers of half its width, which takes 10 GB of memory
    python benchmarks/sharded_memory.py --methods full --hidden 4096 --layers 2 --ranks 2

Random weights in bfloat16 are written to .bench/sharded_memory; the ranks are processes of this machine (gloo, the CPU), each the
product's own code: loaded, trained one step with a checkpoint, saved and compared, and with an adapter merged. The kernel counts:
the peak of resident memory (VmHWM), set back where a phase begins; pages of files that are mapped are in it. What the process
takes before it has a model is taken off. It is as valid on a busy machine as on a quiet one.

What a rank may take, by arithmetic: its share of what the phase holds of all weights, and what is whole for a moment. `allowed`
says of which.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory import forget_peak, peak_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".bench" / "sharded_memory"
CASES = {"lora": (4096, 4), "full": (2048, 8)}
"""Width and layers. Llama 3 8B, as published, is 4,096 wide, with 3.5 times that inside and 32 heads of 128 over 8 of keys."""
PHASES = {"load": ("set_up", "prepare_engine"), "train and checkpoint": ("train",), "save": ("finish_training", "save")}
"""Which functions of runs/job.py a phase is."""
COMMON = (
    *("train.strategy=fsdp", "train.max_steps=1", "train.save_steps=1", "train.batch_size=3", "train.keep=last"),
    *("train.micro_batch_tokens=512", "data.max_length=512", "data.test_share=0", "data.validation_share=0"),
    *("model.dtype=bfloat16", "model.save_dtype=bfloat16"),
)
METHODS = {"full": (), "lora": ("train.method=lora", "lora.r=16")}
SPARE = 600 << 20
"""What libraries, activations of a few tokens and small buffers may take."""


def main() -> None:
    """Run the ranks by each method, print a table, write the record; exit code 1 where a rank took more than it may."""
    options = _parsed()
    if options.worker:
        _worker(options)
        return
    rows = []
    for method in options.methods.split(","):
        hidden, layers = options.hidden or CASES[method][0], options.layers or CASES[method][1]
        rows.append(_measured(method, hidden, layers, options))
        _show(rows[-1])
    if options.record:
        versions = {name: version(name) for name in ("tuneful", "torch", "transformers", "peft")}
        document = {"date": str(date.today()), "versions": versions, "runs": rows}
        file = ROOT / "benchmarks" / "results" / f"sharded_memory-{date.today()}.json"
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(peak > row["allowed"][name] for row in rows for rank in row["ranks"] for name, peak in rank.items()))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--hidden", type=int, help="width of the model")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/sharded_memory-DATE.json")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(method: str, hidden: int, layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """The peaks of all ranks of one run, in bytes by phase, and what they may be."""
    model = made_folder(hidden, layers, options.vocabulary)
    with TemporaryDirectory(dir=WORK) as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        shared = {
            **os.environ,
            "WORLD_SIZE": str(options.ranks),
            "LOCAL_WORLD_SIZE": str(options.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
        }
        listener.close()
        command = [sys.executable, __file__, "--worker", f"{model} {method}", "--output", folder]
        ranks = [
            subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(options.ranks)
        ]
        codes = [rank.wait() for rank in ranks]
        assert not any(codes), codes
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(options.ranks)]
    facts, allowed = _allowed(method, hidden, layers, options)
    facts |= {"hidden_size": hidden, "num_layers": layers}
    return {"method": method, "num_ranks": options.ranks, **facts, "allowed": allowed, "ranks": found}


def _allowed(
    method: str, hidden: int, layers: int, options: argparse.Namespace
) -> tuple[dict[str, int], dict[str, int]]:
    """Facts about the model, and the bytes that a rank may take in each phase."""
    inner = 7 * hidden // 2
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 4 + 3 * hidden * inner + 2 * hidden
    matrix = options.vocabulary * hidden
    total, ranks, widest = layers * layer + matrix + hidden, options.ranks, max(layer, matrix)
    # Whole for a moment: two layers gathered in bfloat16 (the next while one computes), and what stands about them
    # all the time, embedding and head; in the backward a layer's gradient as it is, and in float32 on its way.
    gathered = 2 * (2 * layer + matrix)
    backward = gathered + (2 + 4) * widest
    is_full = method == "full"
    held = 4 * total // ranks if is_full else 2 * total // ranks
    states = 12 * total // ranks if is_full else 0
    tensor = max(matrix, hidden * inner)
    allowed = {
        # the self-check has two gradients, and what is computed from them in float64
        "load": held + (8 * total // ranks if is_full else 0) + backward + 8 * tensor // ranks + SPARE,
        "train and checkpoint": held + states + backward + SPARE,
        # beside the trained rows those of the saved model; an adapter is merged in float32 and float64, a matrix at a time,
        # and compared in float32: two layers gathered in it, and a merged matrix with its parts
        "save": held
        + 2 * total // ranks
        + max(gathered, 28 * tensor, 0 if is_full else 2 * gathered + 12 * tensor)
        + SPARE,
    }
    return {"num_parameters": total, "whole_float32": 4 * total, "largest_layer": layer}, allowed


def _show(row: Mapping[str, Any]) -> None:
    size = f"{row['num_parameters'] / 1e6:,.0f} M parameters, {row['whole_float32'] / 1e9:.2f} GB in float32"
    print(f"\n{row['method']}, {row['num_layers']} layers of {row['hidden_size']:,}: {size}, {row['num_ranks']} ranks")
    names = list(row["allowed"])
    print(f"  {'GB':<10}" + "".join(f"{name:>24}" for name in names))
    for number, rank in enumerate(row["ranks"]):
        print(f"  rank {number:<5}" + "".join(f"{rank[name] / 1e9:>24.2f}" for name in names))
    print(f"  {'allowed':<10}" + "".join(f"{row['allowed'][name] / 1e9:>24.2f}" for name in names))


# In the process that is measured


def _worker(options: argparse.Namespace) -> None:
    from tuneful.config import load_config
    from tuneful.console import Terminal
    from tuneful.runs import job

    model, method = options.worker.rsplit(" ", 1)
    config = load_config(overrides=[f'model.name_or_path="{model}"', *COMMON, *METHODS[method]])
    peaks: dict[str, int] = {}
    before = peak_bytes()
    for phase, names in PHASES.items():
        for name in names:
            setattr(job, name, _counted(getattr(job, name), phase, peaks))
    output = Path(options.output)
    job.run_job("train", str(Path(model) / "rows.jsonl"), config, output / "run", Terminal(quiet=True))
    found = {phase: peak - before for phase, peak in peaks.items()}
    (output / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def _counted(work: Any, phase: str, peaks: dict[str, int]) -> Any:
    @wraps(work)
    def counted(*arguments: Any, **settings: Any) -> Any:
        forget_peak()
        try:
            return work(*arguments, **settings)
        finally:
            peaks[phase] = max(peaks.get(phase, 0), peak_bytes())

    return counted


# A model of that shape


def made_folder(hidden: int, layers: int, vocabulary: int) -> Path:
    """A folder with random weights in bfloat16, a tokenizer of 2,000 tokens and twelve records, made once."""
    folder = WORK / f"llama-{hidden}-{layers}-{vocabulary}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from tests.doubles.tiny import make_tiny_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    rows = [{"instruction": f"Say {number} in words, please.", "output": f"It is {number}."} for number in range(12)]
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(WORK / "tokenizer", [json.dumps(rows)]))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=7 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
