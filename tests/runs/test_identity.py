"""What identifies a training: everything that changes a weight or an answer, and nothing else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuneful.config import load_config
from tuneful.runs.resume import training_identity
from tuneful.types import Example


def identity(*settings: str, weights: tuple[float, ...] = (0, 1, 1), ids: tuple[int, ...] = (4, 5, 6)) -> Any:
    example = Example(np.array(ids, np.int32), np.array(weights, np.float32), 1, "rows.json:1")
    dataset: Any = SimpleNamespace(
        train=SimpleNamespace(examples=[example]),
        validation=SimpleNamespace(examples=[]),
        file=SimpleNamespace(sha256="d"),
    )
    return training_identity(load_config(None, list(settings)), dataset, None, "m")


@pytest.mark.parametrize("setting", ["train.save_steps=7", "report.confidence=0.9", "judge.model=ollama/x"])
def test_what_changes_no_weight_and_no_answer_may_change(setting: str) -> None:
    assert identity(setting) == identity()


@pytest.mark.parametrize("setting", ["train.learning_rate=1e-3", "generate.max_new_tokens=7", "report.general=my.txt"])
def test_what_changes_weights_answers_or_the_general_text_may_not(setting: str) -> None:
    changed = identity(setting)
    assert [key for key, value in identity().items() if changed[key] != value] == [setting.partition("=")[0]]


def test_tokens_and_their_weights_are_part_of_it() -> None:
    found = [identity()["tokens"], identity(ids=(4, 5, 7))["tokens"], identity(weights=(0, 1, 0.5))["tokens"]]
    assert len(set(found)) == 3
