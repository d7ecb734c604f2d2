"""In which language a text is written, told by its script and its commonest words, without a model.

Only languages that these tell apart are named; a text with too few such words has none (None), rather than a guess. The trade:
no dialects, no mixed texts (the language with most of the evidence is named), nothing shorter than a sentence.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from tuneful.evaluation.metrics import word_tokens

MIN_WORDS = 2
"""By how many telling words the first language has to lead."""
MIN_LETTERS = 4

_SCRIPTS = MappingProxyType(
    {"HANGUL": "ko", "GREEK": "el", "HEBREW": "he", "THAI": "th", "GEORGIAN": "ka", "ARMENIAN": "hy"}
)
"""Scripts that name a language by themselves, or nearly always."""
MIN_SHARE = 0.2
"""Share of the words that have to be telling ones, so that a language that is not listed is rarely taken for a neighbour."""

_WORDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(words.split())
        for name, words in {
            "en": "the and of to is that it for was with as are this but not have from they which you he she his "
            "her we were been their would there what when who will can has had if or an by at",
            "de": "der die das und ist nicht ein eine einen einem einer zu den dem des mit sich auf für von im ich "
            "sie wir auch als wird werden sind war bei oder nach aber wie über durch kann hat haben noch nur "
            "wenn zum zur",
            "fr": "le la les et est une des du dans qui que pour pas sur au aux avec ce cette il elle nous vous "
            "sont par plus ne se mais ou où été être leur ont comme son ses sa un je",
            "es": "el la los las y es una un que en por para con no se del al lo como más pero su sus este esta "
            "son fue o muy hay está están ser porque también cuando sobre entre todo",
            "it": "il lo la gli i le e è un una che di in per non con si del della dei delle sono ma come più "
            "anche questo questa nel nella al alla da dal ha hanno essere era o se perché",
            "pt": "o a os as e é um uma que em por para com não se do da dos das no na nos nas ao mais mas como "
            "seu sua são foi ou está também muito pelo pela ser isso ele ela você",
            "nl": "de het een en is van niet dat op te in met voor zijn er aan om ook als maar door bij uit naar "
            "dan nog wel worden wordt werd heeft hebben deze dit die ik je hij zij wij kan",
            "sv": "och att det som en är på för med av den inte till om har de ett han hon jag var men sig från vi "
            "så kan när också eller skulle efter vid mycket här där detta",
        }.items()
    }
)
LANGUAGES = (*_WORDS, "ja", "zh", "ru", "uk", *_SCRIPTS.values())
"""Every language that is told."""


def language_of(text: str) -> str | None:
    """One of `LANGUAGES`; None where too little tells one."""
    scripts = Counter(_script(sign) for sign in text if sign.isalpha())
    if sum(scripts.values()) < MIN_LETTERS:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] >= max(2, scripts["LATIN"] // 4):
        return "ja"
    script = scripts.most_common(1)[0][0]
    if script == "CJK":
        return "zh"
    if script == "CYRILLIC":
        return _of_cyrillic(text.lower())
    if script != "LATIN":
        return _SCRIPTS.get(script)
    return _of_latin(text)


def _script(sign: str) -> str:
    name = unicodedata.name(sign, "").partition(" ")[0]
    return {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA"}.get(name, name)


def _of_cyrillic(text: str) -> str | None:
    """By the letters that only one of the two has."""
    russian, ukrainian = (sum(map(text.count, letters)) for letters in ("ыэё", "іїєґ"))
    if max(russian, ukrainian) == 0 or russian == ukrainian:
        return None
    return "ru" if russian > ukrainian else "uk"


def _of_latin(text: str) -> str | None:
    words = Counter(word_tokens(text))
    counts = Counter({name: sum(words[word] for word in own) for name, own in _WORDS.items()})
    (first, num_first), (_, num_second) = counts.most_common(2)
    is_told = num_first - num_second >= MIN_WORDS and num_first >= MIN_SHARE * words.total()
    return first if is_told else None
