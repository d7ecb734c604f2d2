"""A server that is gone ends the work, wherever the requests stand; one that fails a request for a reason of its own does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.judge_server import Request, head
from tests.doubles.teacher import Teacher, body_of, teaching
from tests.synthesize.conftest import lines

from tuneful.errors import JudgeError

Make = Callable[..., Any]


class Failing(Teacher):
    """Answers with HTTP 503 what `fails` says of its number from 0, and with a cut reply what `cuts` says."""

    def __init__(self, fails: Callable[[int], bool], cuts: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__()
        self.fails, self.cuts = fails, cuts
        self.number = 0

    async def behave(self, request: Request, writer: Any) -> None:
        if request.method == "GET":
            await super().behave(request, writer)
            return
        number, self.number = self.number, self.number + 1
        body = json.dumps({"error": "busy"}).encode()
        if self.cuts(number):
            body = body_of(request, "half a re", done_reason="length")
        elif not self.fails(number):
            body = body_of(request, self.says(request))
        writer.write(head(503 if self.fails(number) else 200, length=len(body)) + body)
        await writer.drain()


ONE_AT_A_TIME = ("judge.concurrency=1", "judge.max_retries=0")


def test_failures_are_counted_across_waves_that_have_fewer_requests_than_it_takes_to_give_up(
    made: Make, tmp_path: Path
) -> None:
    teacher = Failing(lambda number: True)
    with teaching(teacher) as name, pytest.raises(JudgeError, match="no reply to 8 requests in a row: HTTP 503"):
        made(*ONE_AT_A_TIME, kind="instructions", teacher=name, num=3)
    assert teacher.number == 8
    assert (tmp_path / "made.jsonl.partial").exists()


def test_a_reply_among_failures_begins_the_count_anew_and_every_failure_is_in_the_file(
    made: Make, tmp_path: Path
) -> None:
    with teaching(Failing(lambda number: number % 8 != 7)) as name:
        found = made(*ONE_AT_A_TIME, kind="instructions", teacher=name, num=3)
    assert found.made.num_requests == 24
    assert found.made.refused == {"no whole reply": 21}
    assert [one["request"] for one in lines(tmp_path / "made.requests.jsonl")] == [f"{n}/task" for n in range(24)]


def test_a_server_that_cuts_every_reply_is_not_taken_for_gone(made: Make) -> None:
    with teaching(Failing(lambda number: False, cuts=lambda number: True)) as name:
        found = made(*ONE_AT_A_TIME, kind="instructions", teacher=name, num=5, max_requests=10)
    assert found.made.refused == {"no whole reply": 10}


def test_a_request_without_a_reply_counts_as_the_longest_that_it_could_have_had(made: Make) -> None:
    with teaching(Failing(lambda number: False, cuts=lambda number: True)) as name:
        found = made(*ONE_AT_A_TIME, "judge.max_tokens=50", kind="instructions", teacher=name, num=2, max_requests=4)
    assert found.made.num_reply_tokens == 4 * 50
    assert found.made.estimated
