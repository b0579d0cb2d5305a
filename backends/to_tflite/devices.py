"""What runs on devices that do not have all of TFLite: their operators, and the room for activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from planish.backends.to_tflite.files import needed
from planish.backends.to_tflite.graph import Graph, Operator
from planish.backends.to_tflite.values import Stored
from planish.compiler.hardware import HardwareProfile


@dataclass(frozen=True)
class Subset:
    """The operators that a kind of device has."""

    name: str
    operators: frozenset[str]
    otherwise: str
    """What becomes of the others."""
    fatal: bool
    """Whether a model with any other cannot run at all."""
    source: str
    largest_rank: int = 8
    """Tensors of more dimensions run elsewhere as well."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


EDGE_TPU = Subset(
    "the Edge TPU",
    _names(
        "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED "
        "L2_NORMALIZATION LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX "
        "REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE "
        "SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE STRIDED_SLICE SUB SUM SQUARED_DIFFERENCE TANH TRANSPOSE "
        "TRANSPOSE_CONV"
    ),
    "the host's CPU runs it, and all that follows it",
    fatal=False,
    source="https://coral.withgoogle.com/docs/edgetpu/models-intro/",
)
MICRO = Subset(
    "TFLite Micro",
    _names(
        "ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS "
        "BROADCAST_TO CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE "
        "DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD "
        "FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D "
        "LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM "
        "MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE REDUCE_MAX "
        "REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT "
        "SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE "
        "SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV "
        "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK WHILE ZEROS_LIKE"
    ),
    "no microcontroller runs it",
    fatal=True,
    source="https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/micro_mutable_op_resolver.h",
)
GPU = Subset(
    "the GPU delegate",
    _names(
        "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE EXP FULLY_CONNECTED LOGICAL_AND "
        "LOGISTIC MAXIMUM MAX_POOL_2D MINIMUM MUL PAD PRELU QUANTIZE RELU RELU6 RESHAPE RESIZE_BILINEAR SOFTMAX "
        "STRIDED_SLICE SUB TRANSPOSE_CONV"
    ),
    "as far as it is documented, the CPU runs it, and values are copied there and back",
    fatal=False,
    source="https://www.tensorflow.org/lite/performance/gpu",
    largest_rank=4,
)
NNAPI = Subset(
    "NNAPI",
    _names(
        "ABS ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_TO_SPACE_ND CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D "
        "DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FULLY_CONNECTED GATHER "
        "GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND "
        "LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG NOT_EQUAL PACK PAD "
        "PADV2 POW PRELU QUANTIZE REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE "
        "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH "
        "SPLIT SQRT SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TOPK_V2 TRANSPOSE TRANSPOSE_CONV"
    ),
    "the CPU runs it, and values are copied there and back",
    fatal=False,
    source="https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/nnapi/nnapi_delegate.cc",
    largest_rank=4,
)
_BY_KIND = {"tpu": EDGE_TPU, "mcu": MICRO, "gpu": GPU, "npu": NNAPI}
"""What TFLite reaches a unit of each kind through."""


def subset_of(profile: HardwareProfile) -> Subset | None:
    """The operators that the units of a device have; None where all of TFLite runs."""
    kinds = {unit.kind for unit in profile.units}
    return _BY_KIND.get(kinds.pop()) if len(kinds) == 1 else None


def runs_only_integers(profile: HardwareProfile) -> bool:
    return set(profile.support.dtypes) == {"int8"}


def missing(operators: Sequence[Operator], subset: Subset) -> Iterator[tuple[fx.Node | None, str]]:
    """The operators that a device lacks, with the nodes that they were written for."""
    for operator in operators:
        rank = max(len(value.shape) for value in (*operator.inputs, *operator.outputs) if value is not None)
        if operator.kind not in subset.operators:
            yield operator.node, operator.kind
        elif rank > subset.largest_rank:
            yield operator.node, f"{operator.kind} in {rank} dimensions"


def in_float(operators: Sequence[Operator]) -> Iterator[tuple[fx.Node | None, str]]:
    """The operators that compute in float."""
    for operator in operators:
        if operator.kind != "DEQUANTIZE" and operator.outputs[0].dtype.is_floating_point:
            yield operator.node, f"{operator.kind} in float"


@dataclass(frozen=True)
class Peak:
    """The most that activations take at once, and the node where they do."""

    size_bytes: int
    node: fx.Node | None


def peak_of_activations(graph: Graph, float_bytes: int = 4) -> Peak:
    """A lower bound of the tensor arena: what lives at once while the operators run in the order of the file.

    ``float_bytes``: of one float value; 1 tells what full INT8 would take. A planner may need more, for alignment,
    fragmentation, and scratch buffers of kernels.
    """
    operators = needed(graph)
    last: dict[Stored, int] = {value.stored: len(operators) for value in graph.outputs}
    for place, operator in enumerate(operators):
        for value in operator.inputs:
            if value is not None:
                last[value.stored] = max(last.get(value.stored, 0), place)
    living = {value.stored for value in graph.inputs}
    best = Peak(0, None)
    for place, operator in enumerate(operators):
        living |= {value.stored for value in operator.outputs}
        size = sum(_bytes(stored, float_bytes) for stored in living)
        best = max(best, Peak(size, operator.node), key=lambda peak: peak.size_bytes)
        living = {stored for stored in living if last.get(stored, -1) > place}
    return best


def _bytes(stored: Stored, float_bytes: int) -> int:
    width = float_bytes if stored.dtype is torch.float32 else stored.dtype.itemsize
    return math.prod(stored.shape) * width
