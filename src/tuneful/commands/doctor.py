"""`tuneful doctor`: what this machine offers, the first thing to look at when something is slow or fails."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.commands.options import Json, Model

if TYPE_CHECKING:
    from tuneful.console import Terminal

ENVIRONMENT = (
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TUNEFUL_CACHE",
    "TUNEFUL_NATIVE",
    "TUNEFUL_PROCESSOR",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


EXTRAS = {
    "judge": ("xllamacpp",),
    "export": ("xllamacpp",),
    "serve": ("fastapi", "uvicorn"),
    "qlora": ("bitsandbytes",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""What is installed on demand, and the modules that it brings."""


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "firefox")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def doctor(model: str | None = None) -> dict[str, Any]:
    """Machine, versions, the device and precision that `auto` would choose, room in the cache, and settings that count; under
    `parts` what of the machine is used, and why the rest is not.

    With `model` also what that is and what training it would take, from its headers: under `model`. Raises ModelError.
    """
    import torch

    from tuneful.files import cache_root, free_bytes
    from tuneful.judge.client import ollama_version
    from tuneful.model.native import describe
    from tuneful.model.onednn import multiplies_bfloat16
    from tuneful.model.precision import choose_device, choose_dtype
    from tuneful.model.used import parts_of_machine
    from tuneful.runs.environment import describe_machine
    from tuneful.runs.model_facts import model_facts

    device, cache = choose_device("auto"), cache_root()
    facts = {} if model is None else {"model": model_facts(model).document()}
    return {
        **facts,
        **describe_machine(),
        "device": str(device),
        "dtype": str(choose_dtype("auto", device, cache)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "native_bfloat16": multiplies_bfloat16(),
        "kernels": describe(),
        "parts": [asdict(part) for part in parts_of_machine(cache)],
        "extras": {extra: all(map(_is_installed, modules)) for extra, modules in EXTRAS.items()},
        "ollama": dict(zip(("address", "version"), ollama_version(os.environ.get("OLLAMA_HOST", "")), strict=True)),
        "browser": next(filter(None, map(shutil.which, BROWSERS)), None),
        "cache": str(cache),
        "cache_bytes": _bytes_below(cache),
        "cache_free_bytes": free_bytes(cache),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`, but of those that another process takes away meanwhile."""
    num_bytes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                num_bytes += os.path.getsize(os.path.join(place, name))
    return num_bytes


def doctor_command(model: Model = None, as_json: Json = False) -> None:
    """What this machine offers, and whether Tuneful can work on it; with --model what that model is and would take."""
    from tuneful.console import Terminal, to_stdout

    if model is not None and not as_json:
        show_model(model, Terminal(stderr=False))
        return
    findings = doctor(model)
    if as_json:
        to_stdout(json.dumps(findings, indent=1))
    else:
        show_findings(findings, Terminal(stderr=False))


def show_model(model: str, terminal: Terminal) -> None:
    """What the model is and would take, for a person."""
    from tuneful.runs.model_facts import facts_in_words, model_facts

    terminal.facts(facts_in_words(model_facts(model)))


def show_findings(findings: dict[str, Any], terminal: Terminal) -> None:
    """The findings for a person."""
    gib = 1 << 30
    terminal.facts(
        {
            "tuneful": f"{findings['tuneful']}, Python {findings['python']}, {findings['platform']}",
            "processor": f"{findings['processor']}, {findings['cores']} cores, {findings['threads']} threads, "
            f"{findings['memory_bytes'] / gib:.1f} GiB of memory",
            "device": f"{findings['device']}, compute dtype {findings['dtype']}",
            **{part["name"]: f"{'used' if part['used'] else 'not used'}: {part['why']}" for part in findings["parts"]},
            "packages": ", ".join(f"{name} {version}" for name, version in findings["packages"].items()),
            "extras": ", ".join(
                f"{extra} {'installed' if is_there else 'not installed'}"
                for extra, is_there in findings["extras"].items()
            ),
            "ollama": f"version {ollama['version']} at {ollama['address']}"
            if (ollama := findings["ollama"])["version"]
            else f"no server answers at {ollama['address']}",
            "browser": findings["browser"] or "none on the PATH; reports open in any",
            "cache": f"{findings['cache']}, {findings['cache_bytes'] / gib:.1f} GiB, which may be deleted; "
            f"{findings['cache_free_bytes'] / gib:.1f} GiB free",
            "settings": ", ".join(f"{name}={value}" for name, value in findings["environment"].items()) or "none",
        }
    )
