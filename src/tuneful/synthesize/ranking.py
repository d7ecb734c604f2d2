"""Several answers to one prompt are ranked: by the judge's protocols, or by a metric against the record's reference.

Stands over `judge/protocols.py` and `evaluation/metrics.py`. Under `score` and `rubric` each answer has its own verdict; under
`pairwise` each is held against every other in both orders, and its score is the mean of what it won, from 0 to 100. A metric's
score is 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

from tuneful.config import JudgeConfig
from tuneful.evaluation.answers import task_text
from tuneful.evaluation.metrics import chrf, exact_match, rouge_l, token_f1
from tuneful.judge.client import AskResult, NoReply
from tuneful.judge.grammar import Unreadable
from tuneful.judge.protocols import Item as Judged
from tuneful.judge.protocols import Protocol, Reading
from tuneful.judge.questions import Prompt, Question, prompt_of
from tuneful.synthesize.asking import Ask
from tuneful.synthesize.replies import Refused
from tuneful.synthesize.work import Item
from tuneful.types import Conversation

METRICS: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {
        "rouge_l": rouge_l,
        "chrf": chrf,
        "token_f1": token_f1,
        "exact_match": lambda text, reference: float(exact_match(text, reference)),
    }
)
"""What ranks answers without a judge, by the name of the metric."""

Scores = Generator[list[Ask], list[AskResult], "list[float | None]"]
"""The work of ranking: the score of each answer, None for one that the judge gave none."""


@dataclass(frozen=True, slots=True)
class JudgeRanking:
    """A judge's protocol and prompt. `plain`: replies are asked for as text."""

    prompt: Prompt
    plain: bool

    @classmethod
    def of(cls, settings: JudgeConfig) -> JudgeRanking:
        """That of resolved settings; ConfigError where their prompt file is unusable."""
        return cls(prompt_of(settings), settings.reply_format == "text")

    @property
    def needs_reference(self) -> bool:
        """Whether the judge is shown a reference."""
        return self.prompt.use_reference

    def num_requests(self, num_answers: int) -> int:
        """How many requests it takes to rank so many answers at most."""
        protocol = self.prompt.protocol
        return num_answers * (num_answers - 1) if protocol.compares_two else num_answers

    @property
    def num_judged(self) -> int:
        """How many answers stand in one prompt of the judge's."""
        return 2 if self.prompt.protocol.compares_two else 1

    def num_bytes(self, conversation: Conversation, reference: str | None) -> int:
        """Of a prompt of the judge's, without the answers in it."""
        shown = reference if self.needs_reference else None
        texts = (self.prompt.system, self.prompt.user, task_text(conversation), shown or "")
        return sum(len(text.encode("utf-8", "replace")) for text in texts)

    def scores(self, item: Item, conversation: Conversation, reference: str | None, answers: Sequence[str]) -> Scores:
        """The scores of `answers`, 0 to 100, once the requests that this yields are answered."""
        protocol, task = self.prompt.protocol, task_text(conversation)
        if not protocol.compares_two:
            judged = [Judged(item.source, task, reference, answer) for answer in answers]
            return (yield from self._verdicts(item, protocol, judged, "verdict"))
        pairs = list(combinations(range(len(answers)), 2))
        judged = [Judged(item.source, task, reference, answers[one], answers[other]) for one, other in pairs]
        worth = yield from self._verdicts(item, protocol, judged, "comparison")
        won: list[list[float]] = [[] for _ in answers]
        for (one, other), score in zip(pairs, worth, strict=True):
            if score is not None:
                won[one].append(score)
                won[other].append(100 - score)
        return [sum(own) / len(own) if own else None for own in won]

    def _verdicts(self, item: Item, protocol: Protocol, judged: Sequence[Judged], name: str) -> Scores:
        """The score of each judged item."""
        questions = [self.prompt.questions(one, plain=self.plain) for one in judged]
        asks = [
            [self._ask(item, f"{name}/{number}.{turn}", question) for turn, question in enumerate(own)]
            for number, own in enumerate(questions)
        ]
        results = iter((yield [ask for own in asks for ask in own]))
        scores: list[float | None] = []
        for one, own in zip(judged, asks, strict=True):
            readings = [
                self._reading(item, protocol, one, ask, next(results), swapped=turn == 1)
                for turn, ask in enumerate(own)
            ]
            read = [reading for reading in readings if reading is not None]
            scores.append(protocol.worth(read)[0] if len(read) == len(own) else None)
        return scores

    def _ask(self, item: Item, name: str, question: Question) -> Ask:
        return item.ask(name, "judge", question, sample=False)

    def _reading(
        self, item: Item, protocol: Protocol, judged: Judged, ask: Ask, result: AskResult, *, swapped: bool
    ) -> Reading | None:
        if isinstance(result, NoReply):
            item.refuse(ask, Refused(f"no whole reply: {result.reason}"))
            return None
        found = protocol.reading(judged, result.text, ask.question.code, swapped=swapped)
        if isinstance(found, Unreadable):
            item.refuse(ask, Refused(f"unreadable verdict: {found.reason}"))
            return None
        return found
