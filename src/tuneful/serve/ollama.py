"""Ollama's protocol: /api/chat and /api/generate. What it tells of models is in `ollama_models.py`.

A stream is one JSON object a line, every line ended, and the last one says `done`, why, and what it took in nanoseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request, Response

from tuneful.errors import TunefulError
from tuneful.infer.text import AnswerText
from tuneful.serve import prompts
from tuneful.serve.engine import Engine, Piece
from tuneful.serve.errors import JSON, described
from tuneful.serve.limits import Limits
from tuneful.serve.models import Models, ServedModel
from tuneful.serve.ollama_requests import ChatRequest, GenerateRequest, Options
from tuneful.serve.prompts import Prompt
from tuneful.serve.replies import LEFT, Reply, StreamedResponse, whole
from tuneful.serve.sampling import rows_of

LINES = "application/x-ndjson"
Said = Callable[[str], dict[str, Any]]
"""What carries a text: `{"message": ...}` or `{"response": ...}`."""


def ollama_router(models: Models, engine: Engine, limits: Limits) -> APIRouter:
    """The routes that answer."""
    router = APIRouter()

    @router.post("/api/chat")
    async def chat(request: Request) -> Response:
        asked = ChatRequest.model_validate_json(await request.body())
        asked.check()
        model = models.find(asked.wanted)
        if not asked.messages:
            return _loaded(model, _message, asked.keep_alive)
        engine.check_room(1)
        messages, context = asked.messages, asked.options.num_ctx
        prompt = await asyncio.to_thread(
            lambda: prompts.chat_prompt(
                model, prompts.conversation_of(messages), limits, context=context or None, drops=True
            )
        )
        reply = _reply(engine, model, prompt, asked.options, limits, raw=False)
        return await _respond(request, model, reply, _message, streams=asked.stream)

    @router.post("/api/generate")
    async def generate(request: Request) -> Response:
        asked = GenerateRequest.model_validate_json(await request.body())
        asked.check()
        model = models.find(asked.wanted)
        if not asked.prompt:
            return _loaded(model, _response, asked.keep_alive)
        engine.check_room(1)
        prompt = await asyncio.to_thread(_generate_prompt, model, asked, asked.prompt, limits)
        reply = _reply(engine, model, prompt, asked.options, limits, raw=bool(asked.raw))
        return await _respond(request, model, reply, _response, streams=asked.stream)

    return router


def _generate_prompt(model: ServedModel, asked: GenerateRequest, text: str, limits: Limits) -> Prompt:
    context = asked.options.num_ctx or None
    if asked.raw:
        return prompts.text_prompt(model, text, limits, context=context)
    messages = [{"role": "system", "content": asked.system or ""}, {"role": "user", "content": text}]
    return prompts.chat_prompt(model, prompts.conversation_of(messages), limits, context=context)


def _reply(engine: Engine, model: ServedModel, prompt: Prompt, options: Options, limits: Limits, *, raw: bool) -> Reply:
    sampling, encoder = options.sampling, model.loaded.encoder
    config = sampling.config(model.loaded.config.generate)
    text: AnswerText = (prompts.plain_text if raw else prompts.chat_text)(encoder, config)
    return Reply(engine, model, rows_of([prompt], sampling, config, [text], limits, limits.max_new_tokens))


async def _respond(request: Request, model: ServedModel, reply: Reply, said: Said, *, streams: bool | None) -> Response:
    if streams is not False:
        return StreamedResponse(reply, _lines(model, reply, said), LINES)
    document = await whole(request, reply, _document(model, reply, said))
    return LEFT if document is None else Response(_line(document), media_type=JSON)


async def _lines(model: ServedModel, reply: Reply, said: Said) -> AsyncIterator[bytes]:
    finish_reason = "stop"
    try:
        async for event in reply:
            assert isinstance(event, Piece)
            if event.text:
                yield _line({**_head(model), **said(event.text), "done": False})
            finish_reason = event.finish_reason or finish_reason
    except TunefulError as error:
        yield _line({"error": described(error)[1]})
        return
    yield _line({**_head(model), **said(""), **_done(reply, finish_reason)})


async def _document(model: ServedModel, reply: Reply, said: Said) -> dict[str, Any]:
    text, finish_reason = "", "stop"
    async for event in reply:
        assert isinstance(event, Piece)
        text += event.text
        finish_reason = event.finish_reason or finish_reason
    return {**_head(model), **said(text), **_done(reply, finish_reason)}


def _done(reply: Reply, finish_reason: str) -> dict[str, Any]:
    """Why it ended, and what it took: waiting counts as loading."""
    ticket = reply.ticket
    entered = ticket.entered_at or ticket.came_at
    first = ticket.first_at or entered
    ended = ticket.ended_at or first
    return {
        "done": True,
        "done_reason": finish_reason,
        "total_duration": ended - ticket.came_at,
        "load_duration": entered - ticket.came_at,
        "prompt_eval_count": reply.num_prompt_tokens,
        "prompt_eval_duration": first - entered,
        "eval_count": reply.num_generated,
        "eval_duration": ended - first,
    }


def _loaded(model: ServedModel, said: Said, keep_alive: Any) -> Response:
    """The answer to a request that asks nothing: the model is loaded already, and stays so."""
    reason = "unload" if keep_alive in (0, "0", "0s", "0m") else "load"
    return Response(_line({**_head(model), **said(""), "done": True, "done_reason": reason}), media_type=JSON)


def _head(model: ServedModel) -> dict[str, Any]:
    return {"model": model.name, "created_at": now()}


def now() -> str:
    """This moment, as RFC 3339 has it and Python reads it."""
    return datetime.now(timezone.utc).isoformat()


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _response(text: str) -> dict[str, Any]:
    return {"response": text}


def _line(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
