"""Runs as a table: which of them, in which order, in which settings they differ, and two lines of 80 columns for each.

Stands over `listing.py`, for `tuneful runs`. What all runs have in common is said once, above the table; a run's second line
says its state, its verdict, and the settings in which it differs from another one.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import InputError
from tuneful.evaluation.metric_specs import label_in_sentence
from tuneful.numbers import plural, rough_duration, storage
from tuneful.runs.listing import ListedRun
from tuneful.runs.schema import MetricComparison

SHOWN_ELSEWHERE = ("data.train_file", "model.name_or_path", "train.method", "train.objective")
"""Settings that a run's own fields tell, and which are no differences besides."""

_STATES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "damaged": "red"}
_WIDTHS: Mapping[str, int] = {"loss": 5, "gain [interval]": 22, "forgot": 6, "KL": 5, "time": 6, "disk": 8}
"""The columns behind the name, and how wide they are."""
_MAX_VALUE = 40  # characters of a setting's value
_MAX_SETTINGS = 8


def _gain(run: ListedRun) -> float | None:
    """How much better the tuned model is by the headline metric: larger is better, whatever the metric."""
    if run.headline is None:
        return None
    return -run.headline.difference if run.headline.higher_is_better is False else run.headline.difference


def _difference(metric: MetricComparison | None) -> float | None:
    return None if metric is None else metric.difference


KEYS: Mapping[str, tuple[Callable[[ListedRun], Any], bool]] = {
    "name": (lambda run: run.name, False),
    "state": (lambda run: run.state, False),
    "data": (lambda run: " ".join(run.data), False),
    "model": (lambda run: run.model, False),
    "method": (lambda run: run.method, False),
    "objective": (lambda run: run.objective, False),
    "verb": (lambda run: run.verb, False),
    "started": (lambda run: run.started, False),
    "validation_loss": (lambda run: run.validation_loss, False),
    "headline": (_gain, True),
    "forgetting": (lambda run: _difference(run.forgetting), False),
    "kl_to_base": (lambda run: _difference(run.kl_to_base), False),
    "steps": (lambda run: run.steps, True),
    "time": (lambda run: run.seconds, False),
    "disk": (lambda run: run.disk_bytes, True),
}
"""What runs are sorted and filtered by, beside their settings: its value, and whether the largest comes first."""


def differing(runs: Sequence[ListedRun]) -> tuple[str, ...]:
    """The settings in which these runs differ, in the order of the configuration; runs that cannot be read say nothing."""
    known = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return tuple(
        key
        for key in keys
        if key not in SHOWN_ELSEWHERE and len({json.dumps(one.get(key), sort_keys=True) for one in known}) > 1
    )


def matching(runs: Sequence[ListedRun], wanted: Sequence[str]) -> list[ListedRun]:
    """The runs that meet every one of `wanted`: KEY=VALUE of a key of `KEYS` or a setting, or a text that stands in
    its name, state, data, model or method.

    Texts are found in any part, numbers are compared as numbers. InputError for an unknown key.
    """
    kept = list(runs)
    for one in wanted:
        key, sign, value = one.partition("=")
        if sign and (key in KEYS or "." in key):
            get = _getter(key, runs)
            kept = [run for run in kept if _agrees(get(run), value)]
        elif sign:
            raise _unknown(key, runs, "--filter")
        else:
            kept = [run for run in kept if one.casefold() in _all_text(run).casefold()]
    return kept


def in_order(runs: Sequence[ListedRun], key: str | None, *, reverse: bool = False) -> list[ListedRun]:
    """The runs by `key`, the best first, or as they were begun; those without a value last, whichever way."""
    get, largest_first = KEYS[key or "started"] if key in KEYS or key is None else (_getter(key, runs), False)
    there = [run for run in runs if get(run) is not None]
    ordered = sorted(there, key=lambda run: _sortable(get(run)), reverse=largest_first is not reverse)
    return ordered + [run for run in runs if get(run) is None]


def show_runs(runs: Sequence[ListedRun], folder: Path, terminal: Terminal, num_left_out: int = 0) -> None:
    """Print the table of `runs`, found below `folder`; `num_left_out` did not meet a filter."""
    left_out = f", {num_left_out} left out by --filter" if num_left_out else ""
    terminal.heading(f"{plural(len(runs), 'run')} in {folder}{left_out}")
    if not runs:
        return
    differences, common = differing(runs), _common(runs)
    if common:
        terminal.say("all: " + ", ".join(f"{name} {value}" for name, value in common.items()), style="dim")
    columns = [name for name in _WIDTHS if name != "KL" or any(run.kl_to_base for run in runs)]
    room = 80 - sum(2 + _WIDTHS[name] for name in columns)
    width = min(max(cell_len(run.name) for run in runs), room)
    terminal.say()
    terminal.say(Text(_line("run", {name: name for name in columns}, width), style="bold"), wrap=False)
    for run in runs:
        if cell_len(run.name) > width:
            terminal.say(run.name, wrap=False)
        cells = {name: cell for name, cell in _cells(run).items() if name in columns}
        terminal.say(_line(run.name if cell_len(run.name) <= width else "", cells, width), wrap=False)
        said = Text(run.state, style=_STATES[run.state])
        said.append("".join(f"; {part}" for part in _second_line(run, differences, common)), style="dim")
        for line in said.wrap(terminal.console, terminal.console.width - 2):
            line.rstrip()
            terminal.say(Text.assemble("  ", line), wrap=False)
    terminal.say()
    terminal.say(_legend(runs), style="dim")


# Choosing


def _getter(key: str, runs: Sequence[ListedRun]) -> Callable[[ListedRun], Any]:
    if key in KEYS:
        return KEYS[key][0]
    if not any(key in run.settings for run in runs) and any(run.settings for run in runs):
        raise _unknown(key, runs, "--sort or --filter")
    return lambda run: run.settings.get(key)


def _unknown(key: str, runs: Sequence[ListedRun], option: str) -> InputError:
    settings = dict.fromkeys(one for run in runs for one in run.settings)
    guess = difflib.get_close_matches(key, [*KEYS, *settings], n=1, cutoff=0.5)
    hint = f"did you mean `{guess[0]}`? " if guess else ""
    return InputError(f"{option}: unknown key `{key}`: {hint}There are {', '.join(KEYS)}, and every setting")


def _agrees(value: Any, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        pass
    if value is None or isinstance(value, bool):
        return setting_text(value) == wanted.casefold()
    return wanted.casefold() in str(value).casefold()


def _sortable(value: Any) -> tuple[int, float, str]:
    """Numbers before texts, each in its own order."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, setting_text(value))


def _all_text(run: ListedRun) -> str:
    return "\n".join((run.name, run.state, run.note, *run.data, run.model or "", run.method or "", run.objective or ""))


# Lines


def setting_text(value: Any) -> str:
    """A setting's value as it is written on the command line: `none`, `true`, `1e-05`, a list by its commas."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(setting_text, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def _common(runs: Sequence[ListedRun]) -> dict[str, str]:
    """What all runs whose files can be read agree in, of data, model and method."""
    known = [_named(run) for run in runs if run.settings]
    return (
        {name: value for name, value in known[0].items() if all(one[name] == value for one in known)} if known else {}
    )


def _named(run: ListedRun) -> dict[str, str]:
    named = {"data": " ".join(run.data), "model": run.model or "", "method": run.method or ""}
    return named if run.objective in (None, "sft") else {**named, "method": f"{run.objective} {run.method}"}


def _line(name: str, cells: Mapping[str, str], width: int) -> str:
    padded = name + " " * (width - cell_len(name))
    return padded + "".join(f"  {cell:>{_WIDTHS[column]}}" for column, cell in cells.items())


def _cells(run: ListedRun) -> dict[str, str]:
    """What stands in each column, in order."""
    found = {
        "loss": "" if run.validation_loss is None else f"{run.validation_loss:.{_decimals(run.validation_loss)}f}",
        "gain [interval]": "" if run.headline is None else _with_interval(run.headline),
        "forgot": "" if run.forgetting is None else f"{run.forgetting.difference:+.3f}",
        "KL": "" if run.kl_to_base is None else f"{run.kl_to_base.difference:.{_decimals(run.kl_to_base.difference)}f}",
        "time": "" if run.seconds is None else rough_duration(run.seconds),
        "disk": storage(run.disk_bytes).replace(",", ""),
    }
    assert list(found) == list(_WIDTHS)
    return found


def _with_interval(metric: MetricComparison) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.difference:+.{_decimals(abs(metric.difference))}f} [not known]"
    decimals = _decimals(max(abs(metric.low), abs(metric.high)))
    difference, low, high = (f"{value:+.{decimals}f}" for value in (metric.difference, metric.low, metric.high))
    return f"{difference} [{low},{high}]"


def _decimals(largest: float) -> int:
    """As many as leave a figure five characters."""
    return 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0


def _second_line(run: ListedRun, differences: Sequence[str], common: Mapping[str, str]) -> list[str]:
    """What stands behind the state: reason, verdict, and settings as they would be written to begin such a run."""
    parts = [run.note] if run.note and run.state != "running" else []
    if (metric := run.headline) is not None:
        decimals = 1 if metric.unit == "0 to 100" else 3
        figures = f"{metric.base:.{decimals}f} -> {metric.tuned:.{decimals}f}"
        parts.append(f"{label_in_sentence(metric)} {figures}, {metric.verdict}")
    named = _named(run) if run.settings else {}
    own = [f"{name}={value}" for name, value in named.items() if name not in common]
    keys = _telling(run, differences) if run.settings else []
    own += [f"{key}={_short(setting_text(run.settings.get(key)))}" for key in keys[:_MAX_SETTINGS]]
    if num_more := len(keys[_MAX_SETTINGS:]):
        own.append(f"and {num_more} more")
    return [*parts, *([" ".join(own)] if own else [])]


def _telling(run: ListedRun, differences: Sequence[str]) -> list[str]:
    """The settings in which the runs differ, those first that this run does not leave at their default."""
    defaults = {
        f"{name}.{key}": value for name, keys in Config().model_dump(mode="json").items() for key, value in keys.items()
    }
    return sorted(differences, key=lambda key: run.settings.get(key) == defaults.get(key))


def _short(value: str) -> str:
    return shlex.quote(value if len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 3] + "...")


def _legend(runs: Sequence[ListedRun]) -> str:
    said = ["loss: validation loss of the weights that were kept, nats a token"]
    if metrics := dict.fromkeys(label_in_sentence(run.headline) for run in runs if run.headline):
        levels = dict.fromkeys(f"{100 * run.confidence:g} %" for run in runs if run.confidence)
        said.append(f"gain: tuned - base by {' or '.join(metrics)}, {' or '.join(levels)} interval")
    if any(run.forgetting for run in runs):
        said.append("forgot: bits per byte of general text, tuned - base")
    if any(run.kl_to_base for run in runs):
        said.append("KL: to base, bits per token of the base's own text")
    return "; ".join(said)
