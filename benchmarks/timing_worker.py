"""One model in a process of its own: ``timing_worker.py onnxruntime|openvino MODEL EXAMPLE.npz``.

Imports the runtime and numpy only, so that nothing else runs beside the model. Reads commands from stdin,
answers each with one line of JSON: ``time COUNT`` gives COUNT latencies in ms, ``run IN.npz OUT.npz`` writes
the first output for all rows of IN, in batches of the example's size. Inputs are named 0, 1, ... in the .npz.
"""

import json
import sys
import time

import numpy as np


def onnxruntime_model(path, example):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != len(example):
        raise SystemExit(f"{path} takes {names}, the example has {len(example)} arrays")
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def openvino_model(path, example):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({port: array.shape for port, array in zip(model.inputs, example, strict=True)})
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda arrays: request.infer(list(arrays))[0]


def read(path):
    with np.load(path) as stored:
        return [stored[str(index)] for index in range(len(stored.files))]


def timed(run, arrays, count):
    latencies = []
    for _ in range(count):
        start = time.perf_counter_ns()
        run(arrays)
        latencies.append((time.perf_counter_ns() - start) / 1e6)
    return latencies


def run_all(run, arrays, batch, output):
    rows = len(arrays[0])
    if rows % batch:
        raise SystemExit(f"{rows} rows do not divide into batches of {batch}")
    parts = [run([array[at : at + batch] for array in arrays]).copy() for at in range(0, rows, batch)]
    np.savez(output, **{"0": np.concatenate(parts)})
    return rows


def main(runtime, path, example_file):
    example = read(example_file)
    load = {"onnxruntime": onnxruntime_model, "openvino": openvino_model}[runtime]
    run = load(path, example)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *arguments = line.rstrip("\n").split("\t")
        if command == "time":
            answer = timed(run, example, int(arguments[0]))
        elif command == "run":
            answer = run_all(run, read(arguments[0]), len(example[0]), arguments[1])
        else:
            raise SystemExit(f"unknown command {command!r}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
