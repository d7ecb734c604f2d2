"""Whole runs that learn preferences: the reference is computed once and kept, a run that is cut off goes on to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.runs.test_resume import CutOffError, Heard, cut_off_after

from tuneful.commands import run as api
from tuneful.commands.compare import compare
from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, OutOfMemoryError
from tuneful.runs.data_files import check_sides
from tuneful.runs.folder import RunDir
from tuneful.runs.job import estimate_job
from tuneful.runs.preference import REFERENCE, _known
from tuneful.runs.resume import begin_or_resume
from tuneful.runs.schema import ReferenceDocument
from tuneful.signals import Interrupted
from tuneful.train.loop import mean_costs, no_op
from tuneful.train.loss import micro_batch_loss

WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal"]
PAIRS = [
    {"prompt": f"Say {word} {num}.", "chosen": f"{word} {num}", "rejected": f"{word} no {WORDS[(num + at) % 10]}"}
    for at, word in enumerate(WORDS)
    for num in (1, 2)
]
LABELS = [
    {"prompt": row["prompt"], "completion": row["chosen" if at % 2 else "rejected"], "label": bool(at % 2)}
    for at, row in enumerate(PAIRS)
]
SETTINGS = [
    "train.batch_size=4",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=2",
    "train.learning_rate=1e-2",
    "train.micro_batch_tokens=90",
    "train.warmup_steps=0",
    "data.validation_share=0.2",
    "data.test_share=0.2",
    "report.general=none",
    "model.dtype=float32",
]


def test_a_judge_is_refused_where_the_test_set_has_no_answer_that_is_wanted() -> None:
    nobody: Any = []
    config = load_config(None, ["train.objective=kto", "judge.model=ollama/any"])
    with pytest.raises(ConfigError, match=r"`judge.model` needs test records with label true"):
        check_sides("run", config, (), nobody, nobody, nobody, ())
    check_sides("train", config, (), nobody, nobody, nobody, ())


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("preferences") / "pairs.json", PAIRS)


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def trained(model: Path, data: Path, folder: Path, *settings: str, heard: Heard | None = None) -> Path:
    config = load_config(None, [f"model.name_or_path={json.dumps(str(model))}", *SETTINGS, *settings])
    api.train(str(data), config=config, output=folder, terminal=heard)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = lines(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(folder) if "loss" in row]


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="session")
def straight(tiny_llama: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    heard = Heard()
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return trained(tiny_llama, pairs, folder, "train.objective=dpo", heard=heard), heard


def test_a_run_begins_at_ln_2_and_leaves_its_figures(straight: tuple[Path, Heard]) -> None:
    folder, heard = straight
    assert "before the first step every reward is exactly 0" in heard
    assert steps(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert steps(folder)[0]["rewards_margins"] == 0
    assert steps(folder)[-1]["rewards_margins"] > 0
    assert {"rewards_chosen", "rewards_rejected", "logps_chosen", "chosen_logratio"} <= steps(folder)[-1].keys()
    assert all(0 <= row["validation_accuracy"] <= 1 for row in metrics(folder) if "validation_loss" in row)
    held_out = document(folder, "preferences.json")
    assert held_out["subset"] == "test"
    assert held_out["accuracy_low"] <= held_out["accuracy"] <= held_out["accuracy_high"]
    assert held_out["confidence"] == 0.95
    assert "preference accuracy" in heard
    assert "95% interval" in heard
    assert "preference_accuracy" in document(folder, "environment.json")["estimated_seconds"]
    num_sides = 2 * len(PAIRS)  # some are alike
    assert 0 < len(document(folder, "reference.json")["logps"]) <= num_sides


def _cut_in_half(text: str) -> str:
    return text[: len(text) // 2]


def _another_digit(text: str) -> str:
    document = json.loads(text)
    document["logps"] = {key: logp - 1e-9 for key, logp in document["logps"].items()}
    return json.dumps(document)


@pytest.mark.parametrize("damage", [None, _cut_in_half, _another_digit])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(
    damage: Callable[[str], str] | None, straight: tuple[Path, Heard], tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    folder, heard = tmp_path / "run", Heard()
    with pytest.MonkeyPatch.context() as patch:
        cut_off_after(5, patch)
        with pytest.raises(CutOffError):
            trained(tiny_llama, pairs, folder, "train.objective=dpo")
    if damage is not None:
        (folder / "reference.json").write_text(damage((folder / "reference.json").read_text()))
    trained(tiny_llama, pairs, folder, "train.objective=dpo", heard=heard)
    assert "going on after step 2" in heard
    assert ("the reference is computed again" in heard) == (damage is not None)
    assert metrics(folder) == metrics(straight[0])
    assert document(folder, "reference.json") == document(straight[0], "reference.json")
    weights = [one / "model" / "model.safetensors" for one in (folder, straight[0])]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_known_of_the_reference_outlasts_an_interruption(
    straight: tuple[Path, Heard], tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    folder, heard, calls = tmp_path / "run", Heard(), iter(range(3))

    def interrupted(*_: Any) -> None:
        if next(calls, None) is None:
            raise Interrupted(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuneful.runs.preference.check_signals", interrupted)
        with pytest.raises(Interrupted):
            trained(tiny_llama, pairs, folder, "train.objective=dpo")
    kept, whole = document(folder, "reference.json"), document(straight[0], "reference.json")
    assert 0 < len(kept["logps"]) < len(whole["logps"])
    trained(tiny_llama, pairs, folder, "train.objective=dpo", heard=heard)
    assert "the reference is computed again" not in heard
    assert document(folder, "reference.json") == whole


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_that_goes_on_being_trained_is_its_own_reference(
    method: str, tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = ("train.objective=dpo", f"train.method={method}", "train.max_steps=3")
    first = trained(tiny_llama, pairs, tmp_path / "first", *settings)
    second = trained(first / "adapter", pairs, tmp_path / "second", *settings)
    assert steps(first)[0]["loss"] == steps(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    before, after = (document(one, "reference.json")["logps"] for one in (first, second))
    assert before.keys() == after.keys()
    assert all(before[key] != after[key] for key in before)


def test_a_reference_that_was_made_with_something_else_is_not_taken(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    begin_or_resume(folder, "pairs.json", "train", Config(), {}, [], Terminal(quiet=True))
    folder.write_document(REFERENCE, ReferenceDocument("this model", {"a": -1.0}))
    run: Any = SimpleNamespace(folder=folder, warn=None)
    assert _known(run, "this model") == {"a": -1.0}
    assert _known(run, "another model") == {}
    folder.close()


def test_an_adapter_that_was_begun_with_dropout_learns_preferences_without(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    chosen = [{"instruction": row["prompt"], "output": row["chosen"]} for row in PAIRS]
    lora = ("train.method=lora", "train.max_steps=1")
    first = trained(tiny_llama, written(tmp_path / "sft.json", chosen), tmp_path / "sft", *lora, "lora.dropout=0.3")
    second = trained(first / "adapter", pairs, tmp_path / "dpo", *lora, "train.objective=dpo")
    assert [document(one, "adapter/adapter_config.json")["lora_dropout"] for one in (first, second)] == [0.3, 0.0]
    assert steps(second)[0]["rewards_margins"] == 0


def test_the_estimate_counts_the_reference_of_all_sides_and_the_accuracy_on_what_is_held_out(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    def phases(objective: str) -> Any:
        settings = [f"model.name_or_path={json.dumps(str(tiny_llama))}", *SETTINGS, f"train.objective={objective}"]
        return estimate_job("train", str(pairs), load_config(None, settings)).phase_seconds

    assert {"reference", "preference_accuracy"} <= phases("kto").keys()
    assert "reference" not in phases("orpo")


def test_what_is_held_out_is_measured_within_the_memory_that_the_training_found(
    tiny_llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def small(model: Any, batch: Any, layout: Any) -> Any:
        if torch.is_grad_enabled() and len(batch) > 2:  # more than a pair
            raise MemoryError
        return micro_batch_loss(model, batch, layout)

    def measured(model: Any, examples: Any, layout: Any, **settings: Any) -> Any:
        seen.append({"max_tokens": layout.max_tokens, **settings})
        if len(seen) == 1:
            raise OutOfMemoryError(3, layout.max_tokens, 20, "pairs.json:1")
        return mean_costs(model, examples, layout, **settings)

    monkeypatch.setattr("tuneful.train.loop.micro_batch_loss", small)
    monkeypatch.setattr("tuneful.runs.preference.mean_costs", measured)
    folder, heard = tmp_path / "run", Heard()
    settings = ("train.objective=orpo", "train.max_steps=1", "train.micro_batch_tokens=400")
    trained(tiny_llama, pairs, folder, *settings, heard=heard)
    assert [one["max_tokens"] < limit for one, limit in zip(seen, (400, seen[0]["max_tokens"]), strict=True)] == [
        True
    ] * 2
    assert seen[0]["should_stop"] is not no_op
    assert "out of memory" in heard
    assert document(folder, "preferences.json")["num_records"] > 0


@pytest.mark.parametrize("objective", ["orpo", "kto"])
def test_the_other_objectives_run(objective: str, tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    data = pairs if objective == "orpo" else written(tmp_path / "labels.json", LABELS)
    folder = trained(tiny_llama, data, tmp_path / "run", f"train.objective={objective}", "train.max_steps=3")
    assert (folder / "reference.json").exists() == (objective == "kto")
    assert document(folder, "preferences.json")["num_records"] > 0
    if objective == "kto":
        assert steps(folder)[0]["loss"] == 0.5
        assert steps(folder)[0]["kl"] == 0


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_files_that_are_mixed_by_share_have_the_reference_of_their_own_steps(
    objective: str, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = LABELS if objective == "kto" else PAIRS
    files = [written(tmp_path / f"{name}.json", part) for name, part in (("a", rows[:14]), ("b", rows[14:]))]
    settings = [f"train.objective={objective}", "data.interleave_probs=0.2,0.8"]
    config = load_config(None, [f"model.name_or_path={json.dumps(str(tiny_llama))}", *SETTINGS, *settings])
    api.train([str(file) for file in files], config=config, output=tmp_path / "run")
    assert len(steps(tmp_path / "run")) == 6


@pytest.mark.parametrize("setting", ["model.dropout=0.1", "lora.dropout=0.1", "data.replay=starter"])
def test_what_would_part_the_model_from_its_reference_is_refused(setting: str) -> None:
    method = ["train.method=lora"] if setting.startswith("lora") else []
    with pytest.raises(ConfigError, match=r"under train\.objective"):
        load_config(None, ["train.objective=dpo", *method, setting])


def test_the_dropout_of_the_model_is_off(tiny_gpt2: Path, pairs: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    model = tmp_path / "gpt2"
    model.mkdir()
    for file in tiny_gpt2.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    (model / "config.json").write_text(json.dumps(config | dropouts))
    folder = trained(model, pairs, tmp_path / "run", "train.objective=dpo", "train.max_steps=1")
    assert steps(folder)[0]["rewards_margins"] == 0


def test_of_labelled_records_only_wanted_answers_are_references(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    settings = ["train.objective=kto", "train.max_steps=1", "generate.max_new_tokens=2", "report.num_resamples=100"]
    config = load_config(None, [f"model.name_or_path={json.dumps(str(tiny_llama))}", *SETTINGS, *settings])
    run = api.run(str(pairs), config=config, output=tmp_path / "run")
    held_out = lines(run.path / "data" / "test.jsonl")
    wanted = [row["source"] for row in held_out if row["label"]]
    assert 2 * len(wanted) == len(held_out)
    assert [row["source"] for row in lines(run.path / "answers" / "base.jsonl")] == wanted
    assert run.comparison is not None
    assert run.comparison.num_items == len(wanted)
    assert compare(run.path, run.path).comparison.num_items == len(wanted)


def test_a_test_set_of_unwanted_answers_alone_is_not_answered(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    unwanted = written(tmp_path / "unwanted.json", [row for row in LABELS if not row["label"]])
    settings = ["train.objective=kto", "train.max_steps=1", f"data.test_file={unwanted}"]
    others = [one for one in SETTINGS if not one.startswith("data.test_share")]
    overrides = [f"model.name_or_path={json.dumps(str(tiny_llama))}", *others, *settings]
    run = api.run(str(pairs), config=load_config(None, overrides), output=tmp_path / "run")
    assert run.comparison is None
    assert document(run.path, "preferences.json")["num_records"] == len(PAIRS) // 2
    gated = load_config(None, [*overrides, "report.gate=rouge_l>=0"])
    with pytest.raises(ConfigError, match="needs test records with label true"):
        api.run(str(pairs), config=gated, output=tmp_path / "gated")
