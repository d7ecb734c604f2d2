"""A run on a machine without functions of POSIX, without oneDNN and kernels: it comes to the same bits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.elsewhere import as_on_windows, without_onednn

import tuneful
from tuneful.config import load_config
from tuneful.encoding import prepare
from tuneful.files import sha256_of
from tuneful.infer.session import LoadedModel, question
from tuneful.runs.schema import Step
from tuneful.train.loop import Training

ROWS = [{"instruction": f"Say {number} é.", "output": f"It is {number}."} for number in range(20)]
SETTINGS = [
    "train.batch_size=4",
    "train.max_steps=4",
    "train.save_steps=2",
    "generate.max_new_tokens=3",
    "report.num_resamples=100",
    "report.general=none",
    "model.dtype=float32",
]
REFUSED_BY_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("elsewhere") / "rows.json"
    file.write_text(json.dumps(ROWS), encoding="utf-8")
    return file


def run_on(data: Path, model: Path, folder: Path) -> None:
    settings = [f"model.name_or_path={json.dumps(str(model))}", *SETTINGS]
    tuneful.run(str(data), config=load_config(None, settings), output=folder)


@pytest.fixture(scope="module")
def here(data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEFUL_NATIVE", "0")
        run_on(data, tiny_llama, folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of records in a store on disk, which is cut off and goes on; whoever asks for it is elsewhere too, to the end.

    The fixture ends with the module."""
    folder, run = tmp_path_factory.mktemp("runs") / "elsewhere", Training.run

    def shorter(training: Training) -> Any:
        for event in run(training):
            yield event
            if isinstance(event, Step) and event.step == 3:
                raise CutOffError

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEFUL_NATIVE", "0")
        patch.setenv("TUNEFUL_CACHE", str(folder.parent / "cache"))
        patch.setattr(prepare, "MAX_IN_MEMORY", 4)
        without_onednn(patch)
        as_on_windows(patch)
        with pytest.MonkeyPatch.context() as killed:
            killed.setattr(Training, "run", shorter)
            with pytest.raises(CutOffError):
                run_on(data, tiny_llama, folder)
        run_on(data, tiny_llama, folder)
        yield folder


def test_a_run_elsewhere_is_cut_off_and_goes_on_to_the_bits_of_one_here(elsewhere: Path, here: Path) -> None:
    assert sha256_of(elsewhere / "model" / "model.safetensors") == sha256_of(here / "model" / "model.safetensors")
    for name in ("data/train.jsonl", "answers/base.jsonl", "answers/tuned.jsonl"):
        assert (elsewhere / name).read_bytes() == (here / name).read_bytes(), name


def test_what_is_trained_elsewhere_answers_there(elsewhere: Path) -> None:
    settings = load_config(None, [f"model.name_or_path={json.dumps(str(elsewhere))}", "generate.max_new_tokens=2"])
    loaded = LoadedModel.load(settings)
    assert loaded.model.dtype is torch.float32
    assert loaded.answer([question("", (), "Say 3 é.")])[0].token_ids


@pytest.mark.usefixtures("elsewhere")
def test_doctor_says_elsewhere_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    found = tuneful.doctor()
    assert not found["native_bfloat16"]
    assert found["dtype"] == "float32"


def test_a_run_folder_can_be_carried_to_any_system(here: Path) -> None:
    """No name in it is one that Windows refuses, and no file of it holds carriage returns of its own."""
    names = [path.relative_to(here) for path in here.rglob("*")]
    assert len(names) > 15
    assert not [name for name in names for part in name.parts if REFUSED_BY_WINDOWS.search(part)]
    texts = [path for path in here.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".md", ".html")]
    assert not [path for path in texts if b"\r" in path.read_bytes()]
