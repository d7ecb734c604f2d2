"""The systems that are compared, where their environments come from, and the driver's end of the protocol."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train_peers import machine
from train_peers.worker import Method

BENCHMARKS = Path(__file__).resolve().parents[1]
WORKSHOP = BENCHMARKS.parent / ".bench"
ENVIRONMENTS = Path(os.environ.get("TUNEFUL_BENCH_ENVIRONMENTS", WORKSHOP))
"""Where `venv-trl` and the other peers' environments are, or are made on first use."""


MAX_SILENCE_SECONDS = 900
"""A system that compiles itself may take minutes to begin; one that takes longer than this is void."""


class NotInstalledError(Exception):
    """A peer's environment cannot be made, with the reason."""


class WorkerFailedError(Exception):
    """A system ended before its work did, with the reason."""


@dataclass(frozen=True)
class System:
    """A program of `train_peers` and the settings in which it may run.

    Of several `variants` the driver keeps the "fastest" in a short pilot with those near it, or the "first" that runs. A variant
    is a line of words, which the program reads; `huge-pages` among them is an environment variable that torch reads.
    `settings` are environment variables that the system sets for itself before torch is loaded.
    What `requirements/ENVIRONMENT.txt` names is installed into an environment of the system's own, `venv-ENVIRONMENT`, and
    what of it is in the way, `without`, removed again.
    `method` is what it trains where that is not what the others train. `checkout` is the folder of another version of this
    project, whose package is measured, by the program of that checkout where `own_program` is set.
    """

    name: str
    module: str
    variants: tuple[str, ...]
    keep: Literal["fastest", "first"] = "fastest"
    environment: str = ""
    without: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    method: Method | None = None
    checkout: Path = BENCHMARKS.parent
    own_program: bool = False


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

_HUGE_PAGES = (("THP_MEM_ALLOC_ENABLE", "1"),)
TUNEFUL = System("tuneful", "tuneful", ("bfloat16", "float32"), settings=_HUGE_PAGES)
TUNEFUL_FULL = System("tuneful-full", "tuneful", ("bfloat16", "float32"), settings=_HUGE_PAGES, method="full")
RATES = System("rates", "rates", ("",))


PROCESSORS = {
    "avx512": "float32",
    "avx2": "float32",
    "no-fma": "float32",
    "sse2": "float32",
    "no-openmp": "bfloat16",
    "no-compiler": "bfloat16",
}
"""Lesser processors that this one pretends to be (`TUNEFUL_PROCESSOR`), and the compute dtype that is chosen there."""


def _on_processor(words: str, dtype: str) -> System:
    settings = (*_HUGE_PAGES, ("TUNEFUL_PROCESSOR", words), ("TUNEFUL_NATIVE", "1"))
    return System(f"tuneful-{words}", "tuneful", (dtype,), settings=settings)


def _named(*systems: System) -> dict[str, System]:
    return {system.name: system for system in systems}


def _with_huge_pages(*variants: str) -> tuple[str, ...]:
    return (*variants, *(f"{variant} huge-pages" for variant in variants))


FULL_SYSTEMS = _named(
    TUNEFUL,
    System(
        "trl",
        "trl_sft",
        (*_with_huge_pages("padded", "padding-free"), "padded float32 huge-pages", "padded compiled"),
        environment="trl",
    ),
    System("hf-trainer", "hf_trainer", (*_with_huge_pages("bf16"), "float32 huge-pages")),
    System("litgpt", "litgpt_full", ("bf16-mixed", "bf16-true", "32-true"), environment="litgpt"),
    System("chapter", "chapter", ("eager", "sdpa"), keep="first"),
    System("trl-defaults", "trl_sft", ("defaults",), environment="trl"),
    *(_on_processor(words, dtype) for words, dtype in PROCESSORS.items()),
)
"""What `train.py` compares: full finetuning."""

LORA_SYSTEMS = _named(
    TUNEFUL,
    TUNEFUL_FULL,
    System(
        "trl",
        "trl_sft",
        (
            *_with_huge_pages("padded", "padding-free", "padded bf16-adapter", "padding-free bf16-adapter"),
            "padded float32 huge-pages",
            "padded compiled",
        ),
        environment="trl",
    ),
    System("hf-trainer", "hf_trainer", (*_with_huge_pages("bf16", "bf16 bf16-adapter"), "float32 huge-pages")),
    System(
        "unsloth",
        "unsloth_lora",
        (*_with_huge_pages("plain"), "checkpointing", "plain compiled"),
        environment="unsloth",
        without=("torchvision",),  # PyPI's is made for CUDA's torch and does not load beside the CPU's; text needs none
    ),
    System("trl-defaults", "trl_sft", ("defaults",), environment="trl"),
)
"""What `lora.py` compares: an adapter on a bfloat16 base, and beside it all weights, in Tuneful."""


PREFERENCE_SYSTEMS = _named(
    TUNEFUL,
    System(
        "trl",
        "trl_dpo",
        (*_with_huge_pages("padded"), "padded float32 huge-pages", "padded compiled"),
        environment="trl",
    ),
    System("trl-defaults", "trl_dpo", ("defaults",), environment="trl"),
)
"""What `preferences.py` compares: DPO of all weights."""


def oracle(method: Method | None) -> System:
    """The reference of the gate, training by `method` or, where that is None, as the others do."""
    return System("oracle", "oracle", ("float32",), method=method)


def before(checkout: Path, method: Method) -> System:
    """Tuneful as it is in another checkout: its own program for full finetuning, ours over its package for an adapter."""
    return System(
        "before", "tuneful", ("bfloat16",), settings=_HUGE_PAGES, checkout=checkout, own_program=method == "full"
    )


def python_of(system: System) -> Path:
    """The interpreter of a system's environment, made on first use. Raises NotInstalledError."""
    if not system.environment:
        return Path(sys.executable)
    folder = ENVIRONMENTS / f"venv-{system.environment}"
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    requirements = BENCHMARKS / "requirements" / f"{system.environment}.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return python
    print(f"Installing {requirements.name} into {folder} (once, about 2 GB)", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run(pip, capture_output=True, text=True, check=True)
        for package in system.without:
            remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", package]
            subprocess.run(remove, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise NotInstalledError(_last_line(error.stderr)) from error
    stamp.write_text(requirements.read_text())
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
        if not select.select([self._process.stdout], [], [], MAX_SILENCE_SECONDS)[0]:
            self._process.kill()
            raise WorkerFailedError(f"no answer within {MAX_SILENCE_SECONDS // 60} minutes")
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
        return machine.processor_seconds(self._process.pid)

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
            cwd=_program_folder(contender.system),
            env=_environment(job["num_threads"]) | _settings(contender),
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


def switches_of(system: System) -> list[str]:
    """The names of the techniques that the program of a Tuneful system knows."""
    if not system.own_program:
        return list(SWITCHES)
    program = "import json; from train_peers.systems import SWITCHES; print(json.dumps(list(SWITCHES)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_program_folder(system), capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(done.stdout)
    return names


def _program_folder(system: System) -> Path:
    return system.checkout / "benchmarks" if system.own_program else BENCHMARKS


def _settings(contender: Contender) -> dict[str, str]:
    """A system's own environment variables, and the package of its checkout where it runs in our environment."""
    system = contender.system
    ours = {} if system.environment else {"PYTHONPATH": str(system.checkout / "src")}
    return dict(system.settings) | dict(_HUGE_PAGES if "huge-pages" in contender.variant.split() else ()) | ours


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


def main() -> None:
    """Make the environments of all peers, so that a measurement finds them."""
    for system in (FULL_SYSTEMS | LORA_SYSTEMS | PREFERENCE_SYSTEMS).values():
        try:
            print(f"{system.name}: {python_of(system)}")
        except NotInstalledError as reason:
            print(f"{system.name}: not installed: {reason}")


if __name__ == "__main__":
    main()
