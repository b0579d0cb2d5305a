"""Runs one TFLite file in a process of its own and reports the time of each call.

A script, not a module of planish: it must start quickly and hold nothing but the runtime. It reads one line
a request from standard input, the number of calls to make, and answers with their milliseconds as JSON.
The outputs of the first call are saved where the last argument says.
"""

import importlib
import importlib.util
import json
import sys
import time

import numpy as np

# another Python may have the old runtime alone
RUNTIME = "ai_edge_litert" if importlib.util.find_spec("ai_edge_litert") else "tflite_runtime"
Interpreter = importlib.import_module(f"{RUNTIME}.interpreter").Interpreter


def main(model: str, inputs: str, threads: int, outputs: str = "") -> None:
    interpreter = Interpreter(model, num_threads=threads)
    interpreter.allocate_tensors()
    with np.load(inputs) as arrays:
        for detail, name in zip(interpreter.get_input_details(), arrays.files, strict=True):
            interpreter.set_tensor(detail["index"], arrays[name])
    interpreter.invoke()
    if outputs:
        results = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        np.savez(outputs, *results)
    print("[]", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            interpreter.invoke()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
