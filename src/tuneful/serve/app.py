"""The application: both protocols and the page over one engine, behind the guard.

request -> safety.Guard -> openai.py, ollama.py, ollama_models.py, pages.py -> replies.py -> engine.py -> infer/continuous.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tuneful.errors import TunefulError
from tuneful.serve.engine import Engine
from tuneful.serve.errors import error_response, refused
from tuneful.serve.limits import Limits
from tuneful.serve.models import Models
from tuneful.serve.ollama import ollama_router
from tuneful.serve.ollama_models import ollama_models_router, ollama_rest_router, running_page
from tuneful.serve.openai import openai_router
from tuneful.serve.pages import ADDRESS, Reports, page_router
from tuneful.serve.replies import LEFT
from tuneful.serve.safety import Access, Guard


def create_app(
    models: Models,
    access: Access | None = None,
    *,
    folder: Path | None = None,
    reports: Reports | None = None,
    limits: Limits | None = None,
) -> Guard:
    """The ASGI application that serves `models` to whom `access` lets ask.

    `folder` is where the page looks for runs to browse and rate, `reports` makes their reports. The engine's thread begins here
    and ends with the application's lifespan.
    """
    access, limits = access or Access(), limits or Limits()
    max_rows = max(model.loaded.config.generate.batch_size for model in models)
    engine = Engine(limits, max_rows, [model.batch for model in models])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="tuneful", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.include_router(openai_router(models, engine, limits))
    app.include_router(ollama_router(models, engine, limits))
    app.include_router(ollama_models_router(models))
    _add_root(app)
    app.include_router(page_router(folder or Path("runs"), reports))
    app.include_router(ollama_rest_router())
    _add_error_handlers(app)
    return Guard(app, access, refused)


def _add_root(app: FastAPI) -> None:
    """`/` leads browsers to the page; everybody else is told that Ollama is running."""

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return Response(status_code=307, headers={"Location": ADDRESS, "Vary": "Accept"})
        return running_page()


def _add_error_handlers(app: FastAPI) -> None:
    async def of_ours(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, error)

    async def of_the_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        message = {404: f"{request.url.path} is not served here", 405: f"{request.method} is not served here"}
        kind, body = refused(request.url.path, status, message.get(status, str(error.detail)))
        return Response(body, status, dict(error.headers or {}), kind.decode())

    async def left(request: Request, error: Exception) -> Response:
        return LEFT

    app.add_exception_handler(TunefulError, of_ours)
    app.add_exception_handler(ValidationError, of_ours)
    app.add_exception_handler(HTTPException, of_the_path)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, of_ours)
