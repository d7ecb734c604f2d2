"""llama.cpp in this process: a GGUF file behind its own server, and the questions that are asked of it to compare it with ours.

The server (package xllamacpp) listens on a loopback port that only this process has the key to. Judges ask it for chats; an
export asks it for what has to be equal: token ids, the rendered prompt, the distribution of the next token, greedy answers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import TunefulError

if TYPE_CHECKING:
    import torch

_SECONDS = 600.0
_A_CHARACTER = "root ::= [ -~]+"
"""What the token has to begin that is sampled beside the probabilities, which are those before it: the server tells none with a
token that is no whole character, or the end."""


class LlamaCppError(TunefulError):
    """llama.cpp cannot load a file, or does not answer."""


class LlamaCppMissingError(LlamaCppError):
    """The package xllamacpp is not installed."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What llama.cpp appended to a prompt greedily: token ids, and whether it ended by a token of the end."""

    token_ids: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A GGUF file in llama.cpp; its `server` runs as long as this object exists. To be closed: it is a context manager."""

    file: Path
    client: Any = field(repr=False)
    server: Any = field(repr=False)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *raised: object) -> None:
        self.client.close()

    @classmethod
    def load(cls, file: Path, *, num_ctx: int, adapter: Path | None = None) -> LlamaCpp:
        """Load `file`, with the GGUF adapter `adapter`, for prompts and answers of `num_ctx` tokens.

        What need not be rounded is kept in float32. Raises LlamaCppError, LlamaCppMissingError.
        """
        import httpx2

        key = secrets.token_hex(16)
        server = start_llama_server(file, num_ctx=num_ctx, num_slots=1, key=key, exact=True, adapter=adapter)
        client = httpx2.Client(
            base_url=server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_SECONDS,
            trust_env=False,
        )
        return cls(file, client, server)

    def token_ids(self, text: str, *, with_control: bool = False) -> list[int]:
        """The ids of `text`; `with_control` recognises control tokens in it and puts the begin token that the file asks for."""
        asked = {"content": text, "add_special": with_control, "parse_special": with_control}
        return [int(token_id) for token_id in self._ask("/tokenize", asked)["tokens"]]

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that the file's chat template makes of `messages`."""
        return str(self._ask("/apply-template", {"messages": list(messages)})["prompt"])

    def log_probabilities(self, prompt: Sequence[int], most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `most` likeliest next tokens after `prompt` and their log probabilities: int64 [most], float64 [most]."""
        asked = {
            "prompt": list(prompt),
            "n_predict": 1,
            "n_probs": most,
            "grammar": _A_CHARACTER,
            "cache_prompt": False,
        }
        found = self._ask("/completion", asked)["completion_probabilities"][0]["top_logprobs"]
        import torch  # judges need none of it

        ids = torch.tensor([one["id"] for one in found], dtype=torch.int64)
        return ids, torch.tensor([_number(one["logprob"]) for one in found], dtype=torch.float64)

    def continued(self, prompt: Sequence[int], max_new_tokens: int) -> Continuation:
        """The greedy answer to `prompt`; its token of the end is among the ids."""
        asked = {
            "prompt": list(prompt),
            "n_predict": max_new_tokens,
            "temperature": 0.0,
            "samplers": ["top_k"],
            "top_k": 1,
            "return_tokens": True,
            "cache_prompt": False,
        }
        found = self._ask("/completion", asked)
        return Continuation(tuple(map(int, found["tokens"])), found["stop_type"] == "eos")

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        try:
            response = self.client.post(path, json=body)
            response.raise_for_status()
            document: dict[str, Any] = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise LlamaCppError(f"llama.cpp does not answer {path} of {self.file}: {error}") from error
        return document


def _number(value: float | None) -> float:
    """A log probability; what JSON has no number for is that of a token that cannot come."""
    return -math.inf if value is None else float(value)


def start_llama_server(
    file: Path, *, num_ctx: int, num_slots: int, key: str, exact: bool = False, adapter: Path | None = None
) -> Any:
    """llama.cpp's server with the model `file`, listening on loopback until it is garbage-collected.

    `num_ctx` tokens for each of `num_slots` questions at once. `exact` keeps keys and values in float32. Raises
    LlamaCppMissingError without xllamacpp, LlamaCppError where llama.cpp cannot load the file.
    """
    try:
        import xllamacpp
    except ImportError:
        raise LlamaCppMissingError("xllamacpp is not installed") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel = num_ctx * num_slots, num_slots
    params.api_keys = [key]
    params.warmup = False
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    for threads in (params.cpuparams, params.cpuparams_batch):
        # As torch does. llama.cpp's threads wait by spinning, which on a busy machine costs more than it gains.
        threads.n_threads = int(os.environ.get("OMP_NUM_THREADS") or -1)
        threads.poll = 0
    params.verbosity = 0
    params.ui = False
    logging.getLogger("xllamacpp").setLevel(logging.ERROR)
    try:
        return xllamacpp.Server(params)
    except Exception as error:  # a C++ exception arrives as the type that Cython chose
        raise LlamaCppError(f"llama.cpp cannot load {file}: {json.dumps(str(error))[:200]}") from None
