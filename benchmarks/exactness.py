"""Is a whole run of the trie engine the padded run? Both train the built-in model in float32; their losses are compared.

    python benchmarks/exactness.py [--steps 50] [--batch-size 8] [--output FILE.json]

The oracle is the classical loop, written out here with nothing of the engine in it: a padded batch, transformers' own
attention, torch's cross-entropy, clipping and AdamW. Both see the same records of the starter set in the same order.
The loss of each step must differ by at most 1e-4 nats: exit code 1 beyond that. Losses are taken before each update, so
the comparison of step n covers the n - 1 updates before it. About three seconds a step on two cores, twice.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuneful.batch.collate import pad_examples
from tuneful.batch.order import all_steps
from tuneful.config import Config, TrainConfig
from tuneful.data.read import STARTER, read_data
from tuneful.encoding.encode import TextEncoder
from tuneful.encoding.prepare import make_encoder, prepare_data
from tuneful.encoding.template import find_template
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import load_model
from tuneful.runs.schema import Layout, Step
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW, learning_rate
from tuneful.types import Example

TOLERANCE = 1e-4
ENGINE = Layout("trie", 4096)


@dataclass(frozen=True)
class Result:
    """The losses of both runs, a step each, and their largest difference (nats)."""

    trie: list[float]
    padded: list[float]
    largest_difference: float
    seconds: dict[str, float]


def trie_losses(model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig) -> Iterator[float]:
    """The loss of each step of the engine's own run."""
    optimizer = AdamW(model, config, torch.float32)
    for event in Training(model, optimizer, examples, [], config, ENGINE).run():
        if isinstance(event, Step):
            yield event.loss


def padded_losses(model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig) -> Iterator[float]:
    """The loss of each step of the classical loop."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.adam_epsilon, foreach=False, fused=False)
    order = list(all_steps(len(examples), config.batch_size, config.seed, config.num_train_epochs, config.max_steps))
    for step, indices in enumerate(order, start=1):
        inputs, targets, weights = pad_examples([examples[index] for index in indices], pad_token_id=0)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(order))
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def compare(
    make_model: Callable[[], PreTrainedModel],
    examples: Sequence[Example],
    config: TrainConfig,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run both, one after the other, each from weights of `make_model`."""
    losses: dict[str, list[float]] = {"trie": [], "padded": []}
    seconds = {}
    for name, run in (("trie", trie_losses), ("padded", padded_losses)):
        start = time.perf_counter()
        for loss in run(make_model(), examples, config):
            losses[name].append(loss)
            tell(f"{name:<7} step {len(losses[name]):>3}   loss {loss:.6f}")
        seconds[name] = round(time.perf_counter() - start, 1)
        gc.collect()  # the first model and its moments go before the second comes
    difference = max(abs(one - other) for one, other in zip(losses["trie"], losses["padded"], strict=True))
    return Result(losses["trie"], losses["padded"], difference, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of each run")
    parser.add_argument("--batch-size", type=int, default=8, help="records in a step")
    parser.add_argument("--model", default=BUILTIN, help="a folder, a Hub id, or the built-in model")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()

    config = Config(train=TrainConfig(max_steps=arguments.steps, batch_size=arguments.batch_size, eval_steps=10**6))
    tokenizer = load_model(arguments.model).tokenizer
    encoder = make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)
    examples = prepare_data(read_data(STARTER), encoder, config).train.examples
    result = compare(
        lambda: load_model(arguments.model).model.float(), examples, config.train, lambda line: print(line, flush=True)
    )
    exact = result.largest_difference <= TOLERANCE
    print(
        f"largest difference of a step's loss: {result.largest_difference:.3g} over {arguments.steps} steps "
        f"({'within' if exact else 'beyond'} {TOLERANCE:g})"
    )
    if arguments.output:
        figures = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": arguments.model,
            "batch_size": arguments.batch_size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tolerance": TOLERANCE,
            **asdict(result),
        }
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
