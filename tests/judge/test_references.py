"""An answer is never judged against itself: where answer and reference would come from one column, it is said, not done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.judge.test_verdicts import Scripted, scoring

from tuneful.config import Config, DataConfig, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, DataError
from tuneful.evaluation.answered import read_answered
from tuneful.judge.client import Reply
from tuneful.judge.items import AnswerSet
from tuneful.judge.questions import load_prompt
from tuneful.judge.run import answer_sets, evaluation_document, judge_sets, limited, open_cache, warn_of_copies

ASKED = {"instruction": "Name a bay {n}.", "generator": "m"}
ROWS = {
    "alpaca": {**ASKED, "output": "Bay {n} of Biscay."},
    "dolly": {**ASKED, "response": "Bay {n} of Biscay."},
    "prompt-completion": {"prompt": "Name a bay {n}.", "completion": "Bay {n} of Biscay."},
    "question-answer": {"question": "Name a bay {n}.", "answer": "Bay {n} of Biscay."},
}
ANSWER_OF = {"alpaca": "output", "dolly": "response", "prompt-completion": "completion", "question-answer": "answer"}


def file_of(path: Path, row: dict[str, Any], count: int = 4) -> Path:
    rows = [{key: value.format(n=n) for key, value in row.items()} for n in range(count)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def settings(*given: str) -> Config:
    return load_config(None, ["judge.model=ollama/a", *given])


def judged(sets: list[AnswerSet], config: Config, folder: Path) -> tuple[Scripted, list[dict[str, Any]]]:
    """The judge that was asked, and the rows that were written of the first set."""
    judge = Scripted(scoring(70))
    with open_cache(folder) as cache:
        judge_sets(sets, judge, config, cache, folder, Terminal(quiet=True))
    lines = (folder / "scores" / f"{sets[0].name}.jsonl").read_text(encoding="utf-8").splitlines()
    return judge, [json.loads(line) for line in lines]


@pytest.mark.parametrize("format", ROWS)
def test_an_answer_that_is_the_reference_of_its_row_is_refused_by_name(tmp_path: Path, format: str) -> None:
    file = file_of(tmp_path / "their.json", ROWS[format])
    key = ANSWER_OF[format]
    for measure in (
        lambda: answer_sets(file, settings(), [key]),
        lambda: read_answered(str(file), DataConfig(), key),
    ):
        with pytest.raises(
            DataError, match=rf"`{key}` is the answer, and the only reference .* judge.use_reference=false"
        ):
            measure()


def test_a_column_that_a_setting_makes_the_reference_is_no_answer_either(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", {"instruction": "Name a bay {n}.", "model_response": "Bay {n}."})
    config = settings("data.columns=output=model_response")
    with pytest.raises(DataError, match="`model_response` is the answer, and the only reference"):
        answer_sets(file, config)


def test_a_column_of_the_task_is_no_answer(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", ROWS["alpaca"])
    with pytest.raises(DataError, match="`instruction` belongs to the task"):
        answer_sets(file, settings(), ["instruction"])


def test_a_text_that_holds_the_whole_record_is_no_answer(tmp_path: Path) -> None:
    whole = {**ROWS["alpaca"], "text": "### Ask:\nName a bay {n}.\n### Say:\nBay {n} of Biscay."}
    file = file_of(tmp_path / "their.json", whole)
    with pytest.raises(DataError, match="holds the whole record"):
        answer_sets(file, settings())


def test_two_columns_that_may_be_the_answer_are_not_chosen_between(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", {**ROWS["alpaca"], "text": "a bay", "model_response": "another bay"})
    with pytest.raises(DataError, match="under `text` and under `model_response`; name the one"):
        answer_sets(file, settings())
    (found,) = answer_sets(file, settings(), ["model_response"])
    assert {item.answer for item in found.items} == {"another bay"}


def test_the_advice_does_not_name_the_columns_of_the_record_as_answers(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", ROWS["alpaca"])
    with pytest.raises(DataError) as caught:
        answer_sets(file, settings())
    assert "(the row has `generator`)" in str(caught.value)
    assert "--answer-key output judge.use_reference=false" in str(caught.value)


@pytest.mark.parametrize("protocol", ["score", "rubric", "pairwise"])
def test_without_references_the_judge_is_told_of_none(tmp_path: Path, protocol: str) -> None:
    prompt = load_prompt(protocol, None, use_reference=False)
    assert "reference" not in prompt.system + prompt.user
    file = file_of(tmp_path / "their.json", ROWS["alpaca"])
    config = settings("judge.use_reference=false", f"judge.protocol={protocol}")
    other = file_of(tmp_path / "other.json", {**ROWS["alpaca"], "output": "The bay {n} of Cardigan."})
    sets = answer_sets(file, config, ["output"], other if protocol == "pairwise" else None)
    judge, _ = judged(sets, config, tmp_path / "out")
    assert all(question.user.count("Biscay") == 1 for question in judge.asked), "the answer, once"
    assert not any("<reference" in question.user for question in judge.asked)


def test_rows_without_any_reference_are_judged_without_one(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", {"instruction": "Name a bay {n}.", "model_response": "Bay {n}."})
    with pytest.raises(DataError):
        answer_sets(file, settings())
    (found,) = answer_sets(file, settings("judge.use_reference=false"))
    assert [(item.task, item.reference, item.answer) for item in found.items[:1]] == [("Name a bay 0.", None, "Bay 0.")]


def test_a_prompt_of_ones_own_asks_for_no_reference_that_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "score.txt").write_text("[system]\n{nonce}\n[user]\n{reference} {answer} {reply}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\{reference\}, which judge.use_reference=false leaves out"):
        load_prompt("score", str(tmp_path), use_reference=False)


def test_two_files_of_other_people_are_paired_by_their_tasks(tmp_path: Path) -> None:
    shown = {**ROWS["alpaca"], "model_response": "the {n}th"}
    first, second = (
        file_of(tmp_path / "a.json", shown),
        file_of(tmp_path / "b.json", {**shown, "model_response": "{n}"}),
    )
    (pairs,) = answer_sets(first, settings("judge.protocol=pairwise"), against=second)
    assert [(item.answer, item.rival) for item in pairs.items] == [(f"the {n}th", str(n)) for n in range(4)]
    third = file_of(tmp_path / "c.json", {**shown, "output": "Another bay {n}."})
    with pytest.raises(DataError, match="different references to one task"):
        answer_sets(first, settings("judge.protocol=pairwise"), against=third)


# Rows that carry two answers

TWO = {**ROWS["alpaca"], "model 1 response": "Fundy {n}", "model 2 response": "Hudson {n}"}


def test_rows_that_carry_two_answers_are_judged_in_one_go(tmp_path: Path) -> None:
    file = file_of(tmp_path / "both.json", TWO)
    first, second = answer_sets(file, settings())
    assert (first.name, second.name) == ("both-model-1-response", "both-model-2-response")
    assert (first.items[2].answer, second.items[2].answer) == ("Fundy 2", "Hudson 2")
    named = answer_sets(file, settings(), ["model 2 response", "generator"])
    assert [one.name for one in named] == ["both-model-2-response", "both-generator"]
    (pairs,) = answer_sets(file, settings("judge.protocol=pairwise"))
    assert pairs.name == "both-model-1-response-against-both-model-2-response"
    assert (pairs.items[3].answer, pairs.items[3].rival) == ("Fundy 3", "Hudson 3")


def test_one_key_twice_or_three_under_pairwise_are_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path / "both.json", TWO)
    for keys, protocol in ((["generator"] * 2, "score"), ([*list(TWO)[-2:], "generator"], "pairwise")):
        with pytest.raises(ConfigError, match="--answer-key"):
            answer_sets(file, settings(f"judge.protocol={protocol}"), keys)


# What is doubtful is asked about


class Heard(Terminal):
    """Keeps what is said in yellow."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warned: list[str] = []

    def say(self, line: Any = "", style: str | None = None, *, wrap: bool = True) -> None:
        if style == "yellow":
            self.warned.append(str(line))


def test_answers_that_are_all_their_references_are_asked_about(tmp_path: Path) -> None:
    file = file_of(tmp_path / "copies.json", {**ROWS["alpaca"], "model_response": "Bay {n} of Biscay."})
    terminal = Heard()
    warn_of_copies(answer_sets(file, settings()), terminal)
    assert "all 4 answers are, word for word, their references" in terminal.warned[0]
    terminal.warned.clear()
    warn_of_copies(answer_sets(file, settings(), ["generator"]), terminal)
    assert terminal.warned == []


@pytest.mark.parametrize(("scores", "end"), [([1, 0.8, 0], 1), ([4, 5, 3], 5), ([9, 10, 7], 10), ([9, 80, 7], None)])
def test_a_judge_whose_scores_stay_low_is_asked_about(tmp_path: Path, scores: list[float], end: int | None) -> None:
    file = file_of(tmp_path / "their.json", {**ROWS["alpaca"], "model_response": "x{n}"}, count=len(scores))
    config, given, terminal = settings(), iter(scores), Heard()
    sets = answer_sets(file, config)
    judge = Scripted(lambda question: scoring(next(given))(question))
    with open_cache(tmp_path) as cache:
        verdicts, _ = judge_sets(sets, judge, config, cache, tmp_path, Terminal(quiet=True))
    evaluation_document(judge, config, verdicts, terminal, None)
    warned = [line for line in terminal.warned if "grade up to" in line]
    assert (f"grade up to {end}?" in warned[0]) if end else warned == []


def test_a_limit_judges_the_first_of_each_set(tmp_path: Path) -> None:
    file = file_of(tmp_path / "both.json", TWO)
    sets = limited(answer_sets(file, settings()), 2)
    assert [[item.answer for item in one.items] for one in sets] == [["Fundy 0", "Fundy 1"], ["Hudson 0", "Hudson 1"]]
    with pytest.raises(ConfigError, match="leaves nothing to judge"):
        limited(sets, 0)


# Reasons


def test_a_reason_is_kept_beside_its_score_where_it_was_asked_for(tmp_path: Path) -> None:
    file = file_of(tmp_path / "their.json", {**ROWS["alpaca"], "model_response": "x{n}"})
    config = settings("judge.reason=true")
    sets = answer_sets(file, config)
    reply = {"reason": "no year is named", "score": 40}
    judge = Scripted(lambda question: Reply(json.dumps({"id": question.nonce, **reply})))
    with open_cache(tmp_path) as cache:
        verdicts, _ = judge_sets(sets, judge, config, cache, tmp_path, Terminal(quiet=True))
    assert [verdict.reason for verdict in verdicts[sets[0].name]] == ["no year is named"] * 4
    rows = (tmp_path / "scores" / "their.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[0])["reason"] == "no year is named"
    schema = judge.asked[0].schema
    assert schema is not None
    assert schema["required"] == ["id", "reason", "score"], "the reason comes before the score that it gives reason for"
    assert '"reason": "...", "score": N' in judge.asked[0].user
