"""`tuneful compare A B`: two sets of answers over the same items, and whether the second is better.

OUTPUT/comparison.json   OUTPUT/{answers,documents}/{base,tuned}.jsonl   OUTPUT/data/test.jsonl   OUTPUT/report.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import AnswerKey, Checks, ConfigFile, Gate, Json, Quiet, configuration
from tuneful.errors import ConfigError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.answered import Answered, AnsweredSet, Pairing
    from tuneful.evaluation.checks import Check
    from tuneful.evaluation.ratings import MatchedRatings
    from tuneful.runs.schema import AnswerScores, Comparison, GateOutcome, GeneralScore

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


def compare(
    a: str | Path,
    b: str | Path,
    *,
    config: Config | None = None,
    output: Path | None = None,
    answer_key: str | None = None,
    terminal: Terminal | None = None,
) -> ComparisonResult:
    """Compare the answers in `b` with those in `a`, each a run folder or a file of answers, over the same items.

    `answer_key` names the key of the answer in files that are not ours; the gate is `report.gate` of `config`. With `output`
    a new folder gets comparison.json and report.html. Raises DataError where the two cannot be paired, ConfigError where
    `output` is taken or a condition names what was not measured.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.answered import pair, read_answered
    from tuneful.evaluation.checks import metrics_of, read_checks
    from tuneful.evaluation.documents import pair_documents
    from tuneful.evaluation.gate import check_headline, parse_gate
    from tuneful.evaluation.tables import apply_gate, show_comparison

    config, terminal = config or Config(), terminal or Terminal(quiet=True)
    own = read_checks(config)
    conditions = parse_gate(config.report.gate, checks=metrics_of(own))
    check_headline(config.report.headline, metrics_of(own))
    before, after = (read_answered(str(name), config.data, answer_key) for name in (a, b))
    documents = pair_documents(before.documents, after.documents)
    pairing = pair(before, after, num_documents=len(documents[0]))
    matched = _rated(before, after, pairing)
    comparison = _compared(config, own, before, after, pairing, matched, documents)
    terminal.heading("Compared")
    terminal.facts(
        {
            "A": _counted(before, pairing.num_only_base, len(documents[0])),
            "B": _counted(after, pairing.num_only_tuned, len(documents[1])),
        }
    )
    show_comparison(comparison, terminal, ("A", "B"))
    if comparison.people is None and matched.num_left_out:
        terminal.say(f"{matched.num_left_out} ratings in ratings.jsonl are of other answers than these", style="yellow")
    _show_changed_most(comparison, pairing, terminal)
    comparison = apply_gate(conditions, comparison, terminal)
    report = _write(output, pairing, documents, config, comparison) if output is not None else None
    if report is not None:
        terminal.say(f"written: {report}")
    return ComparisonResult(comparison, report)


def compare_command(
    a: Annotated[str, typer.Argument(metavar="A", help="what to compare with: a run folder, or a file of answers")],
    b: Annotated[str, typer.Argument(metavar="B", help="what is compared: a run folder, or a file of answers")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as report.confidence=0.9")
    ] = None,
    answer_key: AnswerKey = None,
    gate: Gate = None,
    checks: Checks = None,
    output: Annotated[Path | None, typer.Option(help="a new folder for comparison.json and report.html")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is B better than A? Two run folders or files of answers over the same test items."""
    from tuneful.console import Terminal, to_stdout
    from tuneful.evaluation.gate import check_met

    settings = configuration(config, overrides, {"report.gate": gate, "evaluation.checks": checks})
    result = compare(a, b, config=settings, output=output, answer_key=answer_key, terminal=Terminal(quiet=quiet))
    if as_json:
        to_stdout(json.dumps(result.document, indent=1))
    check_met(result.gate)


def _compared(
    config: Config,
    checks: Sequence[Check],
    before: AnsweredSet,
    after: AnsweredSet,
    pairing: Pairing,
    matched: MatchedRatings,
    documents: tuple[list[GeneralScore], list[GeneralScore]],
) -> Comparison:
    """The comparison of what both sides answer and read, of either where they share only that."""
    from tuneful.evaluation.document import compare_models, with_items
    from tuneful.evaluation.documents import compare_documents, comparison_of_documents
    from tuneful.evaluation.forgetting import compare_forgetting
    from tuneful.evaluation.ratings import with_preferences
    from tuneful.evaluation.summary import summary_sentence
    from tuneful.runs.schema import ComparedSides

    names, report = ComparedSides(before.name, after.name), config.report
    settings: dict[str, Any] = {
        "confidence": report.confidence,
        "num_resamples": report.num_resamples,
        "seed": config.train.seed,
    }
    of_documents = compare_documents(*documents, **settings)
    if not pairing.base:
        if checks or report.headline is not None:
            setting = "evaluation.checks" if checks else "report.headline"
            raise ConfigError(
                f"{setting} is of answers, and {before.name} and {after.name} have only documents in common"
            )
        forgetting = compare_forgetting(before.general, after.general, **settings)
        found = comparison_of_documents(of_documents, forgetting, **settings)
        return replace(found, names=names, sentence=summary_sentence(found, "B"))
    kinds = [one.kind for one in pairing.tuned]
    base, tuned = ([one.scores for one in side] for side in (pairing.base, pairing.tuned))
    base, tuned = with_preferences(base, tuned, matched)
    base, tuned = _checked(checks, pairing.base, base), _checked(checks, pairing.tuned, tuned)
    compared = compare_models(config, base, tuned, kinds, before.general, after.general, checks)
    comparison = with_items(
        replace(compared, metrics=(*compared.metrics, *of_documents)),
        sources=[one.source for one in pairing.tuned],
        references=[one.reference for one in pairing.tuned],
        kinds=kinds,
        base=base,
        tuned=tuned,
        names=names,
        checks=checks,
    )
    return _with_people(comparison, matched)


def _checked(checks: Sequence[Check], side: Sequence[Answered], scores: Sequence[AnswerScores]) -> list[AnswerScores]:
    """The scores of one side with what the checks found of its answers."""
    from tuneful.evaluation.checks import check_item, run_checks

    if not checks:
        return list(scores)
    found = run_checks(checks, [check_item(one.source, one.prompt, one.reference, one.text) for one in side])
    return [replace(one, checks=own) for one, own in zip(scores, found, strict=True)]


def _counted(side: AnsweredSet, num_items_left: int, num_documents: int) -> str:
    counts = {"answers": (len(side.items), num_items_left)}
    counts["documents"] = (len(side.documents), len(side.documents) - num_documents)
    said = [
        f"{total} {what} = {total - left} compared{f', {left} only here and left out' if left else ' + 0 left out'}"
        for what, (total, left) in counts.items()
        if total
    ]
    return f"{side.name}: {'; '.join(said)}"


def _rated(before: AnsweredSet, after: AnsweredSet, pairing: Pairing) -> MatchedRatings:
    """What people rated in the run of either side, of the answers that are compared."""
    from tuneful.evaluation.ratings import RatedPair, match_ratings

    pairs = zip(pairing.base, pairing.tuned, strict=True)
    return match_ratings(
        dict.fromkeys((*before.ratings, *after.ratings)),
        [RatedPair((*{one.source, other.source},), one.text, other.text) for one, other in pairs],
    )


def _with_people(comparison: Comparison, matched: MatchedRatings) -> Comparison:
    from tuneful.evaluation.ratings import judge_gain, summarise_ratings

    if not any(matched.by_item):
        return comparison
    people = summarise_ratings(
        matched,
        [judge_gain(item.base.judge_score, item.tuned.judge_score) for item in comparison.items or ()],
        confidence=comparison.confidence,
        num_resamples=comparison.num_resamples,
        seed=comparison.seed,
    )
    return replace(comparison, people=people)


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


def _write(
    output: Path,
    pairing: Pairing,
    documents: tuple[list[GeneralScore], list[GeneralScore]],
    config: Config,
    comparison: Comparison,
) -> Path:
    from tuneful.report.build import build_report
    from tuneful.runs.folder import RunDir
    from tuneful.runs.schema import AnswerRow

    run = RunDir(output)
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
        for name, scores in zip(("base", "tuned"), documents, strict=True):
            if scores:
                run.write_rows(f"documents/{name}.jsonl", scores)
        run.write_records("data/test.jsonl", map(_test_row, pairing.tuned))
        run.write_document("comparison.json", comparison)
        return build_report(run.path)
    finally:
        run.close()


def _test_row(one: Answered) -> dict[str, Any]:
    kind = {"kind": one.kind} if one.kind else {}
    return {"instruction": one.prompt, "input": "", "output": one.reference, **kind, "source": one.source}
