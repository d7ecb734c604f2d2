"""What is a defect, and, as important, what is none."""

import pytest

from tuneful.audit.defects import find_defects, fixed_text, is_null_like
from tuneful.audit.traits import language_of, script_of, task_of
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
    ("instruction", "task"),
    [
        ("What is a fjord?", "question"),
        ("Please rewrite the sentence.", "rewriting"),
        ("Can you list three rivers?", "listing"),
        ("Write a function that adds two numbers.", "coding"),
        ("Write a poem.", "writing"),
        ("Translate to French: hello", "translating"),
        ("Sommarize", "other"),
    ],
)
def test_tasks_are_told_by_the_first_verb(instruction: str, task: str) -> None:
    assert task_of(Conversation("", (Turn(instruction, "", "yes"),), "a:1")) == task
