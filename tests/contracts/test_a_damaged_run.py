"""Whatever happens to a file of a run, a command goes on to the same bits or names the file: a sample of
`benchmarks/fuzz_runs.py`, the same one every time."""

from __future__ import annotations

from tests.doubles.damaged_runs import campaign


def test_a_damaged_folder_is_gone_on_with_to_the_same_bits_or_named() -> None:
    tally = campaign(60, seed=5)
    assert not tally.failures, "\n".join(tally.failures)
    ended = {name: count for name, count in tally.ended.items() if name.startswith("a run cut off")}
    assert ended["a run cut off: refused"] > 5
    assert ended["a run cut off: same result"] > 5
    assert ended["a run cut off: same result, said"] > 1
