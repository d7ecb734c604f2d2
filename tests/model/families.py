"""What Tuneful does with every causal family of the installed transformers.

    python -m tests.model.families             examines all of them and writes docs/families.md
    python -m tests.model.families mamba opt   examines these, and prints what it finds

Each family is built tiny and random (`tests/doubles/families.py`). Two optimizer steps in the layout that is chosen for it must
have the losses of a plain loop, in which transformers computes each record alone and torch's AdamW updates. The greedy answers to
four prompts of unlike length in one batch must be those that the model's forward gives to each alone, without a cache; whether
transformers' `generate` gives the same is noted. Two steps of LoRA are compared in the same way, and what they learnt is saved,
and merged into the base as it is read from a folder. Exit code 1 where a family crashes or is wrong.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.doubles.engine import random_records, train_config
from tests.doubles.families import FAMILIES, BuildError, tiny_family
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from tuneful.config import GenerateConfig, LoraConfig
from tuneful.errors import InputError
from tuneful.infer.decode import chosen_decoder
from tuneful.infer.generate import generate
from tuneful.model.checks import quiet
from tuneful.model.forward import own_attention, takes
from tuneful.model.load import folder_model
from tuneful.model.logits import largest_difference, prompt_logits
from tuneful.model.lora import adapted_layers, add_adapter, merge_adapter, save_adapter
from tuneful.runs.schema import Layout, Step
from tuneful.train.layout import choose_layout, set_dropout, why_random
from tuneful.train.loop import Training
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.types import Example

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
CONFIG = train_config(max_steps=2, batch_size=8, learning_rate=1e-3, keep="last")
TOLERANCE = 1e-3
"""Largest difference (nats) of the loss of a step from that of the plain loop."""
NUM_NEW_TOKENS = 10
LORA = LoraConfig(r=4, alpha=8)
MERGED_TOLERANCE = 1e-4
"""Largest difference of a logit of the saved and merged model from the trained one's, as a share of the largest logit."""
PROMPTS = ([3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [2, 7], [3, 1, 4, 1, 8, 2, 8])


@dataclass(frozen=True)
class Found:
    """A family: how its records are laid out and its prompts are answered, with the reasons; or why it is refused.

    `lora` is the layout of LoRA, `refused` where there is none; `adapted` are the layers that it stands beside. `generate` says
    where transformers' `generate` gives other answers than its forward. `wrong` lists what is not as it must be: nothing, for
    every family.
    """

    family: str
    layout: str = ""
    layout_reason: str = ""
    answers: str = ""
    answers_reason: str = ""
    lora: str = ""
    lora_reason: str = ""
    adapted: tuple[str, ...] = ()
    refused: str = ""
    generate: str = ""
    wrong: tuple[str, ...] = ()


def examine(family: str) -> Found:
    """Train and ask the tiny model of `family`. Raises BuildError where there is none."""
    model, examples = _fresh(family), random_records(8)
    wrong: list[str] = []
    try:
        layout = choose_layout(model, examples, CONFIG, torch.float32)
        wrong += _wrong_losses(model, _fresh(family), examples, layout)
    except InputError as error:
        return Found(family, refused=_said(error))
    except Exception as error:
        return Found(family, wrong=(f"training: {type(error).__name__}: {error}",))
    how = _in_words(layout)
    try:
        model = _fresh(family)
        wrong += _wrong_answers(model)
        choice, generate = chosen_decoder(model), _generate_differs(model)
    except Exception as error:
        return Found(family, how, layout.reason or "", wrong=(*wrong, f"answers: {type(error).__name__}: {error}"))
    reasons = (layout.reason or "", choice.name, choice.reason or "")
    lora, lora_reason, adapted, wrong_lora = _with_lora(family, examples)
    return Found(family, how, *reasons, lora, lora_reason, adapted, generate=generate, wrong=(*wrong, *wrong_lora))


def _said(error: InputError) -> str:
    """The message, in which a file of a temporary folder is called by its name alone."""
    return re.sub(r"\S*/(?=\w+\.json)", "", str(error))


def _in_words(layout: Layout) -> str:
    return "one record at a time" if layout.max_tokens == 1 else layout.name


def _fresh(family: str) -> PreTrainedModel:
    """The tiny model of `family` as often as wanted, always the same, without dropout."""
    model = tiny_family(family)
    set_dropout(model, 0.0)
    return model


def _with_lora(family: str, examples: Sequence[Example]) -> tuple[str, str, tuple[str, ...], list[str]]:
    """The layout of LoRA, its reason, the layers that have an adapter, and what is wrong with it."""
    try:
        model, adapter = _adapted(family)
    except InputError as error:
        return "refused", _said(error), (), []
    except Exception as error:
        return "", "", (), [f"adapter: {type(error).__name__}: {error}"]
    targets = tuple(sorted(adapted_layers(model)))
    try:
        layout = choose_layout(model, examples, CONFIG, torch.float32)
        wrong = list(_wrong_losses(model, _adapted(family)[0], examples, layout))
        wrong += _wrong_when_merged(family, model, adapter)
    except InputError as error:
        return "refused", _said(error), targets, []
    except Exception as error:
        return "", "", targets, [f"LoRA: {type(error).__name__}: {error}"]
    return _in_words(layout), layout.reason or "", targets, [f"LoRA: {one}" for one in wrong]


def _adapted(family: str) -> tuple[PreTrainedModel, Any]:
    """The tiny model with an adapter that changes its answers, always the same, and the adapter."""
    model = _fresh(family)
    torch.manual_seed(0)
    adapter = add_adapter(model, LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or ".lora_embedding_B" in name:
                parameter.normal_(std=0.1)
    return model, adapter


def _wrong_when_merged(family: str, model: PreTrainedModel, adapter: Any) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as place, quiet():
        base, saved = Path(place, "base"), Path(place, "adapter")
        _fresh(family).save_pretrained(base)
        save_adapter(adapter, saved, str(base))
        read = folder_model(base)
        set_dropout(read, 0.0)
        merged, _ = merge_adapter(read, saved, ())
    model.set_attn_implementation(own_attention(model))
    for index, prompt in enumerate(PROMPTS):
        difference, scale = largest_difference(*(prompt_logits(one.eval(), prompt) for one in (merged, model)))
        if not difference <= MERGED_TOLERANCE * scale:
            yield f"merged, its logits of prompt {index} differ by {difference / scale:.2g} of the largest"


def _wrong_losses(
    model: PreTrainedModel, plain: PreTrainedModel, examples: Sequence[Example], layout: Layout
) -> Iterator[str]:
    if why_random(model, examples):  # no two losses in training mode are alike
        losses = [micro_batch_loss(model.eval(), examples, layout.name).total.item() / _weight(examples)]
        wanted = [_loss(plain, examples).item()]
    else:
        events = Training(model, AdamW(model, CONFIG, torch.float32), examples, [], CONFIG, layout).run()
        losses = [event.loss for event in events if isinstance(event, Step)]
        wanted = list(_plain_losses(plain, examples))
    for step, (one, other) in enumerate(zip(losses, wanted, strict=True), start=1):
        if not abs(one - other) <= TOLERANCE:
            yield f"the loss of step {step} is {one:.6f} and {other:.6f} in the plain loop"


def _plain_losses(model: PreTrainedModel, examples: Sequence[Example]) -> Iterator[float]:
    config = CONFIG
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
    for _ in range(2):
        loss = _loss(model, examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _loss(model: PreTrainedModel, examples: Sequence[Example]) -> torch.Tensor:
    return torch.stack([_loss_alone(model, example) for example in examples]).sum() / _weight(examples)


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


# The page

_HEAD = """# Model families

<!-- made by `python -m tests.model.families` -->

Which ways Tuneful takes with each family of causal models in transformers. The ways differ in speed and in nothing else: before
the first step and before the first answer a few tokens are computed both in the way that is to be taken and alone, and where they
differ the next slower way is tried. What was taken is said, with the reason, by whatever loads a model.

| records | |
|---|---|
| trie | what records share is computed once |
| padded | a padded batch, in transformers' own attention |
| refused | of LoRA: there is no layer for it |
| one record at a time | where records beside one another change what the model computes |

| prompts | |
|---|---|
| shared | prompts share their prefill, in our own cache; a row that ends makes room for the next |
| padded | a padded batch in transformers' cache; a row that ends leaves it |
| held | the same, but rows stay until all have ended: the family's cache lets none go |
| single | one prompt at a time, with what the family keeps between two tokens |
| recompute | one prompt at a time, without a cache: every token so far for each new one |

On a GPU prompts are answered as `padded` or in a slower way. Dropout, and whatever else falls at random in training, means the
padded batch; `model.dropout=0` takes dropout away.
"""
_METHOD = """
## How this was found

Each family was built from its own configuration class with sizes of 8 to 48, random weights and no dropout. Windows, chunks and
compressed stretches are 4 to 8 tokens long, so that they show. Two optimizer steps in the layout that was taken have the losses
of a plain loop within {tolerance} nats, in which transformers computes each record alone and torch's AdamW updates (where random
numbers fall in training: the losses of one forward in evaluation mode). The greedy answers to {prompts} prompts of unlike length
in one batch are token for token those of the model's forward over each prompt alone. A real model of a family may have other
layers than its default configuration (windows, experts, rotary positions): what is taken for it is decided on it.

LoRA stands beside all linear layers but the output head (`lora.target_modules: all-linear`), with numbers that change the
answers. Its losses are compared in the same way. It is saved, and merged into its base as that is read from a folder: the logits
are those of base and adapter within {merged} of the largest. Where `experts` stand among the layers, peft has put the pairs
beside the experts' own tensors, in place of the dense layers that are called as those of an expert.

`tests/model/test_families.py` holds a dozen of them to this page.
"""


def page(rows: Sequence[Found], unbuilt: Mapping[str, str]) -> str:
    """docs/families.md."""
    trained = [row for row in rows if not row.refused]
    layouts, answers, lora = (Counter(getattr(row, name) for row in trained) for name in ("layout", "answers", "lora"))
    lines = [
        _HEAD,
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(trained)} families. Records: "
        f"{_counted(layouts)}. Prompts: {_counted(answers)}. Records under LoRA: {_counted(lora)}. {_verdict(rows)}",
        "",
        "| family | records | prompts | LoRA | beside | why |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{row.family}` | {row.layout} | {row.answers} | {row.lora} | {', '.join(row.adapted)} | {_cell(_why(row))} |"
            for row in trained
        ),
        "",
        "## Refused",
        "",
        "These are not trained; the message names the family and the reason.",
        "",
        "| family | why |",
        "|---|---|",
        *(f"| `{row.family}` | {_cell(row.refused)} |" for row in rows if row.refused),
        "",
        "## Where transformers' `generate` answers otherwise",
        "",
        "Answers here are those of the forward that was trained. In these families transformers' own `generate` gives others, a",
        "prompt at a time and without Tuneful: it numbers positions or keeps its cache otherwise than the forward does.",
        "",
        "| family | its `generate` |",
        "|---|---|",
        *(f"| `{row.family}` | {_cell(row.generate)} |" for row in rows if row.generate),
        "",
        "## Not examined",
        "",
        "No small model could be built of these: " + ", ".join(f"`{family}`" for family in unbuilt) + ".",
        _METHOD.format(tolerance=TOLERANCE, prompts=len(PROMPTS), merged=MERGED_TOLERANCE),
    ]
    return "\n".join(lines)


def _verdict(rows: Sequence[Found]) -> str:
    wrong = [f"`{row.family}` ({'; '.join(row.wrong)})" for row in rows if row.wrong]
    return f"Wrong: {', '.join(wrong)}." if wrong else "None crashes, and none answers wrongly."


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _why(row: Found) -> str:
    reasons = [row.answers_reason]
    if not row.answers_reason.startswith(row.layout_reason):
        reasons.insert(0, row.layout_reason)
    if row.lora != row.layout:
        reasons.append(f"LoRA: {row.lora_reason}")
    return "; ".join(filter(None, reasons))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def page_rows(text: str) -> dict[str, tuple[str, str, str]]:
    """The layout, the way of answering and the layout under LoRA of each family that the page lists."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (\w+) \| ([^|]+) \|", text, re.MULTILINE)
    return {family: (layout, answers, lora) for family, layout, answers, lora in rows}


def page_version(text: str) -> str:
    """The version of transformers that the page was made with."""
    return text.partition("\ntransformers ")[2].partition(",")[0]


def main(names: Sequence[str]) -> int:
    """Examine the families, and print what was found or write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows, unbuilt = [], {}
    for family in names or FAMILIES:
        try:
            rows.append(examine(family))
        except BuildError as error:
            unbuilt[family] = str(error)
            print(f"{family}: not built: {error}", flush=True)
            continue
        print(rows[-1], flush=True)
    if not names:
        PAGE.write_text(page(rows, unbuilt), encoding="utf-8")
    return any(row.wrong for row in rows)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
