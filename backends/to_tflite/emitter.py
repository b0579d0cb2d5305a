"""Builds a TFLite graph op by op: what the lowering rules write with.

A value of the Program is a Tensor where it is constant, else a Value. Transposing costs nothing at first: a Value
knows in which order its dimensions lie in the file, and is moved when an operator needs another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_tflite.dtypes import FILE_TYPES, in_file
from planish.backends.to_tflite.graph import Form, Operator
from planish.backends.to_tflite.schema import TYPES
from planish.backends.to_tflite.values import (
    Order,
    Quantization,
    Shape,
    Stored,
    Value,
    arranged,
    only_ones_move,
    plain,
    reshaped,
)
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, source_module

Rule = Callable[..., Any]
"""(emitter, *arguments of the node) -> the value or values of the node."""
Operand = Value | Tensor
FIXED_RESULTS = {
    "LOGISTIC": Quantization((1 / 256,), (-128,)), "SOFTMAX": Quantization((1 / 256,), (-128,)),
    "TANH": Quantization((1 / 128,), (0,)),
}  # fmt: skip
"""Scale and zero point that the kernel itself has: where the result shall have others, QUANTIZE stands behind it.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""
_LARGE = 256
"""Numbers in a constant that is worth storing in half the size."""


class Unsupported(LoweringError):
    """No rule lowers this node as it stands."""


class Emitter:
    """The graph under construction. ``values`` maps each FX node to what it became."""

    def __init__(self, program: Program, form: Form) -> None:
        self.program, self.form = program, form
        self.operators: list[Operator] = []
        self.values: dict[fx.Node, Any] = {}
        self.current: fx.Node | None = None
        self.result: Quantization | None = None
        """What the result of the current node has to be quantized with; None: it is float."""
        self.activation = "NONE"
        """The function that the operator of the current node computes along."""
        self._constants: dict[Any, tuple[Tensor, Value]] = {}  # the tensor is held: its id stays its own
        self._derived: dict[Any, Value] = {}
        self.zeros: dict[int, Tensor] = {}
        """Biases for operators that want one."""
        self._names: dict[str, int] = {}

    # ------------------------------------------------------------------ operators

    def op(
        self, kind: str, *inputs: Value | None, shape: Shape | None = None, order: Order | None = None,
        dtype: torch.dtype | None = None, quantization: Quantization | None = None, **options: Any,
    ) -> Value:  # fmt: skip
        """Add an operator with one output, by default of the broadcast shape and in the order of its inputs."""
        given = [value for value in inputs if value is not None]
        shape = broadcast(*given) if shape is None else shape
        order = max(given, key=lambda value: len(value.order)).order if order is None else order
        output = self.new(shape, order, dtype or given[0].dtype, quantization)
        self.operators.append(Operator(kind, inputs, (output,), options, self.current))
        return output

    def compute(self, kind: str, *inputs: Value | None, **options: Any) -> Value:
        """As ``op``, with the quantization that the result of the node shall have."""
        fixed = FIXED_RESULTS.get(kind)
        if self.result is None or fixed is None:
            return self.op(kind, *inputs, quantization=self.result, **options)
        return self.quantized(self.op(kind, *inputs, quantization=fixed, **options), self.result)

    def move(self, kind: str, x: Value, *inputs: Value | None, **options: Any) -> Value:
        """As ``op``, for one that moves the values of ``x`` and computes nothing: its integers stay what they are."""
        return self.op(kind, x, *inputs, quantization=x.quantization, **options)

    def multi(self, kind: str, inputs: Sequence[Value], outputs: Sequence[Value], **options: Any) -> Sequence[Value]:
        self.operators.append(Operator(kind, tuple(inputs), tuple(outputs), options, self.current))
        return outputs

    def new(
        self, shape: Sequence[int], order: Order, dtype: torch.dtype, quantization: Quantization | None = None
    ) -> Value:
        if quantization is not None:
            dtype = torch.int8
        name = self.unique(self.current.name if self.current else "value")
        return Value(Stored(name, tuple(shape), dtype, quantization), order)

    def unique(self, stem: str) -> str:
        count = self._names[stem] = self._names.get(stem, -1) + 1
        return f"{stem};{count}" if count else stem

    # ------------------------------------------------------------------ constants

    def constant(self, tensor: Tensor, name: str, order: Order | None = None) -> Value:
        """A constant that holds ``tensor`` in the file's order; shared where the very same tensor comes again."""
        order = plain(tensor.ndim) if order is None else order
        key = (id(tensor), order)
        if key not in self._constants:
            dtype = FILE_TYPES.get(tensor.dtype)
            if dtype is None:
                raise self.fail(f"a constant of {tensor.dtype}")
            data = lambda: in_file(tensor, dtype).permute(order)  # noqa: E731
            stored = Stored(self.unique(name), arranged(tensor.shape, order), dtype, data=data)
            self._constants[key] = tensor, self._in_half(Value(stored, order))
        return self._constants[key][1]

    def _in_half(self, value: Value) -> Value:
        """A large float constant as float16, with DEQUANTIZE behind it: runtimes do that once."""
        make = value.stored.data
        if not self.form.half or value.dtype is not torch.float32 or math.prod(value.shape) < _LARGE or make is None:
            return value
        stored = Stored(f"{value.stored.name};half", value.shape, torch.float16, data=lambda: make().half())
        return self.op("DEQUANTIZE", Value(stored, value.order), dtype=torch.float32)

    def made(
        self, key: Any, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor], **rest: Any
    ) -> Value:
        """A constant that is computed when the file is written; equal keys share it."""
        if key not in self._derived:
            stem = self.current.name if self.current else "constant"
            stored = Stored(self.unique(f"{stem}.constant"), tuple(shape), dtype, data=make, **rest)
            self._derived[key] = Value(stored, plain(len(shape)))
        return self._derived[key]

    def numbers(self, values: Any, dtype: torch.dtype = torch.int32) -> Value:
        """A constant from numbers: sizes, axes, paddings (INT32) or a scalar."""
        tensor = torch.tensor(values, dtype=dtype)
        return self.made((dtype, tuple(tensor.shape), str(values)), tensor.shape, dtype, lambda: tensor)

    # ------------------------------------------------------------------ order and shape

    def value(self, x: Operand) -> Value:
        return x if isinstance(x, Value) else self.constant(x, self._name_of(x))

    def _name_of(self, tensor: Tensor) -> str:
        for node in self.current.all_input_nodes if self.current else ():
            if self.values.get(node) is tensor:
                return str(node.target) if node.op == "get_attr" else node.name
        return "constant"

    def at(self, x: Operand, order: Order) -> Value:
        """``x`` with its dimensions lying in ``order``."""
        if isinstance(x, Tensor):
            return self.constant(x, self._name_of(x), order)
        if x.order == order:
            return x
        sizes = arranged(x.sizes, order)
        places = tuple(x.order.index(dim) for dim in order)
        key = (x.stored, places)
        if key not in self._derived:
            if only_ones_move(x, order):
                self._derived[key] = self._reshape(x, sizes, order)
            else:
                self._derived[key] = self.move("TRANSPOSE", x, self.numbers(places), shape=sizes, order=order)
        return Value(self._derived[key].stored, order)

    def in_order(self, x: Operand) -> Value:
        """``x`` as it lies in the Program."""
        return self.at(x, plain(len(x.sizes) if isinstance(x, Value) else x.ndim))

    def with_last(self, x: Value, dim: int) -> Value:
        """``x`` with dimension ``dim`` of the Program innermost."""
        dim %= len(x.order)
        return x if x.order[-1] == dim else self.at(x, (*(d for d in x.order if d != dim), dim))

    def reshape(self, x: Operand, sizes: Sequence[int]) -> Operand:
        if isinstance(x, Tensor):
            return x.reshape(tuple(sizes))
        target = tuple(sizes)
        if x.sizes == target:
            return x
        found = reshaped(x, target)
        if found is None:
            x, found = self.in_order(x), (target, plain(len(target)))
        shape, order = found
        return Value(x.stored, order) if shape == x.shape else self._reshape(x, shape, order)

    def _reshape(self, x: Value, shape: Shape, order: Order) -> Value:
        return self.move("RESHAPE", x, self.numbers(shape), shape=shape, order=order, newShape=[*shape])

    def permute(self, x: Operand, dims: Sequence[int]) -> Operand:
        """Dimension i of the result is dimension ``dims[i]`` of ``x``: only the names of the dimensions change."""
        rank = len(dims)
        dims = [dim % rank for dim in dims]
        if isinstance(x, Tensor):
            return x.permute(dims)
        return Value(x.stored, tuple(dims.index(dim) for dim in x.order))

    def aligned(self, *operands: Any) -> list[Value]:
        """Operands of one elementwise operator: the same rank, the same order, the dtype of the file."""
        rank = max((len(x.order) if isinstance(x, Value) else x.ndim for x in operands), default=0)
        computed = [x for x in operands if isinstance(x, Value) and len(x.order) == rank]
        order = max(computed, key=lambda x: math.prod(x.shape)).order if computed else plain(rank)
        return [self._lifted(x, rank, order) for x in operands]

    def _lifted(self, x: Operand, rank: int, order: Order) -> Value:
        sizes = x.sizes if isinstance(x, Value) else tuple(x.shape)
        if isinstance(x, Tensor) and x.numel() == 1:
            return self.numbers(in_file(x).item(), FILE_TYPES[x.dtype])
        lifted = (*[1] * (rank - len(sizes)), *sizes)
        if isinstance(x, Value) and x.stored.data is not None:
            return x if x.shape == () else self._lifted_constant(x, lifted, order)
        return self.at(self.reshape(x, lifted), order)

    def _lifted_constant(self, x: Value, sizes: Shape, order: Order) -> Value:
        make, back = x.stored.data, tuple(x.order.index(dim) for dim in range(len(x.order)))
        assert make is not None
        shape, key = arranged(sizes, order), (x.stored, x.order, sizes, order)
        data = lambda: make().permute(back).reshape(sizes).permute(order)  # noqa: E731
        return Value(self.made(key, shape, x.dtype, data, quantization=x.quantization).stored, order)

    # ------------------------------------------------------------------ integers

    def real(self, x: Any) -> Any:
        """A quantized Value as float; anything else as it is."""
        if not isinstance(x, Value) or x.quantization is None:
            return x
        key = (x.stored, "real")
        if key not in self._derived:
            self._derived[key] = self.op("DEQUANTIZE", x, dtype=torch.float32)
        return Value(self._derived[key].stored, x.order)

    def quantized(self, x: Value, quantization: Quantization) -> Value:
        """``x`` as integers with just this scale and zero point."""
        if x.quantization == quantization:
            return x
        key = (x.stored, quantization)
        if key not in self._derived:
            self._derived[key] = self.op("QUANTIZE", x, quantization=quantization)
        return Value(self._derived[key].stored, x.order)

    # ------------------------------------------------------------------ the node that is being lowered

    @property
    def node(self) -> fx.Node:
        assert self.current is not None
        return self.current

    def fake(self, position: int) -> Tensor:
        """Shape and dtype of the argument at ``position``."""
        argument = self.node.args[position]
        value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
        if not isinstance(value, Tensor):
            raise self.fail(f"argument {position} is not a tensor")
        return value

    def fake_result(self) -> Tensor:
        """Shape and dtype of the (first) result in the Program."""
        value = self.node.meta["val"]
        value = value[0] if isinstance(value, (tuple, list)) else value
        assert isinstance(value, Tensor)
        return value

    def result_dtype(self) -> torch.dtype:
        return self.fake_result().dtype

    def cast(self, x: Operand, dtype: torch.dtype) -> Operand:
        """``x`` in the file's form of the Program's ``dtype``."""
        if isinstance(x, Tensor):
            return x.to(dtype)
        target = FILE_TYPES[dtype]
        if x.dtype is target:
            return x
        return self.op("CAST", x, dtype=target, inDataType=TYPES[x.dtype], outDataType=TYPES[target])

    def fail(self, why: str) -> Unsupported:
        node = self.current
        if node is None:
            return Unsupported(why, component="tflite")
        return Unsupported(why, component="tflite", node=node.name, module=source_module(node))


def broadcast(*values: Value) -> Shape:
    return tuple(torch.broadcast_shapes(*(value.shape for value in values)))
