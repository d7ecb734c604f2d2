"""A practitioner who knows transformers, TRL, PEFT and Ollama meets no word that only we use.

Each entry is a word that was ours once, what the field calls the thing, and a sentence in which it must be found. Searched is
all that a user or a newcomer reads: documents, messages, help, docstrings, comments, prompts and the report's page. History keeps
its words: LOG.md, CHANGELOG.md and the dated results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = {".py", ".md", ".txt", ".j2", ".js", ".css", ".c", ".h", ".toml", ".yaml", ".cfg"}
HISTORY = {"LOG.md", "CHANGELOG.md"}
PROSE_OF_OTHERS = ("src/tuneful/evaluation/general", "tools/starter", "benchmarks/results")
"""Texts that are data: passages, the starter records and the program that writes them, dated results."""


class Word(NamedTuple):
    """A pattern, what to say instead, and a text in which the pattern must be found."""

    pattern: str
    instead: str
    example: str


WORDS = (
    Word(r"\b[Ff]oret(ell|old)", "estimate", "Foretold: 276 steps"),
    Word(r"\bSpeaker\b", "LoadedModel", "class Speaker:"),
    Word(r"\bWording\b", "PromptFormat", "Wording(name='chatml')"),
    Word(r"\bLEAD\b", "generation prefix", "Origin.LEAD"),
    Word(r"\bended_by\b", "finish_reason", '"ended_by": "stop"'),
    Word(r"\bby heart\b", "memorised", "records learned by heart"),
    Word(r"\b[Ss]uspicio(n|ns|us)\b", "outlier score, possible label errors", "the most suspicious"),
    Word(r"\b[Dd]rift\b", "KL to base", "Drift  4.800"),
    Word(
        r"\b[Ee]nding by itself\b|\b(model|answer)s? ended by itself\b",
        "stopped at its end token",
        "Ending by itself  1.000",
    ),
    Word(r"name[`\"']?[=:] ?[`\"']?own\b|[`\"']own[`\"']", "tokenizer", "template.name=own"),
    Word(r"\bdata\.shape\b", "data.format", "data.shape=alpaca"),
    Word(r"\b[Tt]he chapter\b(?! \d)|\bchapter's\b", "the book, its chapter by number", "the chapter's loop"),
    Word(r"\b(has|have) no say\b", "is ignored", "seed has no say under greedy"),
    Word(r"\bunsaid\b", "not sent", "none leaves it unsaid"),
    Word(r"\bsaid aloud\b", "reported", "a damaged one is said aloud"),
    Word(r"\bits kin\b", "name the keys", "train.save_steps and its kin"),
    Word(r"\bmany faces\b", "any network error", "the network's many faces"),
    Word(r"\bnobody's business\b", "say what would leak", "that is nobody's business"),
    Word(r"\bgrown-up\b", "a careful reader", "where a grown-up would say so"),
    Word(r"\b(the|of) floor\b", "roofline", "75 % of the floor"),
    Word(r"\b[Mm]end(s|ed|ing)?\b", "fix", "Mend the row"),
    Word(r"\bmarker_texts\b", "special_token_texts", "`marker_texts`"),
    Word(r"\bseam_merges\b", "boundary_tokenization", "`seam_merges`"),
    Word(r"\bdoubled_begin_tokens\b", "double_bos", "`doubled_begin_tokens`"),
    Word(r"\bprompts_off_training\b", "prompt_mismatch", "`prompts_off_training`"),
    Word(r"\bimagined (win|loss|item)", "pseudo-counts", "one imagined win"),
    Word(r"\bWhat this page lacks\b", "Missing data", "<h2>What this page lacks</h2>"),
    Word(r"\bfrom tuneful import api\b|\btuneful\.api\b", "import tuneful", "from tuneful import api"),
)
KEPT = {
    "src/tuneful/config/names.py": {"data.format", "tokenizer", "KL to base"},
    "src/tuneful/runs/schema/names.py": {
        "finish_reason",
        "outlier score, possible label errors",
        "KL to base",
        "stopped at its end token",
        "fix",
        "special_token_texts",
        "boundary_tokenization",
        "double_bos",
        "prompt_mismatch",
    },
}
"""Files that hold an old word in order to refuse or translate it, each with what the words are called now."""


def files() -> Iterator[Path]:
    for file in sorted([*ROOT.glob("*.*"), *ROOT.glob("Makefile"), *(ROOT / "docs").glob("*.md")]):
        if file.suffix in TEXTS and file.name not in HISTORY:
            yield file
    for folder in ("src", "benchmarks", "tools"):
        for file in sorted((ROOT / folder).rglob("*")):
            named = file.relative_to(ROOT).as_posix()
            if file.suffix in TEXTS and not named.startswith(PROSE_OF_OTHERS):
                yield file


FILES = list(files())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_word_that_only_we_used_comes_back(file: Path) -> None:
    named = file.relative_to(ROOT).as_posix()
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [
        f"{named}:{number}: {match[0]!r}: say {word.instead}"
        for word in WORDS
        if word.instead not in KEPT.get(named, ())
        for number, line in enumerate(lines, start=1)
        if (match := re.search(word.pattern, line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_each_word_would_be_found(word: Word) -> None:
    assert re.search(word.pattern, word.example)


def test_what_users_read_is_searched() -> None:
    named = {file.relative_to(ROOT).as_posix() for file in FILES}
    assert named >= {
        "README.md",
        "docs/check.md",
        "src/tuneful/config/schema.py",
        "src/tuneful/report/page.html.j2",
        "src/tuneful/judge/prompts/score.txt",
        "src/tuneful/model/native/kernels.c",
        "benchmarks/README.md",
    }
    assert not named & {"LOG.md", "CHANGELOG.md"}


def test_an_old_word_that_is_kept_is_still_there() -> None:
    for named, kept in KEPT.items():
        text = (ROOT / named).read_text(encoding="utf-8")
        assert {word.instead for word in WORDS if re.search(word.pattern, text)} == kept, named
