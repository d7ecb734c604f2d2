"""The model card: what a person who meets the model on the Hub has to know, and nothing of the machine that made it.

Written with the model, and again when the comparison is there: its figures stand in the body, with their intervals, and in
the front matter as `model-index`. Names and sha256 of the data are told, paths never are. `datasets`, `base_model` and
`license` are given where they are known to the Hub and left out elsewhere: the Hub refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.data.sources import STANDARD_INPUT, dataset_id
from tuneful.errors import ModelError
from tuneful.evaluation.tables import metric_cells
from tuneful.files import write_text
from tuneful.model.builtin import BUILTIN_HUB_ID
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.names import hub_id
from tuneful.runs.schema import Comparison, MetricComparison

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"
BUILTIN_LICENSE = "apache-2.0"

_METRIC_TYPES = {"token_f1": "f1", "rouge_l": "rouge"}
"""What the Hub calls a metric, where it has another name for it."""
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Card:
    """What the card tells besides the name of the base model: `facts` of the run become a table, in order.

    `data` are the names of the data as they were given; whoever reads the card sees no more of a path than its last part.
    `license` is the base model's, None where it is not known. `general` names the general text of the `comparison`.
    `base_id` is the Hub id that the base's file gives, `base_title` what it calls itself, in place of its file's name. An adapter
    is loaded otherwise, and the card says how; so is one that learned beside a base in 4 bits.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    data_sha256: str = ""
    license: str | None = None
    comparison: Comparison | None = None
    general: str = "builtin"
    base_id: str | None = None
    base_title: str | None = None
    is_adapter: bool = False
    is_of_4_bits: bool = False


def write_card(folder: Path, base_name: str, card: Card, dtype: str) -> None:
    """Write the card of the model in `folder`, whole or as it was; nothing else of the folder is touched."""
    write_text(folder / FILE, card_text(base_name, card, dtype))


def card_text(base_name: str, card: Card, dtype: str) -> str:
    """The card of a model that was made from `base_name`, its weights in `dtype`: front matter and Markdown."""
    from huggingface_hub import ModelCardData

    name = card.base_title or model_name(base_name)
    results = list(_eval_results(card))
    data = ModelCardData(
        base_model=hub_id(base_name) or card.base_id,
        datasets=[found for one in card.data if (found := dataset_id(one))] or None,
        eval_results=results or None,
        library_name="peft" if card.is_adapter else "transformers",
        license=card.license,
        model_name=f"{name}, finetuned" if results else None,
        pipeline_tag="text-generation",
        tags=["tuneful", "instruction-tuning", "sft"],
    )
    body = _ADAPTER_BODY if card.is_adapter else _BODY
    if card.is_of_4_bits:
        body += _ADAPTER_OF_4_BITS if card.is_adapter else _MERGED_INTO_4_BITS
    parts = [body.format(name=name, dtype=dtype), _comparison_part(card.comparison), _run_part(card)]
    return f"---\n{data.to_yaml()}\n---\n\n{''.join(parts)}"


def model_name(base_name: str) -> str:
    """What a base model is called where others read it: its Hub id, else the last part of its path."""
    return hub_id(base_name) or Path(base_name).expanduser().resolve().name


def data_name(name: str) -> str:
    """What data is called where others read it: its Hub id, else the last part of its path."""
    if name == STANDARD_INPUT:
        return "standard input"
    return name if dataset_id(name) else Path(name).name


def license_of(folder: Path, name: str) -> str | None:
    """The license of the base model `name` in `folder`: the built-in one's, or what its card says; None where none is known."""
    if hub_id(name) == BUILTIN_HUB_ID:
        return BUILTIN_LICENSE
    if folder.is_file():
        return (_header_text(folder, "general.license") or "").lower() or None
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        said = (metadata_load(folder / FILE) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):  # there is no card, or none that can be read
        return None
    return said if isinstance(said, str) and said else None


def title_of(folder: Path) -> str | None:
    """What the model of a `.gguf` file calls itself; None for a folder, which is known by its name."""
    return _header_text(folder, "general.name") if folder.is_file() else None


def _header_text(file: Path, key: str) -> str | None:
    try:
        return read_gguf_header(file).text(key)
    except ModelError:  # of a file that cannot be read nothing is known
        return None


def _eval_results(card: Card) -> Iterator[EvalResult]:
    """Every figure of the comparison as the Hub knows it: the tuned model's, with the base's and the interval as arguments."""
    from huggingface_hub import EvalResult

    comparison = card.comparison
    if comparison is None:
        return
    ids = [found for one in card.data if (found := dataset_id(one))]
    tested = f"test records of {', '.join(map(data_name, card.data))}"
    kind = ids[0] if len(ids) == len(card.data) == 1 else "custom"
    general = "general text" if card.general == "builtin" else f"general text, {Path(card.general).name}"
    for metric in (*comparison.metrics, *comparison.forgetting):
        is_test, own = metric in comparison.metrics, comparison.test_of(metric)
        sha256 = own.sha256 if own else card.data_sha256
        of = ("custom", Path(own.file).name) if own else (kind, tested) if is_test else ("general-text", general)
        yield EvalResult(
            task_type="text-generation",
            dataset_type=of[0],
            dataset_name=of[1],
            dataset_split="test" if is_test else None,
            dataset_args={"sha256": sha256} if is_test else None,
            metric_type=_METRIC_TYPES.get(metric.name, metric.name),
            metric_value=round(metric.tuned, _DECIMALS),
            metric_name=metric.label,
            metric_args=_arguments(metric, comparison.confidence),
        )


def _arguments(metric: MetricComparison, confidence: float) -> dict[str, float | int]:
    figures = {"base": metric.base, "difference": metric.difference, "low": metric.low, "high": metric.high}
    rounded = {name: round(value, _DECIMALS) for name, value in figures.items() if value is not None}
    return {**rounded, "confidence": confidence, "num_items": metric.num_items}


def _comparison_part(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    head = ["metric", "base", "tuned", f"difference, {comparison.confidence:.0%} interval", "verdict"]
    rows = [[*metric_cells(metric)] for metric in (*comparison.metrics, *comparison.forgetting)]
    table = "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in (head, ["---"] * len(head), *rows))
    return f"\n## Is it better than its base?\n\n{comparison.sentence}\n\n{table}"


def _run_part(card: Card) -> str:
    data = {"data": ", ".join(map(data_name, card.data))} if card.data else {}
    sha256 = {"sha256 of the data": f"`{card.data_sha256}`"} if card.data_sha256 else {}
    rows = "".join(f"| {_cell(key)} | {_cell(value)} |\n" for key, value in {**data, **sha256, **card.facts}.items())
    return f"\n## The run\n\n| | |\n|---|---|\n{rows}" if rows else ""


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


_BODY = """# {name}, finetuned on instructions

Made with Tuneful from {name}. Weights are {dtype} safetensors; the prompt format is in `chat_template.jinja`, the stop tokens
are in `generation_config.json`.

```python
from transformers import pipeline

generate = pipeline("text-generation", "path/to/this/folder")
print(generate([{{"role": "user", "content": "..."}}], max_new_tokens=256)[0]["generated_text"][-1]["content"])
```
"""

_ADAPTER_BODY = """# {name}, finetuned on instructions: the adapter

Made with Tuneful from {name}, which it is used with: the weights here are a LoRA adapter. The prompt format is in
`chat_template.jinja`; `tuneful.json` names the base as it was given, with the sha256 of its weights.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

folder = "path/to/this/folder"
model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
generate = pipeline("text-generation", model, tokenizer=tokenizer)
print(generate([{{"role": "user", "content": "..."}}], max_new_tokens=256)[0]["generated_text"][-1]["content"])
```
"""

_MERGED_INTO_4_BITS = """
It was trained as an adapter (QLoRA) beside {name} with the weights of its linear layers rounded to 4 bits (NF4, scales quantized
once more). The adapter is merged into the values that these 4 bits stand for, which are those that it learned beside: the weights
here are not those of {name} plus the adapter.
"""

_ADAPTER_OF_4_BITS = """
It learned beside {name} with the weights of its linear layers rounded to 4 bits (NF4, scales quantized once more; QLoRA). Beside
the weights as they came it computes something else. To load the base as the adapter knows it:

```python
from transformers import BitsAndBytesConfig

in_4_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoPeftModelForCausalLM.from_pretrained(folder, quantization_config=in_4_bits)
```

Merging that model with peft would round the sum to 4 bits again: dequantize the base first.
"""
