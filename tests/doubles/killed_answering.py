"""kill -9 at random while a file is answered: the final file is that of an uninterrupted process.

A tiny random model in float32 samples answers to a file. A process that does what `tuneful generate --data --output` does is
killed at a random moment and started again, until the file is whole; then it all begins anew, until there were enough kills.
Processes are forked from this one, which has loaded everything already, so kills fall on the work and not on imports;
`campaign` wants a process without threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tuneful.config import load_config
from tuneful.data.read import read_data
from tuneful.infer.file import answer_all
from tuneful.infer.session import LoadedModel
from tuneful.types import Conversation

SETTINGS = ["generate.max_new_tokens=24", "generate.temperature=1", "generate.batch_size=16", "model.dtype=float32"]


@dataclass(frozen=True)
class Killed:
    """Kills, the files that were whole in the end and the same as the uninterrupted one, and how often half a line was left."""

    kills: int
    files: int
    torn: int


def campaign(num_kills: int, num_records: int, seed: int) -> Killed:
    """Kill answering so often; raises AssertionError where a file differs."""
    dice = random.Random(seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, conversations = prepare(work, num_records)
        seconds = answer_in_child(model, conversations, work / "straight.jsonl", kill_after=None)
        assert seconds is not None
        straight = (work / "straight.jsonl").read_bytes()
        kills = files = torn = 0
        while kills < num_kills:
            output = work / "killed.jsonl"
            while not output.exists():
                killed = answer_in_child(model, conversations, output, kill_after=dice.uniform(0, 0.6 * seconds))
                kills += killed is None
                torn += is_torn(output.with_name("killed.jsonl.partial"))
            answer_in_child(model, conversations, work / "after.jsonl", kill_after=None)  # the lock is free again
            assert output.read_bytes() == straight, f"after {kills} kills the file differs from the uninterrupted one"
            files += 1
            output.unlink()
            (work / "after.jsonl").unlink()
    return Killed(kills, files, torn)


def prepare(work: Path, num_records: int) -> tuple[LoadedModel, list[Conversation]]:
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


def answer_in_child(
    model: LoadedModel, conversations: Sequence[Conversation], output: Path, kill_after: float | None
) -> float | None:
    """Answer in a process of its own, killed after some seconds unless it ends before; its seconds, None if killed."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        answer_all(
            model.model,
            model.encoder,
            conversations,
            model.config.generate,
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
    assert os.waitstatus_to_exitcode(status) == 0, "answering failed"
    return time.perf_counter() - start


def is_torn(partial: Path) -> bool:
    """Whether a kill left half a line."""
    return partial.exists() and not partial.read_bytes().endswith(b"\n")
