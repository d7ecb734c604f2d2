"""`tuneful evaluate` from the command line: files in, one verdict an item out, and one message where it cannot be."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL, Request, head, honest_body, said, serving, tags

from tuneful.cli import main
from tuneful.evaluation.ratings import text_sha256

Evaluate = Callable[..., tuple[int, str, str]]
ROWS = [
    {"instruction": f"Item number {n}.", "input": "", "output": f"{n}", "model_response": f"it is {n}"}
    for n in range(7)
]


@pytest.fixture
def honest() -> Iterator[tuple[str, list[Request]]]:
    """A server that gives item n the score 10 n, and what it was asked."""
    seen: list[Request] = []

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "GET":
            body = tags()
        else:
            seen.append(request)
            body = honest_body(request.wire, said(request, 10 * request.item))
        writer.write(head(200, length=len(body)) + body)

    with serving(behave) as origin:
        yield origin, seen


@pytest.fixture
def evaluate(
    honest: tuple[str, list[Request]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Evaluate:
    """Runs `tuneful evaluate` in `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", honest[0])
    monkeypatch.setenv("OPENAI_BASE_URL", f"{honest[0]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-4711")
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> tuple[int, str, str]:
        # Tests here count questions; test_probing.py is about those that come first.
        probes = [] if any("num_probes" in one for one in arguments) else ["judge.num_probes=0"]
        monkeypatch.setattr(sys, "argv", ["tuneful", "evaluate", *arguments, *probes])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return run


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_folder(path: Path) -> Path:
    records = [{**row, "source": f"my.json:{n}"} for n, row in enumerate(ROWS)]
    written(path / "data" / "test.jsonl", records)
    for name in ("base", "tuned"):
        answers = [
            {"source": row["source"], "prompt": "p", "text": f"{name} says {n}"} for n, row in enumerate(records)
        ]
        written(path / "answers" / f"{name}.jsonl", answers)
    return path


@pytest.mark.parametrize("wire", ["ollama", "openai"])
def test_a_file_of_others_is_scored_as_it_is(evaluate: Evaluate, tmp_path: Path, wire: str) -> None:
    written(tmp_path / "theirs.jsonl", ROWS)
    code, out, err = evaluate("theirs.jsonl", "--judge", f"{wire}/{MODEL}", "--output", "out", "--json")
    assert code == 0, err
    rows = rows_of(tmp_path / "out" / "scores" / "theirs.jsonl")
    assert [list(row) for row in rows] == [["source", "judge", "protocol", "score", "unscored_reason", "raw"]] * 7
    assert [(row["source"], row["score"]) for row in rows] == [(f"theirs.jsonl:{n + 1}", 10 * n) for n in range(7)]
    found = json.loads(out)["answers"]["theirs"]
    assert (found["num_scored"], found["num_unscored"], found["mean"]) == (7, 0, 30)
    assert json.loads(out) == json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert "7 + 0 = 7" in err


def test_a_run_folder_is_judged_before_and_after(
    evaluate: Evaluate, honest: tuple[str, list[Request]], tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run")
    code, _, err = evaluate("run", "--judge", f"ollama/{MODEL}")
    assert code == 0, err
    assert len(rows_of(run / "scores" / "base.jsonl")) == len(rows_of(run / "scores" / "tuned.jsonl")) == 7
    assert len(honest[1]) == 14
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert evaluate("run/answers/tuned.jsonl", "--judge", f"ollama/{MODEL}")[0] == 0
    assert len(honest[1]) == 14, "what was judged is not judged again"
    assert (run / "scores" / "tuned.jsonl").read_bytes() == before[run / "scores" / "tuned.jsonl"]


def test_a_gate_on_the_judges_scores_decides_the_exit_of_a_file_and_of_a_run(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    written(tmp_path / "theirs.jsonl", ROWS)
    arguments = ["theirs.jsonl", "--judge", f"ollama/{MODEL}", "--output", "out", "--gate"]
    assert evaluate(*arguments, "judge_score.value>=30")[0] == 0
    code, _, err = evaluate(*arguments, "judge_score.value>30")
    assert (code, "judge_score.value>30 (found 30.0000)" in err) == (3, True), err
    run_folder(tmp_path / "run")
    code, out, err = evaluate("run", *arguments[1:3], "--json", "--gate", "judge_score.tuned>=30, judge_score>=0")
    assert code == 0, err
    assert [one["found"] for one in json.loads(out)["gate"]] == [30, 0]
    assert "Judge score (judge not probed)" in err


def test_a_judge_is_held_against_those_who_rated_the_run(evaluate: Evaluate, tmp_path: Path) -> None:
    """This judge gives both answers of an item the same score, and so never agrees with people who prefer one of them."""
    run = run_folder(tmp_path / "run")
    ratings = [
        {
            "source": f"my.json:{n}",
            "rater": "Ada",
            "a": "base",
            "b": "tuned",
            "preference": "b" if n else "tie",
            "shown_first": "a",
            "remark": "",
            "rated": "2026-11-30T00:00:00+00:00",
            "a_sha256": text_sha256(f"base says {n}"),
            "b_sha256": text_sha256(f"tuned says {n}"),
        }
        for n in range(7)
    ]
    written(run / "ratings.jsonl", ratings)
    code, _, err = evaluate("run", "--judge", f"ollama/{MODEL}", "--calibrate", "judge.calibration_items=4")
    assert code == 0, err
    people = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["people"]
    assert (people["statistic"], people["num_items"], people["share"]) == ("Cohen's kappa", 7, pytest.approx(1 / 7))
    figures = json.loads((run / "calibration.json").read_text(encoding="utf-8"))["figures"]
    assert figures[-1]["name"] == "people_agreement"
    assert "the judge agrees with most people with Cohen's kappa" in " ".join(err.split())


def test_the_key_is_in_no_file_and_in_no_line(evaluate: Evaluate, tmp_path: Path) -> None:
    written(tmp_path / "theirs.jsonl", ROWS)
    for arguments in (["judge.max_tokens=64"], ["--protocol", "rubric"], ["--json"]):
        _, out, err = evaluate("theirs.jsonl", "--judge", f"openai/{MODEL}", "--output", "out", *arguments)
        assert "canary" not in out + err
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes()


def test_where_nothing_is_scored_the_command_fails_and_says_why(evaluate: Evaluate, tmp_path: Path) -> None:
    written(tmp_path / "theirs.jsonl", ROWS)
    code, _, err = evaluate("theirs.jsonl", "--judge", f"openai/{MODEL}", "--output", "out", "--protocol", "rubric")
    assert code == 1
    assert f"error: openai/{MODEL} scored nothing: unreadable: no `correctness` (7 of 7 items)" in err
    assert "0 + 7 = 7" in err
    assert "0.0 to 100.0" in err
    assert len(rows_of(tmp_path / "out" / "scores" / "theirs.jsonl")) == 7


def test_calibration_and_ratings_stand_beside_the_scores(evaluate: Evaluate, tmp_path: Path) -> None:
    """The double gives the same score whatever is answered: no judge, as calibration finds out."""
    written(tmp_path / "theirs.jsonl", ROWS)
    ratings = [{"source": f"theirs.jsonl:{n + 1}", "rating": 15 * n} for n in range(6)]
    written(tmp_path / "ratings.jsonl", ratings)
    code, out, err = evaluate(
        *("theirs.jsonl", "--judge", f"ollama/{MODEL}", "--output", "out", "--calibrate", "--json"),
        *("--ratings", "ratings.jsonl", "judge.calibration_items=5"),
    )
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "calibration.json").read_text(encoding="utf-8"))
    assert (found["num_items"], found["num_questions"]) == (5, 50)
    assert found["verdict"] == "not usable"
    assert "not usable: ollama/judge-8b is not fit to judge these answers" in err
    agreement = json.loads(out)["agreement"]
    assert (agreement["num_items"], agreement["spearman"]) == (6, 1.0)
    assert "weighted kappa" in err
    assert json.loads(out)["calibration"] == found


REFUSALS = {
    "ratings of pairs": (
        [
            "theirs.jsonl",
            "--judge",
            "ollama/x",
            "--protocol",
            "pairwise",
            "--against",
            "theirs.jsonl",
            "--ratings",
            "r",
        ],
        "--ratings are grades of single answers",
    ),
    "no ratings": (
        ["theirs.jsonl", "--judge", "ollama/x", "--ratings", "r.jsonl", "--output", "o"],
        "r.jsonl: no such file",
    ),
    "no judge": (["theirs.jsonl", "--output", "o"], "judge.model: '' names no judge; expected `ollama/NAME`"),
    "an unknown kind": (["theirs.jsonl", "--judge", "llama3"], "judge.model: 'llama3' names no judge"),
    "a kind without a name": (["theirs.jsonl", "--judge", "ollama/"], "judge.model: 'ollama/' names no judge"),
    "an unknown protocol": (["theirs.jsonl", "--judge", "ollama/x", "--protocol", "best"], "`judge.protocol`"),
    "no output": (["theirs.jsonl", "--judge", "ollama/x"], "--output DIR is needed"),
    "no file": (["none.jsonl", "--judge", "ollama/x", "--output", "o"], "none.jsonl: no such file"),
    "no run folder": (["empty", "--judge", "ollama/x"], "is no run folder with answers"),
    "no pair": (["theirs.jsonl", "--judge", "ollama/x", "--protocol", "pairwise", "--output", "o"], "--against FILE"),
    "a pair for a score": (["theirs.jsonl", "--judge", "ollama/x", "--against", "theirs.jsonl"], "--against is for"),
    "no answers": (["theirs.jsonl", "--judge", "ollama/x", "--answer-key", "said", "--output", "o"], "under `said`"),
    "no gguf file": (["theirs.jsonl", "--judge", "gguf:none.gguf", "--output", "o"], "gguf:none.gguf: no such file"),
    "no model folder": (
        ["theirs.jsonl", "--judge", "model:./none", "--output", "o"],
        "there is no model folder ./none",
    ),
    "a schema for a model": (
        ["theirs.jsonl", "--judge", "model:x", "judge.reply_format=json_schema", "--output", "o"],
        "cannot be held to a schema",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_wrong_request_is_one_message_and_exit_code_2(evaluate: Evaluate, tmp_path: Path, what: str) -> None:
    written(tmp_path / "theirs.jsonl", ROWS)
    (tmp_path / "empty").mkdir()
    arguments, message = REFUSALS[what]
    code, out, err = evaluate(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert message in err


def test_a_pair_of_files_is_compared(evaluate: Evaluate, honest: tuple[str, list[Request]], tmp_path: Path) -> None:
    written(tmp_path / "ours.jsonl", ROWS)
    written(tmp_path / "theirs" / "ours.jsonl", ROWS)
    code, _, err = evaluate(
        "ours.jsonl", "--against", "ours.jsonl", "--protocol", "pairwise", "--judge", f"ollama/{MODEL}", "--output", "o"
    )
    assert code == 1, "the double speaks of scores, which is no winner"
    assert "unreadable: no `winner`" in err
    assert len(rows_of(tmp_path / "o" / "scores" / "ours-against-ours.jsonl")) == 7
