"""The systems that are compared, where their environments come from, and the driver's end of the protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BENCHMARKS = Path(__file__).resolve().parents[1]
WORKSHOP = BENCHMARKS.parent / ".bench"


class NotInstalledError(Exception):
    """A peer's environment cannot be made, with the reason."""


class WorkerFailedError(Exception):
    """A system ended before its work did, with the reason."""


@dataclass(frozen=True)
class System:
    """A program of `train_peers` and the settings in which it may run.

    Of several `variants` the driver keeps the "fastest" in a short pilot with those near it, or the "first" that runs.
    `settings` are environment variables that the system sets for itself before torch is loaded.
    `requirements` are installed into an environment of the system's own, `.bench/venv-ENVIRONMENT`.
    """

    name: str
    module: str
    variants: tuple[str, ...]
    keep: Literal["fastest", "first"] = "fastest"
    environment: str = ""
    requirements: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


SWITCHES = {
    "sharing": "each distinct prefix computed once",
    "block_attention": "attention along paths in blocks; off: SDPA under a dense N x N mask",
    "target_rows": "output head on the rows that predict a target only",
    "kept_memory": "freed buffers kept for the next step",
    "tied_lookup": "the input's gradient added to the head's by row",
    "bfloat16": "compute dtype bfloat16, from a low-precision copy of the float32 weights",
    "one_pass_optimizer": "clipping, AdamW and low-precision copy in one pass; off: torch's clipping, fused AdamW, then a copy",
    "compiled_kernels": "linear layers, attention, norms, rotary embedding, gate, loss, AdamW; off: torch's operations",
}
"""Tuneful's techniques; the ablation ladder turns each off alone."""

TRL = ("trl==1.16.0", "torch==2.13.0")
SYSTEMS = {
    system.name: system
    for system in (
        System("tuneful", "tuneful", ("bfloat16",), settings=(("THP_MEM_ALLOC_ENABLE", "1"),)),
        System("trl", "trl_sft", ("padded", "padding_free"), environment="trl", requirements=TRL),
        System("hf-trainer", "hf_trainer", ("bf16",)),
        System(
            "litgpt",
            "litgpt_full",
            ("bf16-mixed", "bf16-true", "32-true"),
            environment="litgpt",
            requirements=("litgpt==0.5.13", "torch==2.13.0"),
        ),
        System("chapter", "chapter", ("eager", "sdpa"), keep="first"),
        System("trl-defaults", "trl_sft", ("defaults",), environment="trl", requirements=TRL),
    )
}
ORACLE = System("oracle", "oracle", ("float32",))
RATES = System("rates", "rates", ("",))


def python_of(system: System) -> Path:
    """The interpreter of a system's environment, made on first use. Raises NotInstalledError."""
    if not system.environment:
        return Path(sys.executable)
    folder = WORKSHOP / f"venv-{system.environment}"
    python = folder / "bin" / "python"
    stamp = folder / "requirements.json"
    wanted = json.dumps(system.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Installing {' '.join(system.requirements)} into {folder} (once)", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *system.requirements]
        subprocess.run(pip, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise NotInstalledError(_last_line(error.stderr)) from error
    stamp.write_text(wanted)
    return python


@dataclass(frozen=True)
class Contender:
    """A system in one setting; `switches` are Tuneful's techniques, all on but for the ablation ladder."""

    label: str
    system: System
    variant: str
    switches: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a worker answered to one `run`."""

    seconds: list[float]
    losses: list[float]
    peak_bytes: int


class Worker:
    """A running system: `run` lets it take some optimizer steps and returns when it sleeps again."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self.facts: dict[str, Any] = {}

    def ask(self, num_steps: int) -> dict[str, Any]:
        """Send `run` and wait for the answer. Raises WorkerFailedError."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the worker is gone: `listen` says why
            self._process.stdin.write(json.dumps({"run": num_steps}) + "\n")
            self._process.stdin.flush()
        return self.listen()

    def listen(self) -> dict[str, Any]:
        """The worker's next message. Raises WorkerFailedError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerFailedError(_reason(self._log.read_text(errors="replace"), code))
        message: dict[str, Any] = json.loads(line)
        return message

    def run(self, num_steps: int) -> Run:
        answer = self.ask(num_steps)
        return Run(answer["seconds"], answer["losses"], answer["peak_bytes"])

    def processor_seconds(self) -> float:
        """Processor time spent so far, to see that a sleeping worker sleeps; 0 where the system does not say."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory held now; 0 where the system does not say."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End the worker: it leaves when its standard input ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def started(contender: Contender, job: dict[str, Any], folder: Path) -> Iterator[Worker]:
    """A worker that has loaded its model and sleeps. Raises NotInstalledError and WorkerFailedError."""
    python = python_of(contender.system)
    folder = folder / contender.label
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {**job, "variant": contender.variant, "switches": contender.switches, "scratch": str(folder / "scratch")}
    (folder / "job.json").write_text(json.dumps(job))
    log = folder / "log.txt"
    command = [str(python), "-m", f"train_peers.{contender.system.module}", "--job", str(folder / "job.json")]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            env=_environment(job["num_threads"]) | dict(contender.system.settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    worker = Worker(process, log)
    try:
        worker.facts = worker.listen()
        yield worker
    finally:
        worker.close()


def _environment(num_threads: int) -> dict[str, str]:
    """The same for every system: so many threads, nothing fetched, nothing reported, libraries at their defaults."""
    ours = {
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "PYTHONPATH")} | ours


def _reason(log: str, code: int) -> str:
    if code == -9 or "allocate memory" in log or "MemoryError" in log:
        return "out of memory"
    return _last_line(log) or f"ended with code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
