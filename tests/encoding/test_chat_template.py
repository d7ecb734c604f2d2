"""Chat templates are programs of unknown origin: what they do to text is seen, and what cannot be exact is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.tool_templates import CONTROL, ENDS, HERMES
from tests.doubles.written_tools import tokenizer_of

from tuneful.config import TemplateConfig, load_config
from tuneful.encoding.chat_template import ChatTemplate, load_template
from tuneful.encoding.template import Origin, Piece, model_name
from tuneful.errors import ConfigError, TemplateError
from tuneful.types import Conversation, ToolCall, Turn

LOOP = "{% for message in messages %}"
PROMPT = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SAID = "{{ '<' + message.role + '>' + message.content + eos_token }}"
CONVERSATION = Conversation("", (Turn("Add", "1 2", "3"), Turn("Again", "", "4")), "here:1")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "my.jinja", added_tokens={"</s>": True, "<s>": True}, eos_token="</s>", bos_token="<s>")


def asked(instruction: str = "Hi", response: str = "Yo", system: str = "") -> Conversation:
    return Conversation(system, (Turn(instruction, "", response),), "here:1")


def test_pieces_are_known_by_who_wrote_them() -> None:
    pieces = template("{{ bos_token }}" + LOOP + SAID + PROMPT).example(CONVERSATION)
    assert pieces == [
        Piece("<s><user>", Origin.TEMPLATE),
        Piece("Add", Origin.USER),
        Piece("\n\n", Origin.TEMPLATE),
        Piece("1 2", Origin.USER),
        Piece("</s><assistant>", Origin.TEMPLATE),
        Piece("3", Origin.RESPONSE),
        Piece("</s>", Origin.END),
        Piece("<user>", Origin.TEMPLATE),
        Piece("Again", Origin.USER),
        Piece("</s><assistant>", Origin.TEMPLATE),
        Piece("4", Origin.RESPONSE),
        Piece("</s>", Origin.END),
    ]


def test_what_the_template_says_is_known_from_what_the_user_says_even_where_it_is_the_same_text() -> None:
    pieces = template(LOOP + SAID + PROMPT).example(asked("</s><assistant>", "<user>"))
    assert [piece for piece in pieces if piece.origin is not Origin.TEMPLATE] == [
        Piece("</s><assistant>", Origin.USER),
        Piece("<user>", Origin.RESPONSE),
        Piece("</s>", Origin.END),
    ]


def test_text_that_a_template_trims_or_repeats_is_taken_as_it_renders_it() -> None:
    trimming = template(LOOP + "{{ '<' + message.role + '>' + message.content | trim + eos_token }}" + PROMPT)
    assert [piece.text for piece in trimming.example(asked(" Hi\n", "\tYo "))] == [
        "<user>",
        "Hi",
        "</s><assistant>",
        "Yo",
        "</s>",
    ]
    twice = template("{{ messages[0].content }}: " + LOOP + SAID + PROMPT)
    assert [piece.text for piece in twice.prompt(asked())] == ["Hi", ": <user>", "Hi", "</s><assistant>"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", r"my\.jinja:1: not a Jinja template: "),
        (
            "{{ nothing.at_all }}",
            r"my\.jinja: cannot render a conversation with the roles user, assistant: 'nothing' is undef",
        ),
        (
            LOOP + "{{ '<' + message.role + '>' + message.content }}" + PROMPT,
            "no control token of this tokenizer follows a response",
        ),
        (
            LOOP + SAID + PROMPT.replace("<assistant>", "<model>"),
            r"Prompt: '<user>\[1\]</s><model>'\. Training text: '<user>",
        ),
        ("{{ messages[-1].content }}{{ eos_token }}", "leaves out or changes the user text of a conversation"),
        (LOOP + "{{ message.content | upper }}</s>" + PROMPT, "leaves out or changes the user text"),
        (
            LOOP + "{% generation %}{{ message.role }}{% endgeneration %}{{ message.content }}</s>" + PROMPT,
            "is not its last resp",
        ),
        ("x" * 100_001, "100,001 characters, over 100,000"),
    ],
)
def test_a_template_that_does_not_suit_is_refused_before_anything_is_read(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        template(source)


def test_a_record_whose_text_a_template_rewrites_is_refused_with_both_texts() -> None:
    rewriting = template(LOOP + SAID.replace("message.content", "message.content.replace('Yo', 'Hello')") + PROMPT)
    assert rewriting.example(asked(response="Hi"))[-2].text == "Hi"
    with pytest.raises(
        TemplateError, match=r"stands there: '<user>Hi</s><assistant>Yo</s>'.* renders it: '.*<assistant>Hello<"
    ):
        rewriting.example(asked())
    unthinking = template(LOOP + SAID.replace("message.content", "message.content.split('</think>')[-1]") + PROMPT)
    with pytest.raises(TemplateError, match="the template changes text of the record"):
        unthinking.example(asked(response="<think>hm</think>Yo"))


def test_a_role_that_a_template_cannot_take_is_refused_in_its_own_words() -> None:
    strict = template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        + LOOP
        + SAID
        + PROMPT
    )
    with pytest.raises(TemplateError, match="roles system, user, assistant: no system role here"):
        strict.example(asked(system="Be kind."))


def test_what_the_template_marks_as_generated_is_what_is_trained() -> None:
    last_only = template(
        LOOP
        + "<{{ message.role }}>{% if message.role == 'assistant' and loop.last %}{% generation %}{{ message.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{{ eos_token }}{% endif %}" + PROMPT
    )
    pieces = last_only.example(CONVERSATION)
    assert [piece.text for piece in pieces if piece.origin is Origin.RESPONSE] == ["4"]
    assert [piece.text for piece in pieces if piece.origin is Origin.END] == ["</s>"]
    assert Piece("3", Origin.USER) in pieces


def test_what_stands_between_prompt_and_response_is_the_models_to_write_unless_the_template_says_otherwise() -> None:
    thought = "{{ '<' + message.role + '>' }}{% if message.role == 'assistant' %}<think>{% endif %}"
    body = "{{ message.content + eos_token }}"
    prefixed = template(LOOP + thought + body + PROMPT)
    assert Piece("<think>", Origin.GENERATION_PREFIX) in prefixed.example(asked())
    assert prefixed.parse("<think>Yo") == prefixed.parse(" Yo") == "Yo"
    assert prefixed.prompt(asked())[-1] == Piece("</s><assistant>", Origin.TEMPLATE)
    unprompted = template(LOOP + SAID + "{% endfor %}")  # no generation prompt: the model opens its own turn
    assert Piece("<assistant>", Origin.GENERATION_PREFIX) in unprompted.example(asked())
    assert unprompted.parse("<assistant>Yo") == "Yo"
    with pytest.raises(
        TemplateError, match=r"writes '<think>' between the prompt and the response and keeps it out of"
    ):
        template(LOOP + thought + "{% generation %}" + body + "{% endgeneration %}" + PROMPT)


def test_an_answer_ends_where_the_template_would_begin_a_turn() -> None:
    assert template(LOOP + SAID + PROMPT).parse("Yo\n<user>Hi") == "Yo"
    one_turn = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    assert template(one_turn + LOOP + SAID + PROMPT).stop == ()


def test_the_date_stays_out_of_a_template_and_of_what_is_saved(byte_tokenizer: Any) -> None:
    source = (
        "\n{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}1999{% endif %}" + LOOP + SAID + PROMPT
    )
    dated = ChatTemplate(source, "my.jinja", added_tokens={"<|endoftext|>": True}, eos_token="<|endoftext|>")
    assert dated.prompt(asked())[0].text == "\n1999<user>"
    rendered = byte_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}],
        chat_template=dated.chat_template(bos_text="", end_text=""),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == "".join(piece.text for piece in dated.prompt(asked()))


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self._TemplateReference__context.eval_ctx.environment.from_string('x') }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ messages.append(1) }}",
    "{{ ''['format'].__call__ }}{{ '{0.__class__.__init__}'.format(raise_exception).__class__ }}",
    "{% set f = raise_exception.__globals__ %}{{ f }}",
    "{% include 'etc/passwd' %}",
    "{% for a in range(10 ** 9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 10 ** 10000000 }}",
    "{{ 'a' | center(10 ** 10) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_that_reaches_out_of_its_sandbox_or_never_ends_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found = template(source + LOOP + SAID + PROMPT)
    except TemplateError:
        pass
    else:  # rendered harmlessly: a name of Python's came out as nothing
        assert found.prompt(asked())[0].text == "<user>"
    assert os.listdir(tmp_path) == []


def test_the_tokenizers_own_template_and_a_file_are_loaded_and_a_missing_one_is_refused(
    byte_tokenizer: Any, builtin_tokenizer: Any, tmp_path: Path
) -> None:
    own = load_template(TemplateConfig(name="tokenizer"), builtin_tokenizer)
    assert own.prompt(asked())[0].text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
    )
    assert (own.end, own.stop) == ("<|im_end|>", ("\n<|im_start|>user",))
    file = tmp_path / "mine.jinja"
    file.write_text(LOOP + SAID + PROMPT, encoding="utf-8")
    config = load_config(None, [f"template.file={file}"])
    assert config.template.name == "tokenizer"
    assert load_template(config.template, byte_tokenizer).prompt(asked())[0].text == "<user>"
    with pytest.raises(TemplateError, match=r"nowhere\.jinja: no such template file"):
        load_template(TemplateConfig(file="nowhere.jinja"), byte_tokenizer)
    with pytest.raises(TemplateError, match=r"brings no chat template of its own; give template.name=alpaca"):
        load_template(TemplateConfig(name="tokenizer"), byte_tokenizer)
    with pytest.raises(ConfigError, match="name: chatml and file are two templates"):
        load_config(None, ["template.name=chatml", f"template.file={file}"])


def test_a_template_is_said_to_be_the_model_s_and_not_a_folder_s_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    hub = "hub/models--me--my-model-2/snapshots/0123abc"
    for folder, name in {
        str(tmp_path / "models" / "smollm2-135m-instruct-1"): "smollm2-135m-instruct",
        str(tmp_path / hub): "me/my-model-2",
        "models/mine-2": "models/mine-2",
        str(tmp_path / "runs" / "a-1" / "model"): str(tmp_path / "runs" / "a-1" / "model"),
    }.items():
        assert model_name(folder) == name
    tokenizer = tokenizer_of(CONTROL["hermes"], HERMES.replace("m.tool_calls or []", "[]"), ENDS["hermes"])
    tokenizer.name_or_path = str(tmp_path / hub)
    call = Turn("a", "", "", calls=(ToolCall("look_up", "{}"),))
    with pytest.raises(
        TemplateError, match=r"^the chat template of me/my-model-2: the template has no tool_calls, which"
    ):
        load_template(TemplateConfig(name="tokenizer"), tokenizer).example(Conversation("", (call,), "here:1"))
