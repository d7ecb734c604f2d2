"""Token ids of prompts against the tokenizer's own, for real tokenizers and every template.

    python benchmarks/prompt_ids.py FOLDER [FOLDER ...] [--conversations 2000]

A folder holds a tokenizer as transformers loads it (`tokenizer.json`, `tokenizer_config.json`). For each template, built in or
the tokenizer's own, the starter records and as many random conversations are encoded, and counted where the ids of the prompt
are not those of the tokenizer for the rendered prompt, where those of the whole record are not (responses that begin inside a
token aside, which are counted too), and where the chat template that is saved with a model gives a server other ids.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

from tuneful.config import DataConfig, TemplateConfig
from tuneful.data.read import Record, stream_data
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE, load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import TEMPLATES
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, Turn

RESULTS = Path(__file__).parent / "results"
FRAGMENTS = (
    *(
        "Say it.",
        "  lead",
        "trail  ",
        "\n\nnl",
        "line\nline\n",
        "Grüße",
        "日本語 です",
        "😀👨‍👩‍👧",
        "1234567",
        "a.b.",
        "\t tab",
    ),
    *(
        "def f(x):\n    return x",
        '{"a": 1}',
        "...",
        "!",
        "(x)",
        "don't",
        "’s",
        "e\u0301",
        "\u00a0nb",
        "\r\n",
        "x",
        "  ",
    ),
    *(
        "https://a.b/c?d=e",
        "C++;",
        "<b>",
        "it.\n",
        "∑∞",
        "ﬁ",
        "Ａ",
        "<think>hm</think>",
        "[PIER]",
        "<tool_call>",
        "<table>",
    ),
)


def main() -> None:
    """Print a line a tokenizer and template, and write results/prompt_ids-DATE.json."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folders", nargs="+", type=Path)
    arguments.add_argument("--conversations", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    lines = [line for folder in given.folders for line in examined(folder, given.conversations, given.seed)]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found = {
        "date": date,
        "transformers": transformers.__version__,
        "conversations": given.conversations,
        "lines": lines,
    }
    (RESULTS / f"prompt_ids-{date[:10]}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def examined(folder: Path, num_conversations: int, seed: int) -> Iterator[dict[str, Any]]:
    """A line for each template of a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    name = folder.name if folder.name != "models" else folder.parents[1].name
    for template in (*TEMPLATES, *([TOKENIZER_TEMPLATE] if tokenizer.chat_template else [])):
        try:
            text = TextEncoder(tokenizer, load_template(TemplateConfig(name=template), tokenizer))
        except TemplateError as error:
            line: dict[str, Any] = {"refused": str(error)}
        else:
            line = counted(Encoder(text, max_length=1_000_000), tokenizer, num_conversations, seed)
        print(name, template, json.dumps(line, ensure_ascii=False), flush=True)
        yield {"tokenizer": name, "template": template, **line}


def counted(encoder: Encoder, tokenizer: Any, num_conversations: int, seed: int) -> dict[str, Any]:
    """How many conversations were encoded, and what was wrong with how many."""
    counts: Counter[str] = Counter()
    rng = random.Random(seed)
    starter = [row.conversation for row in stream_data("starter", DataConfig()) if isinstance(row, Record)]
    for conversation in [*starter, *(random_conversation(rng) for _ in range(num_conversations))]:
        example = encoder.example(conversation)
        if not isinstance(example, Example):
            counts["refused by the template"] += 1
            continue
        counts["conversations"] += 1
        counts["responses that begin inside a token"] += len(example.seams_apart)
        counts.update(differences(encoder, tokenizer, conversation, example))
    return dict(counts)


def differences(encoder: Encoder, tokenizer: Any, conversation: Conversation, example: Example) -> Iterator[str]:
    """What is wrong with one conversation."""
    text, prompt = encoder.text, encoder.prompt_ids(conversation)
    bos = str(tokenizer.bos_token) if text.bos_token_ids else ""
    if prompt != ids_of(tokenizer, bos + encoder.prompt_text(conversation)):
        yield "prompts unlike the tokenizer's"
    strips = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values() if token.special)
    if not (example.seams_apart or strips):
        whole = bos + text.text_of(text.template.example(conversation))
        if example.token_ids.tolist() != ids_of(tokenizer, whole):
            yield "records unlike the tokenizer's"
    saved = text.template.chat_template(bos_text=bos, end_text=text.token_text([text.end_token_id]))
    if not any(turn.input for turn in conversation.turns) and "strftime_now" not in saved:
        said = messages(conversation)
        rendered = tokenizer.apply_chat_template(
            said, chat_template=saved, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if prompt != list(rendered):
            yield "prompts unlike those of the saved chat template"


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer makes of a rendered text."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """What a server is sent: everything before the last response."""
    said = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.answered_turns:
        said += [{"role": "user", "content": turn.instruction}, {"role": "assistant", "content": turn.response}]
    return said[:-1]


def random_conversation(rng: random.Random) -> Conversation:
    """One to three turns of fragments, some with an input, some with a system text."""

    def text(at_most: int) -> str:
        while not (made := "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, at_most)))).strip():
            pass
        return made

    turns = tuple(Turn(text(4), text(3) if rng.random() < 0.3 else "", text(4)) for _ in range(rng.randint(1, 3)))
    return Conversation(text(3) if rng.random() < 0.3 else "", turns, "random")


if __name__ == "__main__":
    main()
