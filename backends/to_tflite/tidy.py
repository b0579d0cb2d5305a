"""Operators that the one ahead of them makes needless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from planish.backends.to_tflite.graph import Operator
from planish.backends.to_tflite.values import Value


def without_reshapes_of_reductions(operators: Sequence[Operator], outputs: Sequence[Value]) -> list[Operator]:
    """A reduction drops its dimensions itself where all that follows it is a RESHAPE without them.

    Pooling over all pixels keeps them in PyTorch, and ``flatten`` takes them away.
    """
    read = [value for operator in operators for value in operator.inputs if value is not None]
    readers = Counter(value.stored for value in (*read, *outputs))
    makers = {operator.outputs[0].stored: place for place, operator in enumerate(operators)}
    kept: list[Operator | None] = [*operators]
    for place, operator in enumerate(operators):
        source = operator.inputs[0] if operator.kind == "RESHAPE" else None
        maker = makers.get(source.stored) if source is not None and readers[source.stored] == 1 else None
        reduction = kept[maker] if maker is not None else None
        if maker is not None and reduction is not None and operator.outputs[0].shape == _dropped(reduction):
            kept[maker] = replace(reduction, outputs=operator.outputs, options={**reduction.options, "keepDims": False})
            kept[place] = None
    return [operator for operator in kept if operator is not None]


def _dropped(operator: Operator) -> tuple[int, ...] | None:
    """The shape of a reduction without the dimensions that it keeps at 1; None of any other operator."""
    axes = operator.inputs[1].stored.data if operator.options.get("keepDims") and operator.inputs[1] else None
    if axes is None:
        return None
    gone = axes().tolist()
    return tuple(size for place, size in enumerate(operator.outputs[0].shape) if place not in gone)
