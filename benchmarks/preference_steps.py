"""Whole steps of learning from preferences beside TRL's trainers: the weights after five steps. Runs in TRL's environment.

    PYTHONPATH=src .bench/venv-trl/bin/python benchmarks/preference_steps.py

A tiny random Llama in float32, records of random words which TRL's trainers encode themselves, four to a step, in the same order.
Compared are the loss of each step and every weight at the end. Written to results/preference_steps-DATE.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from train_peers.adapter import read_into, write_adapter
from tuneful.batch.order import all_steps
from tuneful.config import Config
from tuneful.model.load import load_model
from tuneful.runs.method import begin_method
from tuneful.runs.preference import make_objective
from tuneful.runs.schema import Layout, Step
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW
from tuneful.train.preference import KtoObjective, PairObjective
from tuneful.train.reference import largest_difference, reference_logps
from tuneful.types import Example

RESULTS = Path(__file__).parent / "results"
NUM_STEPS, BATCH_SIZE, VOCABULARY, END, RANK = 5, 4, 40, 0, 4
LEARNING_RATE, EPSILON = 1e-3, 1e-6
"""At torch's epsilon of 1e-8 AdamW's first step moves a weight whose gradient is only rounding as far as any other."""
TRIE = Layout("trie", 1 << 20)


def words(ids: Any) -> str:
    return " ".join(f"w{int(one)}" for one in ids)


def make_tokenizer() -> PreTrainedTokenizerFast:
    names = ["</s>", *(f"w{index}" for index in range(1, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", padding_side="left")


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_rows(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) without their end token; some responses open alike, some prompts repeat."""
    rng = np.random.default_rng(5)
    rows = []
    for index in range(count):
        prompt = [1, 2, 3, *rng.integers(1, 5, rng.integers(1, 4))]
        opening = list(rng.integers(1, VOCABULARY, rng.integers(0, 3))) if index % 2 else []
        sides = [[*opening, *rng.integers(1, VOCABULARY, rng.integers(1, 9))] for _ in range(2)]
        chosen, rejected = ([int(one) for one in side] for side in sides)
        rows.append(([int(one) for one in prompt], chosen, rejected))
    return rows


def example(prompt: list[int], response: list[int]) -> Example:
    ids = np.array([*prompt, *response, END], dtype=np.int32)
    return Example(ids, (np.arange(len(ids)) >= len(prompt)).astype(np.float32), len(prompt), "row")


def own_steps(folder: Path, adapter: Path | None, config: Config, records: list[Example]) -> tuple[list[float], Any]:
    """Losses of the steps, and the trained model."""
    model = load_model(str(folder)).model
    begin_method(model, config, torch.device("cpu"))
    if adapter is not None:
        read_into(model, adapter)
    objective = make_objective(config)
    if isinstance(objective, (PairObjective, KtoObjective)) and objective.uses_reference:
        known: dict[str, float] = {}
        order = list(all_steps(len(records), BATCH_SIZE, config.train.seed, 1, NUM_STEPS))
        steps = [[records[index] for index in indices] for indices in order]
        list(reference_logps(model, objective, steps, TRIE, known))
        objective = replace(objective, reference=known)
        assert largest_difference(model, objective, steps[0], TRIE) == 0
    optimizer = AdamW(model, config.train, torch.float32)
    training = Training(model, optimizer, records, [], config.train, TRIE, objective=objective)
    losses = [event.loss for event in training.run() if isinstance(event, Step)]
    optimizer.masters_to_model()
    return losses, model


def trl_steps(
    make: Callable[..., Any], settings: Any, folder: Path, adapter: Path | None, rows: list[dict[str, Any]]
) -> tuple[list[float], Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    losses: list[float] = []

    trainer = make(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = watched
    trainer.train()
    return losses, trainer.model


def arguments(scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": NUM_STEPS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_epsilon": EPSILON,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": 64,
    }


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Trained weights by their names in the model, without those of peft's wrappers or of a second adapter."""
    return {
        name.removeprefix("base_model.model."): parameter.detach()
        for name, parameter in model.named_parameters()
        if ".ref." not in name
    }


def cases(scratch: Path) -> list[tuple[str, dict[str, Any], str, Any, Any]]:
    """(name, sections of our configuration, method, TRL's trainer, its settings)"""
    given = arguments(scratch)
    return [
        ("dpo, full", {"objective": "dpo"}, "full", DPOTrainer, DPOConfig(**given)),
        ("dpo, lora", {"objective": "dpo"}, "lora", DPOTrainer, DPOConfig(**given)),
        (
            "dpo sigmoid + 0.2 sft, full",
            {"objective": "dpo", "preference": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}},
            "full",
            DPOTrainer,
            DPOConfig(**given, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]),
        ),
        ("orpo, full", {"objective": "orpo"}, "full", ORPOTrainer, ORPOConfig(**given)),
        (
            "simpo, full",
            {"objective": "simpo"},
            "full",
            CPOTrainer,
            CPOConfig(**given, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.5),
        ),
        ("cpo, full", {"objective": "cpo"}, "full", CPOTrainer, CPOConfig(**given)),
        ("kto, full", {"objective": "kto"}, "full", KTOTrainer, KTOConfig(**given)),
    ]


def run(scratch: Path) -> dict[str, Any]:
    folder, found = scratch / "model", {}
    make_model(folder)
    adapter = write_adapter(folder, scratch / "adapter", RANK)
    rows = make_rows(NUM_STEPS * BATCH_SIZE)
    order = [index for indices in all_steps(len(rows), BATCH_SIZE, 0, 1, NUM_STEPS) for index in indices]
    for name, sections, method, make, settings in cases(scratch / "trl"):
        of_labels = sections["objective"] == "kto"
        records, theirs = [], []
        for index, (prompt, chosen, rejected) in enumerate(rows):
            wanted = index % 2 == 0
            if of_labels:
                response = chosen if wanted else rejected
                records.append(replace(example(prompt, response), label=wanted))
                theirs.append({"prompt": words(prompt), "completion": f" {words(response)}", "label": wanted})
            else:
                records.append(replace(example(prompt, chosen), rejected=example(prompt, rejected)))
                sides = {"chosen": f" {words(chosen)}", "rejected": f" {words(rejected)}"}
                theirs.append({"prompt": words(prompt), **sides})
        config = Config(
            train={
                "objective": sections["objective"],
                "method": method,
                "batch_size": BATCH_SIZE,
                "max_steps": NUM_STEPS,
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "adam_epsilon": EPSILON,
                "keep": "last",
            },
            preference=sections.get("preference", {}),
            **({"lora": {"r": RANK, "alpha": 32}} if method == "lora" else {}),
        )
        own_adapter = adapter if method == "lora" else None
        losses, model = own_steps(folder, own_adapter, config, records)
        trl_losses, trl_model = trl_steps(make, settings, folder, own_adapter, [theirs[index] for index in order])
        weights, trl_weights = weights_of(model), weights_of(trl_model)
        begun = weights_of(load_model(str(folder)).model)
        assert weights.keys() == trl_weights.keys(), sorted(weights.keys() ^ trl_weights.keys())[:4]
        found[name] = {
            "largest_weight_difference": max(float((weights[one] - trl_weights[one]).abs().max()) for one in weights),
            "largest_loss_difference": max(abs(a - b) for a, b in zip(losses, trl_losses, strict=True)),
            "losses": losses,
            "losses_of_trl": trl_losses,
            "largest_move": max(float((weights[one] - begun[one]).abs().max()) for one in weights if one in begun),
        }
        print(f"{name:30s} weights {found[name]['largest_weight_difference']:.1e}  ", end="")
        print(f"losses {found[name]['largest_loss_difference']:.1e}  {losses[0]:.6f} to {losses[-1]:.6f}")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        found = run(Path(scratch))
    document = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "trl": trl.__version__,
        "torch": torch.__version__,
        "steps": NUM_STEPS,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "adam_epsilon": EPSILON,
        "objectives": found,
    }
    output = RESULTS / f"preference_steps-{document['date'][:10]}.json"
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
