"""Tiny random models of every family that a GGUF file is written of, with tokenizers of their own, as folders to export.

Weights are larger than a fresh model's: what is laid out wrongly has to show in the logits.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tuneful.encoding.template import save_template_name

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
ANGLES = {"rope_type": "default", "rope_theta": 50000.0}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
TWO_ANGLES = {
    "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 16, "sliding_window": 16}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": ANGLES}),
    "llama, tied": ("Llama", {"rope_parameters": ANGLES, "tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True}),
    "llama, stretched": ("Llama", {"rope_parameters": STRETCHED}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, square": ("Llama", {"num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 256}),
    "qwen2": ("Qwen2", {"rope_parameters": ANGLES}),
    "qwen3": ("Qwen3", {"rope_parameters": ANGLES, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {**GEMMA}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 6}),
    "gemma3, other angles": ("Gemma3", {**GEMMA, "num_hidden_layers": 6, "rope_parameters": TWO_ANGLES}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
}
CLASSES = {"Gemma3": "Gemma3TextConfig"}
CORPUS = [
    "the river turned north where seven old stones stood",
    "what is the capital of France? Paris.",
    "ab ba aab b a",
]


def tiny_model(variant: str, vocab_size: int, end: int, seed: int = 0) -> Any:
    """A random model, float32, in evaluation mode; its vectors are no zeros and ones."""
    family, options = VARIANTS[variant]
    torch.manual_seed(seed)
    sizes = {} if family == "GPT2" else SIZES
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = getattr(transformers, CLASSES.get(family, f"{family}Config"))(
        **{**sizes, "vocab_size": vocab_size, **ids, "initializer_range": 0.15, **options}
    )
    model = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    return model.eval()


def tiny_folder(variant: str, tokenizer: PreTrainedTokenizerFast, folder: Path, template: str = "alpaca") -> Path:
    """The folder of a tiny model that was trained under `template`."""
    tiny_model(variant, len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_template_name(folder, template)
    return folder


def byte_level_tokenizer(pre_tokenizer: Any = None, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits as GPT-2 does, or by `pre_tokenizer`; with `begins` it puts a begin token before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|endoftext|>")


def sentencepiece_tokenizer(*, prefixed: bool) -> PreTrainedTokenizerFast:
    """A BPE over marked spaces that falls back to bytes, as Gemma's (not `prefixed`) and Llama 2's: it puts <s> before a text."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False, initial_alphabet=["▁"])
    marked = [text.replace(" ", "▁") for text in CORPUS]
    tokenizer.train_from_iterator(marked, trainer)
    trained = tokenizer.get_vocab()
    merges = _merges(tokenizer)
    vocab = {token: number for number, token in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in sorted(trained, key=lambda one: trained[one]):
        vocab.setdefault(token, len(vocab))
    whole = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    whole.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefixed else []), normalizers.Replace(" ", "▁")]
    )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefixed else []),
        ]
    )
    whole.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def tiny_adapter(variant: str, folder: Path, **options: Any) -> Path:
    """peft's folder of a random adapter of rank 4 and alpha 16 on a tiny model, which lies beside it."""
    import peft

    base = tiny_folder(variant, byte_level_tokenizer(), folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    is_gpt2 = variant == "gpt2"
    targets = ["c_attn", "c_fc"] if is_gpt2 else ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=targets, fan_in_fan_out=is_gpt2, task_type="CAUSAL_LM", **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapter = peft.get_peft_model(model, config)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, 0.1)
    adapter.peft_config["default"].base_model_name_or_path = str(base)
    adapter.save_pretrained(folder / "adapter", save_embedding_layers=False)
    byte_level_tokenizer().save_pretrained(folder / "adapter")
    save_template_name(folder / "adapter", "alpaca")
    return folder / "adapter"
