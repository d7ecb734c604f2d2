"""Templates and tokenizers: the prompt is the untrained prefix, the trained rest is the response, and user text is text."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tuneful.config import TemplateConfig
from tuneful.encoding.chat_template import ChatTemplate, load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.show import shown_tokens
from tuneful.encoding.template import TEMPLATES, Origin, Template, find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, Turn

TOKENIZERS = ["byte_tokenizer", "builtin_tokenizer", "gpt2_tokenizer"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "</s>"]
CHAT_TEMPLATES = {
    "headers": (  # plain headers, several turns, a default system text
        "{%- if messages[0]['role'] != 'system' %}{{ 'Be brief.' }}{% endif %}"
        "{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{{ message['content'] }}"
        "{%- elif message['role'] == 'user' %}{{ '\n\nQuestion: ' + message['content'] }}"
        "{%- else %}{{ '\nAnswer: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '\nAnswer: ' }}{% endif %}"
    ),
    "trimming": (  # takes outer white space away, as Llama 3's does
        "{% for message in messages %}{{ '[' + message['role'] + ']\n' + message['content'] | trim + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
    ),
    "marked": (  # says itself what the assistant says
        "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "thinking": (  # has the last answer open with an empty thought, which the prompt does not hold, as Qwen 3's does
        "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
        "{%- if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{- message['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    ),
}
SPECIAL_TEXTS = [
    *CONTROL,
    "<s>",
    "<unk>",
    "### Instruction:",
    "### Input:",
    "### Response:",
    "\n\n### Response:\n",
    "⟦",
    "▁",
]

# Up to U+3FFFF: SmolLM2's vocabulary lacks the byte F1, with which what lies beyond (nothing assigned) begins.
plain = st.text(
    st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t ab.,é日🙂"),
    max_size=24,
)
hostile = st.lists(plain | st.sampled_from(SPECIAL_TEXTS), min_size=1, max_size=5).map("".join)
asked = hostile.filter(lambda text: bool(text.strip()))


def turns(response: Any = asked) -> Any:
    return st.builds(Turn, asked, st.just("") | asked, response)


def conversations(max_turns: int = 3, response: Any = asked) -> Any:
    """Conversations of one to `max_turns` turns, of which all but one may have no response."""
    some = st.lists(turns(st.just("") | response), max_size=max_turns - 1)
    after = st.lists(turns(st.just("")), max_size=max_turns - 1)
    all_turns = st.builds(
        lambda *parts: (*parts[0], parts[1], *parts[2][: max_turns - 1]), some, turns(response), after
    )
    return st.builds(Conversation, st.just("") | asked, all_turns, st.just("here:1"))


def num_answered(conversation: Conversation) -> int:
    return sum(bool(turn.response) for turn in conversation.turns)


def encoder(tokenizer: Any, template: str, **options: Any) -> Encoder:
    """`template` is a built-in one, one of CHAT_TEMPLATES, or `tokenizer`."""
    if template in CHAT_TEMPLATES:
        control = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        found: Template = ChatTemplate(
            CHAT_TEMPLATES[template], template, added_tokens=control, eos_token=tokenizer.eos_token, bos_token=""
        )
    else:
        found = load_template(TemplateConfig(name=template), tokenizer)
    return Encoder(TextEncoder(tokenizer, found), **{"max_length": 100_000, **options})


def encoded(maker: Encoder, conversation: Conversation) -> Example:
    example = maker.example(conversation)
    assert isinstance(example, Example), example
    return example


def asked_and_answered(instruction: str = "Add.", input: str = "", response: str = "Done.", system: str = "") -> Any:
    return Conversation(system, (Turn(instruction, input, response),), "here:1")


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=[*TEMPLATES, *CHAT_TEMPLATES, "tokenizer"])
def maker(request: pytest.FixtureRequest, tokenizer: Any) -> Encoder:
    if request.param == "tokenizer" and not tokenizer.chat_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = CHAT_TEMPLATES["marked"]
    return encoder(tokenizer, request.param)


# The words


def specified(instruction: str, input_text: str) -> str:
    """The prompt as the specification's `generate_instruction_response` builds it, written out once more."""
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{instruction}"
    )
    if input_text:
        prompt += f"\n\n### Input:\n{input_text}"
    return prompt + "\n\n### Response:\n"


@pytest.mark.parametrize("input_text", ["", "The cat sleeps on the couch."])
def test_alpaca_is_the_text_of_the_specification(gpt2_tokenizer: Any, input_text: str) -> None:
    conversation = asked_and_answered("Identify the verb in the sentence", input_text, "sleeps")
    maker = encoder(gpt2_tokenizer, "alpaca")
    prompt = specified("Identify the verb in the sentence", input_text)
    assert maker.prompt_text(conversation) == prompt
    assert maker.text.decode(encoded(maker, conversation).token_ids.tolist()) == prompt + "sleeps"


def test_alpaca_paired_has_the_two_wordings_of_the_original(byte_tokenizer: Any) -> None:
    maker = encoder(byte_tokenizer, "alpaca-paired")
    assert maker.prompt_text(asked_and_answered("Add.")) == specified("Add.", "")
    assert maker.prompt_text(asked_and_answered("Add.", "1 2")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )


def test_chatml_and_phi_3_are_written_as_their_makers_do(byte_tokenizer: Any) -> None:
    first, second = Turn("Hi", "", "Hello"), Turn("Add", "1 2", "3")
    conversation = Conversation("Be kind.", (first, second), "here:1")

    def rendered(name: str) -> str:
        return str(byte_tokenizer.decode(encoded(encoder(byte_tokenizer, name), conversation).token_ids))

    assert rendered("chatml") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>"
    )
    assert rendered("phi-3") == (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\nAdd\n\n1 2<|end|>\n<|assistant|>\n3<|end|>"
    )


def test_a_template_that_does_not_exist_is_refused_with_the_names_that_do() -> None:
    with pytest.raises(TemplateError, match="no template 'vicuna'; there are alpaca, alpaca-paired, chatml, phi-3"):
        find_template("vicuna")


# The laws


@given(conversation=conversations())
def test_the_prompt_is_the_untrained_prefix_of_its_example(maker: Encoder, conversation: Conversation) -> None:
    example, prompt = encoded(maker, conversation), maker.prompt_ids(conversation)
    if any(place < len(prompt) - 1 for place in example.seams_apart):  # an earlier answer began inside a token
        prompt = example.token_ids[: np.flatnonzero(example.weights == 0)[-1] + 1].tolist()
        assert maker.text.token_text(prompt) == maker.text.token_text(maker.prompt_ids(conversation))
    assert example.token_ids[: len(prompt)].tolist() == prompt
    assert (example.weights[len(prompt) :] == 1).all()
    if num_answered(conversation) == 1:
        assert (example.weights[: len(prompt)] == 0).all()
        assert example.num_prompt_tokens == len(prompt)


@given(conversation=conversations(max_turns=1, response=plain.filter(lambda text: bool(text) and text == text.strip())))
def test_parsing_the_trained_tokens_gives_the_response_back(maker: Encoder, conversation: Conversation) -> None:
    response = conversation.turns[0].response
    assume(not any(stop in response for stop in maker.text.template.stop))
    trained = encoded(maker, conversation).token_ids[len(maker.prompt_ids(conversation)) :].tolist()
    assert trained[-1] == maker.text.end_token_id
    assert maker.text.template.parse(maker.text.decode(trained)) == response
    assert maker.text.template.parse(maker.text.decode(trained[:-1])) == response


@given(conversation=conversations())
def test_control_tokens_are_those_of_the_template_whatever_the_user_writes(
    maker: Encoder, conversation: Conversation
) -> None:
    """The same conversation with every user text blanked has the same control tokens, in the same order."""
    blank = Conversation(
        "x" if conversation.system else "",
        tuple(Turn("x", "x" if turn.input else "", "x" if turn.response else "") for turn in conversation.turns),
        "here:1",
    )

    def control(one: Conversation) -> list[int]:
        ids = encoded(maker, one).token_ids.tolist()
        return [token_id for token_id in ids if token_id in maker.text.control_token_ids]

    assert control(conversation) == control(blank)


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_special_token_text_of_the_users_comes_through_as_text(maker: Encoder, text: str) -> None:
    conversation = Conversation("", (Turn(text, text, f"a {text} b"), Turn("more", "", f"c{text}")), "here:1")
    for piece in maker.text.template.example(conversation):
        if piece.origin in (Origin.USER, Origin.RESPONSE):
            ids = maker.text.continued_ids(piece.text)
            assert not set(ids) & set(maker.text.control_token_ids)
            assert maker.text.decode(ids) == piece.text


def test_an_answer_is_cut_where_a_next_turn_begins() -> None:
    alpaca, chatml = find_template("alpaca"), find_template("chatml")
    assert alpaca.parse(" Paris.\n\n### Instruction:\nNext\n\n### Response:\nNo") == "Paris."
    assert alpaca.parse("# Heading\n## Two\n### Three") == "# Heading\n## Two\n### Three"
    assert chatml.parse("Paris.\n<|im_start|>user") == "Paris."


# Weights and limits


@given(conversation=conversations())
def test_the_end_token_is_a_target_after_every_response_of_an_uncut_example(
    maker: Encoder, conversation: Conversation
) -> None:
    example = encoded(maker, conversation)
    assert not example.cut
    assert example.token_ids[-1] == maker.text.end_token_id
    trained_ends = (example.token_ids == maker.text.end_token_id) & (example.weights == 1)
    assert trained_ends.sum() == num_answered(conversation)


def test_what_carries_loss_is_the_response_everything_or_a_weighted_prompt(byte_tokenizer: Any) -> None:
    conversation = Conversation("", (Turn("Hi", "", "Yo"), Turn("Again", "x", "Yo yo")), "here:1")
    weights = {
        prompt_weight: encoded(encoder(byte_tokenizer, "chatml", prompt_weight=prompt_weight), conversation).weights
        for prompt_weight in (0.0, 0.3, 1.0)
    }
    assert all(one[0] == 0 for one in weights.values())
    response = weights[0.0] == 1
    assert set(weights[0.0].tolist()) == {0.0, 1.0}
    assert (weights[1.0][1:] == 1).all()
    assert np.array_equal(weights[0.3][1:], np.where(response, np.float32(1), np.float32(0.3))[1:])
    shown = shown_tokens(
        encoded(encoder(byte_tokenizer, "chatml"), conversation),
        TextEncoder(byte_tokenizer, find_template("chatml")),
    )
    assert "".join(token.text for token in shown if token.weight) == "Yo<|im_end|>Yo yo<|im_end|>"


def test_a_record_of_exactly_the_longest_length_is_whole_and_one_more_token_is_refused(byte_tokenizer: Any) -> None:
    conversation = asked_and_answered(response="one two three")
    length = len(encoded(encoder(byte_tokenizer, "alpaca"), conversation))
    assert not encoded(encoder(byte_tokenizer, "alpaca", max_length=length), conversation).cut
    reason = encoder(byte_tokenizer, "alpaca", max_length=length - 1).example(conversation)
    assert (
        reason
        == f"{length} tokens, over data.max_length={length - 1} (data.on_long=cut_response or cut_input would cut it)"
    )


def test_a_cut_record_loses_the_end_of_its_response_and_its_end_token(byte_tokenizer: Any) -> None:
    conversation = asked_and_answered(response="one two three")
    whole = encoded(encoder(byte_tokenizer, "alpaca"), conversation)
    for length in range(whole.num_prompt_tokens + 1, len(whole)):
        cut = encoded(encoder(byte_tokenizer, "alpaca", max_length=length, on_long="cut_response"), conversation)
        assert cut.cut
        assert cut.token_ids.tolist() == whole.token_ids[:length].tolist()
        assert cut.weights.tolist() == whole.weights[:length].tolist()
        assert not ((cut.token_ids == 0) & (cut.weights > 0)).any()
    prompt = whole.num_prompt_tokens
    reason = encoder(byte_tokenizer, "alpaca", max_length=prompt, on_long="cut_response").example(conversation)
    assert reason == f"the prompt alone is {prompt} tokens and leaves no response in data.max_length={prompt}"


def test_a_record_whose_input_is_cut_keeps_its_whole_response_and_its_end_token(byte_tokenizer: Any) -> None:
    conversation = asked_and_answered("Sum up.", "a é 日 🙂 " * 9, "Letters.", system="Be brief, be kind, be done.")
    whole = encoded(encoder(byte_tokenizer, "chatml"), conversation)
    shortest = len(
        encoded(encoder(byte_tokenizer, "chatml"), asked_and_answered("S", "a", "Letters.", conversation.system))
    )
    for length in range(shortest, len(whole)):
        cut = encoded(encoder(byte_tokenizer, "chatml", max_length=length, on_long="cut_input"), conversation)
        assert len(cut) == len(whole) - cut.num_input_cut <= length
        assert cut.num_input_cut - (len(whole) - length) < 4  # at most a character's bytes more than needed
        assert not cut.cut
        trained = whole.token_ids[whole.num_prompt_tokens :].tolist()
        assert cut.token_ids[cut.weights == 1].tolist() == trained
        text = byte_tokenizer.decode(cut.token_ids)
        assert "\ufffd" not in text
        assert "Be brief, be kind, be done.<|im_end|>" in text
    reason = encoder(byte_tokenizer, "chatml", max_length=shortest - 1, on_long="cut_input").example(conversation)
    assert reason == (
        f"{len(whole)} tokens, over data.max_length={shortest - 1}, and cutting all that was asked would not make room"
    )


def test_of_several_turns_the_last_response_alone_is_trained_where_that_is_asked(byte_tokenizer: Any) -> None:
    conversation = Conversation("", (Turn("Hi", "", "Yo"), Turn("So", "", ""), Turn("Again", "x", "Yo yo")), "here:1")
    for template in (*TEMPLATES, *CHAT_TEMPLATES):
        every = encoded(encoder(byte_tokenizer, template), conversation)
        last = encoded(encoder(byte_tokenizer, template, last_turn=True, prompt_weight=0.25), conversation)
        prompt = encoder(byte_tokenizer, template).prompt_ids(conversation)
        assert last.token_ids.tolist() == every.token_ids.tolist()
        assert last.weights.tolist() == [0, *[0.25] * (len(prompt) - 1), *[1] * (len(last) - len(prompt))]
        assert last.num_prompt_tokens == len(prompt)
        assert every.num_prompt_tokens < len(prompt)


def test_a_records_own_weight_multiplies_every_weight_of_it(byte_tokenizer: Any) -> None:
    conversation = asked_and_answered(response="one two three")
    maker = encoder(byte_tokenizer, "alpaca", prompt_weight=0.5)
    once, more = encoded(maker, conversation), encoded(maker, replace(conversation, weight=2.5))
    assert more.weights.tolist() == (once.weights * 2.5).tolist()


def test_a_turn_without_a_response_is_context_and_what_follows_the_last_response_is_left_out(
    byte_tokenizer: Any,
) -> None:
    answered = (Turn("Hi", "", ""), Turn("Add", "1 2", "3"))
    open_ended = Conversation("", (*answered, Turn("And?", "", "")), "here:1")
    for template in (*TEMPLATES, *CHAT_TEMPLATES):
        maker = encoder(byte_tokenizer, template)
        example = encoded(maker, open_ended)
        assert example.token_ids.tolist() == encoded(maker, Conversation("", answered, "here:1")).token_ids.tolist()
        trained = maker.text.decode(example.token_ids[example.weights > 0].tolist())
        assert trained == ("<think>\n\n</think>\n\n3" if template == "thinking" else "3")
    assert encoder(byte_tokenizer, "chatml").prompt_text(open_ended) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_token_text_in_what_a_record_says_is_counted(byte_tokenizer: Any) -> None:
    text = encoder(byte_tokenizer, "alpaca").text
    asked = Turn("What is ### Response: for?", "<|im_end|><|im_end|>", "### Response: opens a response")
    assert text.count_special_tokens(Conversation("", (asked,), "here:1")) == {"### Response:": 2, "<|im_end|>": 2}
    assert not text.count_special_tokens(asked_and_answered())


# Tokenizers with habits


def with_bos(tokenizer: Any, bos: str = "<s>") -> PreTrainedTokenizerFast:
    """A copy of a byte-level tokenizer that puts a begin token before every text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(bos, special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="<|endoftext|>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_tokenizer_that_begins_texts_with_a_token_begins_a_record_with_exactly_one(
    byte_tokenizer: Any, template: str
) -> None:
    tokenizer = with_bos(byte_tokenizer)
    maker, bos = encoder(tokenizer, template, prompt_weight=1.0), tokenizer.bos_token_id
    conversation = Conversation("<s>", (Turn("<s>", "<s>", "<s>"), Turn("b", "", "c")), "here:1")
    example = encoded(maker, conversation)
    assert example.token_ids.tolist().count(bos) == 1
    assert example.token_ids[0] == bos
    assert example.weights[0] == 0
    assert maker.prompt_ids(conversation) == example.token_ids[: len(maker.prompt_ids(conversation))].tolist()
    without = encoded(encoder(byte_tokenizer, template), conversation)
    assert example.token_ids[1:].tolist() == without.token_ids.tolist()


def test_a_begin_token_that_the_tokenizer_does_not_add_is_not_added(byte_tokenizer: Any) -> None:
    tokenizer = with_bos(byte_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert encoder(tokenizer, "alpaca").text.bos_token_ids == []


def metaspace_tokenizer(kind: str, add_bos: bool) -> PreTrainedTokenizerFast:
    """A character tokenizer in the manner of sentencepiece: `kind` says how it marks the start of a text."""
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", "é"]
    letters = [letter for letter in alphabet if letter != " "]
    if kind == "unigram":
        words = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>", "<|end|>")]
        scored = [*words, ("▁", -2.0), *((letter, -3.0) for letter in letters), *(("▁" + one, -4.0) for one in letters)]
        backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    else:
        pieces = ["<unk>", "<s>", "</s>", "<|end|>", "▁", *letters, *("▁" + letter for letter in letters)]
        merges = [("▁", letter) for letter in letters]
        vocab = {piece: index for index, piece in enumerate(pieces)}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))
    if kind == "prepend":  # Llama 2
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        scheme = "always" if kind == "always" else "first"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "first")
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", "<|end|>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("kind", ["first", "always", "prepend", "unigram"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_start_of_a_text_is_marked_where_the_tokenizer_marks_it_in_the_rendered_record(
    kind: str, add_bos: bool, template: str
) -> None:
    tokenizer = metaspace_tokenizer(kind, add_bos)
    maker = encoder(tokenizer, template)
    conversation = Conversation("", (Turn("Hi there", "in put", "Yo yo"), Turn("b c", "", "d e")), "here:1")
    example = encoded(maker, conversation)
    assert not example.seams_apart
    text = "<s>" * add_bos + maker.text.text_of(maker.text.template.example(conversation))
    assert example.token_ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
    for turn in conversation.turns:
        response = maker.text.continued_ids(turn.response)
        assert maker.text.decode(response) == turn.response


@pytest.mark.parametrize("kind", ["first", "always", "prepend", "unigram"])
@given(text=st.lists(st.sampled_from(["<s>", "</s>", "<|end|>", " ", "a", "é"]), min_size=1).map("".join))
def test_control_tokens_in_the_vocabulary_of_the_model_itself_are_not_reached_by_text(kind: str, text: str) -> None:
    encode = TextEncoder(metaspace_tokenizer(kind, True), find_template("phi-3"))
    for ids in (encode.text_ids(text), encode.continued_ids(text), encode.stretch_ids([(text, False)])[text, False]):
        assert not set(ids) & set(encode.control_token_ids), (kind, text, ids)


def test_a_slow_tokenizer_and_one_without_an_end_token_are_refused(byte_tokenizer: Any) -> None:
    class Slow:
        name_or_path = "old"

    with pytest.raises(TemplateError, match="old: no fast tokenizer"):
        TextEncoder(Slow(), find_template("alpaca"))
    endless = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(TemplateError, match="has no end token, so no response could ever end"):
        TextEncoder(endless, find_template("alpaca"))


def test_a_response_ends_with_the_templates_token_where_the_tokenizer_has_it(
    byte_tokenizer: Any, gpt2_tokenizer: Any
) -> None:
    def end(tokenizer: Any, template: str) -> str:
        return str(tokenizer.convert_ids_to_tokens(TextEncoder(tokenizer, find_template(template)).end_token_id))

    assert [end(byte_tokenizer, name) for name in ("alpaca", "chatml", "phi-3")] == [
        "<|endoftext|>",
        "<|im_end|>",
        "<|end|>",
    ]
    assert {end(gpt2_tokenizer, name) for name in ("alpaca", "phi-3")} == {"<|endoftext|>"}
    encode = TextEncoder(byte_tokenizer, find_template("chatml"))
    assert encode.stop_token_ids == {encode.end_token_id, byte_tokenizer.eos_token_id}


# The chat template that is saved with a model


def messages(conversation: Conversation) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return opening + [
        {"role": role, "content": text}
        for turn in conversation.answered_turns
        for role, text in (("user", turn.instruction), ("assistant", turn.response))
        if text
    ]


@pytest.mark.parametrize("template", [*TEMPLATES, *CHAT_TEMPLATES])
@pytest.mark.parametrize("bos", [True, False])
@given(conversation=conversations())
def test_the_chat_template_that_is_saved_renders_text_for_text_as_training_does(
    byte_tokenizer: Any, template: str, bos: bool, conversation: Conversation
) -> None:
    conversation = Conversation(
        conversation.system,
        tuple(Turn(turn.instruction, "", turn.response) for turn in conversation.turns),
        conversation.source,
    )
    tokenizer = with_bos(byte_tokenizer) if bos else byte_tokenizer
    maker = encoder(tokenizer, template)
    bos_text = "<s>" if bos and template in TEMPLATES else ""
    end_text = tokenizer.convert_ids_to_tokens(maker.text.end_token_id)
    chat_template = maker.text.template.chat_template(bos_text=bos_text, end_text=end_text)
    said = messages(conversation)
    rendered = tokenizer.apply_chat_template(said, chat_template=chat_template, tokenize=False)
    text = bos_text + maker.text.text_of(maker.text.template.example(conversation))
    assert rendered.removesuffix("\n" if template == "thinking" else "") == text
    prompt = tokenizer.apply_chat_template(
        said[:-1], chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    assert prompt == bos_text + maker.prompt_text(conversation)


# What is shown


@given(conversation=conversations())
def test_what_is_shown_is_what_is_trained_token_for_token(maker: Encoder, conversation: Conversation) -> None:
    example = encoded(maker, conversation)
    shown = shown_tokens(example, maker.text)
    assert [token.weight for token in shown] == example.weights.tolist()
    assert "".join(token.text for token in shown) == maker.text.token_text(example.token_ids.tolist())
    assert [token.special for token in shown] == [
        token_id in maker.text.control_token_ids for token_id in example.token_ids.tolist()
    ]


@pytest.mark.parametrize("kind", ["first", "always", "prepend", "unigram"])
def test_spaces_are_shown_where_a_tokenizer_writes_them_as_marks(kind: str) -> None:
    maker = encoder(metaspace_tokenizer(kind, True), "alpaca")
    conversation = asked_and_answered("Say it twice", "", "it is it is")
    shown = "".join(token.text for token in shown_tokens(encoded(maker, conversation), maker.text))
    assert shown.removeprefix("<s>").lstrip() == specified("Say it twice", "") + "it is it is</s>"


def test_alpaca_is_the_published_prompt_letter_for_letter(byte_tokenizer: Any) -> None:
    """The prompt as the Alpaca records were published with, whole, and not put together as the code above does."""
    published = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Identify the verb in the sentence\n"
        "\n"
        "### Input:\n"
        "The cat sleeps on the couch.\n"
        "\n"
        "### Response:\n"
    )
    asked = asked_and_answered("Identify the verb in the sentence", "The cat sleeps on the couch.")
    assert specified("Identify the verb in the sentence", "The cat sleeps on the couch.") == published
    assert encoder(byte_tokenizer, "alpaca").prompt_text(asked) == published
    without_input = published.replace("### Input:\nThe cat sleeps on the couch.\n\n", "")
    assert (
        encoder(byte_tokenizer, "alpaca").prompt_text(asked_and_answered(asked.turns[0].instruction)) == without_input
    )
