"""The model card of a run: written with the model, and again with the comparison once that is there."""

from __future__ import annotations

from tuneful.export.card import Card, data_name, license_of, write_card
from tuneful.runs.schema import Comparison, TrainingSummary, read_strictly
from tuneful.runs.setup import RunState


def describe_model(run: RunState, comparison: Comparison | None = None) -> Card:
    """What the card tells of the trained model of a run; the training is done."""
    return Card(
        facts=_facts(run),
        data=run.folder.begun.data,
        data_sha256=run.dataset.file.sha256,
        license=license_of(run.pretrained.folder, run.pretrained.name),
        comparison=comparison,
        general=run.config.report.general,
    )


def rewrite_card(run: RunState, comparison: Comparison) -> None:
    """The card of the saved model, with the comparison in it."""
    if run.group.is_main:
        write_card(run.folder.model, run.pretrained.name, describe_model(run, comparison), run.config.model.save_dtype)


def _facts(run: RunState) -> dict[str, str]:
    tokens, config = run.audit.train_tokens, run.config
    training = read_strictly(TrainingSummary, run.folder.read_json("training.json"), "training.json")
    replay = {} if config.data.replay is None else {"replayed": data_name(config.data.replay)}
    return {
        "training records": f"{len(run.dataset.train):,}",
        "template": config.template.name,
        "trained tokens": f"{tokens.trained:,} of {tokens.record:,}",
        "method": config.train.method,
        **replay,
        "epochs": f"{config.train.num_train_epochs:g}",
        "weights of step": str(training.kept_step),
        "learning rate": f"{config.train.learning_rate:g}",
        "records a step": str(config.train.batch_size),
        "seed": str(config.train.seed),
    }
