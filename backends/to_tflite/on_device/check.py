#!/usr/bin/env python3
"""Runs model.tflite on this device: are the outputs the expected ones, and how long does a call take?

Needs numpy and one of the runtimes: pip install ai-edge-litert, or tflite-runtime (with "numpy<2").

    python3 check.py [--threads 4] [--calls 50]
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SNR_DB = {"float32": 60.0, "float16": 40.0, "int8": 20.0}
"""What outputs must have against those of the machine that compiled: kernels of other processors round otherwise."""


def interpreter(threads):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    made = Interpreter(str(HERE / "model.tflite"), num_threads=threads)
    made.allocate_tensors()
    return made


def snr_db(expected, got):
    noise = float(((expected - got) ** 2).sum())
    signal = float((expected**2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(max(signal, 1e-30) / noise)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--calls", type=int, default=50)
    asked = options.parse_args()
    told = json.loads((HERE / "check.json").read_text())
    model = interpreter(asked.threads)
    sources, results = model.get_input_details(), model.get_output_details()
    for place, name in enumerate(told["inputs"]):
        model.set_tensor(sources[place]["index"], np.load(HERE / name))
    model.invoke()
    failed = False
    for place, name in enumerate(told["outputs"]):
        expected, got = np.load(HERE / name), model.get_tensor(results[place]["index"])
        found = snr_db(expected.astype(np.float64), np.asarray(got, np.float64))
        good = expected.shape == got.shape and found >= SNR_DB[told["precision"]]
        failed = failed or not good
        print(f"{name}: {found:.1f} dB, {'as expected' if good else 'WRONG'}")
    times = []
    for _ in range(asked.calls):
        start = time.perf_counter()
        model.invoke()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"{statistics.median(times):.3f} ms a call (median of {asked.calls}, {asked.threads} threads)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
