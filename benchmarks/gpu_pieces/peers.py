"""The same step by others: transformers as it is, with Liger's kernels, and TRL's trainer, where they can be imported.

The same random weights, records and loss: the mean over the trained tokens. An adapter is peft's. Their best known settings:
bfloat16 autocast over float32 weights (a frozen base in bfloat16), fused AdamW, no activation checkpointing; records padded, or
one after another in one row with positions that begin anew (`packed`), which FlashAttention keeps apart where it is installed.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gpu_pieces.place import Piece, Place
from gpu_pieces.records import records_of
from gpu_pieces.steps import MEASURED, WARMUP, Shape, held_in, make_model, nodes_of, shapes_of
from tuneful.types import Example

IGNORED = -100
RANK, ALPHA = 16, 32


def peer_pieces(place: Place) -> Iterator[Piece]:
    """Each system that is there at each shape and number of nodes."""
    measured: dict[str, Callable[..., dict[str, Any]]] = {"transformers-padded": _by_transformers}
    if place.kind == "cuda" and importlib.util.find_spec("liger_kernel"):
        measured["liger-padded"] = functools.partial(_by_transformers, liger=True)
    if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets"):
        measured["trl-padded"] = _by_trl
        if place.kind == "cuda" and importlib.util.find_spec("flash_attn"):
            measured["trl-packed"] = functools.partial(_by_trl, packed=True)
    for name, measure in measured.items():
        for shape in shapes_of(place):
            if shape.method == "lora" and not importlib.util.find_spec("peft"):
                continue
            for num_nodes in nodes_of(place):
                key = f"peer/{name}/{shape.name}/{shape.method}/{num_nodes}"
                yield Piece(key, f"peer/{name}", functools.partial(measure, place, shape, num_nodes))


def padded(examples: Sequence[Example], device: torch.device) -> dict[str, torch.Tensor]:
    """The records as one batch of ids, labels and a mask, padded to the right."""
    longest = max(map(len, examples))
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(examples):
        own = torch.from_numpy(one.token_ids).long()
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, : len(own)] = torch.where(torch.from_numpy(one.weights) > 0, own, IGNORED)
    return {"input_ids": ids.to(device), "labels": labels.to(device), "attention_mask": mask.to(device)}


def _by_transformers(place: Place, shape: Shape, num_nodes: int, *, liger: bool = False) -> dict[str, Any]:
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    examples = records_of(num_nodes, shape.vocabulary)
    model = _with_adapter(make_model(shape, held_in(shape), place.device), shape)
    batch = padded(examples, place.device)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.1, fused=True)
    losses: list[float] = []

    def step() -> None:
        with torch.autocast(place.kind, torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    place.forget()
    first, seconds = place.timed(step, WARMUP + MEASURED)
    return _figures(place, examples, losses[0], first, seconds)


def _by_trl(place: Place, shape: Shape, num_nodes: int, *, packed: bool = False) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    examples = records_of(num_nodes, shape.vocabulary)
    ends, losses = [time.perf_counter()], []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            place.wait()
            ends.append(time.perf_counter())

    class Heard(SFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            losses.append(loss)
            return loss

    model = _with_adapter(make_model(shape, held_in(shape), place.device), shape)
    rows = [{"input_ids": one.token_ids.tolist(), "labels": _labels(one)} for one in examples]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(examples),
            max_steps=1 + WARMUP + MEASURED,
            learning_rate=1e-5,
            weight_decay=0.1,
            bf16=True,
            use_cpu=place.kind == "cpu",
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            padding_free=packed,
            max_length=None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=place.kind == "cuda",
        )
        place.forget()
        dataset = Dataset.from_list(rows)
        trainer = Heard(
            model=model, args=config, train_dataset=dataset, processing_class=_tokenizer(), callbacks=[Clock()]
        )
        ends[0] = time.perf_counter()
        trainer.train()
    seconds = sorted(later - before for before, later in zip(ends[1 + WARMUP :], ends[2 + WARMUP :], strict=False))
    return _figures(place, examples, float(losses[0]), ends[1] - ends[0], seconds[len(seconds) // 2])


def _labels(example: Example) -> list[int]:
    return [int(one) if weight > 0 else IGNORED for one, weight in zip(example.token_ids, example.weights, strict=True)]


def _tokenizer() -> Any:
    """One that only pads: everything is ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", unk_token="<pad>")


def _with_adapter(model: Any, shape: Shape) -> Any:
    if shape.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))


def _figures(place: Place, examples: Sequence[Example], loss: float, first: float, seconds: float) -> dict[str, Any]:
    return {
        "ms": 1e3 * seconds,
        "first_step_seconds": first,
        "loss": loss,
        "tokens_per_second": sum(map(len, examples)) / seconds,
        "peak_gb": place.peak_gb(),
    }
