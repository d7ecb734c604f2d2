"""A short run of the fuzz of reading; the long one is `python benchmarks/fuzz_data.py --files 2000`."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.doubles.damaged_files import campaign, odd_places, run_bomb


def test_damaged_files_lose_no_row_and_raise_nothing_but_one_message() -> None:
    kinds, failures = campaign(num_files=80, seed=7)
    assert failures == []
    assert kinds.total() == 80
    assert len(kinds) > 20


def test_odd_places_are_one_message_each() -> None:
    with TemporaryDirectory() as folder:  # pytest's own lies where nobody but its owner gets to
        Path(folder).chmod(0o755)
        places = dict(odd_places(Path(folder), growing_mib=4))
    assert len(places) == 8
    assert not any(places.values()), places


@pytest.mark.parametrize("name", ["a line of 200 MB", "gzip of a 4 GB line"])
def test_a_bomb_takes_neither_the_time_nor_the_memory_of_what_it_holds(name: str, tmp_path: Path) -> None:
    assert run_bomb(name, tmp_path)["problems"] == []
