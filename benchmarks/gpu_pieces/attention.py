"""Is attention right? Output and gradients of each implementation beside dense scores in float64, a head at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu_pieces.place import Piece, Place
from gpu_pieces.records import trie_of
from tuneful.batch.trie import TrieBatch, cut_blocks, padded_trie, visible
from tuneful.model import attention_torch
from tuneful.model.attention import moved
from tuneful.model.attention_flex import lay_out_flex, padded_length
from tuneful.model.attention_torch import GroupedAttention, lay_out_groups
from tuneful.model.attention_varlen import lay_out_varlen
from tuneful.model.repeatable import repeatable

HEADS = ((9, 3, 64), (32, 8, 64), (28, 4, 128), (12, 2, 128))
"""Query heads, key heads, size: SmolLM2 135M, Llama 3.2 1B, Qwen2.5 7B and 1.5B."""
NODES = (1, 97, 127, 128, 129, 300, 1000, 2048, 4099, 16384)
LARGEST_ORACLE = 4099
IMPLEMENTATIONS = {"varlen": (torch.bfloat16, torch.float16), "torch": (torch.bfloat16, torch.float32)}
IMPLEMENTATIONS["flex"] = IMPLEMENTATIONS["torch"]
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Attend = Callable[[Heads], torch.Tensor]


def attention_pieces(place: Place) -> Iterator[Piece]:
    """Every implementation at every size, precision and shape of heads; on a CPU the one that runs there."""
    for name, dtypes in IMPLEMENTATIONS.items():
        if place.kind == "cpu" and name != "torch":
            continue
        for dtype in dtypes:
            for heads in ((4, 2, 8),) if place.tiny else HEADS:
                for num_nodes in (1, 129) if place.tiny else NODES:
                    sizes = "x".join(map(str, heads))
                    key = f"attention/{name}/{str(dtype).removeprefix('torch.')}/{sizes}/{num_nodes}"
                    measured = functools.partial(_measured, place, name, dtype, heads, num_nodes)
                    yield Piece(key, f"attention/{name}", measured)


def _measured(
    place: Place, name: str, dtype: torch.dtype, heads: tuple[int, int, int], num_nodes: int
) -> dict[str, Any]:
    num_heads, _, size = heads
    batch = trie_of(num_nodes)
    padded = padded_trie(batch, padded_length(num_nodes)) if name == "flex" else batch
    attend = _attend(name, padded, heads, dtype, place.device)
    inputs = _inputs(padded.num_nodes, heads, dtype, place.device)
    upstream = torch.randn(1, padded.num_nodes, num_heads, size, device=place.device).to(dtype)
    upstream[:, num_nodes:] = 0
    found: list[torch.Tensor] = []

    def call() -> None:
        with repeatable(place.device):
            output = attend(inputs)
            found[:] = [output.detach(), *torch.autograd.grad(output, inputs, upstream)]

    graphs = _num_graphs()
    first, seconds = place.timed(call)
    kept = [tensor.clone() for tensor in found]
    call()
    figures: dict[str, Any] = {
        "ms": 1e3 * seconds,
        "compile_seconds": first - seconds,
        "graphs": _num_graphs() - graphs,
        "repeats": all(torch.equal(one, other) for one, other in zip(kept, found, strict=True)),
        "peak_gb": place.peak_gb(),
        "finite": all(bool(tensor.isfinite().all()) for tensor in found),
    }
    if num_nodes <= LARGEST_ORACLE:
        wanted = _oracle(batch, inputs, upstream, size**-0.5)
        own = [found[0][:, :num_nodes], *(tensor[:, :, :num_nodes] for tensor in found[1:])]
        names = ("output", "query", "key", "value")
        apart = {one: _apart(two, other) for one, two, other in zip(names, own, wanted, strict=True)}
        figures |= {**apart, "worst": max(apart.values())}
    return figures


def _attend(
    name: str, batch: TrieBatch, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Attend:
    scale = heads[2] ** -0.5
    if name in ("varlen", "flex"):
        layout = (lay_out_varlen if name == "varlen" else lay_out_flex)(batch, None, device)
        return lambda inputs: layout.attend(*inputs, scale, None)
    blocks = cut_blocks(batch, attention_torch.MAX_QUERIES)
    groups = moved(lay_out_groups(blocks, batch.num_nodes, *heads[:2], dtype), device)
    return lambda inputs: GroupedAttention.apply(*inputs, groups, scale)


def _inputs(num_nodes: int, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Heads:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, num_nodes, count, heads[2], device=device).to(dtype).transpose(1, 2).detach().requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    )
    return query, key, value


def _oracle(batch: TrieBatch, inputs: Heads, upstream: torch.Tensor, scale: float) -> list[torch.Tensor]:
    """Output [1, N, H, D] and gradients [1, heads, N, D] in float64: no more than one head's N x N scores at once."""
    num_nodes, device = batch.num_nodes, upstream.device
    query, key, value = (tensor.detach()[0, :, :num_nodes].double() for tensor in inputs)
    hidden = ~torch.from_numpy(visible(batch)).to(device)
    output, to_query = torch.zeros_like(query), torch.zeros_like(query)
    to_key, to_value = torch.zeros_like(key), torch.zeros_like(value)
    repeats = len(query) // len(key)
    for head in range(len(query)):
        own = head // repeats
        probabilities = (query[head] @ key[own].T * scale).masked_fill_(hidden, -torch.inf).softmax(-1)
        grad = upstream[0, :num_nodes, head].double()
        output[head] = probabilities @ value[own]
        to_value[own] += probabilities.T @ grad
        slopes = probabilities * (grad @ value[own].T - (grad * output[head]).sum(-1, keepdim=True)) * scale
        to_query[head] = slopes @ key[own]
        to_key[own] += slopes.T @ query[head]
    return [output.transpose(0, 1)[None], *(one[None] for one in (to_query, to_key, to_value))]


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference, as a share of the norm of what is wanted; alone where nothing is."""
    apart, norm = (found.double() - wanted).norm().item(), wanted.norm().item()
    return float(apart / norm if norm else apart)


def _num_graphs() -> int:
    counters = torch._dynamo.utils.counters if hasattr(torch, "_dynamo") else {}
    return int(counters["stats"]["unique_graphs"]) if counters else 0
