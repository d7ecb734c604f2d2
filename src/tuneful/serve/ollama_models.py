"""What Ollama's protocol tells of a server and its models: which there are, what they are, which are loaded. All of them always
are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from tuneful.serve.errors import JSON, error_document
from tuneful.serve.models import Models, ServedModel
from tuneful.serve.ollama import LINES
from tuneful.serve.ollama_requests import NamedModel

VERSION = "0.9.0"
"""Of Ollama, whose protocol this is: clients compare it with the version that they need."""
RUNNING = "Ollama is running"
_KEPT = timedelta(days=365)
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


def ollama_models_router(models: Models) -> APIRouter:
    """The routes that tell of models; what is not served of Ollama's protocol is refused by `ollama_rest_router`."""
    router = APIRouter()

    @router.api_route("/api/version", methods=["GET", "HEAD"])
    async def version() -> Response:
        return _json({"version": VERSION})

    @router.api_route("/api/tags", methods=["GET", "HEAD"])
    async def tags() -> Response:
        listed = [{**_named(one), "modified_at": one.modified_at.isoformat(), **_facts(one)} for one in models]
        return _json({"models": listed})

    @router.get("/api/ps")
    async def running() -> Response:
        expires = (datetime.now(timezone.utc) + _KEPT).isoformat()
        loaded = [
            {**_named(one), **_facts(one), "expires_at": expires, "size_vram": 0, "context_length": one.context}
            for one in models
        ]
        return _json({"models": loaded})

    @router.post("/api/show")
    async def show(request: Request) -> Response:
        asked = NamedModel.model_validate_json(await request.body())
        return _json(_shown(models.find(asked.wanted)))

    @router.post("/api/pull")
    async def pull(request: Request) -> Response:
        asked = NamedModel.model_validate_json(await request.body())
        models.find(asked.wanted)  # what is not here is not fetched: the error says so
        if asked.stream is False:
            return _json({"status": "success"})
        return StreamingResponse(_pulled(), media_type=LINES)

    return router


def ollama_rest_router() -> APIRouter:
    """What Ollama does and this server does not: to be asked last."""
    router = APIRouter()

    @router.api_route("/api/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    async def not_done(request: Request, path: str) -> Response:
        message = (
            f"/api/{path} is not served here: models are chosen when `tuneful serve` is started, and answer text alone"
        )
        return Response(json.dumps(error_document(request.url.path, 501, message)), 501, media_type=JSON)

    return router


def running_page() -> Response:
    """What Ollama says at its root."""
    return PlainTextResponse(RUNNING)


async def _pulled() -> AsyncIterator[bytes]:
    for status in ("pulling manifest", "success"):
        yield json.dumps({"status": status}).encode() + b"\n"


def _named(model: ServedModel) -> dict[str, Any]:
    name = model.name if ":" in model.name else f"{model.name}:latest"
    return {"name": name, "model": name}


def _facts(model: ServedModel) -> dict[str, Any]:
    return {"size": model.num_bytes, "digest": model.digest, "details": _details(model)}


def _details(model: ServedModel) -> dict[str, Any]:
    family = _architecture(model).model_type
    return {
        "parent_model": model.base or "",
        "format": "gguf" if model.path.suffix == ".gguf" else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _size(model.num_parameters),
        "quantization_level": _DTYPES.get(str(model.loaded.model.dtype).removeprefix("torch."), "F32"),
    }


def _shown(model: ServedModel) -> dict[str, Any]:
    template = _template(model)
    return {
        "modelfile": f"FROM {model.path}\n",
        "parameters": _parameters(model),
        "template": template,
        "details": _details(model),
        "model_info": _model_info(model),
        "capabilities": ["completion"],
        "modified_at": model.modified_at.isoformat(),
    }


def _parameters(model: ServedModel) -> str:
    """A line a parameter, as Ollama writes them: `stop                           "### Instruction:"`."""
    generate, text = model.loaded.config.generate, model.loaded.encoder.text
    stops = dict.fromkeys((*text.template.stop, *generate.stop))
    values = [("stop", json.dumps(stop, ensure_ascii=False)) for stop in stops]
    values += [("temperature", f"{generate.temperature:g}"), ("repeat_penalty", f"{generate.repetition_penalty:g}")]
    return "\n".join(f"{name:<30} {value}" for name, value in values)


def _template(model: ServedModel) -> str:
    """The prompt format, as a Jinja chat template."""
    text = model.loaded.encoder.text
    bos, end = text.token_text(text.bos_token_ids), text.token_text([text.end_token_id])
    return text.template.chat_template(bos_text=bos, end_text=end)


def _model_info(model: ServedModel) -> dict[str, Any]:
    """Facts by the names that GGUF has for them; never null."""
    config = _architecture(model)
    family = config.model_type
    sizes = {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "vocab_size": "vocab_size",
    }
    found = {f"{family}.{name}": getattr(config, key, None) for name, key in sizes.items()}
    return {
        "general.architecture": family,
        "general.parameter_count": model.num_parameters,
        f"{family}.context_length": model.context,
        **{name: value for name, value in found.items() if isinstance(value, int)},
    }


def _architecture(model: ServedModel) -> Any:
    return model.loaded.model.config.get_text_config()


def _size(num_parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if num_parameters >= unit:
            return f"{num_parameters / unit:.1f}{name}"
    return str(num_parameters)


def _json(document: Any) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), media_type=JSON)
