"""What is shown is what is trained: in a terminal, on a page, in a pipe."""

from html.parser import HTMLParser
from typing import Any

from tuneful.config import TemplateConfig
from tuneful.encoding.chat_template import ChatTemplate, load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.show import ShownRecord, as_page, bracketed, coloured, legend, shown_tokens
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, Turn

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;\n</pre></span><b>"
TWO_TURNS = Conversation("", (Turn("Hi", "", "Yo"), Turn("Say", HOSTILE, "{no} <i>format</i>")), "<here>:1")


def encoded(tokenizer: Any, *, prompt_weight: float = 0.0, template: Any = None) -> tuple[Example, TextEncoder]:
    text = TextEncoder(tokenizer, template or load_template(TemplateConfig(name="chatml"), tokenizer))
    example = Encoder(text, 10_000, prompt_weight=prompt_weight).example(TWO_TURNS)
    assert isinstance(example, Example)
    return example, text


class Page(HTMLParser):
    """The elements of a page, and the texts in its spans by class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.spans: list[tuple[str, str]] = []
        self.in_record = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "pre":
            self.in_record = True
        if tag == "span" and self.in_record:
            self.spans.append((str(dict(attrs)["class"]), ""))

    def handle_data(self, data: str) -> None:
        if self.in_record and self.spans:
            css_class, text = self.spans[-1]
            self.spans[-1] = (css_class, text + data)

    def handle_endtag(self, tag: str) -> None:
        self.in_record = self.in_record and tag != "pre"


def test_a_page_holds_every_token_as_text_and_nothing_else(byte_tokenizer: Any) -> None:
    example, text = encoded(byte_tokenizer, prompt_weight=0.5)
    record = ShownRecord(TWO_TURNS.source, tuple(shown_tokens(example, text)))
    page = as_page([record, ShownRecord("there:2", refused="<b>too long</b>")], title="<title>")
    found = Page(page)
    expected = "html head meta title style body h1 p span section h2 small pre"
    assert " ".join(sorted(found.elements)) == " ".join(sorted(expected.split()))
    assert found.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "title"}
    shown = "".join(part for _, part in found.spans).replace("⏎\n", "\n")
    assert shown == text.token_text(example.token_ids.tolist())
    trained = "".join(part for css_class, part in found.spans if css_class.startswith("trained"))
    assert trained == "Yo<|im_end|>{no} <i>format</i><|im_end|>"
    assert {css_class for css_class, _ in found.spans} == {
        "context special",
        "partly",
        "partly special",
        "trained",
        "trained special",
    }
    assert "&lt;b&gt;too long" in page


def test_in_a_terminal_each_message_begins_a_line_and_in_a_pipe_the_text_is_as_it_is(byte_tokenizer: Any) -> None:
    flat = ChatTemplate(
        "{% for message in messages %}<{{ message.role }}>{{ message.content ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        "flat.jinja",
        added_tokens={"<|endoftext|>": True},
        eos_token="<|endoftext|>",
    )
    example, text = encoded(byte_tokenizer, template=flat)
    tokens = shown_tokens(example, text)
    lines = coloured(tokens).plain.split("\n")
    assert [line[:6] for line in lines if line[:6] in ("<user>", "<assis")] == ["<user>", "<assis"] * 2
    assert bracketed(tokens).replace("⟦", "").replace("⟧", "") == text.token_text(example.token_ids.tolist())
    assert bracketed(tokens).count("⟦") == 2
    chatml, encoder = encoded(byte_tokenizer)
    assert coloured(shown_tokens(chatml, encoder)).plain == encoder.token_text(chatml.token_ids.tolist())


def test_the_legend_is_styled_as_the_tokens_are(byte_tokenizer: Any) -> None:
    example, text = encoded(byte_tokenizer, prompt_weight=0.5)
    styles = {str(span.style) for span in coloured(shown_tokens(example, text)).spans}
    named = {str(span.style) for span in legend().spans}
    assert {"green", "yellow"} <= styles & named
    assert legend().plain == "trained  partly trained  context  control token"
