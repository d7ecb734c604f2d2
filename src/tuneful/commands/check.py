"""`tuneful check DATA`: what would be trained and what is wrong with it, as a page that a person reads in a terminal.

The model's tokenizer is read where this machine has it; it is never fetched for a check. Without it lengths are words, and
the page says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuneful.commands.options import (
    ConfigFile,
    Json,
    Model,
    Quiet,
    chosen_data,
    configuration,
    data_and_settings,
    data_of,
)
from tuneful.errors import ConfigError, DataError
from tuneful.numbers import plural, rough_percent

if TYPE_CHECKING:
    from tuneful.audit.audit import Audit, AuditedRow
    from tuneful.audit.findings import Finding
    from tuneful.audit.fix import Fixes
    from tuneful.config import Config, DataConfig
    from tuneful.console import Terminal
    from tuneful.data.in_memory import Data
    from tuneful.data.read import DataStream
    from tuneful.encoding.encode import Encoder
    from tuneful.encoding.left_out import LeftOut
    from tuneful.runs.schema import PreferenceSummary, ReadingNote
    from tuneful.types import Conversation

_BATCH = 512
_BAR_WIDTH = 36
_MAX_SHOWN_PROMPT = 1200
_MOST_NAMED = 6
_SOURCE_WIDTH = 34


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check; `reading` is what there is to know of how rows were read, `without_tokens` says why nothing was
    encoded, `fixes` what `--fix` wrote."""

    name: str
    sha256: str
    format: str
    model: str
    template: str
    max_length: int
    split: str
    against: tuple[str, ...]
    reading: tuple[ReadingNote, ...]
    audit: Audit
    without_tokens: str
    fixes: Fixes | None

    def __repr__(self) -> str:
        return f"Checked({self.name!r}, {self.format}, {plural(self.audit.num_findings, 'finding')})"

    def as_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        from tuneful.runs.schema import as_row

        return {
            "source": self.name,
            "sha256": self.sha256,
            "format": self.format,
            "model": self.model,
            "template": self.template,
            "max_length": self.max_length,
            "split_method": self.split,
            "against": list(self.against),
            "reading": [as_row(note) for note in self.reading],
            "without_tokens": self.without_tokens,
            **self.audit.as_dict(),
            "fix": self.fixes.as_dict() if self.fixes else None,
        }


def check(
    data: Data | None = None,
    *,
    config: Config | None = None,
    against: Sequence[str] = (),
    fix: Path | None = None,
    terminal: Terminal | None = None,
) -> Checked:
    """Read all of `data` as a run under `config` would, and say what is wrong with it; nothing is trained.

    `against` are files of records that should not be among it; `fix` is a new file that gets what is safely fixed. Raises
    DataError where a file cannot be read at all, or holds no row.
    """
    from tuneful.audit.audit import audit
    from tuneful.audit.fix import write_fixed
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.notes import merged
    from tuneful.data.read import stream_data
    from tuneful.encoding.left_out import LeftOut
    from tuneful.model.saved_template import with_saved_template

    data = data_of(data, config, "starter")
    data = [data] if isinstance(data, str) else list(data)
    config, terminal = with_saved_template(config or Config()), terminal or Terminal(quiet=True)
    if fix is not None and "-" in data:
        raise ConfigError("--fix reads the data twice, and standard input can be read once; name a file")
    if fix is not None and fix.exists():
        raise DataError(f"{fix}: exists already; name a new file for --fix")
    settings = config.data.model_copy(update={"on_error": "skip"})
    encoder, without_tokens = find_encoder(config)
    objective = config.train.objective
    others = [one for name in against for one in _against(name, settings, objective)]
    stream = stream_data(data, settings, objective)
    given = _given_sides(settings, objective)
    left_out = {one: LeftOut(encoder) for one in (stream, *given.values()) if encoder}
    with terminal.progress("checking", None, "rows") as advance:
        found = audit(
            _with_examples(stream, encoder, left_out.get(stream)),
            config,
            encoder,
            given={side: _with_examples(one, encoder, left_out.get(one)) for side, one in given.items()},
            against=others,
            advance=advance,
        )
    fixes = write_fixed(stream_data(data, settings, objective), found.dropped, fix) if fix else None
    return Checked(
        name=stream.name,
        sha256=stream.sha256,
        format=stream.format,
        model=config.model.name_or_path,
        template=config.template.name,
        max_length=config.data.max_length,
        split=config.data.split,
        against=tuple(against),
        reading=merged(*((*one.notes, *(left_out[one].notes if encoder else ())) for one in (stream, *given.values()))),
        audit=found,
        without_tokens=without_tokens,
        fixes=fixes,
    )


def check_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA... KEY=VALUE...",
            help="files of records, patterns, a Hub id, or `starter`; then settings, such as data.max_length=2048",
        ),
    ] = None,
    model: Model = None,
    config: ConfigFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="end with 3 where anything was found")] = False,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="write a new file with the safe fixes applied")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="records that should not be among DATA, such as a benchmark (repeatable)"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What would be trained, and what is wrong with it, before a step is taken."""
    from tuneful.console import Terminal, json_to_stdout

    data, overrides = data_and_settings(arguments)
    settings = configuration(config, overrides, {"model.name_or_path": model})
    data = chosen_data(data, settings, config, command="check", default="starter")
    terminal = Terminal(quiet=quiet or as_json)
    result = check(data, config=settings, against=against or (), fix=fix, terminal=terminal)
    if as_json:
        json_to_stdout(result.as_dict(), indent=1)
    elif not quiet:
        show_check(result, Terminal(stderr=False))
    if strict and result.audit.num_findings:
        raise typer.Exit(3)


def find_encoder(config: Config) -> tuple[Encoder | None, str]:
    """The encoder of training under `config`, or None and why there is none."""
    from tuneful.encoding.prepare import load_encoder, make_encoder
    from tuneful.encoding.template import TEMPLATES, find_template
    from tuneful.encoding.tokens import TextEncoder
    from tuneful.model.tokenizer_file import find_locally, read_tokenizer_file

    name = config.model.name_or_path
    folder = find_locally(name)
    if folder is None:
        return (
            None,
            f"{name} is not on this machine; `tuneful generate --model {shlex.quote(name)} --prompt Hello` fetches it",
        )
    if config.template.name in TEMPLATES and (light := read_tokenizer_file(folder)) is not None:
        return make_encoder(TextEncoder(light, find_template(config.template.name)), config.data), ""
    from tuneful.model.load import load_tokenizer

    return load_encoder(load_tokenizer(folder), config), ""


def _given_sides(settings: DataConfig, objective: str) -> dict[int, DataStream]:
    """The rows of `data.validation_file` and `data.test_file`, by side."""
    from tuneful.data.read import stream_side
    from tuneful.data.split import TEST, VALIDATION

    files = {VALIDATION: settings.validation_file, TEST: settings.test_file}
    return {side: stream_side(name, settings, side, objective) for side, name in files.items() if name is not None}


def _against(name: str, settings: DataConfig, objective: str) -> list[Conversation]:
    """The records of a file given with --against: plain ones, or such as are trained on. It is read as a test file is."""
    from tuneful.data.pairs import plain_columns
    from tuneful.data.read import stream_side
    from tuneful.data.split import TEST

    plain = settings.model_copy(update={"columns": plain_columns(settings.columns)})
    try:
        return list(_conversations(stream_side(name, plain, TEST)))
    except (DataError, ConfigError):
        if objective == "sft":
            raise
        return list(_conversations(stream_side(name, settings, TEST, objective)))


def _conversations(stream: DataStream) -> Iterator[Conversation]:
    from tuneful.data.read import Record

    return (row.conversation for row in stream if isinstance(row, Record))


def _with_examples(rows: DataStream, encoder: Encoder | None, left_out: LeftOut | None = None) -> Iterator[AuditedRow]:
    """Each row with its example; encoded a batch at a time."""
    from tuneful.data.read import Record, SkippedRow, in_batches

    for batch in in_batches(rows, _BATCH):
        if encoder is None:
            yield from ((row, None) for row in batch)
            continue
        records = [row for row in batch if isinstance(row, Record)]
        examples = iter(encoder.examples([record.conversation for record in records]))
        for row in batch:
            example = None if isinstance(row, SkippedRow) else next(examples)
            if left_out is not None and isinstance(row, Record) and not isinstance(example, str):
                left_out.add([row.conversation])
            yield row, example


# The page


def show_check(checked: Checked, terminal: Terminal) -> None:
    """Print the page."""
    found = checked.audit
    terminal.say(
        f"{checked.name}: {found.num_read:,} rows read = {found.num_used:,} used + {found.num_refused:,} refused",
        style="bold",
    )
    if checked.without_tokens:
        terminal.say(f"Lengths are in words: {checked.without_tokens}.", style="yellow")
    terminal.say()
    _show_lengths(checked, terminal)
    terminal.facts(_facts(checked))
    for note in checked.reading:
        terminal.say(f"  {note.text} (first: {note.source})", style="yellow" if note.kind == "unused_text" else None)
    _show_prompt(checked, terminal)
    _show_findings(checked, terminal)
    if checked.fixes:
        _show_fixes(checked.fixes, terminal)


def _show_lengths(checked: Checked, terminal: Terminal) -> None:
    found = checked.audit
    if not found.lengths:
        return
    terminal.table(
        [found.unit, "mean", "median", "95 % up to", "99 % up to", "longest"],
        [
            [name if name != "record" else "whole record", f"{one.mean:,.1f}"]
            + [f"{value:,.0f}" for value in (one.p50, one.p95, one.p99, one.max)]
            for name, one in found.lengths.items()
        ],
    )
    terminal.say()
    edges, counts = found.histogram.edges, found.histogram.counts
    most = max(counts)
    bins = list(zip(edges[:-1], edges[1:], counts, strict=True))
    while not bins[0][2]:
        del bins[0]
    for low, high, count in bins:
        bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
        terminal.say(f"  {low:>6,.0f} to {high - 1:>6,.0f}  {bar} {count:,}", style="dim" if not count else None)
    terminal.say()


def _facts(checked: Checked) -> dict[str, str]:
    from tuneful.audit.labels import labels_in_words

    found = checked.audit
    facts = {"format": checked.format}
    if found.num_trained is not None and found.num_units:
        share = found.num_trained / found.num_units
        facts["trained"] = f"{found.num_trained:,} of {found.num_units:,} tokens ({share:.1%}) carry loss"
        facts["end token"] = f"trained in {found.num_ended:,} of {found.num_used:,} records"
    if found.preferences is not None:
        facts |= _preference_facts(found.preferences)
    if found.sides:
        sides = ", ".join(f"{count:,} {name}" for name, count in found.sides.items())
        facts["split"] = f"{sides} ({checked.split})"
    if found.labels:
        facts["labels"] = labels_in_words(found.labels)
    facts["turns"] = _named({f"{turns}:": count for turns, count in found.turns.items()})
    facts["languages"] = _named(found.languages) + " (by their commonest words)"
    facts["scripts"] = _named(found.scripts)
    facts["first words"] = _named({f"“{words}”": count for words, count in found.first_words.items()})
    return {name: value for name, value in facts.items() if value}


def _preference_facts(found: PreferenceSummary) -> dict[str, str]:
    from tuneful.audit.preferences import length_sentence

    labels = f"{found.num_wanted:,} wanted, {found.num_unwanted:,} not wanted"
    return {
        "pairs": ", ".join(filter(None, [f"{found.num_pairs:,}", length_sentence(found)])) if found.num_pairs else "",
        "labels": labels if found.num_wanted + found.num_unwanted else "",
    }


def _named(counts: Mapping[str, int]) -> str:
    """`English 98 %, German 2 %`, the rarest together."""
    total = sum(counts.values())
    named = [f"{name} {rough_percent(count / total)}" for name, count in list(counts.items())[:_MOST_NAMED]]
    rest = sum(list(counts.values())[_MOST_NAMED:])
    return ", ".join([*named, f"{len(counts) - _MOST_NAMED} more {rough_percent(rest / total)}"] if rest else named)


def _show_prompt(checked: Checked, terminal: Terminal) -> None:
    found = checked.audit
    if not found.prompt_source:
        return
    terminal.heading(f"The prompt of {found.prompt_source}, as inference sends it ({checked.template})")
    shown = found.prompt[:_MAX_SHOWN_PROMPT] + ("..." if len(found.prompt) > _MAX_SHOWN_PROMPT else "")
    for line in shown.split("\n"):
        terminal.console.print(Padding(Text(line), (0, 0, 0, 2), expand=False) if line else "")
    last = found.prompt[-1:]
    end = {"\n": "a line feed", " ": "a space"}.get(last, f"{last!r}")
    terminal.say(f"  (it ends with {end}; then comes the answer)", style="dim")


def _show_findings(checked: Checked, terminal: Terminal) -> None:
    findings = checked.audit.findings
    num_findings = checked.audit.num_findings
    counts = ((num_findings, "finding"), (len(findings) - num_findings, "note"))
    terminal.heading(" and ".join(plural(count, noun) for count, noun in counts if count) or "Nothing was found")
    for finding in findings:
        terminal.say()
        _show_finding(finding, terminal)
    looked_for = ", ".join(name.replace("_", " ").replace("html", "HTML") for name in _clean(checked))
    terminal.say()
    terminal.say(f"Looked for and not found: {looked_for}.", style="dim")


def _show_finding(finding: Finding, terminal: Terminal) -> None:
    kind = finding.kind
    style = "bold yellow" if kind.severity == "finding" else "bold cyan"
    terminal.console.print(Text.assemble((kind.title, style), f"  {plural(finding.count, 'record')}"))
    _show_pairs([(case.source, case.text) for case in finding.cases], terminal)
    if finding.count > len(finding.cases):
        terminal.say(f"  and {finding.count - len(finding.cases):,} more", style="dim")
    _show_pairs([("why", kind.why), ("fix", kind.advice)], terminal)


def _show_pairs(pairs: Sequence[tuple[str, str]], terminal: Terminal) -> None:
    """Two columns, indented, each folding within itself."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", overflow="fold", max_width=_SOURCE_WIDTH)
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(Text(name), Text(text))
    terminal.console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _clean(checked: Checked) -> list[str]:
    """The names of what was looked for in vain."""
    from tuneful.audit.findings import KINDS, NEEDS_PAIRS, NEEDS_TOKENS

    found = {finding.kind.name for finding in checked.audit.findings}
    not_looked_for = {*(NEEDS_TOKENS if checked.without_tokens else ()), *(() if checked.against else ("overlap",))}
    if checked.audit.preferences is None:
        not_looked_for |= NEEDS_PAIRS
    return [name for name in KINDS if name not in found | not_looked_for]


def _show_fixes(fixes: Fixes, terminal: Terminal) -> None:
    num_dropped = sum(fixes.dropped.values())
    terminal.heading(f"Written: {fixes.path}")
    terminal.say(
        f"{fixes.num_read:,} rows read = {fixes.num_kept:,} kept + {fixes.num_changed:,} changed + "
        f"{num_dropped:,} dropped"
    )
    for reason, count in fixes.dropped.items():
        terminal.say(f"  dropped {count:,}: {reason.replace('_', ' ')}")
