"""A wheel in a bare environment: installed by pip with the oldest or the newest dependencies, and used from data to exports.

It fetches up to 1 GB a test, and runs where TUNEFUL_INSTALL says which constraints of pip hold besides: `torch==2.13.0` where
the index at hand has that as a build for processors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.machine import INSTALL, needs
from tools.oldest import oldest

ROOT = Path(__file__).parents[2]
ROWS = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(20)]


class Bare:
    """A virtual environment with a wheel in it, and nothing of the environment at hand."""

    def __init__(self, folder: Path, wheel: Path, constraints: str) -> None:
        self.folder = folder
        file = folder / "constraints.txt"
        file.write_text(constraints, encoding="utf-8")
        subprocess.run([sys.executable, "-m", "venv", folder / "bare"], check=True)
        self.programs = folder / "bare" / ("Scripts" if os.name == "nt" else "bin")
        install = ["install", "--quiet", "--constraint", str(file), f"{wheel}[export,serve]"]
        self._run([self.programs / "python", "-m", "pip", *install], {**os.environ, "PIP_CONSTRAINT": str(file)})

    def tuneful(self, *arguments: str | Path) -> str:
        """What the command prints on its standard output."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TUNEFUL_PROCESSOR")}
        return self._run([self.programs / "tuneful", *arguments], {**kept, "TUNEFUL_CACHE": str(self.folder / "cache")})

    def _run(self, command: list[str | Path], environment: dict[str, str]) -> str:
        done = subprocess.run(
            list(map(str, command)),
            env=environment,
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@needs("index")
@needs("hatchling")
@pytest.mark.parametrize("versions", ["oldest", "newest"])
def test_a_wheel_in_a_bare_environment_goes_from_data_to_exports(
    versions: str, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hatchling.build import build_wheel

    monkeypatch.chdir(ROOT)
    wheel = tmp_path / build_wheel(str(tmp_path))
    bounds = oldest((ROOT / "pyproject.toml").read_text(encoding="utf-8")) if versions == "oldest" else {}
    pins = [f"{name}=={version}" for name, version in bounds.items() if name != "torch"]
    bare = Bare(tmp_path, wheel, "\n".join([*pins, *os.environ[INSTALL].split()]))

    assert bare.tuneful("--version").startswith("tuneful ")
    found = json.loads(bare.tuneful("doctor", "--json"))
    assert found["extras"]["export"]
    assert found["extras"]["serve"]
    installed = {name.lower(): version for name, version in found["packages"].items() if name.lower() != "torch"}
    for name, version in bounds.items():
        if name.lower() in installed:
            assert installed[name.lower()].startswith(version), name

    (tmp_path / "data.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert json.loads(bare.tuneful("check", "data.json", "--model", tiny_llama, "--json"))["format"]
    settings = ["train.max_steps=2", "generate.max_new_tokens=2"]
    bare.tuneful("run", "data.json", "--model", tiny_llama, "--output", "run", "--quiet", *settings)
    assert (tmp_path / "run" / "report.html").is_file()
    bare.tuneful("generate", "--prompt", "Say 1.", "--model", "run", "--quiet", "generate.max_new_tokens=2")
    bare.tuneful("export", "run", "--to", "huggingface", "--output", "folder")
    bare.tuneful("export", "run", "--to", "gguf", "--output", "gguf")
    assert list((tmp_path / "gguf").glob("*.gguf"))
