"""A tiny random Llama as transformers saves it, damaged in what their documents and headers say."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tests.doubles.damaged_bytes import ANY_FILE, MARKER, NUMBERS, Mutation
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
WEIGHTS = "model.safetensors"
_DOCUMENTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)
NESTED = '{"a":' * 10_000
ODD: tuple[Any, ...] = (
    *NUMBERS,
    *(
        math.nan,
        math.inf,
        1e308,
        2.5,
        10**4_000,
        True,
        None,
        "",
        "16",
        "x" * 1_000_000,
        "../../x",
        "\ud800",
        "\x1b[31m",
    ),
    *([], [16], {}, {"a": 1}, [[]] * 1_000, list(range(100_000))),
)


def write_huggingface_folder(folder: Path) -> Path:
    """Write the undamaged model folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([END, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 257,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(**sizes, **ends, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": END, "pad_token": END}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}<|end|>"
    )
    return folder


def edit(file: Path, change: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


# What the documents say


def value(folder: Path, rng: random.Random) -> None:
    file = folder / rng.choice(_DOCUMENTS)
    edit(file, {rng.choice(list(json.loads(file.read_text()))): rng.choice(ODD)})


def config(folder: Path, rng: random.Random) -> None:
    file = folder / "config.json"
    others: tuple[str, ...] = (
        "num_labels",
        "rope_parameters",
        "rope_scaling",
        "layer_types",
        "sliding_window",
        "text_config",
        "dtype",
    )
    others += (
        "quantization_config",
        "attn_implementation",
        "_attn_implementation",
        "head_dim",
        "id2label",
        "model_type",
    )
    edit(file, {rng.choice([*json.loads(file.read_text()), *others]): rng.choice(ODD)})


def generation(folder: Path, rng: random.Random) -> None:
    keys: tuple[str, ...] = (
        "eos_token_id",
        "bos_token_id",
        "max_length",
        "temperature",
        "top_k",
        "do_sample",
        "num_beams",
        "cache_implementation",
    )
    edit(folder / "generation_config.json", {rng.choice(keys): rng.choice(ODD)})


def sizes(folder: Path, rng: random.Random) -> None:
    keys: tuple[str, ...] = (
        "num_hidden_layers",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    )
    keys += ("max_position_embeddings", "head_dim", "num_labels")
    edit(
        folder / "config.json",
        {key: rng.choice((1_000_000, *NUMBERS)) for key in rng.sample(keys, rng.choice((1, 1, 2)))},
    )


def family(folder: Path, rng: random.Random) -> None:
    kinds = (
        "gpt2",
        "gptj",
        "gpt_neo",
        "mixtral",
        "qwen3_moe",
        "mamba",
        "bert",
        "t5",
        "falcon",
        "opt",
        "xlnet",
        "gemma3",
    )
    huge: dict[str, Any] = {"num_local_experts": 10**9, "num_experts": 10**9, "n_layer": 10**9, "n_positions": 10**6}
    huge |= {"attention_types": [[["global", "local"], 10**9]], "num_layers": 10**9, "d_model": 1 << 40}
    edit(
        folder / "config.json", {"model_type": rng.choice(kinds), **dict(rng.sample(sorted(huge.items(), key=str), 2))}
    )


def text(folder: Path, rng: random.Random) -> None:
    file = folder / rng.choice(_DOCUMENTS)
    good = file.read_text()
    kinds = (
        *(
            "",
            "null",
            "[]",
            "3",
            '"x"',
            f"[{good}]",
            f"\ufeff{good}",
            NESTED,
            "[" * 100_000,
            good[:-1] + ',"a":' + NESTED,
        ),
        good.replace("}", ', "a": NaN, "b": -Infinity, "a": 1e999}', 1),
        good.replace("{", '{"model_type": "x", "vocab_size": 1, "added_tokens": 3, "eos_token": 7,', 1),
        good[:-1] + ', "deep": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
        good[:-1] + ', "many": [' + "[]," * 2_000_000 + "1]}",
        good[:-1] + ', "long": ' + "9" * 4_000_000 + "}",
    )
    file.write_text(rng.choice(kinds), encoding="utf-8")


def tokens(folder: Path, rng: random.Random) -> None:
    one = {"content": "a" * 100_000, "special": True}
    ends: tuple[Any, ...] = ({"content": []}, "nowhere", {"__type": "AddedToken"}, ["a"], "")
    many = {str(number): {"content": f"t{number}", "special": False} for number in range(20_000)}
    changes: tuple[dict[str, Any], ...] = (
        *({"added_tokens_decoder": {"0": rng.choice((one, [], 3, {"content": 3}))}}, {"added_tokens_decoder": many}),
        *({"eos_token": end} for end in ends),
        {
            "tokenizer_class": rng.choice(
                ("Nothing", "os.system", "GPT2Tokenizer", "LlamaTokenizer", "BertTokenizer", 3)
            )
        },
        {"auto_map": {"AutoTokenizer": ["tokenization.T", "tokenization.T"]}, "tokenizer_class": "T"},
        {
            "chat_template": rng.choice(
                ("{% for i in range(10**9) %}{{ i }}{% endfor %}", 3, {"a": "b"}, [{"name": 1}], "{{")
            )
        },
        *({key: 1 << 62} for key in ("max_length", "model_max_length", "pad_to_multiple_of")),
        {"padding_side": "up"},
    )
    edit(folder / "tokenizer_config.json", rng.choice(changes))


def steps(folder: Path, rng: random.Random) -> None:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    anywhere = {"type": "Replace", "pattern": {"Regex": ""}, "content": "aa"}
    arabic = {"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"}
    charsmap = "BAAAAAAAAAA" + "YWFh" * 1_000_000
    kinds: tuple[dict[str, Any], ...] = (
        {"normalizer": {"type": "Sequence", "normalizers": [double] * 40}},
        {"normalizer": {"type": "Sequence", "normalizers": [anywhere] * 12}},
        {"normalizer": {"type": "Sequence", "normalizers": [arabic, {"type": "NFKC"}, {"type": "Lowercase"}] * 20}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}},
        {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 150 + "]}" * 150)},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}] * 40}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"decoder": {"type": "Sequence", "decoders": [double] * 40}},
        {"padding": {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": END}},
        {"truncation": {"direction": "Right", "max_length": rng.choice((0, 1)), "strategy": "LongestFirst", "stride": 0}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
                            "pair": [], "special_tokens": {}}},
        {"model": {**json.loads((folder / "tokenizer.json").read_text())["model"], "continuing_subword_prefix": "a" * 10**7}},
    )  # fmt: skip
    kind: dict[str, Any] = rng.choice(kinds)
    edit(folder / "tokenizer.json", kind)
    added = {"id": 300, "content": "a" * 50, "special": False, "normalized": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    if "normalizer" in kind:
        edit(
            folder / "tokenizer.json",
            {"added_tokens": [*json.loads((folder / "tokenizer.json").read_text())["added_tokens"], added]},
        )
        if rng.random() < 0.3:
            file = folder / "tokenizer.json"
            file.write_text(file.read_text().replace('"normalizer"', '"\\u006eorm\\u0061lizer"'))


def templates(folder: Path, rng: random.Random) -> None:
    more = folder / "additional_chat_templates"
    kinds = (
        lambda: (folder / "chat_template.jinja").write_text(
            "{% set x = 'a' %}" + "{% set x = x + x %}" * 60 + "{{ x }}"
        ),
        lambda: (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        lambda: (folder / "chat_template.jinja").write_text("(" * 100_000 + "{{" + "(" * 10_000),
        lambda: (folder / "chat_template.json").write_text(rng.choice(("{", "[]", '{"chat_template": 3}', NESTED))),
        lambda: (more.mkdir(), (more / "a.jinja").symlink_to("/dev/zero")),
        lambda: (more.mkdir(), os.mkfifo(more / "a.jinja")),
        lambda: more.symlink_to("/dev"),
    )
    rng.choice(kinds)()


# What the weights say


def header(folder: Path, rng: random.Random) -> None:
    file = next(folder.glob("*.safetensors"))
    length, document, data = _parts(file)
    name, other = rng.sample([name for name in document if name != "__metadata__"], 2)
    odd = rng.choice(ODD)
    kind = rng.randrange(12)
    if kind == 0:
        length = rng.choice((*(number & (1 << 64) - 1 for number in NUMBERS), length + 8, 100_000_000, 99_999_999))
    elif kind == 1:
        document[name]["data_offsets"] = document[other]["data_offsets"]
    elif kind == 2:
        document[name]["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
    elif kind in (3, 4, 5):
        document[name][("dtype", "shape", "data_offsets")[kind - 3]] = odd
    elif kind == 6:
        document[name]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 200)))]
    elif kind == 7:
        document[rng.choice(("../x", "\x1b[31m", "a" * 5_000, "", "model.layers.99.x"))] = document.pop(name)
    elif kind == 8:
        document |= {
            f"more.{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(50_000)
        }
    elif kind == 9:
        document[name] = odd
    elif kind == 10:
        document["__metadata__"] = odd
    elif kind == 11:
        document[name], document[other] = document[other], document[name]
    encoded = json.dumps(document).encode() if kind != 0 or rng.random() < 0.7 else NESTED.encode()
    stated = length if kind == 0 else len(encoded)
    file.write_bytes(stated.to_bytes(8, "little") + encoded + data)


def _parts(file: Path) -> tuple[int, dict[str, Any], bytes]:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return length, json.loads(content[8 : 8 + length]), content[8 + length :]


def shards(folder: Path, rng: random.Random) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: parts[number % 2] for number, name in enumerate(weights)}
    for part in parts:
        save_file({name: weights[name] for name in weights if places[name] == part}, folder / part, {"format": "pt"})
    odd: tuple[Any, ...] = (*ODD, "../base.safetensors", "/etc/passwd", "no.safetensors", "config.json", ".", "a\0b")
    kinds: tuple[Any, ...] = (
        *({"weight_map": {**places, rng.choice(list(places)): rng.choice(odd)}} for _ in range(3)),
        {"weight_map": rng.choice(ODD)},
        {"weight_map": {f"t{number}": f"{number}.safetensors" for number in range(100_000)}},
        {"weight_map": dict.fromkeys(places, parts[0])},
        {"metadata": rng.choice(ODD), "weight_map": places},
        [],
    )
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(rng.choice(kinds)))
    if rng.random() < 0.3:
        (folder / rng.choice(parts)).unlink()


def numbers(folder: Path, rng: random.Random) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    names = rng.choice((list(weights), [rng.choice(list(weights))]))
    odd = rng.choice((math.nan, math.inf, -math.inf, 0.0, 1e30, 3e38, 1e-40))
    save_file(
        {name: np.full_like(one, odd) if name in names else one for name, one in weights.items()},
        file,
        {"format": "pt"},
    )


def shapes(folder: Path, rng: random.Random) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = rng.choice(list(weights))
    other = (weights[name].T.copy(), weights[name][:1], weights[name].reshape(-1), np.zeros((0, 16), np.float32))
    weights[name] = rng.choice((*other, weights[name].astype(np.float16), weights[name].astype(np.int8)))
    save_file(weights, file, {"format": "pt"})


# Code, and places


def code(folder: Path, rng: random.Random) -> None:
    program = f"open({str(folder.parent / MARKER)!r}, 'w')"
    for name in (
        "modeling.py",
        "configuration.py",
        "tokenization.py",
        "custom_generate/generate.py",
        "requirements.txt",
        "setup.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(program)
    pickle = b"cbuiltins\nexec\n(V" + program.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle)
    auto = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}
    for change in rng.sample(
        (
            lambda: edit(folder / "config.json", {"auto_map": auto}),
            lambda: edit(folder / "config.json", {"auto_map": auto, "model_type": "custom"}),
            lambda: edit(folder / "config.json", {"attn_implementation": "someone/kernels"}),
            lambda: edit(folder / "config.json", {"experts_implementation": "someone/kernels"}),
            lambda: edit(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "tokenization.T"]}}),
            lambda: (folder / WEIGHTS).unlink(),
            lambda: (folder / WEIGHTS).write_bytes(pickle),
            lambda: (folder / "tokenizer.json").unlink(),
            lambda: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "."}'),
        ),
        2,
    ):
        change()


def link_in_a_cache(folder: Path, rng: random.Random) -> None:
    """A folder of the Hub's cache, whole; or one whose link leads to another place."""
    home = folder.parent / "models--a--b"
    shutil.copytree(folder, home / "snapshots" / "1")
    (home / "blobs").mkdir()
    file = home / "snapshots" / "1" / rng.choice(_DOCUMENTS)
    place = home / rng.choice(("blobs", "blobs", "refs")) / "3f7a"
    place.parent.mkdir(exist_ok=True)
    shutil.move(file, place)
    file.symlink_to(Path("../..") / place.parent.name / place.name)
    shutil.rmtree(folder)
    folder.symlink_to(home / "snapshots" / "1")


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        *(*ANY_FILE, value, config, generation, sizes, family, text, tokens, steps, templates),
        *(header, shards, numbers, shapes, code, link_in_a_cache),
    )
}
