"""What a client asks becomes a prompt's token ids: the ones that training would make of the same conversation.

    messages of either protocol -> Conversation -> the encoder of the model        a finished text, or ids -> as they are

Stands between the protocols and the engine. What the template cannot render is refused, in its own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneful.config import GenerateConfig
from tuneful.data.notes import Noted
from tuneful.data.turns import Message, conversed
from tuneful.data.values import UnfitError
from tuneful.encoding.encode import Encoder
from tuneful.errors import InputError, TemplateError
from tuneful.infer.generate import new_text
from tuneful.infer.text import AnswerText
from tuneful.model.load import UNLIMITED
from tuneful.serve.limits import Limits
from tuneful.serve.models import ServedModel
from tuneful.types import Conversation

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_BETWEEN_PARTS = "\n"


class RequestError(InputError):
    """A request that cannot be answered: `param` is the key of it that is wrong, `code` OpenAI's word for what is."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a prompt, and the most tokens that an answer to it may have."""

    token_ids: list[int]
    num_allowed: int


def conversation_of(messages: Sequence[Any]) -> Conversation:
    """The conversation of `messages` ({role, content}), whose last turn is to be answered. Raises RequestError."""
    if not messages:
        raise RequestError("`messages` is empty: nothing is asked", "messages")
    read = [_message(one, number) for number, one in enumerate(messages, start=1)]
    # Clients keep an answer that was stopped before its first word.
    asked = [one for one in read if one.role == "user" or one.text.strip()]
    if asked and asked[-1].role == "assistant":
        raise RequestError(
            f"messages[{len(messages) - 1}] is the assistant's: an answer that was begun cannot be gone on with here. End with a "
            "message of the user's, or send the whole prompt to /v1/completions",
            "messages",
        )
    try:
        system, turns = conversed(asked, "", Noted(), asks=True)
    except UnfitError as error:
        raise RequestError(str(error), "messages") from None
    return Conversation(system, turns, "request")


def chat_prompt(
    model: ServedModel, conversation: Conversation, limits: Limits, *, context: int | None = None, drops: bool = False
) -> Prompt:
    """The prompt of the last turn of `conversation`, within `context` tokens where that is less than the model's.

    With `drops` the oldest turns of one that is too long are left out. Raises RequestError where the template cannot render it or
    it does not fit.
    """
    room = min(context or UNLIMITED, model.context)
    while True:
        try:
            ids = model.loaded.encoder.prompt_ids(conversation)
        except TemplateError as error:
            raise RequestError(str(error), "messages") from None
        if len(ids) < room or not drops or len(conversation.turns) == 1:
            return _checked(ids, room, limits)
        conversation = replace(conversation, turns=conversation.turns[1:])


def text_prompt(
    model: ServedModel, prompt: str | Sequence[int], limits: Limits, *, context: int | None = None
) -> Prompt:
    """The prompt that is `prompt` as it stands: a text, whose control tokens are such, or token ids. Raises RequestError."""
    text = model.loaded.encoder.text
    if isinstance(prompt, str):
        ids = text.rendered_ids(prompt)
    else:
        ids = list(prompt)
        vocabulary = model.loaded.model.get_input_embeddings().weight.shape[0]
        if wrong := next((one for one in ids if not 0 <= one < vocabulary), None):
            raise RequestError(f"token id {wrong} is none of this model's, which has {vocabulary}", "prompt")
    if not ids:
        ids = text.bos_token_ids or [text.end_token_id]  # what documents begin behind
    return _checked(ids, min(context or UNLIMITED, model.context), limits)


def _checked(ids: list[int], room: int, limits: Limits) -> Prompt:
    if len(ids) >= room:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, and the context holds {room}, the answer's included; ask shorter",
            "messages",
            "context_length_exceeded",
        )
    if len(ids) > limits.max_prompt_tokens:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; this server takes {limits.max_prompt_tokens}",
            "messages",
            "context_length_exceeded",
        )
    return Prompt(ids, min(room - len(ids), limits.max_new_tokens))


def chat_text(encoder: Encoder, config: GenerateConfig) -> AnswerText:
    """The text of an answer to a conversation: as `tuneful generate` gives it."""
    return new_text(encoder, config)


def plain_text(encoder: Encoder, config: GenerateConfig) -> AnswerText:
    """The text of what continues a finished text: white space and all, up to the stop texts of the request."""
    return AnswerText(encoder.text.decode, config.stop, strips=False)


def _message(entry: Any, number: int) -> Message:
    where = f"messages[{number - 1}]"
    if not isinstance(entry, dict):
        raise RequestError(f"{where} is no object of `role` and `content`", "messages")
    role = entry.get("role")
    if role in ("tool", "function") or entry.get("tool_calls") or entry.get("function_call"):
        raise RequestError(f"{where} is about a tool's call, and tools are not served; leave it out", "messages")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{where}.role is {role!r}; there are {', '.join(_ROLES)}", "messages")
    if entry.get("images"):
        raise RequestError(f"{where} has images, and this model reads text alone; leave them out", "messages")
    return Message(_ROLES[role], _text(entry.get("content"), f"{where}.content"), 1.0, number)


def _text(content: Any, where: str) -> str:
    """The text of a content: a text, none, or parts of text."""
    if isinstance(content, list):
        return _BETWEEN_PARTS.join(_text_of_part(part, where) for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise RequestError(f"{where} is no text", "messages")
    _check_encodable(content, where)
    return content


def _text_of_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
        raise RequestError(f"{where} has a part of type {kind!r}, and this model reads text alone", "messages")
    _check_encodable(part["text"], where)
    return str(part["text"])


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where} holds half a character (a lone surrogate), which is no text", "messages") from None
