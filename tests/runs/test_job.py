"""What a job keeps when it is cut off."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tuneful
from tuneful.config import load_config
from tuneful.runs import measure


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(20)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_cut_off_while_it_answers_has_saved_its_model_and_answers_as_it_trained(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    answer_test_set = measure._answer_test_set
    seen: list[torch.dtype] = []

    def cut_off(run: Any, engine: Any, name: str) -> object:
        seen.append(run.model.dtype)
        if name == "tuned":
            raise CutOffError
        return answer_test_set(run, engine, name)

    monkeypatch.setattr(measure, "_answer_test_set", cut_off)
    config = load_config(
        overrides=[
            f"model.name_or_path={tiny_llama}",
            f"model.dtype={dtype}",
            "train.max_steps=2",
            "generate.max_new_tokens=2",
        ]
    )
    with pytest.raises(CutOffError):
        tuneful.run(str(data), config=config, output=tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert seen == [getattr(torch, dtype)] * 2
    assert json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))["findings"] == []
