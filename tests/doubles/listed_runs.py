"""Run folders made by hand, as `tuneful runs` meets them: a few files with figures that can be told by eye, and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneful.config import load_config
from tuneful.runs.folder import RunDir, this_process
from tuneful.runs.schema import Comparison, Environment, MetricComparison, RunRecord, TrainedModel, TrainingSummary

NOW = "2026-11-30T14:00:00+00:00"


def comparison(base: float, tuned: float) -> MetricComparison:
    """ROUGE-L of both, better by half its difference at least."""
    half = abs(tuned - base) / 2
    return MetricComparison(
        name="rouge_l",
        label="ROUGE-L",
        unit="0 to 1",
        higher_is_better=True,
        num_items=20,
        base=base,
        tuned=tuned,
        difference=tuned - base,
        low=tuned - base - half,
        high=tuned - base + half,
        wins=15,
        losses=2,
        ties=3,
        p_value=0.01,
        p_is_exact=True,
        detectable=0.1,
        verdict="better" if tuned > base else "worse",
    )


def write_listed_run(
    path: Path,
    *,
    finished: bool = True,
    verb: str = "run",
    headline: MetricComparison | None = None,
    loss: float = 1.5,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    checkpoint: int | None = None,
) -> Path:
    """A run of 8 steps: a finished one with its checkpoints, or one that was broken off after 7, with that of a step or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = RunDir(path)
    config = load_config(None, ["model.name_or_path=some-model"]).model_dump(mode="json")
    config["data"]["train_file"] = ["my.json"]
    for section, values in (settings or {}).items():
        config[section] |= values
    run.write_record(
        RunRecord(
            verb=verb,
            data=("my.json",),
            folder="/home/somebody",
            allowed=(),
            finished=None,
            started=NOW,
            config=config,
            training={"tokens": "sha256 0"},
            process=this_process(),
        )
    )
    (path / "config.yaml").write_text("train: {}\n")
    run.append_metrics({"step": 6, "validation_loss": 1.75})
    run.append_metrics({"step": 7, "loss": 2.0})
    run.write_document("environment.json", environment())
    if checkpoint is not None or finished:
        place = path / "checkpoints" / f"step-{checkpoint or 8:06d}"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("{}")
        (place / "weights.safetensors").write_bytes(bytes(500))
    if headline is not None:
        run.write_document("comparison.json", of_headline(headline))
    if finished:
        run.write_document("training.json", TrainingSummary(8, 8, 8, loss, 8, 2.5, loss))
        (path / "model").mkdir()
        for name in ("model.safetensors", "tuneful.json"):
            (path / "model" / name).write_text("{}")
        run.note_finished("training.json", "comparison.json", "model")
        run.write_record(replace(run.begun, finished=NOW))
    run.close()
    return path


def of_headline(headline: MetricComparison) -> Comparison:
    """A comparison that measured nothing else."""
    return Comparison(20, 0.95, 1000, 0, headline.name, 5.0, None, (headline,))


def environment() -> Environment:
    """Two phases of twelve seconds in all."""
    return Environment(
        tuneful="0.1.0",
        python="3.11",
        platform="Linux",
        processor="a processor",
        cores=2,
        memory_bytes=1,
        packages={},
        command="tuneful run my.json",
        device="cpu",
        dtype="float32",
        kernels="torch's",
        layout="trie",
        layout_reason=None,
        model=TrainedModel("some-model", 10, 10, "0"),
        started=NOW,
        finished=None,
        phase_seconds={"setup": 2.0, "training": 10.0, "checkpoints": 3.0},
    )
