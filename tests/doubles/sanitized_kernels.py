"""The kernels of a layer and of the products on odd shapes, for a process in which a sanitizer watches memory.

Run by `tests/model/test_sanitized_kernels.py`. Every piece of memory that they are given is as large as they asked for and not
a byte larger; what they compute is tested elsewhere.
"""

import itertools

import torch
from tests.doubles.engine import random_records, record
from tests.model import test_layer_adapters as adapters

from tuneful.batch.trie import build_trie
from tuneful.model import layers, native, products
from tuneful.model.nf4 import dequantize, quantize_nf4

BATCHES = [build_trie([record([5], [6])]), build_trie([record([5], [6, 7])]), build_trie(random_records(3, longest=9))]
HEADS = [(1, 1, 2), (6, 2, 6), (3, 3, 22), (4, 2, 64), (2, 1, 128), (1, 1, 256)]
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
        options = adapters.make_options(shape, library, batch, read_rows=read, recompute=turn % 3 == 0)
        parameters = adapters.make_parameters(shape)
        for i, parameter in enumerate(parameters):
            if parameter is not None and (turn + i) % 4 == 0:
                parameter.requires_grad_(False)
        hidden, *angles = (random(1, batch.num_nodes, size) for size in (shape.width, heads[2], heads[2]))
        output = layers.DecoderLayer.apply(hidden.requires_grad_(turn % 7 > 0), *angles, options, *parameters)
        output.backward(random(*output.shape))


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


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(torch.bfloat16)


def exactly(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


if __name__ == "__main__":
    for module in (layers, products):
        vars(module)["thread_workspace"] = exactly
    all_layers()
    all_products()
    all_products_in_4_bits()
    print(native.describe())
