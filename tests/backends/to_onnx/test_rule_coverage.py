"""Which operators have a rule."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch

from planish.backends.to_onnx.lower import RULES


def test_every_core_operator_of_pytorch_has_a_rule_or_a_reason() -> None:
    reasons = {
        "native_dropout": "training",
        "rand": "random",
        "randn": "random",
        "randperm": "random",
        "_local_scalar_dense": "leaves the graph",
        "as_strided": "memory layout",
        "empty_strided": "memory layout",
        "sym_stride": "memory layout",
        "sym_storage_offset": "memory layout",
        "sym_is_contiguous": "memory layout",
        "_fft_c2r": "complex numbers",
        "_fft_r2c": "complex numbers",
        "_pdist_forward": "rare",
        "masked_scatter": "rare",
    }
    core = [*core_operators()]
    missing = {overload.overloadpacket.__name__ for overload in core if overload not in RULES}
    assert len(core) > 150
    assert {name for name in missing if not name.endswith("backward")} == reasons.keys()


def core_operators() -> Iterator[torch._ops.OpOverload]:
    names = {
        full.split(".")[0].removeprefix("aten::")
        for full in torch._C._dispatch_get_all_op_names()
        if full.startswith("aten::")
    }
    for name in sorted(names):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            operator = getattr(packet, overload)
            if torch.Tag.core in operator.tags and not operator._schema.is_mutable:
                yield operator


def test_arithmetic_on_sizes_has_rules() -> None:
    assert {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod} <= RULES.keys()
