"""What a record is about, by rules of thumb: script, language, kind of task.

Honest about what it is: scripts are counted, languages told apart by their commonest words (three sentences are enough,
three words often are not: then it says `unclear`), tasks by the verb that an English instruction opens with. No model
is asked, a record costs some ten microseconds, and nothing in training depends on it.
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

_TASKS: Mapping[str, str] = {
    "question": "what|who|whom|whose|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|has|have",
    "rewriting": "rewrite|rephrase|paraphrase|edit|correct|fix|improve|simplify|shorten|change|convert|transform|replace|turn|put"
    "|reword|proofread|swap|make|remove|capitalize|reverse|modify|express|reorder|sort|arrange|rearrange|format",
    "writing": "write|compose|create|generate|draft|produce|tell|invent|imagine|craft|continue|complete|finish|design|come"
    "|develop|construct|build",
    "listing": "list|name|give|provide|suggest|recommend|offer|enumerate|mention|brainstorm",
    "explaining": "explain|describe|define|discuss|outline|elaborate|compare|contrast|analyze|analyse|evaluate|state|clarify",
    "classifying": "classify|categorize|categorise|identify|determine|label|decide|choose|pick|select|detect|judge|rate|check"
    "|group|assign|spot",
    "extracting": "extract|find|highlight|locate|count|retrieve|point|underline|search",
    "summarizing": "summarize|summarise|condense|sum|recap|abridge",
    "translating": "translate",
    "calculating": "calculate|compute|solve|add|subtract|multiply|divide|evaluate|estimate|simplify|round|work",
    "coding": "code|implement|program|debug|refactor",
}
_TASK_OF_WORD = {word: task for task, words in reversed(list(_TASKS.items())) for word in words.split("|")}
_POLITE = re.compile(
    r"\W*(?:please|kindly|now|first|then|hi|hello|can you|could you|would you|i want you to|i need you to)\b[\s,:]*",
    re.I,
)
_CODE = re.compile(
    r"```|\b(?:python|java ?script|java|sql|html|css|bash|regex|c\+\+|rust|golang|typescript) "
    r"(?:code|function|program|script|query|class)\b"
    r"|\b(?:write|create|implement|code) (?:me )?an? (?:\w+ ){0,2}(?:function|program|script|query|algorithm|class)\b",
    re.IGNORECASE,
)


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


def task_of(conversation: Conversation) -> str:
    """The kind of task that the first instruction sets, by the word that it opens with; `other` where that says nothing."""
    instruction = next((turn.instruction for turn in conversation.turns if turn.instruction), "")[:200]
    if polite := _POLITE.match(instruction):
        instruction = instruction[polite.end() :]
    if _CODE.search(instruction):
        return "coding"
    first = _WORD.search(instruction)
    task = _TASK_OF_WORD.get(first.group().lower()) if first else None
    return task or ("question" if instruction.rstrip().endswith("?") else "other")


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
