"""A run folder made by hand: every figure in it can be checked by eye, its curves look like a real run's."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TASKS = [
    (
        "Rewrite the sentence in the passive voice.",
        "The chef cooks the meal every day.",
        "The meal is cooked by the chef every day.",
    ),
    ("What is the capital of Portugal?", "", "The capital of Portugal is Lisbon."),
    ("Convert 45 kilometers to meters.", "", "45 kilometers is 45000 meters."),
    ("Name the author of 'Pride and Prejudice'.", "", "Jane Austen."),
    ("Correct the spelling of the word.", "ocassion", "The correct spelling is 'occasion'."),
    ("Give a synonym for 'bright'.", "", "A synonym for 'bright' is 'radiant'."),
]  # fmt: skip


def prompt_of(instruction: str, given: str) -> str:
    extra = f"\n\n### Input:\n{given}" if given else ""
    return f"{PREAMBLE}\n\n### Instruction:\n{instruction}{extra}\n\n### Response:\n"


class RunFolder:
    """Writes the files of a run folder; every part can be left out or replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write_config(self) -> RunFolder:
        config = {
            "data": {"split": "grouped", "train_on": "response", "max_length": 1024, "prompt_weight": None},
            "template": {"name": "alpaca"},
            "model": {"name_or_path": "smollm2-135m-instruct", "dtype": "auto", "device": "auto"},
            "train": {"batch_size": 8, "num_train_epochs": 2, "learning_rate": 5e-5, "weight_decay": 0.1, "seed": 0},
            "generate": {"max_new_tokens": 128, "temperature": 0.0},
            "report": {"confidence": 0.95, "num_resamples": 10000},
        }
        (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return self

    def write_environment(self, finished: str | None = "2026-11-22T06:04:41+00:00") -> RunFolder:
        return self.write_json(
            "environment.json",
            {
                "tuneful": "0.1.0",
                "python": "3.11.7",
                "platform": "Linux-6.1-x86_64",
                "processor": "AMD EPYC",
                "cores": 2,
                "memory_bytes": 16_777_216_000,
                "device": "cpu",
                "dtype": "bfloat16",
                "packages": {"torch": "2.13.0+cpu", "transformers": "5.23.0", "tokenizers": "0.22.1"},
                "command": "tuneful run starter",
                "started": "2026-11-22T06:00:00+00:00",
                "finished": finished,
                "model": {"name": "smollm2-135m-instruct", "num_parameters": 134_515_008, "sha256": "5a" * 32},
                "phase_seconds": {"answers_before": 41.2, "training": 201.0, "answers_after": 38.8},
            },
        )

    def write_audit(self) -> RunFolder:
        return self.write_json(
            "data.json",
            {
                "source": "starter",
                "sha256": "c3" * 32,
                "rows_read": 1300,
                "rows_used": 1298,
                "rows_refused": 2,
                "refused": [
                    {"source": "starter.json:17", "reason": "no output"},
                    {"source": "starter.json:912", "reason": "1,377 tokens, and data.max_length is 1,024"},
                ],
                "split": {"method": "grouped", "train": 1103, "validation": 65, "test": 130},
                "template": "alpaca",
                "train_on": "response",
                "max_length": 1024,
                "num_cut": 0,
                "train_tokens": {"record": 63000, "trained": 15000},
                "lengths": {
                    "prompt": {"mean": 44.1, "p50": 43, "p95": 60, "max": 103},
                    "response": {"mean": 13.6, "p50": 11, "p95": 33, "max": 88},
                    "record": {"mean": 57.7, "p50": 55, "p95": 84, "max": 160},
                },
                "length_histogram": {
                    "edges": [0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160],
                    "counts": [0, 0, 310, 512, 281, 121, 43, 21, 8, 2],
                },
                "shown": [shown_record(index) for index in range(3)],
                "findings": [
                    {
                        "name": "null_answers",
                        "severity": "finding",
                        "title": "Answers that are a missing value written out",
                        "count": 1204,
                        "cases": [{"source": f"starter.json:{line}", "text": "None <b>"} for line in (4, 9, 33)],
                        "why": "The model learns to answer with the word.",
                        "fix": "Write the answers, or delete the rows.",
                    },
                    {
                        "name": "boundary_tokenization",
                        "severity": "note",
                        "title": "Answers whose first token would merge",
                        "count": 1,
                        "cases": [{"source": "starter.json:7", "text": "..."}],
                        "why": "Not here.",
                        "fix": "Nothing.",
                    },
                ],
                "clusters": [{"sources": [f"starter.json:{line}" for line in range(20, 32)], "similarity": 0.832}],
                "languages": {"English": 1290, "German": 8},
                "first_words": {"what is": 700, "other": 598},
            },
        )

    def write_metrics(self, num_steps: int = 276, eval_every: int = 28) -> RunFolder:
        chance = random.Random(0)
        lines = [self.evaluation(0)]
        for step in range(1, num_steps + 1):
            lines.append(
                {
                    "step": step,
                    "epoch": 2 * step / num_steps,
                    "loss": 0.9 + 1.5 * math.exp(-6 * step / num_steps) + chance.gauss(0, 0.12),
                    "learning_rate": 5e-5 * min(1, step / 8) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)),
                    "grad_norm": 1.2 + 3 * math.exp(-9 * step / num_steps) + abs(chance.gauss(0, 0.3)),
                    "target_tokens": 108,
                    "record_tokens": 460,
                    "computed_tokens": 276,
                    "step_seconds": 0.7 + abs(chance.gauss(0, 0.05)),
                }
            )
            if step % eval_every == 0 or step == num_steps:
                lines.append(self.evaluation(step / num_steps, step))
        return self.write_lines("metrics.jsonl", lines)

    @staticmethod
    def evaluation(share: float, step: int = 0) -> dict[str, Any]:
        said = (
            "The meal is cooked by the chef every day."
            if share > 0.3
            else "The chef cooks the meal every day, and " * 4
        )
        return {
            "step": step,
            "validation_loss": 1.1 + 1.2 * math.exp(-7 * share) + 0.22 * max(0.0, share - 0.6),
            "sample": {"source": "starter.json:3", "prompt": prompt_of(*TASKS[0][:2]), "text": said},
        }

    def write_answers(self, num_items: int = 130, which: tuple[str, ...] = ("base", "tuned")) -> RunFolder:
        records: list[Any] = []
        answers: dict[str, list[Any]] = {name: [] for name in ("base", "tuned")}
        for index in range(num_items):
            instruction, given, wanted = TASKS[index % len(TASKS)]
            source = f"starter.json:{index + 1}"
            records.append({"instruction": instruction, "input": given, "output": wanted, "source": source})
            prompt = prompt_of(instruction, given)
            ramble = f"{instruction} This is a question that many people ask. {given} " * 2
            tuned = wanted if index % 3 else wanted.replace("is", "was")
            answers["base"].append(answer(source, prompt, ramble.strip(), "length", 128))
            answers["tuned"].append(answer(source, prompt, tuned, "stop", 12))
        self.write_lines("data/test.jsonl", records)
        for name in which:
            self.write_lines(f"answers/{name}.jsonl", answers[name])
        return self

    def write_comparison(self, num_items: int = 130) -> RunFolder:
        chance = random.Random(1)
        items = []
        for index in range(num_items):
            before = round(chance.uniform(0.05, 0.4), 2)
            after = before if index % 7 == 6 else round(min(1.0, max(0.0, before + chance.gauss(0.3, 0.25))), 2)
            items.append(
                {
                    "source": f"starter.json:{index + 1}",
                    "reference": TASKS[index % len(TASKS)][2],
                    "base": scores(before, exact=False),
                    "tuned": scores(after, exact=index % 3 > 0 and after > 0.4),
                }
            )
        return self.write_json(
            "comparison.json",
            {
                "num_items": num_items,
                "confidence": 0.95,
                "num_resamples": 10000,
                "seed": 0,
                "caution": None,
                "sentence": "The tuned model's answers are better on ROUGE-L: 0.210 before, 0.480 after, "
                "a difference of +0.270 (95 % interval +0.220 to +0.320) on 130 test items. The tuned model is worse on "
                "general text loss.",
                "metrics": [
                    metric("exact_match", "Exact match", 0.0, 0.231, 0.16, 0.31, "better", "share of items"),
                    metric("token_f1", "Token F1", 0.24, 0.51, 0.21, 0.33, "better", "0 to 1"),
                    metric("rouge_l", "ROUGE-L", 0.21, 0.48, 0.22, 0.32, "better", "0 to 1"),
                    metric("chrf", "chrF", 0.33, 0.35, -0.013, 0.054, "cannot tell", "0 to 1"),
                    metric("ended", "Ended by itself", 0.62, 0.99, 0.29, 0.45, "better", "share of items"),
                    metric("num_words", "Length", 48.0, 11.2, -41.0, -32.0, "changed", "words", None),
                    metric("reference_nll", "Reference loss", 2.31, 1.42, -1.02, -0.76, "better", "nats per token", False),
                    metric("forgotten", "General text loss", 3.12, 3.16, 0.011, 0.071, "worse", "nats per token", False),
                ],
                "items": items,
            },
        )  # fmt: skip

    def write_all(self, num_steps: int = 276, num_items: int = 130) -> RunFolder:
        self.write_config().write_environment().write_audit().write_metrics(num_steps, max(1, num_steps // 10))
        return self.write_answers(num_items).write_comparison(num_items)

    def write_json(self, name: str, document: object) -> RunFolder:
        (self.path / name).write_text(json.dumps(document), encoding="utf-8")
        return self

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> RunFolder:
        where = self.path / name
        where.parent.mkdir(exist_ok=True)
        where.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return self


def answer(source: str, prompt: str, text: str, finish_reason: str, num_tokens: int) -> dict[str, Any]:
    return {"source": source, "prompt": prompt, "text": text, "finish_reason": finish_reason, "num_tokens": num_tokens}


def scores(value: float, exact: bool) -> dict[str, float]:
    return {
        "exact_match": int(exact),
        "token_f1": value,
        "rouge_l": value,
        "chrf": round(value * 0.9, 3),
        "ended": True,
    }


def metric(
    name: str,
    label: str,
    base: float,
    tuned: float,
    low: float,
    high: float,
    verdict: str,
    unit: str = "",
    higher: bool | None = True,
) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "unit": unit,
        "higher_is_better": higher,
        "base": base,
        "tuned": tuned,
        "difference": round(tuned - base, 6),
        "low": low,
        "high": high,
        "wins": 90,
        "losses": 20,
        "ties": 20,
        "verdict": verdict,
    }


def shown_record(index: int) -> dict[str, Any]:
    instruction, given, wanted = TASKS[index]
    text = prompt_of(instruction, given)
    context = [{"text": piece, "weight": 0.0, "special": False} for piece in pieces(text)]
    trained = [{"text": piece, "weight": 1.0 if index < 2 else 0.5, "special": False} for piece in pieces(wanted)]
    return {
        "source": f"starter.json:{index + 12}",
        "tokens": [*context, *trained, {"text": "<|im_end|>", "weight": 1.0, "special": True}],
    }


def pieces(text: str) -> list[str]:
    """Cuts text roughly as a tokenizer does: words with the space before them, line ends alone."""
    found = [""]
    for character in text:
        if character in " \n." or found[-1] in ("\n", "."):
            found.append(character)
        else:
            found[-1] += character
    return [piece for piece in found if piece]


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    """An empty run folder with its `config.yaml`."""
    return RunFolder(tmp_path / "run").write_config()


@pytest.fixture(scope="session")
def run_folder_type() -> type[RunFolder]:
    """`RunFolder` itself, for fixtures of a wider scope."""
    return RunFolder
