"""The oldest versions that pyproject.toml allows, as constraints of pip: `python tools/oldest.py > oldest.txt`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_BOUND = re.compile(r'"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?>=([0-9.]+)"')


def oldest(pyproject: str) -> dict[str, str]:
    """Each dependency, those of the extras too, with its lower bound."""
    project = pyproject.partition("[project]")[2].partition("[project.scripts]")[0]
    return dict(_BOUND.findall(project))


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(oldest(text).items()))
