"""An Ollama Modelfile that asks a model exactly as it was trained: its TEMPLATE is made of the renderer that training used.

The texts between what a system, a user and the assistant say are read off rendered conversations of known parts, and written
as a Go template over `.Messages`. It is then rendered (`go_template.py`) and compared with the renderer, byte for byte: a chat
template that is more than such texts is refused, not approximated. Nothing is left to Ollama's own guess, which takes any bundled
template that looks alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneful.encoding.template import Origin, Piece
from tuneful.errors import ExportError, TemplateError
from tuneful.export.gguf_shapes import context_of, shape_of
from tuneful.export.go_template import quoted, render_go
from tuneful.export.runtime import differing, messages_of, renderable, without_bos
from tuneful.export.source import Source
from tuneful.types import Conversation, Turn

MAX_NUM_CTX = 8192
"""Largest context that a Modelfile asks for: memory is taken for all of it. Users raise it (PARAMETER num_ctx)."""
_SYSTEM, _FIRST, _ANSWER, _SECOND = "system text", "first text", "first answer", "second text"


@dataclass(frozen=True, slots=True)
class Frame:
    """The texts around what is said. The first user's is opened by `opening`, or where there is a system text by `after_system`.

    `before_system` is None where the template takes no system text. `user_start` opens every user's text.
    """

    opening: str
    before_system: str | None
    after_system: str
    user_start: str
    user_end: str
    answer_end: str


def modelfile(source: Source, gguf_name: str, license_name: str | None) -> str:
    """The Modelfile beside `gguf_name`. ExportError where its template cannot be said in Ollama's."""
    text, frame = source.encoder.text, frame_of(source)
    system = default_system(frame)
    end = text.token_text([text.end_token_id])
    named = (end, *text.template.stop, *source.config.generate.stop)
    stops = [stop for stop in dict.fromkeys(map(str.strip, named)) if stop]
    context = min(context_of(source.architecture, shape_of(source.architecture)), MAX_NUM_CTX)
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_block(go_template(frame))}"]
    lines += [f"SYSTEM {_block(system)}"] if system else []
    lines += [f"PARAMETER stop {_line(stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {context}", f"PARAMETER temperature {source.config.generate.temperature:g}"]
    lines += [f"PARAMETER repeat_penalty {source.config.generate.repetition_penalty:g}"]
    lines += [f"LICENSE {_block(license_name)}"] if license_name else []
    return "\n".join(lines) + "\n"


def template_faults(source: Source, modelfile_text: str) -> Iterator[str]:
    """What Ollama would render otherwise than training does, with the Modelfile's SYSTEM and without; a sentence each."""
    template, system = block_of(modelfile_text, "TEMPLATE"), block_of(modelfile_text, "SYSTEM")
    if template is None:
        yield "the Modelfile has no TEMPLATE: Ollama would guess one"
        return
    for conversation in map(trimmed if trims(source) else lambda one: one, renderable(source)):
        messages = messages_of(conversation)
        wanted = without_bos(source, source.encoder.prompt_text(conversation))
        for said in dict.fromkeys(("", system or "")):
            found = render_go(template, ollama_data(messages, said))
            if found != wanted:
                yield differing("the prompt of the Modelfile", found, wanted)


def trims(source: Source) -> bool:
    """Whether the template takes white space from around what is said. A TEMPLATE cannot, so clients have to."""
    spaced = Conversation("", (Turn(" a ", "", "b"),), "a probe")
    return source.encoder.prompt_text(spaced) == source.encoder.prompt_text(trimmed(spaced))


def trimmed(conversation: Conversation) -> Conversation:
    """`conversation` without white space around its texts."""
    turns = tuple(
        replace(turn, instruction=turn.instruction.strip(), response=turn.response.strip())
        for turn in conversation.turns
    )
    return replace(conversation, system=conversation.system.strip(), turns=turns)


def ollama_data(messages: Sequence[Mapping[str, str]], system: str) -> dict[str, Any]:
    """What Ollama gives to a TEMPLATE: `system`, the Modelfile's, opens a chat that brings no system text."""
    has_own = bool(messages) and messages[0]["role"] == "system"
    whole = list(messages) if has_own or not system else [{"role": "system", "content": system}, *messages]
    texts = [message["content"] for message in whole if message["role"] == "system"]
    return {
        "System": "\n\n".join(texts),
        "Messages": [{"Role": message["role"], "Content": message["content"]} for message in whole],
    }


def frame_of(source: Source) -> Frame:
    """The texts of the template, read off conversations; ExportError for a template that does not keep to them."""
    template = source.encoder.text.template
    turns = (Turn(_FIRST, "", _ANSWER), Turn(_SECOND, "", "?"))
    end = source.encoder.text.token_text([source.encoder.text.end_token_id])
    try:
        opening, user_end, after_answer, last_end = _between(template.prompt(Conversation("", turns, "a probe")), end)
    except TemplateError as error:
        raise _unsaid(str(error)) from error
    if user_end != last_end:
        raise _unsaid("what follows a user's text depends on which turn it is")
    before_system = after_system = None
    try:
        between = _between(template.prompt(Conversation(_SYSTEM, turns, "a probe")), end)
        before_system, after_system = between[:2]
    except TemplateError:
        pass  # Gemma's takes no system text
    opening = without_bos(source, opening)
    openings = [opening, after_answer.removeprefix(end), *([] if after_system is None else [after_system])]
    user_start = _common_end(openings)
    return Frame(
        opening.removesuffix(user_start),
        None if before_system is None else without_bos(source, before_system),
        (after_system or "").removesuffix(user_start),
        user_start,
        user_end,
        after_answer.removesuffix(user_start),
    )


def go_template(frame: Frame) -> str:
    """`frame` as a Go template over `.Messages`; an answer that is to be gone on with is left open."""
    system = _go(frame.opening)
    if frame.before_system is not None:
        given = f"{_go(frame.before_system)}{{{{ .System }}}}{_go(frame.after_system)}"
        system = f"{{{{ if .System }}}}{given}{{{{ else }}}}{system}{{{{ end }}}}"
    user = f"{_go(frame.user_start)}{{{{ .Content }}}}{_go(frame.user_end)}"
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    answer = f"{{{{ .Content }}}}{{{{ if not $last }}}}{_go(frame.answer_end)}{{{{ end }}}}"
    body = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
    return f"{system}{{{{ range $i, $_ := .Messages }}}}{last}{body}{{{{ end }}}}"


def default_system(frame: Frame) -> str:
    """The system text that the template writes where none is given, as it would a given one; "" where there is none."""
    if frame.before_system is None:
        return ""
    inner = frame.opening.removeprefix(frame.before_system)
    if not frame.opening.startswith(frame.before_system) or not inner.endswith(frame.after_system):
        return ""
    found = inner.removesuffix(frame.after_system)
    return found if found and found == found.strip() and '"""' not in found else ""


def block_of(modelfile_text: str, command: str) -> str | None:
    """What stands between the quotes of a command of a Modelfile; None where it is not there."""
    _, found, after = f"\n{modelfile_text}".partition(f'\n{command} """')
    return after.partition('"""')[0] if found else None


def _between(pieces: Sequence[Piece], end: str) -> list[str]:
    """The texts between what was said: before the first, then after each."""
    texts = [""]
    for piece in pieces:
        if piece.origin in (Origin.SYSTEM, Origin.USER, Origin.RESPONSE) and piece.text in (
            _SYSTEM,
            _FIRST,
            _ANSWER,
            _SECOND,
        ):
            texts.append("")
        else:
            texts[-1] += piece.text or (end if piece.origin is Origin.END else "")
    return texts


def _common_end(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` end with."""
    shortest = min(texts, key=len)
    ends = (shortest[start:] for start in range(len(shortest) + 1))
    return next(end for end in ends if all(text.endswith(end) for text in texts))


def _go(text: str) -> str:
    """`text` as it stands in a TEMPLATE, in quotes where it would mean something there."""
    is_plain = (
        not any(sign in text for sign in ("{{", "}}", '"""', "\r"))
        and not text.endswith(("{", '"'))
        and text[:1] != '"'
    )
    return text if is_plain else quoted(text)


def _block(text: str) -> str:
    return f'"""{text}"""'


def _line(text: str) -> str:
    """A parameter's text in quotes, as Ollama reads one."""
    return _block(text) if '"' in text or "\n" in text else f'"{text}"'


def _unsaid(why: str) -> ExportError:
    return ExportError(
        f"this chat template cannot be said in an Ollama TEMPLATE: {why}. Export --to gguf, whose own chat template Ollama's "
        "runner takes, or train with a template that is built in"
    )
