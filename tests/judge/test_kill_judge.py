"""A short campaign of kills during judging; the long one is `python benchmarks/kill_judge.py --kills 50`."""

from tests.doubles.killed_judging import campaign


def test_a_killed_evaluation_ends_as_one_that_was_not() -> None:
    found = campaign(num_kills=3, num_items=40, seed=0)
    assert found["complaints"] == []
    assert found["kills"] == 3
    assert {"out/judge/replies.jsonl", "out/scores/answers.jsonl"} <= set(found["files"])
