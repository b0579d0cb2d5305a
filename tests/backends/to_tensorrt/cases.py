"""Placements of Q/DQ: name -> what builds the graph and returns its output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.backends.to_tensorrt.graphs import IMAGE, Case, Graph, conv, image
from tests.backends.to_tensorrt.pool_cases import POOLS_IN_FLOAT, POOLS_IN_INTEGERS


def _behind(operator: Callable[[Graph, str], str], channels: int = 32, kernel: int = 3) -> Case:
    """A quantized image, ``operator``, a quantized convolution."""
    return lambda g: conv(g, operator(g, image(g)), g.weight(32, channels, kernel, kernel))


def _transposed_weight(axis: int) -> Case:
    return lambda g: conv(g, image(g), g.op("Transpose", g.weight(32, 32, 3, 3, axis=axis), perm=[1, 0, 2, 3]))


def _between_sums(g: Graph) -> str:
    """A residual block: both convolutions in INT8, the shortcut quantized, the sum of them quantized for the next."""
    x = image(g)
    first = g.op("Relu", conv(g, x, g.weight(32, 32, 3, 3), pads=[1] * 4))
    second = conv(g, g.quantized(first, 0.3), g.weight(32, 32, 3, 3), pads=[1] * 4)
    return conv(g, g.quantized(g.op("Relu", g.op("Add", second, x)), 0.4), g.weight(32, 32, 1, 1))


def _shared_weight(g: Graph) -> str:
    w = g.weight(32, 32, 3, 3)
    return conv(g, g.quantized(conv(g, image(g), w), 0.5), w)


def _one_reader_in_float(g: Graph) -> str:
    x = g.input(*IMAGE)
    return g.op("Add", conv(g, g.quantized(x), g.weight(32, 32, 3, 3)), conv(g, x, g.floats(32, 32, 3, 3)))


def _padding_with_two_readers(g: Graph) -> str:
    x = g.op("Pad", image(g), g.ints(0, 0, 1, 1, 0, 0, 1, 1))
    return g.op("Add", conv(g, x, g.weight(32, 32, 3, 3)), g.op("MaxPool", x, kernel_shape=[3, 3]))


def _projected(g: Graph, parts: int, axis: int | None) -> list[str]:
    """One product, divided along its output channels."""
    y = g.op("MatMul", g.quantized(g.input(1, 17, 64)), g.weight(64, 64 * parts, axis=axis))
    whole = g.op("Add", y, g.floats(64 * parts))
    return [g.op("Slice", whole, g.ints(64 * at), g.ints(64 * at + 64), g.ints(2)) for at in range(parts)]


def _heads(g: Graph, x: str) -> str:
    return g.op("Transpose", g.op("Reshape", x, g.ints(1, 17, 4, 16)), perm=[0, 2, 1, 3])


def attention(g: Graph, axis: int | None = 1) -> str:
    q, k, v = (_heads(g, part) for part in _projected(g, 3, axis))
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    return g.op("MatMul", scores, v)


def _scores_of_two_parts(g: Graph) -> str:
    q, k = (_heads(g, part) for part in _projected(g, 2, 1))
    return g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))


def _scores_without_heads(g: Graph) -> str:
    q, k, v = _projected(g, 3, 1)
    return g.op("MatMul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), v)


def _gated(g: Graph) -> str:
    a, b = _projected(g, 2, 1)
    return g.op("Mul", a, g.op("Sigmoid", b))


LAYERS: dict[str, Case] = {
    "convolution": lambda g: conv(g, image(g), g.weight(32, 32, 3, 3)),
    "one scale for the weights": lambda g: conv(g, image(g), g.weight(32, 32, 3, 3, axis=None)),
    "float weights with Q": lambda g: conv(g, image(g), g.quantized(g.floats(32, 32, 3, 3), [0.01] * 32, axis=0)),
    "computed weights": lambda g: conv(g, image(g), g.quantized(g.input(32, 32, 3, 3))),
    "three channels": lambda g: conv(g, g.quantized(g.input(1, 3, 8, 8)), g.weight(16, 3, 3, 3)),
    "one channel": lambda g: conv(g, g.quantized(g.input(1, 1, 8, 8)), g.weight(1, 1, 3, 3)),
    "odd channels": lambda g: conv(g, g.quantized(g.input(1, 7, 8, 8)), g.weight(5, 7, 3, 3)),
    "depthwise": lambda g: conv(g, image(g), g.weight(32, 1, 3, 3), group=32),
    "grouped": lambda g: conv(g, image(g), g.weight(32, 8, 3, 3), group=4),
    "dilated": lambda g: conv(g, image(g), g.weight(32, 32, 3, 3), dilations=[2, 2]),
    "1d convolution": lambda g: conv(g, g.quantized(g.input(1, 32, 16)), g.weight(32, 32, 3)),
    "3d convolution": lambda g: conv(g, g.quantized(g.input(1, 32, 6, 6, 6)), g.weight(32, 32, 3, 3, 3)),
    "matmul": lambda g: g.op("MatMul", g.quantized(g.input(8, 64)), g.weight(64, 32, axis=1)),
    "matmul of 3 dimensions": lambda g: g.op("MatMul", g.quantized(g.input(2, 8, 64)), g.weight(64, 32, axis=1)),
    "matmul with one scale": lambda g: g.op("MatMul", g.quantized(g.input(8, 64)), g.weight(64, 32, axis=None)),
    "matmul, weight on the left": lambda g: g.op("MatMul", g.weight(32, 64, axis=0), g.quantized(g.input(64, 8))),
    "matmul, batch of weights": lambda g: g.op("MatMul", g.quantized(g.input(4, 8, 64)), g.weight(4, 64, 32, axis=2)),
    "matrix times vector": lambda g: g.op("MatMul", g.quantized(g.input(1, 64)), g.weight(64, 32, axis=1)),
    "attention": lambda g: g.op("MatMul", g.quantized(g.input(2, 4, 8, 16)), g.quantized(g.input(2, 4, 16, 8))),
    "gemm": lambda g: g.op("Gemm", g.quantized(g.input(8, 64)), g.weight(32, 64), g.floats(32), transB=1),
    "gemm, not transposed": lambda g: g.op("Gemm", g.quantized(g.input(8, 64)), g.weight(64, 32, axis=1)),
    "gemm, input transposed": lambda g: g.op("Gemm", g.quantized(g.input(64, 8)), g.weight(64, 32, axis=1), transA=1),
    "gemm of odd sizes": lambda g: g.op("Gemm", g.quantized(g.input(8, 63)), g.weight(31, 63), g.floats(31), transB=1),
    "int8 bias": lambda g: g.op("Conv", image(g), g.weight(32, 32, 3, 3), g.weight(32, axis=None)),
    "residual": _between_sums,
    "fused projection with one scale": lambda g: attention(g, axis=None),
    "fused projection of two parts": _scores_of_two_parts,
    "projection of three parts without heads": _scores_without_heads,
    "gated linear unit": _gated,
    "shared weight": _shared_weight,
    "one of two readers": _one_reader_in_float,
    "quantized twice": _behind(lambda g, x: g.quantized(x, 0.07)),
    "integers through a reshape": lambda g: g.op(
        "MatMul", g.dequantize(g.op("Reshape", g.quantize(g.input(4, 8, 8)), g.ints(4, 64))), g.weight(64, 32, axis=1)
    ),
    "behind a gelu": lambda g: g.op("MatMul", g.quantized(g.op("Erf", g.input(8, 64))), g.weight(64, 32, axis=1)),
    "behind an average pool": lambda g: conv(
        g, g.quantized(g.op("AveragePool", image(g), kernel_shape=[2, 2])), g.weight(32, 32, 3, 3)
    ),
}
"""What runs in INT8."""

HALF_SCALE = np.array(0.01, np.float16)


def _half_image(g: Graph) -> str:
    return g.quantized(g.op("Cast", g.input(*IMAGE), to=10), HALF_SCALE)  # type: ignore[arg-type]


def _half_weight(g: Graph) -> str:
    return g.dequantize(g.constant(np.ones((32, 32, 3, 3), np.int8)), HALF_SCALE)


def _to_half(g: Graph, x: str) -> str:
    return g.op("Cast", x, to=10)


def _to_float(g: Graph, x: str) -> str:
    return g.op("Cast", x, to=1)


COMMUTING: dict[str, Case] = {
    "input and weights cast to half": lambda g: _to_float(
        g, conv(g, _to_half(g, image(g)), _to_half(g, g.weight(32, 32, 3, 3)))
    ),
    "weights cast to half": lambda g: _to_float(g, conv(g, _half_image(g), _to_half(g, g.weight(32, 32, 3, 3)))),
    "input cast to half": lambda g: _to_float(g, conv(g, _to_half(g, image(g)), _half_weight(g))),
    "reshape": _behind(lambda g, x: g.op("Reshape", x, g.ints(1, 16, 16, 8)), 16),
    "flatten": _behind(lambda g, x: g.op("Reshape", g.op("Flatten", x), g.ints(*IMAGE))),
    "transpose": _behind(lambda g, x: g.op("Transpose", x, perm=[0, 1, 3, 2])),
    "squeeze and unsqueeze": _behind(lambda g, x: g.op("Unsqueeze", g.op("Squeeze", x, g.ints(0)), g.ints(0))),
    "slice": _behind(lambda g, x: g.op("Slice", x, g.ints(0), g.ints(4), g.ints(2))),
    "gather": _behind(lambda g, x: g.op("Gather", x, g.ints(0, 2, 4), axis=2)),
    "tile": _behind(lambda g, x: g.op("Tile", x, g.ints(1, 1, 2, 2))),
    "expand": _behind(lambda g, x: g.op("Expand", x, g.ints(2, 32, 8, 8))),
    "depth to space": _behind(lambda g, x: g.op("DepthToSpace", x, blocksize=2), 8),
    "space to depth": _behind(lambda g, x: g.op("SpaceToDepth", x, blocksize=2), 128),
    "identity": _behind(lambda g, x: g.op("Identity", x)),
    "zero padding": _behind(lambda g, x: g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1))),
    "reflecting padding": _behind(lambda g, x: g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
    "max pool": _behind(lambda g, x: g.op("MaxPool", x, kernel_shape=[2, 2])),
    "global max pool": _behind(lambda g, x: g.op("GlobalMaxPool", x), kernel=1),
    "maximum": _behind(lambda g, x: g.op("ReduceMax", x, g.ints(2, 3), keepdims=1), kernel=1),
    **POOLS_IN_INTEGERS,
    "negation": _behind(lambda g, x: g.op("Neg", x)),
    "concat of one scale": _behind(lambda g, x: g.op("Concat", x, image(g), axis=1), 64),
    "weight, transposed with its axis": _transposed_weight(1),
    "weight, reshaped": lambda g: conv(g, image(g), g.op("Reshape", g.weight(32, 288), g.ints(32, 32, 3, 3))),
    "weight, unsqueezed": lambda g: conv(
        g, g.quantized(g.input(1, 32, 16)), g.op("Unsqueeze", g.weight(32, 32), g.ints(2))
    ),
    "weight of a matmul, transposed": lambda g: g.op(
        "MatMul", g.quantized(g.input(8, 64)), g.op("Transpose", g.weight(32, 64), perm=[1, 0])
    ),
}
"""What runs in INT8 although an operator stands between."""

IN_FLOAT: dict[str, tuple[Case, str]] = {
    "input cast from half": (
        lambda g: conv(g, _to_float(g, _half_image(g)), g.weight(32, 32, 3, 3)), "quantize-all-inputs",
    ),
    "weights cast from half": (lambda g: conv(g, image(g), _to_float(g, _half_weight(g))), "quantize-all-inputs"),
    "weights only": (lambda g: conv(g, g.input(*IMAGE), g.weight(32, 32, 3, 3)), "quantize-all-inputs"),
    "input only": (lambda g: conv(g, image(g), g.floats(32, 32, 3, 3)), "quantize-all-inputs"),
    "matmul, weights only": (lambda g: g.op("MatMul", g.input(8, 64), g.weight(64, 32, axis=1)), "quantize-all-inputs"),
    "gemm, input only": (lambda g: g.op("Gemm", g.quantized(g.input(8, 64)), g.floats(64, 32)), "quantize-all-inputs"),
    "attention, one side": (
        lambda g: g.op("MatMul", g.quantized(g.input(2, 4, 8, 16)), g.input(2, 4, 16, 8)), "quantize-all-inputs",
    ),
    "relu between": (_behind(lambda g, x: g.op("Relu", x)), "quantize-all-inputs"),
    "clip between": (
        _behind(lambda g, x: g.op("Clip", x, g.constant(np.float32(0)), g.constant(np.float32(6)))),
        "quantize-all-inputs",
    ),
    "product between": (_behind(lambda g, x: g.op("Mul", x, g.floats(1, 32, 1, 1))), "quantize-all-inputs"),
    "sum between": (_behind(lambda g, x: g.op("Add", x, image(g))), "quantize-all-inputs"),
    "average pool between": (_behind(lambda g, x: g.op("GlobalAveragePool", x), kernel=1), "quantize-all-inputs"),
    "resize between": (
        _behind(lambda g, x: g.op("Resize", x, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")),
        "quantize-all-inputs",
    ),
    "padding with ones between": (
        _behind(lambda g, x: g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1), g.constant(np.float32(1)))),
        "quantize-all-inputs",
    ),
    "concat of two scales": (
        _behind(lambda g, x: g.op("Concat", x, image(g, 0.07), axis=1), 64), "quantize-all-inputs",
    ),
    "concat with floats": (
        _behind(lambda g, x: g.op("Concat", x, g.floats(*IMAGE), axis=1), 64), "quantize-all-inputs",
    ),
    "relu on the weights": (
        lambda g: conv(g, image(g), g.op("Relu", g.weight(32, 32, 3, 3))), "quantize-all-inputs",
    ),
    "padding in front of a pool": (
        _behind(lambda g, x: g.op("MaxPool", g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1)), kernel_shape=[2, 2])),
        "quantize-all-inputs",
    ),
    "padding with two readers": (_padding_with_two_readers, "quantize-all-inputs"),
    **{name: (case, "quantize-all-inputs") for name, case in POOLS_IN_FLOAT.items()},
    "a scale per input channel": (
        lambda g: conv(g, g.quantized(g.input(*IMAGE), [0.05] * 32, axis=1), g.weight(32, 32, 3, 3)),
        "scales-of-outputs",
    ),
    "weights scaled per input channel": (
        lambda g: conv(g, image(g), g.weight(32, 32, 3, 3, axis=1)), "scales-of-outputs",
    ),
    "weights transposed away from their axis": (_transposed_weight(0), "scales-of-outputs"),
    "matmul scaled along the sum": (
        lambda g: g.op("MatMul", g.quantized(g.input(8, 64)), g.weight(64, 32, axis=0)), "scales-of-outputs",
    ),
    "gemm scaled along the sum": (
        lambda g: g.op("Gemm", g.quantized(g.input(8, 64)), g.weight(32, 64, axis=1), transB=1), "scales-of-outputs",
    ),
    "matmul scaled per batch": (
        lambda g: g.op("MatMul", g.quantized(g.input(4, 8, 64)), g.weight(4, 64, 32, axis=0)), "scales-of-outputs",
    ),
    "input scaled along the sum": (
        lambda g: g.op("MatMul", g.quantized(g.input(8, 64), [0.1] * 64, axis=1), g.weight(64, 32, axis=1)),
        "scales-of-outputs",
    ),
    "input of 3 dimensions scaled per row": (
        lambda g: g.op("MatMul", g.quantized(g.input(2, 8, 64), [0.1] * 8, axis=1), g.weight(64, 32, axis=1)),
        "scales-of-outputs",
    ),
    "fused projection": (attention, "fused-projection"),
    "transposed convolution": (
        lambda g: g.op("ConvTranspose", image(g), g.weight(32, 32, 2, 2, axis=1), strides=[2, 2]),
        "no-int8-transposed-convolution",
    ),
    "transposed convolution, float weights": (
        lambda g: g.op("ConvTranspose", image(g), g.floats(32, 32, 2, 2)), "no-int8-transposed-convolution",
    ),
}  # fmt: skip
"""What builds and runs in float, with the rule that says so."""


def _integer_bias(g: Graph) -> str:
    bias = g.op(
        "DequantizeLinear", g.constant(np.ones(32, np.int32)), g.constant(np.full(32, 0.01, np.float32)), axis=0
    )
    return g.op("Conv", image(g), g.weight(32, 32, 3, 3), bias)


def _integer_matmul(g: Graph) -> str:
    return g.op("Cast", g.op("MatMulInteger", g.quantize(g.input(8, 64)), g.constant(np.ones((64, 8), np.int8))), to=1)


def _integer_convolution(g: Graph) -> str:
    scale, zero = g.constant(np.float32(0.1)), g.constant(np.int8(0))
    weight = g.constant(np.ones((32, 32, 1, 1), np.int8))
    x = g.op("QuantizeLinear", g.input(*IMAGE), scale, zero)
    return g.op("DequantizeLinear", g.op("QLinearConv", x, scale, zero, weight, scale, zero, scale, zero), scale, zero)


def _table_of_integers(g: Graph) -> str:
    return g.dequantize(g.op("Gather", g.constant(np.ones((100, 64), np.int8)), g.ints(1, 2, 3)))


REJECTED: dict[str, tuple[Case, str]] = {
    "zero point": (lambda g: conv(g, g.quantized(g.input(*IMAGE), zero=3), g.weight(32, 32, 3, 3)), "symmetric"),
    "zero point of weights": (lambda g: conv(g, image(g), g.weight(32, 32, 3, 3, zero=1)), "symmetric"),
    "unsigned with a zero point": (
        lambda g: conv(g, g.quantized(g.input(*IMAGE), zero=128, dtype=np.uint8), g.weight(32, 32, 3, 3)), "symmetric",
    ),
    "scale of zero": (lambda g: conv(g, image(g, 0.0), g.weight(32, 32, 3, 3)), "positive-scales"),
    "negative scale": (lambda g: conv(g, image(g, -0.1), g.weight(32, 32, 3, 3)), "positive-scales"),
    "16 bits": (lambda g: conv(g, g.quantized(g.input(*IMAGE), dtype=np.int16), g.weight(32, 32, 3, 3)), "int8"),
    "integer bias": (_integer_bias, "int8"),
    "integer matmul": (_integer_matmul, "known-operators"),
    "integer convolution": (_integer_convolution, "known-operators"),
    "table of integers": (_table_of_integers, "integers-to-dequantize"),
    "dilated pool": (
        lambda g: g.op("MaxPool", g.input(*IMAGE), kernel_shape=[2, 2], dilations=[2, 2]), "pools-without-dilation",
    ),
    "scatter with a sum": (
        lambda g: g.op("ScatterND", g.input(4, 8), g.ints(0), g.floats(8), reduction="add"), "plain-scatter",
    ),
    "column image": (lambda g: g.op("Col2Im", g.input(1, 32, 16), g.ints(5, 5), g.ints(2, 2)), "known-operators"),
}  # fmt: skip
"""What the parser or the builder refuses, with the rule that says so."""
