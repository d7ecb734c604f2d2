"""A short campaign of kills during synthesis; the long one is `python benchmarks/kill_synthesize.py --kills 50`."""

import pytest
from tests.doubles.killed_synthesizing import campaign


@pytest.mark.parametrize("kind", ["instructions", "pairs"])
def test_a_killed_synthesis_ends_as_one_that_was_not(kind: str) -> None:
    found = campaign(num_kills=2, kind=kind, seed=0)
    assert found["complaints"] == []
    assert found["kills"] == 2
    assert found["files"] == ["made.jsonl", "made.requests.jsonl"]
