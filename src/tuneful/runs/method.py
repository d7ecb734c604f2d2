"""How the weights are to change: what of the model is trained, by which method, at which rates, shown before the first step.

Stands between the job and `model/`: it puts the parts of `train.method` together and describes them. Nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tuneful.config import PREFERENCE_OBJECTIVES, Config, default_source, train_defaults
from tuneful.encoding.replay import Replay
from tuneful.errors import ConfigError, ExportError, ModelError
from tuneful.model.adapter import Adapter, check_continued, own_name, read_adapter
from tuneful.model.attention import ask_for
from tuneful.model.freeze import checkpoint_activations, freeze_lower_layers
from tuneful.model.lora import add_adapter, continue_adapter, target_modules
from tuneful.model.names import adapter_base
from tuneful.model.nf4_layers import num_weights
from tuneful.model.quantize import quantize
from tuneful.model.repeatable import reserve_workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WAYS = (
    "that adapter goes on being trained as it is: leave the setting out, or set lora.create_new_adapter=true, which merges it "
    "and trains a new one"
)
IN_4_BITS = "linear layers in 4 bits (NF4, blocks of 64, scales quantized once more)"
"""The base of a qlora run, in words."""
_TOO_HIGH, _TOO_LOW = 100, 1e-4
"""Times the default of the method, beyond which a learning rate is asked about."""


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained of a model: its `adapter` (peft's), or its own weights but those that are `frozen`, in words."""

    num_parameters: int
    num_trainable: int
    adapter: Any | None = None
    frozen: str = ""


def continued_settings(config: Config, adapter: Adapter) -> Config:
    """`config` with the section `lora` as `adapter`, which goes on being trained, was made.

    Raises ConfigError where it cannot go on, or where a setting asks for another one.
    """
    check_continued(adapter)
    if config.train.method != "qlora" and adapter_base(adapter.folder).quantization:
        raise ConfigError(
            f"`train.method`: {config.train.method}, but {adapter.folder} learned beside its base in 4 bits: set "
            "train.method=qlora, or lora.create_new_adapter=true, which merges it into what these 4 bits stand for and trains a "
            "new one"
        )
    own, asked = adapter.lora_settings, config.lora
    for key, value in own.items():
        wanted = getattr(asked, key)
        if key in asked.model_fields_set - {"target_modules", "dropout"} and wanted != value:
            raise ConfigError(f"`lora.{key}`: {wanted!r}, but {adapter.folder} has {value!r}, and {_WAYS}")
    if any(layer < config.train.freeze_layers for layer in adapter.layers):
        raise ConfigError(
            f"`train.freeze_layers`: {config.train.freeze_layers}, but {adapter.folder} stands beside layer "
            f"{min(adapter.layers)}, and {_WAYS}"
        )
    kept = own | {"dropout": asked.dropout} if "dropout" in asked.model_fields_set else own
    if config.train.objective in PREFERENCE_OBJECTIVES:
        kept = kept | {"dropout": 0.0}  # it would move the model away from its reference
    if "target_modules" in asked.model_fields_set:
        kept = kept | {"target_modules": asked.target_modules}  # what it comes to is known once the model is there
    return config.model_copy(update={"lora": asked.model_copy(update=kept)})


def begin_method(model: PreTrainedModel, config: Config, device: torch.device, continued: Path | None = None) -> Method:
    """Make `model` trainable by the method of `config`, in place, and put it on `device`.

    `continued` is the folder of an adapter that goes on being trained. Raises ConfigError where the model has not what the
    settings name, and ModelError where the adapter does not fit it.
    """
    train = config.train
    reserve_workspace(device)
    num_parameters = num_weights(model)
    adapter, frozen = None, ""
    if train.method == "qlora" and device.type == "cuda":
        quantize(model, device)
    if continued is not None:
        adapter = _continued(model, config, continued)
    elif train.method != "full":
        torch.manual_seed(train.seed)
        adapter = add_adapter(model, config.lora, first_layer=train.freeze_layers)
    elif train.freeze_layers:
        frozen = freeze_lower_layers(model, train.freeze_layers)
    if train.activation_checkpointing:
        checkpoint_activations(model)
    model.to(device)
    ask_for(model, config.model.attn_implementation)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Method(num_parameters, trainable, adapter, frozen)


def _continued(model: PreTrainedModel, config: Config, folder: Path) -> Any:
    own = set(read_adapter(folder).lora_settings["target_modules"])
    if gone := own - {own_name(path) for path, _ in model.named_modules()}:
        raise ConfigError(
            f"{folder} stands beside {', '.join(sorted(gone))}, which are no layers of {type(model).__name__} as transformers "
            "has it now (experts are one tensor there), and cannot go on being trained; set lora.create_new_adapter=true, which "
            "merges it into its base and trains a new one, or train.method=full"
        )
    wanted = target_modules(model, config.lora)
    if own != wanted:
        raise ConfigError(
            f"`lora.target_modules`: {', '.join(sorted(wanted))}, but {folder} has {', '.join(sorted(own))}, and {_WAYS}"
        )
    try:
        return continue_adapter(model, folder, config.lora.dropout)
    except ExportError as error:
        raise ModelError(str(error)) from error


def method_in_words(method: Method, config: Config) -> str:
    """One line: the method, its settings, and how many weights are trained."""
    said = f"{method.num_trainable / 1e6:,.2f} M are trained"
    if method.adapter is None:
        return f"full, {said}" + (f"; frozen: {method.frozen}" if method.frozen else "")
    lora, lowest = config.lora, config.train.freeze_layers
    where = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    base = ["beside a base in 4 bits (NF4), into which it is merged"] if config.train.method == "qlora" else []
    kinds = [name for name, used in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if used]
    above = [f"above layer {lowest}"] if lowest else []
    return ", ".join([config.train.method, f"r {lora.r}, alpha {lora.alpha:g}", where, *above, *kinds, *base, said])


def rates_in_words(config: Config) -> dict[str, str]:
    """Learning rate and weight decay, each with where it comes from."""
    method, objective = config.train.method, config.train.objective
    said = {}
    for key in ("learning_rate", "weight_decay"):
        value = getattr(config.train, key)
        is_default = value == train_defaults(method, objective)[key]
        source = default_source(key, method, objective) if is_default else "as asked for"
        said[key.replace("_", " ")] = f"{value:g}: {source}"
    return said


def doubtful_rate(config: Config) -> str | None:
    """A sentence where the learning rate is over a hundred times the method's default, or under a ten-thousandth of it.

    AdamW moves every weight by about the rate at each step, whatever the gradient. It is asked about and not refused.
    """
    rate, method = config.train.learning_rate, config.train.method
    usual = train_defaults(method, config.train.objective)["learning_rate"]
    if _TOO_LOW * usual <= rate <= _TOO_HIGH * usual:
        return None
    outcome = "every weight moves by about that much at each step" if rate > usual else "next to nothing will change"
    return (
        f"train.learning_rate={rate:g}: is that meant? It is {rate / usual:.3g} times the default of {method} ({usual:g}), and "
        f"{outcome}"
    )


def replay_in_words(replay: Replay) -> str:
    """One line: how much there is to replay, how often it comes, and what was left out."""
    left_out = [
        f"{count} {why}"
        for count, why in ((replay.num_held_out, "asked in an evaluation"), (replay.num_refused, "not usable"))
        if count
    ]
    return (
        f"{len(replay.examples):,} of {replay.num_read:,} rows of {replay.name}, {replay.ratio:g} for each training record"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
