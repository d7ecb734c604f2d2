"""`tuneful serve`: a model answers OpenAI's and Ollama's clients, and people in a browser."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import ConfigFile, Model, Quiet, configuration, with_model
from tuneful.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal

_GRACE_SECONDS = 3
"""How long answers in work may go on after Ctrl-C."""
_KEEP_ALIVE_SECONDS = 75
"""How long a connection stays open unused: longer than clients keep theirs, or one is closed as they ask again."""
_MANY = 512
"""Connections that may wait to be accepted."""


def serve(
    *,
    model: Any = None,
    compare: Any = None,
    config: Config | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    cors: Sequence[str] = (),
    folder: Path | None = None,
    terminal: Terminal | None = None,
) -> None:
    """Serve `model`, and `compare`, one or a list, beside it, until interrupted. All are what `--model` takes.

    A run, or an adapter, brings its base. `token` is what every request has to bring, needed where `host` is not of this machine
    alone; `allow_hosts` are further names of the server, `cors` origins of pages that may use it; `folder` is where the page
    finds runs, `runs/` where none is named. Raises ConfigError, ModelError or TemplateError before anything is listened to.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal

    terminal = terminal or Terminal(quiet=True)
    config = with_model(config, model) or Config()
    _check_installed()
    from tuneful.report.build import build_report, script_source
    from tuneful.serve.app import create_app
    from tuneful.serve.models import load_models
    from tuneful.serve.pages import Reports
    from tuneful.serve.safety import Access

    access = Access(host, token or "", tuple(allow_hosts), tuple(cors))
    access.check()
    with contextlib.closing(_listening(host, port)) as listener:
        models = load_models(config, _names(compare), notify=terminal.say)
        reports = Reports(build_report, script_source())
        app = create_app(models, access, folder=folder, reports=reports)
        _announce(models, _address(host, listener.getsockname()[1]), token, terminal)
        _run(app, listener)


def serve_command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Model = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="a further model, whatever --model takes; as often as wanted"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="the address to listen at; others than this machine's need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port; Ollama's is 11434; 0 takes a free one")] = 8080,
    token: Annotated[
        str | None, typer.Option(envvar="TUNEFUL_TOKEN", help="what every request has to bring (Authorization: Bearer)")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="a further name of this server, such as host.docker.internal"),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="pages of this origin may use it, such as https://example.org"),
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="the folder whose runs the page shows (default: runs)")] = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
) -> None:
    """Answer OpenAI's and Ollama's clients, and people in a browser, until Ctrl-C."""
    from tuneful.console import Terminal

    settings = configuration(config, overrides, {"model.name_or_path": model})
    serve(
        config=settings,
        compare=compare,
        host=host,
        port=port,
        token=token,
        allow_hosts=allow_host or (),
        cors=cors or (),
        folder=runs,
        terminal=Terminal(quiet=quiet),
    )


def _names(compare: Any) -> list[str]:
    from tuneful.model.given import as_name

    given = compare if isinstance(compare, list) else [] if compare is None else [compare]
    return [as_name(one) for one in given]


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serving needs {error.name}, which is not installed: pip install 'tuneful[serve]'") from None


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, before a model is loaded for it: a port that is taken is said at once."""
    with contextlib.ExitStack() as on_failure:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":  # elsewhere it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_MANY)
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened at: {error.strerror or error}; give another --port or --host"
            ) from None
        on_failure.pop_all()
        return listener


def _address(host: str, port: int) -> str:
    """Where it is reached from this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _announce(models: Any, address: str, token: str | None, terminal: Terminal) -> None:
    names = ", ".join(model.name for model in models)
    terminal.say(f"models: {names}")
    terminal.say(f"OpenAI's protocol: {address}/v1", wrap=False)
    terminal.say(f"Ollama's protocol: {address}", wrap=False)
    terminal.say(f"in a browser: {address}/" + (f"?token={token}" if token else ""), wrap=False)
    terminal.say("Ctrl-C ends it", style="dim")


def _run(app: Any, listener: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ws="none",
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])
