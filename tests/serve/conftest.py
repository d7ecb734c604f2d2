"""One server of two tiny random models for all tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.served import EchoDecoder, Server, models_of

from tuneful.infer import continuous
from tuneful.serve.models import Models


@pytest.fixture(scope="session")
def lively_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama with larger weights, whose greedy answers do not repeat one token for ever."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("served") / "lively"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(lively_llama: Path, tiny_gpt2: Path) -> Models:
    """`lively` and `gpt2`."""
    return models_of(lively_llama, tiny_gpt2, settings=["generate.max_new_tokens=24"])


@pytest.fixture(scope="session")
def server(models: Models) -> Iterator[Server]:
    with Server(models) as server:
        yield server


@pytest.fixture
def echoing(models: Models, monkeypatch: pytest.MonkeyPatch) -> list[EchoDecoder]:
    """Every model says its prompt again; the decoders that were made. A test sets `echoing[:] = []` and the time of a step."""
    made: list[EchoDecoder] = []
    lively = models.find("lively")
    end, vocabulary = lively.loaded.encoder.text.end_token_id, lively.loaded.model.config.vocab_size

    def make(model: Any, num_rows: int, num_shared: int, longest: int = 0, laid: Any = None) -> EchoDecoder:
        made.append(EchoDecoder(num_rows, vocabulary, end, seconds=0.002))
        return made[-1]

    monkeypatch.setattr(continuous, "make_decoder", make)
    return made
