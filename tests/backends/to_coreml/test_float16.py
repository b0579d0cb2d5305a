"""planish's form of the cast to float16 decides as coremltools' own does."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

pytest.importorskip("coremltools")

import coremltools as ct

from planish.backends.to_coreml.float16 import OURS, THEIRS, beyond_float16, overflows, with_own_cast

EDGES = [0.0, 1.0, 65504.0, -65504.0, 65505.0, -65505.0, 1e37, -1e37, 1.1e38, np.inf, -np.inf, np.nan]


@given(st.lists(st.sampled_from(EDGES), max_size=5))
def test_a_constant_is_beyond_float16_where_coremltools_says_so(values: list[float]) -> None:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    given = np.array([0.0, *values], np.float32)
    found = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(given.size,))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        result = mb.add(x=x, y=given)
        found.append((FP16ComputePrecision.fp16_overflow(result.op), overflows(result.op)))
        return result

    theirs, ours = found[0]
    assert ours == theirs == beyond_float16(given)


def test_the_pipeline_has_the_cast_once() -> None:
    passes = with_own_cast(ct.PassPipeline().passes)
    assert passes.count(OURS) == 1 and THEIRS not in passes
