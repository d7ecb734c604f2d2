"""Trackers get the numbers of metrics.jsonl, are imported when asked for, and never stop a run."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tuneful.errors import ConfigError, TunefulError
from tuneful.runs.trackers import Tracker, Trackers, check_installed, open_trackers

SETTINGS = {"train": {"learning_rate": 1e-4}, "model": {"name_or_path": "here"}}
STEP = {"step": 3, "loss": 1.5, "epoch": 1, "sample": {"text": "x"}, "note": "n", "flag": True, "validation_loss": None}


class Recorder:
    """Stands for a service: every call is written down."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.fixture
def service(monkeypatch):
    """A stand-in for each tracker's module."""

    def stand_in(name):
        recorder = Recorder()
        module = ModuleType(name)
        setattr(module, "__getattr__", lambda attribute: getattr(recorder, attribute))  # noqa: B010
        monkeypatch.setitem(sys.modules, name, module)
        if name == "tensorboard":
            monkeypatch.setitem(
                sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda path: recorder)
            )
        return recorder

    return stand_in


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_gets_settings_and_the_numbers_of_each_line_and_is_closed(name, service, tmp_path):
    recorder = service(name)
    trackers = open_trackers([name], tmp_path / "my-run", SETTINGS)
    assert "train.learning_rate" in str(recorder.calls)
    assert name == "tensorboard" or "my-run" in str(recorder.calls)
    before = len(recorder.calls)
    assert trackers.log(STEP) == []
    logged = str(recorder.calls[before:])
    assert "1.5" in logged
    assert "epoch" in logged
    assert "3" in logged
    assert not any(word in logged for word in ("sample", "note", "flag", "validation"))
    assert trackers.close() == []
    assert recorder.calls[-1][0] in ("close", "finish", "end_run")


def test_one_that_is_not_installed_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    check_installed(["trackio"])
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install 'tuneful\[wandb\]'"):
        check_installed(["trackio", "wandb"])


def test_one_that_cannot_start_is_named(service, tmp_path, monkeypatch):
    service("wandb")
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0, raising=False)
    with pytest.raises(TunefulError, match="wandb could not start: division by zero"):
        open_trackers(["wandb"], tmp_path, SETTINGS)


def test_one_that_fails_in_the_middle_is_named_once_and_the_others_go_on():
    got: list[Any] = []
    closed: list[str] = []

    def fail(step, figures):
        raise ConnectionError("no route")

    trackers = Trackers(
        [
            Tracker("away", fail, lambda: None),
            Tracker("here", lambda step, figures: got.append((step, figures)), lambda: closed.append("here")),
        ]
    )
    [said] = trackers.log(STEP)
    assert said.startswith("away failed and gets no more figures: no route")
    assert trackers.log({"step": 4, "loss": 1.0}) == []
    assert trackers.close() == []
    assert got == [(3, {"loss": 1.5, "epoch": 1.0}), (4, {"loss": 1.0})]
    assert closed == ["here"]
