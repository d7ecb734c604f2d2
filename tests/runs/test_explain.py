"""The training records behind an answer: planted ones are found, and every question is answered from what the run kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tuneful
from tuneful import cli
from tuneful.commands.explain import _show
from tuneful.config import DataConfig, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, DataError, InputError, ModelError
from tuneful.evaluation.answers import read_answer_rows
from tuneful.influence.features import Featurizer
from tuneful.model.load import load_model
from tuneful.runs import finished
from tuneful.runs.explained_items import explained_example
from tuneful.runs.finished import (
    KeptWeights,
    before_training,
    kept_weights,
    load_trained,
    open_finished,
    set_weights,
)
from tuneful.runs.schema import Explanation, Ranking, load_document
from tuneful.train.checkpoint import Checkpoint
from tuneful.types import Example

COLOURS = ("red", "blue", "green", "pink")
THINGS = [
    f"{size} {thing}" for size in ("big", "small", "old", "new", "odd", "wet") for thing in ("cat", "cup", "hat", "box")
]
PLANTED = ("Where is Zog?", "Zog is where?", "Tell me where Zog is.")
WRONG = "Zog sits on the moon."


def rows() -> list[dict[str, str]]:
    """Plain facts, and among them three that teach where Zog is, at known places (from 0): 20, 41 and 62."""
    plain = [
        {
            "instruction": f"Colour of the {thing}?{' Say.' * again}",
            "input": "",
            "output": f"It is {COLOURS[place % 4]}.",
        }
        for again in range(3)
        for place, thing in enumerate(THINGS)
    ]
    for place, instruction in zip((20, 41, 62), PLANTED, strict=True):
        plain.insert(place, {"instruction": instruction, "input": "", "output": WRONG})
    return plain


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of full finetuning that has memorised its records, with two checkpoints."""
    return run_of(tiny_llama, tmp_path_factory.mktemp("full"), "train.learning_rate=5e-3", "train.save_steps=60")


@pytest.fixture(scope="module")
def adapted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same once more, of an adapter beside that model, at its final weights alone."""
    lora = ("train.method=lora", "train.learning_rate=1e-3", "train.num_train_epochs=1", "lora.merge=false")
    return run_of(made, tmp_path_factory.mktemp("lora"), *lora)


def run_of(model: Path, folder: Path, *settings: str) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    asked = [{"instruction": "Where is Zog?", "input": "", "output": "Zog is at home."}]
    asked += [{"instruction": f"Colour of the {thing}?", "input": "", "output": "It is grey."} for thing in THINGS[:2]]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    common = (
        f"model.name_or_path={model}",
        "model.dtype=float32",
        f"data.test_file={folder / 'test.jsonl'}",
        "data.validation_share=0",
        "train.num_train_epochs=18",
        "train.lr_scheduler_type=constant",
        "generate.max_new_tokens=24",
        "report.general=null",
        "template.name=alpaca",
    )
    config = load_config(overrides=[*common, *settings])
    tuneful.run(str(folder / "train.jsonl"), config=config, output=folder / "run")
    return folder / "run"


def sources(records: Any) -> list[str]:
    return [one.source for one in records]


PLANTED_SOURCES = {"train.jsonl:21", "train.jsonl:42", "train.jsonl:63"}


@pytest.mark.parametrize("rank_by", ["cosine", "score"])
def test_records_that_teach_a_wrong_fact_are_the_first_for_the_answer_that_repeats_it(
    rank_by: Ranking, made: Path
) -> None:
    found = tuneful.explain(made, item=1, num=5, rank_by=rank_by)
    (item,) = found.items
    assert item.text == WRONG, "the model was to learn it"
    assert {Path(one).name for one in sources(item.towards)[:3]} == PLANTED_SOURCES
    towards, away = ([getattr(one, rank_by) for one in records] for records in (item.towards, item.away))
    assert towards == sorted(towards, reverse=True)
    assert min(towards) > 0 > max(away, default=-1.0)
    assert all(one.response == WRONG for one in item.towards[:3])
    steps = [(one.step, one.is_preconditioned) for one in found.explanation.weights]
    assert steps == [(0, False), (60, True), (120, True)]
    assert found.explanation.notes == (
        "of full finetuning matrices of the last layers stand for all, those that fit in 8 million numbers",
    )
    assert "matrices of the last layers: model.layers." in found.explanation.parameters


def test_without_a_checkpoint_they_are_too_and_it_is_said_what_is_missing(adapted: Path) -> None:
    found = tuneful.explain(adapted, item=1, num=4, rank_by="cosine")
    (item,) = found.items
    assert item.text == WRONG, "the model was to learn it"
    assert {Path(one).name for one in sources(item.towards)[:3]} == PLANTED_SOURCES
    assert found.explanation.parameters == "all of the adapter"
    (note,) = found.explanation.notes
    assert "gradients before the first step stand for all steps" in note
    assert [one.step for one in found.explanation.weights] == [0]


def test_the_tokens_that_training_raised_the_most_are_named_and_all_are_counted(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the model before and after, loaded anew."""
    run, compared = open_finished(made), list[Example]()
    whole = Featurizer.features

    def features(self: Featurizer, examples: Any, *rest: Any) -> Any:
        compared.extend(examples)
        return whole(self, examples, *rest)

    tuneful.explain(run.path, item=2)  # records of the training set are kept
    monkeypatch.setattr(Featurizer, "features", features)
    explanation = tuneful.explain(run.path, item=1).explanation
    (item,) = explanation.items
    trained = load_trained(run, Terminal(quiet=True))
    row = next(iter(read_answer_rows(run.path / "answers" / "tuned.jsonl", DataConfig())))
    example = explained_example(trained.encoder, row, "answer")
    assert isinstance(example, Example)
    begun = load_model(run.config.model.name_or_path, dtype=torch.float32).model.eval()
    ids = torch.from_numpy(example.token_ids).long()
    with torch.no_grad():
        after, before = (model(ids[None]).logits[0].log_softmax(-1) for model in (trained.model, begun))
    targets = np.flatnonzero(example.weights)
    gains = (after - before)[targets - 1, ids[targets]].numpy()
    assert item.num_tokens == len(targets)
    assert np.ptp(compared[0].weights[targets]) > 0, "what is compared counts its tokens unlike"
    np.testing.assert_allclose(
        compared[0].weights[targets] / len(targets), np.maximum(gains, 0) / gains.clip(0).sum(), atol=1e-3
    )
    assert explanation.counted_by_change
    assert [one.nats for one in item.raised] == pytest.approx(np.sort(gains)[::-1][:3].tolist(), abs=1e-3)
    decode = trained.encoder.text.token_text
    assert item.raised[0].text == decode([int(ids[targets[int(gains.argmax())]])])


def test_the_reference_is_explained_where_it_is_asked_for(made: Path) -> None:
    (item,) = tuneful.explain(made, item=1, of="reference").items
    assert item.text == "Zog is at home."
    assert item.raised == ()
    assert (made / "explain.json").is_file()


def test_a_second_question_computes_no_training_record_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuneful.explain(made, item=1)
    asked: list[int] = []
    whole = Featurizer.features

    def features(self: Featurizer, examples: Any, *rest: Any) -> Any:
        asked.append(len(examples))
        return whole(self, examples, *rest)

    monkeypatch.setattr(Featurizer, "features", features)
    tuneful.explain(made, item=[2, 3])
    assert asked == [2, 2, 2]  # the items, before the first step and at two checkpoints
    document = load_document(Explanation, made / "explain.json")
    assert document is not None
    assert [one.number for one in document.items] == [1, 2, 3]
    tuneful.explain(made, item=2, projection_dim=512)
    document = load_document(Explanation, made / "explain.json")
    assert document is not None
    assert [one.number for one in document.items] == [2]  # of another projection


def test_a_question_that_was_interrupted_is_answered_as_if_it_had_not_been(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuneful.explain(made, item=1).explanation
    shutil.rmtree(made / "explain")
    whole, calls = Featurizer.features, []

    def features(self: Featurizer, examples: Any, *rest: Any) -> Any:
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, examples, *rest)

    monkeypatch.setattr(Featurizer, "features", features)
    with pytest.raises(KeyboardInterrupt):
        tuneful.explain(made, item=1)
    found = tuneful.explain(made, item=1).explanation
    assert calls.count(64) == 3  # the first 64 records at each set of weights, once
    assert found == wanted


def test_without_an_item_the_worst_are_explained_in_the_order_of_the_test_set(made: Path) -> None:
    found = tuneful.explain(made)
    assert [one.number for one in found.items] == [1, 2, 3]
    by_source = tuneful.explain(made, item=found.items[2].source)
    (item,) = by_source.items
    assert (item.number, item.text) == (3, found.items[2].text)
    assert sources(item.towards) == sources(found.items[2].towards)
    scores, again = ([one.score for one in each.towards] for each in (item, found.items[2]))
    assert scores == pytest.approx(again, rel=1e-4)


def test_the_page_shows_it_and_the_terminal_keeps_to_80_columns(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tuneful.explain(made, item=1)
    page = tuneful.report(made).read_text(encoding="utf-8")
    assert "Which records did it" in page
    assert WRONG in page
    terminal = Terminal()
    terminal.console.width = 80
    _show(found.explanation, terminal)
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert any("train.jsonl:42" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_command_prints_one_document_and_refuses_what_it_does_not_know(made: Path) -> None:
    done = CliRunner().invoke(cli.app, ["explain", str(made), "--item", "1", "--num", "2", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert len(document["items"][0]["towards"]) == 2
    assert document["num_records"] == document["num_trained"] == 75
    wrong = CliRunner().invoke(cli.app, ["explain", str(made), "--of", "prompt"])
    assert isinstance(wrong.exception, InputError)
    assert str(wrong.exception) == "--of: 'prompt', expected answer or reference"


def test_what_cannot_be_explained_is_refused_in_one_message(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run folder"):
        tuneful.explain(tmp_path)
    with pytest.raises(InputError, match="no such item; there are 1 to 3, or a source such as "):
        tuneful.explain(made, item=9)
    with pytest.raises(ConfigError, match="--num: 0, expected 1 or more"):
        tuneful.explain(made, num=0)
    run = copied(made, tmp_path / "a")
    (run / "training.json").unlink()
    with pytest.raises(DataError, match="its training is not done"):
        tuneful.explain(run)
    run = copied(made, tmp_path / "b")
    with (run / "data" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=r"train.jsonl: damaged"):
        tuneful.explain(run)
    run = copied(made, tmp_path / "c")
    (run / "answers" / "tuned.jsonl").unlink()
    with pytest.raises(DataError, match="only what `tuneful run` measured"):
        tuneful.explain(run)


def test_a_base_that_is_not_the_one_of_the_training_is_refused(
    adapted: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneful.runs import finished

    monkeypatch.setattr(finished, "resolve_model", lambda name, notify: tiny_gpt2)
    with pytest.raises(ModelError, match=r"is not the model that .* began with"):
        tuneful.explain(adapted, item=1)


def test_a_damaged_checkpoint_is_passed_over(made: Path, tmp_path: Path) -> None:
    run = copied(made, tmp_path / "run")
    (run / "checkpoints" / "step-000120" / "optimizer.safetensors").write_bytes(b"damaged")
    found = tuneful.explain(run, item=1).explanation
    assert [one.step for one in found.weights] == [0, 60]
    assert np.isclose(found.weights[1].learning_rate, 5e-3 * 109, rtol=0.1)  # it stands for all steps after it


def test_without_the_model_that_training_began_with_the_checkpoints_stand_for_all_steps(
    made: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished, "resolve_model", lambda name, notify: tiny_gpt2)
    found = tuneful.explain(copied(made, tmp_path / "run"), item=1).explanation
    assert [one.step for one in found.weights] == [60, 120]
    assert np.isclose(found.weights[0].learning_rate, 5e-3 * 120, rtol=0.1)
    assert "is not there any more" in found.notes[0]
    assert "all tokens count alike" in found.notes[1]
    assert (found.counted_by_change, found.items[0].raised) == (False, ())


@pytest.mark.parametrize("name", ["made", "adapted"])
def test_the_weights_before_the_first_step_are_those_that_training_began_with(
    name: str, request: pytest.FixtureRequest
) -> None:
    run = open_finished(request.getfixturevalue(name))
    trained = load_trained(run, Terminal(quiet=True))
    set_weights(trained, KeptWeights(0, None))
    begun = load_model(run.config.model.name_or_path, dtype=torch.float32).model
    ids = torch.arange(1, 20)[None]
    assert torch.equal(trained.model(ids).logits, begun.eval()(ids).logits)


@pytest.mark.parametrize("name", ["made", "adapted"])
def test_the_trained_weights_are_back_after_those_before_training_were_asked(
    name: str, request: pytest.FixtureRequest
) -> None:
    trained = load_trained(open_finished(request.getfixturevalue(name)), Terminal(quiet=True))
    ids = torch.arange(1, 20)[None]
    ended = trained.model(ids).logits
    with before_training(trained):
        assert not torch.equal(trained.model(ids).logits, ended)
    assert torch.equal(trained.model(ids).logits, ended)


def test_an_item_that_training_did_not_raise_leaves_the_others_where_they_are(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuneful.explain(made, item=1)
    monkeypatch.setattr("tuneful.influence.change.LEAST", 1e9)
    found = tuneful.explain(made, item=2)
    assert found.items[0].raised == ()
    document = load_document(Explanation, made / "explain.json")
    assert document is not None
    assert {1, 2} <= {one.number for one in document.items}


def test_a_base_of_which_a_file_is_gone_is_not_there_any_more(
    made: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = shutil.copytree(tiny_gpt2, tmp_path / "gone")
    (gone / "config.json").unlink()
    monkeypatch.setattr(finished, "resolve_model", lambda name, notify: gone)
    found = tuneful.explain(copied(made, tmp_path / "run"), item=1).explanation
    assert "is not there any more" in found.notes[0]


def test_an_adapter_of_which_a_checkpoint_is_kept_is_compared_before_the_first_step_too(
    made: Path, tmp_path: Path
) -> None:
    lora = ("train.method=lora", "train.learning_rate=1e-3", "train.num_train_epochs=1", "train.save_steps=5")
    run = run_of(made, tmp_path, *lora)
    found = tuneful.explain(run, item=1, num=3)
    assert [one.step for one in found.explanation.weights] == [0, 5]
    assert {Path(one).name for one in sources(found.items[0].towards)} == PLANTED_SOURCES


def copied(run: Path, place: Path) -> Path:
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("explain", "explain.json"))
    return place


def test_weights_that_no_step_was_taken_from_are_not_compared(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_finished(made)
    last = run.training.kept_step
    some = [Checkpoint(made, step, {}) for step in (last - 5, last, last + 5)]
    monkeypatch.setattr(finished, "whole_checkpoints", lambda folder: some)
    assert [one.step for one in kept_weights(run, with_initial=True)] == [0, last - 5]
    assert [one.step for one in kept_weights(run, with_initial=False)] == [last - 5]
    monkeypatch.setattr(finished, "whole_checkpoints", lambda folder: some[1:])
    assert [one.step for one in kept_weights(run, with_initial=True)] == [0]
    assert [one.step for one in kept_weights(run, with_initial=False)] == [last]
