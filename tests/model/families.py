"""What Tuneful does with every causal family of the installed transformers.

    python tests/model/families.py            examines all of them and writes docs/families.md
    python tests/model/families.py mamba opt  examines these, and prints what it finds

Each family is built tiny and random (`tests/doubles/families.py`). Two optimizer steps in the layout that is chosen for it must
have the losses of a plain loop, in which transformers computes each record alone and torch's AdamW updates. The greedy answers to
four prompts of unlike length in one batch must be those that the model's forward gives to each alone, without a cache; whether
transformers' `generate` gives the same is noted. Exit code 1 where a family crashes or is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.doubles.engine import random_records, train_config
from tests.doubles.families import FAMILIES, BuildError, tiny_family

from tuneful.config import GenerateConfig
from tuneful.errors import InputError
from tuneful.infer.decode import chosen_decoder
from tuneful.infer.generate import generate
from tuneful.model.forward import takes
from tuneful.runs.schema import Layout, Step
from tuneful.train.layout import choose_layout, set_dropout, why_random
from tuneful.train.loop import Training
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.types import Example

PAGE = ROOT / "docs" / "families.md"
TOLERANCE = 1e-3
"""Largest difference (nats) of the loss of a step from that of the plain loop."""
NUM_NEW_TOKENS = 10
PROMPTS = ([3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [2, 7], [3, 1, 4, 1, 8, 2, 8])


@dataclass(frozen=True)
class Found:
    """A family: how its records are laid out and its prompts are answered, with the reasons; or why it is refused.

    `generate` says where transformers' own `generate` gives other answers than its forward. `wrong` lists what is not as it must be:
    nothing, for every family.
    """

    family: str
    layout: str = ""
    layout_reason: str = ""
    answers: str = ""
    answers_reason: str = ""
    refused: str = ""
    generate: str = ""
    wrong: tuple[str, ...] = ()


def examine(family: str) -> Found:
    """Train and ask the tiny model of `family`. Raises BuildError where there is none."""
    model, examples = _fresh(family), random_records(8)
    config = train_config(max_steps=2, batch_size=len(examples), learning_rate=1e-3, keep="last")
    wrong: list[str] = []
    try:
        layout = choose_layout(model, examples, config, torch.float32)
        wrong += _wrong_losses(family, model, examples, config, layout)
    except InputError as error:
        return Found(family, refused=str(error))
    except Exception as error:
        return Found(family, wrong=(f"training: {type(error).__name__}: {error}",))
    how = "one record at a time" if layout.max_tokens == 1 else layout.name
    try:
        model = _fresh(family)
        wrong += _wrong_answers(model)
        choice, generate = chosen_decoder(model), _generate_differs(model)
    except Exception as error:
        return Found(family, how, layout.reason or "", wrong=(*wrong, f"answers: {type(error).__name__}: {error}"))
    reasons = (layout.reason or "", choice.name, choice.reason or "")
    return Found(family, how, *reasons, generate=generate, wrong=tuple(wrong))


def _fresh(family: str) -> PreTrainedModel:
    """The tiny model of `family` as often as wanted, always the same, without dropout."""
    model = tiny_family(family)
    set_dropout(model, 0.0)
    return model


def _wrong_losses(
    family: str, model: PreTrainedModel, examples: Sequence[Example], config: Any, layout: Layout
) -> Iterator[str]:
    plain = _fresh(family)
    if why_random(model, examples):  # no two losses in training mode are alike
        losses = [micro_batch_loss(model.eval(), examples, layout.name).total.item() / _weight(examples)]
        wanted = [sum(_loss_alone(plain, example) for example in examples).item() / _weight(examples)]
    else:
        events = Training(model, AdamW(model, config, torch.float32), examples, [], config, layout).run()
        losses = [event.loss for event in events if isinstance(event, Step)]
        wanted = list(_plain_losses(plain, examples, config))
    for step, (one, other) in enumerate(zip(losses, wanted, strict=True), start=1):
        if not abs(one - other) <= TOLERANCE:
            yield f"the loss of step {step} is {one:.6f} and {other:.6f} in the plain loop"


def _plain_losses(model: PreTrainedModel, examples: Sequence[Example], config: Any) -> Iterator[float]:
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
    for _ in range(2):
        loss = sum(_loss_alone(model, example) for example in examples) / _weight(examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _loss_alone(model: PreTrainedModel, example: Example) -> torch.Tensor:
    ids = torch.from_numpy(example.token_ids).long()
    logits = model(input_ids=ids[None, :-1], **_no_cache(model)).logits[0]
    return (F.cross_entropy(logits, ids[1:], reduction="none") * torch.from_numpy(example.weights[1:])).sum()


def _weight(examples: Sequence[Example]) -> float:
    return float(sum(example.weights.sum() for example in examples))


def _no_cache(model: PreTrainedModel) -> dict[str, bool]:
    return {"use_cache": False} if takes(model, "use_cache") else {}


def _wrong_answers(model: PreTrainedModel) -> Iterator[str]:
    greedy = GenerateConfig(temperature=0, max_new_tokens=NUM_NEW_TOKENS, batch_size=len(PROMPTS))
    given = dict(generate(model, PROMPTS, greedy, ()))
    for index, prompt in enumerate(PROMPTS):
        wanted, own = greedy_of_forward(model, prompt), list(given[index].token_ids)
        if wanted != own:
            yield f"prompt {index} is answered {own}, by the forward alone {wanted}"


def _generate_differs(model: PreTrainedModel) -> str:
    try:
        same = [greedy_of_transformers(model, prompt) == greedy_of_forward(model, prompt) for prompt in PROMPTS]
    except Exception as error:
        return f"fails ({type(error).__name__})"
    return "" if all(same) else f"answers {len(same) - sum(same)} of {len(same)} prompts otherwise than its forward"


def greedy_of_forward(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """The greedy answer by definition: all tokens so far through the model's forward, for each new one."""
    ids = torch.tensor([prompt])
    model.eval()
    with torch.no_grad():
        for _ in range(NUM_NEW_TOKENS):
            logits = model(input_ids=ids, **_no_cache(model)).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return [int(token) for token in ids[0, len(prompt) :]]


def greedy_of_transformers(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """The greedy answer of transformers' `generate` to one prompt, whatever the family's generation_config forces."""
    ids, model.generation_config = torch.tensor([prompt]), GenerationConfig()
    config = GenerationConfig(do_sample=False, max_new_tokens=NUM_NEW_TOKENS, pad_token_id=0, eos_token_id=10**6)
    given = model.eval().generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(token) for token in given[0, len(prompt) :]]


def main(names: Sequence[str]) -> int:
    """Examine the families and show or write what was found."""
    rows, unbuilt = [], {}
    for family in names or FAMILIES:
        try:
            rows.append(examine(family))
        except BuildError as error:
            unbuilt[family] = str(error)
            print(f"{family}: not built: {error}")
            continue
        print(rows[-1])
    return any(row.wrong for row in rows)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
