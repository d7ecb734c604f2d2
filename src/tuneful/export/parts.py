"""What is compared of an export, one function each, with its bound: the part of the proof that it becomes.

    tensors     every number read back, un-permuted: equal, bit for bit, to the source after its type's rounding
    keys        what the file says of the model, and again from what the model itself computes with
    token ids   500 texts in llama.cpp's tokenizer: equal
    prompts     rendered by the file's chat template: equal, byte for byte, and so are the ids of them
    weights     the numbers of the file with those of the loaded model, adapters merged by peft: up to a step of the type
    logits      llama.cpp against our forward with the numbers of the file: what the runtime's own rounding may change
    rounding    our forward with the numbers of the file against the trained: what the type costs
    answers     greedy answers, the share that is identical, and how many stop at the end token

KL is of the next token, in nats, the mean over the prompts; `BOUNDS` tells where its bounds come from, and `sharpness.py` what a
model is allowed that they do not suit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from tuneful.export.gguf_types import GgufType
from tuneful.infer.llama_cpp import Continuation
from tuneful.runs.schema import ExportPart

SHOWN = 3
"""How many differences a part names."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may differ at most in a file of a type.

    `runtime` is the mean KL of llama.cpp from our forward with the same numbers: it multiplies 16-bit weights by 16-bit
    activations, and blocks by activations in blocks of 8 bits. `rounding` is the mean KL of the rounded model from the trained.
    `logit` is the largest difference of a logit as a share of the largest, where nothing is rounded. `answers` is the least share
    of identical greedy answers, `endings` the largest difference in the share that stops at the end token.
    """

    runtime: float
    rounding: float
    logit: float | None = None
    answers: float | None = None
    endings: float = 0.5


BOUNDS: Mapping[GgufType, Bounds] = MappingProxyType(
    {
        "f32": Bounds(runtime=1e-6, rounding=1e-9, logit=1e-3, answers=1.0, endings=0.0),
        "f16": Bounds(runtime=1e-4, rounding=1e-4),
        "bf16": Bounds(runtime=2e-3, rounding=2e-2),
        "q8_0": Bounds(runtime=3e-2, rounding=2e-2),
        "q4_0": Bounds(runtime=3e-2, rounding=2.0),
    }
)
"""Measured on the built-in model, whose weights have known four bits already, times five and more (docs/exports.md). bf16 leans
against what was trained: it rounds a short step back to the weight that it began from, up to all of them. Its bound is that of
q8_0, which has as many bits."""
SHARPNESS = 3.0
"""Where a figure is beyond `BOUNDS`: how many times the one of rounding alone it may be. Found were 0.5 to 1.9 times."""


def listed(name: str, compared: str, number: int, faults: Iterable[str]) -> ExportPart:
    """A part of which nothing may differ: `faults` are what does."""
    found = list(faults)
    note = "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    figure = "equal" if not found else f"{len(found)} differ"
    return ExportPart(name, compared, number, figure, "equal", not found, note)


def not_made(name: str, compared: str, why: str) -> ExportPart:
    """A part that could not be compared."""
    return ExportPart(name, compared, 0, None, None, None, why)


@dataclass(frozen=True, slots=True)
class NextToken:
    """The distribution of the token after a prompt: ids and log probabilities of all tokens, or of the likeliest."""

    ids: torch.Tensor
    log_probabilities: torch.Tensor


Control = Callable[[], Sequence[torch.Tensor]]
"""Makes the logits of a model that was changed by rounding alone: asked only where a bound of `BOUNDS` is exceeded."""


def runtime_part(
    found: Sequence[NextToken], logits: Sequence[torch.Tensor], to: GgufType, control: Control
) -> ExportPart:
    """llama.cpp's distributions against `logits` [vocabulary] of our forward with the numbers of the file."""
    bounds = BOUNDS[to]
    if bounds.logit is not None:
        compared = Measured("logits", "llama.cpp against our forward, share of the largest logit", _share, max)
        return compared.part(found, logits, bounds.logit, control)
    return Measured("logits", "llama.cpp against our forward with the numbers of the file, KL", divergence, _mean).part(
        found, logits, bounds.runtime, control
    )


def rounding_part(
    rounded: Sequence[torch.Tensor], trained: Sequence[torch.Tensor], to: GgufType, control: Control
) -> ExportPart:
    """Our forward with the numbers of the file against that with the trained ones."""
    compared = Measured("rounding", f"the numbers of the file ({to}) against the trained, KL", divergence, _mean)
    part = compared.part([*map(whole, rounded)], trained, BOUNDS[to].rounding, control)
    if part.holds or to != "bf16":
        return part
    return replace(
        part, note=f"{part.note}. bf16 rounds small steps of the training away, f16 holds eight times finer ones"
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A comparison of distributions that gives a number after each prompt, and one of them all, which is bounded."""

    name: str
    compared: str
    measure: Callable[[torch.Tensor, NextToken], float]
    figure_of: Callable[[Sequence[float]], float]

    def part(
        self, found: Sequence[NextToken], logits: Sequence[torch.Tensor], bound: float, control: Control
    ) -> ExportPart:
        """The figure of `found` against `logits`, within `bound` or `SHARPNESS` times that of `control` against them."""
        values = self._values(found, logits)
        figure, note = self.figure_of(values), ""
        if not figure <= bound:
            of_rounding = self.figure_of(self._values([*map(whole, control())], logits))
            note = f"rounding alone brings this model {of_rounding:.2g}, so {SHARPNESS:g} times that is its bound"
            note, bound = (note, SHARPNESS * of_rounding) if SHARPNESS * of_rounding > bound else ("", bound)
        holds = figure <= bound
        if not holds:
            worst = max(range(len(values)), key=lambda index: values[index])
            most = f"most after prompt {worst + 1}: {values[worst]:.3g}"
            note = "; ".join(filter(None, (most, note, f"in all {figure:.2g}, and at most {bound:.2g} is allowed")))
        shown = f"{max(figure, 0.0):.2g}"
        return ExportPart(self.name, self.compared, len(values), shown, f"at most {bound:.2g}", holds, note)

    def _values(self, found: Sequence[NextToken], logits: Sequence[torch.Tensor]) -> list[float]:
        return [self.measure(ours, one) for one, ours in zip(found, logits, strict=True)]


def whole(logits: torch.Tensor) -> NextToken:
    """The distribution of all tokens that `logits` [vocabulary] stand for."""
    return NextToken(torch.arange(len(logits)), logits.double().log_softmax(0))


def divergence(logits: torch.Tensor, other: NextToken) -> float:
    """KL of `other` from the distribution of `logits` [vocabulary], over the tokens that `other` has, in nats."""
    ours = logits.double()[other.ids].log_softmax(0)
    theirs = other.log_probabilities.double().log_softmax(0)
    return float((ours.exp() * (ours - theirs)).nan_to_num(float("inf")).sum())


def answers_part(
    ours: Sequence[Continuation], theirs: Sequence[Continuation], excused: int, to: GgufType
) -> ExportPart:
    """Greedy answers; `excused` of them part for no fault of the file."""
    same = sum(one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True)) + excused
    least, share = BOUNDS[to].answers, same / len(ours)
    holds = least is None or share >= least
    note = f"{len(ours) - same} of {len(ours)} are others" if not holds else ""
    bound = None if least is None else f"at least {least:.0%}"
    return ExportPart(
        "answers", "greedy answers, llama.cpp's against ours, identical", len(ours), f"{share:.0%}", bound, holds, note
    )


def endings_part(
    ours: Sequence[Continuation], theirs: Sequence[Continuation], excused: int, to: GgufType
) -> ExportPart:
    """How many answers stop at the end token."""
    found, wanted = (sum(one.stopped for one in side) for side in (theirs, ours))
    allowed = max(BOUNDS[to].endings * len(ours), excused)
    holds = abs(found - wanted) <= allowed
    note = (
        ""
        if holds
        else f"llama.cpp's stop {found} times, ours {wanted} times: is the end token the one that was trained?"
    )
    figure, bound = f"{found} and {wanted}", f"differ by {allowed:g} at most"
    return ExportPart(
        "endings", "answers that stop at the end token, llama.cpp's and ours", len(ours), figure, bound, holds, note
    )


def _share(logits: torch.Tensor, found: NextToken) -> float:
    """The largest difference of a log probability, as a share of the largest logit."""
    ours = logits.double()[found.ids].log_softmax(0)
    difference = (found.log_probabilities.double().log_softmax(0) - ours).abs()
    return float(difference.nan_to_num(float("inf")).max() / logits.abs().max())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
