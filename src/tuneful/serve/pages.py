"""The page of a server and what it asks for: chat and compare go through /v1, rating and browsing through /page/api.

    GET /page/   GET /page/static/NAME     the page: one HTML file, its style and its scripts, from this package
    /page/api/...                          JSON: runs, answers, items to rate, ratings, results
    GET /page/report/RUN                   the report of a run, sandboxed

Mounted by the application, which checks Host, Origin and token. Everything that a model or a person wrote leaves here as JSON
and is shown as text; the policies below forbid scripts and styles of anywhere but this package, and the making of elements from
text. A report runs in an origin of its own, where it can ask this server for nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, BeforeValidator, Field

from tuneful.errors import TunefulError
from tuneful.serve.folder import RunsFolder
from tuneful.serve.items import search
from tuneful.serve.rating import MAX_REMARK, RatingDesk, RatingView, StaleItemError

ADDRESS = "/page/"
"""Where the page is."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
REPORT_POLICY = (
    "sandbox{allow}; default-src 'none'; style-src 'unsafe-inline'; script-src {script}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MAX_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Reports:
    """How reports are made: `build` writes report.html of a run folder; `script_source` is the policy's source of the only
    script that a report has (`'sha256-...'`)."""

    build: Callable[[Path], Path]
    script_source: str

    def wrote(self, text: str) -> bool:
        """Whether a report is of this version: its own policy allows the same script."""
        return self.script_source.strip("'") in text


def _whole(value: Any) -> Any:
    """A text without lone surrogates, which neither pydantic nor UTF-8 takes."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


_Text = Annotated[str, BeforeValidator(_whole)]


class _Answers(BaseModel):
    """Two sets of answers of a run, and who rates them."""

    run: _Text = Field(max_length=1_000)
    a: _Text = Field(max_length=200)
    b: _Text = Field(max_length=200)
    rater: _Text = Field(max_length=200)


class _Rating(_Answers):
    """What was chosen, of the item that was shown with `digest`."""

    digest: _Text = Field(max_length=64)
    choice: Annotated[Literal["first", "second", "tie", "both_bad"], BeforeValidator(_whole)]
    remark: _Text = Field(default="", max_length=MAX_REMARK * 2)


def page_router(runs: Path, reports: Reports | None = None, *, seed: int = 0) -> APIRouter:
    """The page over the runs under the folder `runs`.

    Without `reports` a report is shown only where there is one, and without its script. `seed` decides the orders of blind
    rating.
    """
    router = APIRouter(prefix="/page", include_in_schema=False)
    folder, desk = RunsFolder(runs), RatingDesk(seed)
    _add_files(router)
    _add_browsing(router, folder, desk)
    _add_rating(router, folder, desk)
    _add_reports(router, folder, reports)
    return router


def _add_files(router: APIRouter) -> None:
    @router.get("")
    def with_slash() -> Response:
        return RedirectResponse(ADDRESS, status_code=307, headers=HEADERS)

    @router.get("/")
    def page() -> Response:
        return _file("page.html")

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        return _file(name)


def _add_browsing(router: APIRouter, folder: RunsFolder, desk: RatingDesk) -> None:
    @router.get("/api/runs")
    def runs() -> Response:
        return _answered(lambda: {"folder": str(folder.root), "runs": [asdict(run) for run in folder.runs()]})

    @router.get("/api/answers")
    def answers(
        run: str,
        query: Annotated[str, Query(max_length=1_000)] = "",
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        def found() -> dict[str, Any]:
            path = folder.path(run)
            names = tuple(sorted(desk.names(path)))
            items = desk.items(path, names)
            hits = search(items, query)
            shown = [asdict(item) for item in hits[offset : offset + _MAX_SHOWN]]
            return {"names": names, "num_items": len(items), "num_found": len(hits), "offset": offset, "items": shown}

        return _answered(found)


def _add_rating(router: APIRouter, folder: RunsFolder, desk: RatingDesk) -> None:
    @router.post("/api/rating/next")
    def next_item(asked: _Answers) -> Response:
        return _answered(lambda: _view(desk.view(folder.path(asked.run), asked.rater, asked.a, asked.b)))

    @router.post("/api/rating")
    def rate(asked: _Rating, after: BackgroundTasks) -> Response:
        def rated() -> dict[str, Any]:
            path = folder.path(asked.run)
            desk.rate(path, asked.rater, asked.a, asked.b, asked.digest, asked.choice, asked.remark)
            after.add_task(desk.export, path)
            return _view(desk.view(path, asked.rater, asked.a, asked.b))

        return _answered(rated, after)

    @router.post("/api/rating/undo")
    def undo(asked: _Answers, after: BackgroundTasks) -> Response:
        def undone() -> dict[str, Any]:
            path = folder.path(asked.run)
            view = desk.undo(path, asked.rater, asked.a, asked.b)
            after.add_task(desk.export, path)
            return _view(view)

        return _answered(undone, after)

    @router.get("/api/rating/results")
    def results(run: str, a: str, b: str) -> Response:
        def found() -> dict[str, Any]:
            summary, compared, raters = desk.results(folder.path(run), a, b)
            return {
                "summary": summary and asdict(summary),
                "preference": compared and asdict(compared),
                "raters": raters,
            }

        return _answered(found)


def _add_reports(router: APIRouter, folder: RunsFolder, reports: Reports | None) -> None:
    @router.get("/report/{run:path}")
    def report(run: str) -> Response:
        try:
            text = _report(folder.path(run), reports)
        except (TunefulError, OSError) as error:
            return _plain(str(error), 404)
        if text is None:
            return _plain("This run has no report yet: `tuneful report` writes it.", 404)
        has_script = reports is not None and reports.wrote(text)
        policy = REPORT_POLICY.format(
            allow=" allow-scripts" if has_script else "",
            script=reports.script_source if reports and has_script else "'none'",
        )
        return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": policy})


def _report(run: Path, reports: Reports | None) -> str | None:
    """The report of a run, made anew where it is missing, of another version, or older than what people rated."""
    file, ratings = run / "report.html", run / "ratings.jsonl"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    if reports is not None:
        is_old = text is not None and ratings.is_file() and ratings.stat().st_mtime > file.stat().st_mtime
        if text is None or is_old or not reports.wrote(text):
            text = reports.build(run).read_text(encoding="utf-8")
    return text


def _view(view: RatingView) -> dict[str, Any]:
    """What the browser is told: nothing by which the two answers could be told apart."""
    shown = None
    if view.item is not None:
        item = view.item.item
        shown = {
            "source": item.source,
            "task": item.task,
            "reference": item.reference,
            "texts": list(view.item.texts),
            "digest": view.item.digest,
        }
    counts = {"num_rated": view.num_rated, "num_items": view.num_items, "num_equal": view.num_equal}
    return {"item": shown, **counts, "remark": view.remark}


def _answered(made: Callable[[], Any], after: BackgroundTasks | None = None) -> Response:
    """The JSON that `made` returns, or the error it raised in words, with a status that says whose it is."""
    try:
        return _Json(made(), headers=HEADERS, background=after)
    except StaleItemError as error:
        return _error(str(error), 409)
    except TunefulError as error:
        return _error(str(error), 400)
    except (sqlite3.Error, OSError) as error:
        return _error(f"nothing was kept: {error}", 503)


class _Json(JSONResponse):
    """JSON in ASCII: a lone surrogate, which UTF-8 has not, reaches the browser and comes back as it was."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def _error(message: str, status: int) -> Response:
    return _Json({"error": {"message": message}}, status_code=status, headers=HEADERS)


def _plain(text: str, status: int) -> Response:
    policy = {"Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'"}
    return Response(
        text.encode("utf-8", "replace"), status_code=status, media_type="text/plain", headers={**HEADERS, **policy}
    )


def _file(name: str) -> Response:
    """A file of the page."""
    suffix = Path(name).suffix
    file = resources.files("tuneful.serve") / "page" / name
    if suffix not in _TYPES or Path(name).name != name or not file.is_file():
        return _plain("There is no such file.", 404)
    headers = {**HEADERS, "Content-Security-Policy": PAGE_POLICY}
    return Response(file.read_bytes(), media_type=_TYPES[suffix], headers=headers)
