"""Seeds, and a call of the command's function with settings that waste no time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import tuneful

SEEDS = [
    {"instruction": f"Say how {what} is made.", "input": "", "output": f"By hand, in {2 + number} steps."}
    for number, what in enumerate(["bread", "glass", "paper", "soap", "wine", "cheese"])
]
QUICK = ["judge.backoff_seconds=0", "judge.max_retries=1", "judge.concurrency=4"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Any]:
    """`tuneful.synthesize` of the seeds into the test's folder; settings as words, options as keywords."""

    def make(*settings: str, data: Any = SEEDS, quick: Sequence[str] = QUICK, **options: Any) -> Any:
        options.setdefault("output", tmp_path / "made.jsonl")
        return tuneful.synthesize(data, config=tuneful.load_config(overrides=[*quick, *settings]), **options)

    return make
