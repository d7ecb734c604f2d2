"""The compiler's flags by system, machine and compiler; what is made of those that it refuses."""

import ctypes
import stat
from pathlib import Path

import pytest
import torch
from tests.machine import needs

from tuneful.model import native
from tuneful.model.native import compiler as compilers
from tuneful.model.native import library as libraries
from tuneful.model.native.compiler import Compiler, Flag, NotCompiledError, arguments, flags, kind_of

CPU = torch.device("cpu")
ALL = ["-std=gnu11", "-O3", "-shared"]
ARITHMETIC = [
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffp-contract=fast",
]
LONG = "-mprefer-vector-width=512"


@pytest.fixture(autouse=True)
def the_processor_at_hand(monkeypatch):
    """Whatever lesser one all the tests run on."""
    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)
    yield
    native._attempt.cache_clear()  # what a test had compiled or refused is no other's


@pytest.mark.parametrize(
    ("system", "machine", "kind", "own"),
    [
        ("Linux", "x86_64", "gcc", ["-fPIC", "-march=native", LONG, "-fopenmp"]),
        ("Linux", "x86_64", "clang", ["-fPIC", "-march=native", LONG, "-fopenmp"]),
        ("Linux", "aarch64", "gcc", ["-fPIC", "-mcpu=native", "-fopenmp"]),
        (
            "Darwin",
            "arm64",
            "apple-clang",
            ["-fPIC", "-mcpu=native", "-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"],
        ),
        (
            "Darwin",
            "x86_64",
            "apple-clang",
            ["-fPIC", "-march=native", LONG, "-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"],
        ),
        ("Darwin", "arm64", "gcc", ["-fPIC", "-mcpu=native", "-fopenmp"]),
        ("Windows", "AMD64", "clang", ["-march=native", LONG]),
        ("Windows", "ARM64", "clang", ["-mcpu=native"]),
    ],
)
def test_the_flags_are_those_of_the_system_the_machine_and_the_compiler(system, machine, kind, own):
    assert sorted(arguments(flags(system, machine, kind))) == sorted([*ALL, *ARITHMETIC, *own])


def test_the_compiler_of_visual_studio_is_told_what_is_meant_for_clang():
    found = arguments(flags("Windows", "AMD64", "clang-cl"))
    assert found[:4] == ["/clang:-std=gnu11", "/clang:-O3", "/LD", "/clang:-fno-math-errno"]
    assert "/clang:-march=native" in found
    assert not [one for one in found if not one.startswith("/")]


@pytest.mark.parametrize(
    ("system", "machine", "instructions", "expected"),
    [
        ("Linux", "x86_64", "x86-64-v3", ["-march=x86-64-v3"]),
        ("Linux", "x86_64", "x86-64-v3-no-fma", ["-march=x86-64-v3", "-mno-fma"]),
        ("Linux", "aarch64", "armv8", ["-march=armv8-a"]),
        ("Darwin", "arm64", "armv8", ["-mcpu=apple-m1"]),
    ],
)
def test_a_set_of_instructions_is_asked_for_in_place_of_the_machines_own(system, machine, instructions, expected):
    found = [
        one for one in arguments(flags(system, machine, "clang", instructions)) if one.startswith(("-ma", "-mc", "-mn"))
    ]
    assert found == expected


def test_without_threads_nothing_speaks_of_openmp():
    for kind in ("gcc", "apple-clang"):
        assert "openmp" not in " ".join(arguments(flags("Linux", "x86_64", kind, threads=False)))


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("cc", "Apple clang version 16.0.0 (clang-1600.0.26.6)", "apple-clang"),
        ("cc", "Debian clang version 14.0.6", "clang"),
        ("gcc-14", "gcc-14 (Homebrew GCC 14.2.0) 14.2.0", "gcc"),
        ("clang-cl", "clang version 18.1.8\nTarget: x86_64-pc-windows-msvc", "clang-cl"),
        ("cc", "cc (Debian 12.2.0-14) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc.", "gcc"),
    ],
)
def test_whose_compiler_it_is_stands_in_its_version(name, version, kind):
    assert kind_of(name, version) == kind


def test_on_windows_a_machine_without_a_compiler_is_told_which(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(NotCompiledError, match="LLVM's clang brings one"):
        compilers.find_compiler()


def test_each_set_of_instructions_goes_into_the_wheels_of_its_machine_alone():
    assert compilers.wheel_instructions("x86_64") == ("x86-64-v4-amx", "x86-64-v4-bf16", "x86-64-v4", "x86-64-v3")
    assert compilers.wheel_instructions("AMD64") == compilers.wheel_instructions("x86_64")
    assert compilers.wheel_instructions("aarch64") == compilers.wheel_instructions("arm64") == ("armv8",)
    assert compilers.wheel_instructions("riscv64") == ()


# What is refused


def refusing(path: Path, *refused: str) -> Compiler:
    """The machine's compiler, quick, and without what it refuses."""
    cases = "|".join(refused)
    path.write_text(
        f'#!/bin/sh\nfor one in "$@"; do case "$one" in {cases}) echo "error: unknown argument $one" >&2; exit 1;; esac; done\n'
        f'exec {libraries.compiler().path} "$@" -O0\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Compiler(str(path), "gcc")


@needs("compiler")
def test_a_flag_that_is_refused_is_left_out_alone_and_named(tmp_path):
    by = refusing(tmp_path / "cc", "-march=native", "-fopenmp")
    given = flags("Linux", "x86_64", "gcc")
    lost = compilers.compile_kernels(by, given, libraries.HERE / "kernels.c", tmp_path / "made.so")
    assert [line.partition(" (")[0] for line in lost] == [
        "without instructions beyond the oldest of its kind: -march=native is refused",
        "without several threads: -fopenmp is refused",
    ]
    assert "error: unknown argument -fopenmp" in lost[1]
    assert (tmp_path / "made.so").is_file()


@needs("compiler")
def test_what_nothing_goes_without_is_an_error(tmp_path):
    by = refusing(tmp_path / "cc", "-std=gnu11")
    with pytest.raises(NotCompiledError, match="unknown argument -std=gnu11"):
        compilers.compile_kernels(by, flags("Linux", "x86_64", "gcc"), libraries.HERE / "kernels.c", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@needs("compiler")
def test_a_fault_of_the_source_is_said_as_it_is_and_no_flag_is_blamed(tmp_path):
    (tmp_path / "wrong.c").write_text("int nothing(void) { return missing; }\n")
    by = libraries.compiler()
    with pytest.raises(NotCompiledError, match="missing"):
        compilers.compile_kernels(
            by, (Flag(("-shared",)), Flag(("-fPIC",), "x")), tmp_path / "wrong.c", tmp_path / "made"
        )


@needs("compiler")
def test_without_openmp_the_doctor_says_why_also_when_nothing_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", refusing(tmp_path / "cc", "-fopenmp").path)
    for _ in range(2):
        native._attempt.cache_clear()
        found = native.kernels(CPU, torch.float32)
        assert found is not None, native.describe()
        assert not found.has_threads()
        assert "on one thread; without several threads: -fopenmp is refused" in native.describe()


@needs("compiler")
def test_a_library_that_loads_on_one_thread_alone_is_made_for_one(tmp_path, monkeypatch):
    """As where the code asks for OpenMP's library, and the process has none."""
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", refusing(tmp_path / "cc", "nothing").path)
    native._attempt.cache_clear()
    load = ctypes.CDLL
    refused: list[str] = []

    def load_the_second(path):
        if not refused:
            refused.append(path)
            raise OSError("undefined symbol: omp_get_thread_num")
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", load_the_second)
    found = native.kernels(CPU, torch.float32)
    assert found is not None, native.describe()
    assert not found.has_threads()
    assert "with OpenMP it cannot be loaded (undefined symbol: omp_get_thread_num)" in native.describe()


@needs("compiler")
def test_kernels_on_one_thread_give_way_to_more_threads_of_torch_unless_they_are_asked_for(monkeypatch):
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "no-openmp")
    monkeypatch.delenv("TUNEFUL_NATIVE", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert native.kernels(CPU, torch.float32) is not None
        torch.set_num_threads(8)
        assert native.kernels(CPU, torch.float32) is None
        assert "torch's operations on 8 threads are used" in native.describe()
        monkeypatch.setenv("TUNEFUL_NATIVE", "1")
        assert native.kernels(CPU, torch.float32) is not None
    finally:
        torch.set_num_threads(before)
