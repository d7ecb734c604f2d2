"""LoRA: the base stays as it is, and a pair of small matrices beside each linear layer learns (Hu et al. 2021).

Stands between loading and training; the only door to peft. `add_adapter` puts peft's layers into the model in place, so
that everything else goes on calling the transformers model that it knows. What was learned leaves twice: as peft's own
folder (`save_adapter`), and merged into the base (`merge_adapter`).

The trade: the base is read a second time to merge. Training may compute with a bfloat16 copy of it, or a 4-bit one, and
keeps no other; what is shipped is the adapter on the base as it came, as everyone gets it who loads the two.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from tuneful.errors import ConfigError, ExportError
from tuneful.files import write_text, written_aside
from tuneful.model.adapter import WEIGHTS, Adapter, own_name, read_adapter
from tuneful.model.logits import largest_difference, prompt_logits
from tuneful.model.merge import merge_layers
from tuneful.model.names import hub_id
from tuneful.model.nf4 import NF4
from tuneful.model.nf4_layers import NF4_LAYERS, NF4Linear, dequantize_layers, quantized_of, weights_without_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tuneful.config import LoraConfig

ALL_LINEAR = "all-linear"
MERGE_TOLERANCE = 1e-5
"""Largest difference of a logit, merged against unmerged in float32, as a share of the largest logit."""
_LINEAR = ("Linear", "Linear4bit", "NF4Linear")
_PEFT_LINEAR = "peft.tuners.lora.layer.Linear"
_READ_AS_WEIGHTS = {
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), frozenset(("out_proj", "conv1d", "dt_proj"))
    ),
    "jamba": frozenset(("dt_proj",)),
    "longcat_flash": frozenset(("classifier",)),
}
"""model_type -> layers whose weights are read without the layer being called: what stands beside them would learn nothing, and
change the merged model. peft refuses the first two."""


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, first_layer: int = 0) -> Any:
    """Put a fresh adapter into `model`, in place; peft's wrapper of it, which saves and switches the adapter.

    Only the adapter is trainable afterwards. Layers below `first_layer` get none. Raises ConfigError where a name in
    `lora.target_modules` fits no layer, or fits an embedding that is tied to the output head.
    """
    import peft

    targets = target_modules(model, config)
    modules = dict(model.named_modules())
    transposed = any(isinstance(modules[name], Conv1D) for name in modules if own_name(name) in targets)
    num_layers = model.config.get_text_config().num_hidden_layers
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        fan_in_fan_out=transposed,
        layers_to_transform=list(range(first_layer, num_layers)) if first_layer else None,
        task_type="CAUSAL_LM",
    )
    with _without_notes(), _weights_as_needed(model, settings):
        adapter = peft.get_peft_model(model, settings)
    _check_found_again(adapter, model)
    adapter.train(model.training)  # new layers come in training mode
    return adapter


def _check_found_again(adapter: Any, model: PreTrainedModel) -> None:
    """ConfigError where peft would not find what it saves: before the first step, and not when a run has ended.

    peft gives the names of weights on loading the changes that transformers makes to those of the family's checkpoints.
    """
    import peft

    with _without_notes():
        state = peft.get_peft_model_state_dict(adapter, save_embedding_layers=False)
        found = peft.set_peft_model_state_dict(adapter, state)
    lost = [name for name in found.missing_keys if ".lora_" in name] + list(found.unexpected_keys)
    if lost:
        raise ConfigError(
            f"`train.method`: peft {peft.__version__} does not find again what it saves of an adapter of {type(model).__name__} "
            f"({lost[0]}): leave these layers out of lora.target_modules, or use train.method=full"
        )


def save_adapter(adapter: Any, folder: Path, base_name: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write peft's folder (adapter_config.json, adapter_model.safetensors), whole or not at all.

    Its base is called by `base_name`, or by the Hub id where the base has one. `state` are its parameters by name where `adapter`
    itself holds slices of them; they are then read again. Raises ExportError where a value is not finite.
    """
    own = {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    for name, parameter in (own if state is None else state).items():
        if not parameter.isfinite().all():
            raise ExportError(f"{folder}: `{name}` holds values that are not finite; nothing was saved")
    adapter.peft_config["default"].base_model_name_or_path = hub_id(base_name) or base_name
    with written_aside(folder) as aside:
        # "auto" would ask the Hub for the base's vocabulary size
        adapter.save_pretrained(aside, save_embedding_layers=False, state_dict=state)
        _settle_order(aside / "adapter_config.json")
        if state is not None:
            _check_saved(adapter, state, aside)


def _check_saved(adapter: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """ExportError where `folder` does not hold the very numbers of `state`."""
    import peft
    from safetensors.torch import load_file

    wanted, saved = (
        peft.get_peft_model_state_dict(adapter, state, save_embedding_layers=False),
        load_file(folder / WEIGHTS),
    )
    for name in sorted(wanted.keys() | saved.keys()):
        if name not in wanted or name not in saved or not torch.equal(wanted[name], saved[name]):
            raise ExportError(f"{folder}: tensor {name} was not saved as trained; save again, and check the disk")


def restore_adapter(adapter: Any, folder: Path) -> None:
    """Give `adapter` the numbers that `save_adapter` wrote to `folder`; ExportError where they are not its own, one for one."""
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / "adapter_model.safetensors")
        wanted = peft.get_peft_model_state_dict(adapter, save_embedding_layers=False)
        if odd := sorted(saved.keys() ^ wanted.keys()):
            raise ExportError(f"{folder}: tensor {odd[0]} is not in both the trained and the saved adapter")
        peft.set_peft_model_state_dict(adapter, saved)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ExportError(f"{folder}: the saved adapter cannot be read back: {error}") from error


def merge_adapter(
    base: PreTrainedModel, folder: Path, prompts: Sequence[Sequence[int]], tolerance: float = MERGE_TOLERANCE
) -> tuple[PreTrainedModel, float]:
    """`base` (float32, as it came) with the adapter of `folder` merged into it; and what merging changed.

    The second is the largest difference of a logit over `prompts`, as a share of the largest logit. Raises ExportError
    where it is above `tolerance`, or where the folder does not fit the base.
    """
    adapter = attach_adapter(base, folder)
    unmerged = [prompt_logits(base, prompt) for prompt in prompts]
    _separate_ends(base)
    try:
        merged: PreTrainedModel = adapter.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ExportError(f"{folder}: peft cannot merge this adapter into its base: {error}") from error
    _settle(merged)
    differences = [
        largest_difference(prompt_logits(merged, prompt), logits)
        for prompt, logits in zip(prompts, unmerged, strict=True)
    ]
    largest = max((difference / scale for difference, scale in differences), default=0.0)
    if not largest <= tolerance:
        raise ExportError(
            f"{folder}: merged into its base the adapter gives logits that differ by {largest:.2g} of the largest one"
        )
    return merged, largest


def merge_rounded(base: PreTrainedModel, folder: Path, source: Path | None) -> PreTrainedModel | None:
    """`base`, in bfloat16 or in 4 bits, with the adapter of `folder` merged: each weight in float32, and rounded once to
    bfloat16, as if all had been.

    `source` is the folder that the base came from, where it holds more than memory does. None where that cannot be read one by
    one; `base` is spent then. Raises ExportError where the folder does not fit the base.
    """
    adapter = attach_adapter(base, folder)
    _separate_ends(base)
    if not merge_layers(base, source):
        return None
    merged: PreTrainedModel = adapter.unload()
    dequantize_layers(merged, merged.dtype)
    _settle(merged)
    return merged


def continue_adapter(model: PreTrainedModel, folder: Path, dropout: float) -> Any:
    """Put the adapter of `folder` onto `model`, its base, in place, to go on being trained; peft's wrapper of it."""
    adapter = attach_adapter(model, folder, dropout)
    adapter.train(model.training)
    return adapter


def attach_adapter(base: PreTrainedModel, folder: Path, dropout: float | None = None) -> Any:
    """peft's wrapper of `base`, which gets the adapter of `folder` in place: to be trained under `dropout`, or, without, to
    answer. ExportError where it does not fit."""
    import peft

    with _without_notes():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        try:
            settings: Any = peft.PeftConfig.from_pretrained(str(folder))
            settings.inference_mode = dropout is None
            if dropout is not None:
                settings.lora_dropout = dropout
            _fit_vocabulary(base, read_adapter(folder))
            with _weights_as_needed(base, settings):
                adapter = peft.PeftModel.from_pretrained(
                    base, str(folder), config=settings, is_trainable=dropout is not None
                )
                _check_all_taken(adapter, folder)
        except Exception as error:  # whatever peft raises, the folder is not what was trained
            raise ExportError(f"{folder}: the adapter cannot be read back onto its base: {error}") from error
    return adapter.eval()


def _check_all_taken(adapter: Any, folder: Path) -> None:
    """ValueError where the file in `folder` holds weights that the model has no place for: peft leaves them out in silence, as
    those of single experts where a model's are one tensor and peft knows no way from the ones to the other (Qwen 2 MoE)."""
    import peft
    from safetensors.torch import load_file

    left = peft.set_peft_model_state_dict(adapter, load_file(folder / WEIGHTS)).unexpected_keys
    lost = [name for name in left if ".lora_" in name]  # what else is left is a copy of the base's embedding
    if lost:
        more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        raise ValueError(f"{lost[0]}{more} would be left out; the model has no such layer")


def _weights_as_needed(model: PreTrainedModel, settings: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, peft sees no values of weights in 4 bits where it has no use for them: for LoRA, but not for DoRA's norms."""
    needs_values = settings.peft_type != "LORA" or settings.use_dora
    return contextlib.nullcontext() if needs_values else weights_without_values(model)


def _fit_vocabulary(base: PreTrainedModel, adapter: Adapter) -> None:
    """Give `base` as many rows as an embedding or output head that the adapter brings: tokens were added before training."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = tuple(name for name, module in base.named_modules() if any(module is end for end in ends))
    for name, tensor in adapter.tensors.items():
        path = re.sub(r"(\.base_layer|\.modules_to_save)?\.weight$", "", name).removeprefix("base_model.model.")
        if path in names and len(tensor.shape) == 2 and tensor.shape[0] != base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(tensor.shape[0], mean_resizing=False)


def _separate_ends(base: PreTrainedModel) -> None:
    """An adapter on one of embedding and output head is not merged into the other, where both are one matrix."""
    ends = [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    adapted = [end for end in ends if hasattr(end, "get_base_layer")]
    layers = [end.get_base_layer() if hasattr(end, "get_base_layer") else end for end in ends]
    if adapted and len(layers) == 2 and layers[0].weight is layers[1].weight:
        layers[1].weight = torch.nn.Parameter(layers[1].weight.detach().clone(), requires_grad=False)


def _settle(merged: PreTrainedModel) -> None:
    """A model like any other: all of it can be trained, and its configuration says whether its ends are one matrix."""
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        merged.config.tie_word_embeddings = False
        merged.config.get_text_config().tie_word_embeddings = False


@dataclass(frozen=True, slots=True)
class LinearParts:
    """A linear layer of K features in and N out, and beside it `scaling` * (rows * lora_a^T) * lora_b^T, or nothing.

    base     a layer with a weight [N, K], which may be in 4 bits
    lora_a   [r, K], with r even
    lora_b   [N, r]
    """

    base: Any
    lora_a: torch.nn.Parameter | None = None
    lora_b: torch.nn.Parameter | None = None
    scaling: float = 1.0

    @property
    def weight(self) -> torch.Tensor | NF4:
        """The weight as the layer keeps it."""
        return quantized_of(self.base) if isinstance(self.base, NF4Linear) else self.base.weight

    @property
    def parameters(self) -> tuple[torch.Tensor | NF4 | None, ...]:
        """Weight, bias, lora_a and lora_b, None for what there is not."""
        return self.weight, self.base.bias, self.lora_a, self.lora_b


def linear_parts(layer: Any) -> LinearParts | None:
    """What `layer` computes with: itself where it is none of peft's, else its base and, unless it is switched off, its adapter.

    None where it computes anything else: merged weights, several adapters, dropout, an adapter's bias, DoRA, other variants.
    """
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" != _PEFT_LINEAR:
        return LinearParts(layer)
    if layer.merged_adapters or len(layer.active_adapters) != 1:
        return None
    if layer.disable_adapters:
        return LinearParts(layer.base_layer)
    (name,) = layer.active_adapters
    if name not in layer.lora_A:
        return LinearParts(layer.base_layer)
    first, second, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    plain = all(type(one) is torch.nn.Linear and one.bias is None for one in (first, second))
    drops = type(dropout) is not torch.nn.Identity and (dropout.training or type(dropout) is not torch.nn.Dropout)
    if not plain or drops or name in layer.lora_variant or len(first.weight) % 2:
        return None
    (rank, num_inputs), (num_outputs, num_columns) = first.weight.shape, second.weight.shape
    if rank != num_columns or (layer.out_features, layer.in_features) != (num_outputs, num_inputs):
        return None
    return LinearParts(layer.base_layer, first.weight, second.weight, float(layer.scaling[name]))


@contextlib.contextmanager
def without_adapter(adapter: Any | None) -> Iterator[None]:
    """Inside, the model computes as its base alone."""
    if adapter is None:
        yield
        return
    with adapter.disable_adapter():
        yield


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Hide the warnings about names that peft and transformers are about to change, which the user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        yield


def target_modules(model: PreTrainedModel, config: LoraConfig) -> set[str]:
    """The layers that get an adapter, by the last part of their names: `q_proj`, `up_proj`, ... (`ff.0` where it is a number)."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linear, ends, places = set(), set(), list[tuple[str, Any]]()
    for name, module in model.named_modules(remove_duplicate=False):
        own = own_name(name)
        if module is head or module is embedding:
            ends.add(own)
        elif _is_linear(module):
            linear.add(own)
            places.append((own, module.codes if isinstance(module, NF4_LAYERS) else getattr(module, "weight", None)))
    uses = Counter(id(weight) for _, weight in places if weight is not None)
    shared = {own for own, weight in places if uses[id(weight)] > 1}
    linear -= shared
    linear -= _READ_AS_WEIGHTS.get(getattr(model.config, "model_type", ""), frozenset())
    if config.target_modules == ALL_LINEAR:
        if not linear - ends:
            raise ConfigError(
                f"`train.method`: {type(model).__name__} has no linear layer besides its output head, so there is none for an "
                "adapter to stand beside; use train.method=full"
            )
        return linear - ends
    wanted = set(config.target_modules)
    if held := wanted & shared:
        raise ConfigError(
            f"`lora.target_modules`: {', '.join(sorted(held))}: several layers of this model have one matrix there, and an "
            "adapter beside one of them would be merged into all; leave it out"
        )
    tied = head is not None and head.weight is embedding.weight
    if tied and (held := wanted & ends):
        raise ConfigError(
            f"`lora.target_modules`: {', '.join(sorted(held))}: embedding and output head of this model are one matrix, and "
            "an adapter on one of them could not be merged; leave it out"
        )
    if unknown := wanted - linear - ends:
        raise ConfigError(
            f"`lora.target_modules`: this model has no layer {', '.join(sorted(unknown))}; its layers are "
            f"{', '.join(sorted(linear | (set() if tied else ends)))}"
        )
    return wanted


def adapted_layers(model: PreTrainedModel) -> set[str]:
    """What the adapter in `model` stands beside, by own names. For the experts of a layer that are one tensor peft takes
    `experts`, in place of the layers of that layer which are called as those of an expert."""
    pairs = (name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name)
    return {own_name(path.removesuffix(".base_layer")) for path in pairs}


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether `module` computes rows * W^T + b: torch's own kinds, and a family's own (Falcon's) that do so on a row."""
    if isinstance(module, Conv1D) or type(module).__name__ in _LINEAR:
        return True
    if not isinstance(module, torch.nn.Linear):
        return False
    if type(module) is torch.nn.Linear and "forward" not in vars(module):
        return True  # and its weight, which may lie in a file yet, need not be read
    row = torch.linspace(-1, 1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)[None]
    try:
        with torch.no_grad():
            found = module(row)
    except Exception:  # it takes something else: whatever it does, it is another layer
        return False
    wanted = torch.nn.functional.linear(row, module.weight, module.bias)
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
        return False
    return wanted.is_meta or torch.allclose(found.float(), wanted.float(), rtol=1e-2, atol=1e-2)


def _settle_order(file: Path) -> None:
    """peft writes sets in an order that changes from run to run; the same adapter is to be the same bytes."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
