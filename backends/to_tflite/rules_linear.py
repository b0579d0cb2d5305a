"""Matrix products, attention, embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.activations import code
from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.integers import computes_at_run_time
from planish.backends.to_tflite.rules_arithmetic import number, operands
from planish.backends.to_tflite.rules_conv import bias_of, shape_of
from planish.backends.to_tflite.rules_reduce import reduce, vector_norm
from planish.backends.to_tflite.rules_shape import take
from planish.backends.to_tflite.values import Quantization, Stored, Value, plain
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def linear(e: Emitter, x: Value, weight: Any, bias: Any = None) -> Any:
    """FULLY_CONNECTED keeps all dimensions but the last, in whatever order they lie."""
    if isinstance(weight, Value) and weight.stored.data is None:
        product = matmul(e, x, e.permute(weight, [1, 0]))
        return product if bias is None else e.op("ADD", *operands(e, product, bias))
    if isinstance(bias, Value):
        fused, e.activation = code(e.activation), "NONE"
        return e.op("ADD", *operands(e, linear(e, x, weight), bias), fusedActivationFunction=fused)
    if len(x.order) < 2:
        x = e.reshape(x, (1, *x.sizes))  # type: ignore[assignment]
    x = e.with_last(x, -1)
    at_run_time = computes_at_run_time(e.node)
    stored = e.value(weight) if x.quantization is not None or at_run_time else e.real(e.value(weight))
    filters = stored.shape[0]
    options = {"asymmetricQuantizeInputs": True} if at_run_time else {}
    y = e.compute(
        "FULLY_CONNECTED", x, stored, bias_of(e, bias, x, stored, filters), shape=(*x.shape[:-1], filters),
        order=x.order, keepNumDims=True, fusedActivationFunction=code(e.activation), **options,
    )  # fmt: skip
    return e.reshape(y, e.fake_result().shape) if e.fake_result().ndim < len(y.order) else y


def matmul(e: Emitter, a: Any, b: Any) -> Any:
    """A constant matrix on the right is a layer; everything else BATCH_MATMUL."""
    if _is_matrix(b) and e.result is None and isinstance(a, Value) and len(a.order) >= 2:
        return _layer(e, a, b)
    left, right = shape_of(a), shape_of(b)
    x = e.reshape(a, (1, *left)) if len(left) == 1 else a
    y = e.reshape(b, (*right, 1)) if len(right) == 1 else b
    product = _product(e, x, y)
    sizes = [*product.sizes]
    if len(right) == 1:
        sizes.pop()
    if len(left) == 1:
        sizes.pop(-1 if len(right) == 1 else -2)
    return e.reshape(product, sizes)


def _is_matrix(b: Any) -> bool:
    constant = isinstance(b, Tensor) or (isinstance(b, Value) and b.stored.data is not None)
    return constant and len(shape_of(b)) == 2


def _layer(e: Emitter, a: Value, b: Any, bias: Tensor | None = None) -> Value:
    x = e.with_last(a, -1)
    weight = e.constant(b, e._name_of(b), (1, 0)) if isinstance(b, Tensor) else e.real(e.at(b, (1, 0)))
    shape, shift = (*x.shape[:-1], shape_of(b)[1]), None if bias is None else e.value(bias)
    return e.op("FULLY_CONNECTED", x, weight, shift, shape=shape, order=x.order, keepNumDims=True)


def _product(e: Emitter, a: Any, b: Any) -> Value:
    rank = max(len(shape_of(a)), len(shape_of(b)))
    sides = [e.reshape(x, (*[1] * (rank - len(shape_of(x))), *shape_of(x))) for x in (a, b)]
    (x, swap_x), (y, swap_y) = (_as_matrices(e, side) for side in sides)
    batch = torch.broadcast_shapes(x.sizes[:-2], y.sizes[:-2])
    sizes = shape_of(sides[0])[-2], shape_of(sides[1])[-1]
    return e.compute("BATCH_MATMUL", x, y, shape=(*batch, *sizes), order=plain(rank), adjX=swap_x, adjY=swap_y)


def _as_matrices(e: Emitter, x: Any) -> tuple[Value, bool]:
    """Matrices in the last two places, and whether they lie transposed: BATCH_MATMUL reads them so."""
    rank = len(shape_of(x))
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if isinstance(x, Value) and x.order[-1] == rank - 2:
        return Value(e.at(x, swapped).stored, plain(rank)), True
    return e.in_order(x), False


def addmm(e: Emitter, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    one_a_column = isinstance(bias, Tensor) and bias.shape == shape_of(b)[1:]
    if one_a_column and _is_matrix(b) and isinstance(a, Value) and alpha == beta == 1:
        return _layer(e, a, b, bias)
    product = matmul(e, a, b)
    product = product if alpha == 1 else number(e, "MUL", product, float(alpha))
    if beta == 0:
        return product
    return e.op("ADD", *operands(e, product, bias if beta == 1 else e.op("MUL", *operands(e, bias, beta))))


def attention(
    e: Emitter, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """softmax(query key^T * scale + mask) value."""
    if enable_gqa:
        key, value = (_repeated_heads(e, x, shape_of(query)[-3]) for x in (key, value))
    rank = len(shape_of(key))
    factor = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    query = number(e, "MUL", query, factor) if isinstance(query, Value) else query * factor
    scores = _product(e, query, e.permute(key, [*range(rank - 2), rank - 1, rank - 2]))
    if is_causal:
        length, other = scores.sizes[-2:]
        attn_mask = torch.ones(length, other, dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = _masked(e, scores, attn_mask)
    return _product(e, e.op("SOFTMAX", e.with_last(scores, -1), beta=1.0), value)


def _masked(e: Emitter, scores: Value, mask: Any) -> Value:
    """Masked scores are -1e9, not minus infinity: a row that is masked as a whole is then even, not NaN."""
    if isinstance(mask, Tensor):
        shift = torch.zeros(mask.shape).masked_fill(~mask, -1e9) if mask.dtype is torch.bool else mask.float()
        return e.op("ADD", *e.aligned(scores, shift.clamp_min(-1e9)))
    if mask.dtype is torch.bool:
        lowest = torch.full((1,), -1e9)
        chosen, own, low = e.aligned(mask, scores, lowest)
        return e.op("SELECT_V2", chosen, own, low, dtype=own.dtype)
    return e.op("ADD", *e.aligned(scores, mask))


def _repeated_heads(e: Emitter, x: Any, heads: int) -> Any:
    own = shape_of(x)[-3]
    places = torch.arange(heads) // (heads // own)
    if isinstance(x, Tensor):
        return x.index_select(-3, places)
    return take(e, x, -3, places)


def embedding(e: Emitter, weight: Any, indices: Any, *_: Any, **__: Any) -> Any:
    """Rows of a table; a quantized one stays INT8 in the file, and its scales are gathered with the rows."""
    table, places = e.value(weight), e.in_order(indices)
    scales = table.quantization.scales if table.quantization is not None else ()
    if len(scales) < 2:
        return _rows(e, table, places)
    whole = Stored(e.unique(table.stored.name), table.shape, torch.int8, Quantization((1.0,), (0,)), table.stored.data)
    rows = e.real(_rows(e, Value(whole, table.order), places))
    return e.op("MUL", rows, _rows(e, e.constant(torch.tensor(scales).reshape(-1, 1), "scales"), places))


def _rows(e: Emitter, table: Value, places: Value) -> Value:
    return e.move(
        "GATHER", table, places, shape=(*places.shape, *table.shape[1:]),
        order=plain(len(places.shape) + len(table.shape) - 1), axis=0,
    )  # fmt: skip


def distances(e: Emitter, a: Any, b: Any, p: float = 2.0, mode: int | None = None) -> Any:
    """[..., P, M] and [..., R, M] -> [..., P, R]."""
    left, right = shape_of(a), shape_of(b)
    x, y = e.reshape(a, (*left[:-1], 1, left[-1])), e.reshape(b, (*right[:-2], 1, *right[-2:]))
    return vector_norm(e, e.op("SUB", *operands(e, x, y)), p, -1)


def bilinear(e: Emitter, a: Any, b: Any, weight: Any, bias: Any = None) -> Any:
    """a^T weight[o] b for each o: a layer that makes a matrix, then its product with b."""
    filters, left, right = shape_of(weight)
    matrix = e.reshape(e.permute(weight, [1, 0, 2]), (left, filters * right))
    rows = e.reshape(matmul(e, a, matrix), (*shape_of(a)[:-1], filters, right))
    sides = operands(e, rows, e.reshape(b, (*shape_of(b)[:-1], 1, right)))
    y = reduce(e, "SUM", e.op("MUL", *sides), [-1], keepdim=False)
    return y if bias is None else e.op("ADD", *operands(e, y, bias))


RULES: dict[Operator, Rule] = {
    aten.linear.default: linear, aten.addmm.default: addmm, aten.matmul.default: matmul, aten.mm.default: matmul,
    aten.bmm.default: matmul, aten.mv.default: matmul, aten.dot.default: matmul, aten.vdot.default: matmul,
    aten.baddbmm.default: addmm, aten.scaled_dot_product_attention.default: attention,
    aten.embedding.default: embedding, aten.bilinear.default: bilinear,
    aten.cdist.default: distances, aten._cdist_forward.default: distances,
}  # fmt: skip
