"""Token ids become text while they are generated: nothing is shown that a later token could change or take back.

A token may end in the middle of a character, and a stop text may begin in one token and end several later. So text is held
back as long as it ends in an unfinished character, in white space (outer white space is no part of an answer), or in what
could be the beginning of a stop text. What was shown, put together, is the answer.

    tokens    " Par"  "is."  "\\n"  "\\n#"  "## In" "struction:"
    shown     "Par"   "is."   -      -       -      -  stopped: "Paris."
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
_WINDOW, _OVERLAP = 24, 8
"""Tokens decoded again with each new one, and how many of them a new window keeps: some tokenizers write a token otherwise
at the start of a text."""


class AnswerText:
    """The text of one answer in the making.

    `decode` gives the text of token ids, an unfinished character as U+FFFD at its end. `stops` are texts at which the answer
    ends; they and what follows are no part of it, nor is `lead`, where the text begins with it, nor, with `strips`, outer white
    space.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        lead: str = "",
        *,
        strips: bool = True,
    ) -> None:
        assert all(stops), "an empty text would stop every answer"
        self._decode, self._stops, self._lead, self._strips = decode, tuple(stops), lead, strips
        self._token_ids: list[int] = []
        self._start = 0  # the first token of the window that is decoded
        self._taken = 0  # characters of the window's text that stand in `_text`
        self._text = ""
        self._begin: int | None = None  # where in `_text` the answer begins, once that is known
        self._shown = 0  # where in `_text` what was shown ends
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token; the text that can be shown for it, often none. `stopped` says whether a stop text came."""
        assert not self.stopped, "a token after the end of an answer"
        self._token_ids.append(token_id)
        self._read(finished=False)
        return self._release(self._settled())

    def finish(self, *, cut: bool = False) -> str:
        """No more tokens come: the rest of the text. Of an answer that was `cut` by its length an unfinished character is left
        off, since the model was not done with it."""
        if not self.stopped:
            self._read(finished=not cut)
        return self._release(self._length(self._text), finished=True)

    @property
    def text(self) -> str:
        """The answer as far as it was shown."""
        return self._text[self._begin or 0 : self._shown]

    def _read(self, *, finished: bool) -> None:
        """Decode the new tokens as far as their characters are whole; cut at the first stop text."""
        decoded = self._decode(self._token_ids[self._start :])
        whole = decoded if finished else decoded.rstrip(_UNFINISHED)
        searched = max(0, len(self._text) - max(map(len, self._stops), default=0))
        self._text += whole[self._taken :]
        self._taken = max(self._taken, len(whole))
        found = [at for stop in self._stops if (at := self._text.find(stop, searched)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True
        elif whole == decoded:
            self._move_window()

    def _move_window(self) -> None:
        """Forget tokens that no longer matter, unless that would cut a character in two."""
        start = len(self._token_ids) - _OVERLAP
        if start - self._start < _WINDOW - _OVERLAP:
            return
        decoded = self._decode(self._token_ids[start:])
        if not decoded.startswith(_UNFINISHED):
            self._start, self._taken = start, len(decoded)

    def _settled(self) -> int:
        """How many characters no later token can take back."""
        if self.stopped:
            return self._length(self._text)
        longest = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return self._length(self._text[: len(self._text) - longest])

    def _length(self, text: str) -> int:
        return len(text.rstrip() if self._strips else text)

    def _release(self, settled: int, *, finished: bool = False) -> str:
        if self._begin is None:
            begin = self._beginning(settled, finished)
            if begin == settled:
                return ""
            self._begin = self._shown = begin
        piece = self._text[self._shown : settled]
        self._shown = max(self._shown, settled)
        return piece

    def _beginning(self, settled: int, finished: bool) -> int:
        """Where the answer begins in the settled text: after white space and `lead`; at its end while it may be either."""
        if not self._strips:
            return 0
        text = self._text[:settled].lstrip()
        if text.startswith(self._lead):
            text = text[len(self._lead) :].lstrip()
        elif self._lead.startswith(text) and not finished:
            text = ""
        return settled - len(text)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, short of all of it, that `text` ends with."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
