"""lm-evaluation-harness against `tuneful evaluate --tests`: the same multiple choice, the same log-likelihoods and accuracies?

    python -m venv lm-eval && lm-eval/bin/pip install 'lm-eval[api]'
    python benchmarks/lm_eval_choices.py --lm-eval lm-eval/bin/lm_eval [--model M] [--output FILE.json]

The harness asks `tuneful serve`, a process of its own, through the completions of OpenAI's protocol; the questions are made here.
Four ways of asking: raw, and under the tokenizer's own chat template; with no item before a question, and with two. Where a
prompt ends in white space, as "assistant" and a line break do, the harness counts that to every choice: it scores the line break,
too, which is the same number for all choices of an item. So under a template the choices' distances from their mean are
compared. Both sides compute in float32, which is 2e-5 off transformers in float64 here; with --float64 in that, and what is left
is no rounding. Exits with 1 where a log-likelihood differs by more than 1e-6 of itself, and by more than 5e-5 (in float64: 1e-6),
or an item's acc, acc_norm or acc_bytes is another.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import tuneful
from lm_eval_harness import IN_FLOAT64, arguments_of, keep, samples_of, served, write_rows
from tuneful.runs.schema import ChoiceScore

ABSOLUTE, EXACT, RELATIVE = 5e-5, 1e-6, 1e-6
NUM_FEWSHOT = 2
METRICS = ("acc", "acc_norm", "acc_bytes")
CAPITALS = {
    "Spain": ("Madrid", "Lisbon", "A city in the south"),
    "Chile": ("Santiago de Chile", "Lima", "Quito"),
    "France": ("Paris", "Lyon, on the Rhône", "Rome"),
    "Brazil": ("Brasília", "São Paulo", "Rio de Janeiro"),
    "Norway": ("Oslo", "Bergen", "Stockholm"),
    "Japan": ("Tokyo (東京)", "Kyoto", "Osaka"),
    "Peru": ("Lima", "Cusco", "La Paz"),
    "Egypt": ("Cairo", "Alexandria", "Khartoum"),
    "Kenya": ("Nairobi", "Mombasa", "Kampala"),
    "Poland": ("Warsaw", "Kraków", "Vilnius"),
}
TASK = """task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {test}
    dev: {dev}
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
doc_to_text: question
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""


def rows() -> list[dict[str, Any]]:
    """Questions whose right choice stands first, second, third in turn."""
    found = []
    for number, (country, choices) in enumerate(CAPITALS.items()):
        turned = [choices[(place - number) % 3] for place in range(3)]
        found.append(
            {"question": f"The capital of {country} is", "choices": turned, "answer": turned.index(choices[0])}
        )
    return found


def asked_by_harness(
    lm_eval: Path, url: str, folder: Path, model: str, *, chat: bool, num_fewshot: int
) -> list[dict[str, Any]]:
    """The samples that the harness wrote, in the order of the file."""
    items = rows()
    dev = write_rows(folder / "dev.jsonl", items[:num_fewshot] or items)
    task = TASK.format(test=write_rows(folder / "test.jsonl", items[num_fewshot:]), dev=dev)
    (folder / "capitals.yaml").write_text(task)
    named = (
        f"model={model},num_concurrent=1,max_retries=1,tokenizer={folder / 'tokenizer'},base_url={url}/v1/completions"
    )
    more = ["--num_fewshot", str(num_fewshot), *(["--apply_chat_template"] if chat else [])]
    return samples_of(lm_eval, "local-completions", "capitals", named, folder, *more)["capitals"]


def asked_by_us(folder: Path, model: str, *, chat: bool, num_fewshot: int) -> list[ChoiceScore]:
    """The scores of `tuneful evaluate --tests`."""
    settings = ["model.dtype=float32", "template.name=tokenizer", f"evaluation.num_fewshot={num_fewshot}"]
    file = write_rows(folder / "ours.jsonl", rows())
    settings += [f"evaluation.tests={json.dumps([str(file)])}", *([] if chat else ["evaluation.tests_prompt=raw"])]
    found = tuneful.evaluate_tests(model, config=tuneful.load_config(None, settings)).scores["model"]["ours"]
    return [one for one in found if isinstance(one, ChoiceScore)]


def compared(
    samples: list[dict[str, Any]], scores: list[ChoiceScore], way: str, absolute: float
) -> list[dict[str, Any]]:
    """Each item of one way of asking: both sides' log-likelihoods and metrics, and whether they are the same."""
    found = []
    for sample, score in zip(samples, scores, strict=True):
        metrics = {name: (float(sample[name]), float(bool(getattr(score, name)))) for name in METRICS}
        told = [float(one[0][0]) for one in sample["resps"]]
        item = {"way": way, "harness": told, "ours": list(score.loglikelihoods), "metrics": metrics}
        found.append(judged(item, absolute))
    return found


def judged(item: dict[str, Any], absolute: float) -> dict[str, Any]:
    """The item with how far the sides are apart, what the harness counts to every choice left out, and whether that is right."""
    differences = [told - ours for told, ours in zip(item["harness"], item["ours"], strict=True)]
    common = sum(differences) / len(differences) if item["way"].startswith("template") else 0.0
    apart = [abs(one - common) for one in differences]
    close = all(one <= max(absolute, RELATIVE * abs(ours)) for one, ours in zip(apart, item["ours"], strict=True))
    same = all(told == ours for told, ours in item["metrics"].values())
    return {**item, "common": common, "apart": max(apart), "is_right": close and same and common <= absolute}


def main() -> int:
    """The command line."""
    parser = arguments_of(__doc__)
    parser.add_argument(
        "--float64", action="store_true", help="both sides compute in float64: what is left is no rounding"
    )
    arguments = parser.parse_args()
    if arguments.float64:
        exec(IN_FLOAT64, {})
    from tuneful.model.load import load_tokenizer, resolve_model

    items: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load_tokenizer(resolve_model(arguments.model)).save_pretrained(folder / "tokenizer")
        with served(arguments.model, float64=arguments.float64) as url:
            for chat in (False, True):
                for num_fewshot in (0, NUM_FEWSHOT):
                    way = f"{'template' if chat else 'raw'}, {num_fewshot} before"
                    told = asked_by_harness(
                        arguments.lm_eval, url, folder, arguments.model, chat=chat, num_fewshot=num_fewshot
                    )
                    ours = asked_by_us(folder, arguments.model, chat=chat, num_fewshot=num_fewshot)
                    items += compared(told, ours, way, EXACT if arguments.float64 else ABSOLUTE)
    return report(arguments, items)


def report(arguments: argparse.Namespace, items: list[dict[str, Any]]) -> int:
    """Print and keep the figures; 1 where something is wrong."""
    largest = max(item["apart"] for item in items)
    print(
        f"{len(items)} items, {sum(len(item['ours']) for item in items)} log-likelihoods: {largest:.2g} apart at most"
    )
    print(f"counted to every choice of an item by the harness: {min(item['common'] for item in items):.2g} at the most")
    ways: dict[str, dict[str, float]] = {}
    for way in dict.fromkeys(item["way"] for item in items):
        own = [item["metrics"] for item in items if item["way"] == way]
        ways[way] = {name: sum(one[name][1] for one in own) / len(own) for name in METRICS}
        print(f"{way}: {', '.join(f'{name} {value:.3f}' for name, value in ways[way].items())}")
    dtype = "float64" if arguments.float64 else "float32"
    figures = {"dtype": dtype, "largest_difference": largest, "accuracies": ways, "items": items}
    return keep(arguments, "lm_eval_choices", [item for item in items if not item["is_right"]], figures)


if __name__ == "__main__":
    sys.exit(main())
