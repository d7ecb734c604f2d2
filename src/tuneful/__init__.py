"""Instruction finetuning that shows its work.

    import tuneful

    result = tuneful.run("my.json")              # check, split, answer, train, answer again, compare, report
    print(result.report, result.comparison)

Every command is a function of the same name that returns a typed result and prints nothing unless it is given a terminal;
settings are a `Config` (`load_config(overrides=["train.learning_rate=1e-4"])`). Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneful.commands.chat import ChatSession, chat
    from tuneful.commands.check import Checked, check
    from tuneful.commands.compare import ComparisonResult, compare
    from tuneful.commands.doctor import doctor
    from tuneful.commands.evaluate import EvaluationResult, evaluate
    from tuneful.commands.evaluate_tests import TasksResult, evaluate_tests
    from tuneful.commands.explain import ExplainResult, explain
    from tuneful.commands.export import ExportResult, export
    from tuneful.commands.generate import generate, generate_file
    from tuneful.commands.report import report
    from tuneful.commands.run import dry_run, run, train
    from tuneful.commands.runs import CleanResult, RunList, clean_runs, runs
    from tuneful.commands.serve import serve
    from tuneful.commands.show import show
    from tuneful.commands.sweep import sweep
    from tuneful.commands.synthesize import SynthesisResult, synthesize
    from tuneful.config import Config, load_config
    from tuneful.console import Terminal
    from tuneful.errors import InputError, TunefulError
    from tuneful.runs.job import JobResult
    from tuneful.types import Answer, Conversation, Example, Turn, Verdict

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ChatSession",
    "Checked",
    "CleanResult",
    "ComparisonResult",
    "Config",
    "Conversation",
    "EvaluationResult",
    "Example",
    "ExplainResult",
    "ExportResult",
    "InputError",
    "JobResult",
    "RunList",
    "SynthesisResult",
    "TasksResult",
    "Terminal",
    "TunefulError",
    "Turn",
    "Verdict",
    "__version__",
    "chat",
    "check",
    "clean_runs",
    "compare",
    "doctor",
    "dry_run",
    "evaluate",
    "evaluate_tests",
    "explain",
    "export",
    "generate",
    "generate_file",
    "load_config",
    "report",
    "run",
    "runs",
    "serve",
    "show",
    "sweep",
    "synthesize",
    "train",
]

_HOMES = {
    "commands.chat": ("ChatSession", "chat"),
    "commands.check": ("Checked", "check"),
    "commands.compare": ("ComparisonResult", "compare"),
    "commands.doctor": ("doctor",),
    "commands.evaluate": ("EvaluationResult", "evaluate"),
    "commands.evaluate_tests": ("TasksResult", "evaluate_tests"),
    "commands.explain": ("ExplainResult", "explain"),
    "commands.export": ("ExportResult", "export"),
    "commands.generate": ("generate", "generate_file"),
    "commands.report": ("report",),
    "commands.run": ("dry_run", "run", "train"),
    "commands.runs": ("CleanResult", "RunList", "clean_runs", "runs"),
    "commands.serve": ("serve",),
    "commands.show": ("show",),
    "commands.sweep": ("sweep",),
    "commands.synthesize": ("SynthesisResult", "synthesize"),
    "config": ("Config", "load_config"),
    "console": ("Terminal",),
    "errors": ("InputError", "TunefulError"),
    "runs.job": ("JobResult",),
    "types": ("Answer", "Conversation", "Example", "Turn", "Verdict"),
}
"""The module that each public name is imported from when it is first used."""

_ROOMS = ("export", "report", "runs", "serve", "sweep", "synthesize", "train")
"""Commands that share their name with a room of the package."""

# These count only before torch and the Hub's client are loaded: large buffers in huge pages; what the GPU of a Mac has no
# operation for on its processor; threads that wait for one another go to sleep after some microseconds, where they would hold a
# processor that somebody else needs (LOG.md); and no telemetry.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
if "TUNEFUL_PROCESSOR" in os.environ:
    for _variable, _value in importlib.import_module("tuneful.model.processor").settings_of_torch().items():
        os.environ.setdefault(_variable, _value)
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'tuneful' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tuneful.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})


class _Package(ModuleType):
    """`tuneful.train` is the command, whether or not the room `tuneful.train` was imported; the room's modules are its own.

    The import system sets a package's submodules as its attributes; for these names the command stays.
    """


def _command(name: str) -> property:
    def get(package: ModuleType) -> Any:
        command = __getattr__(name)
        if (room := sys.modules.get(f"tuneful.{name}")) is not None:
            command.__dict__.update({key: value for key, value in vars(room).items() if isinstance(value, ModuleType)})
        return command

    return property(get, lambda package, room: None)


for _name in _ROOMS:
    setattr(_Package, _name, _command(_name))
sys.modules[__name__].__class__ = _Package
