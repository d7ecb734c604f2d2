"""A short campaign of kills during synthesis; the long one is `python benchmarks/kill_synthesize.py --kills 50`."""

import pytest
from tests.doubles.killed_synthesizing import campaign


@pytest.mark.parametrize(("kind", "num_kills"), [("instructions", 1), ("pairs", 2)])
def test_a_killed_synthesis_ends_as_one_that_was_not(kind: str, num_kills: int) -> None:
    found = campaign(num_kills=num_kills, kind=kind, seed=0)
    assert found["complaints"] == []
    assert found["kills"] == num_kills
    assert found["files"] == ["made.jsonl", "made.requests.jsonl"]
