"""Linear maps, attention and embedding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.backends.to_onnx.rules_quantize import dequantized, is_dequantize
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def linear(e: Emitter, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Float: one Gemm, or MatMul + Add above two dimensions. Quantized: MatMul + Sum.

    ONNX Runtime turns the latter into MatMulIntegerToFloat. An Add there becomes a float Gemm on a fixed batch
    (MatMulAddFusion), ten times slower.
    """
    source = e.node.args[1]
    if is_dequantize(source):
        product = e.op("MatMul", x, dequantized(e, source, transposed=True))
        return product if bias is None else e.op("Sum", product, bias)
    if e.fake(0).ndim == 2:
        return e.op("Gemm", x, weight, bias, transB=1)
    product = e.op("MatMul", x, e.transposed(source, weight))
    return product if bias is None else e.op("Add", product, bias)


def addmm(e: Emitter, bias: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    return e.op("Gemm", a, b, bias, alpha=float(alpha), beta=float(beta))


def matmul(e: Emitter, a: Value, b: Value) -> Value:
    return e.op("MatMul", a, b)


def baddbmm(e: Emitter, bias: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    product = e.op("MatMul", a, b)
    if alpha != 1:
        product = e.op("Mul", product, e.constant(alpha, e.result_dtype()))
    if beta == 0:
        return product
    return e.op("Add", bias if beta == 1 else e.op("Mul", bias, e.constant(beta, e.result_dtype())), product)


def einsum(e: Emitter, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    return e.op("Einsum", *operands, equation=equation)


def attention(
    e: Emitter, q: Value, k: Value, v: Value, attn_mask: Value | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """MatMul, Softmax, MatMul: what every runtime reads, of any rank, and no slower here than the fused operators."""
    fake_q, fake_k = e.fake(0), e.fake(1)
    dtype, width = fake_q.dtype, int(fake_q.shape[-1])
    if enable_gqa:
        k, v = (
            _repeat_heads(e, value, int(fake_q.shape[-3]) // int(fake_k.shape[-3]), index)
            for index, value in ((1, k), (2, v))
        )
    factor = scale if scale is not None else 1 / math.sqrt(width)
    order = [*range(fake_k.ndim)]
    order[-1], order[-2] = order[-2], order[-1]
    scaled = e.op("Mul", q, e.constant(factor, dtype))
    scores = e.op("MatMul", scaled, e.op("Transpose", k, perm=order))
    if is_causal:
        attn_mask = _causal_mask(e, q, k)
    boolean = attn_mask is not None and (is_causal or e.fake_argument("attn_mask", 3).dtype is torch.bool)
    if attn_mask is not None:
        bias = (
            e.op("Where", attn_mask, e.constant(0.0, dtype), e.constant(torch.finfo(dtype).min, dtype))
            if boolean
            else attn_mask
        )
        scores = e.op("Add", scores, bias)
    mixed = e.op("MatMul", e.op("Softmax", scores, axis=-1), v)
    if not boolean or is_causal or attn_mask is None:
        return mixed
    # A query that may look at nothing gets zeros in PyTorch, and the mean of all values from a Softmax.
    seeing = e.op("ReduceMax", e.cast(attn_mask, dtype), e.constant([-1]), keepdims=1)
    return e.op("Mul", mixed, seeing)


def _repeat_heads(e: Emitter, value: Value, times: int, index: int) -> Value:
    """[..., heads, sequence, width] -> every head ``times`` times in a row."""
    rank = e.fake(index).ndim
    if times == 1:
        return value
    tiles = e.constant([*[1] * (rank - 2), times, 1, 1])
    wide = e.op("Tile", e.op("Unsqueeze", value, e.constant([rank - 2])), tiles)
    shape = e.op("Shape", value)
    heads = e.op("Mul", e.op("Slice", shape, e.constant([-3]), e.constant([-2])), e.constant([times]))
    ahead, behind = e.op("Shape", value, start=0, end=-3), e.op("Shape", value, start=-2)
    return e.op("Reshape", wide, e.op("Concat", ahead, heads, behind, axis=0))


def _causal_mask(e: Emitter, q: Value, k: Value) -> Value:
    queries, keys = e.fake(0).shape[-2], e.fake(1).shape[-2]
    if isinstance(queries, int) and isinstance(keys, int):
        return e.tensor(torch.ones(queries, keys, dtype=torch.bool).tril(), "causal")
    sizes = e.op("Concat", e.op("Shape", q, start=-2, end=-1), e.op("Shape", k, start=-2, end=-1), axis=0)
    one = ir.tensor([1], dtype=ir.DataType.INT32)
    return e.cast(e.op("Trilu", e.op("ConstantOfShape", sizes, value=one), upper=0), torch.bool)


def embedding(e: Emitter, weight: Value, indices: Value, *_: Any, **__: Any) -> Value:
    """A quantized table is read first and dequantized then: it stays INT8 in memory."""
    source = e.node.args[0]
    if not is_dequantize(source) or len(source.users) > 1:
        return e.op("Gather", weight, indices, axis=0)
    quantized = e.values[source].producer()
    rows = e.op("Gather", quantized.inputs[0], indices, axis=0)
    return e.op("DequantizeLinear", rows, *quantized.inputs[1:])


def distances(e: Emitter, a: Value, b: Value, p: float = 2.0, mode: int | None = None) -> Value:
    """[..., P, M] and [..., R, M] -> [..., P, R]."""
    difference = e.op("Sub", e.op("Unsqueeze", a, e.constant([-2])), e.op("Unsqueeze", b, e.constant([-3])))
    kind = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(p))
    if kind is None:
        raise e.fail(f"distances of order {p}")
    return e.op(kind, difference, e.constant([-1]), keepdims=0)


# ---------------------------------------------------------------------- bags of embeddings


def embedding_bag(
    e: Emitter, weight: Value, indices: Value, offsets: Value, scale_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Value | None = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> list[Any]:  # fmt: skip
    """Bags of one size are a reshape; others are summed into their rows by ScatterND, without a loop."""
    if padding_idx is not None and padding_idx >= 0:
        raise e.fail("bags with a padding index")
    rows = e.op("Gather", weight, indices, axis=0)
    if per_sample_weights is not None:
        rows = e.op("Mul", rows, e.op("Unsqueeze", per_sample_weights, e.constant([1])))
    length = _bag_length(e.node.args[2])
    if length is not None and not include_last_offset:
        bags = e.op("Reshape", rows, e.constant([-1, length, int(e.fake(0).shape[1])]))
        pooled = e.op(("ReduceSum", "ReduceMean", "ReduceMax")[mode], bags, e.constant([1]), keepdims=0)
    elif mode == 0 and not include_last_offset:
        pooled = _ragged_sum(e, rows, indices, offsets)
    else:
        raise e.fail("bags of different sizes that are not summed")
    return [pooled, None, None, None]


def _bag_length(offsets: Any) -> int | None:
    """The size of all bags, where the offsets are ``arange(0, all, size)``: what a 2-d input gives."""
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    start, step = offsets.args[0], offsets.args[2] if len(offsets.args) > 2 else 1
    return step if start == 0 and isinstance(step, int) else None


def _ragged_sum(e: Emitter, rows: Value, indices: Value, offsets: Value) -> Value:
    count = e.op("Squeeze", e.op("Shape", indices), e.constant([0]))
    place = e.op("Unsqueeze", e.op("Range", e.constant(0), count, e.constant(1)), e.constant([1]))
    begun = e.cast(e.op("LessOrEqual", e.op("Unsqueeze", offsets, e.constant([0])), place), torch.int64)
    bag = e.op("Sub", e.op("ReduceSum", begun, e.constant([1]), keepdims=1), e.constant(1))
    shape = e.op("Concat", e.op("Shape", offsets), e.constant([int(e.fake(0).shape[1])]), axis=0)
    empty = e.op("Expand", e.constant(0.0, e.fake(0).dtype), shape)
    return e.op("ScatterND", empty, bag, rows, reduction="add")


def grouped_product(
    e: Emitter, rows: Value, matrices: Value, ends: Value | None = None, bias: Value | None = None, dtype: Any = None
) -> Value:
    """Mixtures of experts: rows [T, K], sorted by expert, meet matrices [experts, K, N]. ``ends``: of their rows.

    What lies behind the last end is 0.
    """
    experts, _, width = e.fake(1).shape
    if e.fake(0).ndim != 2 or ends is None or bias is not None:
        raise e.fail("a grouped product of this form")
    axis = e.constant([0])
    bounds = e.op("Concat", axis, e.cast(ends, torch.int64), e.op("Shape", rows, end=1), axis=0)
    edges = [e.op("Slice", bounds, e.constant([at]), e.constant([at + 1]), axis) for at in range(experts + 2)]
    products = [
        e.op("MatMul", e.op("Slice", rows, start, end, axis), e.op("Gather", matrices, e.constant(expert), axis=0))
        for expert, (start, end) in enumerate(itertools.pairwise(edges[:-1]))
    ]
    shape = e.op("Concat", e.op("Sub", edges[-1], edges[-2]), e.constant([int(width)]), axis=0)
    zeros = e.op("Expand", e.constant(0.0, e.fake(0).dtype), shape)
    return e.op("Concat", *products, zeros, axis=0)


RULES: dict[Operator, Rule] = {
    aten.linear.default: linear, aten.addmm.default: addmm, aten.matmul.default: matmul, aten.mm.default: matmul,
    aten.bmm.default: matmul, aten.mv.default: matmul, aten.dot.default: matmul, aten.vdot.default: matmul,
    aten.baddbmm.default: baddbmm, aten.einsum.default: einsum, aten._cdist_forward.default: distances,
    aten.cdist.default: distances,
    aten.scaled_dot_product_attention.default: attention, aten.embedding.default: embedding,
    aten.embedding_bag.padding_idx: embedding_bag, aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag, aten._grouped_mm.default: grouped_product,
}  # fmt: skip
BY_NAME: dict[str, Rule] = {"transformers::grouped_mm_fallback": grouped_product}
"""Operators of libraries that need not be there."""
