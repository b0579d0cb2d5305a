#!/usr/bin/env python3
"""Stands in for trtexec: takes the options of the version in FAKE_TENSORRT, computes with ONNX Runtime."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

OPTIONS = {"onnx", "saveEngine", "exportOutput", "exportTimes", "profilingVerbosity", "exportLayerInfo",
           "timingCacheFile", "minShapes", "optShapes", "maxShapes", "shapes", "loadInputs", "sparsity",
           "useDLACore", "allowGPUFallback", "help"}  # fmt: skip
version = [int(part) for part in os.environ["FAKE_TENSORRT"].split(".")[:3]]
old = version[0] < 10
spelled = f"{version[0]}{version[1]}{version[2]:02d}" if old else f"{version[0]}{version[1]:02d}{version[2]:02d}"
if version[0] < 11:
    OPTIONS |= {"fp16", "int8"}
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{spelled}] # trtexec {' '.join(sys.argv[1:])}")
given = dict(part.removeprefix("--").partition("=")[::2] for part in sys.argv[1:])
unknown = sorted(given.keys() - OPTIONS)
if unknown:
    sys.exit(f"[E] Unknown option: --{unknown[0]}")
if "help" in given:
    sys.exit(0)
if os.environ.get("FAKE_MISHAP") == "memory":
    sys.exit("[E] Error[2]: Requested amount of GPU memory (536870912 bytes) could not be allocated.")
model = onnx.load(given["onnx"])
if any(node.op_type == "QuantizeLinear" for node in model.graph.node) and version[0] < 11 and "int8" not in given:
    sys.exit("[E] Network has QuantizeLinear nodes, but --int8 is not set")
sizes = dict(each.split(":") for each in given.get("shapes", "").split(",") if each)
session_options = onnxruntime.SessionOptions()
session_options.add_session_config_entry("session.disable_quant_qdq", "1")
session = onnxruntime.InferenceSession(given["onnx"], session_options, providers=["CPUExecutionProvider"])
files = dict(each.split(":") for each in given["loadInputs"].split(","))
feed = {}
for each in session.get_inputs():
    shape = [int(size) for size in sizes[each.name].split("x")] if each.name in sizes else each.shape
    own = np.int64 if "int64" in each.type else np.float32
    stored = np.int32 if own is np.int64 and version[0] < 9 else own
    feed[each.name] = np.fromfile(files[each.name], stored).reshape(shape).astype(own)
outputs = [
    {"name": each.name, "dimensions": "x".join(map(str, array.shape)), "values": array.flatten().tolist()}
    for each, array in zip(session.get_outputs(), session.run(None, feed), strict=True)
]
times = [{"computeMs": 1.0 + index / 1000, "latencyMs": 2.0} for index in range(100)]
Path(given["exportOutput"]).write_text(json.dumps(outputs))
Path(given["exportTimes"]).write_text(json.dumps(times))
Path(given["saveEngine"]).write_bytes(b"engine")
