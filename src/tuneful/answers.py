"""A model answers one prompt, a conversation or a whole file: what `tuneful generate` and `tuneful chat` do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneful.config import Config, GenerateConfig
from tuneful.console import Terminal
from tuneful.data.chat_template import OWN, load_template
from tuneful.data.encode import Encoder, TextEncoder
from tuneful.data.prepare import make_encoder
from tuneful.data.read import read_data
from tuneful.data.template import TEMPLATE_FILE, TEMPLATES
from tuneful.errors import ConfigError
from tuneful.infer.generate import answer, answer_each, stream
from tuneful.journal import Journal
from tuneful.model.builtin import cache_root
from tuneful.model.load import load_model
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.rundir import answer_row, write_text
from tuneful.types import Answer, Conversation, Turn


def with_own_template(config: Config) -> Config:
    """`config`, with the template that its model was trained with where the model's folder names one.

    A template that was asked for by name stays; ConfigError where the folder's file is damaged.
    """
    file = Path(config.model.name_or_path) / TEMPLATE_FILE
    if not file.is_file() or config.template.model_fields_set & {"name", "file"}:
        return config
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["template"]
    except (ValueError, KeyError, TypeError):
        name = None
    if name not in (*TEMPLATES, OWN):
        raise ConfigError(f"{file}: names no known template; give template.name={'|'.join((*TEMPLATES, OWN))}")
    return config.model_copy(update={"template": config.template.model_copy(update={"name": name})})


def write_own_template(folder: Path, name: str) -> None:
    """Name in a model's folder the template that it was trained with."""
    write_text(folder / TEMPLATE_FILE, json.dumps({"template": name}) + "\n")


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers what it is asked, under its template and `config`."""

    model: PreTrainedModel
    encoder: Encoder
    config: Config

    @classmethod
    def load(cls, config: Config, terminal: Terminal) -> Speaker:
        """The model that `config` names, on its device and in its precision."""
        device = choose_device(config.model.device)
        pretrained = load_model(config.model.name_or_path, terminal.say)
        cast_parameters(pretrained.model, choose_dtype(config.model.dtype, device, cache_root()))
        text = TextEncoder(pretrained.tokenizer, load_template(config.template, pretrained.tokenizer))
        return cls(pretrained.model.to(device), make_encoder(text, config.data), config)

    def answer(self, instruction: str, input_text: str = "") -> Answer:
        """The answer to one instruction."""
        asked = question("", (), instruction, input_text)
        return answer(self.model, self.encoder, [asked], self.config.generate, seed=self.config.train.seed)[0]

    def stream(self, system: str, history: Sequence[Turn], instruction: str, input_text: str = "") -> Iterator[str]:
        """The answer to an instruction after the turns of `history`, piece by piece."""
        asked = question(system, history, instruction, input_text)
        return stream(self.model, self.encoder, asked, self.config.generate, seed=self.config.train.seed)


def question(system: str, history: Sequence[Turn], instruction: str, input_text: str = "") -> Conversation:
    """What a model is asked, after the turns of `history`, as the conversation whose last response is wanted."""
    # The response stands for the one that is asked for: a prompt is rendered without it.
    return Conversation(system, (*history, Turn(instruction, input_text, "?")), "prompt")


def answer_file(data: str, config: Config, output: Path, terminal: Terminal) -> list[dict[str, Any]]:
    """The model's answers to every record of `data`, written to `output` as JSONL; its rows.

    What an earlier process has answered of the same request is taken as it is.
    """
    file = read_data(data, config.data)
    if output.exists():
        raise ConfigError(f"{output}: already exists; give another --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: its folder does not exist")
    speaker = Speaker.load(config, terminal)
    conversations = [record.conversation for record in file.records]
    with terminal.progress("answers", len(conversations), "answers") as advance:
        rows = answer_all(
            speaker.model,
            speaker.encoder,
            conversations,
            config.generate,
            output,
            seed=config.train.seed,
            advance=advance,
        )
    for refusal in file.refused[:3]:
        terminal.say(f"refused {refusal.source}: {refusal.reason}", style="yellow")
    terminal.say(f"{len(rows) + len(file.refused)} rows = {len(rows)} answered + {len(file.refused)} refused: {output}")
    return rows


def answer_all(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    output: Path,
    *,
    seed: int,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The rows of `output`, which holds them when this returns; each is on disk as soon as it is known.

    Rows that a killed process left are taken; ConfigError where they are of another request.
    """
    with Journal(output, request_sha256(model, encoder, conversations, config, seed)) as journal:
        numbers = range(len(conversations))
        answer_rows(model, encoder, conversations, config, seed=seed, numbers=numbers, journal=journal, advance=advance)
        return journal.finish(len(conversations))


def answer_rows(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    *,
    seed: int,
    numbers: Sequence[int],
    journal: Journal | None,
    advance: Callable[[int], None],
) -> dict[int, dict[str, Any]]:
    """The rows of the conversations that `numbers` counts out, by number; what `journal` knows is not asked again."""
    rows = {number: journal.rows[number] for number in numbers if number in journal.rows} if journal else {}
    missing = [number for number in numbers if number not in rows]
    advance(len(rows))
    asked = [conversations[number] for number in missing]
    for at, given in answer_each(model, encoder, asked, config, seed=seed, numbers=missing):
        rows[missing[at]] = answer_row(given)
        if journal:
            journal.add(missing[at], rows[missing[at]])
        advance(1)
    return rows


def request_sha256(
    model: PreTrainedModel, encoder: Encoder, conversations: Sequence[Conversation], config: GenerateConfig, seed: int
) -> str:
    """What names a request: its weights, prompts, settings and seed; not its `batch_size`, which changes no answer."""
    prompts = [(encoder.prompt_ids(conversation), conversation.source) for conversation in conversations]
    request = json.dumps([_weights_sha256(model), config.model_dump(exclude={"batch_size"}), seed, prompts])
    return hashlib.sha256(request.encode()).hexdigest()


def _weights_sha256(model: PreTrainedModel) -> str:
    """What tells the weights in memory from any others, their precision included."""
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
