"""`tuneful synthesize DATA`: a language model makes records, and every request is accounted for.

OUTPUT.jsonl   OUTPUT.requests.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tuneful.commands.options import ConfigFile, Json, Quiet, configuration, data_and_settings
from tuneful.errors import InputError
from tuneful.numbers import duration, plural

if TYPE_CHECKING:
    from tuneful.commands.check import Checked
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.in_memory import Data
    from tuneful.synthesize.run import Synthesis

Kind = Literal["instructions", "responses", "reflections", "pairs"]
Reflect = Literal["both", "instruction", "response"]
RankBy = Literal["judge", "rouge_l", "chrf", "token_f1", "exact_match"]


@dataclass(frozen=True, slots=True)
class SynthesisResult:
    """What was made (`made`), and what `check` finds in it; `unchecked` says why it was not checked, "" where it was."""

    made: Synthesis
    check: Checked | None
    unchecked: str = ""

    @property
    def output(self) -> Path:
        """The file of rows."""
        return self.made.output

    def __repr__(self) -> str:
        made = self.made
        return f"SynthesisResult({str(made.output)!r}, {plural(made.num_rows, 'row')}, {plural(made.num_requests, 'request')})"

    def as_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        from tuneful.synthesize.run import as_document

        return {
            **as_document(self.made),
            "check": self.check.as_dict() if self.check else None,
            "unchecked": self.unchecked or None,
        }


def synthesize(
    data: Data | None = None,
    *,
    kind: Kind,
    output: str | Path,
    teacher: str | None = None,
    judge: str | None = None,
    model: str | None = None,
    num: int | None = None,
    topics: str | Path | None = None,
    from_empty_turn: bool = False,
    empty_turn: str | None = None,
    samples: int | None = None,
    best_by_judge: bool = False,
    rank_by: RankBy | None = None,
    min_margin: float | None = None,
    reflect: Reflect | None = None,
    exclude: Sequence[str] = (),
    max_requests: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    prompts: str | Path | None = None,
    config: Config | None = None,
    terminal: Terminal | None = None,
) -> SynthesisResult:
    """Have the `teacher` (a judge's name) make records of a `kind` of `data`, written to the JSONL file `output`.

    The arguments are the options of the command; docs/synthesize.md says what each does. A call that was killed goes on where it
    ended when it is made again. Raises InputError where the request is wrong, JudgeError where nobody answers any more.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.synthesize.request import Request, checked
    from tuneful.synthesize.run import synthesized

    config, terminal = config or Config(), terminal or Terminal(quiet=True)
    request = Request(
        kind=kind,
        output=Path(output),
        teacher=teacher,
        judge=judge,
        model=model,
        num=num,
        topics=None if topics is None else Path(topics),
        from_empty_turn=from_empty_turn,
        empty_turn=empty_turn,
        samples=samples,
        best_by_judge=best_by_judge,
        rank_by=rank_by,
        min_margin=min_margin,
        reflect=reflect,
        exclude=tuple(exclude),
        max_requests=max_requests,
        max_tokens=max_tokens,
        temperature=temperature,
        prompts=None if prompts is None else Path(prompts),
    )
    request = checked(request, config, has_data=data is not None)

    def notify(sentence: str) -> None:
        terminal.say(sentence, style="yellow")

    with synthesized(data, request, config, terminal, notify) as made:
        found, unchecked = _checked(made, config)
    return SynthesisResult(made, found, unchecked)


def _checked(made: Synthesis, config: Config) -> tuple[Checked | None, str]:
    """What `check` finds in the rows that were made, or why they were not checked."""
    from tuneful.commands.check import check

    if not made.num_rows:
        return None, "there is nothing to check"
    objective = "dpo" if made.kind == "pairs" else "sft"
    # The rows are read by their own keys, whatever those of the data were.
    data = config.data.model_copy(update={"columns": None, "format": "auto", "train_file": None})
    train = config.train.model_copy(update={"objective": objective})
    try:
        return check(str(made.output), config=config.model_copy(update={"data": data, "train": train})), ""
    except InputError as error:
        return None, str(error)


def synthesize_command(
    kind: Annotated[
        Kind,
        typer.Option(
            help="instructions (new tasks), responses (other answers), reflections (better records) or pairs (of the own "
            "model's answers, for preference training)"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the JSONL file of rows; a killed one goes on")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA... KEY=VALUE...",
            help="files of records, patterns, a Hub id, or `starter`: seeds of instructions, or the records that are answered, "
            "improved or sampled; then settings, such as judge.concurrency=8",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="who makes the texts: ollama/NAME, openai/MODEL, gguf:FILE or model:FOLDER (default: judge.model)"
        ),
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="rows that are wanted (instructions: 100; elsewhere all records)")
    ] = None,
    topics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="instructions: a text file of topics, a line each")
    ] = None,
    from_empty_turn: Annotated[
        bool,
        typer.Option(
            "--from-empty-turn", help="instructions: the model writes the user's turn itself, then answers it"
        ),
    ] = False,
    empty_turn: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="what stands before a user's text in the model's prompts (default: model:FOLDER's template)",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="answers to each prompt (responses: 1, pairs: 4)")] = None,
    best_by_judge: Annotated[
        bool, typer.Option("--best-by-judge", help="responses: of several samples keep the one that is judged best")
    ] = False,
    judge: Annotated[str | None, typer.Option(help="who ranks samples (default: the teacher)")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="pairs: the model whose answers are sampled: a run, a folder ..."),
    ] = None,
    rank_by: Annotated[
        RankBy | None, typer.Option(help="pairs: judge (the default), or a metric against the records' own answers")
    ] = None,
    min_margin: Annotated[
        float | None,
        typer.Option(help="pairs: the least difference of the two scores (a judge's are 0 to 100, a metric's 0 to 1)"),
    ] = None,
    reflect: Annotated[Reflect | None, typer.Option(help="reflections: what is improved (default: both)")] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="records whose prompts must not come up, such as a test set (repeatable)"),
    ] = None,
    max_requests: Annotated[int | None, typer.Option(help="most requests")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens of prompts and replies together")] = None,
    temperature: Annotated[float | None, typer.Option(help="sampling temperature of the texts (default: 0.8)")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder whose prompt files replace the built-in ones")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have a language model make records, every request of it used or refused with a reason."""
    from tuneful.console import Terminal, json_to_stdout

    data, overrides = data_and_settings(arguments)
    settings = configuration(config, overrides, {})
    result = synthesize(
        data or settings.data.train_file,
        kind=kind,
        output=output,
        teacher=teacher,
        judge=judge,
        model=model,
        num=num,
        topics=topics,
        from_empty_turn=from_empty_turn,
        empty_turn=empty_turn,
        samples=samples,
        best_by_judge=best_by_judge,
        rank_by=rank_by,
        min_margin=min_margin,
        reflect=reflect,
        exclude=exclude or (),
        max_requests=max_requests,
        max_tokens=max_tokens,
        temperature=temperature,
        prompts=prompts,
        config=settings,
        terminal=Terminal(quiet=quiet),
    )
    if as_json:
        json_to_stdout(result.as_dict(), indent=1)
    elif not quiet:
        show_synthesis(result, Terminal(stderr=False))


# The page


def show_synthesis(result: SynthesisResult, terminal: Terminal) -> None:
    """Print what was asked, used and refused, what it took, and what `check` finds."""
    made = result.made
    num_refused = sum(made.refused.values())
    terminal.say(f"{made.output}: {plural(made.num_rows, 'row')} ({made.kind})", style="bold")
    tokens = f"{made.num_prompt_tokens:,} of prompts + {made.num_reply_tokens:,} of replies"
    earlier = f", {made.num_before:,} of them by an earlier process" if made.num_before else ""
    read = [f"{name}: {one['num_used']:,} used + {one['num_refused']:,} refused" for name, one in made.read.items()]
    terminal.facts(
        {
            **({"rows read": "\n".join(read)} if read else {}),
            "requests": f"{made.num_requests:,} = {made.num_used:,} used + {num_refused:,} refused{earlier}",
            "tokens": tokens + (" (where nobody counted them: a quarter of the bytes)" if made.estimated else ""),
            "time": duration(made.seconds),
            "every request": str(made.requests),
        }
    )
    if made.stopped:
        terminal.say(f"  ended before all was made: {made.stopped}", style="yellow")
    for title, counts in (("refused", made.refused), ("records left out", made.left_out)):
        if counts:
            terminal.table([title, ""], [[reason, f"{count:,}"] for reason, count in counts.items()])
    _show_check(result, terminal)


def _show_check(result: SynthesisResult, terminal: Terminal) -> None:
    found = result.check
    if found is None:
        terminal.say(f"not checked: {result.unchecked}", style="yellow")
        return
    audit = found.audit
    terminal.heading(
        f"check: {audit.num_read:,} rows read = {audit.num_used:,} used + {audit.num_refused:,} refused, "
        f"{plural(audit.num_findings, 'finding')}"
    )
    for finding in audit.findings:
        terminal.say(f"  {finding.kind.title}: {plural(finding.count, 'record')}")
    terminal.say(f"  the whole page: tuneful check {result.made.output}", style="dim", wrap=False)
