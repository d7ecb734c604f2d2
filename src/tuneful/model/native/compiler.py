"""The C compiler that makes the kernels: which one, with which flags, and what it refuses.

The flags are a function of system, machine and compiler. Those that a compiler may refuse say what is lost without them; where
the whole is refused each is tried alone, and what is left compiles. Stands on the standard library and on nothing else, so that
`tools/wheel.py` builds a wheel's kernels by the same code where no torch is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

SOURCES = ("kernels.c", "kernels.h", "products.h", "layer.h", "decode.h")
COMPILE_SECONDS = 300
Kind = Literal["gcc", "clang", "apple-clang", "clang-cl"]

NATIVE = "native"
"""The instructions of the machine that compiles."""
INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "x86-64-v4-amx": ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512bf16"),
    "x86-64-v4": ("-march=x86-64-v4",),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v3-no-fma": ("-march=x86-64-v3", "-mno-fma"),
    "x86-64": ("-march=x86-64",),
    "armv8": ("-march=armv8-a",),
}
"""Sets of instructions by name, the larger first, and the flags that ask for them. The levels of x86-64 are those of its ABI."""
IN_A_WHEEL = ("x86-64-v4-amx", "x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "armv8")
"""For which of them a wheel carries kernels, those of its machine."""
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
PROBE = """
int omp_get_thread_num(void);
int probe(void) {
    int sum = 0;
    #pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < 9; i++) sum += i;
#ifdef _OPENMP
    sum += omp_get_thread_num();
#endif
    return sum;
}
"""


class NotCompiledError(Exception):
    """There is no library of kernels, with the reason."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Arguments that belong together, and what is lost where a compiler refuses them; empty where nothing goes without."""

    arguments: tuple[str, ...]
    lost: str = ""


THREADS = "several threads"
_SUMS = "vector code of sums"
_ARITHMETIC = (
    # What vector code needs: sums may be taken in any order. NaN and infinity keep their meaning.
    Flag(("-fno-math-errno",), "vector code of roots"),
    Flag(("-fno-trapping-math",), _SUMS),
    Flag(("-fno-signed-zeros",), _SUMS),
    Flag(("-fassociative-math",), _SUMS),
    Flag(("-freciprocal-math",), "quicker quotients"),
    Flag(("-ffp-contract=fast",), "sums and products in one operation"),
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler by its path, and whose it is."""

    path: str
    kind: Kind


def flags(
    system: str, machine: str, kind: Kind, instructions: str = NATIVE, *, threads: bool = True
) -> tuple[Flag, ...]:
    """What the compiler is given beside the source: for `platform.system()`, `platform.machine()` and a set of instructions."""
    is_x86 = machine.lower() in X86
    shared = ("-shared",) if system == "Windows" else ("-shared", "-fPIC")  # all code of Windows can be moved
    found = [Flag(("-std=gnu11",)), Flag(("-O3",)), Flag(shared), *_ARITHMETIC]
    found.append(Flag(_arguments(system, is_x86, kind, instructions), "instructions beyond the oldest of its kind"))
    if is_x86:
        found.append(Flag(("-mprefer-vector-width=512",), "the longest vectors"))
    if threads:
        found += _threads(system, kind)
    return tuple(map(_for_clang_cl, found)) if kind == "clang-cl" else tuple(found)


def _arguments(system: str, is_x86: bool, kind: Kind, instructions: str) -> tuple[str, ...]:
    if instructions != NATIVE:
        return ("-mcpu=apple-m1",) if instructions == "armv8" and system == "Darwin" else INSTRUCTIONS[instructions]
    return ("-march=native",) if is_x86 else ("-mcpu=native",)


def _threads(system: str, kind: Kind) -> list[Flag]:
    """OpenMP. Apple's compiler makes code for it and comes without its library: that is the one which torch has loaded."""
    if system == "Windows":
        return []  # LLVM's library would come beside the one that torch brings
    if kind == "apple-clang":
        return [Flag(("-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"), THREADS)]
    return [Flag(("-fopenmp",), THREADS)]


def _for_clang_cl(flag: Flag) -> Flag:
    given = ("/LD" if argument == "-shared" else f"/clang:{argument}" for argument in flag.arguments)
    return Flag(tuple(given), flag.lost)


def wheel_instructions(machine: str) -> tuple[str, ...]:
    """The sets of instructions for which a wheel of this machine carries kernels."""
    of_arm = machine.lower() in ARM
    return tuple(name for name in IN_A_WHEEL if name.startswith("arm") == of_arm and (of_arm or machine.lower() in X86))


def find_compiler() -> Compiler:
    """The compiler of `CC`, or one on the path. Raises NotCompiledError where there is none."""
    on_windows = platform.system() == "Windows"
    names = ("clang", "clang-cl", "gcc") if on_windows else ("cc", "gcc", "clang")
    for name in (os.environ.get("CC", ""), *names):
        if name and (found := shutil.which(name)):
            return Compiler(found, kind_of(Path(found).stem, run([found, "--version"], may_fail=True)))
    how = (
        "LLVM's clang"
        if on_windows
        else "on Debian and Ubuntu `apt install gcc libc6-dev`; on macOS `xcode-select --install`"
    )
    raise NotCompiledError(f"there is no C compiler (cc); {how} brings one")


def kind_of(name: str, version: str) -> Kind:
    """Whose compiler this is, by its program's name and by what it says of its version."""
    if "clang-cl" in name:
        return "clang-cl"
    if "Apple" in version and "clang" in version:
        return "apple-clang"
    return "clang" if "clang" in version else "gcc"


def compile_kernels(compiler: Compiler, given: Sequence[Flag], source: Path, made: Path) -> list[str]:
    """Compile `source` to the library `made`. What is lost, in words, where the compiler refuses some of the flags.

    Raises NotCompiledError where it cannot be compiled with any.
    """
    try:
        run(command(compiler, given, source, made))
        return []
    except NotCompiledError:
        kept, lost = _accepted(compiler, given)
        if not lost:
            raise
    run(command(compiler, kept, source, made))
    return lost


def command(compiler: Compiler, given: Sequence[Flag], source: Path, made: Path) -> list[str]:
    """The line that compiles `source` to the library `made`."""
    output = [f"/Fe:{made}"] if compiler.kind == "clang-cl" else ["-o", str(made)]
    libraries = [] if platform.system() == "Windows" else ["-lm"]
    return [compiler.path, *arguments(given), str(source), *output, *libraries]


def arguments(given: Sequence[Flag]) -> list[str]:
    """The flags one after the other."""
    return [argument for flag in given for argument in flag.arguments]


def _accepted(compiler: Compiler, given: Sequence[Flag]) -> tuple[list[Flag], list[str]]:
    """Those of the flags that the compiler takes, each tried alone on a few lines, and in words what goes without the others."""
    kept = [flag for flag in given if not flag.lost]
    lost: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        probe, made = Path(folder) / "probe.c", Path(folder) / "probe.so"
        probe.write_bytes(PROBE.encode())
        run(command(compiler, kept, probe, made))  # what refuses this too is not to be helped
        for flag in (flag for flag in given if flag.lost):
            try:
                run(command(compiler, [*kept, flag], probe, made))
                kept.append(flag)
            except NotCompiledError as reason:
                lost[flag.lost] = f"without {flag.lost}: {' '.join(flag.arguments)} is refused ({reason})"
    return kept, list(lost.values())


def run(line: Sequence[str], *, may_fail: bool = False, text: str = "") -> str:
    """What a program prints, `text` being its input. Raises NotCompiledError with its first complaint where it fails."""
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", input=text, timeout=COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiledError(str(error)) from error
    if done.returncode and not may_fail:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotCompiledError(f"{line[0]}: {next((line for line in lines if 'error' in line), lines[0])}")
    return done.stdout


def predefined(compiler: Compiler, given: Sequence[Flag]) -> str:
    """What the compiler knows of itself and of the processor under these flags: its predefined macros, or its version."""
    for known in (given, []):
        try:
            return run([compiler.path, *arguments(known), "-dM", "-E", "-x", "c", "-"])
        except NotCompiledError:
            pass
    return run([compiler.path, "--version"], may_fail=True) + platform.processor()


def digest_of_sources(folder: Path) -> str:
    """The sha256 of the kernels' sources in `folder`, in hexadecimal."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()
