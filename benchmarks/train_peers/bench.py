"""One work, prepared for the systems: its batches on disk and in memory, and the job that each of them gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train_peers import machine, works
from train_peers.adapter import write_adapter
from train_peers.systems import ENVIRONMENTS, WORKSHOP, Contender
from train_peers.worker import Batch, Method, Optimization

REPOSITORY = Path(__file__).resolve().parents[2]
STARTER = REPOSITORY / "src" / "tuneful" / "data" / "starter.json"
NUM_GATE = 3
NUM_WARMUP = 8  # the gate's among them; until then allocators still grow by what a larger batch needs
OPTIMIZATION: dict[Method, Optimization] = {
    "full": Optimization(),
    "lora": Optimization(learning_rate=2e-4),
    "dpo": Optimization(learning_rate=5e-6),
}


@dataclass(frozen=True)
class Settings:
    """What the command line asks of every work. A `rank` of 0 trains all weights, else an adapter of that rank; `of_pairs` by
    DPO, else by the loss of the responses."""

    model: Path
    num_threads: int
    num_rounds: int
    num_steps: int | None
    rank: int = 0
    of_pairs: bool = False

    @property
    def method(self) -> Method:
        if self.of_pairs:
            return "dpo"
        return "lora" if self.rank else "full"


@dataclass(frozen=True)
class Bench:
    """A work and what is done with it; the measured steps follow a warm-up."""

    work: works.Work
    batches: list[Batch]
    num_rounds: int
    num_steps: int
    job: dict[str, Any]
    folder: Path
    rank: int
    adapter: Path | None
    method: Method = "full"

    def steps_of(self, round_number: int) -> list[int]:
        """The measured steps of a round."""
        first = NUM_WARMUP + round_number * self.num_steps
        return list(range(first, first + self.num_steps))

    def all_steps(self) -> Iterator[list[int]]:
        """The measured steps, round by round."""
        return (self.steps_of(number) for number in range(self.num_rounds))

    def method_of(self, contender: Contender) -> Method:
        """What the contender trains: the bench's own method unless its system is there to be compared with another."""
        return contender.system.method or self.method

    def job_for(self, contender: Contender, steps: Sequence[int]) -> dict[str, Any]:
        """The job of a process that runs these steps, and fails rather than take more memory than there is."""
        method = self.method_of(contender)
        return {
            **self.job,
            "steps": list(steps),
            "max_bytes": int(machine.available_bytes() * 0.9),
            "optimization": asdict(OPTIMIZATION[method]),
            "adapter": str(self.adapter) if method == "lora" else None,
        }

    def describe(self) -> str:
        """The work in a line."""
        lengths = sorted(len(side.ids) for batch in self.batches for record in batch for side in record.sides)
        trained = f"LoRA r {self.rank} beside all linear layers, " if self.rank else ""
        what = "pairs" if self.method == "dpo" else "records"
        return (
            f"{trained}{self.work.batch_size} {what} a step of {self.work.num_records:,}, "
            f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}; "
            f"{self.num_rounds} rounds of {self.num_steps} steps"
        )


def prepare(work: works.Work, rows: list[works.Row], settings: Settings) -> Bench:
    """Tokenize the work's records, deal them into batches and write these down for the systems."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(settings.model / "tokenizer.json"))
    end_token = json.loads((settings.model / "config.json").read_text())["eos_token_id"]
    end_token = end_token[0] if isinstance(end_token, list) else end_token
    records = works.make_records(
        work.content, rows, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, end_token
    )
    num_steps = settings.num_steps or work.num_steps
    batches = works.make_batches(records, work.batch_size, NUM_WARMUP + settings.num_rounds * num_steps)
    folder = WORKSHOP / settings.method / work.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batches.json"
    path.write_text(json.dumps([[asdict(record) for record in batch] for batch in batches]))
    return Bench(
        work=replace(work, num_records=len(records)),
        batches=batches,
        num_rounds=settings.num_rounds,
        num_steps=num_steps,
        job={"model": str(settings.model), "batches": str(path), "num_threads": settings.num_threads},
        folder=folder,
        rank=settings.rank,
        method=settings.method,
        adapter=write_adapter(settings.model, folder / "adapter", settings.rank) if settings.rank else None,
    )


def find_model(name: str, rows: list[works.Row]) -> Path:
    """The folder of the model to train: a folder, a name that Tuneful knows, `tiny`, or `qwen2-1.5b` (random weights)."""
    if name == "tiny":
        sys.path.insert(0, str(REPOSITORY))
        from tests.doubles.tiny import make_tiny_model

        return make_tiny_model(WORKSHOP / "model-tiny", [text for row in rows for text in row.values()])
    if name == "qwen2-1.5b":
        from train_peers.random_model import make_random_model

        return make_random_model(ENVIRONMENTS / "model-qwen2-1.5b")
    if Path(name).is_dir():
        return Path(name).resolve()
    from tuneful.model.load import resolve_model

    return Path(resolve_model(name)).resolve()


def tokens(batch: Batch) -> int:
    """Tokens of the records as given."""
    return sum(len(side.ids) for record in batch for side in record.sides)
