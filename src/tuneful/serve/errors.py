"""An error in the shape of the protocol that was spoken: OpenAI's under /v1, Ollama's everywhere else."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response
from pydantic import ValidationError

from tuneful.serve.engine import RETRY_AFTER_SECONDS, QueueFullError
from tuneful.serve.models import UnknownModelError
from tuneful.serve.prompts import RequestError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "overloaded_error"}
JSON = "application/json"


def is_openai(path: str) -> bool:
    """Whether a path is of OpenAI's protocol."""
    return path == "/v1" or path.startswith("/v1/")


def error_document(
    path: str, status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The error as an object of the protocol of `path`."""
    if not is_openai(path):
        return {"error": message}
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refused(path: str, status: int, message: str) -> tuple[bytes, bytes]:
    """(content type, body) of an error."""
    return JSON.encode(), json.dumps(error_document(path, status, message)).encode()


def error_response(path: str, error: Exception) -> Response:
    """The response to a request that raised `error`."""
    status, message, param, code = described(error)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    body = json.dumps(error_document(path, status, message, param, code))
    return Response(body, status, headers, JSON)


def described(error: Exception) -> tuple[int, str, str | None, str | None]:
    """(status, message, key, OpenAI's code) of what went wrong."""
    if isinstance(error, QueueFullError):
        return 503, str(error), None, "queue_full"
    if isinstance(error, UnknownModelError):
        return 404, str(error), "model", "model_not_found"
    if isinstance(error, RequestError):
        return 400, str(error), error.param, error.code
    if isinstance(error, ValidationError):
        return 400, *_of_validation(error), None
    return 500, str(error) or type(error).__name__, None, None


def _of_validation(error: ValidationError) -> tuple[str, str | None]:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))
    return (f"{name}: {first['msg']}" if name else first["msg"]), str(first["loc"][0]) if name else None
