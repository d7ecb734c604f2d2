"""`tuneful export RUN|MODEL --to FORMAT`: a model leaves in the format of another program, and is proved to be the same there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import ConfigFile, Json, Quiet, configuration, with_model
from tuneful.errors import ConfigError, DataError, ExportError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.export.formats import Written
    from tuneful.export.source import Source
    from tuneful.runs.schema import ExportKind, ExportProof
    from tuneful.types import Conversation

PROOF = "proof.json"
_RUN = "run.json"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An export that holds: its `folder`, and the proof that lies in it."""

    folder: Path
    proof: ExportProof

    def __repr__(self) -> str:
        return f"ExportResult({str(self.folder)!r})"

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` prints: the proof and the folder."""
        from tuneful.runs.schema import as_row

        return {"folder": str(self.folder), **as_row(self.proof)}


def export(
    model: str | Path,
    to: ExportKind,
    *,
    type: str | None = None,
    output: Path | None = None,
    push: str | None = None,
    public: bool = False,
    config: Config | None = None,
    terminal: Terminal | None = None,
) -> ExportResult:
    """Export `model`, a run or whatever `--model` takes, `to` a format; compared with the model before it is in its place.

    `type` is the number format (`FORMATS` tells which a format takes). `output` is a new folder, or one of an export, which is
    replaced; by default one in the run's `export/`, or here. `push` names a repository of the Hub that gets it, private unless
    `public`. Raises ConfigError, ModelError or TemplateError for what cannot be exported, ExportError where what was written is
    not the model.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.export.formats import FORMATS, Request
    from tuneful.export.push import check_repository, push_folder
    from tuneful.export.source import find_source
    from tuneful.files import written_aside

    terminal = terminal or Terminal(quiet=True)
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: there is no such format; there are {', '.join(FORMATS)}")
    chosen = _type(to, type)
    if push is not None:
        check_repository(push)
    name = _named(str(model), to)
    folder = output or _default_folder(str(model), to, chosen)
    _check_target(folder)
    source = find_source(with_model(config, name) or Config(), terminal.say)
    terminal.say(f"template: {source.config.template.name}")
    with written_aside(folder) as aside:
        with terminal.progress("written", None, "tensors") as advance:
            asked = _asked(Path(str(model)), source)
            request = Request(source, chosen, aside, _title(str(model)), asked, terminal.say, advance)
            written = FORMATS[to].write(request)
        _show(written, terminal)
        _check(written, folder)
        proof = _finish(written, source, to, chosen, aside)
    for note in written.notes:
        terminal.say(note)
    terminal.say(f"written: {folder}")
    terminal.say(f"  {_how_to_run(to, folder, _title(str(model)))}", wrap=False)
    if push is not None:
        terminal.say(f"pushed: {push_folder(folder, push, public=public)}")
    return ExportResult(folder, proof)


def export_command(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run, or whatever --model takes elsewhere")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as template.name=chatml")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="huggingface, adapter, gguf or ollama")] = "gguf",
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="numbers: f32, f16, bf16, q8_0 or q4_0 (gguf, ollama), f32, f16 or bf16 (huggingface); of an adapter: gguf",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a new folder (default: in the run's export/, or here)")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="upload it to this repository of the Hub, too")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="make the repository public (default: private)")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a model for another program, and prove that it is the same there."""
    from tuneful.console import Terminal, json_to_stdout, to_stdout

    settings = configuration(config, overrides, {})
    result = export(
        model,
        to,  # type: ignore[arg-type]
        type=type,
        output=output,
        push=push,
        public=public,
        config=settings,
        terminal=Terminal(quiet=quiet),
    )
    if as_json:
        json_to_stdout(result.document)
    else:
        to_stdout(str(result.folder))


def _how_to_run(to: ExportKind, folder: Path, title: str) -> str:
    """The command that uses an export, to be copied."""
    file = next((str(one) for one in sorted(folder.glob("*.gguf"))), None)
    if to == "ollama":
        command = ["ollama", "create", title.lower(), "-f", str(folder / "Modelfile")]
    elif file is None:
        command = ["tuneful", "chat", "--model", str(folder)]
    else:
        command = ["llama-server", "-m", *([file] if to == "gguf" else ["BASE.gguf", "--lora", file])]
    return shlex.join(command)


def _type(to: ExportKind, given: str | None) -> str | None:
    from tuneful.export.formats import FORMATS

    if given is not None and given not in FORMATS[to].types:
        raise ConfigError(f"--type {given}: --to {to} takes {', '.join(FORMATS[to].types)}")
    return given or FORMATS[to].default


def _named(model: str, to: ExportKind) -> str:
    """The model itself; of a run that is exported as an adapter, its adapter, which is kept beside the merged model."""
    adapter = Path(model) / "adapter"
    return str(adapter) if to == "adapter" and (Path(model) / _RUN).is_file() and adapter.is_dir() else model


def _title(model: str) -> str:
    from tuneful.export.card import model_name

    return model_name(model).rpartition("/")[2]


def _default_folder(model: str, to: ExportKind, type: str | None) -> Path:
    kind = to if type is None else f"{to}-{type}"
    if (Path(model) / _RUN).is_file():
        return Path(model) / "export" / kind
    return Path(f"{_title(model)}-{kind}")


def _check_target(folder: Path) -> None:
    """ConfigError where an export cannot take the place of what is there."""
    if folder.exists() and not (folder.is_dir() and ((folder / PROOF).is_file() or not any(folder.iterdir()))):
        raise ConfigError(f"{folder}: already exists and is no export; give another --output, or remove it")


def _asked(run: Path, source: Source) -> Sequence[Conversation]:
    """What the model is tried with: the first test records of a run, else conversations of our own."""
    from tuneful.data.read import read_data, settings_of_side
    from tuneful.data.split import TEST
    from tuneful.export.runtime import renderable
    from tuneful.types import is_answered

    file = run / "data" / "test.jsonl"
    if (run / _RUN).is_file() and file.is_file():
        objective = source.config.train.objective
        try:
            settings = settings_of_side(source.config.data, TEST)
            records = read_data([str(file)], settings, objective=objective).records
            if asked := [one.conversation for one in records if is_answered(one.conversation)]:
                return asked
        except DataError:  # of a format that its own settings explain
            pass
    return renderable(source)


def _show(written: Written, terminal: Terminal) -> None:
    terminal.heading("Proof")
    words = {True: "holds", False: "FAILS", None: "not made"}
    terminal.table(
        ["compared", "number", "found", "bound", ""],
        [
            [
                f"{part.name}: {part.compared}",
                f"{part.number:,}",
                part.figure or "",
                part.bound or "",
                words[part.holds],
            ]
            for part in written.parts
        ],
    )
    noted: dict[str, list[str]] = {}
    for part in written.parts:
        noted.setdefault(part.note, []).append(part.name)
    for note, names in noted.items():
        if note:
            terminal.say(f"{', '.join(names)}: {note}")


def _check(written: Written, folder: Path) -> None:
    """ExportError, with what differs, where something that was compared is beyond its bound."""
    if failed := [part for part in written.parts if part.holds is False]:
        found = "; ".join(f"{part.name}: {part.note or f'{part.figure}, and {part.bound}'}" for part in failed)
        raise ExportError(f"{folder}: what was exported is not the model, and was removed: {found}")


def _finish(written: Written, source: Source, to: ExportKind, type: str | None, folder: Path) -> ExportProof:
    """Write the card where there is none, and the proof, which names every file."""
    from importlib import metadata

    import tuneful
    from tuneful.export.gguf_card import write_export_card
    from tuneful.files import sha256_of, write_json
    from tuneful.runs.schema import ExportProof, as_row

    if not (folder / "README.md").is_file():
        write_export_card(folder, source, to, written.parts)
    versions = {}
    for name in ("gguf", "xllamacpp", "transformers", "peft"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    proof = ExportProof(
        kind=to,
        type=type,
        model=source.name,
        template=source.config.template.name,
        files={file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()},
        tensor_types=dict(written.tensor_types),
        parts=written.parts,
        notes=written.notes,
        software={"tuneful": tuneful.__version__, **versions},
    )
    write_json(folder / PROOF, as_row(proof))
    return proof
