"""A teacher on loopback over both wires: what it says follows from what it is asked, so that equal work makes equal files."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL, Backend, Request, head, honest_body, serving, tags

NOUNS = (
    *("a lighthouse", "the monsoon", "an abacus", "sourdough", "a glacier", "the printing press", "a compass", "rust"),
    *(
        "an orchard",
        "paper money",
        "a sonnet",
        "the tide",
        "a bicycle",
        "an eclipse",
        "vinegar",
        "a harbour",
        "a violin",
    ),
    *("the alphabet", "a beehive", "salt", "a mirror", "the moon", "a bridge", "clay"),
)
VERBS = (
    "Explain",
    "Describe",
    "Sketch",
    "Compare",
    "Summarise",
    "Defend",
    "Question",
    "Introduce",
    "Illustrate",
    "Trace",
)
ENDS = (
    *("to a child", "for a newspaper", "in one sentence", "as a recipe", "with an example from history"),
    *("to somebody in a hurry", "in plain words", "for an exam", "as a dialogue", "without any jargon"),
)


def chosen(request: Request, salt: str = "") -> int:
    """A number that follows from the prompt and the seed of a request."""
    seed = request.body.get("seed", request.body.get("options", {}).get("seed"))
    return int.from_bytes(hashlib.sha256(f"{salt} {seed} {text_of(request)}".encode()).digest()[:8], "big")


def text_of(request: Request) -> str:
    """All that the request says to the model."""
    return request.prompt if "messages" in request.body else str(request.body["prompt"])


def new_task(number: int) -> dict[str, str]:
    """One of many tasks that are unlike one another, with its answer."""
    one, other = NOUNS[number % len(NOUNS)], NOUNS[number // 31 % len(NOUNS)]
    verb, end = VERBS[number // 977 % len(VERBS)], ENDS[number // 7919 % len(ENDS)]
    instruction = f"{verb} {one} and what it shares with {other}, {end}, in {2 + number % 9973} words."
    return {
        "instruction": instruction,
        "input": "",
        "output": f"It is about {one}; {other} comes into it in place {number}.",
    }


def honest(request: Request) -> str:
    """What a good teacher says."""
    number, text = chosen(request), text_of(request)
    wanted = request.body.get("format") or request.body.get("response_format", {}).get("json_schema", {}).get("schema")
    fields = set(wanted["properties"]) if wanted else set()
    if "id" in fields:  # a verdict
        (nonce,) = wanted["properties"]["id"]["enum"]
        verdict = {"winner": "ABtie"[number % 2]} if "winner" in fields else {"score": number % 101}
        return json.dumps({"id": nonce, **verdict})
    task = new_task(number)
    if "reflection" in fields:
        kept = {name: task[name] for name in fields - {"reflection"}}
        return json.dumps({"reflection": f"It could be clearer in {number} ways.", **kept})
    if fields:
        return json.dumps(task)
    return f"A reply of its own to {len(text)} signs: {NOUNS[number % len(NOUNS)]}, {number}."


@dataclass
class Teacher:
    """Answers honestly, or as `says` has it; counts how often each request came."""

    says: Callable[[Request], str] = honest
    latency_seconds: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)

    async def behave(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """One request."""
        if request.method == "GET":
            body = tags()
        else:
            self.requests.append(request)
            self.asked[f"{chosen(request)}"] += 1
            await asyncio.sleep(self.latency_seconds)
            body = body_of(request, self.says(request), prompt_tokens=len(text_of(request)) // 4)
        writer.write(head(200, length=len(body)) + body)
        await writer.drain()

    def sent(self, name: str) -> list[Any]:
        """The parameter `name` of every request, wherever the wire has it."""
        return [one.body.get(name, one.body.get("options", {}).get(name)) for one in self.requests]


def body_of(request: Request, text: str, **changed: Any) -> bytes:
    """A whole reply in the form of the request's wire; `changed` keys of its object."""
    if "messages" in request.body:
        return honest_body(request.wire, text, **changed)
    changed.pop("prompt_tokens", None)
    counts = {"prompt_eval_count": 20, "eval_count": 9}
    if request.wire == "ollama":
        whole = {"model": MODEL, "response": text, "done": True, "done_reason": "stop", **counts, **changed}
        return json.dumps(whole).encode()
    usage = {"prompt_tokens": 20, "completion_tokens": 9}
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return json.dumps({"model": MODEL, "choices": [choice], "usage": usage, **changed}).encode()


@contextmanager
def teaching(teacher: Any, wire: Backend = "ollama") -> Iterator[str]:
    """The name of a teacher that is served while the block runs."""
    with serving(teacher.behave) as origin, pytest.MonkeyPatch.context() as patch:
        if wire == "ollama":
            patch.setenv("OLLAMA_HOST", origin)
        else:
            patch.setenv("OPENAI_BASE_URL", f"{origin}/v1")
        yield f"{wire}/{MODEL}"
