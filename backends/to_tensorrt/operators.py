"""Which ONNX operators each version of TensorRT reads, from the tables that NVIDIA publishes with its parser."""

from __future__ import annotations

Version = tuple[int, int]

TABLES = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
CHANGES = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/Changelog.md"

SINCE: dict[str, Version] = {
    "GroupNormalization": (8, 6), "IsInf": (8, 6), "LayerNormalization": (8, 6),  # Changelog
    "CastLike": (9, 2), "Hardmax": (9, 2),  # the tables of 8.5 and 9.2
    "DeformConv": (10, 1), "BlackmanWindow": (10, 4), "HammingWindow": (10, 4), "HannWindow": (10, 4),
    "STFT": (10, 5),  # Changelog
    # The table of 10.15 is the first at hand that lists them.
    "Attention": (10, 15), "Gelu": (10, 15), "Mish": (10, 15), "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15), "TensorScatter": (10, 15),
}  # fmt: skip
"""Operator -> the version that began to read it; 8.5, the oldest version that a profile names, reads the others."""

NEVER = frozenset(
    {
        "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
        "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear",
        "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
        "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
        "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
        "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence",
        "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
    }
)  # fmt: skip
"""What no version reads, up to the table of 10.15."""


def reads(operator: str, version: Version) -> bool:
    return operator not in NEVER and SINCE.get(operator, (0, 0)) <= version
