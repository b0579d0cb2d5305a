"""Builds an ONNX graph op by op: what the lowering rules write with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor, fx
from torch.fx.node import Argument

from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, source_module

Value = ir.Value
Rule = Callable[..., Any]
"""(emitter, *arguments of the node, as ONNX values) -> the value or values of the node."""
Size = int | ir.Value
"""A size known now, or a scalar INT64 value that is known when the model runs."""


class Unsupported(LoweringError):
    """No rule lowers this node as it stands."""


class Emitter:
    """The ONNX graph under construction. ``values`` maps each FX node to what it became."""

    def __init__(self, program: Program, opset: int) -> None:
        self.program, self.opset = program, opset
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.values: dict[fx.Node, Any] = {}
        self.current: fx.Node | None = None
        self._constants: dict[Any, ir.Value] = {}
        self._tensors: dict[int, tuple[Tensor, ir.Value]] = {}  # the tensor is held: its id stays its own
        self._derived: dict[tuple[int, str], ir.Value] = {}
        self._names: dict[str, int] = {}
        self._taken: set[str] = set()

    # ------------------------------------------------------------------ nodes

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node with one output and return it."""
        return self.multi(kind, 1, *inputs, **attributes)[0]

    def multi(self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """Add a node named after the FX node it comes from; trailing inputs that are None are left out."""
        given = [*inputs]
        while given and given[-1] is None:
            given.pop()
        kept = {name: value for name, value in attributes.items() if value is not None}
        name = self.unique(self.current.name if self.current else kind)
        node = ir.node(kind, given, attributes=kept, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):  # the first has the name of its node
            output.name = name if index == 0 else self.unique(name)
        if self.current is not None and source_module(self.current):
            node.metadata_props["planish.module"] = source_module(self.current)
        self.nodes.append(node)
        return node.outputs

    def unique(self, stem: str) -> str:
        name, count = stem, self._names.get(stem, 0)
        while name in self._taken:
            count += 1
            name = f"{stem}.{count}"
        self._names[stem] = count
        self._taken.add(name)
        return name

    # ------------------------------------------------------------------ constants

    def tensor(self, tensor: Tensor, name: str) -> ir.Value:
        """An initializer that holds ``tensor`` (shared where the very same tensor comes again)."""
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = tensor, self._initializer(tensor, name)
        return self._tensors[id(tensor)][1]

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> ir.Value:
        """An initializer from a number or a list; equal ones are shared. Whole numbers are INT64 by default."""
        tensor = torch.tensor(value, dtype=dtype)
        key = (
            (tensor.dtype, tuple(tensor.shape), tensor.numpy(force=True).tobytes())
            if tensor.dtype != torch.bfloat16
            else None
        )
        if key is None or key not in self._constants:
            made = self._initializer(tensor, "constant")
            if key is None:
                return made
            self._constants[key] = made
        return self._constants[key]

    def _initializer(self, tensor: Tensor, name: str) -> ir.Value:
        free = self.unique(name)
        plain = tensor.detach().contiguous()
        value = ir.Value(
            name=free,
            shape=ir.Shape([*plain.shape]),
            type=ir.TensorType(from_torch_dtype(plain.dtype)),
            const_value=TorchTensor(plain, name=free),
        )
        self.initializers[free] = value
        return value

    def tensor_of(self, make: Callable[[], Tensor], name: str, owner: Tensor) -> ir.Value:
        """An initializer whose data is made when the file is written: no second copy of ``owner`` in memory."""
        key = (id(owner), name.rsplit(".", 1)[-1])
        if key not in self._derived:
            free = self.unique(name)
            fake = make()
            tensor = ir.LazyTensor(
                lambda: TorchTensor(make().detach().contiguous(), name=free),
                dtype=from_torch_dtype(fake.dtype), shape=ir.Shape([*fake.shape]), name=free,
            )  # fmt: skip
            value = ir.Value(name=free, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.initializers[free] = self._derived[key] = value
        return self._derived[key]

    def transposed(self, source: Argument, value: ir.Value) -> ir.Value:
        """The matrix ``value`` (of the FX argument ``source``) transposed: when written, if it is a constant."""
        constant = self.program.tensor(source)
        if constant is not None and constant.ndim == 2:
            return self.tensor_of(constant.t, f"{value.name}.t", constant)
        return self.op("Transpose", value, perm=[1, 0])

    def channelwise(self, value: ir.Value, trailing: int) -> ir.Value:
        """A per-channel vector [C] as [C, 1, …]: it broadcasts against [N, C, …]."""
        if trailing <= 0 or self.current is None:
            return value
        return self.op("Reshape", value, self.constant([-1, *[1] * trailing]))

    # ------------------------------------------------------------------ the node that is being lowered

    @property
    def node(self) -> fx.Node:
        assert self.current is not None
        return self.current

    def fake(self, position: int) -> Tensor:
        """Shape and dtype of the argument at ``position``."""
        argument = self.node.args[position]
        if not isinstance(argument, fx.Node) or not isinstance(argument.meta.get("val"), Tensor):
            raise self.fail(f"argument {position} is not a tensor")
        value = argument.meta["val"]
        assert isinstance(value, Tensor)
        return value

    def fake_argument(self, name: str, position: int) -> Tensor:
        """Shape and dtype of an argument that may be given by position or by name."""
        argument = self.node.args[position] if position < len(self.node.args) else self.node.kwargs[name]
        assert isinstance(argument, fx.Node)
        value = argument.meta["val"]
        assert isinstance(value, Tensor)
        return value

    def fake_result(self) -> Tensor:
        value = self.node.meta["val"]
        assert isinstance(value, Tensor)
        return value

    def result_dtype(self) -> torch.dtype:
        value = self.node.meta["val"]
        return (value[0] if isinstance(value, (tuple, list)) else value).dtype  # type: ignore[no-any-return]

    def is_float_tensor(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, Tensor) and value.dtype.is_floating_point

    def floating(self, value: ir.Value) -> ir.Value:
        """``value`` in the dtype of the result: torch computes exp, sqrt … of integers in floating point."""
        return value if self.fake(0).dtype is self.result_dtype() else self.cast(value, self.result_dtype())

    def promoted(self, *operands: Any, first: int = 0) -> list[ir.Value]:
        """Operands in the dtype that torch computes in; numbers become constants of it.

        They are the arguments of the node from position ``first`` on.
        """
        arguments = self.node.args[first : first + len(operands)]
        fakes: list[Any] = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in arguments]
        dtype = self.result_dtype()
        if dtype is torch.bool:  # a comparison
            dtype = torch.result_type(fakes[0], fakes[1])
        return [self._as(operand, fake, dtype) for operand, fake in zip(operands, fakes, strict=True)]

    def _as(self, operand: Any, fake: Any, dtype: torch.dtype) -> ir.Value:
        if not isinstance(operand, ir.Value):
            return self.constant(operand, dtype)
        own = fake.dtype if isinstance(fake, Tensor) else torch.int64
        return operand if own is dtype else self.cast(operand, dtype)

    # ------------------------------------------------------------------ sizes and dtypes

    def size(self, size: Size) -> ir.Value:
        return self.constant(size) if isinstance(size, int) else size

    def sizes(self, sizes: Sequence[Size]) -> ir.Value:
        """A 1-d INT64 tensor of sizes, each known now or when the model runs."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant([*sizes], torch.int64)
        axes = self.constant([0])
        parts = [self.constant([s]) if isinstance(s, int) else self.op("Unsqueeze", s, axes) for s in sizes]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        return self.op("Cast", value, to=from_torch_dtype(dtype))

    def fail(self, why: str) -> Unsupported:
        node = self.current
        assert node is not None
        return Unsupported(why, component="onnx", node=node.name, module=source_module(node))

    # ------------------------------------------------------------------ the whole

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        graph = ir.Graph(
            inputs, outputs, nodes=self.nodes, initializers=[*self.initializers.values()],
            opset_imports={"": self.opset}, name="planish",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10, producer_name="planish")
