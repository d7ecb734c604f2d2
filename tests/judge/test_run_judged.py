"""`tuneful run --judge`: both sides are judged after the answers, and the judge's score leads the comparison."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL, Request, head, honest_body, serving, tags

import tuneful
from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, JudgeError
from tuneful.judge.run import judge_run

ROWS = [
    {"instruction": f"Say {word} {num} times.", "input": "", "output": " ".join([word] * num)}
    for word in ("red", "green", "blue", "black", "white", "pink", "grey", "brown")
    for num in range(1, 5)
]


@dataclass
class Double:
    """A judge that gives references 100, nothing and repeated tasks 0, and all else by a hash; it answers nothing once it is
    `gone`."""

    origin: str
    gone: bool = False
    num_asked: int = 0

    async def behave(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.gone:
            return
        body = tags()
        if request.method == "POST":
            self.num_asked += 1
            code = hashlib.sha256(request.prompt.encode()).digest()[0]
            is_pair = "Answer A" in request.prompt
            verdict = {"winner": "AB"[code % 2]} if is_pair else {"score": self._score(request.prompt, code % 40)}
            said = {"id": request.nonce, **verdict}
            body = honest_body(request.wire, json.dumps(said))
        writer.write(head(200, length=len(body)) + body)

    @staticmethod
    def _score(prompt: str, otherwise: int) -> int:
        task, reference, answer = (
            re.search(rf"<{name} \w+>\n(.*?)\n</{name} ", prompt, re.S) for name in ("task", "reference", "answer")
        )
        assert task, prompt
        assert reference, prompt
        assert answer, prompt
        return 100 if answer[1] == reference[1] else 0 if answer[1] in ("", task[1]) else otherwise


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    judge = Double("")
    with serving(judge.behave) as origin:
        monkeypatch.setenv("OLLAMA_HOST", origin)
        judge.origin = origin
        yield judge


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(file)


def settings(model: Path, *more: str) -> Config:
    quick = ["train.max_steps=2", "train.batch_size=4", "generate.max_new_tokens=4", "report.num_resamples=200"]
    names = [f"model.name_or_path={json.dumps(str(model))}", "model.dtype=float32", f"judge.model=ollama/{MODEL}"]
    return load_config(None, [*quick, *names, "report.general=none", "data.test_share=0.2", *more])


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_is_judged_before_and_after(double: Double, data: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = tuneful.run(data, config=settings(tiny_llama), output=tmp_path / "run")
    base, tuned = (rows_of(tmp_path / "run" / "scores" / f"{name}.jsonl") for name in ("base", "tuned"))
    answered = rows_of(tmp_path / "run" / "answers" / "base.jsonl")
    assert [row["source"] for row in base] == [row["source"] for row in tuned] == [row["source"] for row in answered]
    assert result.comparison is not None
    metric = result.comparison.main
    assert (metric.name, metric.label) == ("judge_score", "Judge score (judge usable)")
    assert result.comparison.judge is not None
    assert result.comparison.judge.verdict == "usable"
    assert json.loads((tmp_path / "run" / "comparison.json").read_text())["judge"]["verdict"] == "usable"
    assert metric.base == pytest.approx(sum(row["score"] for row in base) / len(base))
    assert metric.tuned == pytest.approx(sum(row["score"] for row in tuned) / len(tuned))
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["answers"]["base"]["num_unscored"] == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "passed every probe on these items." in page
    for folder in (tmp_path, tiny_llama.parent):  # the run was asked for with absolute paths
        assert str(folder) not in page
    asked = double.num_asked
    again = judge_run(tmp_path / "run", settings(tiny_llama), Terminal(quiet=True))
    assert again is not None
    assert again.scores == {"base": [row["score"] for row in base], "tuned": [row["score"] for row in tuned]}
    assert again.finding == result.comparison.judge
    assert double.num_asked == asked, "judged again, nothing is asked again"
    paired = judge_run(tmp_path / "run", settings(tiny_llama, "judge.protocol=pairwise"), Terminal(quiet=True))
    assert paired is not None
    sides = zip(paired.scores["base"], paired.scores["tuned"], strict=True)
    assert [(b or 0) + (t or 0) for b, t in sides] == [100] * len(base)
    double.gone = True
    assert judge_run(tmp_path / "run", settings(tiny_llama), Terminal(quiet=True)) is None


def test_a_judge_that_gives_everything_100_is_found_out_and_is_not_the_headline(
    double: Double, data: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Double, "_score", staticmethod(lambda prompt, otherwise: 100))
    result = tuneful.run(
        data, config=settings(tiny_llama, "report.gate=judge_score>=0"), output=tmp_path / "run"
    ).comparison
    assert result is not None
    assert result.main.name == "rouge_l"
    assert result.judge is not None
    assert result.judge.verdict == "not usable"
    assert result.judge.sentence in str(result.sentence)
    assert result.gate is not None
    assert (result.gate[0].found, result.gate[0].met) == (None, False)


def test_a_judge_that_is_not_there_is_noticed_before_the_work(
    double: Double, data: str, tiny_llama: Path, tmp_path: Path
) -> None:
    double.gone = True
    with pytest.raises(JudgeError, match="Ollama is not to be reached"):
        tuneful.run(data, config=settings(tiny_llama), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gate_on_the_judge_needs_a_judge(data: str, tiny_llama: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, "judge.model=null", "report.gate=judge_score>=0")
    with pytest.raises(ConfigError, match=r"needs a judge, and judge\.model names none"):
        tuneful.run(data, config=config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", ["score", "pairwise"])
def test_a_dry_run_asks_a_few_questions_and_says_how_many_there_will_be(
    protocol: str, data: str, tiny_llama: Path, double: Double, tmp_path: Path
) -> None:
    config = settings(tiny_llama, f"judge.protocol={protocol}", "judge.concurrency=2")
    estimate = tuneful.dry_run("run", data, config=config)
    asked, double.num_asked = double.num_asked, 0
    assert asked == 2
    assert estimate.phase_seconds["judging"] > 0
    result = tuneful.run(data, config=config, output=tmp_path / "run")
    assert 0 < double.num_asked <= estimate.num_judge_questions  # of equal answers one is asked about
    taken = json.loads((result.path / "environment.json").read_text())["phase_seconds"]
    assert "judging" in taken
    double.gone = True
    assert tuneful.dry_run("train", data, config=config).num_judge_questions == 0
