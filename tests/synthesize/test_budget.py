"""What is spent stays within what was allowed, whatever the kind, and however its later prompts are longer than its first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL, Request, head
from tests.doubles.teacher import Teacher, body_of, honest, teaching, text_of
from tests.synthesize.conftest import SEEDS, lines

Make = Callable[..., Any]
LONG = "It is a long story. " * 300
REFLECT = "[system]\nReflect. {reply}\n[user]\n{instruction}\n{input}\n{response}\n"
COMPARE = "[system]\n{reply} {nonce}\n[user]\n{task}{answer_a}{answer_b}"


def records(output: str) -> list[dict[str, str]]:
    """Eighteen records with an answer like `output`."""
    return [
        {**one, "instruction": f"{one['instruction']} It is number {n} of {m}.", "output": f"{output} {n} {m}"}
        for n in range(3)
        for m, one in enumerate(SEEDS)
    ]


def spent_within(found: Any, limit: int) -> bool:
    """Whether work was done, and ended by the budget, without passing it."""
    made = found.made
    return (
        made.num_rows and "(--max-tokens)" in made.stopped and made.num_prompt_tokens + made.num_reply_tokens <= limit
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "instructions", "num": 50, "data": SEEDS},
        {"kind": "responses", "samples": 2, "best_by_judge": True},
        {"kind": "pairs", "model": f"ollama/{MODEL}", "samples": 2},
        {"kind": "reflections", "data": records("x y z")},
    ],
    ids=lambda options: options["kind"],
)
def test_the_budget_of_tokens_is_never_passed(made: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    """What a judge is shown, and the second prompt of reflections, is far longer than what is asked first."""
    (tmp_path / "instruction-reflection.txt").write_text(REFLECT, encoding="utf-8")
    (tmp_path / "response-reflection.txt").write_text(f"{REFLECT}{LONG}", encoding="utf-8")
    prompts = {"prompts": tmp_path} if options["kind"] == "reflections" else {}
    with teaching(Teacher()) as name:
        whole = {"data": records(LONG), "teacher": name, **prompts, **options}
        found = made("judge.max_tokens=64", max_tokens=16_000, **whole)
    assert spent_within(found, 16_000)


def test_two_answers_that_stand_in_one_prompt_of_the_judge_are_reckoned_with(made: Make, tmp_path: Path) -> None:
    class Talkative(Teacher):
        """Every reply has 512 tokens."""

        async def behave(self, request: Request, writer: Any) -> None:
            if request.method == "GET":
                await super().behave(request, writer)
                return
            text = honest(request)
            text = text.ljust(2048) if request.body.get("format") else f"{text} {'Oh! Ah? ' * 300}"[:2048]
            body = body_of(request, text, prompt_tokens=len(text_of(request)) // 4, eval_count=512)
            writer.write(head(200, length=len(body)) + body)
            await writer.drain()

    (tmp_path / "pairwise.txt").write_text(COMPARE, encoding="utf-8")
    settings = [f"judge.prompts={tmp_path}", "judge.protocol=pairwise", "judge.use_reference=false"]
    with teaching(Talkative()) as name:
        options: dict[str, Any] = {"kind": "pairs", "model": name, "teacher": name, "samples": 4}
        one = made(*settings, "judge.max_tokens=512", data=records("x")[:1], **options)
        limit = one.made.num_prompt_tokens + one.made.num_reply_tokens
        options |= {"max_tokens": limit * 3 - 1, "output": tmp_path / "more.jsonl"}
        found = made(*settings, "judge.max_tokens=512", data=records("x"), **options)
    assert spent_within(found, limit * 3 - 1)


def test_the_budget_of_requests_counts_what_the_wave_may_still_take(made: Make) -> None:
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(kind="responses", data=records("x"), teacher=name, samples=3, max_requests=8)
    assert found.made.num_requests == len(teacher.requests) == 6
    assert found.made.stopped == "6 of 8 requests were spent (--max-requests), and the next item may take 3"


def test_a_long_reply_that_was_read_stands_whole_in_the_file_of_requests(made: Make, tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3_000))
    with teaching(Teacher(lambda request: text)) as name:
        made(kind="responses", data=SEEDS[:1], teacher=name)
    assert len(text) > 25_000
    assert lines(tmp_path / "made.jsonl")[0]["output"] == text
    assert lines(tmp_path / "made.requests.jsonl")[0]["reply"] == text
