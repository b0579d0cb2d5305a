from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from planish.backends.to_tensorrt.integers import runs_in_integers
from planish.backends.to_tensorrt.rules import RULES, rules_for
from planish.backends.to_tensorrt.versions import suit
from tests.backends.to_tensorrt.cases import COMMUTING, IN_FLOAT, LAYERS, REJECTED
from tests.backends.to_tensorrt.graphs import Case, Graph, conv

NEW, OLD = (10, 3), (8, 5)
ORIN = frozenset({"fp32", "fp16", "int8"})


def broken(case: Case, version: tuple[int, int] = NEW, dtypes: frozenset[str] = ORIN) -> set[str]:
    graph = Graph()
    model = graph.model(case(graph))
    return {rule.name for rule in rules_for(version, dtypes) for _ in rule.offenders(model.graph)}


@pytest.mark.parametrize("name", [*LAYERS, *COMMUTING])
def test_what_runs_in_integers_breaks_no_rule(name: str) -> None:
    assert broken({**LAYERS, **COMMUTING}[name]) == set()


@pytest.mark.parametrize("name", IN_FLOAT)
def test_what_runs_in_float_without_a_word_is_a_warning(name: str) -> None:
    case, rule = IN_FLOAT[name]
    assert broken(case) == {rule}
    assert next(known.severity for known in RULES if known.name == rule) == "warning"


@pytest.mark.parametrize("name", REJECTED)
def test_what_the_parser_rejects_is_an_error(name: str) -> None:
    case, rule = REJECTED[name]
    found = broken(case)
    assert rule in found
    assert next(known.severity for known in rules_for(NEW, ORIN) if known.name == rule) == "error"


def test_every_rule_tells_what_to_do_and_where_nvidia_says_so() -> None:
    for rule in (*rules_for(OLD, ORIN), *rules_for(NEW, ORIN)):
        assert rule.sentence.endswith(".") and rule.source.startswith("https://")


def test_every_rule_has_a_case_that_breaks_it() -> None:
    told = {rule for _, rule in (*IN_FLOAT.values(), *REJECTED.values())}
    assert {rule.name for rule in RULES} - told == {"signed"}  # below: the parser of TensorRT-RTX accepts it


def test_unsigned_integers_are_refused() -> None:
    assert broken(lambda g: conv(g, g.quantized(g.input(1, 32, 8, 8), dtype=np.uint8), g.weight(32, 32, 3, 3))) == {
        "signed"
    }


def test_quantizing_without_a_zero_point_is_unsigned_as_onnx_defines_it() -> None:
    assert broken(lambda g: g.op("QuantizeLinear", g.input(4, 8), g.constant(np.float32(0.1)))) == {"signed"}


def test_integer_weights_are_an_error_before_version_10_and_suiting_the_model_mends_it() -> None:
    graph = Graph(opset=17)
    model = graph.model(LAYERS["convolution"](graph))
    names = {rule.name for rule in rules_for(OLD, ORIN) for _ in rule.offenders(model.graph)}
    assert names == {"float-weights"}
    suit(model, OLD)
    assert not [rule for rule in rules_for(OLD, ORIN) for _ in rule.offenders(model.graph)]
    assert [node.op_type for node in runs_in_integers(model.graph)] == ["Conv"]


@pytest.mark.parametrize(
    ("operator", "version", "known"),
    [("LayerNormalization", (8, 5), False), ("LayerNormalization", (8, 6), True), ("Gelu", (10, 3), False),
     ("Gelu", (10, 15), True), ("Conv", (8, 5), True), ("Unique", (11, 4), False)],
)  # fmt: skip
def test_operators_are_known_from_the_version_on_that_reads_them(
    operator: str, version: tuple[int, int], known: bool
) -> None:
    inputs = 2 if operator == "LayerNormalization" else 1
    found = broken(lambda g: g.op(operator, *(g.input(4, 8) for _ in range(inputs))), version)
    assert ("known-operators" not in found) == known


def test_operators_of_another_domain_are_unknown() -> None:
    assert broken(lambda g: g.op("MyOwn", g.input(4), domain="com.example")) == {"known-operators"}


def test_fp8_is_refused_where_the_device_has_none() -> None:
    from ml_dtypes import float8_e4m3fn

    def case(g: Graph) -> str:
        return conv(g, g.quantized(g.input(1, 32, 8, 8), dtype=float8_e4m3fn), g.floats(32, 32, 3, 3))

    assert "no-fp8" in broken(case)
    assert "no-fp8" not in broken(case, dtypes=ORIN | {"fp8"})


def test_a_newer_opset_than_a_version_reads_is_an_error() -> None:
    graph = Graph(opset=20)
    model = graph.model(graph.op("Relu", graph.input(4)))
    named = {version: {rule.name for rule in rules_for(version, ORIN) for _ in rule.offenders(model.graph)}
             for version in (OLD, NEW, (10, 15))}  # fmt: skip
    assert named == {OLD: {"known-opset"}, NEW: {"known-opset"}, (10, 15): set()}


def test_the_branches_of_an_if_are_looked_at() -> None:
    branch = helper.make_graph(
        [helper.make_node("Det", ["x0"], ["y"])], "branch", [], [helper.make_tensor_value_info("y", 1, None)]
    )
    found = broken(
        lambda g: (
            g.op("If", g.constant(np.array(True)), then_branch=branch, else_branch=branch) if g.input(2, 2) else ""
        )
    )
    assert found == {"known-operators"}
