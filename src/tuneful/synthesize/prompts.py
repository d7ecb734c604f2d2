"""The prompts of the teacher: files with placeholders, filled with texts that are marked as data.

A file has a `[system]` part, which is ours, and a `[user]` part. `--prompts DIR` names a folder whose files replace the
built-in ones, each by its name. Texts of the user's data stand between two lines that carry the request's code, as in the
prompts of judges (`judge/questions.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneful.errors import ConfigError
from tuneful.judge.questions import Question, fenced, nonce_of
from tuneful.types import Turn

NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "instructions": ("examples",),
        "topic": ("topic",),
        "instruction-reflection": ("instruction", "response"),
        "response-reflection": ("instruction", "response"),
    }
)
"""Every prompt, and the placeholders without which it asks for nothing of the user's."""

_KNOWN = frozenset(("nonce", "reply", "examples", "topic", "number", "instruction", "input", "response"))
_PARTS = re.compile(r"\A\s*\[system\]\n(?P<system>.*?)\n\[user\]\n(?P<user>.*)\Z", re.S)
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: `system` and `user` text with placeholders in braces, and the `fields` of the object that is asked for."""

    system: str
    user: str
    fields: tuple[str, ...]

    def question(
        self, texts: Mapping[str, str], *, examples: Sequence[Turn] = (), number: int = 0, plain: bool
    ) -> Question:
        """The question about `texts`, by placeholder, and `examples`; an empty text is left out. `plain`: held to no schema."""
        shown = [_parts(one) for one in examples]
        every = {f"{index} {name}": text for index, parts in enumerate([texts, *shown]) for name, text in parts.items()}
        nonce = nonce_of(every)
        values = {name: fenced(name, text, nonce) if text else "" for name, text in texts.items()}
        values |= {"nonce": nonce, "number": str(number), "reply": self._wanted()}
        blocks = [
            "\n".join([f"Example {index}:", *(fenced(name, text, nonce) for name, text in parts.items())])
            for index, parts in enumerate(shown, start=1)
        ]
        values["examples"] = "\n\n".join(blocks)

        def filled(text: str) -> str:
            # In one pass: braces inside a text are text.
            return _BLANK_LINES.sub(
                "\n\n", _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)
            ).strip()

        return Question(filled(self.system), filled(self.user), nonce, None if plain else self._schema())

    def _wanted(self) -> str:
        fields = ", ".join(f'"{name}": "..."' for name in self.fields)
        return f"Reply with one JSON object and nothing else: {{{fields}}}."

    def _schema(self) -> dict[str, Any]:
        properties = {name: {"type": "string"} for name in self.fields}
        return {
            "type": "object",
            "properties": properties,
            "required": list(self.fields),
            "additionalProperties": False,
        }


_TASK = ("instruction", "input", "output")
_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "instructions": _TASK,
        "topic": _TASK,
        "instruction-reflection": ("reflection", *_TASK),
        "response-reflection": ("reflection", "output"),
    }
)


def check_prompts(folder: Path, names: Sequence[str]) -> None:
    """ConfigError where none of the prompts `names`, which are those that are asked with, is in `folder`."""
    if not folder.is_dir():
        raise ConfigError(f"--prompts {folder}: no such folder")
    files_read = [f"{name}.txt" for name in names]
    if not any((folder / one).is_file() for one in files_read):
        raise ConfigError(f"--prompts {folder}: has no {' or '.join(files_read)}, so nothing in it would be read")


def load_prompt(name: str, folder: Path | None = None) -> Prompt:
    """The prompt `name` of `NEEDED`, from `folder` where it has one of that name, else built in. ConfigError."""
    own = folder / f"{name}.txt" if folder is not None else None
    is_own = own is not None and own.is_file()
    shown = str(own) if is_own else f"{name}.txt"
    try:
        found = own if own is not None and is_own else files("tuneful.synthesize") / "prompts" / f"{name}.txt"
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts: {shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    parts = _PARTS.match(text)
    if parts is None:
        raise ConfigError(f"{shown}: expected a line [system], its text, a line [user] and its text")
    placeholders = set(_PLACEHOLDER.findall(text))
    for needed in ("reply", *NEEDED[name]):
        if needed not in placeholders:
            raise ConfigError(f"{shown}: has no placeholder {{{needed}}}, without which nothing can be asked for")
    if unknown := sorted(placeholders - _KNOWN):
        there_are = ", ".join(f"{{{one}}}" for one in sorted(_KNOWN))
        raise ConfigError(f"{shown}: the placeholder {{{unknown[0]}}} is unknown; there are {there_are}")
    return Prompt(parts["system"].strip(), parts["user"].strip(), _FIELDS[name])


def plain_question(system: str, earlier: Sequence[tuple[str, str]], user: str) -> Question:
    """A task as a user would give it: no words of ours."""
    return Question(system, user, "", None, tuple(earlier))


def sampled(question: Question, temperature: float, seed: int | None) -> Question:
    """`question`, asked with a temperature and a seed of its own."""
    return replace(question, temperature=temperature, seed=seed)


def prompts_text(prompts: Mapping[str, Prompt]) -> str:
    """All of some prompts as one text, for the identity of a request."""
    return json.dumps({name: [one.system, one.user] for name, one in sorted(prompts.items())}, sort_keys=True)


def _parts(turn: Turn) -> dict[str, str]:
    parts = {"instruction": turn.instruction, "input": turn.input, "output": turn.response}
    return {name: text for name, text in parts.items() if text}
