"""The house: imports point down, each heavy dependency has one door, and nothing opens what it must not."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tuneful
from tuneful import api

SOURCE = Path(tuneful.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [
    ".".join(["tuneful", *file.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__") for file in FILES
]
ROOMS = {"ground": 0, "data": 1, "model": 2, "train": 3, "infer": 3, "judge": 4, "report": 4, "hall": 5}
"""A room imports from lower ones and from itself."""
GROUND = {"config", "types", "errors"}
TRACKERS = ("mlflow", "tensorboard", "torch.utils.tensorboard", "trackio", "wandb")
DOORS = {
    "torch.distributed": {"tuneful.train.distributed"},
    "peft": {"tuneful.model.lora"},
    "gguf": {"tuneful.model.gguf", "tuneful.model.load", "tuneful.model.builtin"},
    "pyarrow": {"tuneful.data.tables"},
    "fastapi": {"tuneful.serve"},
    "uvicorn": {"tuneful.serve"},
    "httpx2": {"tuneful.judge.client"},
    "xllamacpp": {"tuneful.judge.local"},
    **{name: {"tuneful.runs.trackers"} for name in TRACKERS},
}


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in GROUND:
        return "ground"
    return parts[1] if parts[1] in ROOMS else "hall"


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is for type checking only) of every import of `file`, wherever it stands."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node in typing_only
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(MODULES[FILES.index(file)].split(".")[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for name in node.names:
                dotted = f"{origin}.{name.name}"
                yield (dotted if dotted in MODULES else origin), node in typing_only


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = room(module)
    for imported, typing_only in imports(FILES[MODULES.index(module)]):
        if imported.split(".")[0] != "tuneful" or imported == "tuneful" or typing_only:
            continue
        other = room(imported)
        assert ROOMS[other] < ROOMS[own] or other == own, f"{module} ({own}) imports {imported} ({other})"


def test_training_and_generation_never_import_each_other() -> None:
    for module, file in zip(MODULES, FILES, strict=True):
        for imported, _ in imports(file):
            assert not (room(module) == "train" and imported.startswith("tuneful.infer")), module
            assert not (room(module) == "infer" and imported.startswith("tuneful.train")), module


@pytest.mark.parametrize("dependency", DOORS)
def test_a_heavy_dependency_has_one_door(dependency: str) -> None:
    for module, file in zip(MODULES, FILES, strict=True):
        for imported, typing_only in imports(file):
            if (imported == dependency or imported.startswith(dependency + ".")) and not typing_only:
                assert any(module == door or module.startswith(door + ".") for door in DOORS[dependency]), module


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_and_says_what_it_does(module: str) -> None:
    assert (importlib.import_module(module).__doc__ or "").strip()


def test_the_list_of_modules_is_whole() -> None:
    found = {info.name for info in pkgutil.walk_packages([str(SOURCE)], "tuneful.")}
    assert found | {"tuneful"} == set(MODULES)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes that `module` defines, and the public methods of the classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield name, value
            for inner, member in vars(value).items():
                function = member.fget if isinstance(member, property) else member
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{inner}", function
        elif inspect.isfunction(value):
            yield name, value


PROTOCOL = {"forward", "backward"}
"""Methods whose meaning is torch's own."""


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_says_what_it_does(module: str) -> None:
    missing = [
        name
        for name, value in public(importlib.import_module(module))
        if not (value.__doc__ or "").strip() and name.split(".")[-1] not in PROTOCOL
    ]
    assert not missing, f"{module}: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_keeps_state(module: str) -> None:
    """Nothing assigns to a global from inside a function; what is mutable at module level is written in capitals."""
    tree = ast.parse(FILES[MODULES.index(module)].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in tree.body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(value, mutable):
            names = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in names:
                assert isinstance(name, ast.Name)
                assert name.id.isupper() or name.id == "__all__", f"{module}.{name.id}"


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "requests", "urllib.request"}
TELEMETRY = ("posthog", "sentry_sdk", "mixpanel", "analytics", "scarf")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_reads_a_pickle_runs_a_models_code_or_phones_home(module: str) -> None:
    file = FILES[MODULES.index(module)]
    for imported, _ in imports(file):
        assert imported not in FORBIDDEN, imported
        assert not imported.startswith(TELEMETRY), imported
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "eval", "exec", "__import__"), f"{module}: {called}"
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "weights_only"):
                    assert isinstance(keyword.value, ast.Constant), f"{module}: {ast.unparse(keyword)}"
                    assert keyword.value.value is False, f"{module}: {ast.unparse(keyword)}"


def test_a_tracker_is_imported_inside_the_function_that_was_asked_for_it() -> None:
    tree = ast.parse((SOURCE / "tracking.py").read_text(encoding="utf-8"))
    openers = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    at_home = {node for opener in openers for node in ast.walk(opener)}
    found = set()
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in set(TRACKERS) & set(names):
            assert node in at_home, name
            found.add(name)
    assert found == set(TRACKERS) - {"tensorboard"}  # torch imports that one


def test_the_public_names_are_a_sorted_and_whole_list() -> None:
    assert api.__all__ == sorted(api.__all__)
    assert set(api.__all__) == {name for name, _ in public(api)}


def loaded_by(*arguments: str) -> set[str]:
    """The modules that `tuneful ARGUMENTS` has imported by its end."""
    program = (
        "import json, sys\n"
        "from tuneful.cli import main\n"
        f"sys.argv = ['tuneful', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("evaluate", "--help"),
        ("show", "--text", "--rows", "2"),
        ("show", "--text", "--json"),
    ],
)
def test_what_needs_no_model_imports_no_torch(arguments: tuple[str, ...]) -> None:
    heavy = {"torch", "transformers", "datasets", "peft"} & loaded_by(*arguments)
    assert not heavy
