"""What can be wrong with the texts of one record, and what of it can be put right without asking.

Every rule errs towards silence: a finding that is none costs more trust than a defect that is missed. So code is let
alone where the question is about code, "No" is an answer, and an answer is unfinished only where a careful reader would say so.

The rules know English best. Null-like words, placeholders and declining are looked for in English only; broken
characters, controls, markup, addresses and keys in any language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneful.data.duplicates import normal_text
from tuneful.types import Conversation, Turn, rejected_texts, texts_of

Defect = tuple[str, str, int]
"""The kind's name (`findings.KINDS`), the text it is in, and where in it."""


def find_defects(conversation: Conversation) -> Iterator[Defect]:
    """Everything that is wrong with the texts of `conversation`; a kind may come more than once."""
    for turn in conversation.turns:
        if turn.response:
            yield from _answer_defects(turn)
        if turn.input.strip() and is_null_like(turn.input):
            yield "null_inputs", turn.input, 0
    yield from _escaped_line_feeds(conversation)
    for text in _texts(conversation):
        yield from _text_defects(text)
        if ("<" in text or "&" in text) and (tag := _find_tag(text)) is not None and not _is_about_markup(conversation):
            yield "html_leftovers", text, tag


def find_document_defects(conversation: Conversation) -> Iterator[Defect]:
    """Everything that is wrong with a document: what is wrong with any text, and nothing that would be with an answer."""
    for text in _texts(conversation):
        yield from _text_defects(text)
        if ("<" in text or "&" in text) and (tag := _find_tag(text)) is not None:
            yield "html_leftovers", text, tag


def is_null_like(text: str) -> bool:
    """Whether `text` is a missing value that was written out: None, nan, N/A, <noinput>, <nooutput> ..."""
    return len(text) < 20 and _NULL_LIKE.fullmatch(text) is not None


def is_error_row(conversation: Conversation) -> bool:
    """Whether nothing is answered but `<nooutput>`, which no question asks for: what a generator wrote where it failed."""
    answers = [turn.response for turn in conversation.turns if turn.response]
    return bool(answers) and all(len(answer) < 20 and _NO_OUTPUT.fullmatch(answer) is not None for answer in answers)


def escaped_texts(conversation: Conversation) -> set[str]:
    """The texts whose line feeds are written out as a backslash and an n."""
    return {text for _, text, _ in _escaped_line_feeds(conversation)}


def fixed_text(text: str) -> str:
    """`text` with what is safe to fix: broken characters whose bytes say what they were, and controls taken out."""
    if not text.isascii():
        text = _mojibake_fixed(text)
    return _CONTROL.sub("", _LINE_END.sub("\n", text))


def _texts(conversation: Conversation) -> Iterator[str]:
    if conversation.system:
        yield conversation.system
    for turn in conversation.turns:
        yield from texts_of(turn)
    yield from rejected_texts(conversation)


# Answers

_NO_OUTPUT_WORDS = r"""(?: [<\[({] \s* no [\ _-]? output \s* [>\])}] | no [_-]? output )"""
_NO_OUTPUT = re.compile(rf"""[\s'".#]* {_NO_OUTPUT_WORDS} [\s'".]*""", re.IGNORECASE | re.VERBOSE)
_NULL_LIKE = re.compile(
    rf"""[\s'".]*
    (?: none | null | nan | \#?n/a | n\.\ ?/?\ ?a\. | na | nil | undefined | not\ available | \#?no[\ _-]?input
      | [<\[({{] \s* (?: na | n/a | none | null | nan | no[\ _-]?input ) \s* [>\])}}]
      | \#?{_NO_OUTPUT_WORDS} )
    [\s'".]*""",
    re.IGNORECASE | re.VERBOSE,
)
_PLACEHOLDER = re.compile(
    r"""\W*(?:
        todo | tbd | tba | fixme | lorem\ ipsum\b.* | placeholder | x{3,} | asdf\w* | test(?:\ test)+ | \.{3} | …
      | [\[<{(]{1,2} \s* (?:your\ |the\ |insert\ |add\ |enter\ |write\ |put\ |model\ |expected\ |correct\ )*
        (?:answer|output|response|text|completion|result|todo|tbd) (?:\ (?:goes\ )?here)? \s* [\]>})]{1,2}
      | (?:insert|enter|write|put|type|add) \ (?:your\ |the\ |an?\ )? (?:answer|output|response|text) \ here
      | (?:your|the) \ (?:answer|output|response) \ (?:goes\ )? here
    )\W*""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_CANNOT = r"(?:can(?:'t|’t|not|\ not)|am\ (?:not\ able|unable)\ to|['’]m\ (?:not\ able|unable)\ to)"
_DECLINED = re.compile(
    rf"""\bas\ an?\ (?:AI|artificial\ intelligence)(?:\ language)?(?:\ (?:model|assistant|chatbot|system))?\s*,
      | \bas\ an?\ (?:AI\ |artificial\ intelligence\ |large\ )?language\ model\b
      | \bI(?:['’]m|\ am)\ (?:just\ |only\ )?an?\ (?:AI|artificial\ intelligence|large\ language)
        \ (?:language\ )?(?:model|assistant)\b
      | \bmy\ (?:knowledge|training)\ (?:data\ )?cut-?off\b
      | \bI(?:['’]m|\ am)\ (?:sorry|afraid),?\ (?:but\ )?(?:that\ )?I\ ?{_CANNOT}
        \ (?:assist|help|fulfill?|comply|provide|do\ that|answer|generate|create|complete|engage|discuss)\b
      | ^\W*I\ ?{_CANNOT}\ (?:assist|help|fulfill?|comply|answer)\b[^.]{{0,60}}\b(?:this|that|your|with)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DECLINED_HINTS = ("n ai", "language model", "artificial intell", "cutoff", "cut-off", "unable to", "not able", "i can")


def _answer_defects(turn: Turn) -> Iterator[Defect]:
    answer = turn.response
    if is_null_like(answer):
        yield "null_answers", answer, 0
    if (len(answer) < 60 or answer[:16].lstrip().lower().startswith("lorem")) and _PLACEHOLDER.fullmatch(answer):
        yield "placeholder_answers", answer, 0
    opening = answer[:400].lower()
    if any(hint in opening for hint in _DECLINED_HINTS) and (declined := _DECLINED.search(answer[:400])):
        yield "declined_answers", answer, declined.start()
    if _is_copied(turn):
        yield "copied_instructions", answer, 0
    if _is_unfinished(answer):
        yield "unfinished_answers", answer, len(answer)


def _is_copied(turn: Turn) -> bool:
    """Whether the answer is the instruction (three words or more), or the instruction and its input, again."""
    answer, instruction = turn.response, turn.instruction
    if len(answer) < len(instruction) * 0.8 or len(answer) > (len(instruction) + len(turn.input)) * 1.2 + 8:
        return False
    normal = normal_text(answer)
    asked = normal_text(instruction)
    return normal.count(" ") >= 2 and normal in (asked, f"{asked} {normal_text(turn.input)}".strip())


# Words that hardly any English sentence ends with, but for one that asks for such a word.
_NEVER_LAST = re.compile(
    r"\b(?:an?|the|and|or|but|nor|because|although|whereas|of|from|into|onto|upon|between|among|during|without|within|to"
    r"|their|our|your|my|whose|every)\Z"
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]? ")
_CODE_SIGN = re.compile(r"[{}<>=|\\_;]|\w\(|\b(?:SELECT|FROM|WHERE|JOIN)\b")
_MIN_WORDS = 8
_LONG_PARAGRAPH_WORDS = 25


def _is_unfinished(answer: str) -> bool:
    """An open code block; a last line that ends in a comma or in a word like "the"; a long paragraph without its stop."""
    text = answer.rstrip()
    if "```" in text:
        return sum(line.lstrip().startswith("```") for line in text.split("\n")) % 2 == 1
    if not text or not (text[-1].isalpha() or text[-1] in ",("):
        return False
    line = text[text.rfind("\n") + 1 :]
    num_words = line.count(" ") + 1
    if num_words < _MIN_WORDS or _is_verse(text):
        return False
    if text[-1] in ",(":
        return True
    if _CODE_SIGN.search(line):  # `JOIN boats a` ends as it should
        return False
    if _NEVER_LAST.search(line):
        return True
    sentences = _SENTENCE_END.split(line)
    is_long = num_words >= _LONG_PARAGRAPH_WORDS and len(sentences) > 2 and sentences[-1].count(" ") >= 4
    return is_long and text[-1].islower()


def _is_verse(text: str) -> bool:
    """Whether the text is lines of a poem or a list, whose last line may end as it likes."""
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) > 2 and sum(line.rstrip()[-1] in ".!?:" for line in lines) * 2 < len(lines)


# Texts

_LINE_END = re.compile("\r\n|[\x0b\x0c\u2028\u2029]")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]"
)
_TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|li|ul|ol|h[1-6]|td|tr|th|table|font|img|sup|sub|blockquote|hr|center|section)"
    r"(?:\s[^<>]{0,200})?/?>|&(?:nbsp|amp|lt|gt|quot|apos|hellip|[mn]dash|[rl][sd]quo|#\d{2,6}|#x[0-9a-f]{2,5});",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ABOUT_MARKUP = re.compile(
    r"\b(?:x?html5?|xml|xslt|svg|css|java\s?script|typescript|jsx|react|angular|vue|php|jsp|django|jinja|markup|markdown|"
    r"web ?(?:page|site|form|app\w*|develop\w*)|tags?|entit(?:y|ies)|hyperlinks?|anchor|code|coding|program\w*|function|"
    r"script|regex\w*|template|parse|scrap\w+|beautifulsoup|selenium|xpath|rss)\b",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,12})(?![\w@])")
_RESERVED = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost)(?:\.|$)|^(?:domain|email|mail|company|yourcompany|yourdomain|abc|xyz|acme)\.\w+$",
    re.I,
)
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])
      | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{40,} | glpat-[A-Za-z0-9_-]{20,}
      | sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,} | [sr]k_(?:live|test)_[A-Za-z0-9]{20,}
      | xox[abprs]-[A-Za-z0-9-]{10,} | AIza[0-9A-Za-z_-]{35} | hf_[A-Za-z0-9]{30,} | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{40,}
      | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}
      | -----BEGIN\ (?:[A-Z]+\ )?PRIVATE\ KEY-----
      | (?i:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|passwd|password)["']?\s*[:=]\s*["']?
        (?=[^\s"']*[0-9])(?=[^\s"']*[A-Za-z])[A-Za-z0-9/+_=!@$%^&*-]{16,}
    )""",
    re.VERBOSE,
)
_SECRET_HINTS = (
    "AKIA",
    "ASIA",
    "gh",
    "glpat-",
    "sk-",
    "k_",
    "xox",
    "AIza",
    "hf_",
    "npm_",
    "pypi-",
    "eyJ",
    "PRIVATE",
    "=",
    ":",
)


def _find_tag(text: str) -> int | None:
    """Where in `text`, outside of code, a tag or an entity stands."""
    code = [found.span() for found in _CODE.finditer(text)] if "`" in text else []
    places = (found.start() for found in _TAG.finditer(text))
    return next((at for at in places if not any(start <= at < end for start, end in code)), None)


def _is_about_markup(conversation: Conversation) -> bool:
    turns = conversation.turns
    return any(_ABOUT_MARKUP.search(text) for turn in turns for text in (turn.instruction, turn.input)) or any(
        _TAG.search(turn.instruction) for turn in turns
    )


def _text_defects(text: str) -> Iterator[Defect]:
    plain = text if text.isascii() else _mojibake_fixed(text)
    if plain is not text and plain != text:
        at = next(index for index, (one, other) in enumerate(zip(text, plain + "\0", strict=False)) if one != other)
        yield "mojibake", text, at
    elif "\ufffd" in text:
        yield "mojibake", text, text.index("\ufffd")
    if not plain.isprintable() and (control := _CONTROL.search(plain)):
        yield "control_characters", plain, control.start()
    if "@" in text:
        yield from _addresses(text)
    if any(hint in text for hint in _SECRET_HINTS) and (secret := _SECRET.search(text)):
        yield "secrets", _shortened(secret.group()), 0


def _addresses(text: str) -> Iterator[Defect]:
    for found in _EMAIL.finditer(text):
        if not _RESERVED.search(found.group(1)):
            yield "email_addresses", f"{found.group()[0]}...@{found.group(1)}", 0
            return


def _shortened(secret: str) -> str:
    """As much of a secret as it takes to find it, and no more."""
    return f"{secret[:6]}... ({len(secret)} characters)"


# Line feeds that were written out

_FEED = r"(?<!\\)(?:\\r)?\\n"
_ESCAPED = re.compile(
    rf"""{_FEED}\ ?{_FEED}                      # an empty line
      | (?<=[.!?:;,)\]"'”’]) {_FEED} (?=\s*(?:[^\W_a-z]|["'(“‘*•–-]|\Z))   # a sentence ends, and the next begins
      | {_FEED} \ ?(?:[-*•]\ |\d{{1,2}}[.)]\ )  # a list""",
    re.VERBOSE,
)
_VERSE = re.compile(rf"(?<=[a-z]){_FEED}\ ?(?=[A-Z])")
_OTHER_ESCAPE = re.compile(r"\\(?![nrt\"'])")
_LITERAL = re.compile(r"[(=,\[{+]\s*[rbf]?'[^']*\\n|['\"`]\\n|\\n['\"`]\s*[),;+\]]")
_ABOUT_ESCAPES = re.compile(
    r"\b(?:escap\w*|regex\w*|regular expression|new ?lines?|line ?(?:feeds?|breaks?)|backslash\w*|strings?|"
    r"cod(?:e|es|ing)|program\w*|script|function|print\w*|python|java(?:script)?|typescript|json|csv|c\+\+|bash|shell|sql|php|perl|ruby|rust|golang|latex|tex|path|"
    r"folder|director(?:y|ies)|windows|html|yaml|parse\w*|output of)\b",
    re.IGNORECASE,
)


def _escaped_line_feeds(conversation: Conversation) -> Iterator[Defect]:
    """Prose in one line with a backslash and an n where lines should end; not code, not patterns, not paths."""
    texts = [text for text in _texts(conversation) if "\\n" in text and "\n" not in text]
    if not texts or any(_ABOUT_ESCAPES.search(turn.instruction) for turn in conversation.turns):
        return
    for text in texts:
        if (at := _find_escaped(text)) is not None:
            yield "escaped_line_feeds", text, at


def _find_escaped(text: str) -> int | None:
    """Where in a text without line feeds the first escaped one stands, if it has any that are meant as such."""
    if "`" in text or _OTHER_ESCAPE.search(text) or _LITERAL.search(text):
        return None
    found = _ESCAPED.search(text)
    if found is None and len(verses := list(_VERSE.finditer(text))) > 1:
        found = verses[0]
    return None if found is None or text.count('"', 0, found.start()) % 2 else found.start()


def unescaped(text: str) -> str:
    """`text` with line feeds where they were written out."""
    return re.sub(_FEED, "\n", text)


# Mojibake

_CONTINUATION = "\x80-\xbf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€"
_BROKEN = re.compile(
    rf"[ÂÃ][{_CONTINUATION}]|â[{_CONTINUATION}]{{2}}|ï[»¿¼½¾][{_CONTINUATION}]|ð[Ÿ\x9f][{_CONTINUATION}]{{2}}"
    rf"|(?:[ÐÑÎÏ][{_CONTINUATION}]){{3,}}|(?:[åæçèéä][{_CONTINUATION}]{{2}}){{2,}}"
)


_FIRST_CHARACTERS = "ÂÃâïðÐÑÎÏåæçèéä"


def _mojibake_fixed(text: str) -> str:
    """`text` with UTF-8 that was read as Windows-1252 or Latin-1 read again; stretches that are no UTF-8 stay."""
    return _BROKEN.sub(_read_again, text) if any(first in text for first in _FIRST_CHARACTERS) else text


def _read_again(found: re.Match[str]) -> str:
    try:
        read = b"".join(_byte(character) for character in found.group()).decode("utf-8")
    except UnicodeError:
        return found.group()
    return found.group() if any("\x7f" < character < "\xa0" for character in read) else read


def _byte(character: str) -> bytes:
    """The byte that a character was made of; Windows-1252 leaves five to Latin-1."""
    return bytes([ord(character)]) if ord(character) < 0x100 else character.encode("cp1252")
