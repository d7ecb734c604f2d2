"""The model card of a run: written with the model, and again with the comparison once that is there."""

from __future__ import annotations

from dataclasses import replace

from tuneful.config import PREFERENCE_OBJECTIVES
from tuneful.export.card import Card, data_name, license_of, title_of, write_card
from tuneful.model.gguf_header import gguf_hub_id
from tuneful.runs.method import IN_4_BITS
from tuneful.runs.schema import Comparison, TrainingSummary
from tuneful.runs.setup import RunState


def describe_model(run: RunState, comparison: Comparison | None = None) -> Card:
    """What the card tells of the trained model of a run; the training is done."""
    folder = run.pretrained.folder
    return Card(
        facts=_facts(run),
        data=run.folder.begun.data,
        data_sha256=run.dataset.file.sha256,
        license=license_of(folder, run.pretrained.name),
        comparison=comparison,
        general=run.config.report.general,
        base_id=gguf_hub_id(folder) if folder.is_file() else None,
        base_title=title_of(folder),
        is_of_4_bits=run.config.train.method == "qlora",
    )


def rewrite_card(run: RunState, comparison: Comparison) -> None:
    """The card of what was saved, model and adapter, with the comparison in it."""
    if not run.group.is_main:
        return
    card, name = describe_model(run, comparison), run.pretrained.name
    if run.folder.model.is_dir():
        write_card(run.folder.model, name, card, run.config.model.save_dtype)
    if run.folder.adapter.is_dir():
        write_card(run.folder.adapter, name, replace(card, is_adapter=True), "float32")


def _facts(run: RunState) -> dict[str, str]:
    tokens, config = run.audit.train_tokens, run.config
    training = run.folder.read_document(TrainingSummary, "training.json")
    assert training is not None, "the training is not done"
    replay = {} if config.data.replay is None else {"replayed": data_name(config.data.replay)}
    lora = config.lora
    adapter = {} if config.train.method == "full" else {"adapter": f"rank {lora.r}, alpha {lora.alpha:g}"}
    if config.train.method == "qlora":
        adapter |= {"base while training": IN_4_BITS}
    preference, objective = config.preference, config.train.objective
    losses = ", ".join(preference.resolved_loss_types(objective))
    learned = {"objective": f"{objective} ({losses}), beta {preference.resolved_beta(objective):g}"}
    return {
        **(learned if objective in PREFERENCE_OBJECTIVES else {}),
        "training records": f"{len(run.dataset.train):,}",
        "template": config.template.name,
        "trained tokens": f"{tokens.trained:,} of {tokens.record:,}",
        "method": config.train.method,
        **adapter,
        **replay,
        "steps": f"{training.steps:,} of {config.train.batch_size} records",
        "epochs": f"{_epochs(run, training):.3g}",
        "weights of step": str(training.kept_step),
        "learning rate": f"{config.train.learning_rate:g}",
        "seed": str(config.train.seed),
    }


def _epochs(run: RunState, training: TrainingSummary) -> float:
    """Passes over the training records that were made: fewer than were asked for where the training was short."""
    taken = training.steps * run.config.train.batch_size / run.epoch_length
    return taken if run.config.train.max_steps else min(taken, run.config.train.num_train_epochs)
