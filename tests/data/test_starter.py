"""What can be proved about the built-in data set, by other means than the program that wrote it."""

from __future__ import annotations

import json
import operator
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from tools.starter import make
from tools.starter.record import Record, dress, pairs, rows

from tuneful.data.sources import STARTER_FILE

RECORDS = make.records()
FILE = json.loads(STARTER_FILE.read_text(encoding="utf-8"))

# Verbs whose past and participle do not end in "ed": base, past, participle.
IRREGULAR = """
be was been|be were been|begin began begun|blow blew blown|break broke broken|bring brought brought
build built built|buy bought bought|catch caught caught|choose chose chosen|come came come|cut cut cut
dig dug dug|do did done|draw drew drawn|drink drank drunk|eat ate eaten|feed fed fed|fight fought fought
find found found|fly flew flown|forget forgot forgotten|freeze froze frozen|give gave given|go went gone
grow grew grown|have had had|hear heard heard|hide hid hidden|hold held held|hurt hurt hurt|keep kept kept
know knew known|leave left left|let let let|make made made|meet met met|pay paid paid|ride rode ridden
rise rose risen|run ran run|say said said|see saw seen|sell sold sold|send sent sent|sew sewed sewn
shake shook shaken|show showed shown|sing sang sung|sit sat sat|sleep slept slept|speak spoke spoken
split split split|stand stood stood|steal stole stolen|strike struck struck|sweep swept swept|swim swam swum
take took taken|teach taught taught|tell told told|think thought thought|throw threw thrown
understand understood understood|wake woke woken|wear wore worn|write wrote written
"""
VERBS = [tuple(verb.split()) for line in IRREGULAR.split("\n") for verb in line.split("|") if verb]


def of(kind: str) -> list[Record]:
    """Return the records of one kind; a kind that is gone is a failure, not an empty list."""
    found = [record for record in RECORDS if record.kind == kind]
    assert found, kind
    return found


def prompt(record: Record) -> str:
    """Return the request and its text as one string."""
    return f"{record.instruction}\n{record.input}"


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, apostrophes and hyphens kept inside them."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())


# Every wording that a text may be put into, as a pattern that finds the text again.
ASKS = [
    re.compile(re.escape(wording).replace(r"\{0\}", "(?P<text>.+)").replace(r"\{1\}", ".+?"), re.DOTALL)
    for family in make.FAMILIES
    for name, wordings in vars(family).items()
    if name.endswith("_ASK")
    for wording in (chain.from_iterable(wordings.values()) if isinstance(wordings, dict) else wordings)
    if "{0}" in wording
]


def text_of(record: Record) -> str:
    """Return the text that a request is about: the input, or what the wording leaves of the instruction."""
    if record.input:
        return record.input
    found = [match["text"] for ask in ASKS if (match := ask.fullmatch(record.instruction))]
    return min(found, key=len) if found else record.instruction


def ids(record: Record) -> str:
    """Name a record in a failure."""
    return f"{record.kind}: {record.instruction} <{record.input}> -> {record.output}"


# The file


def test_the_program_writes_the_file_byte_for_byte() -> None:
    assert make.render(RECORDS).encode() == STARTER_FILE.read_bytes()
    assert make.main(["--check"]) == 0


def test_the_file_does_not_depend_on_the_hash_seed() -> None:
    source = Path(make.__file__).parents[2]
    for seed in ("0", "1"):
        command = [sys.executable, "-m", "tools.starter.make", "--check"]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(source)}, timeout=60)


def test_check_finds_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "starter.json"
    changed.write_text("[]\n")
    monkeypatch.setattr(make, "STARTER_FILE", changed)
    assert make.main(["--check"]) == 1
    assert make.main([]) == 0
    assert make.main(["--check"]) == 0


def test_every_record_has_the_three_alpaca_keys_and_strings_in_them() -> None:
    assert len(FILE) >= 1200
    for record in FILE:
        assert list(record) == ["instruction", "input", "output", "category"]
        assert all(isinstance(text, str) for text in record.values())


def test_nothing_is_empty_or_padded() -> None:
    for record in RECORDS:
        assert record.instruction, ids(record)
        assert record.output, ids(record)
        for text in (record.instruction, record.input, record.output):
            assert text == text.strip()
            assert not re.search(r" \n|\n |\t|\\", text), ids(record)
            assert "  " not in text or "extra spaces" in record.instruction, ids(record)


def test_no_two_prompts_are_alike_after_normalization() -> None:
    seen = Counter(re.sub(r"[\W_]+", "", prompt(record).lower()) for record in RECORDS)
    assert [text for text, count in seen.items() if count > 1] == []


def test_no_text_is_used_twice_under_different_requests() -> None:
    pairs_of_word = {"antonym", "synonym"}
    texts = Counter(re.sub(r"[\W_]+", " ", text_of(record).lower()) for record in RECORDS)
    assert [text for text, count in texts.items() if count > 1] == []
    named = [re.findall(r'"([a-z]+)"', record.instruction)[0] for record in RECORDS if record.kind in pairs_of_word]
    assert len(named) == len(set(named))


def test_few_answers_occur_twice_except_labels() -> None:
    labels = {"sentiment", "topic", "fact or opinion"}
    answers = Counter(record.output.lower() for record in RECORDS if record.kind not in labels)
    assert sum(count - 1 for count in answers.values()) <= len(RECORDS) // 100


# The shares


def test_no_kind_is_too_large_or_too_small() -> None:
    kinds = Counter(record.kind for record in RECORDS)
    assert len(kinds) >= 20
    for kind, count in kinds.items():
        assert 0.015 <= count / len(RECORDS) <= 0.08, (kind, count)


def test_about_a_third_have_an_input() -> None:
    assert 0.30 <= sum(bool(record.input) for record in RECORDS) / len(RECORDS) <= 0.37


def test_records_are_short_and_some_are_long() -> None:
    lengths = sorted(len(words(prompt(record) + " " + record.output)) for record in RECORDS)
    assert lengths[len(lengths) // 2] < 45
    answers = [len(words(record.output)) for record in RECORDS]
    assert min(answers) == 1
    assert max(answers) >= 40
    assert 0.05 <= sum(length >= 25 for length in answers) / len(answers) <= 0.15


def test_each_part_of_an_85_10_5_cut_holds_nearly_every_kind() -> None:
    cuts = [0, int(len(RECORDS) * 0.85), int(len(RECORDS) * 0.95), len(RECORDS)]
    kinds = {record.kind for record in RECORDS}
    for start, end in pairwise(cuts):
        assert len({record.kind for record in RECORDS[start:end]}) >= 0.9 * len(kinds)


def test_no_wording_of_the_request_covers_more_than_a_third_of_its_kind() -> None:
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in RECORDS:
        frame = re.sub(r'"[^"]*"', "*", record.instruction)
        by_kind[record.kind][" ".join(words(frame)[:4])] += 1
    for kind, wordings in by_kind.items():
        assert wordings.most_common(1)[0][1] <= sum(wordings.values()) / 3, (kind, wordings.most_common(1))


def test_the_same_request_seldom_follows_itself() -> None:
    repeats = sum(a.kind == b.kind for a, b in pairwise(RECORDS))
    assert repeats <= len(RECORDS) // 100


def test_the_readme_table_agrees_with_the_file() -> None:
    readme = Path(make.__file__).with_name("README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ([^|*]+?) \| (\d+) \|", readme, re.M))
    assert table == {kind: str(count) for kind, count in Counter(record.kind for record in RECORDS).items()}
    assert f"{len(RECORDS):,} short instructions" in readme


# The language


def test_only_sane_characters_are_used() -> None:
    text = "".join(prompt(record) + record.output for record in RECORDS)
    assert {character for character in text if not (character == "\n" or " " <= character <= "~")} <= set("×÷ë")


def test_no_word_is_doubled() -> None:
    for record in RECORDS:
        for text in (record.instruction, record.input, record.output):
            for sentence in re.split(r"[\n:.,;?!\"|]", text):
                found = words(sentence)
                assert not any(a == b for a, b in pairwise(found) if a.isalpha()), ids(record)


def test_quotation_marks_and_brackets_are_balanced() -> None:
    for record in RECORDS:
        for text in (record.instruction, record.input, record.output):
            assert text.count('"') % 2 == 0, ids(record)
            assert text.count("(") == text.count(")"), ids(record)
            assert text.count("{") == text.count("}"), ids(record)


VOWEL_SOUND = re.compile(r"(?!(?:uni|use|usu|uten|eur|one\b|once|ubi|u\.s))[aeiou]|hour|honest|honor|heir|8|11\b|18\b")


def test_a_and_an_fit_the_sound_that_follows() -> None:
    for record in RECORDS:
        wrong_on_purpose = record.kind in ("grammar", "spelling", "shorten")
        texts = [record.output] if wrong_on_purpose else [record.instruction, record.input, record.output]
        for text in texts:
            if record.kind in ("sequence", "formatting"):
                continue
            for article, following in re.findall(r"\b([Aa]n?) ([\w.-]+)", text):
                sounds_open = bool(VOWEL_SOUND.match(following.lower()))
                assert (article.lower() == "an") == sounds_open, f"{article} {following}: {ids(record)}"


ONE_WORD = {"antonym", "analogy", "sentiment", "topic", "fact or opinion", "number words"}
PICKED = {"extraction", "part of speech", "sorting", "formatting", "suggestions", "message"}


def test_sentences_begin_with_a_capital_and_end_with_a_mark() -> None:
    for record in RECORDS:
        assert re.match(r"[A-Z\"'(0-9$-]", record.instruction) or record.kind == "sequence", ids(record)
        if record.kind in ONE_WORD:
            assert re.fullmatch(r"[A-Z0-9][\w, -]*", record.output), ids(record)
        elif record.kind not in PICKED:
            assert re.match(r"[A-Z\"0-9(-]", record.output), ids(record)
            assert re.search(r"[.?!]\"?$", record.output), ids(record)


def test_instructions_end_like_requests() -> None:
    for record in RECORDS:
        if record.input:
            assert re.search(r"[.?!:]\"?$", record.instruction), ids(record)


BRITISH = (
    r"colour|neighbour|favour|honour|labour|centre\b|met(?:re|res)\b|litres?\b|theatre|organis[ei]|realise|travell|grey"
)


def test_spelling_is_american() -> None:
    for record in RECORDS:
        assert not re.search(BRITISH, f"{prompt(record)} {record.output}", re.I), ids(record)


# Numbers


NUMERAL = r"-?\d[\d,]*(?:\.\d+)?"


def number(text: str) -> Fraction:
    """Read a numeral that may have commas."""
    return Fraction(text.replace(",", ""))


def evaluate(expression: str) -> Fraction:
    """Work out a sum with + - × ÷ and brackets, by precedence climbing."""
    tokens = re.findall(r"\d[\d,]*(?:\.\d+)?|[-+×÷()]", expression)

    def atom() -> Fraction:
        token = tokens.pop(0)
        if token == "(":
            value = climb(0)
            assert tokens.pop(0) == ")"
            return value
        return number(token)

    def climb(level: int) -> Fraction:
        operators = ({"+": operator.add, "-": operator.sub}, {"×": operator.mul, "÷": operator.truediv})
        if level == len(operators):
            return atom()
        value = climb(level + 1)
        while tokens and tokens[0] in operators[level]:
            value = operators[level][tokens.pop(0)](value, climb(level + 1))
        return value

    result = climb(0)
    assert not tokens, tokens
    return result


# Numbers that a word problem may name by a word or leave to common knowledge.
NAMED = {
    "a third": 3, "quarter": 4, "dozen": 12, "year": 12, "square": 4, "triangle": 2, "average": 3, "back again": 2,
    "spiders": 8, "cats": 4, "two": 2, "three": 3, "five": 5, "six": 6, "seven": 7,
}  # fmt: skip


def test_every_word_problem_is_worked_out_right_from_its_own_numbers() -> None:
    for record in of("arithmetic"):
        match = re.fullmatch(rf"(.+?) = ({NUMERAL}), so (.+)\.", record.output)
        assert match, ids(record)
        expression, result, sentence = match.groups()
        assert evaluate(expression) == number(result), ids(record)
        assert re.search(rf"(?<![\d.]){re.escape(result)}(?![\d.])", sentence), ids(record)
        given = {abs(number(text)) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", record.instruction.replace(", ", " "))}
        given |= {Fraction(value) for name, value in NAMED.items() if name in record.instruction.lower()}
        if "percent" in record.instruction:
            given |= {value / 100 for value in given} | {1 - value / 100 for value in given}
        for operand in re.findall(r"\d[\d,]*(?:\.\d+)?", expression):
            assert number(operand) in given, f"{operand} is not in the problem: {ids(record)}"


# In millimeters, grams, milliliters and seconds, rounded as a reference book prints them.
SIZE = {
    "millimeter": 1, "centimeter": 10, "meter": 1000, "kilometer": 1e6, "inch": 25.4, "foot": 304.8, "yard": 914.4,
    "mile": 1_609_344, "gram": 1, "kilogram": 1000, "metric ton": 1e6, "ounce": 28.349523, "pound": 453.59237,
    "milliliter": 1, "liter": 1000, "teaspoon": 4.9289216, "tablespoon": 14.786765, "fluid ounce": 29.573530,
    "cup": 236.58824, "pint": 473.17647, "quart": 946.35295, "gallon": 3785.4118, "second": 1, "minute": 60,
    "hour": 3600, "day": 86_400, "week": 604_800,
}  # fmt: skip


def test_every_conversion_is_right_and_says_about_where_it_is_rounded() -> None:
    singular = {"feet": "foot", "inches": "inch"}
    for record in of("unit conversion"):
        match = re.fullmatch(rf"({NUMERAL}) ([\w ]+?) is (about )?({NUMERAL}) ([\w ]+)\.", record.output)
        assert match, ids(record)
        value, source, about, result, target = match.groups()
        assert re.search(rf"(?<![\d.,]){re.escape(value)}(?!\d)", record.instruction) or value == "1", ids(record)
        if source.startswith("degrees"):
            degrees = float(number(value))
            expected = degrees * 1.8 + 32 if source.endswith("Celsius") else (degrees - 32) / 1.8
        else:
            one, other = (singular.get(unit, re.sub("s$", "", unit)) for unit in (source, target))
            assert (source != one) == (number(value) != 1), ids(record)
            expected = float(number(value)) * SIZE[one] / SIZE[other]
        error = abs(float(number(result)) - expected)
        assert error < (0.051 if about else 1e-4), (expected, ids(record))
        assert about or error < 1e-4 * max(1, abs(expected))


SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def test_number_words_and_digits_agree() -> None:
    values = {word: value for value, word in enumerate(SMALL.split())}
    values |= {word: 10 * value for value, word in enumerate(TENS.split(), 2)}

    def read(text: str) -> int:
        total = group = 0
        for word in re.findall(r"[a-z]+", text):
            if word == "hundred":
                group *= 100
            elif word == "thousand":
                total, group = total + group * 1000, 0
            else:
                group += values[word]
        return total + group

    known = "|".join([*sorted(values, key=len, reverse=True), "hundred", "thousand"])
    run = re.compile(rf"\b(?:{known})(?:[- ](?:{known}))*\b")
    for record in of("number words"):
        numerals = re.findall(r"\d[\d,]*", prompt(record))
        if numerals:
            assert [number(text) for text in numerals] == [read(record.output.lower())], ids(record)
            continue
        spelled = max(run.findall(prompt(record)), key=len)
        assert read(spelled) == number(record.output), ids(record)


def test_sorted_lists_are_sorted_and_keep_their_items() -> None:
    time = (
        "January February March April May June July August September October November December Monday Tuesday "
        "Wednesday Thursday Friday Saturday Sunday dawn noon midafternoon evening infancy childhood adolescence"
    )
    times = [*time.split(), "old age"]
    for record in of("sorting"):
        given = text_of(record).split(", ")
        answer = record.output.split(", ")
        assert Counter(given) == Counter(answer), ids(record)
        assert len(set(answer)) == len(answer), ids(record)
        assert given != answer, f"already sorted: {ids(record)}"
        request = record.instruction.split(": ")[0]
        if re.search("length|shortest", request):
            lengths = [len(item) for item in answer]
            assert lengths == sorted(set(lengths)), ids(record)
            continue
        if all(item in times for item in answer):
            places: list[Any] = [times.index(item) for item in answer]
        elif re.fullmatch(NUMERAL, answer[0]):
            places = [float(item) for item in answer]
        else:
            places = [item.lower() for item in answer]
        falling = re.search("largest to|descending|Start with the largest|Z to A|reverse", request)
        assert places == sorted(places, reverse=bool(falling)), ids(record)


def test_number_sequences_follow_a_rule_that_gives_the_answer() -> None:
    primes = [2, 3, 5, 7, 11, 13]
    for record in of("sequence"):
        row = re.findall(r"(?<![A-Z])\d+(?=,)", prompt(record))
        if not row:
            continue
        values = [Fraction(value) for value in row]
        answer = re.search(r"number is (-?\d+),", record.output)
        assert answer, ids(record)
        values.append(Fraction(answer[1]))
        steps = [b - a for a, b in pairwise(values)]
        bends = [b - a for a, b in pairwise(steps)]
        turns = [b - a for a, b in pairwise(bends)]
        rules = {
            "go up by|go down by": len(set(steps)) == 1,
            "twice the one before|three times|half the|a third of|a tenth of": len(
                {b / a for a, b in pairwise(values)}
            ) == 1,
            "one more than twice": all(b == 2 * a + 1 for a, b in pairwise(values)),
            "sum of the two": all(a + b == c for a, b, c in zip(values, values[1:], values[2:], strict=False)),
            "square numbers|step grows": len(set(bends)) == 1 and bends[0] != 0,
            "cube": len(set(turns)) == 1 and turns[0] == 6,
            "prime": values == primes[: len(values)],
        }  # fmt: skip
        stated = [holds for rule, holds in rules.items() if re.search(rule, record.output)]
        assert any(stated), ids(record)


# Grammar


def regular(word: str, ending: str) -> set[str]:
    """Return the bases that a regular form with this ending may come from."""
    stem = word.removesuffix(ending)
    found = {stem, stem + "e"} if word.endswith(ending) else set()
    if word.endswith("i" + ending):
        found.add(stem[:-1] + "y")
    if len(stem) > 2 and stem[-1] == stem[-2]:
        found.add(stem[:-1])
    return found


def bases(word: str, form: int) -> set[str]:
    """Return the bases whose past (form 1) or participle (form 2) is `word`."""
    return {verb[0] for verb in VERBS if verb[form] == word} | (regular(word, "ed") if word.endswith("ed") else set())


def present(word: str) -> set[str]:
    """Return the bases whose present form is `word`, "is", "are" and "has" included."""
    special = {"is": "be", "are": "be", "am": "be", "has": "have", "does": "do", "goes": "go"}
    third = {word.removesuffix("s"), word.removesuffix("es")} if word.endswith("s") else set()
    if word.endswith("ies"):
        third.add(word.removesuffix("ies") + "y")
    return {special[word]} if word in special else {word} | third


AUXILIARIES = "is are was were be been being has have had will not by anybody nobody someone"


def test_passive_sentences_have_a_form_of_be_and_the_participle_of_the_verb() -> None:
    be = r"\b(?:is|are|was|were|be|been)\b(?: (?:not|already|being|been))* "
    for record in of("passive voice"):
        active, passive = words(text_of(record)), words(record.output)
        participles = re.findall(be + r"(\w+)", record.output)
        assert participles, ids(record)
        verbs = bases(participles[-1], 2)
        forms = {word for word in active if {word} & verbs or present(word) & verbs or bases(word, 1) & verbs
                 or bases(word, 2) & verbs or regular(word, "ing") & verbs}  # fmt: skip
        assert forms, f"no form of {verbs}: {ids(record)}"
        lost = set(active) - set(passive) - forms - set(AUXILIARIES.split()) - {"they", "you"}
        assert not lost, f"{lost} lost: {ids(record)}"


def test_past_sentences_differ_only_in_verbs_that_became_past() -> None:
    seen: set[str] = set()
    for record in of("past tense"):
        before, after = words(text_of(record)), words(record.output)
        assert len(before) == len(after), ids(record)
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert changed, ids(record)
        for old, new in changed:
            assert present(old) & bases(new, 1), f"{old} -> {new}: {ids(record)}"
        seen |= {base for old, new in changed for base in present(old) & bases(new, 1)}
    for record in of("past tense"):
        left = [word for word in words(record.output) if word.endswith("s") and present(word) & seen - {word}]
        assert not left, f"{left} left in the present: {ids(record)}"


def test_future_sentences_have_will_and_the_base_of_the_verb() -> None:
    for record in of("future tense"):
        before, after = words(text_of(record)), words(record.output)
        match = re.search(r"\bwill (?:not )?(\w+)", record.output)
        assert match, ids(record)
        assert after.count("will") == 1, ids(record)
        old = set(before) - set(after)
        assert all(match[1] in present(word) | bases(word, 1) for word in old - {"does", "did"}), ids(record)


def test_plural_sentences_have_plural_nouns() -> None:
    irregular = dict(pair.split() for pair in """
leaf leaves|mouse mice|child children|knife knives|wolf wolves|woman women|tooth teeth|shelf shelves|man men|goose geese
crisis crises|foot feet|loaf loaves|thief thieves|cactus cacti|passerby passersby|sheep sheep|hero heroes
""".strip().replace("\n", "|").split("|"))  # fmt: skip
    verbs = ["is", "are", "was", "were", "has", "have", "a", "an", "the", "this", "these", "that", "those", "his", "my"]
    for record in of("plural"):
        before, after = words(text_of(record)), words(record.output)
        nouns = [word for word in before if word in irregular or word + "s" in after or word + "es" in after
                 or word.removesuffix("y") + "ies" in after]  # fmt: skip
        assert nouns, ids(record)
        for noun in nouns:
            plurals = {irregular.get(noun, noun + "s"), noun + "es", noun.removesuffix("y") + "ies"}
            assert plurals & set(after), ids(record)
        assert not {"this", "that", "is", "was", "has", "a"} & set(after), ids(record)
        assert set(after) - set(verbs), ids(record)


def test_questions_begin_with_an_auxiliary_and_reported_speech_has_no_quotation_marks() -> None:
    auxiliaries = "Is|Are|Was|Were|Do|Does|Did|Has|Have|Had|Can|Could|Will|Would|Should|Must"
    for record in of("statement to question"):
        assert re.fullmatch(rf"(?:{auxiliaries}) .+\?", record.output), ids(record)
    for record in of("reported speech"):
        assert '"' not in record.output, ids(record)
        assert record.output.endswith("."), ids(record)


def test_a_spelling_correction_changes_few_letters_and_keeps_the_number_of_words() -> None:
    for record in of("spelling"):
        before, after = words(text_of(record)), words(record.output)
        assert len(before) == len(after), ids(record)
        assert 2 <= sum(old != new for old, new in zip(before, after, strict=True)) <= 3, ids(record)


def test_shorter_versions_are_shorter() -> None:
    for record in of("shorten"):
        assert len(words(record.output)) <= 0.75 * len(words(text_of(record))), ids(record)
    for record in of("summary"):
        assert len(words(record.output)) <= 0.6 * len(words(record.input)), ids(record)


# Words and texts


def test_a_synonym_replaces_the_word_named_and_nothing_else() -> None:
    for record in of("synonym"):
        named = re.search(r'"([a-z]+)"', record.instruction)
        assert named, ids(record)
        assert named[1] not in words(record.output), ids(record)
        before, after = words(text_of(record)), words(record.output)
        articles = {"a", "an"}
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new and {old, new} != articles]
        assert [old for old, _ in changed] == [named[1]], ids(record)


def test_what_is_extracted_stands_in_the_text_in_that_order() -> None:
    for record in of("extraction") + of("part of speech"):
        text, place = text_of(record), -1
        for item in record.output.split("; " if "; " in record.output else ", "):
            found = text.find(item, place + 1)
            assert found > place, f"{item!r}: {ids(record)}"
            place = found


def test_the_odd_one_out_is_one_of_the_items() -> None:
    for record in of("odd one out"):
        odd = record.output.split(" is the odd one out")[0].lower()
        assert odd in words(prompt(record)), ids(record)


def test_labels_are_among_those_offered() -> None:
    for kind in ("sentiment", "topic", "fact or opinion"):
        labels = Counter(record.output for record in of(kind))
        for record in of(kind):
            assert record.output.lower() in record.instruction.lower(), ids(record)
        assert max(labels.values()) <= 2 * min(labels.values()), labels


def test_the_example_sentence_uses_its_word() -> None:
    for record in of("word in a sentence"):
        quoted = re.search(r'"([a-z]+)"', record.instruction)
        word = quoted[1] if quoted else record.input
        assert word in words(record.output), ids(record)


def test_json_answers_can_be_parsed() -> None:
    answers = [record.output for record in of("formatting") if "JSON" in record.instruction]
    assert len(answers) >= 2
    assert all(json.loads(answer) for answer in answers)


# The tools


def test_pairs_joins_indented_lines_and_refuses_a_missing_answer() -> None:
    assert pairs("one\n  two\n= three\\nfour\n") == [("one two", "three\nfour")]
    with pytest.raises(ValueError, match="without an answer"):
        pairs("one\ntwo\n= three")
    with pytest.raises(ValueError, match="without a question"):
        pairs("one\n= two\n= three")


def test_rows_of_unequal_length_are_refused() -> None:
    assert rows("a | b\nc | d") == [("a", "b"), ("c", "d")]
    with pytest.raises(ValueError, match="unequal"):
        rows("a | b\nc")


def test_dress_deals_every_wording_once_a_round() -> None:
    content = [(str(value), "answer") for value in range(6)]
    dressed = dress("kind", content, ("Read {0}.", "Read this."), random.Random(1))
    assert sum(record.input == "" for record in dressed) == 3
    found = [(record.input or record.instruction).strip("Read .") for record in dressed]
    assert found == [text for text, _ in content]
