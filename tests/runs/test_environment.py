"""The facts that a run is repeated by."""

import re
from pathlib import Path

from tuneful.runs.environment import PACKAGES, describe_machine

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_packages_are_those_that_tuneful_depends_on() -> None:
    table = PYPROJECT.read_text(encoding="utf-8").partition("\ndependencies = [\n")[2].partition("\n]")[0]
    assert list(PACKAGES) == re.findall(r'^  "([\w-]+)', table, re.M)  # tomllib came with Python 3.11


def test_each_package_has_a_version() -> None:
    assert describe_machine()["packages"].keys() == set(PACKAGES)
