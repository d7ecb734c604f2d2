"""Model folders and files that are damaged by chance or on purpose: each is refused in one message, or works in its limits.

Each is tried as users try it: its tokenizer and its size are looked at (`check`, `--dry-run`), it is loaded, answers three
tokens, and is trained on one micro-batch; in a process of its own where the system can fork, so that one that dies or hangs is
one failure. What is done to them stands in the other `damaged_*.py`.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.doubles import damaged_adapter, damaged_gguf, damaged_huggingface, damaged_openai, openai_gpt2
from tests.doubles.damaged_bytes import MARKER, Mutation

from tuneful.config import load_config
from tuneful.errors import ModelError, TunefulError
from tuneful.files import remove
from tuneful.infer.session import LoadedModel, question
from tuneful.model.load import load_model
from tuneful.model.size import size_of
from tuneful.model.tokenizer_file import find_locally, read_tokenizer_file
from tuneful.train.layout import choose_layout
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

MAX_SECONDS = 2.0
"""Of a processor, for all that is tried with one of them."""
MAX_BYTES = 500 * 10**6
_PATIENCE = 60.0
"""Seconds by the clock after which one hangs."""
_SHORT = ("template.name=phi-3",)
_TEXTS = ("Hello there, a  42\n", "a" * 2_000, "Grüße \U0001f600 " * 50)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model: what writes an undamaged one into a place of its own, and returns its path; and what is done to it."""

    write: Callable[[Path], Path]
    mutations: Mapping[str, Mutation]


KINDS: Mapping[str, Kind] = {
    "openai": Kind(lambda place: openai_gpt2.write_openai_folder(place / "model"), damaged_openai.MUTATIONS),
    "huggingface": Kind(
        lambda place: damaged_huggingface.write_huggingface_folder(place / "model"), damaged_huggingface.MUTATIONS
    ),
    "adapter": Kind(damaged_adapter.write_adapter, damaged_adapter.MUTATIONS),
    "gguf": Kind(damaged_gguf.write_gguf, damaged_gguf.MUTATIONS),
}


def campaign(
    kind: str, num_models: int, seed: int, place: Path, only: str | None = None
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Damage that many models in turn; how often each mutation was refused or loaded, and what went wrong with which.

    Within `place`, which is to be empty. The cache must not be the user's (TUNEFUL_CACHE).
    """
    write, mutations = KINDS[kind].write, KINDS[kind].mutations
    (place / "whole").mkdir(parents=True)
    whole = write(place / "whole")
    ending, problems = _tried(whole)  # imports, once
    assert ending == "worked", (ending, problems)
    found: Counter[str] = Counter()
    failures = []
    for number in range(num_models):
        name = list(mutations)[number % len(mutations)]
        if only not in (None, name):
            continue
        inside = place / "one"
        shutil.copytree(place / "whole", inside)
        model = inside / whole.relative_to(place / "whole")
        mutations[name](model, random.Random(f"{seed}-{number}"))
        ending, problems = _tried_apart(model)
        found[f"{name}: {ending.split(':')[0]}"] += 1
        if (inside / MARKER).exists():
            problems.append("code was run")
        if problems:
            failures.append({"number": number, "what": name, "ending": ending, "problems": problems})
        remove(inside)
    return found, failures


def _tried_apart(model: Path) -> tuple[str, list[str]]:
    """`_tried` in a process of its own."""
    if not hasattr(os, "fork"):
        return _tried(model)
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        _report(model, reads, writes)
    os.close(writes)
    said, deadline = b"", time.monotonic() + _PATIENCE
    while select.select([reads], [], [], max(0, deadline - time.monotonic()))[0]:
        if not (part := os.read(reads, 1 << 16)):
            break
        said += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reads)
    _, status = os.waitpid(child, 0)
    if status or not said:
        return "died", [f"the process ended with {os.waitstatus_to_exitcode(status)}"]
    ending, problems = json.loads(said)
    return ending, problems


def _report(model: Path, reads: int, writes: int) -> None:
    """What the child does; it never returns."""
    status = 1
    try:
        import resource

        os.close(reads)
        held = (
            int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            if sys.platform == "linux"
            else 0
        )
        if held:  # the machine is not the test's alone
            resource.setrlimit(resource.RLIMIT_AS, (held + (6 << 30),) * 2)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        os.write(writes, json.dumps(_tried(model)).encode())
        status = 0
    finally:
        os._exit(status)


def _tried(model: Path) -> tuple[str, list[str]]:
    """How using `model` ended, and what was wrong with that."""
    begun, before, problems = time.process_time(), peak_bytes(), list[str]()
    try:
        ending = _used(model)
    except BaseException as error:
        ending = f"raised: {type(error).__name__}"
        problems.append("".join(traceback.format_exception(error)[-6:])[-1_500:])
    if not ending.isprintable() or len(ending) > 2_000:
        problems.append("the message is no line of text")
    if (seconds := time.process_time() - begun) > MAX_SECONDS:
        problems.append(f"it took {seconds:.1f} s")
    if (grown := peak_bytes() - before) > MAX_BYTES:
        problems.append(f"it took {grown / 1e6:,.0f} MB")
    return ending, problems


def _used(model: Path) -> str:
    config = load_config(
        None,
        [f"model.name_or_path={json.dumps(str(model))}", "generate.max_new_tokens=3", "model.dtype=float32", *_SHORT],
    )
    try:
        if (found := find_locally(str(model))) is not None:
            if (tokenizer := read_tokenizer_file(found)) is not None:
                for text in _TEXTS:
                    tokenizer(text)
            size_of(found)
        loaded = LoadedModel.of(load_model(str(model)), config)
    except ModelError as error:
        return f"refused: {error}"
    except TunefulError as error:
        return f"refused by {type(error).__name__}: {error}"
    problems = []
    for use in (_answers, _trains):
        try:
            use(loaded)
        except TunefulError as error:
            problems.append(f"{use.__name__}: {type(error).__name__}: {error}")
    return f"loaded: {'; '.join(problems)}" if problems else "worked"


def _answers(loaded: LoadedModel) -> None:
    for text in _TEXTS:
        loaded.encoder.text.text_ids(text)
    loaded.answer([question("", (), "Hi")])


def _trains(loaded: LoadedModel) -> None:
    import numpy as np

    ids = np.arange(1, 9, dtype=np.int32)
    weights = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=np.float32)
    records = [Example(ids, weights, 4, "one"), Example(ids[::-1].copy(), weights, 4, "two")]
    layout = choose_layout(loaded.model, records, loaded.config.train, loaded.model.dtype)
    micro_batch_loss(loaded.model, records, layout.name).total.backward()


def peak_bytes() -> int:
    """The most memory that this process ever held; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_000)
