"""The kernels of `kernels.c` as Python calls them, through ctypes: their types, and the library, where there is one.

They serve the model, the loss and the optimizer on the CPU: fused loops that torch would need a dozen passes for. A wheel brings
them for several sets of instructions; elsewhere the user's own compiler makes them for the machine at hand, once, in 3 s
(`library.py`). Where there are none `kernels` returns None, and the torch code next to each call does the same, slower.
`TUNEFUL_NATIVE=0` leaves the kernels out.
"""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from tuneful.files import cache_root
from tuneful.model.native.compiler import NotCompiledError
from tuneful.model.native.library import Found, find_library
from tuneful.model.processor import Processor, pretended, processor

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
"""What the kernels read and write, by their number in `kernels.c`."""


class Attention(ctypes.Structure):
    """`attention` of kernels.c: a trie cut into blocks."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("num_nodes", "num_heads", "num_key_heads", "size", "value_size")],
        *[(name, ctypes.c_int64) for name in ("num_blocks", "num_accumulators", "num_threads", "window")],
        *[(name, ctypes.c_void_p) for name in ("first", "count", "path", "accumulator", "path_start")],
        *[(name, ctypes.c_double) for name in ("scale", "softcap")],
        ("kind", ctypes.c_int64),
    ]


class Heads(ctypes.Structure):
    """`heads` of kernels.c: where a tensor [1, heads, N, D] lies, and how."""

    _fields_ = [("data", ctypes.c_void_p), ("by_head", ctypes.c_int64), ("by_node", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Heads:
        """Those of `tensor`, whose last dimension is contiguous."""
        assert tensor.stride(-1) == 1, tensor.stride()
        return cls(tensor.data_ptr(), tensor.stride(1), tensor.stride(2))


class Parameter(ctypes.Structure):
    """`parameter` of kernels.c: what AdamW reads and writes."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("master", "exp_avg", "exp_avg_sq", "gradient", "low_precision")],
        *[(name, ctypes.c_int64) for name in ("size", "first_chunk", "gradient_kind")],
        ("decay", ctypes.c_double),
    ]


class Nf4(ctypes.Structure):
    """`nf4` of kernels.c: a matrix in 4 bits."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("codes", "scale_codes", "scale_scales", "mean_scale", "levels", "scale_levels")
    ]


class Factor(ctypes.Structure):
    """`factor` of products.h: the matrices of a product, what is added (or null), and where the result goes."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("left", "right", "bias", "residual", "out")],
        ("size", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("low_left", "low_right")],
        ("rank", ctypes.c_int64),
        ("scale", ctypes.POINTER(ctypes.c_float)),
        ("quantized", ctypes.POINTER(Nf4)),
    ]


NUM_LINEARS = 7
"""Linear layers of a decoder layer: query, key, value, output, gate, up, down."""


class Layer(ctypes.Structure):
    """`layer` of layer.h: what a decoder layer reads."""

    _fields_ = [
        ("plan", ctypes.POINTER(Attention)),
        *[(name, ctypes.c_int64) for name in ("width", "inner")],
        *[(name, ctypes.c_double * 2) for name in ("epsilon", "shift")],
        *[(name, ctypes.c_void_p) for name in ("hidden", "cosines", "sines")],
        ("norms", ctypes.c_void_p * 2),
        *[(name, ctypes.c_void_p * NUM_LINEARS) for name in ("weights", "biases", "lora_a", "lora_b")],
        ("quantized", ctypes.POINTER(Nf4) * NUM_LINEARS),
        ("ranks", ctypes.c_int64 * NUM_LINEARS),
        ("scalings", ctypes.c_float * NUM_LINEARS),
        ("read", ctypes.c_void_p),
        ("num_read", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("kept", "workspace")],
    ]


class LayerGradients(ctypes.Structure):
    """`layer_gradients` of layer.h: where the gradients go."""

    _fields_ = [
        ("hidden", ctypes.c_void_p),
        ("norms", ctypes.c_void_p * 2),
        *[(name, ctypes.c_void_p * NUM_LINEARS) for name in ("weights", "biases", "lora_a", "lora_b")],
    ]


class Matrix(ctypes.Structure):
    """`matrix` of kernels.c: a linear layer's weights in panels, and its bias or null."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("panels", "bias")] + [
        (name, ctypes.c_int64) for name in ("depth", "size")
    ]


class DecodeLayer(ctypes.Structure):
    """`decode_layer` of kernels.c: what a layer of a decoder that answers reads."""

    _fields_ = [
        ("norms", ctypes.c_void_p * 2),
        ("head_norms", ctypes.c_void_p * 2),
        *[(name, Matrix) for name in ("heads", "output", "gate", "up", "down")],
        *[(name, ctypes.c_int64) for name in ("rotates", "window")],
    ]


class Decoder(ctypes.Structure):
    """`decoder` of kernels.c: a decoder that answers."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("kind", "num_layers", "width", "inner", "num_heads", "num_key_heads")],
        ("size", ctypes.c_int64),
        *[(name, ctypes.c_double) for name in ("epsilon", "shift", "scale")],
        ("layers", ctypes.POINTER(DecodeLayer)),
        *[(name, ctypes.c_void_p) for name in ("embedding", "norm")],
        ("head", Matrix),
    ]


class LayerCache(ctypes.Structure):
    """`layer_cache` of kernels.c: where the keys and values of a layer lie."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "prefix_keys", "prefix_values")]


class DecodeStep(ctypes.Structure):
    """`decode_step` of kernels.c: the tokens of one call, and where its logits go."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("num_threads", "num_tokens", "num_written", "num_read", "capacity")],
        *[(name, ctypes.c_int64) for name in ("num_shared", "keeps_prefix")],
        *[(name, ctypes.POINTER(Attention)) for name in ("plan", "near")],
        *[(name, ctypes.c_void_p) for name in ("token_ids", "written", "slots", "places", "read", "cosines", "sines")],
        ("caches", ctypes.POINTER(LayerCache)),
        *[(name, ctypes.c_void_p) for name in ("logits", "workspace")],
    ]


MOST_THREADS_WITHOUT_OPENMP = 2
"""Where the kernels have one thread and torch has more than these, torch's operations are faster. `TUNEFUL_NATIVE=1` takes them
all the same."""


def kernels(device: torch.device, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels, where they serve tensors of this device and dtype. ConfigError for a wrong `TUNEFUL_PROCESSOR`."""
    if device.type != "cpu" or dtype not in KINDS or os.environ.get("TUNEFUL_NATIVE") == "0":
        return None
    try:
        library = _library()
    except NotCompiledError:
        return None
    return library if _is_worth_it(library) else None


def describe() -> str:
    """Where the kernels come from on this machine, and what they lack, or why there are none; for people."""
    if os.environ.get("TUNEFUL_NATIVE") == "0":
        return "left out: TUNEFUL_NATIVE=0"
    pretence = f" (TUNEFUL_PROCESSOR: {', '.join(pretended())})" if pretended() else ""
    try:
        library = _library()
    except NotCompiledError as reason:
        return f"not compiled, torch's operations are used: {reason}{pretence}"
    found = _attempt(processor())
    assert not isinstance(found, str)
    products = ", matrix products too" if library.has_matrix_products() else ""
    alone = "" if library.has_threads() else ", on one thread"
    unused = "" if _is_worth_it(library) else f"; torch's operations on {torch.get_num_threads()} threads are used"
    return "; ".join([f"{found[1].origin}{products}{alone}", *found[1].notes]) + unused + pretence


def _is_worth_it(library: ctypes.CDLL) -> bool:
    if library.has_threads() or os.environ.get("TUNEFUL_NATIVE") == "1":
        return True
    return torch.get_num_threads() <= MOST_THREADS_WITHOUT_OPENMP


def _library() -> ctypes.CDLL:
    """The library. Raises NotCompiledError where there is none, for the same reason each time."""
    found = _attempt(processor())
    if isinstance(found, str):
        raise NotCompiledError(found)
    return found[0]


@functools.cache
def _attempt(allowed: Processor) -> tuple[ctypes.CDLL, Found] | str:
    """The library and where it was found, or why there is none."""
    try:
        found = find_library(cache_root() / "native", allowed)
        return _declared(found.library), found
    except NotCompiledError as reason:
        return str(reason)
    except (OSError, AttributeError) as reason:
        return f"the compiled library cannot be kept or loaded: {reason}"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The functions' types: without them ctypes would pass pointers as int."""
    count, number, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    heads = ctypes.POINTER(Heads)
    plan, parameters = ctypes.POINTER(Attention), ctypes.POINTER(Parameter)
    library.attention_workspace_bytes.argtypes = [plan, count]
    library.attention_workspace_bytes.restype = count
    library.attention_forward.argtypes = [plan, heads, heads, heads, *[pointer] * 3]
    library.attention_backward.argtypes = [plan, heads, heads, heads, pointer, pointer, heads, *[pointer] * 5]
    library.cross_entropy_forward.argtypes = [*[count] * 4, *[pointer] * 5]
    library.cross_entropy_backward.argtypes = [*[count] * 4, *[pointer] * 6]
    library.rms_norm_backward.argtypes = [*[count] * 4, number, number, *[pointer] * 8]
    library.rms_norm.argtypes = [*[count] * 4, number, number, *[pointer] * 4]
    library.rotate.argtypes = [*[count] * 5, heads, count, *[pointer] * 4]
    library.dequantize_nf4.argtypes = [*[count] * 3, ctypes.POINTER(Nf4), pointer]
    library.nf4_codes.argtypes = [count, count, *[pointer] * 3]
    library.gated_silu.argtypes = [*[count] * 3, *[pointer] * 3]
    library.gated_silu_backward.argtypes = [*[count] * 3, *[pointer] * 5]
    library.squared_norm.argtypes = [count, count, count, parameters, pointer]
    library.squared_norm.restype = number
    library.adamw.argtypes = [count, count, count, parameters, *[number] * 5, count]
    library.decode_panel_bytes.argtypes = [count] * 3
    library.lay_out_weights.argtypes = [*[count] * 4, pointer, pointer]
    library.decode_workspace_bytes.argtypes = [ctypes.POINTER(Decoder), ctypes.POINTER(DecodeStep)]
    library.decode.argtypes = library.decode_workspace_bytes.argtypes
    library.decode_panel_bytes.restype = library.decode_workspace_bytes.restype = count
    library.has_matrix_products.restype = library.has_threads.restype = count
    if library.has_matrix_products():
        factors = ctypes.POINTER(Factor)
        library.product_workspace_bytes.argtypes = [count] * 4
        library.outer_products_workspace_bytes.argtypes = [count] * 3
        library.product_workspace_bytes.restype = library.outer_products_workspace_bytes.restype = count
        library.product.argtypes = library.outer_products.argtypes = [*[count] * 4, factors, pointer]
        library.sum_of_products.argtypes = [*[count] * 5, factors, pointer]
        layer = ctypes.POINTER(Layer)
        library.layer_kept_bytes.argtypes = [layer]
        library.layer_workspace_bytes.argtypes = [layer, count]
        library.layer_kept_bytes.restype = library.layer_workspace_bytes.restype = count
        library.layer_forward.argtypes = [layer, pointer]
        library.layer_backward.argtypes = [layer, pointer, ctypes.POINTER(LayerGradients)]
        library.layer_forward.restype = library.layer_backward.restype = None
        library.product.restype = library.sum_of_products.restype = library.outer_products.restype = None
    for function in (
        library.attention_forward,
        library.attention_backward,
        library.cross_entropy_forward,
        library.cross_entropy_backward,
        library.rms_norm,
        library.rms_norm_backward,
        library.rotate,
        library.dequantize_nf4,
        library.nf4_codes,
        library.gated_silu,
        library.gated_silu_backward,
        library.adamw,
        library.lay_out_weights,
        library.decode,
    ):
        function.restype = None
    return library
