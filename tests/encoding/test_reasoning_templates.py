"""Templates of reasoning models: a prompt that opens a thought, a date that is asked for, and the limits of their time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jinja2
import pytest

from tuneful.encoding import jinja_sandbox
from tuneful.encoding.chat_template import ChatTemplate
from tuneful.encoding.fixed_date import DATE, fixed_dates, with_fixed_date
from tuneful.encoding.jinja_sandbox import SandboxedTemplate
from tuneful.encoding.template import Origin, Piece
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn

ONE = Conversation("", (Turn("Add", "", "3"),), "here:1")
TWO = Conversation("Be brief.", (Turn("Add", "", "3"), Turn("Again", "", "4")), "here:1")
# Thoughts of earlier answers are dropped, and a prompt opens one: as distilled reasoning models have it.
OPENS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<ask>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' and m['content'] is not none %}"
    "{% set said = m['content'] %}{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<reply>' + said + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reply>' + opening }}{% endif %}"
)
DATED = (
    "{% macro head() %}{{ 'Today is ' + strftime_now('%Y-%m-%d') + '.\\n' }}"
    "{% if strftime_now(\"%A\") %}{{ 'A ' + strftime_now(\"%A\") + '.' }}{% endif %}{% endmacro %}"
    "<s>{{ head() }}{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.role == 'assistant' %}{{ '<final>' }}{% endif %}{{ m.content }}"
    "{{ '</s>' if loop.last and m.role == 'assistant' else '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENS = {"<s>", "</s>", "<ask>", "<reply>", "<end>", "<final>", "<user>", "<assistant>", "<system>"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "my.jinja", added_tokens=dict.fromkeys(TOKENS, True), eos_token="</s>", bos_token="<s>")


def opening(text: str) -> ChatTemplate:
    return template("{% set opening = " + repr(text) + " %}" + OPENS)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "\n\n</think>\n\n"),
        ("<thinking>\n", "\n</thinking>\n\n"),
        ("\n<think>\n", "\n</think>\n\n"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_closed_by_the_model_before_it_answers(opened: str, closed: str) -> None:
    made = opening(opened)
    assert made.example(ONE) == [
        Piece("<s><ask>", Origin.TEMPLATE),
        Piece("Add", Origin.USER),
        Piece(f"<reply>{opened}", Origin.TEMPLATE),
        Piece(closed, Origin.GENERATION_PREFIX),
        Piece("3", Origin.RESPONSE),
        Piece("</s>", Origin.END),
    ]
    assert made.prompt(ONE) == made.example(ONE)[:3], "what is asked is what was trained on"
    assert made.parse(f"{closed}3") == "3"
    assert "opens a thought" in made.notes[0]


def test_earlier_answers_stand_as_the_template_has_them_and_are_context() -> None:
    pieces = opening("<think>\n").example(TWO)
    assert text(pieces) == "<s>Be brief.<ask>Add<reply>3</s><ask>Again<reply><think>\n\n</think>\n\n4</s>"
    assert [piece.text for piece in pieces if piece.origin is Origin.RESPONSE] == ["4"]
    assert [piece.text for piece in pieces if piece.origin is Origin.END] == ["</s>"]


def test_a_thought_inside_a_record_that_the_template_would_drop_is_refused() -> None:
    with pytest.raises(TemplateError, match="the template changes text of the record"):
        opening("<think>\n").example(Conversation("", (Turn("Add", "", "hm</think>3"),), "here:1"))


@pytest.mark.parametrize("opened", ["<scratch>\n", "Let me think.", "<think>\nI", "<think></think>"])
def test_anything_else_that_only_the_prompt_has_is_still_refused(opened: str) -> None:
    with pytest.raises(TemplateError, match="the prompt is not the beginning of the training text"):
        opening(opened)


# The date


def test_a_template_that_cannot_do_without_a_date_has_one_that_is_always_the_same() -> None:
    made = template(DATED)
    assert text(made.prompt(ONE)).startswith("<s>Today is 2025-01-01.\nA Wednesday.<user>Add")
    assert [piece.text for piece in made.example(ONE) if piece.origin is Origin.GENERATION_PREFIX] == ["<final>"]
    assert str(DATE) in made.notes[0]


def test_the_saved_template_writes_that_date_whoever_renders_it() -> None:
    saved = template(DATED).chat_template(bos_text="<s>", end_text="</s>")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda format: "another day"
    messages = [{"role": "user", "content": "Add"}]
    for source in (saved, template(saved).chat_template(bos_text="<s>", end_text="</s>")):
        rendered = environment.from_string(source).render(messages=messages, add_generation_prompt=True)
        assert rendered == text(template(DATED).prompt(ONE))
    assert with_fixed_date(saved) == saved


def test_a_template_that_can_do_without_a_date_is_told_that_there_is_none() -> None:
    source = DATED.replace(
        "<s>{{ head() }}", "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}no date{% endif %}"
    )
    assert fixed_dates(source) == {}
    made = template(source)
    assert text(made.prompt(ONE)).startswith("no date<user>")
    assert made.notes == ()


def test_a_format_that_does_not_stand_in_the_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="the format of the date has to stand in the template"):
        template(DATED.replace("strftime_now('%Y-%m-%d')", "strftime_now('%' ~ 'Y')"))


# The time

ENDLESS = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a condition": "{% for a in range(99999) if range(99999) | sum < 0 %}{% endfor %}",
    "a macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a loop of itself": "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
}


def render(source: str) -> str:
    return SandboxedTemplate(source, "t").render([{"role": "user", "content": "x"}], {}, is_prompt=True)


def in_another_thread(source: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(render, source).result()


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_template_without_an_end_is_stopped_on_any_thread(
    what: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jinja_sandbox, "_MAX_SECONDS", 0.05)
    rendered = render if where == "main thread" else in_another_thread
    with pytest.raises(TemplateError, match=r"more than 0\.05 s of processor time"):
        rendered(ENDLESS[what])


def test_time_in_which_others_have_the_processor_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock on the wall runs on, that of the thread does not: as on a machine with too much to do."""
    monkeypatch.setattr(jinja_sandbox, "_MAX_SECONDS", 0.05)
    made = SandboxedTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", "t")
    waited = []

    class Slow(str):
        def __str__(self) -> str:
            time.sleep(0.15)
            waited.append(True)
            return "slow"

    messages = [{"role": "user", "content": Slow("slow")}]
    assert made.render(messages, {}, is_prompt=True) == "slow"
    assert waited


def test_the_time_of_other_threads_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "_MAX_SECONDS", 0.2)
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    others = [threading.Thread(target=burn) for _ in range(3)]
    for other in others:
        other.start()
    try:
        made = SandboxedTemplate("{% for a in range(2000) %}{{ a }}{% endfor %}", "t")
        for _ in range(20):
            assert made.render([{"role": "user", "content": "x"}], {}, is_prompt=True).endswith("1999")
    finally:
        stop.set()
        for other in others:
            other.join()
