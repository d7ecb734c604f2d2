"""A judge server that does everything wrong, and an oracle that knows what each item must end as.

It misbehaves in the ways of `BEHAVIOURS`, one drawn for each try of each item. It knows the true score of every item and
keeps a ledger of what it sent: an item is scored with the true score where the first reply that ends the matter was
honest, unscored otherwise. The tests play two short rounds; `benchmarks/hostile_judge.py` plays thousands of replies.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tests.doubles.judge_server import MODEL, Backend, Request, head, honest_body, said, serving, tags, true_score

from tuneful.config import JudgeConfig
from tuneful.judge.client import open_http_judge
from tuneful.judge.protocols import Item
from tuneful.judge.verdicts import ReplyCache, judge_items
from tuneful.types import Verdict

DEADLINE_SECONDS = 1.5
SLACK_SECONDS = 1.0  # beyond the deadline, for a busy machine to notice
MAX_RETRIES = 2
FILLER = "The barge was built in the winter of 1911 and carried sand. " * 40  # a prompt that a small window would cut


@dataclass
class Scene:
    """One try of one item: the `request`, the true `score`, a stream to write to, and dice."""

    request: Request
    writer: asyncio.StreamWriter
    score: int
    dice: random.Random
    elsewhere: str

    @property
    def decoy(self) -> int:
        """A score that is not the true one."""
        return (self.score + 50) % 101

    def reply(self, score: Any = None, **changed: Any) -> bytes:
        """A whole body; the true score unless another is given."""
        return honest_body(self.request.wire, said(self.request, self.score if score is None else score), **changed)

    async def send(self, *pieces: bytes) -> None:
        """Write and hang up."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def status(self, status: int, *lines: str) -> None:
        """An error with a score in it that is none."""
        body = json.dumps({"error": {"message": said(self.request, self.decoy)}}).encode()
        await self.send(head(status, "Content-Type: application/json", *lines, length=len(body)), body)

    async def whole(self, body: bytes) -> None:
        """A 200 with `body`."""
        await self.send(head(200, "Content-Type: application/json", length=len(body)), body)

    async def silence(self) -> None:
        """Say nothing until the client hangs up."""
        await asyncio.Event().wait()


Ends = Literal["scored", "unscored", "again"]
"""What a behaviour does to its item: ends it with the true score, ends it without one, or is tried again."""


@dataclass(frozen=True)
class Behaviour:
    """A way to misbehave, what it must end in, and whether it holds its connection until the deadline."""

    play: Callable[[Scene], Awaitable[None]]
    ends: Ends
    holds: bool = False


def _cut(scene: Scene, ending: str) -> Awaitable[None]:
    body = scene.reply()
    at = scene.dice.randrange(len(body) - 1)
    if scene.request.wire == "openai" and ending == "eof":
        at = scene.dice.randrange(len(body.rstrip()) - 1)
    if ending == "length":
        return scene.send(head(200, length=len(body)), body[:at])
    if ending == "chunked":
        chunk = f"{at:x}\r\n".encode() + body[:at] + b"\r\n" if at else b""
        return scene.send(head(200, "Transfer-Encoding: chunked"), chunk)
    return scene.send(head(200), body[:at])


async def _drip(scene: Scene, pieces: bytes, first: bytes = b"") -> None:
    await scene.send(first)
    for at in range(len(pieces)):
        await scene.send(pieces[at : at + 1])
        await asyncio.sleep(DEADLINE_SECONDS / 4)


async def _reset(scene: Scene) -> None:
    import socket
    import struct

    wire = scene.writer.get_extra_info("socket")
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    scene.writer.transport.abort()


async def _endless(scene: Scene) -> None:
    await scene.send(head(200))
    for _ in range(64):
        await scene.send(b" " * 65_536)


def _changed(scene: Scene, **message: Any) -> bytes:
    """A whole reply whose message is not what it should be."""
    wire = scene.request.wire
    if wire == "openai":
        return honest_body(wire, "", choices=[{"index": 0, "message": message, "finish_reason": "stop"}])
    return honest_body(wire, "", message=message)


def _end_changed(scene: Scene, ollama: dict[str, Any], openai: dict[str, Any], score: int | None = None) -> bytes:
    if scene.request.wire == "ollama":
        return scene.reply(score, **ollama)
    text = said(scene.request, scene.score if score is None else score)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **openai}
    return scene.reply(choices=[choice])


def _without_end(scene: Scene) -> bytes:
    if scene.request.wire == "openai":
        return _end_changed(scene, {}, {"finish_reason": None})
    return b"".join(scene.reply().splitlines(keepends=True)[:-1])


def _goes_on(scene: Scene) -> bytes:
    if scene.request.wire == "ollama":
        return scene.reply() + scene.reply(scene.decoy).splitlines(keepends=True)[0]
    return scene.reply() + b" 7"


def _two(scene: Scene) -> bytes:
    if scene.request.wire == "ollama":
        return scene.reply() + scene.reply(scene.decoy)
    choices = [json.loads(scene.reply(score))["choices"][0] for score in (scene.score, scene.decoy)]
    return scene.reply(choices=choices)


def _error_midway(scene: Scene) -> bytes:
    error = json.dumps({"error": "llama runner process has terminated"}).encode() + b"\n"
    if scene.request.wire == "openai":
        return error
    lines = scene.reply().splitlines(keepends=True)
    return b"".join(lines[: scene.dice.randrange(len(lines))]) + error


def _interleaved(scene: Scene) -> bytes:
    one, other = said(scene.request, scene.score), said(scene.request, scene.decoy)
    # Blocks of three keep short plain numbers from meeting as a number: they would be one that nobody can tell.
    mixed = "".join(a + b for a, b in zip(one, other, strict=False))
    if not one.startswith("{"):
        mixed = f"{one} {other}"
    return honest_body(scene.request.wire, mixed)


def _untold_cut(scene: Scene) -> bytes:
    """The tokens ran out, and only the count of them says so."""
    text = said(scene.request, 85)[:-1]
    if scene.request.wire == "openai":
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        return honest_body("openai", text, choices=[choice])
    body = honest_body("ollama", text, eval_count=scene.request.body["options"]["num_predict"]).decode()
    return body.replace(', "done_reason": "stop"', "").encode()


def _text(scene: Scene, text: str) -> bytes:
    return honest_body(scene.request.wire, text)


def _stranger(scene: Scene) -> bytes:
    """The verdict on another item, as a mixed-up connection would bring it."""
    return _text(scene, json.dumps({"id": "0123456789abcdef", "score": scene.decoy}))


def _twice_scored(scene: Scene) -> bytes:
    return _text(scene, f'{{"id": "{scene.request.nonce}", "score": {scene.score}, "score": {scene.decoy}}}')


def _bad_value(scene: Scene) -> bytes:
    value = scene.dice.choice(["-1", "101", "true", "null", '"85"', "[85]", "NaN", "1e999", "9" * 5000])
    return _text(scene, f'{{"id": "{scene.request.nonce}", "score": {value}}}')


def _prose(scene: Scene) -> bytes:
    return _text(scene, f"I would give this answer {scene.decoy} points, as it is quite good on the whole.")


def _play(make: Callable[[Scene], bytes]) -> Callable[[Scene], Awaitable[None]]:
    return lambda scene: scene.whole(make(scene))


def _bomb(scene: Scene) -> Awaitable[None]:
    return scene.send(head(200, "Content-Encoding: gzip"), _BOMB)


_BOMB = gzip.compress(b"[" * (1 << 24))

BEHAVIOURS: dict[str, Behaviour] = {
    "honest": Behaviour(_play(lambda s: s.reply()), "scored"),
    "honest, chunked": Behaviour(
        lambda s: s.send(
            head(200, "Transfer-Encoding: chunked"),
            *(f"{len(line):x}\r\n".encode() + line + b"\r\n" for line in s.reply().splitlines(keepends=True)),
            b"0\r\n\r\n",
        ),
        "scored",
    ),
    "honest, in a fence": Behaviour(_play(lambda s: _text(s, f"```json\n{said(s.request, s.score)}\n```")), "scored"),
    "honest, after thoughts": Behaviour(
        _play(lambda s: _text(s, f"<think>\nperhaps {s.decoy}\n</think>\n\n{said(s.request, s.score)}")), "scored"
    ),
    "400": Behaviour(lambda s: s.status(400), "unscored"),
    "401": Behaviour(lambda s: s.status(401), "unscored"),
    "403": Behaviour(lambda s: s.status(403), "unscored"),
    "404": Behaviour(lambda s: s.status(404), "unscored"),
    "429, retry now": Behaviour(lambda s: s.status(429, "Retry-After: 0"), "again"),
    "429, no word of when": Behaviour(lambda s: s.status(429), "again"),
    "429, nonsense": Behaviour(lambda s: s.status(429, "Retry-After: soon"), "again"),
    "429, tomorrow": Behaviour(lambda s: s.status(429, "Retry-After: 86400"), "unscored"),
    "500": Behaviour(lambda s: s.status(500), "again"),
    "502": Behaviour(lambda s: s.status(502), "again"),
    "503": Behaviour(lambda s: s.status(503), "again"),
    "redirect elsewhere": Behaviour(
        lambda s: s.status(s.dice.choice([301, 302, 307, 308]), f"Location: {s.elsewhere}{s.request.path}"), "unscored"
    ),
    "hangs up": Behaviour(lambda s: s.send(b""), "again"),
    "reset": Behaviour(_reset, "again"),
    "silence": Behaviour(lambda s: s.silence(), "again", holds=True),
    "a head, then silence": Behaviour(lambda s: _then_silence(s, head(200, length=500)), "again", holds=True),
    "half a reply, then silence": Behaviour(
        lambda s: _then_silence(s, head(200) + s.reply()[:-20]), "again", holds=True
    ),
    "a byte now and then": Behaviour(lambda s: _drip(s, s.reply(), head(200)), "again", holds=True),
    "a head a byte now and then": Behaviour(lambda s: _drip(s, head(200)), "again", holds=True),
    "cut, clean end": Behaviour(lambda s: _cut(s, "eof"), "again"),
    "cut, chunk missing": Behaviour(lambda s: _cut(s, "chunked"), "again"),
    "cut, short of its length": Behaviour(lambda s: _cut(s, "length"), "again"),
    "no end of the stream": Behaviour(_play(_without_end), "again"),
    "goes on after its end": Behaviour(_play(_goes_on), "again"),
    "two replies": Behaviour(_play(_two), "again"),
    "the reply twice": Behaviour(_play(lambda s: s.reply() * 2), "again"),
    "interleaved replies": Behaviour(_play(_interleaved), "unscored"),
    "an error in a 200": Behaviour(_play(_error_midway), "again"),
    "gzip bomb": Behaviour(_bomb, "again"),
    "a body without end": Behaviour(_endless, "again"),
    "HTML": Behaviour(_play(lambda s: b"<html><body>85</body></html>"), "again"),
    "nothing": Behaviour(_play(lambda s: b""), "again"),
    "not HTTP": Behaviour(lambda s: s.send(b"85\r\n\r\n{}"), "again"),
    "a head without end": Behaviour(lambda s: s.send(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"a" * 9999] * 40), "again"),
    "not UTF-8": Behaviour(_play(lambda s: s.reply().replace(b"assistant", b"\xff\xfe")), "again"),
    "nested without end": Behaviour(_play(lambda s: b'{"a":' * 50_000), "again"),
    "a list": Behaviour(_play(lambda s: b"[" + str(s.decoy).encode() + b"]"), "again"),
    "content null": Behaviour(_play(lambda s: _changed(s, role="assistant", content=None)), "again"),
    "content a number": Behaviour(_play(lambda s: _changed(s, role="assistant", content=s.decoy)), "again"),
    "another role": Behaviour(_play(lambda s: _changed(s, role="user", content=said(s.request, s.decoy))), "again"),
    "a wrong ending": Behaviour(
        _play(lambda s: _end_changed(s, {"done_reason": "load"}, {"finish_reason": "content_filter"})), "again"
    ),
    "cut at the limit": Behaviour(
        _play(lambda s: _end_changed(s, {"done_reason": "length"}, {"finish_reason": "length"})), "unscored"
    ),
    "cut at the limit, untold": Behaviour(_play(_untold_cut), "unscored"),
    "prompt cut, untold": Behaviour(_play(lambda s: s.reply(s.decoy, prompt_tokens=258)), "unscored"),
    "an empty reply": Behaviour(_play(lambda s: _text(s, "")), "unscored"),
    "prose": Behaviour(_play(_prose), "unscored"),
    "no score": Behaviour(_play(_bad_value), "unscored"),
    "two scores": Behaviour(_play(_twice_scored), "unscored"),
}
OLLAMA_ONLY = {"another model": Behaviour(_play(lambda s: s.reply(s.decoy, model="tiny-1b")), "again")}
OBJECT_ONLY = {"another item's verdict": Behaviour(_play(_stranger), "unscored")}


async def _then_silence(scene: Scene, first: bytes) -> None:
    await scene.send(first)
    await scene.silence()


def behaviours(wire: Backend, reply_format: str) -> dict[str, Behaviour]:
    """What can happen on a wire under a form of reply."""
    found = dict(BEHAVIOURS)
    if wire == "ollama":
        found |= OLLAMA_ONLY
    if reply_format == "json_schema":
        return found | OBJECT_ONLY
    # As text these are whole replies of a known form, or say what no grammar can doubt.
    return {name: one for name, one in found.items() if name not in ("no score", "two scores")}


@dataclass
class Ledger:
    """What the server did: the behaviours played for each item, in order, and how long each held its connection."""

    played: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    held_seconds: list[float] = field(default_factory=list)
    num_elsewhere: int = 0

    @property
    def num_replies(self) -> int:
        """Tries that were answered, in whatever way."""
        return sum(map(len, self.played.values()))

    def expected(self, item: int, known: Mapping[str, Behaviour]) -> Ends:
        """What the item must have ended as; "again" where its tries ran out."""
        for name in self.played[item]:
            if known[name].ends != "again":
                return known[name].ends
        return "again"


@dataclass(frozen=True)
class Round:
    """What came of one batch of items: verdicts by kind, and every complaint."""

    num_items: int
    num_scored: int
    num_unscored: int
    num_late: int
    complaints: tuple[str, ...]


def play_round(
    wire: Backend, reply_format: str, items: range, ledger: Ledger, seed: int, concurrency: int = 64
) -> Round:
    """Judge `items` on a hostile server, and hold the verdicts against its ledger."""
    known = behaviours(wire, reply_format)
    names = sorted(known)

    async def victim(request: Request, writer: asyncio.StreamWriter) -> None:
        ledger.num_elsewhere += 1

    with serving(victim) as elsewhere:

        async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.method == "GET":
                writer.write(head(200, length=len(tags())) + tags())
                return
            item, dice = request.item, random.Random(f"{seed} {request.item} {len(ledger.played[request.item])}")
            name = dice.choice(names)
            ledger.played[item].append(name)
            started = time.monotonic()
            try:
                await known[name].play(Scene(request, writer, true_score(item), dice, elsewhere))
            finally:
                if known[name].holds:
                    ledger.held_seconds.append(time.monotonic() - started)

        with serving(behave) as origin, TemporaryDirectory() as folder:
            verdicts = _judged(wire, origin, reply_format, items, Path(folder), concurrency)
    return _reckoned(verdicts, items, ledger, known)


def _judged(
    wire: Backend, origin: str, reply_format: str, items: range, folder: Path, concurrency: int
) -> list[Verdict]:
    settings = JudgeConfig(
        model=f"{wire}/{MODEL}",
        reply_format=reply_format,
        concurrency=concurrency,
        timeout_seconds=DEADLINE_SECONDS,
        max_retries=MAX_RETRIES,
        backoff_seconds=0.01,
    )
    environment = {"OLLAMA_HOST": origin, "OPENAI_BASE_URL": f"{origin}/v1", "OPENAI_API_KEY": "sk-not-a-key"}
    judge = replace(open_http_judge(f"{wire}/{MODEL}", settings, environment), give_up_after=len(items) + 1)
    asked = [Item(f"hostile:{n}", f"Item number {n}. {FILLER}", "Sand.", f"It carried {n}.") for n in items]
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        return judge_items(asked, judge, settings, cache)


def _reckoned(verdicts: list[Verdict], items: range, ledger: Ledger, known: Mapping[str, Behaviour]) -> Round:
    complaints, num_late = [], 0
    if [verdict.source for verdict in verdicts] != [f"hostile:{item}" for item in items]:
        complaints.append("the verdicts are not those of the items, one each and in order")
    for item, verdict in zip(items, verdicts, strict=False):
        expected = ledger.expected(item, known)
        played = " > ".join(ledger.played[item])
        if verdict.score is not None and (expected != "scored" or verdict.score != true_score(item)):
            complaints.append(f"item {item}: scored {verdict.score}, is {true_score(item)}, after {played}")
        elif verdict.score is None and expected == "scored":
            if "within" in str(verdict.unscored_reason):
                num_late += 1
            else:
                complaints.append(f"item {item}: unscored ({verdict.unscored_reason}) after {played}")
    scored = sum(verdict.score is not None for verdict in verdicts)
    return Round(len(items), scored, len(verdicts) - scored, num_late, tuple(complaints))


def campaign(num_replies: int, seed: int, batch: int = 500, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Rounds over both wires and both forms until the server gave `num_replies`; figures and complaints."""
    started, first, complaints = time.monotonic(), 0, []
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    slowest = 0.0
    wires: tuple[Backend, ...] = ("ollama", "openai")
    turns = [(wire, form) for wire in wires for form in ("json_schema", "text")]
    while totals["replies"] < num_replies:
        wire, form = turns[totals["rounds"] % len(turns)]
        ledger = Ledger()
        done = play_round(wire, form, range(first, first + batch), ledger, seed)
        first += batch
        counts.update(name for played in ledger.played.values() for name in played)
        complaints += [f"{wire} {form}: {complaint}" for complaint in done.complaints]
        if ledger.num_elsewhere:
            complaints.append(f"{wire} {form}: {ledger.num_elsewhere} requests followed a redirect")
        slowest = max([slowest, *ledger.held_seconds])
        figures = {"items": done.num_items, "scored": done.num_scored, "unscored": done.num_unscored}
        totals.update(rounds=1, replies=ledger.num_replies, late=done.num_late, **figures)
        say(f"{wire:6} {form:11}  " + "  ".join(f"{name} {count:,}" for name, count in figures.items()))
    if slowest > DEADLINE_SECONDS + SLACK_SECONDS:
        complaints.append(f"a call took {slowest:.2f} s, over its deadline of {DEADLINE_SECONDS} s")
    assert totals["scored"] + totals["unscored"] == totals["items"]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **totals,
        "deadline_seconds": DEADLINE_SECONDS,
        "slowest_call_seconds": round(slowest, 3),
        "seconds": round(time.monotonic() - started, 1),
        "num_behaviours": len(counts),
        "behaviours": dict(sorted(counts.items())),
        "complaints": complaints,
    }
