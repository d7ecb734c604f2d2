"""What hatch runs when it builds a wheel: kernels for several sets of instructions are compiled and go into it.

Where there is a C compiler the wheel is one of the platform, `py3-none-PLATFORM`: the kernels are called through ctypes and so
serve every Python. Without one it is pure, and the user's compiler makes the kernels. An editable install builds nothing.
`TUNEFUL_BUILD_KERNELS=0` has it pure; `=1` has the build fail where they cannot be compiled, and so has `=x86-64-v3,x86-64-v4`,
which compiles for these alone. The compiler and its flags are those of `model/native/compiler.py`, which is loaded by its path:
the package itself would want torch.

A hook of hatch and not scikit-build-core: there is one C file and no dependency, what compiles it on the user's machine exists
and is tested, and so one program knows the flags, where CMake would be a second that says them again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src", "tuneful", "model", "native")
BUILT, MANIFEST = "built", "manifest.json"
SETTING = "TUNEFUL_BUILD_KERNELS"


class KernelsHook(BuildHookInterface[Any]):
    """Compiles the kernels and puts them into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel is written. Raises NotCompiledError where the kernels are wanted and cannot be compiled."""
        wanted = os.environ.get(SETTING, "")
        if version == "editable" or wanted == "0":
            return
        native = Path(self.root) / NATIVE
        compiler = load_compiler(native)
        self._folder = TemporaryDirectory()
        try:
            built = build_kernels(
                compiler, native, Path(self._folder.name), [] if wanted in ("", "1") else wanted.split(",")
            )
        except compiler.NotCompiledError as reason:
            self._folder.cleanup()
            if wanted:
                raise
            self.app.display_warning(f"a wheel without kernels: {reason}")
            return
        for file in built:
            build_data["force_include"][str(file)] = f"tuneful/model/native/{BUILT}/{file.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(sysconfig.get_platform(), platform.machine())}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After it is written."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def load_compiler(native: Path) -> ModuleType:
    """`compiler.py` of the folder of kernels, without the package around it."""
    spec = importlib.util.spec_from_file_location("tuneful_compiler", native / "compiler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def build_kernels(compiler: Any, native: Path, folder: Path, chosen: list[str]) -> list[Path]:
    """The libraries for this machine's sets of instructions in `folder`, all or those chosen, and their manifest. Raises
    NotCompiledError."""
    known = compiler.wheel_instructions(platform.machine())
    names = chosen or known
    if not names or not set(names) <= set(known):
        raise compiler.NotCompiledError(f"{SETTING}: of {platform.machine()} are known: {', '.join(known) or 'none'}")
    by = compiler.find_compiler()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(lambda name: _build(compiler, by, native / compiler.SOURCES[0], folder, name), names))
    manifest = folder / MANIFEST
    entries = {
        name: {"sha256": hashlib.sha256(library.read_bytes()).hexdigest(), "has_threads": has_threads}
        for name, (library, has_threads) in zip(names, made, strict=True)
    }
    document = {"sources": compiler.digest_of_sources(native), "compiler": by.kind, "libraries": entries}
    manifest.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return [manifest, *(library for library, _ in made)]


def _build(compiler: Any, by: Any, source: Path, folder: Path, name: str) -> tuple[Path, bool]:
    """The library for one set of instructions, and whether it runs on several threads. NotCompiledError where any flag but
    OpenMP's is refused: what the name says would not be true."""
    library = folder / f"kernels-{name}.so"
    given = compiler.flags(platform.system(), platform.machine(), by.kind, name)
    lost = compiler.compile_kernels(by, given, source, library)
    if refused := [line for line in lost if not line.startswith(f"without {compiler.THREADS}")]:
        raise compiler.NotCompiledError("; ".join(refused))
    return library, not lost and any(flag.lost == compiler.THREADS for flag in given)


def platform_tag(of_python: str, machine: str) -> str:
    """The platform in a wheel's name: that of Python, and of a Python for two processors the one that compiled."""
    return of_python.replace("universal2", machine).replace("-", "_").replace(".", "_")
