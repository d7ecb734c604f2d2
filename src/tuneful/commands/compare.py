"""`tuneful compare A B`: two sets of answers over the same items, and whether the second is better. Of three and more, every two.

OUTPUT/comparison.json   OUTPUT/{answers,documents}/{base,tuned}.jsonl   OUTPUT/tests/NAME-{base,tuned}.jsonl
OUTPUT/data/test.jsonl   OUTPUT/report.html
OUTPUT/pairwise.json   OUTPUT/pairwise.html                                                       of three and more
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from tuneful.commands.options import AnswerKey, Checks, ConfigFile, Gate, Json, Quiet, configuration, data_and_settings
from tuneful.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.answered import Answered, AnsweredSet, Pairing
    from tuneful.evaluation.sides import Request, Shared
    from tuneful.runs.schema import Comparison, GateOutcome, PairwiseComparison

_NUM_CHANGED_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """B (`tuned`) against A (`base`), with every item and the result of each gate condition; `report` is the page, where an
    output folder was named."""

    comparison: Comparison
    report: Path | None = None

    def __repr__(self) -> str:
        return f"ComparisonResult({self.comparison.sentence!r})"

    @property
    def gate(self) -> tuple[GateOutcome, ...]:
        """The result of each condition of the gate."""
        return self.comparison.gate or ()

    @property
    def document(self) -> dict[str, Any]:
        """What comparison.json holds, and `--json` prints."""
        from tuneful.runs.schema import as_row

        return as_row(self.comparison)


@dataclass(frozen=True, slots=True)
class PairwiseResult:
    """Three or more sides, every two of them compared; `report` is the page, where an output folder was named."""

    comparison: PairwiseComparison
    report: Path | None = None

    def __repr__(self) -> str:
        return f"PairwiseResult({self.comparison.sentence!r})"

    @property
    def document(self) -> dict[str, Any]:
        """What pairwise.json holds, and `--json` prints."""
        from tuneful.runs.schema import as_row

        return as_row(self.comparison)


@overload
def compare(
    a: str | Path,
    b: str | Path,
    *,
    config: Config | None = ...,
    output: Path | None = ...,
    answer_key: str | None = ...,
    terminal: Terminal | None = ...,
) -> ComparisonResult: ...


@overload
def compare(
    a: str | Path,
    b: str | Path,
    c: str | Path,
    /,
    *more: str | Path,
    config: Config | None = ...,
    output: Path | None = ...,
    answer_key: str | None = ...,
    terminal: Terminal | None = ...,
) -> PairwiseResult: ...


def compare(
    a: str | Path,
    b: str | Path,
    *more: str | Path,
    config: Config | None = None,
    output: Path | None = None,
    answer_key: str | None = None,
    terminal: Terminal | None = None,
) -> ComparisonResult | PairwiseResult:
    """Compare the answers in `b` with those in `a`, each a run folder or a file of answers, over the same items.

    `answer_key` names the key of the answer in files that are not ours; the gate is `report.gate` of `config`, checks are its
    `evaluation.checks`, or those that the runs were configured with alike. Tests that both took are compared. With `output` a
    new folder gets comparison.json and report.html. With `more` sides every two are compared on the items that all of them
    answer, corrected for their number, and `output` gets pairwise.json and pairwise.html. Raises DataError where they cannot be
    paired, ConfigError where `output` is taken, a condition names what was not measured, or there is a gate for more than two.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal

    config, terminal = config or Config(), terminal or Terminal(quiet=True)
    if more:
        return _compare_all([str(name) for name in (a, b, *more)], config, output, answer_key, terminal)
    return _compare_two(a, b, config, output, answer_key, terminal)


def _compare_two(
    a: str | Path, b: str | Path, config: Config, output: Path | None, answer_key: str | None, terminal: Terminal
) -> ComparisonResult:
    from tuneful.evaluation.answered import read_answered
    from tuneful.evaluation.sides import checked, compare_sides, rated, requested, shared_by
    from tuneful.evaluation.tables import apply_gate, show_comparison

    before, after = (read_answered(str(name), config.data, answer_key) for name in (a, b))
    shared, left = shared_by(before, after)
    pairing, documents = shared.pairing, shared.documents
    request = requested(config, (before, after), shared.tests[1], bool(pairing.base))
    matched = rated(before, after, pairing)
    comparison = compare_sides(request, before, after, checked(request, shared), matched=matched)
    terminal.heading("Compared")
    terminal.facts(
        {
            "A": _counted(before, pairing.num_only_base, len(documents[0])),
            "B": _counted(after, pairing.num_only_tuned, len(documents[1])),
            **_checks_in_words(config, request),
        }
    )
    show_comparison(comparison, terminal, ("A", "B"))
    for remark in (*request.remarks, *left):
        terminal.say(remark, style="yellow")
    if comparison.people is None and matched.num_left_out:
        terminal.say(f"{matched.num_left_out} ratings in ratings.jsonl are of other answers than these", style="yellow")
    _show_changed_most(comparison, pairing, terminal)
    comparison = apply_gate(request.conditions, comparison, terminal)
    report = _write(output, shared, request.config, comparison) if output is not None else None
    if report is not None:
        terminal.say(f"written: {report}")
    return ComparisonResult(comparison, report)


def _checks_in_words(config: Config, request: Request) -> dict[str, str]:
    """Where checks come from, if from the runs that are compared."""
    if not request.checks or config.evaluation.checks:
        return {}
    return {"checks": f"{', '.join(one.spec.name for one in request.checks)}, from the runs' own configuration"}


def compare_command(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B [C ...] KEY=VALUE...",
            help="what is compared: run folders, or files of answers; then settings, such as report.confidence=0.9",
        ),
    ] = None,
    answer_key: AnswerKey = None,
    gate: Gate = None,
    checks: Checks = None,
    output: Annotated[
        Path | None,
        typer.Option(help="a new folder for comparison.json and report.html (of more than two: pairwise.*)"),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is B better than A? Run folders or files of answers over the same test items; of three and more, every two."""
    from tuneful.console import Terminal, to_stdout
    from tuneful.evaluation.gate import check_met

    names, overrides = _sides_and_settings(sides or [])
    settings = configuration(config, overrides, {"report.gate": gate, "evaluation.checks": checks})
    terminal = Terminal(quiet=quiet)
    if len(names) > 2:
        several = compare(
            names[0],
            names[1],
            names[2],
            *names[3:],
            config=settings,
            output=output,
            answer_key=answer_key,
            terminal=terminal,
        )
        if as_json:
            to_stdout(json.dumps(several.document, indent=1))
        return
    result = compare(names[0], names[1], config=settings, output=output, answer_key=answer_key, terminal=terminal)
    if as_json:
        to_stdout(json.dumps(result.document, indent=1))
    check_met(result.gate)


def _sides_and_settings(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is compared, and settings; the first two arguments are sides whatever they look like."""
    if len(arguments) < 2:
        missing = "B" if arguments else "A"
        raise InputError(f"Missing argument '{missing}'; see tuneful compare --help")
    more, settings = data_and_settings(arguments[2:])
    return [*arguments[:2], *more], settings


def _compare_all(
    names: list[str], config: Config, output: Path | None, answer_key: str | None, terminal: Terminal
) -> PairwiseResult:
    """Every two of three or more sides."""
    from tuneful.evaluation.answered import Pairing, read_answered
    from tuneful.evaluation.checks import scored_by_all, with_checks
    from tuneful.evaluation.documents import pair_documents
    from tuneful.evaluation.pairwise import (
        LETTERS,
        compare_pairwise,
        enough_resamples,
        pair_confidence,
        pairs_of,
        shared_items,
    )
    from tuneful.evaluation.ratings import match_ratings
    from tuneful.evaluation.sides import Shared, compare_sides, rated_pairs, requested, tests_of_all
    from tuneful.evaluation.tables import show_pairwise
    from tuneful.runs.schema import Side

    if config.report.gate.strip():
        raise ConfigError(
            f"report.gate: a gate is for two sides, and there are {len(names)}; compare those two that it is for"
        )
    if len(names) > len(LETTERS):
        raise ConfigError(f"at most {len(LETTERS)} sides are compared at once, not {len(names)}")
    answered = [read_answered(name, config.data, answer_key) for name in names]
    items = shared_items(answered)
    tests, left = tests_of_all(answered)
    request = requested(config, answered, tests[-1], bool(items[0]))
    shared = scored_by_all([with_checks(request.checks, own) for own in items])
    pairs = pairs_of(len(names))
    level = pair_confidence(config.report.confidence, len(pairs))
    resamples = enough_resamples(config.report.num_resamples, level)
    report = config.report.model_copy(update={"confidence": level, "num_resamples": resamples})
    of_pairs = replace(request, config=request.config.model_copy(update={"report": report}))
    found = {}
    with terminal.progress("comparing", len(pairs), "pairs") as advance:
        for base, tuned in pairs:
            before, after, pairing = answered[base], answered[tuned], Pairing(shared[base], shared[tuned], 0, 0)
            documents = pair_documents(before.documents, after.documents)
            if not pairing.base and not documents[0] and not tests[0]:
                raise DataError(
                    f"{before.name} and {after.name}: no document in common: the same text must stand in both"
                )
            common = Shared(pairing, documents, (tests[base], tests[tuned]))
            matched = match_ratings((), rated_pairs(pairing))
            found[base, tuned] = compare_sides(of_pairs, before, after, common, matched=matched)
            advance(1)
    sides = [
        Side(letter, one.name, len(items), len(one.items) - len(items))
        for letter, one, items in zip(LETTERS, answered, shared, strict=False)
    ]
    comparison = compare_pairwise(sides, found, confidence=config.report.confidence)
    show_pairwise(comparison, terminal)
    for remark in (*request.remarks, *left):
        terminal.say(remark, style="yellow")
    if output is None:
        return PairwiseResult(comparison)
    page = _write_pairwise(output, comparison)
    terminal.say(f"written: {page}")
    return PairwiseResult(comparison, page)


def _write_pairwise(output: Path, comparison: PairwiseComparison) -> Path:
    from tuneful.report.pairwise import build_pairwise_page
    from tuneful.runs.folder import RunDir

    run = RunDir(output)
    try:
        run.write_document("pairwise.json", comparison)
        return build_pairwise_page(comparison, run.path)
    finally:
        run.close()


def _counted(side: AnsweredSet, num_items_left: int, num_documents: int) -> str:
    counts = {"answers": (len(side.items), num_items_left)}
    counts["documents"] = (len(side.documents), len(side.documents) - num_documents)
    said = [
        f"{total} {what} = {total - left} compared{f', {left} only here and left out' if left else ' + 0 left out'}"
        for what, (total, left) in counts.items()
        if total
    ]
    return f"{side.name}: {'; '.join(said)}"


def _show_changed_most(comparison: Comparison, pairing: Pairing, terminal: Terminal) -> None:
    """Print the answers with the largest losses and the largest gains, one line a side."""
    changed = sorted(
        (
            (item.gain, before, after)
            for item, before, after in zip(comparison.items or (), pairing.base, pairing.tuned, strict=True)
            if item.gain
        ),
        key=lambda one: one[0],
    )
    losses = [one for one in changed[:_NUM_CHANGED_SHOWN] if one[0] < 0]
    gained = [one for one in reversed(changed[-_NUM_CHANGED_SHOWN:]) if one[0] > 0]
    for heading, rows in (("Largest losses", losses), ("Largest gains", gained)):
        if rows:
            terminal.heading(heading)
        for gain, before, after in rows:
            terminal.say(f"{gain:+.2f}  {after.source}", style="dim")
            for name, text in (("wanted", after.reference), ("A", before.text), ("B", after.text)):
                terminal.say(f"  {name:>6}  {_line(text, terminal)}")


def _line(text: str, terminal: Terminal) -> str:
    room = min(terminal.console.width, 120) - len("  wanted  ")
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= room else line[: room - 4] + " ..."


def _write(output: Path, shared: Shared, config: Config, comparison: Comparison) -> Path:
    from tuneful.report.build import build_report
    from tuneful.runs.folder import RunDir
    from tuneful.runs.schema import AnswerRow

    run, pairing = RunDir(output), shared.pairing
    try:
        run.write_config(config)
        for name, side in (("base", pairing.base), ("tuned", pairing.tuned)):
            # Both under B's sources: the page joins them by source, and A's sources may name another file.
            rows = zip(side, pairing.tuned, strict=True)
            answers = (
                AnswerRow(other.source, one.prompt, one.text, one.finish_reason, one.num_tokens) for one, other in rows
            )
            if pairing.base:
                run.write_rows(f"answers/{name}.jsonl", answers)
        for name, scores in zip(("base", "tuned"), shared.documents, strict=True):
            if scores:
                run.write_rows(f"documents/{name}.jsonl", scores)
        for name, tests in zip(("base", "tuned"), shared.tests, strict=True):
            for test in tests:
                run.write_rows(f"tests/{test.asked.name}-{name}.jsonl", test.scores)
        run.write_records("data/test.jsonl", map(_test_row, pairing.tuned))
        run.write_document("comparison.json", comparison)
        return build_report(run.path)
    finally:
        run.close()


def _test_row(one: Answered) -> dict[str, Any]:
    kind = {"kind": one.kind} if one.kind else {}
    return {"instruction": one.prompt, "input": "", "output": one.reference, **kind, "source": one.source}
