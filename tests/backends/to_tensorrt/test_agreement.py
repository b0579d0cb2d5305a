"""The rules against NVIDIA's own builder: TensorRT-RTX, which needs no GPU to build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.integers import LAYERS as WEIGHTED
from planish.backends.to_tensorrt.integers import runs_in_integers
from planish.backends.to_tensorrt.rules import rules_for
from tests.backends.to_tensorrt.cases import COMMUTING, IN_FLOAT, LAYERS, REJECTED
from tests.backends.to_tensorrt.graphs import Case, Graph

pytest.importorskip("tensorrt_rtx", reason="NVIDIA's builder is in the extra tensorrt")

CASES: dict[str, Case] = {
    **LAYERS, **COMMUTING, **{name: case for name, (case, _) in (*IN_FLOAT.items(), *REJECTED.items())},
}  # fmt: skip
NEWEST = (10, 15)


def planned(graph: Graph, output: str) -> tuple[bool, set[str]]:
    """Whether the rules expect a refusal, and the layers they expect in INT8."""
    model = graph.model(output)
    errors = [
        node
        for rule in rules_for(NEWEST, frozenset({"fp32", "fp16", "int8"}))
        if rule.severity == "error"
        for node in rule.offenders(model.graph)
    ]
    return bool(errors), {str(node.name) for node in runs_in_integers(model.graph)}


def actual(graph: Graph, output: str, folder: Path) -> tuple[bool, set[str]]:
    onnx.save(graph.proto(output), folder / "model.onnx")
    verdict = rtx.ask(folder / "model.onnx", "SM86")
    weighted = {node.name for node in graph.nodes if node.op_type in WEIGHTED}
    return bool(verdict.refusal), weighted & verdict.in_integers


@pytest.mark.parametrize("name", CASES)
def test_the_rules_say_what_the_builder_does(name: str, tmp_path: Path) -> None:
    graph = Graph()
    output = CASES[name](graph)
    refused, integers = planned(graph, output)
    assert actual(graph, output, tmp_path) == (refused, set() if refused else integers)


def test_at_least_sixty_cases_are_asked() -> None:
    assert len(CASES) >= 60


# ---------------------------------------------------------------------- drawn placements

CHANNELS, SIZE = 16, 8


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, str]:
    """A chain of layers on images; between them operators, and Q/DQ wherever the dice put it."""
    graph = Graph()
    x = graph.input(1, CHANNELS, SIZE, SIZE)
    for _ in range(draw(st.integers(1, 3))):
        x = _maybe_quantized(draw, graph, x)
        for move in draw(
            st.lists(st.sampled_from(["relu", "transpose", "slice", "neg", "pad", "pool", "mul"]), max_size=2)
        ):
            x = _moved(graph, move, x)
        if draw(st.booleans()):
            x = _maybe_quantized(draw, graph, x)
        kernel = draw(st.sampled_from([1, 3]))
        weight = _weight(draw, graph, kernel)
        y = graph.op("Conv", x, weight, graph.floats(CHANNELS), pads=[kernel // 2] * 4)
        x = graph.op("Add", y, _maybe_quantized(draw, graph, x)) if draw(st.booleans()) else y
        x = graph.op("Relu", x) if draw(st.booleans()) else x
    if draw(st.booleans()):
        flat = graph.op("Reshape", _maybe_quantized(draw, graph, graph.op("GlobalMaxPool", x)), graph.ints(1, CHANNELS))
        axis = draw(st.sampled_from([None, 0, 1]))
        x = graph.op("MatMul", flat, graph.weight(CHANNELS, 16, axis=axis))
    return graph, x


def _maybe_quantized(draw: st.DrawFn, graph: Graph, x: str) -> str:
    kind = draw(st.sampled_from(["none", "one scale", "one scale", "one scale", "a scale per channel"]))
    if kind == "none":
        return x
    scale = draw(st.sampled_from([0.02, 0.3]))
    return graph.quantized(x, scale) if kind == "one scale" else graph.quantized(x, [scale] * CHANNELS, axis=1)


def _weight(draw: st.DrawFn, graph: Graph, kernel: int) -> str:
    shape = (CHANNELS, CHANNELS, kernel, kernel)
    kind = draw(st.sampled_from(["float", "float with Q", "integers", "integers", "integers"]))
    if kind == "float":
        return graph.floats(*shape)
    axis = draw(st.sampled_from([0, 0, 1, None]))
    if kind == "integers":
        return graph.weight(*shape, axis=axis)
    return graph.quantized(graph.floats(*shape), 0.01 if axis is None else [0.01] * CHANNELS, axis=axis)


def _moved(graph: Graph, move: str, x: str) -> str:
    if move == "relu":
        return graph.op("Relu", x)
    if move == "transpose":
        return graph.op("Transpose", x, perm=[0, 1, 3, 2])
    if move == "slice":
        return graph.op("Slice", graph.op("Concat", x, x, axis=2), graph.ints(0), graph.ints(SIZE), graph.ints(2))
    if move == "neg":
        return graph.op("Neg", x)
    if move == "pad":
        return graph.op(
            "Slice",
            graph.op("Pad", x, graph.ints(0, 0, 1, 1, 0, 0, 1, 1)),
            *(graph.ints(*at) for at in ((1, 1), (SIZE + 1, SIZE + 1), (2, 3))),
        )
    if move == "pool":
        return graph.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    return graph.op("Mul", x, graph.constant(np.full((1, CHANNELS, 1, 1), 1.5, np.float32)))


@pytest.mark.slow
# The same ones in every run; of 1,021 others with a max pool, all agreed (docs/backend-tensorrt.md).
@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(network=networks())
def test_the_rules_and_the_builder_agree_on_drawn_placements(network: tuple[Graph, str], tmp_path: Path) -> None:
    graph, output = network
    refused, integers = planned(graph, output)
    assert not refused
    assert actual(graph, output, tmp_path) == (False, integers)
