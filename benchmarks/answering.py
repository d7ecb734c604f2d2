"""The systems of `generate.py`, each a process that answers when it is asked to.

A process reads one line, the prompts as token ids; for each further line, `{"batch_size", "setting", "num_prompts"}`, it
answers that many prompts and replies with the seconds and the token ids, or, where a server tells no more, their numbers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Answers = list[list[int]] | list[int]
Answer = Callable[[list[list[int]], str], Answers]


def work(name: str) -> None:
    """Be the system `name`: the prompts come as a line on standard input, then a line for each pass."""
    system, precision = name.split()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    job = json.loads(sys.stdin.readline())
    answer = {"tuneful": be_tuneful, "transformers": be_transformers, "llama.cpp": be_llama}[system](precision, job)
    answer(job["prompts"][:2], job["setting"])  # once, so that nothing is measured that happens once
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        request = json.loads(line)
        prompts = job["prompts"][: request["num_prompts"]]
        if system == "llama.cpp":
            answer([], request["setting"])  # a server of this setting, which takes a while to start
        start = time.perf_counter()
        answers = answer(prompts, request["setting"])
        channel.write(json.dumps({"seconds": time.perf_counter() - start, "answers": answers}) + "\n")
        channel.flush()


def loaded(precision: str) -> Any:
    """The built-in model and its tokenizer, in a precision."""
    import torch

    from tuneful.model.builtin import BUILTIN
    from tuneful.model.load import load_model
    from tuneful.model.memory import keep_freed_memory
    from tuneful.model.precision import cast_parameters

    keep_freed_memory()
    pretrained = load_model(BUILTIN)
    cast_parameters(pretrained.model, getattr(torch, precision))
    return pretrained


def be_tuneful(precision: str, job: dict[str, Any]) -> Answer:
    """This project, text included; a setting is how many rows are answered at once."""
    from tuneful.config import GenerateConfig
    from tuneful.encoding.template import find_template
    from tuneful.encoding.tokens import TextEncoder
    from tuneful.infer.generate import generate
    from tuneful.infer.text import AnswerText

    pretrained = loaded(precision)
    text = TextEncoder(pretrained.tokenizer, find_template("alpaca"))

    def answer(prompts: list[list[int]], setting: str) -> list[list[int]]:
        config = GenerateConfig(max_new_tokens=job["max_new_tokens"], batch_size=int(setting))
        found = generate(pretrained.model, prompts, config, job["stop"], new_text=lambda: AnswerText(text.decode))
        by_index = {index: list(generated.token_ids) for index, generated in found}
        return [by_index[index] for index in range(len(prompts))]

    return answer


def be_transformers(precision: str, job: dict[str, Any]) -> Answer:
    """transformers' own `generate`, a batch of prompts of like length after the other; a setting is the size of a batch."""
    import torch

    pretrained = loaded(precision)
    model, pad = pretrained.model, job["stop"][0]
    model.set_attn_implementation("sdpa")

    def answer(prompts: list[list[int]], setting: str) -> list[list[int]]:
        batch_size = int(setting)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(prompts[batch[0]])
            ids = torch.tensor([[pad] * (longest - len(prompts[index])) + prompts[index] for index in batch])
            seen = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            with torch.inference_mode():
                found = model.generate(
                    ids,
                    attention_mask=seen,
                    do_sample=False,
                    max_new_tokens=job["max_new_tokens"],
                    eos_token_id=job["stop"],
                    pad_token_id=pad,
                )[:, longest:].tolist()
            for index, row in zip(batch, found, strict=True):
                end = next((at for at, token_id in enumerate(row) if token_id in job["stop"]), len(row) - 1)
                answers[index] = row[: end + 1]
        return answers

    return answer


def be_llama(precision: str, job: dict[str, Any]) -> Answer:
    """llama.cpp's server on the GGUF file, all prompts at once; a setting is a number of slots and words of `_LLAMA`.

    Prompts are not kept for a second pass (`cache_ram_mib`): each pass is the one that its user would see. What requests have
    in common is still found in the slots.
    """
    servers: dict[str, Any] = {}

    def answer(prompts: list[list[int]], setting: str) -> list[int]:
        if setting not in servers:
            servers.clear()  # the one before gives its memory and threads back
            servers[setting] = _llama_server(setting, job)
        server, num_slots = servers[setting], int(setting.split()[0])

        def ask(prompt: list[int]) -> int:
            request = {"prompt": prompt, "max_tokens": job["max_new_tokens"], "temperature": 0}
            return int(server.handle_completions(request)["usage"]["completion_tokens"])

        with ThreadPoolExecutor(len(prompts) if num_slots > 1 and prompts else 1) as pool:
            return list(pool.map(ask, prompts))

    return answer


_LLAMA: dict[str, dict[str, Any]] = {
    "flash": {"flash_attn_type": 1},
    "no-flash": {"flash_attn_type": 0},
    "unified": {"kv_unified": True},
}


def _llama_server(setting: str, job: dict[str, Any]) -> Any:
    import xllamacpp

    from tuneful.model.builtin import builtin_gguf

    slots, *words = setting.split()
    params = xllamacpp.CommonParams()
    params.model.path = str(builtin_gguf())
    longest = max(map(len, job["prompts"])) + job["max_new_tokens"]
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * (-(-longest // 256) * 256)
    params.cont_batching = True
    params.cache_ram_mib = 0
    for word in words:
        for name, value in _LLAMA[word].items():
            kind = type(getattr(params, name))
            setattr(params, name, kind(value))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["num_threads"]
    params.verbosity = 0
    return xllamacpp.Server(params)
