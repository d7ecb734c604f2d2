"""A short campaign of kills during synthesis; the long one is `python benchmarks/kill_synthesize.py --kills 50`."""

import pytest
from tests.doubles.killed_synthesizing import campaign
from tests.doubles.processes import complaints


@pytest.mark.parametrize(("kind", "num_kills"), [("instructions", 1), ("pairs", 2)])
def test_a_killed_synthesis_ends_as_one_that_was_not(kind: str, num_kills: int) -> None:
    found = campaign(num_kills=num_kills, kind=kind, seed=0)
    assert found["complaints"] == []
    assert found["kills"] == num_kills
    assert found["files"] == ["made.jsonl", "made.requests.jsonl"]


def test_a_campaign_complains_of_every_way_in_which_a_run_may_end_wrongly() -> None:
    wanted = {"rows": b"1", "requests": b"2"}
    assert complaints("run 1", 0, wanted, wanted, 4, 4) == []
    assert complaints("run 1", 1, wanted, wanted, 0, 0) == ["run 1: ended with 1"]
    assert complaints("run 1", 0, {"rows": b"1"}, wanted, 0, 0) == ["run 1: missing files: requests"]
    assert complaints("run 1", 0, {**wanted, "rows": b"3", "left": b""}, wanted, 0, 0) == [
        "run 1: other files: left, rows"
    ]
    assert complaints("run 1", 0, wanted, wanted, 5, 4) == ["run 1: 5 requests repeated, at most 4 were in flight"]
