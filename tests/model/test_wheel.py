"""Kernels that a wheel brings: which is taken, what is refused, and a wheel built here, installed where there is no compiler."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.machine import needs

from tuneful.files import sha256_of
from tuneful.model import native
from tuneful.model.native import library as libraries
from tuneful.model.native.compiler import NotCompiledError, digest_of_sources, wheel_instructions
from tuneful.model.processor import Processor, processor

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SERVER = Processor(None, ("x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "x86-64"), has_threads=True, has_compiler=True)
PROGRAM = """
import sys, tuneful
from pathlib import Path
from tuneful.config import load_config
from tuneful.model.native import describe
print(tuneful.__file__)
print(describe())
settings = [f"model.name_or_path={sys.argv[2]}", "train.max_steps=2", "generate.max_new_tokens=2"]
tuneful.run(sys.argv[1], config=load_config(overrides=settings), output=Path("run"))
"""


@pytest.fixture(autouse=True)
def the_processor_at_hand(monkeypatch):
    """Whatever lesser one all the tests run on."""
    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)
    yield
    native._attempt.cache_clear()  # what a test had compiled or refused is no other's


@pytest.fixture
def built(tmp_path):
    """A folder as a wheel brings it, with rubbish for libraries."""
    folder = tmp_path / "built"
    folder.mkdir()
    entries = {}
    for name in ("x86-64-v4", "x86-64-v3", "armv8"):
        (folder / f"kernels-{name}.so").write_bytes(name.encode())
        entries[name] = {"sha256": sha256_of(folder / f"kernels-{name}.so"), "has_threads": True}
    write(folder, {"sources": digest_of_sources(libraries.HERE), "compiler": "gcc", "libraries": entries})
    return folder


def write(folder, document):
    (folder / libraries.MANIFEST).write_text(json.dumps(document))


def manifest_of(folder):
    return json.loads((folder / libraries.MANIFEST).read_text())


# Which is taken


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (SERVER.runs, "kernels-x86-64-v4.so"),
        (("x86-64-v3", "x86-64-v3-no-fma", "x86-64"), "kernels-x86-64-v3.so"),
        (("armv8",), "kernels-armv8.so"),
        (("x86-64-v3-no-fma", "x86-64"), None),
        ((), None),
    ],
)
def test_the_one_with_the_largest_set_of_instructions_that_runs_is_taken(built, runs, expected):
    found = libraries.bundled(built, replace(SERVER, runs=runs))
    assert (found.name if found else None) == expected


def test_where_no_wheel_brought_any_there_is_none(tmp_path):
    assert libraries.bundled(tmp_path, SERVER) is None


def test_those_for_several_threads_are_not_taken_where_one_is_allowed(built):
    assert libraries.bundled(built, replace(SERVER, has_threads=False)) is None


# What is refused


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x86-64-v5"), lambda file: file.unlink()])
def test_a_library_that_is_not_what_was_built_is_refused_by_its_name(built, damage):
    damage(built / "kernels-x86-64-v4.so")
    with pytest.raises(NotCompiledError, match=r"kernels-x86-64-v4\.so is not what was built; install tuneful again"):
        libraries.bundled(built, SERVER)


def test_what_was_built_from_other_sources_is_refused(built):
    write(built, {**manifest_of(built), "sources": "0" * 64})
    with pytest.raises(NotCompiledError, match="built from other sources than the package's"):
        libraries.bundled(built, SERVER)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"sources": "0", "libraries": []}', '{"sources": 1, "libraries": {"x86-64-v4": {}}}'],
)
def test_a_manifest_that_cannot_be_read_is_refused(built, text):
    (built / libraries.MANIFEST).write_text(text)
    with pytest.raises(NotCompiledError, match=r"manifest\.json cannot be read; install tuneful again"):
        libraries.bundled(built, SERVER)


@pytest.mark.usefixtures("compiled")
def test_beside_a_damaged_one_the_compiler_makes_another_and_it_is_said_once(built, monkeypatch):
    (built / libraries.MANIFEST).write_text("{")
    monkeypatch.setattr(libraries, "BUILT", built)  # an absolute path in place of a name
    native._attempt.cache_clear()
    assert native.kernels(CPU, torch.float32) is not None
    said = native.describe()
    assert said.startswith("compiled by")
    assert said.count("the package's own are left out") == 1


@needs("x86")
def test_beside_a_damaged_one_without_a_compiler_torch_computes_and_both_are_said(built, monkeypatch):
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "no-compiler")
    for library in built.glob("*.so"):
        library.write_bytes(b"")
    monkeypatch.setattr(libraries, "BUILT", built)
    native._attempt.cache_clear()
    assert native.kernels(CPU, torch.float32) is None
    for part in ("there is no C compiler", "is not what was built; install tuneful again"):
        assert native.describe().count(part) == 1


# A wheel


@pytest.mark.parametrize(
    ("of_python", "machine", "tag"),
    [
        ("linux-x86_64", "x86_64", "linux_x86_64"),
        ("macosx-11.0-arm64", "arm64", "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", "arm64", "macosx_10_9_arm64"),
        ("win-amd64", "AMD64", "win_amd64"),
    ],
)
@needs("hatchling")
def test_a_wheel_is_named_after_the_platform_whose_kernels_it_carries(of_python, machine, tag):
    from tools.wheel import platform_tag

    assert platform_tag(of_python, machine) == tag


@needs("hatchling")
@pytest.mark.parametrize("wanted", ["", "0", "1", "x86-64-v9"])
def test_without_a_compiler_a_wheel_is_pure_unless_kernels_are_asked_for(wanted, tmp_path, monkeypatch, capfd):
    from hatchling.build import build_wheel

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TUNEFUL_BUILD_KERNELS", wanted)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if wanted not in ("", "0"):
        why = "there is no C compiler" if wanted == "1" else "TUNEFUL_BUILD_KERNELS: of"
        with pytest.raises(Exception, match=why):
            build_wheel(str(tmp_path))
        return
    assert build_wheel(str(tmp_path)).endswith("-py3-none-any.whl")
    assert ("a wheel without kernels: there is no C compiler" in "".join(capfd.readouterr())) == (wanted == "")


@needs("hatchling")
@needs("compiler")
@needs("posix")
def test_a_wheel_built_here_brings_kernels_to_an_environment_without_a_compiler(tmp_path, monkeypatch, tiny_llama):
    from hatchling.build import build_wheel

    monkeypatch.chdir(ROOT)
    machine = os.uname().machine
    known = wheel_instructions(machine)
    best = next(name for name in processor().runs if name in known)
    carried = sorted({best, known[-1]})  # two of them: each is some seconds of compiling
    monkeypatch.setenv("TUNEFUL_BUILD_KERNELS", ",".join(carried))
    wheel = tmp_path / build_wheel(str(tmp_path))
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{tag}.whl")
    inside = "tuneful/model/native/built/"
    names = [name.removeprefix(inside) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(inside)]
    assert sorted(names) == [*(f"kernels-{name}.so" for name in carried), "manifest.json"]

    python = bare_environment(tmp_path / "bare", wheel)
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(20)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [python, "-c", PROGRAM, tmp_path / "data.json", tiny_llama],
        env={"PATH": str(tmp_path / "nowhere"), "TUNEFUL_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    where, kernels = done.stdout.splitlines()[:2]
    assert where.startswith(str(tmp_path / "bare"))
    assert kernels.startswith(f"the package's own for {best}")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "cache" / "native").exists()


def bare_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel installed, and all but Tuneful from the one at hand; nothing is fetched."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = ["pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", *pip], check=True)
    at_hand = [path for path in sys.path if path.endswith("-packages")]
    own = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (own / "at-hand.pth").write_text("\n".join(at_hand) + "\n")
    return python
