"""Replays a saved package with torch, operation by operation: what the file computes, not what was meant.

This is a reference evaluation, not Apple's runtime: every operation computes in float32, and its result is rounded to
the type that the file declares, float16 for most. Apple's units may add in another order, or round in between.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_coreml.mil import Block, Name, Operation, Package, Type, read_package
from planish.backends.to_coreml.mil_operations import OPERATIONS, VARIADIC, Unevaluated
from planish.compiler.errors import VerificationError

Values = dict[str, Any]
"""Name -> Tensor; a string where the value is one."""


class Evaluator:
    """The program of the package at ``path``, its constants decompressed once.

    Raises Unevaluated, naming the operation, for one that is not known: nothing is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.package: Package = read_package(path)
        for kind in unknown_operations(self.package.block):
            raise Unevaluated(kind)
        self._constants: Values = {}
        block = self.package.block
        constant = [op for op in block.operations if _is_constant(op)]
        for operation in constant:
            self._run(operation, self._constants)
        rest = [op for op in block.operations if not _is_constant(op)]
        self.compressed = {
            name: self._constants[name]
            for operation in constant
            if operation.type != "const"
            for name, _ in operation.outputs
        }
        """What was decompressed, by name."""
        self._block = Block(block.inputs, rest, block.outputs)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Outputs by name; ``inputs`` by name, in the types that the package declares."""
        values: Values = dict(self._constants)
        for name, declared in self.package.inputs.items():
            values[name] = inputs[name]
            _check(name, inputs[name], declared, "input")
        with torch.no_grad():
            outputs = self._evaluate(self._block, values)
        return dict(zip(self._block.outputs, outputs, strict=True))

    def _evaluate(self, block: Block, values: Values) -> list[Any]:
        """The outputs of ``block``; every value is let go after its last reader."""
        waiting = Counter(name for operation in block.operations for name in _reads(operation))
        waiting.update(block.outputs)
        for operation in block.operations:
            self._run(operation, values)
            for name in _reads(operation):
                waiting[name] -= 1
                if not waiting[name] and name not in self._constants:
                    values.pop(name, None)
        return [values[name] for name in block.outputs]

    def _run(self, operation: Operation, values: Values) -> None:
        arguments = {
            name: _argument(name, [values[each.name] if isinstance(each, Name) else each for each in given])
            for name, given in operation.inputs.items()
        }
        if operation.blocks:
            results: Any = self._controlled(operation, arguments, values)
        else:
            function = OPERATIONS[operation.type]
            try:
                inspect.signature(function).bind(**arguments)
            except TypeError as failure:  # a parameter that the function does not have: a newer form of the operation
                raise Unevaluated(operation.type, str(failure)) from failure
            results = function(**arguments)
        listed = results if isinstance(results, (tuple, list)) else [results]
        for (name, declared), result in zip(operation.outputs, listed, strict=True):
            values[name] = _rounded(name, result, declared, operation.type)

    def _controlled(self, operation: Operation, arguments: Values, values: Values) -> Sequence[Any]:
        """Branches and loops; their blocks read the values around them."""
        if operation.type == "cond":
            taken = operation.blocks[0 if bool(arguments["pred"]) else 1]
            return self._evaluate(taken, dict(values))
        condition, body = operation.blocks
        state = arguments["loop_vars"]
        state = [state] if isinstance(state, Tensor) else [*state]
        while bool(self._evaluate(condition, {**values, **dict(zip(condition.inputs, state, strict=True))})[0]):
            state = self._evaluate(body, {**values, **dict(zip(body.inputs, state, strict=True))})
        return state


def unknown_operations(block: Block) -> list[str]:
    """The kinds of operations in ``block`` that cannot be evaluated, sorted."""
    return sorted({operation.type for operation in _all(block)} - OPERATIONS.keys() - {"cond", "while_loop"})


def _all(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _all(inner)


def _reads(operation: Operation) -> Iterator[str]:
    for given in operation.inputs.values():
        yield from (each.name for each in given if isinstance(each, Name))
    for block in operation.blocks:
        for inner in block.operations:
            yield from _reads(inner)
        yield from block.outputs


def _is_constant(operation: Operation) -> bool:
    return operation.type == "const" or operation.type.startswith("constexpr_")


def _argument(name: str, given: list[Any]) -> Any:
    wide = [each.float() if isinstance(each, Tensor) and each.dtype is torch.float16 else each for each in given]
    return wide if name in VARIADIC or len(wide) != 1 else wide[0]


def _rounded(name: str, result: Any, declared: Type, kind: str) -> Any:
    if not isinstance(result, Tensor):
        return result
    _check(name, result, declared, kind)
    return result.to(declared.dtype)


def _check(name: str, value: Tensor, declared: Type, kind: str) -> None:
    if declared.shape is None:
        return
    fits = len(declared.shape) == value.ndim and all(
        wanted is None or wanted == size for wanted, size in zip(declared.shape, value.shape, strict=True)
    )
    if not fits:
        raise VerificationError(
            f"Report this to planish: {name} ({kind}) of the package is declared as {[*declared.shape]}, "
            f"and has the shape {[*value.shape]}."
        )
