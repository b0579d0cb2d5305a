"""coremltools' converters of single torch operators, guarded, and planish's own where those are wrong or missing.

Rules, each with what it mends:

1. A keyword argument that a converter does not read is refused: it would be dropped without a word.
   https://github.com/apple/coremltools/issues/2573 (the ``alpha`` of add and sub)
2. ``gelu`` takes ``approximate`` as a keyword: coremltools 9 makes tanh exact.
   https://github.com/apple/coremltools/pull/2863
3. ``where`` gets operands as large as its condition: MIL's ``select`` declares the shape of its operands, and a mask
   of the batch over a constant makes a package that contradicts itself. Reported nowhere that we found.
4. ``reciprocal`` is a division: MIL's ``inverse`` adds an epsilon of 1e-4 to what it divides by.
   https://github.com/apple/coremltools/pull/2773
5. ``lstm`` becomes MIL's own layer, ``gru`` its steps; coremltools knows those of torch.jit only.
   https://github.com/apple/coremltools/issues/1124
6. Divisions of whole numbers that are rounded stay whole: coremltools casts to float32, or float16 where that is the
   precision, and numbers beyond 2048 come out wrong. Reported nowhere that we found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.errors import LoweringError
from planish.compiler.program import op_name, source_module

Converter = Callable[[Any, Any], None]
LOCK = threading.RLock()
"""coremltools keeps its registry of converters, and the block that it builds, in globals."""
_MEANINGLESS = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "implicit"})
"""Keyword arguments that say where and how a tensor lies, not what is in it."""


class Refused(LoweringError):
    """coremltools does not convert this node as it stands."""


class _Read(dict[str, Any]):
    """Keyword arguments of a node, that remember which of them were looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


@contextmanager
def guarded(graph: fx.Graph) -> Iterator[None]:
    """Coremltools converts the nodes of ``graph`` with planish's converters, each guarded; afterwards as before."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    from planish.backends.to_coreml.own_converters import CONVERTERS

    nodes = {node.name: node for node in graph.nodes}
    with LOCK:
        before = registry.name_to_func_mapping
        registry.name_to_func_mapping = {
            name: _guard(convert, nodes) for name, convert in {**before, **CONVERTERS}.items()
        }
        try:
            yield
        finally:
            registry.name_to_func_mapping = before


def is_known(target: Any) -> bool:
    """Whether coremltools or planish has a converter for the operator."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    from planish.backends.to_coreml.own_converters import CONVERTERS

    named = target.name() if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    kind = sanitize_op_kind(named)
    return kind in CONVERTERS or registry.get_func(kind) is not None


def _guard(convert: Converter, nodes: dict[str, fx.Node]) -> Converter:
    def guarded_convert(context: Any, node: Any) -> None:
        origin = nodes.get(node.name)
        given = _Read(node.kwinputs or {})
        node.kwinputs = given
        try:
            convert(context, node)
        except Exception as failure:  # a converter raises whatever its assumptions raise
            first = next(iter(str(failure).strip().splitlines()), type(failure).__name__)
            raise _refused(origin, f"coremltools does not convert {_told(origin, node)} ({first})") from failure
        dropped = [name for name in given if name not in given.read and _matters(origin, name)]
        if "dtype" in dropped and _has_type(context[node.name], origin):
            dropped.remove("dtype")
        if dropped:
            raise _refused(
                origin, f"coremltools would drop {', '.join(f'{name}=' for name in dropped)} of {_told(origin, node)}"
            )

    return guarded_convert


def _matters(origin: fx.Node | None, name: str) -> bool:
    if name in _MEANINGLESS:
        return False
    if origin is None or not isinstance(origin.target, torch._ops.OpOverload):
        return True
    value = origin.kwargs[name]
    default = next((arg.default_value for arg in origin.target._schema.arguments if arg.name == name), None)
    return bool(value != default)


def _has_type(made: Any, origin: fx.Node | None) -> bool:
    """Whether a value has the type that torch gives it (coremltools has 32 bits for 64)."""
    from coremltools.converters.mil.mil import types

    value = origin.meta.get("val") if origin is not None else None
    if not isinstance(value, Tensor) or isinstance(made, (list, tuple)):
        return False
    wanted = {torch.int64: "int32", torch.int32: "int32", torch.float32: "fp32", torch.float64: "fp32",
              torch.float16: "fp16", torch.bool: "bool"}.get(value.dtype)  # fmt: skip
    return bool(types.builtin_to_string(made.dtype) == wanted)


def _told(origin: fx.Node | None, node: Any) -> str:
    return op_name(origin) if origin is not None else str(node.kind)


def _refused(origin: fx.Node | None, message: str) -> Refused:
    if origin is None:
        return Refused(message, component="coreml")
    return Refused(message, component="coreml", node=origin.name, module=source_module(origin))
