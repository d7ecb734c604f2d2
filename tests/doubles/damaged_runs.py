"""Hundreds of damaged run folders and model folders: does a command believe what it reads, or fall over it?

Each case is a copy of a run that was cut off, or of a finished one, with one mutation of one place in it, and one command
that reads it, in this process. A run that goes on must end in the bits of a run that nothing happened to (weights by their
sha256, metrics but for seconds, answers, comparison); a command that only reads must say what it says of the whole folder,
or leave out what it names; or else the command ends with exit code 2 and a message that names the damaged place. A traceback,
"a defect", another exit code, other bits without a word: each is a failure. `benchmarks/fuzz_runs.py` is the long campaign.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from tests.doubles.judge_server import Request, head, honest_body, serving, tags

NOBODY = 65_534

# Mutations of bytes


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))] if content else b"\0"


def _without_its_end(content: bytes, rng: random.Random) -> bytes:
    return content[: -rng.randint(1, 3)]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _with_inside(more: bytes) -> Callable[[bytes, random.Random], bytes]:
    def insert(content: bytes, rng: random.Random) -> bytes:
        at = rng.randint(0, len(content))
        return content[:at] + more + content[at:]

    return insert


def _as_utf16(content: bytes, rng: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _random_bytes(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(200)


def _always(content: bytes) -> Callable[[bytes, random.Random], bytes]:
    return lambda _, rng: content


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "without its end": _without_its_end,
    "a bit flipped": _flipped,
    "NUL inside": _with_inside(b"\0\0\0"),
    "a byte that is no UTF-8": _with_inside(b"\xff"),
    "a lone surrogate": _with_inside(b"\xed\xa0\x80"),
    "UTF-16": _as_utf16,
    "random bytes": _random_bytes,
    "NUL bytes": lambda content, rng: b"\0" * len(content),
    "empty": _always(b""),
    "a line feed": _always(b"\n"),
    "null": _always(b"null\n"),
    "a list": _always(b"[]\n"),
    "an object": _always(b"{}\n"),
    "a number": _always(b"17\n"),
    "a text": _always(b'"text"\n'),
    "nested": _always(b"[" * 100_000),
    "a huge number": _always(b"9" * 5_000),
    "a pointer": _always(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}

# Mutations of JSON

OTHERS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    -7,
    3.5,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "text",
    "\ud800",
    [],
    [1],
    {},
    {"a": 1},
)


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(pairs):
        yield value, key
        yield from _spots(one)


def _json_mutated(text: str, rng: random.Random, what: str) -> str:
    value = json.loads(text)
    spots = list(_spots(value))
    shallow = [spot for spot in spots if spot[0] is value]
    if not spots:
        return "null"
    container, key = rng.choice(shallow if rng.random() < 0.5 and shallow else spots)
    if what == "a key missing":
        del container[key]
    elif what == "another value":
        before = container[key]
        container[key] = rng.choice([other for other in OTHERS if other is not before])
    elif isinstance(container, dict):
        container[f"{key}_x"] = container.pop(key)
    return json.dumps(value)


JSON = ("a key missing", "another value", "a key renamed")


def _json_bytes(content: bytes, rng: random.Random, what: str) -> bytes:
    return _json_mutated(content.decode(), rng, what).encode("utf-8", "surrogatepass")


def _json_line_bytes(content: bytes, rng: random.Random, what: str) -> bytes:
    lines = content.decode().splitlines() or ["{}"]
    at = rng.randrange(len(lines))
    lines[at] = _json_mutated(lines[at], rng, what)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _lines(change: Callable[[list[str], random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def mutate(content: bytes, rng: random.Random) -> bytes:
        lines = content.decode().splitlines() or ["{}"]
        change(lines, rng)
        return "".join(f"{line}\n" for line in lines).encode()

    return mutate


def _other_source(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines[at] = lines[at].replace("data.json:", "other.json:").replace('"step": ', '"step": 100')


LINES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a row twice": _lines(lambda lines, rng: lines.insert(0, rng.choice(lines))),
    "a row missing": _lines(lambda lines, rng: lines.__delitem__(rng.randrange(len(lines)))),
    "rows in another order": _lines(lambda lines, rng: lines.reverse()),
    "a row of another set": _lines(_other_source),
    "blank lines": _lines(lambda lines, rng: lines.insert(rng.randint(0, len(lines)), "")),
    "a row that is null": _lines(lambda lines, rng: lines.__setitem__(rng.randrange(len(lines)), "null")),
    "a row that is a list": _lines(lambda lines, rng: lines.append("[1, 2]")),
    "half a last row": _lines(lambda lines, rng: lines.append(lines[-1][: len(lines[-1]) // 2])),
}

# Mutations of places


def _in_its_place(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _a_folder(path: Path) -> None:
    _in_its_place(path)
    path.mkdir()
    (path / "something").write_text("of somebody's")


def _a_file(path: Path) -> None:
    _in_its_place(path)
    path.write_text("of somebody's")


def _dangling(path: Path) -> None:
    _in_its_place(path)
    path.symlink_to(path.parent / "nowhere")


def _loop(path: Path) -> None:
    _in_its_place(path)
    path.symlink_to(path.name)


def _linked(path: Path) -> None:
    target = path.parents[3] / f"elsewhere-{path.name}"
    if target.exists():
        _in_its_place(target)
    shutil.move(path, target)
    path.symlink_to(target)


def _unreadable(path: Path) -> None:
    path.chmod(0)


FILE_PLACES: dict[str, Callable[[Path], None]] = {
    "missing": _in_its_place,
    "a folder in its place": _a_folder,
    "a dangling link": _dangling,
    "a link to itself": _loop,
    "a link to a file": _linked,
    "unreadable": _unreadable,
}
FOLDER_PLACES: dict[str, Callable[[Path], None]] = {
    "missing": _in_its_place,
    "a file in its place": _a_file,
    "a dangling link": _dangling,
    "a link to itself": _loop,
    "a link to a folder": _linked,
    "unreadable": _unreadable,
}
LEFTOVERS = (
    ".run.json.1-aa.part",
    "answers/.base.jsonl.1-aa.part",
    "checkpoints/.part-step-000008",
    "checkpoints/.old-step-000002",
    "checkpoints/damaged-step-000004",
    ".part-model",
    ".old-model",
    ".part-adapter",
    "model/.config.json.1-aa.part",
)
"""What killed writers leave behind, made a file, a folder with a folder in it, or a link: whatever a disk may come to hold."""


def leave(path: Path, rng: random.Random) -> None:
    """Something at a place where a killed writer leaves its file or folder."""
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        return
    kind = rng.choice(["file", "folder", "link"])
    if kind == "file":
        path.write_text("half")
    elif kind == "folder":
        (path / "inside").mkdir(parents=True)
        (path / "inside" / "half").write_text("half")
    else:
        path.symlink_to(path.parent / "nowhere")


# Cases

Kind = Literal["resume", "read"]


@dataclass(frozen=True)
class Command:
    """A command that reads a folder: its `arguments` for it, and what it says of it, to be compared."""

    name: str
    arguments: Callable[[Path], list[str]]
    said: Callable[[Path, str], Any]


@dataclass(frozen=True)
class Case:
    """One mutation of one `place` of one `folder`, and the command that reads it then."""

    seed: int
    folder: str
    place: str
    mutation: str
    command: str

    def __str__(self) -> str:
        return f"{self.seed}: {self.folder}/{self.place} {self.mutation}: {self.command}"


@dataclass
class Tally:
    """What came of the cases: how many ended how, and those that failed."""

    ended: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


COMMON = [
    "train.batch_size=3",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=2",
    "train.learning_rate=1e-2",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "data.split=random",
    "data.test_share=0.3",
    "model.dtype=float32",
]
WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown"]
ROWS = [{"instruction": f"Say {word} {num}.", "output": f"{word} {num}"} for word in WORDS for num in (1, 2)]
GENERAL = "The river is wide here.\n\nBread rises in the warm kitchen.\n\nA train leaves at nine.\n"


class CutOffError(Exception):
    """Stands for a kill."""


class Bench:
    """The folders that cases are copies of, made once below `root`, and the commands that read them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "kept" / "base"
        (root / "kept").mkdir(parents=True)
        (root / "kept" / "data.json").write_text(json.dumps(ROWS))
        (root / "kept" / "general.txt").write_text(GENERAL)
        _make_model(self.model)
        _make_model(root / "kept" / "sharded", max_shard_size="30KB")
        self.settings = [
            *COMMON,
            f"model.name_or_path={json.dumps(str(self.model))}",
            f"report.general={json.dumps(str(root / 'kept' / 'general.txt'))}",
        ]
        self.work = root / "work" / "here" / "run"
        self.commands = self._commands()
        self.folders = self._make_folders()
        self.wanted = {"": outcome(root / "kept" / "finished"), ADAPTER: outcome(root / "kept" / "adapter")}
        self.said: dict[tuple[str, str], Any] = {}

    def cases(self, num: int, seed: int) -> list[Case]:
        """`num` cases, the same for the same seed: each place of each folder in turn, with a mutation and a command drawn."""
        places = [
            (name, place)
            for name in self.folders
            for place in self._places(name)
            for _ in range(1 if name.startswith("cut off") else 2)  # of which there are several
        ]
        rng, found = random.Random(seed), list[Case]()
        while len(found) < num:
            rng.shuffle(places)
            for name, place in places:
                path = self.folders[name] / place
                mutation = rng.choice(_mutations_of(path, place))
                command = rng.choice(self._readers(name, place))
                found.append(Case(rng.randrange(1 << 30), name, place, mutation, command))
        return found[:num]

    def try_case(self, case: Case) -> tuple[str, str]:
        """How the case ended, and what is wrong with that; empty for nothing."""
        command = self.commands[case.command]
        whole = self._whole(case, command)
        self._copy(case.folder)
        path = self.work / case.place
        _mutate(path, case.mutation, random.Random(case.seed))
        with _as_nobody(self.root) if case.mutation == "unreadable" else contextlib.nullcontext():
            code, out, err = run_command(self._arguments(case, command))
        names = [case.place, Path(case.place).name, f"elsewhere-{path.name}"]
        is_named = any(name in err for name in names)
        if "Traceback" in err or "defect" in err:
            return "fell over", err[-1500:]
        if code == 2 or (code == 1 and "cannot be written" in err):  # a checkpoint, which is no fault of the request
            return "refused", "" if is_named else f"refused without its name: {err[-600:]}"
        if code != 0:
            return f"exit code {code}", err[-600:]
        try:
            found = command.said(self.work, out)
        except Exception:
            return "other result", traceback.format_exc()[-600:]
        if found == whole:
            return "same result, said" if is_named else "same result", ""
        if command.name in RESUMING:
            is_named = is_named and all(found[part] == whole[part] for part in whole if part != "metrics")
        else:
            is_named = is_named or any(name in str(found) for name in names[:2])
        if is_named or (case.mutation == "missing" and command.name not in RESUMING):
            return "left out", ""
        if case.command in ("generate", "generate from run", "chat", "train") and case.mutation in AS_IT_STANDS:
            return "read as it stands", ""
        return "other result", f"{_difference(whole, found)} {err[-300:]}"

    def _arguments(self, case: Case, command: Command) -> list[str]:
        more = ["train.method=lora"] if case.folder == ADAPTER and command.name == "run again" else []
        return [*command.arguments(self.work), *more]

    def _whole(self, case: Case, command: Command) -> Any:
        """What the command says of the folder as it is."""
        if command.name in RESUMING:
            return self.wanted[ADAPTER if case.folder == ADAPTER else ""]
        key = (case.folder, command.name)
        if key not in self.said:
            self._copy(case.folder)
            code, out, err = run_command(command.arguments(self.work))
            assert code == 0, err
            self.said[key] = command.said(self.work, out)
        return self.said[key]

    def _copy(self, name: str) -> None:
        if self.work.parent.parent.exists():
            _removed(self.work.parent.parent)
        self.work.parent.mkdir(parents=True)
        shutil.copytree(self.folders[name], self.work, symlinks=True)

    def _places(self, name: str) -> list[str]:
        """Every file and folder below a run or model folder, and places for leftovers of a run that was cut off."""
        folder = self.folders[name]
        found = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
        found = [place for place in found if not place.endswith(".lock")]
        if name == "finished":
            found = [place for place in found if not place.startswith("checkpoints/")]  # which nothing reads any more
        return [*found, *(LEFTOVERS if name.startswith("cut off") else ())]

    def _readers(self, name: str, place: str) -> list[str]:
        if name.startswith("cut off"):
            return list(RESUMING)
        if name in ("model", "sharded"):
            return ["generate", "chat", "train"]
        if place.startswith("model"):
            return ["generate from run"]
        return ["report", "compare", "evaluate", "calibrate", "gate"]

    def _commands(self) -> dict[str, Command]:
        run = [str(self.root / "kept" / "data.json"), *self.settings]
        other = self.root / "kept" / "finished"
        few = ["--prompt", "Say red 1.", "generate.max_new_tokens=4", "model.dtype=float32", "--json", "--quiet"]
        judge = ["--judge", "ollama/judge-8b", "--quiet", "--json", "judge.max_retries=0"]

        def printed(_: Path, out: str) -> Any:
            return json.loads(out)

        def compared(_: Path, out: str) -> Any:
            return {**json.loads(out), "names": None}

        def page(folder: Path, _: str) -> str:
            return (folder / "report.html").read_text(encoding="utf-8")

        def resumed(folder: Path, _: str) -> Any:
            return outcome(folder)

        def trained(folder: Path, _: str) -> str:
            return _sha256(folder.parent / "trained" / "model" / "model.safetensors")

        found = [
            Command("run again", lambda folder: ["run", *run, "--output", str(folder)], resumed),
            Command("resume", lambda folder: ["run", "--resume", str(folder)], resumed),
            Command("report", lambda folder: ["report", str(folder)], page),
            Command("compare", lambda folder: ["compare", str(other), str(folder), "--json", "--quiet"], compared),
            Command(
                "gate",
                lambda folder: [
                    *["compare", str(folder / "answers" / "base.jsonl"), str(folder), "--json", "--quiet"],
                    *["--gate", "rouge_l>=-1, forgetting<=9"],
                ],
                compared,
            ),
            Command("evaluate", lambda folder: ["evaluate", str(folder), *judge], printed),
            Command("calibrate", lambda folder: ["evaluate", str(folder), "--calibrate", *judge], printed),
            Command("generate", lambda folder: ["generate", "--model", str(folder), *few], printed),
            Command("generate from run", lambda folder: ["generate", "--model", str(folder / "model"), *few], printed),
            Command(
                "chat",
                lambda folder: ["chat", "--model", str(folder), "generate.max_new_tokens=4", "model.dtype=float32"],
                lambda _, out: out,
            ),
            Command(
                "train",
                lambda folder: [
                    *["train", run[0], "--output", str(folder.parent / "trained"), *COMMON, "report.general=none"],
                    *["--model", str(folder), "train.max_steps=1", "train.save_steps=null", "--quiet"],
                ],
                trained,
            ),
        ]
        return {command.name: command for command in found}

    def _make_folders(self) -> dict[str, Path]:
        """Runs that were cut off, a finished run, and the model of a finished run."""
        kept = self.root / "kept"
        cuts = {
            "cut off while it answered": ("tuneful.infer.file.Journal.add", 3),
            "cut off in its training": ("tuneful.train.loop.learning_rate", 6),
            "cut off before it compared": ("tuneful.runs.measure.compare_models", 1),
        }
        for name, (target, call) in cuts.items():
            with cutting_off(target, call):
                code, _, err = run_command(self._begin(kept / name))
                assert code == 1, err
                assert "CutOffError" in err, err
        with cutting_off("tuneful.runs.measure.compare_models", 1):
            run_command([*self._begin(kept / ADAPTER), "train.method=lora"])
        for name, more in (("finished", []), ("adapter", ["train.method=lora"])):
            code, _, err = run_command([*self._begin(kept / name), *more])
            assert code == 0, err
        code, _, err = run_command(self.commands["evaluate"].arguments(kept / "finished"))
        assert code == 0, err
        code, _, err = run_command(self.commands["calibrate"].arguments(kept / "finished"))
        assert code == 0, err
        return {name: kept / name for name in (*cuts, ADAPTER, "finished")} | {
            "model": kept / "finished" / "model",
            "sharded": kept / "sharded",
        }

    def _begin(self, folder: Path) -> list[str]:
        return ["run", str(self.root / "kept" / "data.json"), *self.settings, "--output", str(folder)]


AS_IT_STANDS = (*JSON, "a bit flipped", "NUL inside")
"""What may leave a model folder that is another one, but no damaged one: nobody noted what it was."""
GROUPS = {"finished": "a finished run", "model": "a model folder", "sharded": "a model folder"}
ADAPTER = "cut off with an adapter"
RESUMING = ("run again", "resume")


def outcome(folder: Path) -> dict[str, Any]:
    """What a run comes to, part by part."""
    file = folder / "metrics.jsonl"
    metrics = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {
        "weights": _sha256(folder / "model" / "model.safetensors"),
        "metrics": [{key: value for key, value in row.items() if key != "step_seconds"} for row in metrics],
        "answers": [(folder / "answers" / f"{name}.jsonl").read_text() for name in ("base", "tuned")],
        "adapter": [_sha256(file) for file in sorted((folder / "adapter").glob("adapter*"))],
        "general": [(folder / "general" / f"{name}.jsonl").read_text() for name in ("base", "tuned")],
        "comparison": json.loads((folder / "comparison.json").read_text()),
    }


def run_command(arguments: Sequence[str]) -> tuple[int, str, str]:
    """`tuneful ARGUMENTS` in this process: (exit code, standard output, standard error)."""
    from tuneful.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["tuneful", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO("Say red 1.\n")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _in_the_same_folder(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:  # what a command line never lets through
            code = 99
            err.write(traceback.format_exc())
    return int(code or 0), out.getvalue(), err.getvalue()


@contextlib.contextmanager
def cutting_off(target: str, call: int) -> Iterator[None]:
    """The `call`-th call of the function `target` ends the process, so to say."""
    with contextlib.ExitStack() as stack:
        patcher = mock.patch(target, autospec=True)
        real = patcher.get_original()[0]
        double = stack.enter_context(patcher)
        calls = []

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) >= call:
                raise CutOffError
            return real(*arguments, **named)

        double.side_effect = counted
        yield


def campaign(num: int, seed: int, tell: Callable[[str], None] = lambda line: None) -> Tally:
    """`num` cases by `seed`, below a folder of their own."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, judging():
        Path(folder).chmod(0o755)
        bench = Bench(Path(folder))
        for number, case in enumerate(bench.cases(num, seed), start=1):
            kind, problem = bench.try_case(case)
            group = GROUPS.get(case.folder, "a run cut off")
            tally.ended[f"{group}: {'FAILED, ' if problem else ''}{kind}"] += 1
            if problem:
                tally.failures.append(f"{case}\n  {kind}: {problem}")
                tell(f"FAILED {tally.failures[-1]}")
            if number % 50 == 0:
                tell(f"{number} cases, {len(tally.failures)} failures")
        _removed(bench.work.parent.parent)
    return tally


@contextlib.contextmanager
def judging() -> Iterator[None]:
    """A judge on loopback that scores by a hash of what it reads."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        body = tags()
        if request.method == "POST":
            code = hashlib.sha256(request.prompt.replace(request.nonce, "").encode()).digest()[0]
            verdict = {"winner": "AB"[code % 2]} if "Answer A" in request.prompt else {"score": code % 101}
            body = honest_body(request.wire, json.dumps({"id": request.nonce, **verdict}))
        writer.write(head(200, length=len(body)) + body)

    with serving(behave) as origin, mock.patch.dict(os.environ, {"OLLAMA_HOST": origin}):
        yield


def _mutations_of(path: Path, place: str) -> list[str]:
    """What can be done to a place."""
    if place in LEFTOVERS and not os.path.lexists(path):
        return ["left behind"]
    places = list(FOLDER_PLACES if path.is_dir() else FILE_PLACES)
    if os.geteuid() != 0:
        places.remove("unreadable")  # a test may not become somebody else
    if path.is_dir():
        return places
    more: tuple[str, ...] = ()
    if path.suffix == ".json":
        more = JSON * 5
    elif ".jsonl" in path.name:
        more = (*JSON * 3, *LINES)
    return [*BYTES, *places, *more]


def _mutate(path: Path, mutation: str, rng: random.Random) -> None:
    if mutation == "left behind":
        leave(path, rng)
    elif mutation in FILE_PLACES or mutation in FOLDER_PLACES:
        ({**FILE_PLACES, **FOLDER_PLACES}[mutation])(path)
    else:
        content = path.read_bytes()
        if mutation in JSON:
            change = _json_line_bytes if ".jsonl" in path.name else _json_bytes
            path.write_bytes(change(content, rng, mutation))
        else:
            path.write_bytes({**BYTES, **LINES}[mutation](content, rng))


@contextlib.contextmanager
def _as_nobody(root: Path) -> Iterator[None]:
    """Inside, this process is a user who may not read what is closed to all; `root` is that user's own."""
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def _in_the_same_folder() -> Iterator[None]:
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _difference(whole: Any, found: Any) -> str:
    if isinstance(whole, dict) and isinstance(found, dict):
        return f"differs in {[key for key in whole if found.get(key) != whole[key]]}"
    return "differs"


def _make_model(folder: Path, **options: Any) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder, **options)
