"""A run whose training goes wrong ends in a message about the training, or says that its weights are worse than the base's."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from tuneful.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(40)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    return file


def exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("rate", ["1e5", "1e30", "1e38"])
def test_no_learning_rate_ends_in_a_defect_of_tuneful(
    data: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rate: str,
) -> None:
    settings = ["train.max_steps=4", "train.batch_size=4", f"train.learning_rate={rate}", "generate.max_new_tokens=2"]
    output = tmp_path / "run"
    monkeypatch.setattr(
        sys, "argv", ["tuneful", "run", str(data), "--model", str(tiny_llama), "--output", str(output), *settings]
    )
    code = exit_code()
    _, err = capsys.readouterr()
    assert "defect" not in err
    assert f"train.learning_rate={float(rate):g}: is that meant?" in err
    if code:
        assert code == 1
        assert "not finite" in err
        assert "step" in err
    else:
        assert "are worse than the model as it came" in err
    for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_weights_that_are_worse_than_the_base_are_said_to_be(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    settings = ["train.max_steps=2", "train.learning_rate=0.5", "report.general=none", "train.warmup_steps=0"]
    output = tmp_path / "run"
    monkeypatch.setattr(
        sys, "argv", ["tuneful", "train", str(data), "--model", str(tiny_llama), "--output", str(output), *settings]
    )
    assert exit_code() == 0
    summary = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert summary["kept_validation_loss"] > summary["base_validation_loss"]
    assert (
        f"(step {summary['kept_step']}, validation loss {summary['kept_validation_loss']:.4f}) are worse than the model as it "
        f"came ({summary['base_validation_loss']:.4f})"
    ) in capsys.readouterr().err
