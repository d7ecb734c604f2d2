"""kill -9 at random while a file is answered: the final file is that of an uninterrupted process.

    python benchmarks/kill_generate.py [--kills 50] [--records 200]

A tiny random model in float32 samples answers to a file. A process that does what `tuneful generate --data --output` does is
killed at a random moment and started again, until the file is whole; then it all begins anew, until there were enough kills.
Processes are forked from this one, which has loaded everything already, so kills fall on the work and not on imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not survive the fork

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tuneful.config import load_config
from tuneful.data.read import read_data
from tuneful.infer.file import answer_all
from tuneful.infer.session import LoadedModel

SETTINGS = ["generate.max_new_tokens=24", "generate.temperature=1", "generate.batch_size=16", "model.dtype=float32"]


def main() -> None:
    arguments = parse_arguments()
    random.seed(arguments.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        speaker, conversations = prepare(work, arguments.records)
        seconds = answer_in_child(speaker, conversations, work / "straight.jsonl", kill_after=None)
        straight = (work / "straight.jsonl").read_bytes()
        kills = files = torn = 0
        while kills < arguments.kills:
            output = work / "killed.jsonl"
            while not output.exists():
                killed = answer_in_child(speaker, conversations, output, kill_after=random.uniform(0, 0.6 * seconds))
                kills += killed is None
                torn += is_torn(output.with_name("killed.jsonl.partial"))
            answer_in_child(speaker, conversations, work / "after.jsonl", kill_after=None)  # the lock is free again
            if output.read_bytes() != straight:
                sys.exit(f"after {kills} kills the file differs from the uninterrupted one")
            files += 1
            output.unlink()
            (work / "after.jsonl").unlink()
    print(
        f"{kills} kills over {files} files of {arguments.records} answers, {torn} with half a line: every file the same"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prepare(work: Path, num_records: int) -> tuple[LoadedModel, list]:
    """A tiny model with a byte tokenizer, loaded, and the records to answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(work / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, **sizes)).save_pretrained(work / "model")
    rows = [{"instruction": f"Say {index}.", "output": "x"} for index in range(num_records)]
    (work / "rows.json").write_text(json.dumps(rows))
    config = load_config(None, [f"model.name_or_path={work / 'model'}", *SETTINGS])
    conversations = [record.conversation for record in read_data(str(work / "rows.json"), config.data).records]
    return LoadedModel.load(config), conversations


def answer_in_child(speaker: LoadedModel, conversations: list, output: Path, kill_after: float | None) -> float | None:
    """Answer in a process of its own, killed after some seconds unless it ends before; its seconds, None if killed."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        answer_all(
            speaker.model,
            speaker.encoder,
            conversations,
            speaker.config.generate,
            output,
            seed=0,
            advance=lambda num_answers: None,
        )
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    if os.waitstatus_to_exitcode(status):
        sys.exit("answering failed")
    return time.perf_counter() - start


def is_torn(partial: Path) -> bool:
    """Whether a kill left half a line."""
    return partial.exists() and not partial.read_bytes().endswith(b"\n")


if __name__ == "__main__":
    main()
