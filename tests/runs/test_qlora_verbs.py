"""An adapter that learned beside a base in 4 bits is a model for every command: on its base, rounded as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tuneful
from tuneful.config import Config, load_config
from tuneful.errors import JudgeError
from tuneful.judge.run import load_judge_model
from tuneful.model.load import load_model, load_tokenizer
from tuneful.model.quantize import round_to_4_bits
from tuneful.types import Conversation, Turn

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
SHORT = ["model.dtype=float32", "generate.max_new_tokens=6", "report.general=none"]


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps its adapter alone."""
    folder = tmp_path_factory.mktemp("qlora")
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]
    (folder / "data.json").write_text(json.dumps(rows))
    settings = ["train.method=qlora", "lora.r=2", "lora.merge=false", "train.max_steps=4", "train.learning_rate=0.05"]
    config = load_config(overrides=[f"model.name_or_path={tiny_llama}", "train.batch_size=4", *SHORT, *settings])
    return tuneful.run(folder / "data.json", config=config, output=folder / "run").path


def settings(model: Path, *more: str) -> Config:
    return load_config(overrides=[f"model.name_or_path={model}", *SHORT, *more])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_generates_what_the_run_has_measured(run: Path, tmp_path: Path) -> None:
    tuneful.generate_file(run / "data" / "test.jsonl", tmp_path / "again.jsonl", config=settings(run / "adapter"))
    tuned, base = (rows(run / "answers" / f"{name}.jsonl") for name in ("tuned", "base"))
    assert [row["text"] for row in rows(tmp_path / "again.jsonl")] == [row["text"] for row in tuned]
    assert [row["text"] for row in base] != [row["text"] for row in tuned]


def test_its_answers_are_compared_with_those_of_the_base_in_4_bits(run: Path, tiny_llama: Path, tmp_path: Path) -> None:
    rounded = AutoModelForCausalLM.from_pretrained(tiny_llama)
    round_to_4_bits(rounded, torch.device("cpu"))
    rounded.save_pretrained(tmp_path / "rounded")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "rounded")
    files: dict[str, Path] = {}
    for name, model in (("tuned", run / "adapter"), ("base", tmp_path / "rounded")):
        files[name] = tmp_path / f"{name}.jsonl"
        tuneful.generate_file(run / "data" / "test.jsonl", files[name], config=settings(model))
        assert [row["text"] for row in rows(files[name])] == [
            row["text"] for row in rows(run / "answers" / f"{name}.jsonl")
        ]
    compared = tuneful.compare(files["base"], files["tuned"]).comparison
    of_run = tuneful.compare(run / "answers" / "base.jsonl", run / "answers" / "tuned.jsonl").comparison
    rouge, of_answers = ({one.name: one for one in each.metrics}["rouge_l"] for each in (compared, of_run))
    assert rouge == of_answers


def test_it_judges_with_what_it_learned(run: Path, tmp_path: Path) -> None:
    asked = [Conversation("", (Turn(f"Say {n}.", "", "?"),), f"t:{n}") for n in range(2)]
    adapted, whole = str(run / "adapter"), tmp_path / "whole"
    load_model(adapted).model.save_pretrained(whole)
    load_tokenizer(run / "adapter").save_pretrained(whole)
    answers = []
    for folder in (adapted, str(whole)):
        config = settings(run, f"judge.model=model:{folder}", "judge.max_tokens=5")
        fingerprint, answer_all = load_judge_model(folder, config, lambda _: None)
        assert len(fingerprint) == 64
        answers.append([one.token_ids for one in answer_all(asked)])
    assert answers[0] == answers[1]


def test_answers_are_evaluated_with_it_and_what_it_cannot_say_is_counted(run: Path, tmp_path: Path) -> None:
    config = settings(run, f"judge.model=model:{run / 'adapter'}", "judge.max_tokens=4")
    with pytest.raises(JudgeError, match="scored"):  # a random model of two layers grades nothing
        tuneful.evaluate(run / "answers" / "tuned.jsonl", config=config, output=tmp_path / "scores")
