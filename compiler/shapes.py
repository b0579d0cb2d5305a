"""Shapes and dtypes of every value of a Program, dynamic axes as symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from planish.compiler.program import Program


def propagate(program: Program) -> None:
    """Run the Program on fake tensors, and keep each result as ``node.meta["val"]``.

    Costs no arithmetic and no memory. Raises what the first op that does not fit raises: a Program
    whose constants do not agree with its tensors does not get through here.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    for node in program.graph.nodes:  # sizes that the data decides (nonzero): symbols of the trace's own environment
        node.meta.pop("unbacked_bindings", None)
    with torch.no_grad(), enable_python_dispatcher():  # composite ops (lstm) take symbols only through it
        _Propagation(program.graph_module, mode).propagate_dont_convert_inputs(*_fakes(mode, program))


def ensure_shapes(program: Program) -> None:
    """As ``propagate``, unless every node knows its shape: those of a Program that was verified still hold."""
    if any("val" not in node.meta for node in program.graph.nodes if node.op != "output"):
        propagate(program)


class _Propagation(FakeTensorProp):
    def run(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("enable_io_processing", False)  # the placeholders are the leaves, already flat
        return super().run(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        # An op on real tensors alone would be computed for real, and write into the buffers of the model.
        return self._mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value


def _fakes(mode: FakeTensorMode, program: Program) -> list[Any]:
    """The example inputs as fake tensors: one symbol a name of a dynamic axis."""
    symbols: dict[str, torch.SymInt] = {}
    fakes: list[Any] = []
    for node, leaf in zip(program.placeholders, program.example_inputs.leaves(), strict=True):
        if not isinstance(leaf, Tensor):
            fakes.append(leaf)
            continue
        sizes: list[int | torch.SymInt] = [*leaf.shape]
        for axis, name in program.dynamic_axes.get(node.name, {}).items():
            if name not in symbols:
                symbols[name] = _symbol(mode, name, leaf.shape[axis])
            sizes[axis] = symbols[name]
        with mode:
            fakes.append(torch.empty(sizes, dtype=leaf.dtype, device=leaf.device))
    return fakes


def _symbol(mode: FakeTensorMode, name: str, example: int) -> torch.SymInt:
    environment: Any = mode.shape_env
    source = ConstantSource(f"size_{name}")
    symbol = environment.create_symbol(example, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    size: torch.SymInt = environment.create_symintnode(symbol, hint=example, source=source)
    return size


def fake_like(tensor: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor:
    """A fake tensor of another ``shape``: a third of what ``new_empty`` takes where sizes are symbolic."""
    assert isinstance(tensor, FakeTensor), "shapes are those of fake tensors"
    return FakeTensor(tensor.fake_mode, torch.empty(shape, dtype=tensor.dtype, device="meta"), tensor.device)


def tensor_of(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor), f"{node.name} is {type(value).__name__}, not a tensor"
    return value
