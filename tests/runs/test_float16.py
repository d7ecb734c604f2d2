"""A whole run that computes in float16: an adapter is trained, saved, merged and answers; one that is cut goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.doubles.cut_runs import cut_after_checkpoint
from tests.runs.test_resume import Heard

import tuneful
from tuneful.config import Config, load_config

QUICK = ["train.batch_size=4", "generate.max_new_tokens=3", "report.general=none", "train.save_steps=2"]
LORA = ["train.method=lora", "lora.r=2", "train.learning_rate=0.01", "train.max_steps=4", "model.dtype=float16"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


def config(model: Path, *settings: str) -> Config:
    return load_config(overrides=[f"model.name_or_path={model}", *QUICK, *settings])


def test_a_run_in_float16_goes_through_and_one_that_was_cut_ends_in_the_same_bits(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    heard, settings = Heard(), config(tiny_llama, *LORA)
    straight = tuneful.run(data, config=settings, output=tmp_path / "straight", terminal=heard)
    environment = json.loads((straight.path / "environment.json").read_text())
    assert (environment["dtype"], environment["layout"]) == ("float16", "trie")
    answers = (straight.path / "answers" / "tuned.jsonl").read_text().splitlines()
    assert len(answers) == len((straight.path / "answers" / "base.jsonl").read_text().splitlines()) > 0

    with cut_after_checkpoint(2):
        tuneful.run(data, config=settings, output=tmp_path / "cut")
    manifest = json.loads(next((tmp_path / "cut" / "checkpoints").glob("step-*/manifest.json")).read_text())
    state = manifest["document"]["state"]
    assert state["loss_scale"] >= 1
    assert state["steps_at_scale"] == 2
    resumed = tuneful.run(data, config=settings, output=tmp_path / "cut")
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors", "answers/tuned.jsonl"):
        assert (resumed.path / file).read_bytes() == (straight.path / file).read_bytes(), file
