"""The rules, asked of an ONNX file that anyone may have made."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from planish.backends.to_tensorrt.rules import rules_for
from planish.backends.to_tensorrt.versions import oldest_version
from planish.compiler.contracts import FileFinding
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile


def check_file(file: Path, profile: HardwareProfile) -> list[FileFinding]:
    """What TensorRT would reject in ``file``, and what it would run in float without a word."""
    graph = _read(file).graph
    rules = rules_for(oldest_version(profile), frozenset(profile.support.dtypes))
    return [
        FileFinding(
            rule, node.op_type, node.metadata_props.get("planish.module") or node.name or "a node without a name"
        )
        for rule in rules
        for node in rule.offenders(graph)
    ]


def _read(file: Path) -> ir.Model:
    """With shapes inferred: the rules look at ranks. Weights that lie beside the file are read where a rule asks."""
    if not file.is_file():
        raise UserError(f"Name an ONNX file that exists: there is no {file}.")
    try:
        proto = onnx.load(file, load_external_data=False)
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except Exception as failure:  # protobuf's DecodeError, and what onnx raises of a file that is no model
        raise UserError(f"Save {file} again: it is no ONNX model that can be read ({failure}).") from failure
    ir.external_data.set_base_dir(model.graph, file.parent)
    return model
