"""Pretrained weights come in: a name becomes a float32 model, its tokenizer and the folder they were read from.

Stands at the head of the pipeline, before the first token is made. A name is the built-in model, a folder, a Hub id or
a `.gguf` file. transformers reads the files; this module decides what may be read, and says in one message what is
wrong.

The trade: strictness over reach. Only safetensors (or GGUF) is opened, never a pickle; no code of a model folder ever
runs; a weight that is missing, unexpected or of another shape is refused, where transformers warns and goes on with
random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = "smollm2-135m-instruct"
"""Name of the model that needs no hub: see `tuneful.model.builtin`."""

Notify = Callable[[str], None]
"""Receives one line of status before something that takes a while."""

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
HUB_FILES_IGNORED = ["*/*", "consolidated*", "adapter_*"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
GPT2_SPLITTERS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")
LEGACY_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
MAX_NAMED = 5


@dataclass(frozen=True)
class Pretrained:
    """A model in float32 and eval mode, its fast tokenizer, the `name` the user gave and the `folder` (or `.gguf`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    folder: Path


def ignore(_: str) -> None:
    """The `notify` of callers that show nothing."""


def load_model(name: str, notify: Notify = ignore) -> Pretrained:
    """Load the model and tokenizer behind `name`, complete and consistent, or raise ModelError."""
    path = resolve_model(name, notify)
    tokenizer = load_tokenizer(path)
    notify(f"loading {name}")
    model = gguf_model(path) if path.is_file() else _folder_model(path)
    _check_vocabulary(model, tokenizer, path)
    return Pretrained(model, tokenizer, name, path)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model folder (or `.gguf` file); it has an end token. Raises ModelError."""
    if folder.is_file():
        return _with_end_token(gguf_tokenizer(folder), folder)
    _read_config(folder)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer: put the tokenizer.json of this model (or of its base) there")
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            raise ModelError(f"{folder}: the tokenizer cannot be read: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: the tokenizer has no fast form; add a tokenizer.json of the `tokenizers` library")
    return _with_end_token(tokenizer, folder)


def fingerprint(folder: Path) -> str:
    """sha256 over names and bytes of config.json and all *.safetensors of `folder` (or of the one `.gguf` file)."""
    files = [folder] if folder.is_file() else [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# Names


def resolve_model(name: str, notify: Notify = ignore) -> Path:
    """Find what `name` means: the built-in model, a folder or `.gguf` file (as it is), or a Hub id (its snapshot)."""
    if name == BUILTIN:
        from tuneful.model.builtin import builtin_folder

        return builtin_folder(notify)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ModelError(f"{name} is a file: --model takes the folder that holds it, a Hub id or a .gguf file")
    if _looks_like_a_path(name):
        raise ModelError(f"there is no model folder {name}: give a folder, a Hub id or the built-in {BUILTIN}")
    if _means_the_builtin(name.lower()):
        raise ModelError(f"unknown model {name}: did you mean the built-in {BUILTIN}?")
    return _hub_snapshot(name, notify)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith((".gguf", "/"))


def _means_the_builtin(name: str) -> bool:
    return "/" not in name and bool(BUILTIN.startswith(name[:7]) or get_close_matches(name, [BUILTIN], cutoff=0.7))


def _hub_snapshot(name: str, notify: Notify) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    notify(f"fetching {name} from the Hugging Face Hub")
    with quiet(hub_bars=sys.stderr.isatty()):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=HUB_FILES, ignore_patterns=HUB_FILES_IGNORED, library_name="tuneful"
                )
            )
        except errors.HFValidationError as error:
            raise ModelError(f"unknown model {name}: no such folder, and no valid Hub id (owner/name)") from error
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{name} is gated: accept its terms on its Hub page, then set HF_TOKEN or run `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"the Hub at {_endpoint()} knows no model {name}: check the spelling; for a private one set HF_TOKEN. "
                f"The built-in model is {BUILTIN}"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            answered = isinstance(error.__cause__, errors.HfHubHTTPError)
            raise ModelError(_unfetched(name, error.__cause__) if answered else _unreachable(name)) from error
        except Exception as error:  # the network's many faces: whatever it is, the user gets one line
            raise ModelError(_unfetched(name, error)) from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _unfetched(name: str, error: object) -> str:
    return f"{name} could not be fetched from {_endpoint()}: {_first_line(error)}. Try again, or give --model a folder"


def _unreachable(name: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{name} is not in the Hub cache and HF_HUB_OFFLINE is set: unset it once, or give --model a folder"
    return (
        f"{name} is not (wholly) in the Hub cache and {constants.ENDPOINT} cannot be reached: connect once, give "
        f"--model a folder, or set HF_ENDPOINT to a mirror"
    )


# Folders


def _folder_model(folder: Path) -> PreTrainedModel:
    config = _read_config(folder)
    _check_architecture(config, folder)
    _check_weight_files(folder)
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
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
            raise ModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    _check_loading(info, folder)
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds a LoRA adapter, not a model: merge it into its base model first")
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json: a model folder holds one, *.safetensors and a tokenizer")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (ValueError, AssertionError) as error:
        raise ModelError(f"{file} is not a JSON object: {error}; fetch it again") from error
    return config


def _check_architecture(config: Mapping[str, Any], folder: Path) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file, kind = folder / "config.json", config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise ModelError(
                f"{file}: architecture {kind!r} needs Python code from the model folder, which Tuneful never runs; "
                f"choose a model whose architecture is part of transformers"
            )
        raise ModelError(
            f"{file}: model_type {kind!r} is unknown to transformers {transformers.__version__}; "
            f"upgrade it (pip install -U transformers) or choose another model"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{file}: {kind} is no causal language model; choose one that continues text")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        raise ModelError(f"{file}: the weights are quantized ({method}); choose the unquantized model")
    for key, value in _attention_keys(config):
        if "/" in str(value):
            raise ModelError(f"{file}: {key}={value!r} would download and run code; remove this key")


def _attention_keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _attention_keys(value)
        elif "attn_implementation" in key or "experts_implementation" in key:
            yield key, value


def _check_weight_files(folder: Path) -> None:
    files = _weight_files(folder)
    if not files:
        if any(file for pattern in PICKLES for file in folder.glob(pattern)):
            raise ModelError(
                f"{folder} holds pickled weights only, and Tuneful opens safetensors only. Where you trust the source: "
                f'python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('{folder}')\" writes a model.safetensors beside them"
            )
        raise ModelError(f"{folder} has no weights: model.safetensors is missing")
    for file in files:
        _check_safetensors(file)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights: {_first_line(error)}; fetch it again") from error
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ModelError(f"{folder} lacks {_named(missing)}, which {index.name} lists: fetch the folder again")
    return [folder / shard for shard in shards]


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise ModelError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({_first_line(error)}): fetch it again") from error


def _check_loading(info: Any, path: Path) -> None:
    """Refuse what transformers only warns of: weights left random, dropped or of another shape."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{path}: the weights lack {_named(missing)}; they would be random. Fetch the model again")
    unexpected = sorted(name for name in info["unexpected_keys"] if not LEGACY_BUFFERS.search(name))
    if unexpected:
        raise ModelError(
            f"{path}: the weights hold {_named(unexpected)}, which the architecture in config.json does not have; "
            f"config.json and weights belong to different models"
        )
    if mismatched := sorted(f"{name} {list(found)} for {list(want)}" for name, found, want in info["mismatched_keys"]):
        raise ModelError(f"{path}: weights of another shape than config.json says: {_named(mismatched)}")
    problems: Any = info.get("error_msgs") or info.get("conversion_errors")
    if problems:
        lines = list(problems.values()) if isinstance(problems, dict) else list(problems)
        raise ModelError(f"{path} cannot be loaded: {_first_line(lines[0])}")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    num_rows = model.get_input_embeddings().weight.shape[0]
    top = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if top[1] >= num_rows:
        raise ModelError(
            f"{path}: the tokenizer's {top[0]!r} has id {top[1]}, but the embedding table has {num_rows} rows; "
            f"tokenizer and weights belong to different models"
        )


def _with_end_token(tokenizer: PreTrainedTokenizerBase, path: Path) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise ModelError(f'{path}: the tokenizer has no end token; add "eos_token": "..." to its tokenizer_config.json')
    return tokenizer


# GGUF


def gguf_model(file: Path) -> PreTrainedModel:
    """Read a `.gguf` file into a plain float32 model: weights dequantized, no trace of quantization left on it."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32, "local_files_only": True}
    with contextlib.suppress(ImportError):  # transformers without packed GGUF weights always unpacks them
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's own bar obeys no setting
        try:
            model, info = AutoModelForCausalLM.from_pretrained(str(file.parent), output_loading_info=True, **options)
        except Exception as error:
            raise ModelError(f"{file} cannot be read as a GGUF model: {_first_line(error)}") from error
    _check_loading(info, file)
    _forget_quantization(model)
    return model.eval()


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Build the fast tokenizer that a `.gguf` file describes, splitting text as `tokenizer.ggml.pre` demands."""
    from transformers import AutoTokenizer

    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{file}: its tokenizer cannot be read: {_first_line(error)}") from error
    _set_splitter(tokenizer, _gguf_splitter(file), file)
    return tokenizer


def _set_splitter(tokenizer: PreTrainedTokenizerBase, splitter: str | None, file: Path) -> None:
    """transformers splits as GPT-2 does where it does not know the splitter; `"a  42"` would get other tokens."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or splitter in (None, *GPT2_SPLITTERS):
        return
    if splitter not in DIGIT_SPLITTERS:
        raise ModelError(f"{file}: text splitter {splitter!r} is not known here; use the model's safetensors folder")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gguf_splitter(file: Path) -> str | None:
    """Value of the key `tokenizer.ggml.pre`. A GGUF key is its length, its bytes, a type (8 is a string), its value."""
    key = b"tokenizer.ggml.pre"
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
        start = data.find(entry)
        if start < 0:
            return None
        start += len(entry)
        (length,) = struct.unpack_from("<Q", data, start)
        return bytes(data[start + 8 : start + 8 + length]).decode()


def _forget_quantization(model: PreTrainedModel) -> None:
    model.hf_quantizer = None
    model.is_quantized, model.quantization_method = False, None
    model.generation_config._from_model_config = False
    for owner, name in ((model.config, "quantization_config"), (model.config, "_model_name_or_path")):
        if hasattr(owner, name):
            delattr(owner, name)


# Words


@contextlib.contextmanager
def quiet(hub_bars: bool = False) -> Iterator[None]:
    """Hold back the bars and warnings of transformers (and of the Hub, unless `hub_bars`) while the block runs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (enable_progress_bars if hub_bars and hub else disable_progress_bars)()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        (enable_progress_bars if hub else disable_progress_bars)()


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more
