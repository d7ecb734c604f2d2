"""`tuneful evaluate`: a judge grades answers, those of a run or of any file; or checks of one's own are run over them.

With `--tests` a model, or both of a run, take tests instead (`evaluate_tests.py`).

OUTPUT/scores/NAME.jsonl   OUTPUT/evaluation.json   OUTPUT/calibration.json   OUTPUT/judge/replies.jsonl
OUTPUT/checks/NAME.jsonl   OUTPUT/checks.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.evaluate_tests import take_tests
from tuneful.commands.options import Checks, ConfigFile, Gate, Json, Quiet, configuration, with_options
from tuneful.errors import ConfigError, JudgeError
from tuneful.files import write_json

if TYPE_CHECKING:
    from tuneful.commands.evaluate_gate import EvaluationGate
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.checks import Check
    from tuneful.judge.client import Judge
    from tuneful.judge.items import AnswerSet
    from tuneful.judge.verdicts import ReplyCache
    from tuneful.runs.schema import (
        Agreement,
        Calibration,
        CalibrationFigure,
        ChecksDocument,
        EvaluationDocument,
        GateOutcome,
        RaterAgreement,
        RatingRow,
    )
    from tuneful.types import Verdict


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The verdicts on each set of answers by its name, in the order of its items, and their summary.

    `summary` is what evaluation.json of `folder` holds, None where no judge was asked; `calibration` is what probes found out
    about the judge, where that was asked for; `checks` is what checks of one's own found, where there are any; `gate` is what
    became of each condition. `folder` is None where nothing was written.
    """

    folder: Path | None
    verdicts: Mapping[str, list[Verdict]]
    summary: EvaluationDocument | None
    calibration: Calibration | None = None
    checks: ChecksDocument | None = None
    gate: tuple[GateOutcome, ...] = ()

    def __repr__(self) -> str:
        checked = {name: found[0].num_items for name, found in self.checks.answers.items()} if self.checks else {}
        sizes = {**checked, **{name: len(verdicts) for name, verdicts in self.verdicts.items()}}
        counts = ", ".join(f"{name}={size:,}" for name, size in sizes.items())
        return f"EvaluationResult({str(self.folder)!r}, {counts})"

    def as_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        from tuneful.runs.schema import as_row

        parts = {"calibration": self.calibration, "checks": self.checks}
        found: dict[str, Any] = {name: as_row(part) for name, part in parts.items() if part is not None}
        if self.gate:
            found["gate"] = [as_row(outcome) for outcome in self.gate]
        return {**(as_row(self.summary) if self.summary else {}), **found}


def evaluate(
    answers: str | Path,
    *,
    config: Config | None = None,
    output: Path | None = None,
    answer_key: str | Sequence[str] | None = None,
    against: Path | None = None,
    ratings: Path | None = None,
    calibrate: bool = False,
    limit: int | None = None,
    terminal: Terminal | None = None,
) -> EvaluationResult:
    """Let the judge of `config` (`judge.model`) grade the answers file or run folder `answers` into the folder `output`, and run
    the checks of `config` (`evaluation.checks`) over them; without a judge the checks alone.

    `answer_key` names the key of the answer, or the keys of several answers to each task. `against` is the answers file that a
    pairwise judge compares with; a run folder brings its own. `ratings` are people's grades of the answers; `calibrate` probes
    the judge at length, where it is probed shortly else (`judge.num_probes`); only the first `limit` answers are judged. The gate
    is `report.gate` of `config`: of a run as at its end, of other answers on figures of theirs alone. Raises InputError where the
    request is wrong, JudgeError where nothing could be scored.
    """
    from tuneful.commands.evaluate_gate import outcomes_of, read_gate
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.checks import read_checks
    from tuneful.evaluation.ratings import load_ratings
    from tuneful.judge.agreement import agree
    from tuneful.judge.local import open_judge, resolve_settings
    from tuneful.judge.probing import probe_first
    from tuneful.judge.questions import prompt_of
    from tuneful.judge.run import (
        answer_sets,
        evaluation_document,
        judge_sets,
        limited,
        load_judge_model,
        open_cache,
        warn_of_copies,
        warning,
    )
    from tuneful.judge.stopping import check_two_sets
    from tuneful.runs.schema import as_row

    answers, config, terminal = Path(answers), config or Config(), terminal or Terminal(quiet=True)
    keys = [answer_key] if isinstance(answer_key, str) else answer_key or ()
    checks = read_checks(config)
    gate = read_gate(answers, config, checks, limit)
    if (checks or gate) and config.judge.model is None:
        _refuse_judging({"--against": against, "--ratings": ratings, "--calibrate": calibrate or None}, config)
        folder = _output_folder(answers, output, needed=False)
        own = _without_judge(answers, checks, gate, config, keys, limit)
        found = _checked(own, checks, config, folder, terminal) if checks else None
        outcomes = outcomes_of(gate, own, config, found, None, {}, terminal)
        return EvaluationResult(folder, {}, None, checks=found, gate=outcomes)
    settings = resolve_settings(config.judge)
    prompt_of(settings)
    people = _ratings(ratings, settings.protocol)
    every = answer_sets(answers, config, keys, against)
    sets = limited(every, limit)
    check_two_sets(sets, settings)
    warn_of_copies(sets, terminal)
    config = config.model_copy(update={"judge": settings})
    folder = _output_folder(answers, output)
    assert folder is not None
    document = None
    if checks:
        unjudged = _without_judge(answers, checks, None, config, keys, limit)
        document = _checked(unjudged, checks, config, folder, terminal)
    judge = open_judge(settings, lambda name: load_judge_model(name, config, terminal.say), warning(terminal))
    with open_cache(folder) as cache:
        rated = load_ratings(answers) if answers.is_dir() else []
        calibration = _calibrated(sets, judge, config, cache, folder, terminal, rated) if calibrate else None
        probed = None if calibrate else probe_first(sets, judge, config, cache, terminal)
        verdicts, seen = judge_sets(sets, judge, config, cache, folder, terminal)
    summary = evaluation_document(judge, config, verdicts, terminal, calibration or probed, seen)
    summary = replace(summary, probes=probed)
    if num_left_out := sum(len(one.items) for one in every) - sum(len(one.items) for one in sets):
        summary = replace(summary, num_left_out=num_left_out)
        terminal.say(f"  {num_left_out:,} answers were not put to the judge (--limit {limit})", style="yellow")
    if people is not None:
        agreement = agree(verdicts[sets[-1].name], people, config.report.confidence)
        summary = replace(summary, agreement=agreement)
        _show_agreement(agreement, terminal)
    if rated:
        summary = replace(summary, people=_against_people(sets, verdicts, rated, config, terminal))
    write_json(folder / "evaluation.json", as_row(summary))
    _check_anything_scored(judge, verdicts)
    outcomes = outcomes_of(gate, sets, config, document, summary, verdicts, terminal)
    return EvaluationResult(folder, verdicts, summary, calibration, document, outcomes)


def evaluate_command(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="a run folder, an answers file, or any JSON or JSONL with answers")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as judge.concurrency=8")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="ollama/NAME, openai/MODEL, gguf:FILE or model:FOLDER (judge.model)")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="the folder for scores and replies (default: the run that the answers belong to)"),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="score, rubric or pairwise (judge.protocol)")] = None,
    answer_key: Annotated[
        list[str] | None,
        typer.Option(
            help="the key of the answer in a file that is not ours (default: text or model_response); repeated for several "
            "answers in each row"
        ),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="the other answers of a pairwise comparison")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="first find out whether this judge can judge")] = False,
    ratings: Annotated[
        Path | None, typer.Option(help="JSONL of `source` and `rating` by people, to hold the judge against")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="judge and check the first N answers only")] = None,
    tests: Annotated[
        list[str] | None,
        typer.Option(
            help="ANSWERS is a run or a model that takes these: a file of multiple choice, or of instructions that can be "
            "verified; repeated for several (evaluation.tests)"
        ),
    ] = None,
    checks: Checks = None,
    gate: Gate = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a judge grade answers, check them yourself, or let a model take tests; every item is scored or counted as unscored."""
    from tuneful.console import Terminal, to_stdout
    from tuneful.evaluation.gate import check_met

    if tests:
        given: dict[str, Any] = {"--judge": judge, "--protocol": protocol, "--answer-key": answer_key}
        given |= {"--against": against, "--calibrate": calibrate, "--ratings": ratings, "--limit": limit}
        given |= {"--checks": checks}
        gated = with_options(overrides, {"report.gate": gate})
        take_tests(str(answers), tests, config, gated, output, as_json, quiet, [*filter(given.get, given)])
        return
    options = {"judge.model": judge, "judge.protocol": protocol, "evaluation.checks": checks, "report.gate": gate}
    settings = configuration(config, overrides, options)
    result = evaluate(
        answers,
        config=settings,
        output=output,
        answer_key=answer_key,
        against=against,
        ratings=ratings,
        calibrate=calibrate,
        limit=limit,
        terminal=Terminal(quiet=quiet),
    )
    if as_json:
        to_stdout(json.dumps(result.as_dict(), indent=1))
    check_met(result.gate)


def _refuse_judging(options: Mapping[str, object], config: Config) -> None:
    """ConfigError for what only a judge would obey, where none is named."""
    from tuneful.config import JudgeConfig

    given = [option for option, value in options.items() if value is not None]
    if config.judge != JudgeConfig(use_reference=config.judge.use_reference):
        given.append("the section judge")
    if given:
        raise ConfigError(f"{given[0]} is ignored where no judge is named; name one (--judge), or drop it")


def _without_judge(
    answers: Path,
    checks: Sequence[Check],
    gate: EvaluationGate | None,
    config: Config,
    keys: Sequence[str],
    limit: int | None,
) -> list[AnswerSet]:
    """The sets of answers as they are where no judge is asked: with references, where anything needs them."""
    from tuneful.evaluation.checks import need_references
    from tuneful.evaluation.one_set import need_texts
    from tuneful.judge.run import answer_sets, limited

    needs = need_references(checks) or (gate is not None and need_texts(gate.conditions))
    judge = {"protocol": "score", "use_reference": config.judge.use_reference and needs}
    alone = config.model_copy(update={"judge": config.judge.model_copy(update=judge)})
    return limited(answer_sets(answers, alone, keys), limit)


def _checked(
    sets: Sequence[AnswerSet], checks: Sequence[Check], config: Config, folder: Path | None, terminal: Terminal
) -> ChecksDocument:
    """What the checks find of each set of answers, shown, and written where there is a folder."""
    from tuneful.evaluation.check_tables import check_sets
    from tuneful.evaluation.checks import check_item

    items = {
        one.name: [check_item(item.source, item.task, item.reference, item.answer) for item in one.items]
        for one in sets
    }
    return check_sets(items, checks, config, folder, terminal)


def _output_folder(answers: Path, output: Path | None, *, needed: bool = True) -> Path | None:
    run = answers if answers.is_dir() else answers.parent.parent
    folder = output if output is not None else run if (run / "answers").is_dir() else None
    if folder is None and needed:
        raise ConfigError("--output DIR is needed: these answers belong to no run folder")
    return folder


def _calibrated(
    sets: Sequence[AnswerSet],
    judge: Judge,
    config: Config,
    cache: ReplyCache,
    folder: Path,
    terminal: Terminal,
    ratings: Sequence[RatingRow],
) -> Calibration:
    """Calibrate the judge with the items of the last of `sets`, and with what people rated in the run; the result is printed and
    written as calibration.json."""
    from tuneful.judge.calibrate import calibrate, num_calibration_questions
    from tuneful.judge.measures import in_words
    from tuneful.judge.people import rated_items
    from tuneful.runs.schema import as_row

    settings, judged = config.judge, sets[-1]
    rated = rated_items(sets, ratings)
    total = num_calibration_questions(len(judged.items), settings, len(rated))
    with terminal.progress("calibrating", total, "questions") as advance:
        found = calibrate(
            judged.items,
            judge,
            settings,
            cache,
            confidence=config.report.confidence,
            seed=config.train.seed,
            advance=advance,
            rated=rated,
        )
    write_json(folder / "calibration.json", as_row(found))
    terminal.heading(f"Can {found.judge} judge? {found.num_items} items, {found.num_questions} questions")
    rows = [[figure.label, in_words(figure), _interval(figure), figure.wanted] for figure in found.figures]
    terminal.table(["", "", f"{config.report.confidence:.0%} interval", "wanted"], rows)
    means = [f"{kind} {'-' if mean is None else f'{mean:.0f}'}" for kind, mean in found.mean_scores.items()]
    terminal.say(f"mean scores: {', '.join(means)}")
    for reason, count in found.unread.items():
        terminal.say(f"  {count} without a verdict: {reason}", style="yellow")
    terminal.say(f"{found.verdict}: {found.sentence}", style="bold")
    return found


def _interval(figure: CalibrationFigure) -> str:
    from tuneful.judge.measures import in_words

    if figure.low is None or figure.high is None:
        return ""
    low, high = (replace(figure, value=value) for value in (figure.low, figure.high))
    return f"[{in_words(low)}, {in_words(high)}]"


def _ratings(file: Path | None, protocol: str) -> dict[str, float] | None:
    from tuneful.judge.agreement import read_ratings
    from tuneful.judge.protocols import PROTOCOLS

    if file is None:
        return None
    if PROTOCOLS[protocol].compares_two:
        raise ConfigError("--ratings are grades of single answers; a pairwise judge gives none to hold them against")
    return read_ratings(file)


def _show_agreement(agreement: Agreement, terminal: Terminal) -> None:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    terminal.heading(f"Against people, {agreement.num_items} answers that both graded")
    spearman = f"{shown(agreement.spearman)} [{shown(agreement.low)}, {shown(agreement.high)}]"
    facts = {"weighted kappa": shown(agreement.kappa), "Spearman": spearman}
    if agreement.num_unmatched:
        facts["not matched"] = f"{agreement.num_unmatched} ratings of answers that have no score"
    terminal.facts(facts)


def _against_people(
    sets: Sequence[AnswerSet],
    verdicts: Mapping[str, list[Verdict]],
    ratings: Sequence[RatingRow],
    config: Config,
    terminal: Terminal,
) -> RaterAgreement | None:
    """The judge against those who rated the run's answers blind, printed."""
    from tuneful.evaluation.ratings import kappa_in_words
    from tuneful.judge.people import judge_against_people

    report = config.report
    found = judge_against_people(
        sets,
        verdicts,
        ratings,
        confidence=report.confidence,
        num_resamples=report.num_resamples,
        seed=config.train.seed,
    )
    if found is None:
        terminal.say(f"the {len(ratings)} ratings in ratings.jsonl are of other answers than these", style="yellow")
    else:
        terminal.say(f"the judge agrees with most people with {kappa_in_words(found, report.confidence)}")
    return found


def _check_anything_scored(judge: Judge, verdicts: Mapping[str, list[Verdict]]) -> None:
    """Raise JudgeError where not a single item was scored."""
    everything = [verdict for own in verdicts.values() for verdict in own]
    if all(verdict.score is None for verdict in everything):
        ((reason, count),) = Counter(verdict.unscored_reason for verdict in everything).most_common(1)
        raise JudgeError(f"{judge.name} scored nothing: {reason} ({count} of {len(everything)} items)")
