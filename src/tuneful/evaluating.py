"""A judge grades answers outside any run, or those of a finished one: what `tuneful evaluate` does.

OUTPUT/scores/NAME.jsonl     a verdict an item             OUTPUT/evaluation.json   the same in numbers
OUTPUT/judge/replies.jsonl   what the judge said: nothing is asked twice
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, JudgeError
from tuneful.judge.agreement import Agreement, agree, read_ratings
from tuneful.judge.calibrate import Figure, in_words, num_calibration_questions
from tuneful.judge.calibrate import calibrate as run_calibration
from tuneful.judge.client import Judge
from tuneful.judge.items import AnswerSet, paired, read_answers
from tuneful.judge.judge import Evaluation, ReplyCache, judge_items, num_questions, summarise, verdict_row
from tuneful.judge.local import AnswerAll, check_judge, model_config, open_judge, resolve_settings
from tuneful.judge.questions import Item, load_prompt
from tuneful.rundir import as_json, json_line, write_text
from tuneful.types import Answer, Conversation, Verdict

REPLIES = Path("judge") / "replies.jsonl"


def evaluate(
    answers: Path,
    config: Config,
    output: Path | None,
    terminal: Terminal,
    *,
    answer_key: str | None = None,
    against: Path | None = None,
    ratings: Path | None = None,
    calibrate: bool = False,
) -> dict[str, Any]:
    """Judge the answers file or run folder `answers` into `output`, and return what evaluation.json holds.

    `against` is the answers file that a pairwise judge compares with; a run folder brings its own. `ratings` are what people
    thought of the answers; `calibrate` probes the judge first. Raises InputError where the request is wrong, JudgeError
    where nothing could be scored.
    """
    settings = resolve_settings(config.judge)
    load_prompt(settings.protocol, settings.prompts)
    sets = _answer_sets(answers, config, answer_key, against)
    config = config.model_copy(update={"judge": settings})
    by_people = _ratings(ratings, settings.protocol)
    folder = _output_folder(answers, output)
    judge = open_judge(settings, lambda name: _load_judge_model(name, config, terminal))
    with open_cache(folder) as cache:
        calibration = _calibrated(sets[-1], judge, config, cache, folder, terminal) if calibrate else None
        verdicts = judge_sets(sets, judge, config, cache, folder, terminal)
    document = _evaluation(judge, config, verdicts, terminal)
    if by_people is not None:
        agreement = agree(verdicts[sets[-1].name], by_people, config.report.confidence)
        document["agreement"] = asdict(agreement)
        _show_agreement(agreement, terminal)
    write_text(folder / "evaluation.json", as_json(document, indent=1) + "\n")
    _refuse_silence(judge, verdicts)
    return document if calibration is None else {**document, "calibration": calibration}


def refuse_absent_judge(config: Config) -> None:
    """Raise, before any work is done, where the judge of a run is named wrongly or is not to be reached."""
    settings = resolve_settings(config.judge)
    load_prompt(settings.protocol, settings.prompts)
    check_judge(settings)


def judge_run(run: Path, config: Config, terminal: Terminal) -> dict[str, list[float | None]] | None:
    """What the judge gives the base and the tuned answers of the run folder `run`, in test-set order.

    Under `pairwise` the base answers have what the tuned ones leave of 100. None, said aloud, where the judge is not to be
    reached: a run is not lost to that.
    """
    settings = resolve_settings(config.judge)
    config = config.model_copy(update={"judge": settings})
    sets = _answer_sets(run, config, None, None)
    try:
        judge = open_judge(settings, lambda name: _load_judge_model(name, config, terminal))
    except JudgeError as error:
        terminal.say(f"not judged: {error}. Later: tuneful evaluate {run} --judge {settings.model}", style="yellow")
        return None
    with open_cache(run) as cache:
        verdicts = judge_sets(sets, judge, config, cache, run, terminal)
    document = _evaluation(judge, config, verdicts, terminal)
    write_text(run / "evaluation.json", as_json(document, indent=1) + "\n")
    scores = {name: [verdict.score for verdict in own] for name, own in verdicts.items()}
    if settings.protocol != "pairwise":
        return scores
    (tuned,) = scores.values()
    return {"tuned": tuned, "base": [None if score is None else 100 - score for score in tuned]}


@contextmanager
def open_cache(folder: Path) -> Iterator[ReplyCache]:
    """The replies kept in the output folder; ConfigError where it cannot be written, or somebody else is at it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with ReplyCache.open(folder / REPLIES) as cache:
        yield cache


def judge_sets(
    sets: Sequence[AnswerSet], judge: Judge, config: Config, cache: ReplyCache, folder: Path, terminal: Terminal
) -> dict[str, list[Verdict]]:
    """The verdicts on every set by its name, in the order of its items, written as scores/NAME.jsonl of `folder`."""
    verdicts: dict[str, list[Verdict]] = {}
    for one in sets:
        total = len(one.items) * num_questions(config.judge.protocol)
        with terminal.progress(f"judging {one.name}", total, "questions") as advance:
            verdicts[one.name] = judge_items(one.items, judge, config.judge, cache, advance)
        write_scores(folder, one.name, verdicts[one.name])
    return verdicts


def write_scores(folder: Path, name: str, verdicts: Sequence[Verdict]) -> None:
    """scores/{name}.jsonl, a row an item, in order."""
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores" / f"{name}.jsonl", "".join(json_line(verdict_row(verdict)) for verdict in verdicts))


def show_evaluations(evaluations: Mapping[str, Evaluation], terminal: Terminal) -> None:
    """Every set in a line, and why items were not scored."""
    first = next(iter(evaluations.values()))
    terminal.heading(f"Judged by {first.judge}, protocol {first.protocol}")
    rows = []
    for name, one in evaluations.items():
        mean = "-" if one.mean is None else f"{one.mean:.1f}"
        interval = "" if one.low is None else f"[{one.low:.1f}, {one.high:.1f}]"
        bounds = f"{one.mean_if_worst:.1f} to {one.mean_if_best:.1f}"
        rows.append([name, f"{one.num_scored} + {one.num_unscored} = {one.num_items}", mean, interval, bounds])
    columns = ["", "scored + unscored", "mean", f"{first.confidence:.0%} interval", "were the unscored 0 to 100"]
    terminal.table(columns, rows)
    for name, one in evaluations.items():
        for criterion, value in one.criteria.items():
            terminal.say(f"  {name} {criterion}: {value:.1f}")
        for reason, count in one.unscored.items():
            terminal.say(f"  {name}: {count} unscored: {reason}", style="yellow")


def _evaluation(
    judge: Judge, config: Config, verdicts: Mapping[str, list[Verdict]], terminal: Terminal
) -> dict[str, Any]:
    """All verdicts in numbers, shown and as evaluation.json holds them."""
    evaluations = {
        name: summarise(own, confidence=config.report.confidence, seed=config.train.seed)
        for name, own in verdicts.items()
    }
    show_evaluations(evaluations, terminal)
    answers = {name: asdict(evaluation) for name, evaluation in evaluations.items()}
    return {"judge": judge.name, "protocol": config.judge.protocol, "answers": answers}


def _refuse_silence(judge: Judge, verdicts: Mapping[str, list[Verdict]]) -> None:
    """Raise JudgeError where not a single item was scored."""
    everything = [verdict for own in verdicts.values() for verdict in own]
    if all(verdict.score is None for verdict in everything):
        ((reason, count),) = Counter(verdict.unscored_reason for verdict in everything).most_common(1)
        raise JudgeError(f"{judge.name} scored nothing: {reason} ({count} of {len(everything)} items)")


def _calibrated(
    judged: AnswerSet, judge: Judge, config: Config, cache: ReplyCache, folder: Path, terminal: Terminal
) -> dict[str, Any]:
    """What probes with `judged` found out about the judge, shown and written as calibration.json."""
    settings = config.judge
    total = num_calibration_questions(len(judged.items), settings)
    with terminal.progress("calibrating", total, "questions") as advance:
        found = run_calibration(
            judged.items,
            judge,
            settings,
            cache,
            confidence=config.report.confidence,
            seed=config.train.seed,
            advance=advance,
        )
    document = asdict(found)
    write_text(folder / "calibration.json", as_json(document, indent=1) + "\n")
    terminal.heading(f"Can {found.judge} judge? {found.num_items} items, {found.num_questions} questions")
    rows = [[figure.label, in_words(figure), _interval(figure), figure.wanted] for figure in found.figures]
    terminal.table(["", "", f"{config.report.confidence:.0%} interval", "wanted"], rows)
    means = [f"{kind} {'-' if mean is None else f'{mean:.0f}'}" for kind, mean in found.mean_scores.items()]
    terminal.say(f"mean scores: {', '.join(means)}")
    for reason, count in found.unread.items():
        terminal.say(f"  {count} without a verdict: {reason}", style="yellow")
    terminal.say(f"{found.verdict}: {found.sentence}", style="bold")
    return document


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    low, high = (replace(figure, value=value) for value in (figure.low, figure.high))
    return f"[{in_words(low)}, {in_words(high)}]"


def _ratings(file: Path | None, protocol: str) -> dict[str, float] | None:
    if file is None:
        return None
    if protocol == "pairwise":
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


def _answer_sets(answers: Path, config: Config, answer_key: str | None, against: Path | None) -> list[AnswerSet]:
    """What is to be judged: one set, the two of a run folder, or under `pairwise` one set of pairs."""
    protocol, data = config.judge.protocol, config.data
    if against is not None and protocol != "pairwise":
        raise ConfigError("--against is for --protocol pairwise; each set of answers is scored on its own elsewhere")
    if answers.is_dir():
        if against is not None:
            raise ConfigError(f"{answers}: a run folder brings its own base answers; leave --against out")
        files = [answers / "answers" / f"{name}.jsonl" for name in ("base", "tuned")]
        if missing := [file for file in files if not file.is_file()]:
            raise ConfigError(f"{answers}: is no run folder with answers: there is no {missing[0]}")
        base, tuned = (read_answers(file, data, answer_key) for file in files)
        return [_pairs(tuned, base)] if protocol == "pairwise" else [base, tuned]
    judged = read_answers(answers, data, answer_key)
    if protocol != "pairwise":
        return [judged]
    if against is None:
        raise ConfigError(
            "a pairwise judge compares two sets: give a run folder, or --against FILE with the other answers"
        )
    return [_pairs(judged, read_answers(against, data, answer_key))]


def _pairs(answers: AnswerSet, rivals: AnswerSet) -> AnswerSet:
    pairs: list[Item] = paired(answers.items, rivals.items)
    return AnswerSet(f"{answers.name}-against-{rivals.name}", tuple(pairs))


def _output_folder(answers: Path, output: Path | None) -> Path:
    run = answers if answers.is_dir() else answers.parent.parent
    folder = output if output is not None else run if (run / "answers").is_dir() else None
    if folder is None:
        raise ConfigError("--output DIR is needed: these answers belong to no run folder")
    return folder


def _load_judge_model(folder: str, config: Config, terminal: Terminal) -> tuple[str, AnswerAll]:
    """The fingerprint of a model folder, and generation with it.

    Its prompts are rendered by the template that the folder names, else by its tokenizer's own, else by the default one.
    """
    from tuneful.answers import with_own_template
    from tuneful.data.chat_template import OWN, load_template
    from tuneful.data.encode import TextEncoder
    from tuneful.data.prepare import make_encoder
    from tuneful.data.template import TEMPLATE_FILE
    from tuneful.infer.generate import answer
    from tuneful.model.builtin import cache_root
    from tuneful.model.load import fingerprint, load_model
    from tuneful.model.precision import cast_parameters, choose_device, choose_dtype

    own = with_own_template(model_config(config, folder))
    device = choose_device(own.model.device)
    pretrained = load_model(folder, terminal.say)
    template = own.template
    if pretrained.tokenizer.chat_template and not (pretrained.folder / TEMPLATE_FILE).is_file():
        template = template.model_copy(update={"name": OWN})
    cast_parameters(pretrained.model, choose_dtype(own.model.dtype, device, cache_root()))
    text = TextEncoder(pretrained.tokenizer, load_template(template, pretrained.tokenizer))
    model, encoder = pretrained.model.to(device), make_encoder(text, own.data)

    def answer_all(conversations: Sequence[Conversation]) -> list[Answer]:
        return answer(model, encoder, conversations, own.generate, seed=config.judge.seed or 0)

    return fingerprint(pretrained.folder), answer_all
