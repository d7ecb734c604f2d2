"""Trained weights go out: a Hugging Face folder, whole or not at all, loaded again and compared before it is done.

Stands at the end of training. The folder loads in transformers as it is: config.json,
model.safetensors, tokenizer files, chat_template.jinja, generation_config.json, README.md.

The trade: an export costs twice the disk for a moment (the new folder is written beside the old one) and one reload
(a second copy of the model in memory); in return no crash leaves half a model and no silent rounding ships.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from tuneful.errors import ExportError
from tuneful.export.card import Card, write_card
from tuneful.files import written_aside
from tuneful.model.checks import quiet
from tuneful.model.logits import largest_difference, prompt_logits
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.widened import rounded_to, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]
"""Number formats a model is saved in."""

SAME_WEIGHTS_TOLERANCE = 1e-5  # of the largest logit: what another order of summation can do; usually exactly 0


@dataclass(frozen=True, slots=True)
class Shipped:
    """What goes with the weights of a model: its tokenizer, prompt format and stop tokens, and what its base was called."""

    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    stop_token_ids: tuple[int, ...]
    base_name: str

    def __post_init__(self) -> None:
        assert self.stop_token_ids, "a model that never stops"


def save_model(
    pretrained_model: PreTrainedModel, folder: Path, shipped: Shipped, card: Card, *, dtype: DType = "float32"
) -> None:
    """Write a Hugging Face folder; an existing model folder is replaced only once the new one is whole.

    Model and tokenizer in memory are left as they were. Raises ExportError where `folder` holds something else than a
    model, and OSError where the disk refuses.
    """
    check_target(folder)
    with written_aside(folder) as aside, quiet():
        save_tokenizer(shipped, aside)
        _save_weights(pretrained_model, aside, shipped, dtype)
        write_card(aside, shipped.base_name, card, dtype)


def complete_adapter(folder: Path, shipped: Shipped, card: Card) -> None:
    """Give peft's folder of an adapter what it needs to be used: the tokenizer with its chat template, and a card of ours."""
    with quiet():
        save_tokenizer(shipped, folder)
    write_card(folder, shipped.base_name, card, "float32")


def verify_export(model: PreTrainedModel, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
    """Load `folder` again and return the largest absolute difference of its logits from `model`'s over `prompts`.

    Weights are compared bit for bit (after `model`'s are rounded to the dtype of the folder). Logits differ by 0, or by the order
    of summation where a device does not keep to one: those of another dtype are computed in float32, of weights that were rounded
    alike. Raises ExportError, naming the tensor or the difference. The second copy is freed before returning.
    """
    saved = _reload(folder)
    exact, dtype = _check_weights(model, saved, folder), saved.dtype
    _lay_out_alike(model, saved)
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_tested(model, saved.config._attn_implementation))
        if not exact:
            stack.enter_context(widened(model, rounded_to(dtype)))
            stack.enter_context(widened(saved))
        differences = [
            largest_difference(prompt_logits(saved, prompt), prompt_logits(model, prompt)) for prompt in prompts
        ]
    del saved
    gc.collect()
    largest = max((difference for difference, _ in differences), default=0.0)
    scale = max((size for _, size in differences), default=0.0)
    allowed = SAME_WEIGHTS_TOLERANCE * scale
    if not largest <= allowed:
        raise ExportError(
            f"{folder}: logits of the saved model differ by {largest:.3g} from the trained one's (at most "
            f"{allowed:.3g} is rounding); do not use it, and report this with the output of `tuneful doctor`"
        )
    return largest


def check_target(folder: Path) -> None:
    """ExportError where a model cannot take the place of what is there."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ExportError(f"{folder} holds something else than a model: choose another folder, or empty it first")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: choose another folder")


# Parts of the folder


def save_tokenizer(shipped: Shipped, folder: Path) -> None:
    """Runtimes that read no generation_config.json stop at the tokenizer's end token: let it be one we trained."""
    tokenizer = copy.deepcopy(shipped.tokenizer)
    tokenizer.chat_template = shipped.chat_template
    if tokenizer.eos_token_id not in shipped.stop_token_ids:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(shipped.stop_token_ids[0])
    for leftover in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(leftover, None)
    tokenizer.save_pretrained(str(folder))


def _save_weights(model: PreTrainedModel, folder: Path, shipped: Shipped, dtype: DType) -> None:
    target = getattr(torch, dtype)
    cast: dict[int, torch.Tensor] = {}  # by where they lie: what is one matrix stays one, and is saved once
    for tensor in (tensors := model.state_dict()).values():
        if tensor.data_ptr() not in cast:
            is_cast = tensor.is_floating_point()
            cast[tensor.data_ptr()] = tensor.detach().to(target).contiguous() if is_cast else tensor
    state = {name: cast[tensor.data_ptr()] for name, tensor in tensors.items()}
    save_state(model, state, folder, shipped, dtype)


def save_state(
    model: PreTrainedModel, state: dict[str, torch.Tensor], folder: Path, shipped: Shipped, dtype: DType
) -> None:
    """Let transformers save `state` as the weights of `model`, with its configurations; `dtype` is what they say of it."""
    stop, pad = shipped.stop_token_ids, shipped.tokenizer.pad_token_id
    eos_token_id = stop[0] if len(stop) == 1 else list(stop)
    with _shipped_configs(model, eos_token_id, int(stop[0] if pad is None else pad)) as config:
        model.save_pretrained(str(folder), state_dict=state)
        config.dtype = dtype  # save_pretrained wrote the dtype in memory
        config.save_pretrained(str(folder))


@contextlib.contextmanager
def _shipped_configs(model: PreTrainedModel, eos_token_id: int | list[int], pad_token_id: int) -> Iterator[Any]:
    """Lend the model the configs to save, and give it its own back."""
    from transformers import GenerationConfig

    config, generation = model.config, model.generation_config
    shipped = copy.deepcopy(config)
    shipped.use_cache = True
    shipped.eos_token_id, shipped.pad_token_id = eos_token_id, pad_token_id
    shipped.name_or_path = ""  # it would publish a path of this machine
    if hasattr(shipped, "quantization_config"):
        del shipped.quantization_config
    if shipped.model_type == "gpt2":
        shipped.n_ctx = shipped.n_positions  # transformers has forgotten the name, llama.cpp's converter has not
    shipped_generation = copy.deepcopy(generation) if generation is not None else GenerationConfig()
    shipped_generation.eos_token_id, shipped_generation.pad_token_id = eos_token_id, pad_token_id
    shipped_generation.use_cache, shipped_generation._from_model_config = True, False
    _settle_sampling(shipped_generation)
    model.config, model.generation_config = shipped, shipped_generation
    try:
        yield shipped
    finally:
        model.config, model.generation_config = config, generation


def _settle_sampling(generation: Any) -> None:
    """Some published configs set a temperature without sampling, which transformers refuses to save."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


# What you tested is what you ship


def _reload(folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            return AutoModelForCausalLM.from_pretrained(
                str(folder), dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            ).eval()
        except Exception as error:
            raise ExportError(f"{folder}: the saved model cannot be loaded again: {error}") from error


def _check_weights(model: PreTrainedModel, saved: PreTrainedModel, folder: Path) -> bool:
    """Whether the folder holds the very numbers in memory; numbers beyond the folder's rounding are an error."""
    trained, written = model.state_dict(), saved.state_dict()
    if odd := sorted(trained.keys() ^ written.keys()):
        raise ExportError(f"{folder}: tensor {odd[0]} is not in both the trained and the saved model")
    exact = True
    for name, tensor in trained.items():
        expected = tensor.detach().to(device="cpu", dtype=written[name].dtype)
        if not torch.equal(_bits(expected), _bits(written[name])):
            raise ExportError(f"{folder}: tensor {name} was not saved as trained; save again, and check the disk")
        exact = exact and tensor.dtype == written[name].dtype
    return exact


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers as bytes, so that a NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _lay_out_alike(model: PreTrainedModel, saved: PreTrainedModel) -> None:
    """Give equal numbers equal device, dtype, strides and alignment: the order in which products sum follows them."""
    saved.to(model.device)
    for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        read = theirs.data
        theirs.data = torch.empty_like(ours, requires_grad=False).copy_(read)
        drop_mapped_pages(read)


@contextlib.contextmanager
def as_tested(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Let `model` run in eval mode through `attention`, transformers' own, for it may have one made for training."""
    training, own = model.training, model.config._attn_implementation
    model.eval()
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
        model.train(training)
