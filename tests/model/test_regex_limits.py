"""Regular expressions of a tokenizer.json: those of real tokenizers are taken, those that a text can keep busy are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tuneful.errors import ModelError
from tuneful.model.regex_limits import why_slow
from tuneful.model.regex_syntax import Character, Choice, Condition, Repeat, Sequence, UnreadError, parse
from tuneful.model.tokenizer_limits import check_tokenizer, check_tokenizer_file

LETTERS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REAL = {
    "GPT-2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": rf"{ENDINGS}|{LETTERS}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    "Qwen": rf"{ENDINGS}|{LETTERS}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    "GPT-4o, gpt-oss": rf"{LETTERS}{UPPER}*{LOWER}+{ENDINGS}?|{LETTERS}{UPPER}+{LOWER}*{ENDINGS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",
    "Mistral Nemo": rf"{LETTERS}{UPPER}*{LOWER}+|{LETTERS}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",
    "DeepSeek V3": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
    rf"[\r\n]*|{BLANKS}",
    "DeepSeek V3, CJK": "[一-龥぀-ゟ゠-ヿ]+",
    "Kimi K2": rf"[\p{{Han}}]+|{LETTERS}[\p{{Lu}}\p{{M}}&&[^\p{{Han}}]]*[\p{{Ll}}\p{{M}}&&[^\p{{Han}}]]+{ENDINGS}?|{BLANKS}",
    "possessive, as tiktoken has it": r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s",
    "BLOOM": " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "CLIP": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "NLLB": r"\s{2,}|[\n\r\t]",
    "seamless": "^▁+$| +▁",
    "digits in threes, from the right": r"\p{N}+|(?=(\d{3})+(?!\d))",
    "marks behind their letters": r"(?:\p{L}\p{M}*)+",
    "words with hyphens": r"\w+(?:-\w+)*",
}


@pytest.mark.parametrize("name", REAL)
def test_expressions_of_real_tokenizers_are_taken(name: str) -> None:
    Regex(REAL[name])
    assert why_slow(REAL[name]) is None


DOUBLES, POWER, OFTEN = "double with every character", "square of a text's length", "repeats too often"
HOSTILE = {
    r"(a+)+$": DOUBLES,
    r"(\w+\s?)+!": DOUBLES,
    r"(a|a)+!": DOUBLES,
    r"(\p{L}|\p{Lu})+!": DOUBLES,
    r"(?i:(a|A)+)!": DOUBLES,
    r"(x{1,3})+!": DOUBLES,
    r"(a*)*b": DOUBLES,
    r"(.*)*\x{1F600}": DOUBLES,
    r"(?:\w+,?)*;": DOUBLES,
    r"(?:\x{00001005}|[\x{00001005}])+[!?]": DOUBLES,
    r"(?:\o{10005}|[\o{10005}])+[!?]": DOUBLES,
    r"(?:\p{Tagbanwa}|[\p{Tagbanwa}])+[!?]": DOUBLES,
    r"(?:\p{Zl}|[\p{Zl}])+[!?]": DOUBLES,
    r"(?:[^\S\x00-\xFF]|\p{Zs})+[!?]": DOUBLES,
    r"(?:[^\W\p{L}\p{N}\p{M}_]|\p{Pc})+;": DOUBLES,
    r"(?:[\x{A700}-\x{A720}&&\p{Lm}]|[\x{A71A}-\x{A7FF}&&\p{L}])+;": DOUBLES,
    r"(?:[^\P{L}\x{0}-\x{2FFF}\x{3040}-\x{10FFFF}]|\p{Lm})+;": DOUBLES,
    r"(?=(a+)+b)": DOUBLES,
    r"(ab?b?)+!": DOUBLES,
    r"\w*\w*\w*!": POWER,
    r".*.*\x{FFFF}": POWER,
    r".*xy.*!": POWER,
    r"(?:ab)+(?:ab)+!": POWER,
    r"(?:a?){30}a{30}": POWER,
    r"(\w{1,8}){1,8}!": OFTEN,
    r"(?:(?:a|a)(?:a|a)){8}!": OFTEN,
    r"((a{1,1000}){1,1000}){1,1000}": OFTEN,
    r"(a+)\1+$": r"holds \1",
    r"(?<r>a\g<r>?a)+!": r"holds \g",
    r"(?~abc)": "holds (?~",
    r"(?(1)a|b)": "holds (?(",
    r"(?x) ( a + ) + !": "holds (?x",
    r"\X+!": r"holds \X",
    r"(?:\w(?!\w*!))*@": "looks around",
    r"a(?=b(?=c+d))": "looks around",
    "(" * 60 + "a" + ")" * 60: "nested too deeply",
    "a" * 20_001: "20,001 characters",
    "(a": "not closed",
    "a)": "closes nothing",
}


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda one: one[:20])
def test_an_expression_that_a_text_can_keep_busy_is_refused(pattern: str) -> None:
    begun = time.process_time()
    assert HOSTILE[pattern] in (why_slow(pattern) or "")
    assert time.process_time() - begun < 2


def test_the_message_names_file_step_and_expression(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"(\w+\s?)+!"), "isolated")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json: `pre_tokenizer` goes by .*may keep busy") as caught:
        check_tokenizer_file(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="may keep busy"):
        check_tokenizer(tokenizer, tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    step = {"type": "Replace", "pattern": {"Regex": r"(\w+\s?)+!"}, "content": ""}
    for key in ("normalizer", "decoder"):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**described, "pre_tokenizer": None, key: step}))
        with pytest.raises(ModelError, match=f"`{key}` goes by"):
            check_tokenizer_file(tmp_path / "tokenizer.json")
    many = {"type": "Sequence", "normalizers": [{**step, "pattern": {"Regex": f"a{number}"}} for number in range(65)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**described, "pre_tokenizer": None, "normalizer": many}))
    with pytest.raises(ModelError, match="more than 64 regular expressions"):
        check_tokenizer_file(tmp_path / "tokenizer.json")


def test_an_expression_is_read_as_oniguruma_reads_it() -> None:
    a, b = Character("a"), Character("b")
    assert parse("a|b*") == Choice((a, Repeat(b, 0, None)))
    assert parse("a+?b{2,}") == Sequence((Repeat(a, 1, None), Repeat(b, 2, None)))
    assert parse("a{,3}+") == Repeat(Repeat(a, 0, 3), 1, None)
    assert parse("a{b}") == Sequence((a, Character(r"\{"), b, Character(r"\}")))
    assert parse("[]a[^]b]&&[:alpha:]]") == Character("[]a[^]b]&&[:alpha:]]")
    assert parse("(?i:a)b") == Sequence((Character("(?i:a)"), b))
    assert parse("a(?i)a|b") == Sequence((a, Choice((Character("(?i:a)"), Character("(?i:b)")))))
    assert parse(r"^\bb(?!a)(?#a+)") == Sequence((Condition(None), Condition(None), b, Condition(a), Sequence(())))
    assert parse(r"(?<name>\x{1F600}\p{L})") == Sequence((Character(r"\x{1F600}"), Character(r"\p{L}")))
    for odd in ("[a", "(?{x})", "(*FAIL)", "\\", "a{1234567,1234567}"):
        with pytest.raises(UnreadError):
            parse(odd)


@pytest.mark.parametrize("pattern", [r"\s+(?!\S)", r"\w+(?:-\w+)*!", r"[\p{L}\p{M}]*x", r"(?:\p{L}\p{M}*)+!"])
def test_what_is_taken_ends_soon_where_nothing_matches(pattern: str) -> None:
    assert why_slow(pattern) is None
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    begun = time.process_time()
    for text in ("a" * 4_000, "a-" * 2_000, "é" * 4_000, " " * 4_000):
        splitter.pre_tokenize_str(text)
    assert time.process_time() - begun < 5
