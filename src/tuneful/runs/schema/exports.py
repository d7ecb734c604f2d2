"""proof.json of an export: what was written, and what was compared before the command said done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

ExportKind = Literal["huggingface", "adapter", "gguf", "ollama"]


@dataclass(frozen=True, slots=True)
class ExportPart:
    """One thing that was compared."""

    name: Annotated[str, "what was compared: `tensors`, `keys`, `token ids`, `prompts`, `logits` ..."]
    compared: Annotated[str, "with what, in words"]
    number: Annotated[int, "how many were compared"]
    figure: Annotated[str | None, "what was found, as it is printed; null where it was not made"]
    bound: Annotated[str | None, "what it may be at most; null where it is for information"]
    holds: Annotated[bool | None, "whether it is within the bound; null where the comparison could not be made"]
    note: Annotated[str, "what differs, or why the comparison could not be made; else empty"] = ""


@dataclass(frozen=True, slots=True)
class ExportProof:
    """An export and its proof. It is written only where nothing that was compared is beyond its bound."""

    kind: Annotated[ExportKind, "what it was exported to"]
    type: Annotated[str | None, "number format that was asked for; null where there is none to choose"]
    model: Annotated[str, "the model, as it was named"]
    template: Annotated[str, "the prompt template"]
    files: Annotated[Mapping[str, str], "sha256 of each file, by its name"]
    tensor_types: Annotated[Mapping[str, int], "how many tensors are of each number format"]
    parts: Annotated[tuple[ExportPart, ...], "what was compared"]
    notes: Annotated[tuple[str, ...], "what a person should know of the export, a sentence each"]
    software: Annotated[Mapping[str, str], "versions of what wrote and compared it"]
