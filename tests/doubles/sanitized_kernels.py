"""The kernels on odd shapes, for a process in which a sanitizer watches memory.

Run by `tests/model/test_sanitized_kernels.py`. Every piece of memory that they are given is as large as they asked for and not
a byte larger; what they compute is tested elsewhere.
"""

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import torch
from tests.doubles.engine import random_records, record
from tests.infer import test_compiled as answering
from tests.model import test_layer_adapters as adapters

from tuneful.batch.trie import build_trie, cut_blocks
from tuneful.config import TrainConfig
from tuneful.infer import compiled
from tuneful.model import layers, native, products
from tuneful.model.attention_native import MAX_QUERIES, NativeAttention, lay_out_blocks
from tuneful.model.elementwise import GatedSilu, Rotation
from tuneful.model.nf4 import dequantize, quantize_nf4
from tuneful.model.norms import RmsNorm
from tuneful.train.loss import WeightedCrossEntropy
from tuneful.train.update import NativeUpdate, Trained

BATCHES = [build_trie([record([5], [6])]), build_trie([record([5], [6, 7])]), build_trie(random_records(3, longest=9))]
HEADS = [(1, 1, 2), (6, 2, 6), (3, 3, 22), (4, 2, 64), (2, 1, 128), (1, 1, 256), (7, 1, 10), (12, 4, 4)]
GROUPINGS = [(1, 1), (2, 1), (2, 2), (3, 1), (6, 2), (9, 3), (4, 4), (5, 5), (7, 1), (8, 2), (16, 1), (13, 13)]
SIZES = [2, 3, 4, 6, 7, 8, 15, 16, 22, 33, 64, 80, 96, 128, 250, 256]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
RANKS = [(2,) * 7, (16,) * 7, (0, 2, 0, 18, 64, 0, 66), (0,) * 7]
WIDTHS = [(64, 96), (70, 102), (2, 2), (66, 2050)]


def all_layers() -> None:
    """Decoder layers forward and backward, with one thing or another frozen."""
    library = native.kernels(torch.device("cpu"), torch.bfloat16)
    for turn, (heads, ranks) in enumerate(itertools.product(HEADS, RANKS)):
        torch.set_num_threads(1 + turn % 7)
        shape = adapters.Shape(heads, *WIDTHS[(turn + turn // 4) % 4], ranks, biases=bool(turn % 2))
        batch = BATCHES[turn % 3]
        read = torch.from_numpy(batch.target_rows).long().unique() if turn % 5 < 2 else None
        window = (None, 1, 2, 5)[turn % 4]
        options = adapters.make_options(shape, library, batch, window, read_rows=read, recompute=turn % 3 == 0)
        parameters = adapters.make_parameters(shape)
        for i, parameter in enumerate(parameters):
            if parameter is not None and (turn + i) % 4 == 0:
                parameter.requires_grad_(False)
        hidden, *angles = (random(1, batch.num_nodes, size) for size in (shape.width, heads[2], heads[2]))
        output = layers.DecoderLayer.apply(hidden.requires_grad_(turn % 7 > 0), *angles, options, *parameters)
        output.backward(random(*output.shape))


def all_windows() -> None:
    """Attention over short and long paths, of windows and caps, in every number."""
    library = native.kernels(torch.device("cpu"), torch.float32)
    assert library is not None
    branches = build_trie([record(range(1, 70), range(2, length)) for length in (3, 90, 91, 200)])
    cases = itertools.product((*BATCHES, branches), (None, 1, 2, 17, 70), (0.0, 0.5), native.KINDS)
    for turn, (batch, window, softcap, dtype) in enumerate(cases):
        torch.set_num_threads(1 + turn % 7)
        num_heads, num_key_heads, size = HEADS[turn % 5]
        blocks = lay_out_blocks(cut_blocks(batch, 128, window), num_key_heads, library)
        counts = (num_heads, num_key_heads, num_key_heads)
        rows = [torch.randn(1, batch.num_nodes, count, size).to(dtype).transpose(1, 2) for count in counts]
        inputs = [one.requires_grad_() for one in rows]
        output = NativeAttention.apply(*inputs, blocks, 0.3, softcap)
        output.backward(torch.ones_like(output))


def all_products() -> None:
    """Products of one row and of more than a stretch of the depth has."""
    library = native.kernels(torch.device("cpu"), torch.bfloat16)
    cases = itertools.product((1, 5, 49, 2100), (2, 66, 4100), (2, 16, 70))
    for turn, (num_rows, depth, rank) in enumerate(cases):
        if num_rows * depth > 1 << 18:
            continue
        torch.set_num_threads(1 + turn % 7)
        rows, parameters = random(num_rows, depth).requires_grad_(), []
        for size in (2, 64, 130):
            parameters += [random(size, depth), random(size), random(rank, depth), random(size, rank)]
        trained = [parameter.requires_grad_() for parameter in parameters]
        without_adapter = (random(8, depth), None, None, None)
        found = products.MatrixProducts.apply(library, rows, [2.0, 1.0, 0.3, 1.0], *trained, *without_adapter)
        torch.autograd.backward(found, [random(*one.shape) for one in found])


def all_products_in_4_bits() -> None:
    """Of one stretch of the depth and of more, of a whole panel of columns and of parts."""
    library = native.kernels(torch.device("cpu"), torch.bfloat16)
    for turn, (num_rows, depth) in enumerate(itertools.product((1, 5, 49), (64, 192, 2112))):
        torch.set_num_threads(1 + turn % 7)
        rows, fours = random(num_rows, depth).requires_grad_(), []
        for size in (2, 64, 130):
            weight, low = quantize_nf4(random(size, depth)), (random(16, depth), random(size, 16))
            fours += [weight, random(size), *(one.requires_grad_() for one in low)]
            dequantize(weight, torch.bfloat16)
        found = products.MatrixProducts.apply(library, rows, [2.0, 1.0, 0.3], *fours)
        torch.autograd.backward(found, [random(*one.shape) for one in found])


def all_attention() -> None:
    """Every grouping of heads with every size of them, values of another size and rows apart among them."""
    for turn, ((num_heads, num_key_heads), size) in enumerate(itertools.product(GROUPINGS, SIZES)):
        library, dtype = take(turn)
        batch = BATCHES[turn % 3]
        blocks = lay_out_blocks(cut_blocks(batch, 1 + turn % MAX_QUERIES), num_key_heads, library)
        value_size = size if turn % 4 else SIZES[turn % len(SIZES)]
        sizes = (num_heads, size), (num_key_heads, size), (num_key_heads, value_size)
        query, key, value = (random(1, batch.num_nodes, *one, dtype=dtype) for one in sizes)
        if turn % 5 == 0:
            key = torch.cat((key, key), -1)[..., :size]
        given = [one.transpose(1, 2).requires_grad_() for one in (query, key, value)]
        output = NativeAttention.apply(*given, blocks, 0.3)
        output.backward(random(*output.shape, dtype=dtype))


def all_rows() -> None:
    """Norms, rotations and gates of one row and of several, and losses of none, one and several over small vocabularies."""
    for turn, (num_rows, size) in enumerate(itertools.product((1, 2, 9, 40), SIZES)):
        library, dtype = take(turn)
        rows, weight = random(num_rows, size, dtype=dtype), random(size, dtype=dtype)
        back_and_forth(RmsNorm.apply, rows.requires_grad_(), weight.requires_grad_(), 1e-6, float(turn % 2), library)
        gate, up = (random(num_rows, size, dtype=dtype).requires_grad_() for _ in range(2))
        back_and_forth(GatedSilu.apply, gate, up, library)
        angles = [random(1, num_rows, 2 * size, dtype=dtype) for _ in range(2)]
        heads = random(1, 1 + turn % 5, num_rows, 2 * size, dtype=dtype).requires_grad_()
        back_and_forth(Rotation.apply, heads, *angles, library)
    for turn, (num_rows, size) in enumerate(itertools.product((0, 1, 2, 17), (7, 8, 15, 16, 31, 97, 1031))):
        _, dtype = take(turn)
        logits, ids = random(num_rows, size, dtype=dtype).requires_grad_(), torch.arange(num_rows) * 5 % size
        total, _ = WeightedCrossEntropy.apply(logits, ids, torch.rand(num_rows))
        total.backward()


def all_updates() -> None:
    """Steps of AdamW on parameters of one element and of more than a chunk, masters with and without a copy of bfloat16."""
    for turn, sizes in enumerate([(1,), (7, 1, 65_539), (16, 33), (65_536,), (131_073, 2)] * 2):
        library, _ = take(turn)
        dtype, low = (torch.float64, False) if turn % 3 == 2 else (torch.float32, turn % 2 == 0)
        trained = []
        for size in sizes:
            parameter = torch.nn.Parameter(random(size, dtype=torch.bfloat16 if low else dtype))
            parameter.grad = random(size, dtype=parameter.dtype)
            master, mean, square = (torch.rand(size, dtype=dtype) for _ in range(3))
            trained.append(Trained("", parameter, master, mean, square, weight_decay=0.1))
        update = NativeUpdate(trained, TrainConfig(), low, library)
        update.step(1, 1e-3, 1 + update.squared_norm())


def all_steps() -> None:
    """Steps of decoders that answer: rows that enter and leave, a prefix or none, prompts that are alike."""
    for family, heads, widths, num_threads, num_shared in answering.CASES[::3]:
        torch.set_num_threads(num_threads)
        for dtype in answering.TOLERANCE:
            model = answering.small(family, heads, widths, dtype)
            prompts = answering.prompts_of(num_shared)
            answering.enter_and_leave(answering.decoder_of(model, 5, num_shared), model, prompts, 4)
    with torch.no_grad():
        answering.decoder_of(model, 40).admit([[3, 4]] * 39 + [[3]])


def back_and_forth(function: Callable[..., torch.Tensor], *given: Any) -> None:
    output = function(*given)
    output.backward(random(*output.shape, dtype=output.dtype))


def take(turn: int) -> tuple[ctypes.CDLL, torch.dtype]:
    """The library and a dtype, and another number of threads than the turn before."""
    torch.set_num_threads(1 + turn % 7)
    dtype = DTYPES[turn % 3]
    library = native.kernels(torch.device("cpu"), dtype)
    assert library is not None, native.describe()
    return library, dtype


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def exactly(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


if __name__ == "__main__":
    for module in (layers, products, compiled):
        vars(module)["thread_workspace"] = exactly
    for check in (
        all_layers,
        all_products,
        all_products_in_4_bits,
        all_attention,
        all_windows,
        all_rows,
        all_updates,
        all_steps,
    ):
        check()
    print(native.describe())
