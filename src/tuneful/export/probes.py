"""What an export is tried with: texts whose token ids have to be equal, and conversations whose prompts have to be.

Made by rules from a fixed seed, so that two exports are tried with the same. The texts are of the kinds at which tokenizers part:
digits, scripts without spaces, emoji of several code points, code, runs of spaces, and what looks like a control token.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence

from tuneful.types import Conversation, Turn

NUM_TEXTS = 500
_SEED = 7
_WORDS = (
    "the",
    "river",
    "turned",
    "north",
    "where",
    "old",
    "stones",
    "stood",
    "I've",
    "they'll",
    "see",
    "we're",
    "don't",
    "Think",
)
_ACCENTED = (
    "Größe",
    "naïve",
    "façade",
    "señor",
    "Žluťoučký",
    "kůň",
    "Łódź",
    "crème",
    "İstanbul",
    "Ærø",
    "tiếng",
    "Việt",
)
_SCRIPTS = (
    "春江潮水連海平海上明月共潮生",
    "日本語のテキストをひらがなとカタカナで書きます",
    "한국어로된문장을하나쓴다",
    "السلام عليكم ورحمة",
    "שלום עולם וברכה",
    "नमस्ते दुनिया कैसे हो",
    "Привет мир как дела",
    "Γειά σου Κόσμε",
    "สวัสดีชาวโลก",
)
_EMOJI = ("😀", "👍🏽", "👩‍👩‍👧‍👦", "🇫🇷", "🏳️‍🌈", "✨", "❤️", "1️⃣", "🤷🏾‍♂️")
_CODE = (
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < 10; ++i) { sum += a[i]; }",
    "SELECT * FROM t WHERE a != 'b';",
    "\tif err != nil {\n\t\treturn err\n\t}\n",
    '{"key": [1, 2.50, null], "b": "\\n"}',
    "x->y::z<T>() && !w || ~v",
    "https://example.org/a?b=c&d=%20#e",
    "#!/bin/sh\necho \"$HOME\" | sed 's/a/b/g'\r\n",
)
_SPACES = (" ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", "\r\n", "\u00a0", "\u3000", "        ")
_PUNCTUATION = ("...", "!!!", "?!", "—", "“quoted”", "(a)", "a/b", "e.g.,", "$5.00", "50%", "#1", "***", "---", "===")
_LOOK_ALIKES = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<bos>",
    "[INST]",
    "<start_of_turn>",
    "<|eot_id|>",
    "<0x0A>",
    "<unk>",
    "[PAD1]",
)


def probe_texts(control_tokens: Sequence[str], *, num: int = NUM_TEXTS) -> list[str]:
    """`num` texts, each another; `control_tokens` are the tokenizer's own, written as text. Composed characters (NFC) only."""
    rng = random.Random(_SEED)
    look_alikes = (*_LOOK_ALIKES, *control_tokens)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: " ".join(rng.choices(_WORDS, k=rng.randint(2, 12))),
        lambda: " ".join(rng.choices(_ACCENTED, k=rng.randint(1, 5))),
        lambda: _digits(rng),
        lambda: _stretch(rng, rng.choice(_SCRIPTS)),
        lambda: "".join(rng.choices(_EMOJI, k=rng.randint(1, 4))) + rng.choice(("", " ok", "word")),
        lambda: "".join(rng.sample(_CODE, k=2)),
        lambda: rng.choice(_SPACES).join(rng.choices((*_WORDS, *_SPACES), k=rng.randint(2, 7))),
        lambda: (
            rng.choice(("", " ", "a"))
            + rng.choice(look_alikes)
            + rng.choice(("", " ", "b\n"))
            + rng.choice(look_alikes)
        ),
        lambda: rng.choice(("", " ")).join(rng.choices((*_PUNCTUATION, *_WORDS), k=rng.randint(2, 8))),
    )
    texts: dict[str, None] = {}
    for turn in range(20 * num):
        texts[unicodedata.normalize("NFC", kinds[turn % len(kinds)]())] = None
        if len(texts) == num:
            break
    return list(texts)


def probe_conversations() -> list[Conversation]:
    """Conversations whose rendered prompts have to be equal byte for byte: turns, system texts, and what escapes badly."""
    asked = (
        _asked("", "Name three rivers in Europe."),
        _asked("Be brief.", "What is the capital of France?"),
        _asked("", "Hello.", ("Hello, who is there?", "Somebody."), "And what is 12 times 345?"),
        _asked("Answer in verse.", "One", ("Two", "Three"), ("Four", "Five"), "Six, please"),
        _asked("", "Fill in: {{ name }} and {% if x %} and {{`raw`}}"),
        _asked("", 'Say "yes" or \'no\', and \\n is two signs; """three""" quotes'),
        _asked("", "A line\r\nand another\r\n  which is indented"),
        _asked("", "def f(x):\n    return x\n\nWhat does it do?"),
    )
    return [*asked, _asked("", "Überprüfe: 你好, мир! 😀"), _asked("", "1 + 1 = ")]


def _asked(system: str, *said: str | tuple[str, str]) -> Conversation:
    """A conversation that opens with a user's text; each pair is an answer and what the user says then, the last text ends it."""
    users, answers = [], []
    for one in said:
        if isinstance(one, tuple):
            answers.append(one[0])
            users.append(one[1])
        else:
            users.append(one)
            if len(users) > len(answers) + 1:
                answers.append("Yes.")
    answers.append("?")
    return Conversation(
        system, tuple(Turn(user, "", answer) for user, answer in zip(users, answers, strict=True)), "a probe"
    )


def _digits(rng: random.Random) -> str:
    number = str(rng.randrange(10 ** rng.randint(1, 15)))
    return (
        rng.choice(("", " ", "n=", "$"))
        + number
        + rng.choice(("", ".", ",000", " 42", "%", f".{rng.randrange(100):02}"))
    )


def _stretch(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) - 2)
    return text[start : start + rng.randint(2, len(text))] + rng.choice(("", " 7", "。", " ok"))
