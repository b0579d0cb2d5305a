"""Runs one ONNX file in a process of its own and reports the time of each call.

A script, not a module: it must start quickly and hold nothing but OpenVINO. It reads one line a request from
standard input, the number of calls to make, and answers with their milliseconds as JSON.
"""

import json
import sys
import time

import numpy as np
import openvino


def main(file: str, inputs: str, config: str) -> None:
    with np.load(inputs) as held:
        arrays = dict(enumerate(held[name] for name in held.files))
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({index: [*array.shape] for index, array in arrays.items()})
    request = core.compile_model(model, "CPU", json.loads(config)).create_infer_request()
    request.infer(arrays, share_inputs=True)
    print("[]", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            request.infer(arrays, share_inputs=True)
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
