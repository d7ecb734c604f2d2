"""LitGPT's full finetuning step: its GPT, its collator, its chunked cross-entropy, Lightning Fabric.

The body of `litgpt.finetune.full.fit` with what the comparison asks for: the prompt masked, one micro-batch a step,
the gradient clipped (through Fabric), AdamW fused, and the output head tied to the embedding, as the model defines it
and as LitGPT can tie it when pretraining. Variants are Fabric's precisions: `bf16-mixed` (LitGPT's default), `bf16-true`
and `32-true`. With `bf16-true` the weights themselves are bfloat16 and most updates round to nothing: the gate sees it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from litgpt.config import Config
from litgpt.data.base import get_sft_collate_fn
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from safetensors.torch import load_file

from train_peers.worker import Batch, Job, open_job, serve


def load_model(fabric: L.Fabric, folder: Path) -> GPT:
    """LitGPT's model for a Llama-shaped Hugging Face folder, with its weights."""
    hf = json.loads((folder / "config.json").read_text())
    config = Config(
        name=folder.name,
        block_size=hf["max_position_embeddings"],
        vocab_size=hf["vocab_size"],
        padded_vocab_size=hf["vocab_size"],
        n_layer=hf["num_hidden_layers"],
        n_head=hf["num_attention_heads"],
        n_embd=hf["hidden_size"],
        head_size=hf.get("head_dim"),
        n_query_groups=hf["num_key_value_heads"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=hf["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        intermediate_size=hf["intermediate_size"],
        rope_base=int(hf.get("rope_parameters", hf)["rope_theta"]),
    )
    with fabric.init_module():
        model = GPT(config)
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(folder / "model.safetensors"))
    model.load_state_dict(weights)
    if hf["tie_word_embeddings"]:
        model.lm_head.weight = model.transformer.wte.weight
    return model


def sample(ids: list[int], labels: list[int]) -> dict[str, object]:
    """What LitGPT's dataset hands to its collator."""
    counts = {"raw": len(ids), "raw_plus_prompt_template": len(ids)}
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "token_counts": counts}


def make_step(fabric: L.Fabric, job: Job) -> Callable[[Batch], float]:
    """The body of LitGPT's training loop as a function of a batch."""
    model = load_model(fabric, job.model)
    model.max_seq_length = max(len(record.ids) for batch in job.batches for record in batch)
    model = fabric.setup(model)
    settings = {"class_path": "torch.optim.AdamW", "init_args": {"fused": True, **job.optimization.adamw()}}
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer(settings, model.parameters()))
    collate = get_sft_collate_fn()
    model.train()

    def run_step(batch: Batch) -> float:
        inputs = collate([sample(record.ids, record.labels) for record in batch])
        logits = model(inputs["input_ids"])
        loss = chunked_cross_entropy(logits[..., :-1, :], inputs["labels"][..., 1:])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=job.optimization.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return run_step


def main() -> None:
    job, channel = open_job()
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=job.variant)
    fabric.launch()
    dtype = "float32" if job.variant == "32-true" else "bfloat16"
    serve(job, channel, make_step(fabric, job), dtype=dtype)


if __name__ == "__main__":
    main()
