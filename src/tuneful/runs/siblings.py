"""What runs of one sweep would compute alike before their first step is computed by one of them and taken by the others.

Runs that differ only in how steps are taken (`OF_STEPS`) begin with the same model, the same records and the same settings of
all else: the self-check comes to the same layout, and the evaluation before the first step to the same loss, bit for bit. Stands
under `setup.py` and `training.py`; the reference of preferences is in `preference.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tuneful.errors import InputError
from tuneful.files import read_lines
from tuneful.runs.folder import METRICS, differences, read_record
from tuneful.runs.resume import FREE_KEYS
from tuneful.runs.schema import Choices, Evaluation, RunRecord, read_strictly

OF_STEPS = frozenset(
    f"train.{name}"
    for name in (
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "eval_steps",
        "eval_share",
        "sample_share",
        "keep",
        "early_stopping_patience",
    )
)
"""Settings that change nothing before the first step."""


def choices_of_siblings(siblings: Sequence[Path], own: RunRecord, num_threads: int, kernels: str) -> Choices | None:
    """What the first of `siblings` chose that is alike and computes as this process would; None where there is none."""
    found = (choices for _, choices in _alike(siblings, own))
    return next((one for one in found if (one.num_threads, one.kernels) == (num_threads, kernels)), None)


def first_evaluation_of_siblings(siblings: Sequence[Path], own: RunRecord) -> Evaluation | None:
    """The evaluation before the first step of the first of `siblings` that is alike and made the choices of this run; None where
    there is none, or where something happened on the way to it."""
    found = (_first_evaluation(path) for path, choices in _alike(siblings, own) if choices == own.choices)
    return next((one for one in found if one is not None), None)


def _alike(siblings: Sequence[Path], own: RunRecord) -> Iterator[tuple[Path, Choices]]:
    for path in siblings:
        try:
            record = read_record(path)
        except InputError:  # damaged: the sweep says so where it goes on with that run
            continue
        if record is not None and record.choices is not None and _begins_alike(record, own):
            yield path, record.choices


def _begins_alike(other: RunRecord, own: RunRecord) -> bool:
    """Whether both begin with the same computation: equal but for `OF_STEPS`, in the settings of the machine, too."""
    if other.training.keys() != own.training.keys():
        return False
    if any(one.key not in OF_STEPS for one in differences(other.training, own.training)):
        return False
    keys = [key.split(".") for key in FREE_KEYS if key.startswith(("train.", "model.device"))]
    return all(other.config[section].get(name) == own.config[section].get(name) for section, name in keys)


def _first_evaluation(path: Path) -> Evaluation | None:
    """The first line of metrics.jsonl, where it is the evaluation of step 0 and nothing else happened before."""
    where = path / METRICS
    if not where.exists():
        return None
    line = next(iter(read_lines(where)), None)
    if line is None or line.row is None or "validation_loss" not in line.row:
        return None
    found = read_strictly(Evaluation, line.row, f"{where}:{line.number}: damaged")
    return found if found.step == 0 and found.sample is None else None
