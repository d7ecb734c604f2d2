"""What a record is about, by rules of thumb: script, language, first words.

Honest about what it is: scripts are counted, languages told apart by their commonest words (three sentences are enough,
three words often are not: then it says `unclear`), and what is asked for shows in the words that instructions begin with, in
any language. No model is asked, a record costs some ten microseconds, and nothing in training depends on it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from tuneful.types import Conversation

UNCLEAR = "unclear"
_LOOKED_AT = 300

_LANGUAGES_OF_SCRIPTS = {
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
    "GREEK": "Greek",
    "HEBREW": "Hebrew",
    "THAI": "Thai",
    "DEVANAGARI": "Hindi or Marathi",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "ARABIC": "Arabic",
    "GEORGIAN": "Georgian",
    "ARMENIAN": "Armenian",
}
_COMMON_WORDS: Mapping[str, str] = {
    "English": "the of and to in is that it for was on are as with be this by what how which you from not your have or an "
    "write give name explain describe make list find who does would can these their into about a",
    "German": "der die das und ist nicht ein eine von mit den zu auf für im dem sich des auch wie was ich sind werden oder als",
    "French": "le la les des et est une un que dans pour qui du en pas sur avec ce au plus sont par quel quelle cette je vous",
    "Spanish": "el la los las que de y en un una es por con para del se no al lo como más su cuál qué son esta este",
    "Portuguese": "o a os as que de e em um uma é por com para do da não no na se como mais dos das qual são você",
    "Italian": "il la i gli le che di e un una è per con del della non in sono come più nel alla quale questo si dei",
    "Dutch": "de het een en van is dat in op te zijn met voor niet wat die aan ook er maar hoe naar deze wordt",
    "Polish": "w i na z do nie się że jest to jak o po co od za dla przez są jaki czy które",
    "Swedish": "och i att det som en på är av för med den till inte ett om har de vad hur",
    "Turkish": "ve bir bu için ile da de ne olarak daha çok gibi en nasıl olan nedir değil kadar",
    "Czech": "a v se na je že s z do to o jako jak pro ale co po by jsou není který",
    "Indonesian": "yang dan di untuk dengan ini itu dari pada adalah tidak dalam apa ke akan atau bagaimana sebuah",
    "Vietnamese": "là và của có không các một cho được trong những này với để người như thế nào",
    "Russian": "и в не на что с это как по из он для к от о а но так же то или",
    "Ukrainian": "і в не на що з це як до у та за від він для але також є або про",
}
_WORD = re.compile(r"[^\W\d_]+")

# A word; or two characters of a script that writes none between words.
_FIRST = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]{1,2}|[^\s\u2e80-\u9fff\uf900-\ufaff]+")
_UNSPACED = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]")
_NUM_FIRST, _MOST_FIRST = 2, 8
_MOST_NAMED = 12
_AGREEING = 0.9


def script_of(text: str) -> str:
    """The script that most letters at the head of `text` are of: `Latin`, `Cyrillic`, `CJK` ...; `none` without letters."""
    if text.isascii():
        return "Latin" if any(character.isalpha() for character in text[:_LOOKED_AT]) else "none"
    counts = Counter(_script(character) for character in text[:_LOOKED_AT])
    del counts[""]
    if counts["HIRAGANA"] + counts["KATAKANA"] > 0.1 * counts["CJK"]:
        counts["HIRAGANA"] += counts.pop("CJK", 0)  # Japanese is written with Chinese characters too
    return (max(counts, key=lambda script: counts[script]).capitalize().replace("Cjk", "CJK")) if counts else "none"


def language_of(text: str, script: str) -> str:
    """The language of the head of `text`, in English, given its script; `unclear` where its common words are too few."""
    if script.upper() in _LANGUAGES_OF_SCRIPTS:
        return _LANGUAGES_OF_SCRIPTS[script.upper()]
    languages_of_word, hits = _languages_of_word(), dict[str, int]()
    for word in _WORD.findall(text[:_LOOKED_AT].lower()):
        for language in languages_of_word.get(word, ()):
            hits[language] = hits.get(language, 0) + 1
    ranked = sorted(hits.values(), reverse=True)
    if not ranked or ranked[0] < 2 or ranked[:1] == ranked[1:2]:
        return UNCLEAR
    return max(hits, key=lambda language: hits[language])


def first_words_of(conversation: Conversation) -> tuple[str, ...]:
    """The first words of the first instruction, eight at most."""
    instruction = next((turn.instruction for turn in conversation.turns if turn.instruction), "")
    words = _FIRST.findall(instruction[:200].lower())[:_MOST_FIRST]
    return tuple(stripped for word in words if (stripped := word[:20].strip(".,:;!?\"'()[]{}*#`“”‘’。，：；！？、")))


def summarize_first_words(counts: Counter[tuple[str, ...]]) -> dict[str, int]:
    """Records by the first two words, the commonest first, with as many words more as nine of ten of them agree on."""
    groups: dict[tuple[str, ...], Counter[tuple[str, ...]]] = {}
    for words, count in counts.items():
        groups.setdefault(words[:_NUM_FIRST], Counter())[words] += count
    ranked = sorted(groups.items(), key=lambda group: (-group[1].total(), group[0]))
    named = {_joined(_agreed(words, group)): group.total() for words, group in ranked[:_MOST_NAMED]}
    rest = sum(group.total() for _, group in ranked[_MOST_NAMED:])
    return {**named, "other": rest} if rest else named


def _agreed(words: tuple[str, ...], group: Counter[tuple[str, ...]]) -> tuple[str, ...]:
    """`words`, which all of a group begin with, and the words after them that nearly all of it agree on."""
    while len(words) < _MOST_FIRST:
        longer: Counter[tuple[str, ...]] = Counter()
        for one, count in group.items():
            if one[: len(words)] == words and len(one) > len(words):
                longer[one[: len(words) + 1]] += count
        if not longer:
            break
        following, count = longer.most_common(1)[0]
        if count < _AGREEING * group.total():
            break
        words = following
    return words


def _joined(words: tuple[str, ...]) -> str:
    text = ""
    for word in words:
        text += word if not text or (_UNSPACED.match(word) and _UNSPACED.match(text[-1])) else f" {word}"
    return text or "(no words)"


def conversation_text(conversation: Conversation) -> str:
    """As much of a conversation as its language is told by: what is asked and answered, without the system text."""
    turn = conversation.turns[0]
    return f"{turn.instruction[:100]}\n{turn.input[:80]}\n{turn.response[:200]}"


@lru_cache(maxsize=1)
def _languages_of_word() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for language, words in _COMMON_WORDS.items():
        for word in words.split():
            found[word] = (*found.get(word, ()), language)
    return found


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, which is its script; empty for what is no letter."""
    return unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
