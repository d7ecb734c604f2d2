"""Whole runs on documents, on documents beside records, and on several files, with a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tuneful.commands import run as api
from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError
from tuneful.runs.folder import RunDir
from tuneful.runs.integrity import check_places
from tuneful.runs.resume import begin_or_resume
from tuneful.runs.schema import Comparison, load_document
from tuneful.train.loop import Training

SETTINGS = [
    "train.batch_size=3",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=2",
    "train.learning_rate=1e-2",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "report.general=none",
    "model.dtype=float32",
    "data.max_length=48",
]
TEXT = [*SETTINGS, "train.objective=text", "data.sample_by=paragraph"]


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of forty passages, most of them longer than a chunk."""
    file = tmp_path_factory.mktemp("book") / "book.txt"
    words = ["the", "tide", "comes", "in", "and", "goes", "out", "again", "over", "sand", "and", "stone"]
    passages = [" ".join(words[(at * k) % len(words)] + f" {at}" for k in range(2, 4 + at % 9)) for at in range(1, 41)]
    file.write_text("\n\n".join(passages) + "\n")
    return file


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    rows = [{"instruction": f"Say {at * 31}.", "output": f"It is {at}."} for at in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(data: Any, model: Path, folder: Path, *overrides: str) -> Path:
    settings = [f"model.name_or_path={json.dumps(str(model))}", *overrides]
    api.run(data, config=load_config(None, settings), output=folder)
    return folder


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "step_seconds"} for line in lines]


@pytest.fixture(scope="session")
def straight(book: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(str(book), tiny_llama, tmp_path_factory.mktemp("text") / "straight", *TEXT)


def test_a_run_on_text_ends_with_the_perplexity_of_held_out_documents_and_answers_nothing(straight: Path) -> None:
    comparison = load_document(Comparison, straight / "comparison.json")
    assert comparison is not None
    assert [one.name for one in comparison.metrics] == ["document_perplexity", "document_bits"]
    perplexity = comparison.metrics[0]
    data = document(straight, "data.json")
    assert perplexity.num_items == data["split"]["test"] > 0
    assert perplexity.num_items < 6  # which tell no interval
    assert perplexity.low is None
    assert perplexity.high is None
    assert perplexity.tuned < perplexity.base
    assert "held-out document" in str(comparison.sentence)
    assert not list((straight / "answers").glob("*")) if (straight / "answers").exists() else True
    assert len((straight / "documents" / "tuned.jsonl").read_text().splitlines()) == perplexity.num_items


def test_the_data_of_a_run_on_text_is_counted_in_documents_chunks_and_tokens(straight: Path) -> None:
    data = document(straight, "data.json")
    assert data["rows_read"] == data["rows_used"] == 40
    assert data["num_chunks"] > data["split"]["train"]
    assert data["train_tokens"]["record"] - data["train_tokens"]["trained"] == data["split"]["train"]
    assert sum(step["target_tokens"] for step in steps(straight) if "loss" in step) > 0
    page = (straight / "report.html").read_text(encoding="utf-8")
    assert "held-out document" in page
    assert "There are no test answers" not in page


def test_a_run_on_text_that_is_cut_off_goes_on_to_the_same_weights(
    book: Path, tiny_llama: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training.step

    def cut_off(self: Training, indices: Any) -> Any:
        if self.state.step == 3:
            raise CutOffError
        yield from step(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", cut_off)
        with pytest.raises(CutOffError):
            run(str(book), tiny_llama, tmp_path / "run", *TEXT)
    documents = tmp_path / "run" / "documents" / "base.jsonl"
    documents.write_text(documents.read_text().replace('"nll": ', '"nll": 1', 1))
    run(str(book), tiny_llama, tmp_path / "run", *TEXT)
    again, once = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "run", straight))
    assert all(bool((again[name] == once[name]).all()) for name in once)
    assert steps(tmp_path / "run") == steps(straight)
    assert document(tmp_path / "run", "comparison.json") == document(straight, "comparison.json")


def test_prompts_of_a_test_file_are_answered_beside_documents(
    book: Path, records: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(
        "".join(records.read_text().splitlines(keepends=True)[:4]) + '{"text": "the tide comes in again"}\n'
    )
    folder = run(str(book), tiny_llama, tmp_path / "run", *TEXT, "train.max_steps=2", f"data.test_file={both}")
    names = [one["name"] for one in document(folder, "comparison.json")["metrics"]]
    assert {"rouge_l", "document_perplexity"} <= set(names)
    assert len((folder / "answers" / "tuned.jsonl").read_text().splitlines()) == 4


def test_documents_beside_records_weigh_on_all_their_tokens(
    book: Path, records: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    overrides = [*SETTINGS, "train.max_steps=2", "data.sample_by=paragraph", "data.formats=book.txt=text"]
    overrides += ["data.max_length=120", "data.weights=book.txt=0.5"]
    folder = run([str(records), str(book)], tiny_llama, tmp_path / "run", *overrides)
    data = document(folder, "data.json")
    assert [(one["format"], one["weight"]) for one in data["files"]] == [("auto", 1.0), ("text", 0.5)]
    assert sum(one["train"] for one in data["files"]) == data["split"]["train"]
    assert [one["train"] + one["validation"] + one["test"] for one in data["files"]] == [20, 40]
    names = [one["name"] for one in document(folder, "comparison.json")["metrics"]]
    assert {"rouge_l", "document_perplexity"} <= set(names)


def gradients(data: list[str], model: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    run(data, model, folder, *overrides)
    return load_file(folder / "model" / "model.safetensors")


def test_a_weight_of_two_is_a_file_that_was_given_twice(records: Path, tiny_llama: Path, tmp_path: Path) -> None:
    lines = records.read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "b.jsonl").write_text("".join(lines[2:4]))
    shutil.copy(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
    whole = [*SETTINGS, "train.max_steps=1", "data.validation_share=0", "data.test_share=0", "train.eval_steps=1"]
    whole += ["data.max_length=120", "train.keep=last", "train.max_grad_norm=0"]
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    weighed = gradients(files[:2], tiny_llama, tmp_path / "w", *whole, "data.weights=b.jsonl=2", "train.batch_size=4")
    twice = gradients(files, tiny_llama, tmp_path / "t", *whole, "train.batch_size=6")
    losses = [next(one["loss"] for one in steps(tmp_path / name) if "loss" in one) for name in ("w", "t")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all((weighed[name] - twice[name]).abs().max() < 1e-4 for name in weighed)


def test_shares_of_files_are_counted_and_a_mixed_run_goes_on_to_the_same_weights(
    records: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = records.read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:15]))
    (tmp_path / "b.jsonl").write_text("".join(lines[15:]))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    mixed = [*SETTINGS, "data.max_length=120", "data.test_share=0", "data.interleave_probs=0.5,0.5"]
    once = gradients(files, tiny_llama, tmp_path / "once", *mixed)
    counted = document(tmp_path / "once", "data.json")["files"]
    most = max(one["train"] for one in counted)
    assert [one["examples_an_epoch"] for one in counted] == [most, most]
    assert [one["times_an_epoch"] for one in counted] == [most / one["train"] for one in counted]
    save = RunDir.append_metrics

    def cut_off(self: RunDir, row: Any) -> None:
        save(self, row)
        if row.get("step") == 5 and "loss" in row:
            raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "append_metrics", cut_off)
        with pytest.raises(CutOffError):
            run(files, tiny_llama, tmp_path / "again", *mixed)
    again = gradients(files, tiny_llama, tmp_path / "again", *mixed)
    assert all(bool((again[name] == once[name]).all()) for name in once)


@pytest.mark.parametrize("place", ["documents", "documents/base.jsonl"])
def test_a_place_of_documents_that_holds_something_else_is_refused(place: str, tmp_path: Path) -> None:
    wrong = tmp_path / "run" / place
    wrong.parent.mkdir(parents=True)
    wrong.mkdir() if place.endswith("l") else wrong.write_text("")
    with pytest.raises(ConfigError, match=r"documents.*: is a (file|folder), and the run keeps a"):
        check_places(tmp_path / "run")


def test_what_documents_cost_is_forgotten_with_the_answers_where_the_data_is_read_otherwise(tmp_path: Path) -> None:
    begun = {"data.max_length": 48, "train.batch_size": 3}
    files = [f"{what}/{name}.jsonl" for what in ("answers", "general", "documents") for name in ("base", "tuned")]
    for key, value, is_kept in (("train.batch_size", 4, True), ("data.max_length", 64, False)):
        folder = RunDir(tmp_path / key)
        begin_or_resume(folder, "book.txt", "run", Config(), begun, [], Terminal(quiet=True))
        for name in files:
            folder.write_finished(name, [])
        folder.record = folder.begun
        begin_or_resume(folder, "book.txt", "run", Config(), begun | {key: value}, [key], Terminal(quiet=True))
        assert [(folder.path / name).exists() for name in files] == [is_kept] * len(files)
        assert [name in folder.begun.files for name in files] == [is_kept] * len(files)
        folder.close()


@pytest.mark.parametrize("override", ["judge.model=openai/none", "report.gate=rouge_l>=0"])
def test_what_needs_answers_is_refused_before_a_run_on_documents(
    book: Path, tiny_llama: Path, tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneful.runs import setup

    monkeypatch.setattr(setup, "check_judge_is_there", lambda config: None)
    with pytest.raises(ConfigError, match="documents have none"):
        run(str(book), tiny_llama, tmp_path / "run", *TEXT, override)


def test_one_file_of_text_says_how_to_make_documents_of_it(book: Path, tiny_llama: Path, tmp_path: Path) -> None:
    from tuneful.errors import DataError

    with pytest.raises(DataError, match=r"one document; data\.sample_by=paragraph"):
        run(str(book), tiny_llama, tmp_path / "run", *SETTINGS, "train.objective=text")
