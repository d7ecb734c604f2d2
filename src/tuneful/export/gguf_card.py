"""The card of an export for llama.cpp or Ollama: how it is run, and what was compared before it was called done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneful.export.card import FILE, license_of, model_name
from tuneful.export.source import Source
from tuneful.files import write_text
from tuneful.model.names import hub_id
from tuneful.runs.schema import ExportKind, ExportPart

_RUNS = {
    "gguf": "llama-server -m {file}",
    "ollama": "ollama create my-model -f Modelfile && ollama run my-model",
    "adapter": "llama-server -m base.gguf --lora {file}",
}
_WORDS = {True: "holds", False: "fails", None: "not made"}


def write_export_card(folder: Path, source: Source, to: ExportKind, parts: Sequence[ExportPart]) -> None:
    """Write README.md of the export in `folder`: front matter for the Hub, the command that runs it, the table of its proof."""
    from huggingface_hub import ModelCardData

    name = model_name(source.name)
    data = ModelCardData(
        base_model=hub_id(source.name),
        library_name="gguf",
        license=license_of(source.base, source.name),
        pipeline_tag="text-generation",
        tags=["tuneful", "gguf"],
    )
    file = next((one.name for one in sorted(folder.glob("*.gguf"))), "model.gguf")
    rows = "".join(
        f"| {part.name} | {part.compared} | {part.number:,} | {part.figure or ''} | {part.bound or ''} | {_WORDS[part.holds]} |\n"
        for part in parts
    )
    body = (
        f"# {name}, as {to}\n\nMade with Tuneful from {name}.\n\n```sh\n{_RUNS.get(to, '').format(file=file)}\n```\n\n"
        f"What was compared with the model before it was called done (all of it: `proof.json`):\n\n"
        f"| | compared | number | found | bound | |\n|---|---|---|---|---|---|\n{rows}"
    )
    write_text(folder / FILE, f"---\n{data.to_yaml()}\n---\n\n{body}")
