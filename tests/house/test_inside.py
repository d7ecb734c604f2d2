"""docs/inside.md is true: what it names exists, the way from a row to a loss is short, ordinary changes touch few files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.house import arrows, inside

WALK, BEFORE, CHANGES = "From a row to a loss", "From a file to a row", "Where a change goes"
CALLERS = ("encoding/prepare.py", "runs/setup.py", "runs/training.py")
MAX_FILES_OF_A_CHANGE = 3


def exists(named: str) -> bool:
    """Whether a file of the package or of the repository is named; NAME stands for one that is new."""
    path = Path(named)
    if "NAME" in path.name:
        path = path.parent
    return (inside.SOURCE / path).exists() or (inside.ROOT / path).exists()


@pytest.mark.parametrize("stop", [*inside.walk(BEFORE), *inside.walk(WALK)], ids=lambda stop: stop.file)
def test_every_stop_of_the_way_exists(stop: inside.Stop) -> None:
    assert stop.names
    assert inside.num_lines(stop) > 0  # KeyError names what is not there


def test_the_way_from_a_row_to_a_loss_is_short() -> None:
    stops = inside.walk(WALK)
    assert 5 <= len(stops) <= inside.MAX_FILES
    assert len({stop.file for stop in stops}) == len(stops)
    assert 500 <= sum(map(inside.num_lines, stops)) <= inside.MAX_LINES


def test_nothing_is_listed_that_the_way_does_not_pass() -> None:
    """Each name is used by a file of the way, or by those that call them in turn."""
    files = [*(stop.file for stop in inside.walk(WALK)), *CALLERS]
    text = "".join((inside.SOURCE / file).read_text(encoding="utf-8") for file in files)
    for stop in inside.walk(WALK):
        for name in stop.names:
            last = name.rpartition(".")[2]
            assert last.startswith("__") or len(re.findall(rf"\b{last}\b", text)) > 1, f"{stop.file}: {name}"


def test_ordinary_changes_touch_at_most_three_files_that_exist() -> None:
    changes = inside.changes(CHANGES)
    assert len(changes) >= 20
    for change in changes:
        assert 1 <= len(change.files) <= MAX_FILES_OF_A_CHANGE, change
        assert len(set(change.files)) == len(change.files), change
        assert [named for named in change.files if not exists(named)] == [], change


def test_the_rooms_are_those_of_the_package_in_their_order() -> None:
    named = [inside.quoted(cells[0])[0].rstrip("/").rpartition("/")[2] for cells in inside.rows("The rooms")]
    folders = {
        arrows.room(name) for name, file in arrows.modules(inside.SOURCE).items() if file.parent != inside.SOURCE
    }
    assert set(named) >= folders
    graph = arrows.graph(inside.SOURCE)
    for module, others in graph.items():
        for other in others:
            own, imported = arrows.room(module), arrows.room(other)
            if own != imported and {own, imported} <= folders:
                assert named.index(own) > named.index(imported), f"{module} imports {other}"


def test_a_wrong_name_and_a_missing_file_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no_such_function"):
        inside.num_lines(inside.Stop("types.py", ("no_such_function",)))
    with pytest.raises(FileNotFoundError):
        inside.num_lines(inside.Stop("no_such_file.py", ("Turn",)))
    assert not exists("data/no_such_file.py")
    assert exists("commands/NAME.py")
    assert not exists("no_such_room/NAME.py")


def test_lines_are_counted_as_the_program_says() -> None:
    whole = inside.num_lines(inside.Stop("types.py", ("Example",)))
    assert 15 < inside.num_lines(inside.Stop("types.py", ("Example.__len__", "Example.__post_init__"))) <= whole
    assert inside.num_lines(inside.Stop("types.py", ("IntArray",))) == 1
