"""What every system of the benchmark shares: the job it is given and the protocol in which it is told to work.

A system is a process. It reads its job (model folder, batches, hyperparameters) from a file, gets ready, says so,
and then sleeps on its standard input until the driver sends `{"run": 4}`: run the next four optimizer steps. It
answers with the seconds and the loss of each, so that the driver can let several systems take turns on the same
batches, one at work at a time. Messages are JSON lines. The real standard output belongs to the protocol; whatever
a library prints goes to the log. Standard library and torch only: this file runs in each peer's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

IGNORED = -100
BETA = 0.1  # of DPO
Method = Literal["full", "lora", "dpo"]


@dataclass(frozen=True)
class Record:
    """Token ids, the end token included; the loss is on `ids[num_prompt:]`.

    Of a preference pair these are the chosen side; `rejected` is the other, behind the same prompt, and `reference` the
    log-probabilities of both under the reference.
    """

    ids: list[int]
    num_prompt: int
    rejected: list[int] | None = None
    reference: list[float] | None = None

    @property
    def sides(self) -> list[Record]:
        """The record, or both sides of the pair as records."""
        chosen = Record(self.ids, self.num_prompt)
        return [chosen] if self.rejected is None else [chosen, Record(self.rejected, self.num_prompt)]

    @property
    def labels(self) -> list[int]:
        """One label a token, unshifted, as transformers wants them."""
        return [IGNORED] * self.num_prompt + self.ids[self.num_prompt :]

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.num_prompt


Batch = list[Record]


@dataclass(frozen=True)
class Optimization:
    """The same for every system: AdamW on all parameters, the norm of the gradient clipped, constant learning rate."""

    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def adamw(self) -> dict[str, Any]:
        """The keyword arguments of `torch.optim.AdamW`."""
        return {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class Job:
    """One system's task: `batches` are its optimizer steps, in order; `variant` is the system's own setting.

    With an `adapter`, a folder of peft's, that alone is trained, from the values in it; else all weights.
    """

    model: Path
    batches: list[Batch]
    variant: str
    switches: dict[str, bool]
    optimization: Optimization
    num_threads: int
    scratch: Path
    adapter: Path | None = None

    @property
    def words(self) -> list[str]:
        """The variant's settings, one by one."""
        return self.variant.split()


@dataclass(frozen=True)
class Step:
    """What one optimizer step took, and its loss before the update."""

    seconds: float
    loss: float


class Channel:
    """The worker's end of the protocol."""

    def __init__(self, commands: TextIO, answers: TextIO) -> None:
        self._commands = commands
        self._answers = answers

    def send(self, **message: Any) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def ready(self, **facts: Any) -> None:
        """The model is loaded; `facts` (dtype, number of parameters, ...) go into the benchmark's document."""
        self.send(ready=True, peak_bytes=peak_bytes(), **facts)

    def next_run(self) -> int:
        """Sleep until the driver asks for steps, and return how many; ends the process when there are no more."""
        line = self._commands.readline()
        if not line:
            leave()
        return int(json.loads(line)["run"])

    def report(self, steps: list[Step]) -> None:
        self.send(
            seconds=[step.seconds for step in steps],
            losses=[step.loss for step in steps],
            peak_bytes=peak_bytes(),
        )


def leave() -> None:
    """End the process at once: a trainer in the middle of its loop would otherwise save, log and tear down."""
    sys.stderr.flush()
    os._exit(0)


def open_job() -> tuple[Job, Channel]:
    """Read `--job`, take standard output for the protocol and set the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    document = json.loads(parser.parse_args().job.read_text())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch

    job = Job(
        model=Path(document["model"]),
        batches=read_batches(Path(document["batches"]), document["steps"]),
        variant=document["variant"],
        switches=document["switches"],
        optimization=Optimization(**document["optimization"]),
        num_threads=document["num_threads"],
        scratch=Path(document["scratch"]),
        adapter=Path(document["adapter"]) if document["adapter"] else None,
    )
    if document["max_bytes"] and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (document["max_bytes"], document["max_bytes"]))
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(0)
    return job, Channel(sys.stdin, answers)


def read_batches(path: Path, steps: list[int]) -> list[Batch]:
    """The batches of the numbered steps of a `batches.json`."""
    document = json.loads(path.read_text())
    return [[Record(**record) for record in document[step]] for step in steps]


def serve(job: Job, channel: Channel, run_step: Callable[[Batch], float], **facts: Any) -> None:
    """Be a system whose steps can be called one by one. `run_step` does a whole step and returns its loss."""
    batches = iter(job.batches)
    channel.ready(**facts)
    while True:
        steps = []
        for _ in range(channel.next_run()):
            batch = next(batches)
            start = time.perf_counter()
            loss = run_step(batch)
            steps.append(Step(time.perf_counter() - start, loss))
        channel.report(steps)


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pad(rows: list[list[int]], filler: int) -> list[list[int]]:
    """Right-pad to the longest row."""
    longest = max(len(row) for row in rows)
    return [row + [filler] * (longest - len(row)) for row in rows]
