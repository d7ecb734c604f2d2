"""OpenAI's protocol: /v1/chat/completions, /v1/completions, /v1/models. Bodies are read by `openai_requests.py`, and what is sent
is made by `openai_shapes.py`.

A stream is one event a piece of text, `data: JSON` and an empty line, and `data: [DONE]` at its end. `finish_reason` is null
until the last chunk of an answer; `usage` comes where it was asked for, in a chunk without choices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tuneful.errors import TunefulError
from tuneful.infer.generate import stop_token_ids
from tuneful.serve import prompts
from tuneful.serve.engine import Engine, Piece, Scored
from tuneful.serve.errors import JSON, described, error_document
from tuneful.serve.limits import Limits
from tuneful.serve.models import Models, ServedModel
from tuneful.serve.openai_requests import DEFAULT_COMPLETION_TOKENS, ChatRequest, CompletionRequest
from tuneful.serve.openai_shapes import ChatShape, Envelope, Shape, TextShape
from tuneful.serve.prompts import Prompt, RequestError
from tuneful.serve.replies import LEFT, Reply, StreamedResponse, whole
from tuneful.serve.sampling import rows_of

_EVENTS = "text/event-stream"


def openai_router(models: Models, engine: Engine, limits: Limits) -> APIRouter:
    """The routes of OpenAI's protocol."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": [_model(model) for model in models]})

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        return _json(_model(models.find(name)))

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = ChatRequest.model_validate_json(await request.body())
        asked.check(limits)
        model = models.find(asked.model)
        engine.check_room(_num_answers(1, asked.n, limits))
        prompt = await asyncio.to_thread(
            lambda: prompts.chat_prompt(model, prompts.conversation_of(asked.messages), limits)
        )
        reply, shape = _chat(engine, model, asked, prompt, limits)
        return await _respond(request, model, reply, shape, streams=asked.stream, wants_usage=asked.wants_usage)

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = CompletionRequest.model_validate_json(await request.body())
        asked.check(limits)
        model = models.find(asked.model)
        given = asked.prompts
        engine.check_room(_num_answers(len(given), asked.n, limits))
        found = await asyncio.to_thread(lambda: [prompts.text_prompt(model, one, limits) for one in given])
        reply, shape = _completion(engine, model, asked, found, limits)
        return await _respond(request, model, reply, shape, streams=asked.stream, wants_usage=asked.wants_usage)

    return router


def _chat(
    engine: Engine, model: ServedModel, asked: ChatRequest, prompt: Prompt, limits: Limits
) -> tuple[Reply, Shape]:
    sampling = asked.sampling(asked.num_logprobs, asked.most_tokens)
    config = sampling.config(model.loaded.config.generate)
    encoder = model.loaded.encoder
    texts = [prompts.chat_text(encoder, config) for _ in range(asked.n or 1)]
    rows = rows_of([prompt], sampling, config, texts, limits, limits.max_new_tokens)
    stops = stop_token_ids(model.loaded.model, encoder)
    return Reply(engine, model, rows), ChatShape(encoder.text, stops, asked.num_logprobs is not None)


def _completion(
    engine: Engine, model: ServedModel, asked: CompletionRequest, found: Sequence[Prompt], limits: Limits
) -> tuple[Reply, Shape]:
    sampling = asked.sampling(asked.logprobs, asked.max_tokens)
    config = sampling.config(model.loaded.config.generate)
    encoder, each = model.loaded.encoder, asked.n or 1
    texts = [prompts.plain_text(encoder, config) for _ in range(len(found) * each)]
    rows = rows_of(found, sampling, config, texts, limits, DEFAULT_COMPLETION_TOKENS)
    echoed = None
    if asked.echo:
        whole_texts = [
            one if isinstance(one, str) else encoder.text.token_text(one) for one in asked.prompts for _ in range(each)
        ]
        echoed = whole_texts
    reply = Reply(engine, model, rows, num_scored=asked.logprobs if asked.echo else None)
    prompt_ids = [row.row.prompt for row in rows]
    return reply, TextShape(encoder.text, asked.logprobs is not None, echoed, prompt_ids)


async def _respond(
    request: Request, model: ServedModel, reply: Reply, shape: Shape, *, streams: bool | None, wants_usage: bool
) -> Response:
    envelope = Envelope(model, shape)
    if streams:
        return StreamedResponse(reply, _events(reply, shape, envelope, wants_usage), _EVENTS)
    document = await whole(request, reply, _document(reply, shape, envelope))
    return LEFT if document is None else _json(document)


async def _events(reply: Reply, shape: Shape, envelope: Envelope, wants_usage: bool) -> AsyncIterator[bytes]:
    for index in range(len(reply.rows)):
        for choice in shape.opening(index):
            yield _event(envelope.chunk([choice]))
    try:
        async for event in reply:
            for choice in shape.chunks(event):
                yield _event(envelope.chunk([choice]))
    except TunefulError as error:
        status, message, param, code = described(error)
        yield _event(error_document("/v1/", status, message, param, code))
        return
    if wants_usage:
        yield _event(envelope.chunk([], usage=_usage(reply)))
    yield b"data: [DONE]\n\n"


async def _document(reply: Reply, shape: Shape, envelope: Envelope) -> dict[str, Any]:
    events: list[list[Piece | Scored]] = [[] for _ in reply.rows]
    async for event in reply:
        events[event.index].append(event)
    return envelope.document([shape.choice(index, own) for index, own in enumerate(events)], _usage(reply))


def _usage(reply: Reply) -> dict[str, int]:
    prompt, completion = reply.num_prompt_tokens, reply.num_generated
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _num_answers(num_prompts: int, n: int | None, limits: Limits) -> int:
    num_answers = num_prompts * (n or 1)
    if num_answers > limits.max_answers:
        raise RequestError(f"{num_answers} answers at once; at most {limits.max_answers}", "n")
    return num_answers


def _model(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": int(model.modified_at.timestamp()), "owned_by": "tuneful"}


def _json(document: Any) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), media_type=JSON)


def _event(document: Any) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
