"""What is a defect, and, as important, what is none."""

from collections import Counter

import pytest

from tuneful.audit.defects import find_defects, fixed_text, is_error_row, is_null_like, unescaped
from tuneful.audit.traits import first_words_of, language_of, script_of, summarize_first_words
from tuneful.types import Conversation, Turn


def kinds(instruction: str, output: str, given: str = "", system: str = "") -> set[str]:
    conversation = Conversation(system, (Turn(instruction, given, output),), "rows.jsonl:1")
    return {kind for kind, _, _ in find_defects(conversation)}


@pytest.mark.parametrize(
    ("instruction", "output"),
    [
        ("Is the sky green?", "No"),
        ("Which of these are prime: 4, 6, 8?", "None of them."),
        ("What is the surname of Maria Nan?", "Her surname is Nan."),
        ("Write an apology for a late parcel.", "I'm sorry, but I can't tell you yet when your parcel will arrive."),
        ("Put into the first person: He cannot help it.", "I cannot help it."),
        ("What does an AI engineer do?", "As an AI engineer, one trains models all day."),
        ("Write a small HTML page.", "<p>Hello</p>"),
        ("What is a line break in markup?", "It is <br> or <br/>."),
        ("Show a tag.", "A paragraph is written `<p>`."),
        ("Write a line of Python.", "```python\nprint('<b>')\n```"),
        ("Compare 3 and 4.", "3 < 4 & 4 > 3"),
        ("Give a sample address.", "Use name@example.com or info@mail.example.org."),
        ("Explain the @ sign.", "It stands in handles such as @anna and in 5 apples @ 2 euros."),
        ("Fill in the blank: She is afraid ___ dogs.", "of"),
        ("Name the preposition in the phrase 'a cup of tea from the old kettle on the stove'.", "of, from"),
        ("Close a letter.", "Thank you very much for your help with the boxes,\nAnna"),
        ("Write a haiku about rain.", "Rain on the tin roof,\nthe cat counts every drop and\nfalls asleep on five"),
        ("Use the key in a sentence.", "The key is under the mat: ask Password Peter for it."),
        ("How is a key named?", "Set api_key=YOUR_API_KEY_GOES_HERE_PLEASE in the file."),
        ("Schreibe einen Satz.", "Im CAFÉ… wartet ein Gast – „Ça va“, sagt er."),
        ("Escreva em maiúsculas: não", "NÃO"),
        ("Write family in emoji.", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("کتاب‌ها چیست؟", "کتاب‌ها برای خواندن هستند."),
        ("Repeat the word.", "word"),
        ("Lorem ipsum: what is it?", "A text that typesetters fill pages with."),
    ],
)
def test_what_is_none(instruction: str, output: str) -> None:
    assert kinds(instruction, output) == set()


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("null_answers", "  N/A."),
        ("null_answers", "undefined"),
        ("placeholder_answers", "{{response}}"),
        ("placeholder_answers", "Your answer here"),
        ("declined_answers", "I cannot help with that request."),
        ("declined_answers", "As a large language model, I have no body."),
        ("declined_answers", "Unfortunately, as an AI, I cannot taste."),
        ("unfinished_answers", "Besides the weather, the prices and the strike there was also the"),
        ("mojibake", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚"),
        ("mojibake", "Itâ€™s raining."),
        ("mojibake", "ðŸ˜€"),
        ("control_characters", "one\u2028two"),
        ("control_characters", "\ufefffirst"),
        ("html_leftovers", "one&nbsp;two"),
        ("html_leftovers", 'see <a href="x">here</a>'),
        ("email_addresses", "ask j.doe+news@uni-bonn.de"),
        ("secrets", "-----BEGIN RSA PRIVATE KEY-----"),
        ("secrets", "sk-abc123def456ghi789jkl012"),
    ],
)
def test_what_is_one(kind: str, output: str) -> None:
    assert kinds("Say something about the day.", output) == {kind}


def test_defects_of_what_is_asked_count_too() -> None:
    assert kinds("Sum it up.", "Fine.", given="Tom &amp; Ann wrote to ann@inselpost.de") == {
        "html_leftovers",
        "email_addresses",
    }
    assert kinds("Sum it up.", "Fine.", given="nan") == {"null_inputs"}
    assert kinds("Sum it up.", "Fine.", system="Be\x07 brief.") == {"control_characters"}


def test_null_like_words_are_whole_texts_only() -> None:
    assert all(map(is_null_like, ["None", "nan", " NULL ", "<noinput>", "No input", "N/A"]))
    assert not any(map(is_null_like, ["", "no", "0", "none at all", "banana", "a nan bread"]))


def test_mending_is_safe() -> None:
    assert fixed_text("cafÃ© â€œaâ€\x9d \x00b\r\nc\x0bd") == "café “a” b\nc\nd"
    for untouched in ("NÃO CAFÉ… «Ça va»", "naïve Ärger", "tab\tline\n", "👨‍👩‍👧 نیم‌فاصله"):
        assert fixed_text(untouched) == untouched


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("What is the name of the river in this picture?", "Latin", "English"),
        ("Wie heißt der Fluss, und was ist das für ein Berg?", "Latin", "German"),
        ("Quelle est la capitale de la France et pourquoi ?", "Latin", "French"),
        ("¿Cuál es la capital de España y por qué es famosa?", "Latin", "Spanish"),
        ("Как называется эта река и что это за город?", "Cyrillic", "Russian"),
        ("これは何ですか。日本語で答えてください。", "Hiragana", "Japanese"),
        ("这条河叫什么名字？", "CJK", "Chinese"),
        ("이 강의 이름은 무엇입니까?", "Hangul", "Korean"),
        ("ما اسم هذا النهر؟", "Arabic", "Arabic"),
        ("Thames, Seine", "Latin", "unclear"),
        ("12 + 5", "none", "unclear"),
    ],
)
def test_scripts_and_languages(text: str, script: str, language: str) -> None:
    assert script_of(text) == script
    assert language_of(text, script) == language


@pytest.mark.parametrize(
    ("openings", "named"),
    [
        (
            [("You are a judge of boats. Is it good?", 9), ("Name a river", 1)],
            {"you are a judge of boats is it": 9, "name a river": 1},
        ),
        ([("Write a poem", 3), ("Write a story", 3)], {"write a": 6}),
        ([("SELECT the rows: a", 2), ("select the rows, b", 2)], {"select the rows": 4}),
        ([("请翻译下面的句子：早上好", 2), ("请翻译下面的句子：晚安", 2)], {"请翻译下面的句子": 4}),
        ([("", 2)], {"(no words)": 2}),
    ],
)
def test_records_are_counted_by_the_words_that_they_begin_with(
    openings: list[tuple[str, int]], named: dict[str, int]
) -> None:
    counts: Counter[tuple[str, ...]] = Counter()
    for text, count in openings:
        counts[first_words_of(Conversation("", (Turn(text, "", "yes"),), "a:1"))] += count
    assert summarize_first_words(counts) == named


def test_the_rarest_first_words_are_counted_together() -> None:
    counts: Counter[tuple[str, ...]] = Counter({(f"word{number}", "of"): 20 - number for number in range(20)})
    summary = summarize_first_words(counts)
    assert summary["word0 of"] == 20
    assert list(summary)[-1] == "other"
    assert sum(summary.values()) == counts.total()


@pytest.mark.parametrize(
    "output",
    [
        "SELECT name, depth, owner FROM boats WHERE depth > 3 AND owner = 'Ann' ORDER BY name;",
        "for (int i = 0; i < 10; i++) total += depth[i] * width[i] + 1;",
        "body { color: navy; margin: 0 } main { padding: 4px; border: 1px solid black;",
        "SELECT count(*) FROM boats b JOIN owners a ON b.owner = a.id GROUP BY a",
        "let total = boats.filter(b => b.depth > 3).map(b => b.width).reduce((x, y) => x + y, 0);",
    ],
)
def test_code_ends_as_code_ends(output: str) -> None:
    assert kinds("Write the code.", output) == set()


@pytest.mark.parametrize(
    "text", ["<nooutput>", "<noOutput>", "<no output>", "[nooutput]", "Nooutput", "#N/A", "n.a.", "[N/A]"]
)
def test_error_rows_of_generated_sets_are_answers_that_are_missing(text: str) -> None:
    assert kinds("Draw a picture of a boat.", text) == {"null_answers"}


@pytest.mark.parametrize(
    ("answers", "is_one"), [(("<nooutput>",), True), (("N/A",), False), (("Blue.", "<nooutput>"), False)]
)
def test_a_row_is_an_error_row_where_nothing_else_is_answered(answers: tuple[str, ...], is_one: bool) -> None:
    turns = tuple(Turn("Name a colour.", "", answer) for answer in answers)
    assert is_error_row(Conversation("", turns, "rows.jsonl:1")) == is_one


@pytest.mark.parametrize(
    "output",
    [
        r"harbour\n\nThe word is spelled with an o.",
        r"Wear a vest.\nWatch the wind.",
        r"Three tips:\n1. Wear a vest.\n2. Watch the wind.",
        r"You need:\n- a vest\n- a rope",
        r"The tide comes and goes\nThe pier stands still in the rain\nThe gulls are asleep",
        r"Guten Tag!\nÄpfel sind heute billig.",
        r'"Is it far?" she asked.\r\n"No," he said.',
        "It rains.\\n",
    ],
)
def test_line_feeds_that_are_written_out_in_prose_are_found_and_fixed(output: str) -> None:
    assert kinds("Say something about the day.", output) == {"escaped_line_feeds"}
    assert "\\n" not in unescaped(output)


@pytest.mark.parametrize(
    ("instruction", "output"),
    [
        ("Where is it?", r"It is in C:\new\notes, beside the other one."),
        ("Where is it?", r"It lies on \\server\Nets.\News"),
        ("How do I start a new line?", r"Write \n where the line should end.\nThat is all."),
        ("What does it print?", r"It writes print('one.\nTwo') to the file."),
        ("Show me.", r"Use `one.\nTwo` for it."),
        ("Show me.", r'Say "one.\nTwo" to it.'),
        ("Split it.", r"[^\n]+ matches a line; \d.\nX does not."),
        ("Write the formula.", r"\nabla f = 0 and \nu > 1"),
        ("Write a poem.", "One line.\\nTwo lines.\nThree lines."),
        ("Which letter?", r"The pair is a\nb."),
    ],
)
def test_a_backslash_and_an_n_that_are_meant_are_let_alone(instruction: str, output: str) -> None:
    assert kinds(instruction, output) == set()
