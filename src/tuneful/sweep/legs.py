"""Legs: a run of a sweep trained further, to a rung or to its end, here one after another or several at once in processes.

A run that diverges, or does not fit the memory, is a result of the sweep; every other error ends it. Processes are told to stop
by a signal, and end by themselves when this one is gone, however it went: a run can be cut off anywhere and goes on in the same
bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

import tuneful
from tuneful import errors
from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import DivergedError, OutOfMemoryError, TunefulError
from tuneful.runs.job import TrainedPart, train_part
from tuneful.signals import ask_to_end, own_group

_NOTICED_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Leg:
    """What one process is to do: train the run in `path` on to `pause_at`, a share of its steps."""

    data: tuple[str, ...]
    path: Path
    config: Config
    pause_at: float
    siblings: tuple[Path, ...] = ()
    """The folders of the other runs, some of which may have what this one would compute again."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a run cannot be trained to its end."""

    reason: str


Outcome = TrainedPart | Failed


def run_legs(legs: Sequence[Leg], num_jobs: int) -> Generator[tuple[Leg, Outcome], None, None]:
    """Each leg with what came of it, when it is done; at most `num_jobs` at once. Raises what ends a sweep."""
    if num_jobs == 1:
        for leg in legs:
            yield leg, _here(leg)
    elif legs:
        yield from _in_processes(legs, num_jobs)


def _here(leg: Leg) -> Outcome:
    try:
        return train_part(leg.data, leg.config, leg.path, Terminal(quiet=True), leg.pause_at, leg.siblings)
    except (DivergedError, OutOfMemoryError) as error:
        return Failed(str(error))


def _in_processes(legs: Sequence[Leg], num_jobs: int) -> Iterator[tuple[Leg, Outcome]]:
    processes = _Processes(num_jobs)
    with ThreadPoolExecutor(num_jobs) as threads:
        futures: dict[Future[Outcome], Leg] = {threads.submit(processes.run, leg): leg for leg in legs}
        try:
            while futures:
                done, _ = wait(futures, timeout=_NOTICED_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures.pop(future), future.result()
        finally:
            processes.stop()
            for future in futures:
                future.cancel()


class _Processes:
    """Processes that each train a leg, in `num_jobs` places."""

    def __init__(self, num_jobs: int) -> None:
        self._num_jobs = num_jobs
        self._places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(num_jobs):
            self._places.put(place)
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, leg: Leg) -> Outcome:
        """Train `leg` in a process of its own, and wait for it."""
        place = self._places.get()
        try:
            return self._result(leg, self._begun(place))
        finally:
            self._places.put(place)

    def stop(self) -> None:
        """End all of them; each has time to write a checkpoint."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                ask_to_end(process)

    def _begun(self, place: int) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise TunefulError("the sweep was stopped")
            process = subprocess.Popen(
                [sys.executable, "-m", "tuneful.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=worker_environment(self._num_jobs, place),
                **own_group(),
            )
            self._running.add(process)
            return process

    def _result(self, leg: Leg, process: subprocess.Popen[str]) -> Outcome:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = list[str]()
        reader = threading.Thread(target=lambda stream: said.append(stream.read()), args=(process.stderr,), daemon=True)
        reader.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(as_request(leg)) + "\n")
            process.stdin.flush()  # and stays open: its end tells the process that this one is gone
        answer = process.stdout.read()
        process.wait()
        reader.join()
        with self._lock:
            self._running.discard(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return _read_answer(leg, answer, process.returncode, "".join(said))


def as_request(leg: Leg) -> dict[str, Any]:
    """What a worker is told of a leg."""
    config = leg.config.model_dump(mode="json")
    places = {"path": str(leg.path), "siblings": [str(path) for path in leg.siblings]}
    return {"data": leg.data, **places, "config": config, "pause_at": leg.pause_at}


def worker_environment(num_jobs: int, place: int) -> dict[str, str]:
    """The environment of a worker: its share of the cores, unless the threads are set; and one of several GPUs."""
    import torch

    own = dict(os.environ)
    package = str(Path(tuneful.__file__).parents[1])
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (package, own.get("PYTHONPATH", ""))))
    if "OMP_NUM_THREADS" not in own:
        process = psutil.Process()
        num_cores = len(process.cpu_affinity() or ()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1
        own["OMP_NUM_THREADS"] = str(max(1, num_cores // num_jobs))
    if (num_devices := torch.cuda.device_count()) > 1:
        visible = own.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == num_devices else [str(number) for number in range(num_devices)]
        own["CUDA_VISIBLE_DEVICES"] = names[place % num_devices]
    return own


def as_answer(outcome: TrainedPart | TunefulError) -> str:
    """What a worker prints."""
    if isinstance(outcome, TunefulError):
        return json.dumps({"error": type(outcome).__name__, "message": str(outcome)})
    return json.dumps({"part": asdict(outcome)})


def _read_answer(leg: Leg, answer: str, exit_code: int, said: str) -> Outcome:
    lines = answer.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        found = {}
    if "part" in found:
        return TrainedPart(**found["part"])
    if "error" not in found:
        last = said.strip().splitlines()[-1:] or [f"it ended with exit code {exit_code}"]
        raise TunefulError(f"{leg.path}: its process was ended: {last[0]}. The same command goes on with the sweep")
    kind, message = getattr(errors, found["error"], TunefulError), found["message"]
    if kind in (DivergedError, OutOfMemoryError):
        return Failed(message)
    error = TunefulError(message)
    error.exit_code = kind.exit_code
    raise error
