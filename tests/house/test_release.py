"""What a release holds: the files of the source distribution and of a wheel, their licenses, the versions that are promised."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from tests.machine import needs
from tools.oldest import oldest

import tuneful
from tuneful.commands.doctor import EXTRAS

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LICENSES = {"LICENSE", "LICENSE-CC0-1.0", "NOTICE"}
TOOLS = {"ruff", "mypy", "types-PyYAML", "types-psutil"}
"""What only developers run: constraints.txt alone says in which version."""


def package() -> set[str]:
    """Every file of the package, as a path inside it."""
    source = ROOT / "src" / "tuneful"
    files = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    return {name for name in files if "__pycache__" not in name and not name.startswith("model/native/built/")}


def build(what: str, folder: Path, sources: Path) -> Path:
    """The distribution that hatch makes of `sources`, a wheel without kernels."""
    program = (
        f"import os; os.environ['TUNEFUL_BUILD_KERNELS'] = '0'; import hatchling.build as b; b.{what}({str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", program], cwd=sources, check=True, capture_output=True)
    (made,) = folder.glob("*.tar.gz" if what == "build_sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("build_sdist", folder, ROOT)) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel that is built from nothing but the source distribution."""
    return zipfile.ZipFile(build("build_wheel", tmp_path_factory.mktemp("wheel"), sources))


# What is in it


@needs("hatchling")
def test_the_source_distribution_holds_the_sources_and_no_results_of_benchmarks(sources: Path) -> None:
    names = {file.relative_to(sources).as_posix() for file in sources.rglob("*") if file.is_file()}
    assert {f"src/tuneful/{name}" for name in package()} <= names
    assert {*LICENSES, "CITATION.cff", "CHANGELOG.md", "Makefile", "constraints.txt"} <= names
    assert {"tests/machine.py", "tools/wheel.py", "tools/oldest.py", "docs/index.md"} <= names
    left_out = ("benchmarks/results/", ".venv/", ".bench/", ".git/", ".cache/", "dist/", "runs/", "docs/_build/")
    assert [name for name in sorted(names) if name.startswith(left_out) or "__pycache__" in name] == []


@needs("hatchling")
def test_a_wheel_of_the_source_distribution_holds_the_package_and_its_licenses_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    about = f"tuneful-{tuneful.__version__}.dist-info"
    metadata = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licenses = {f"{about}/licenses/{name}" for name in LICENSES}
    assert set(wheel.namelist()) == {f"tuneful/{name}" for name in package()} | metadata | licenses


# Licenses


@needs("hatchling")
def test_a_wheel_says_the_licenses_of_the_code_and_of_the_data_in_it(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0 AND CC0-1.0"
    assert set(metadata.get_all("License-File", [])) == LICENSES


def test_the_files_that_the_notice_names_are_there_and_every_data_file_of_the_package_is_named() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:src/tuneful|tools|docs)/[\w./]+", notice))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    data = {f"src/tuneful/{name}" for name in package() if name.startswith("evaluation/general/") or "starter" in name}
    assert data
    assert all(any(name.startswith(path) for path in named) for name in data)
    described = {".py", ".c", ".h", ".js", ".css", ".html", ".j2", ".svg", ".typed"} | {".txt", ".json", ".md"}
    assert {Path(name).suffix for name in package()} <= described  # another kind of file needs a line there


def test_no_file_of_the_package_bears_the_copyright_of_anybody_else() -> None:
    foreign = re.compile(r"copyright\s+(?:\(c\)|©|\d{4})|all rights reserved|SPDX-License", re.I)
    texts = {name: (ROOT / "src" / "tuneful" / name).read_text(encoding="utf-8") for name in package()}
    assert [name for name, text in texts.items() if foreign.search(text)] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (tuneful.__version__, "Apache-2.0")
    assert tuple(citation)[:2] == ("cff-version", "message")
    assert {"title", "type", "authors"} <= set(citation)


# Versions


def requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, the extras' too, but the tools and the extras of our own."""
    tables = PYPROJECT.partition("\ndependencies = [")[2].partition("\n[project.scripts]")[0]
    tables = re.sub(r"(?m)^\[project\.optional-dependencies\]$|^[\w-]+ = ", "", tables)
    found = {one.name: one for one in map(Requirement, re.findall(r'"([^"]+)"', tables))}
    return {name: one for name, one in found.items() if name not in TOOLS and name != "tuneful"}


def pinned() -> dict[str, Version]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, _, version in pairs}


def test_every_requirement_has_the_one_lower_bound_that_the_job_with_the_oldest_versions_installs() -> None:
    found = requirements()
    assert len(found) > 30
    assert {name: str(one.specifier) for name, one in found.items()} == {
        name: f">={version}" for name, version in oldest(PYPROJECT).items()
    }


def test_the_versions_that_the_tests_are_pinned_to_are_allowed() -> None:
    installed = pinned()
    for name, requirement in requirements().items():
        if (version := installed.get(name.lower().replace("_", "-"))) is not None:
            assert requirement.specifier.contains(version), (name, version)


def test_doctor_tells_of_every_extra_that_users_install() -> None:
    table = PYPROJECT.partition("optional-dependencies]")[2].partition("[project.scripts]")[0]
    extras = dict(re.findall(r"(?m)^([\w-]+) = \[([^\]]*)\]", table))
    theirs = {name: text for name, text in extras.items() if name not in ("docs", "test", "dev")}
    assert set(EXTRAS) == set(theirs)
    for name, modules in EXTRAS.items():
        assert {Requirement(one).name for one in re.findall(r'"([^"]+)"', theirs[name])} == set(modules), name


# The jobs


def jobs() -> dict[str, Any]:
    """The jobs of the workflow."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = workflow["jobs"]
    return found


def commands() -> list[str]:
    """Each command line of a job's steps."""
    steps = itertools.chain.from_iterable(job["steps"] for job in jobs().values())
    return [line.strip() for step in steps for line in step.get("run", "").splitlines()]


def test_what_the_jobs_run_is_there() -> None:
    text = "\n".join(commands())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"\bmake (\S+)", text)) <= targets
    paths = re.findall(r"\b(?:tools|tests)/[\w./-]+", text)
    assert {"tools/oldest.py", "tests/house/test_install.py"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"python -m (\w+)", text))
    assert modules == {"pip", "tuneful", "pytest"}
    extras = set(re.findall(r"\.\[(\w+)\]", text))
    assert all(re.search(rf"(?m)^{extra} = \[", PYPROJECT) for extra in extras)


def test_the_jobs_run_the_oldest_python_that_is_promised_with_the_oldest_versions_and_the_newest() -> None:
    matrix = jobs()["systems"]["strategy"]["matrix"]["include"]
    (promised,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert {one["versions"] for one in matrix if one["python"] == promised} == {"oldest", "newest"}
    assert {one["os"].split("-")[0] for one in matrix} == {"ubuntu", "macos", "windows"}
    tried = {one["python"] for one in matrix} | {jobs()["whole"]["steps"][1]["with"]["python-version"]}
    assert tried == {f"3.{minor}" for minor in range(int(promised.partition(".")[2]), 15)}
