"""Pretrained weights come in: a name becomes a model, its tokenizer and the folder they were read from.

Stands at the head of the pipeline, before the first token is made. A name is the built-in model, a folder, a size of GPT-2, a
Hub id or a `.gguf` file. transformers reads the files; this module decides what may be read, and says in one message what is
wrong.

The trade: strictness over reach. Only safetensors (or GGUF) is opened, never a pickle; no code of a model folder ever
runs; a weight that is missing, unexpected or of another shape is refused, where transformers warns and goes on with
random numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.errors import ExportError, ModelError
from tuneful.files import hash_into
from tuneful.model.adapter import read_adapter
from tuneful.model.adapter_limits import check_adapter, check_suits
from tuneful.model.builtin import BUILTIN, builtin_folder, cached_folder
from tuneful.model.checks import (
    Notify,
    check_architecture,
    check_loading,
    check_text_files,
    check_vocabulary,
    check_weight_files,
    damaged_model,
    damaged_tokenizer,
    ignore,
    quiet,
    read_config,
    with_end_token,
)
from tuneful.model.config_sizes import check_counts, check_sizes
from tuneful.model.gguf_cache import cached_gguf_model, cached_gguf_tokenizer, unpacked_folder
from tuneful.model.gguf_header import gguf_hub_id
from tuneful.model.hub import hub_snapshot, unknown_model
from tuneful.model.names import ADAPTER, adapter_base, full_name, hub_id, is_adapter, trained_folder
from tuneful.model.openai_gpt2 import check_not_above, is_openai_folder, openai_folder
from tuneful.model.own_files import check_own_files, read_document
from tuneful.model.stored import stored_dtype
from tuneful.model.tokenizer_limits import check_tokenizer, check_tokenizer_file, panics_as_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")

UNLIMITED = 1 << 30
"""The context of a model that sets no limit."""

_PROBE = (1, 2, 3, 5, 7, 11)
_OTHER_KINDS_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest, that merging an adapter of another kind than LoRA may make."""


@dataclass(frozen=True, repr=False)
class Pretrained:
    """A model in eval mode, its fast tokenizer, the `name` the user gave and the `folder` (or `.gguf`).

    Where an `adapter` is there to be put onto it, all but the tokenizer are those of the adapter's base.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    folder: Path
    adapter: Path | None = None

    @property
    def begun_with(self) -> Path:
        """The folder or file of all that is there before training: the adapter's where there is one."""
        return self.adapter or self.folder

    def __repr__(self) -> str:
        return f"Pretrained({self.name!r}, {type(self.model).__name__}, {self.model.num_parameters() / 1e6:,.1f} M parameters)"


def load_model(name: str, notify: Notify = ignore, dtype: torch.dtype | None = None) -> Pretrained:
    """Load the model and tokenizer behind `name`, complete and consistent, or raise ModelError.

    Its parameters are float32, or of `dtype`: then memory never holds more than that, and one tensor as it is stored.
    """
    return load_from(resolve_model(name, notify), name, notify, dtype)


def load_from(
    path: Path,
    name: str,
    notify: Notify = ignore,
    dtype: torch.dtype | None = None,
    *,
    in_4_bits: bool = False,
    mapped: bool = False,
) -> Pretrained:
    """The same for a model that was found already: `path` is what `resolve_model` made of `name`.

    With `in_4_bits` its linear layers but the output head are NF4 (`nf4_layers.py`), made of the weights as they are stored. With
    `mapped` its parameters stay in their files, as they are stored, where that can be (`mapped_model`).
    """
    tokenizer = load_tokenizer(path)
    if is_adapter(path):
        merged = _adapter_model(path, notify, dtype, in_4_bits=in_4_bits)
        check_vocabulary(merged, tokenizer, path)
        return Pretrained(merged, tokenizer, name, path)
    notify(f"loading {name}")
    load = mapped_model if mapped else partial(folder_model, dtype=dtype, in_4_bits=in_4_bits)
    model = cached_gguf_model(path, load, notify) if path.is_file() else load(path)
    if in_4_bits:  # of a file that was unpacked just now, and not yet
        from tuneful.model.nf4_layers import is_in_4_bits, quantize_layers

        if not is_in_4_bits(model):
            quantize_layers(model, dtype or torch.float32)
    if dtype is not None and not mapped:
        from tuneful.model.precision import cast_parameters

        cast_parameters(model, dtype)
    check_vocabulary(model, tokenizer, path)
    return Pretrained(model, tokenizer, name, path)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model folder (or `.gguf` file); it has an end token. Raises ModelError.

    That of an adapter is the one that was saved with it, else that of its base.
    """
    if folder.is_file():
        return with_end_token(cached_gguf_tokenizer(folder), folder)
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    if not is_adapter(folder):
        read_config(folder)
        check_text_files(folder)
    elif not has_tokenizer:
        return load_tokenizer(_found_base(folder))
    if not has_tokenizer:
        raise ModelError(f"{folder} has no tokenizer: put the tokenizer.json of this model (or of its base) there")
    from transformers import AutoTokenizer

    check_own_files(folder)
    if (file := folder / "config.json").is_file():
        check_counts(read_document(file), folder)
    if (file := folder / "tokenizer.json").is_file():
        check_tokenizer_file(file)
    with quiet():
        try:
            with panics_as_errors():
                tokenizer = AutoTokenizer.from_pretrained(
                    str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
                )
                if tokenizer.is_fast:
                    check_tokenizer(tokenizer.backend_tokenizer, folder)
                tokenizer("a")  # some settings are read only now
        except ModelError:
            raise
        except Exception as error:
            raise damaged_tokenizer(folder, error) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: the tokenizer has no fast form; add a tokenizer.json of the `tokenizers` library")
    return with_end_token(tokenizer, folder)


def fingerprint(folder: Path) -> str:
    """sha256 over names and bytes of config.json and all *.safetensors of `folder` (or of the one `.gguf` file).

    That of an adapter is over its own files and its base's fingerprint.
    """
    digest = hashlib.sha256()
    if is_adapter(folder):
        digest.update(fingerprint(_found_base(folder)).encode())
    config = folder / (ADAPTER if is_adapter(folder) else "config.json")
    files = [folder] if folder.is_file() else [config, *sorted(folder.glob("*.safetensors"))]
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            hash_into(digest, stream)
    return digest.hexdigest()


def context_length(model: PreTrainedModel) -> int:
    """How many tokens the model can attend to; UNLIMITED where its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


# Names


def resolve_model(name: str, notify: Notify = ignore) -> Path:
    """Find what `name` means: the built-in model, a folder or `.gguf` file (as it is; OpenAI's GPT-2 as it was converted), a size
    of GPT-2, or a Hub id (its snapshot)."""
    if name == BUILTIN:
        return builtin_folder(notify)
    path = Path(name).expanduser()
    if path.is_dir():
        return _model_folder(path, notify)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise ModelError(f"{name} is a file: --model takes the folder that holds it, a Hub id or a .gguf file")
    if _looks_like_a_path(name):
        raise ModelError(_no_such_model(name))
    if _means_the_builtin(name.lower()):
        raise ModelError(f"unknown model {name}: did you mean the built-in {BUILTIN}?")
    return hub_snapshot(full_name(name), notify)


def located(name: str) -> Path | None:
    """Where the files behind `name` lie on this machine, as they are: nothing is fetched or converted. None where they would be
    fetched; ModelError for a name that means nothing."""
    path = Path(name).expanduser()
    if name == BUILTIN:
        return cached_folder()
    if path.is_dir():
        return path if is_openai_folder(path) else _model_folder(path, ignore)
    if path.is_file() or _looks_like_a_path(name) or _means_the_builtin(name.lower()):
        return resolve_model(name)
    return _in_hub_cache(full_name(name))


def _in_hub_cache(name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except errors.HFValidationError as error:
        raise unknown_model(name) from error
    except errors.LocalEntryNotFoundError:
        return None


def _model_folder(path: Path, notify: Notify) -> Path:
    if is_openai_folder(path):
        return openai_folder(path, notify)
    found = trained_folder(path)
    if found == path and not is_adapter(path) and not (path / "config.json").exists():
        check_not_above(path)
    return found


def _looks_like_a_path(name: str) -> bool:
    if (
        name.startswith((".", "/", "~", "runs/"))
        or name.count("/") > 1
        or "\\" in name
        or name.endswith((".gguf", "/"))
    ):
        return True
    return "/" in name and bool(_runs_beside(Path(name)))


def _runs_beside(path: Path) -> list[str]:
    """The names of the run folders in the folder that would hold `path`."""
    return sorted(run.parent.name for run in path.expanduser().parent.glob("*/run.json"))


def _no_such_model(name: str) -> str:
    path = Path(name)
    if close := get_close_matches(path.name, _runs_beside(path), n=1):
        return f"there is no model folder {name}: did you mean {path.with_name(close[0]).as_posix()}?"
    what = "model folder or file" if path.suffix == ".gguf" else "model folder"
    return f"there is no {what} {name}: give a folder, a run, a Hub id or the built-in {BUILTIN}"


def _means_the_builtin(name: str) -> bool:
    return "/" not in name and bool(BUILTIN.startswith(name[:7]) or get_close_matches(name, [BUILTIN], cutoff=0.7))


# Adapters


def base_for_peft(pretrained: Pretrained) -> str:
    """What peft can load the base of an adapter by: its Hub id, else its folder, of a `.gguf` the one that it was unpacked to."""
    if pretrained.folder.is_file():
        return gguf_hub_id(pretrained.folder) or str(unpacked_folder(pretrained.folder) or pretrained.name)
    return hub_id(pretrained.name) or str(pretrained.folder)


def base_path(folder: Path, notify: Notify = ignore) -> Path:
    """Where the base of the adapter in `folder` lies. ModelError where it is not there, or not the one that was trained on."""
    base, path = adapter_base(folder), _found_base(folder, notify)
    if base.sha256 and fingerprint(path) != base.sha256:
        raise ModelError(
            f"{folder}: its base {base.name} is not the model that it was trained on; give that one's place"
        )
    return path


def _found_base(folder: Path, notify: Notify = ignore) -> Path:
    try:
        return resolve_model(adapter_base(folder).name, notify)
    except ModelError as error:
        raise ModelError(
            f"{folder}: an adapter, and its base is not here: {error}. Write the name or folder of the base into "
            f"{folder / ADAPTER} (base_model_name_or_path)"
        ) from error


def load_base(
    path: Path,
    notify: Notify = ignore,
    dtype: torch.dtype | None = None,
    *,
    in_4_bits: bool = False,
    mapped: bool = False,
) -> Pretrained:
    """The base of the adapter in `path`, for the adapter to be put onto it, with the adapter's tokenizer. Raises ModelError."""
    place, name = base_path(path, notify), adapter_base(path).name
    base = load_from(place, name, notify, dtype, in_4_bits=in_4_bits, mapped=mapped)
    return replace(base, tokenizer=load_tokenizer(path), adapter=path)


def _adapter_model(folder: Path, notify: Notify, dtype: torch.dtype | None, *, in_4_bits: bool) -> PreTrainedModel:
    """The base of the adapter in `folder`, with the adapter merged into it; ModelError where they do not belong together.

    In another `dtype` than float32 it is loaded in that, where each merged weight follows from one of the base's files. One that
    was trained beside a base in 4 bits is merged into the values that those stand for. With `in_4_bits` the sums become 4 bits,
    from float32.
    """
    import torch

    from tuneful.model.lora import MERGE_TOLERANCE, merge_adapter, merge_rounded
    from tuneful.model.nf4_layers import dequantize_layers, quantize_layers

    num_tensors = check_adapter(folder)
    adapter, path, base = read_adapter(folder), base_path(folder, notify), adapter_base(folder)
    load = partial(load_from, path, base.name, notify, in_4_bits=base.quantization is not None)
    is_low = dtype is not None and dtype.itemsize < 4 and not in_4_bits
    try:
        if is_low and adapter.leaves_its_base and not is_adapter(path):
            model = load(dtype).model
            check_suits(num_tensors, model, folder)
            notify(f"merging {folder} into {base.name}")
            source = unpacked_folder(path) if path.is_file() else path
            if (merged := merge_rounded(model, folder, source)) is not None:
                return merged
            del model
        model = load().model
        check_suits(num_tensors, model, folder)
        dequantize_layers(model, torch.float32)
        notify(f"merging {folder} into {base.name}")
        of_other_kind = adapter.kind != "LORA"
        prompts, tolerance = ([_PROBE], _OTHER_KINDS_TOLERANCE) if of_other_kind else ([], MERGE_TOLERANCE)
        merged = merge_adapter(model, folder, prompts, tolerance)[0]
    except ModelError:
        raise
    except (ExportError, ValueError) as error:  # peft's own word for numbers that are not finite
        raise ModelError(str(error) if isinstance(error, ExportError) else f"{folder}: {error}") from error
    if in_4_bits:
        quantize_layers(merged, dtype or torch.float32)
    if dtype is not None:
        from tuneful.model.precision import cast_parameters

        cast_parameters(merged, dtype)
    return merged


# Folders


def folder_model(folder: Path, dtype: torch.dtype | None = None, *, in_4_bits: bool = False) -> PreTrainedModel:
    """The model of a folder, every weight accounted for; ModelError where it is not whole.

    Its parameters are float32, or of `dtype`, copied from the file one by one; with `in_4_bits` its linear layers are NF4.
    """
    import torch

    from tuneful.model.nf4_layers import quantize_layers
    from tuneful.model.precision import copy_parameters

    wanted = torch.float32 if in_4_bits and dtype is None else dtype
    model = _opened(folder, None if wanted is None else _stored_dtype(folder))
    if wanted is not None:
        if in_4_bits:
            quantize_layers(model, wanted)
        copy_parameters(model, wanted)
    return model


def mapped_model(folder: Path) -> PreTrainedModel:
    """The model of a folder whose parameters stay in its files, in the number format that they have there.

    What is read of them takes memory until `drop_mapped_pages`. Files of several number formats are read into memory, in float32.
    """
    return _opened(folder, _stored_dtype(folder))


def _opened(folder: Path, stored: torch.dtype | None) -> PreTrainedModel:
    """The model of a folder, its parameters in `stored`, else float32: as they lie in its files where that is their format."""
    config = read_config(folder)
    check_architecture(config, folder)
    check_own_files(folder)
    check_sizes(config, check_weight_files(folder), folder)
    import torch
    from transformers import AutoModelForCausalLM

    from tuneful.model.precision import parameters_made_in

    with quiet(), parameters_made_in(stored):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that we can name them
                output_loading_info=True,
            )
        except Exception as error:
            raise damaged_model(folder, error) from error
    check_loading(info, folder)
    return model.eval()


def _stored_dtype(folder: Path) -> torch.dtype | None:
    import torch

    try:
        name = stored_dtype(folder)
    except (OSError, ValueError):
        return None  # whoever opens the files says what is wrong with them
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found
