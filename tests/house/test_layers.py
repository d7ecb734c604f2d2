"""The house: imports point down and run in no circle, each heavy dependency has one door, and nothing opens what it must not."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.house import arrows

import tuneful
from tuneful import cli

SOURCE = Path(tuneful.__file__).parent
FILES = arrows.modules(SOURCE)
MODULES = sorted(FILES)
GROUND = ("errors", "types", "config", "console", "files", "signals", "numbers", "schema")
"""Whatever anybody may import. `schema` is `runs/schema/`, the one part of a room that is of the ground (`arrows.SCHEMA`)."""
ORDER = (
    ("data",),
    ("encoding",),
    ("audit",),
    ("batch",),
    ("model",),
    ("train", "infer"),
    ("evaluation", "influence"),
    ("judge",),
    ("report", "export", "serve", "synthesize"),
    ("runs",),
    ("sweep",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The rooms over the ground, lowest first; those on one level never import each other."""
LEVELS = {name: level for level, names in enumerate((GROUND, *ORDER)) for name in names}
MAX_FILES_AT_THE_TOP = 9
MAX_LINES = 450
TRACKERS = ("mlflow", "tensorboard", "torch.utils.tensorboard", "trackio", "wandb")
DOORS = {
    "torch.distributed": {"tuneful.train.distributed"},
    "peft": {"tuneful.model.lora"},
    "gguf": {"tuneful.export.gguf_file", "tuneful.export.gguf_check", "tuneful.export.gguf_tensors"},
    "pyarrow": {"tuneful.data.tables", "tuneful.data.compression"},
    "httpx2": {"tuneful.judge.client", "tuneful.infer.llama_cpp"},
    "xllamacpp": {"tuneful.infer.llama_cpp"},
    "uvicorn": {"tuneful.commands.serve"},
    "fastapi": {
        "tuneful.commands.serve",
        *(
            f"tuneful.serve.{name}"
            for name in ("app", "errors", "ollama", "ollama_models", "openai", "pages", "replies")
        ),
    },
    **{name: {"tuneful.runs.trackers"} for name in TRACKERS},
}


@cache
def imports(module: str) -> list[tuple[str, bool]]:
    return list(arrows.imports(module, FILES))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = arrows.room(module)
    for imported, typing_only in imports(module):
        if imported.split(".")[0] != "tuneful" or imported == "tuneful" or typing_only:
            continue
        other = arrows.room(imported)
        assert own == other or LEVELS[other] < LEVELS[own] or {own, other} <= set(GROUND), (
            f"{module} imports {imported}"
        )


def test_the_schema_of_a_run_folder_is_of_the_ground_and_the_rest_of_its_room_is_not() -> None:
    found = {name for name in MODULES if arrows.room(name) == "schema"}
    assert found == {name for name in MODULES if name.startswith(arrows.SCHEMA)}
    assert LEVELS["schema"] < LEVELS["data"] < LEVELS[arrows.room("tuneful.runs.folder")]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert arrows.circles(arrows.graph(SOURCE)) == []


def test_a_circle_and_an_import_that_points_up_are_found(tmp_path: Path) -> None:
    package = tmp_path / "tuneful"
    for name, text in {
        "__init__": "",
        "data.__init__": "",
        "data.rows": "from tuneful.data import files",
        "data.files": "def read():\n    from tuneful.data.rows import Row",
        "runs.__init__": "import tuneful.data.rows",
    }.items():
        file = package.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = arrows.graph(package)
    assert arrows.circles(found) == [["tuneful.data.files", "tuneful.data.rows"]]
    assert found["tuneful.runs"] == {"tuneful.data.rows"}


def test_every_room_has_its_place_and_the_top_is_no_hall() -> None:
    at_the_top = [name for name, file in FILES.items() if file.parent == SOURCE]
    assert len(at_the_top) <= MAX_FILES_AT_THE_TOP, at_the_top
    assert {arrows.room(name) for name in MODULES if name != "tuneful"} <= LEVELS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_longer_than_a_reader_finishes(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_training_and_generation_never_import_each_other() -> None:
    for module in MODULES:
        for imported, _ in imports(module):
            assert {arrows.room(module), arrows.room(imported)} != {"train", "infer"}, f"{module} imports {imported}"


@pytest.mark.parametrize("dependency", DOORS)
def test_a_heavy_dependency_has_one_door(dependency: str) -> None:
    used = False
    for module in MODULES:
        for imported, typing_only in imports(module):
            if (imported == dependency or imported.startswith(dependency + ".")) and not typing_only:
                assert module in DOORS[dependency], module
                used = True
    assert used or dependency == "tensorboard", f"{dependency} is imported nowhere"


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
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, mutable):
            for name in node.targets if isinstance(node, ast.Assign) else [node.target]:
                assert isinstance(name, ast.Name)
                assert name.id.isupper() or name.id == "__all__", f"{module}.{name.id}"


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "requests", "urllib.request"}
TELEMETRY = ("posthog", "sentry_sdk", "mixpanel", "analytics", "scarf")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_reads_a_pickle_runs_a_models_code_or_phones_home(module: str) -> None:
    file = FILES[module]
    for imported, _ in imports(module):
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
    tree = ast.parse((SOURCE / "runs" / "trackers.py").read_text(encoding="utf-8"))
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
    assert tuneful.__all__ == sorted(tuneful.__all__)
    homes = {name for names in tuneful._HOMES.values() for name in names}
    assert set(tuneful.__all__) == homes | {"__version__"}
    for name in tuneful.__all__:
        assert getattr(tuneful, name) is not None, name
    commands = set(cli.COMMANDS)
    assert commands <= homes, "every command is a function of the same name"


def test_a_command_that_shares_its_name_with_a_room_stays_a_command_whatever_is_imported() -> None:
    program = (
        "import tuneful, tuneful.train.loop, tuneful.report.build as build\n"
        "assert tuneful.train.__name__ == 'train' and tuneful.report.__name__ == 'report'\n"
        "assert tuneful.train.loop.Training and build.build_report\n"
        "assert tuneful.runs.__name__ == 'runs' and tuneful.runs.schema.as_row\n"
        "from tuneful.train import loop, loss\n"
        "assert loss.micro_batch_loss and tuneful.train.loss is loss\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["nothing is set", "the count is", "the policy is"],
)
def test_waiting_threads_spin_for_microseconds_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import os, tuneful; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, env={**own, **given}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected


def test_importing_the_package_is_quick_and_keeps_the_hub_from_phoning_home() -> None:
    program = (
        "import sys, os, time\nos.environ.pop('HF_HUB_DISABLE_TELEMETRY', None)\nimport tuneful\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


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
        ("runs", "tests", "--json"),
        ("runs", "clean", "tests"),
    ],
)
def test_what_needs_no_model_imports_no_torch(arguments: tuple[str, ...]) -> None:
    heavy = {"torch", "transformers", "datasets", "peft"} & loaded_by(*arguments)
    assert not heavy
