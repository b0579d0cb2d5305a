"""Runs one ONNX file in a process of its own and reports the time of each call.

A script, not a module of planish: it must start quickly and hold nothing but ONNX Runtime. It reads one line
a request from standard input, the number of calls to make, and answers with their milliseconds as JSON.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort


def main(model: str, inputs: str, threads: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(inputs) as arrays:
        feed = {value.name: arrays[name] for value, name in zip(session.get_inputs(), arrays.files, strict=True)}
    session.run(None, feed)
    print("[]", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            session.run(None, feed)
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
