from __future__ import annotations

import pytest
import torch

from planish.backends.to_onnx.scheme import scheme_for
from planish.compiler.plugins import registry

aten = torch.ops.aten
PROFILES = sorted(registry().profiles)


@pytest.mark.parametrize("name", PROFILES)
def test_the_scheme_of_every_device_is_what_its_profile_says(name: str) -> None:
    profile = registry().find_profile(name)
    scheme, limits = scheme_for(profile), profile.quantization
    if limits is None:
        assert scheme is None
        return
    assert scheme is not None
    assert str(scheme.activation.dtype) == f"torch.{limits.activation_dtype}"
    assert scheme.activation.symmetric is limits.activation_symmetric
    assert scheme.activation.levels == 2 ** (8 * scheme.activation.dtype.itemsize) - 1
    assert scheme.weight.granularity == limits.weight_granularity
    assert scheme.weight.maximum == -scheme.weight.minimum == 2 ** (limits.weight_bits - 1) - 1
    assert scheme.weight.symmetric and scheme.weight.dtype is torch.int8
    assert scheme.min_channels == (limits.min_channels or 1)
    on_x86 = profile.host is not None and profile.host.machine == "x86_64"
    assert (scheme.prefix is not None) == on_x86


def test_activations_are_unsigned_and_weights_signed_on_x86() -> None:
    scheme = scheme_for(registry().find_profile("x86-avx512-vnni"))
    assert scheme is not None
    assert (scheme.activation.dtype, scheme.weight.dtype) == (torch.uint8, torch.int8)


def test_a_machine_that_saturates_gets_seven_bits() -> None:
    scheme = scheme_for(registry().find_profile("x86-avx2"))
    assert scheme is not None and scheme.weight.maximum == 63


def test_every_operator_has_one_entry_and_is_found() -> None:
    scheme = scheme_for(registry().find_profile("x86-avx512-vnni"))
    assert scheme is not None
    listed = [operator for op in scheme.ops for operator in op.operators]
    assert len(listed) == len(set(listed))
    assert not set(listed) & set(scheme.transparent)
    assert all(operator in scheme.find(operator).operators for operator in listed)  # type: ignore[union-attr]
    assert scheme.find(aten.softmax.int) is None


def test_a_linear_layer_writes_floats_and_a_table_has_one_scale() -> None:
    scheme = scheme_for(registry().find_profile("x86-avx512-vnni"))
    assert scheme is not None
    linear, table = scheme.find(aten.linear.default), scheme.find(aten.embedding.default)
    assert linear is not None and not linear.quantizes_output
    assert table is not None and table.activations == () and table.weight == 0
    assert table.weight_type is not None and table.weight_type.granularity == "tensor"
