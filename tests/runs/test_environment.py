"""The facts that a run is repeated by."""

import re
import sys
from pathlib import Path

import pytest

from tuneful.runs.environment import PACKAGES, describe_machine

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_packages_are_those_that_tuneful_depends_on() -> None:
    import tomllib

    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert list(PACKAGES) == [re.split(r"[^\w-]", dependency)[0] for dependency in dependencies]


def test_each_package_has_a_version() -> None:
    assert describe_machine()["packages"].keys() == set(PACKAGES)
