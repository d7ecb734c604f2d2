"""What checks of one's own found of sets of answers: on the terminal, and as checks/NAME.jsonl and checks.json of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import ConfigError
from tuneful.evaluation.check_kinds import CheckItem
from tuneful.evaluation.checks import Check, check_results, run_checks
from tuneful.files import write_json, write_rows
from tuneful.runs.schema import CheckOutcome, CheckResult, CheckRow, ChecksDocument, as_row

Results = Mapping[str, Sequence[CheckResult]]
"""The results of each set of answers, by its name."""

_MAX_COLUMNS = 12
_NONE = "(none)"


def check_sets(
    sets: Mapping[str, Sequence[CheckItem]],
    checks: Sequence[Check],
    config: Config,
    folder: Path | None,
    terminal: Terminal,
) -> ChecksDocument:
    """Run `checks` over each of `sets`, show what they found, and write it into `folder` where there is one."""
    report, found, results = config.report, dict[str, list[dict[str, CheckOutcome]]](), {}
    for name, items in sets.items():
        found[name] = run_checks(checks, items)
        results[name] = check_results(
            checks,
            found[name],
            confidence=report.confidence,
            num_resamples=report.num_resamples,
            seed=config.train.seed,
        )
    document = ChecksDocument(report.confidence, results)
    show_results(document, terminal)
    if folder is not None:
        try:
            (folder / "checks").mkdir(parents=True, exist_ok=True)
            for name, items in sets.items():
                rows = (CheckRow(item.source, own) for item, own in zip(items, found[name], strict=True))
                write_rows(folder / "checks" / f"{name}.jsonl", map(as_row, rows))
            write_json(folder / "checks.json", as_row(document))
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
        terminal.say(f"written: {folder / 'checks.json'}")
    return document


def show_results(document: ChecksDocument, terminal: Terminal) -> None:
    """Print every check of every set as a line of a table, tables of labels, and why answers have no score."""
    terminal.heading("Checked")
    rows = []
    for name, results in document.answers.items():
        for one in results:
            scored = f"{one.num_scored} + {one.num_unscored} = {one.num_items}"
            rows.append([name, one.name, scored, *_figures(one.value, one.low, one.high)])
            if one.macro_f1 is not None:
                figures = _figures(one.macro_f1, one.macro_f1_low, one.macro_f1_high)
                rows.append([name, f"{one.name}_macro_f1", scored, *figures])
    terminal.table(["", "check", "scored + unscored", "value", f"{document.confidence:.0%} interval"], rows)
    for one in next(iter(document.answers.values()), ()):
        terminal.say(f"  {one.name}: whether an answer {one.asks}")
    for name, results in document.answers.items():
        for one in results:
            _show_labels(name, one, terminal)
            for why, count in one.failed.items():
                terminal.say(f"  {name} {one.name}: {count} not met: {why}")
    show_unscored(document.answers, terminal)


def show_unscored(results: Results, terminal: Terminal) -> None:
    """Say of each set and check why answers have no score."""
    for name, own in results.items():
        for one in own:
            for reason, count in one.unscored.items():
                terminal.say(f"  {name} {one.name}: {count} unscored: {reason}", style="yellow")


def _figures(value: float | None, low: float | None, high: float | None) -> list[str]:
    return [
        "-" if value is None else f"{value:.3f}",
        "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]",
    ]


def _show_labels(name: str, result: CheckResult, terminal: Terminal) -> None:
    """The table of labels, and, where it is not too wide, how they are confused."""
    classes, confusion = result.classes, result.confusion
    if not classes or not confusion:
        return

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    terminal.say()
    terminal.table(
        [f"{name} {result.name}", "references", "answers", "right", "precision", "recall", "F1"],
        [
            [
                one.label,
                str(one.num_items),
                str(one.num_found),
                str(one.num_right),
                shown(one.precision),
                shown(one.recall),
                shown(one.f1),
            ]
            for one in classes
        ],
    )
    if len(classes) < _MAX_COLUMNS:
        labels = [one.label for one in classes]
        rows = [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=True)]
        terminal.say()
        terminal.table(["reference \\ answer", *labels, _NONE], rows)
