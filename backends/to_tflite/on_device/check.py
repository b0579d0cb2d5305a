#!/usr/bin/env python3
"""Runs model.tflite on this device: are the outputs the expected ones, and how long does a call take?

Needs numpy and one of the runtimes: pip install ai-edge-litert, or tflite-runtime (with "numpy<2").

    python3 check.py [--threads 4] [--calls 50]
    python3 check.py --edgetpu           model_edgetpu.tflite, which compile_edgetpu.sh makes, on the Edge TPU

Writes device_report.json, which ``planish import-report`` puts into the report of the artifact.
"""

import argparse
import hashlib
import json
import pathlib
import platform
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SNR_DB = {"float32": 60.0, "float16": 40.0, "int8": 20.0}
"""What outputs must have against those of the machine that compiled: kernels of other processors round otherwise."""


def runtime():
    try:
        from ai_edge_litert import interpreter
    except ImportError:
        from tflite_runtime import interpreter
    return interpreter


def interpreter(model, threads, edgetpu):
    delegates = []
    if edgetpu:  # https://coral.ai/docs/edgetpu/tflite-python/
        libraries = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
        delegates = [runtime().load_delegate(libraries[platform.system()])]
    made = runtime().Interpreter(str(model), num_threads=threads, experimental_delegates=delegates)
    made.allocate_tensors()
    return made


def report(asked, model, outputs, times):
    """As planish import-report reads it. What was compiled for the Edge TPU stands for the file it came from."""
    manifest = HERE / "manifest.json"
    if not manifest.is_file():
        return None
    board = pathlib.Path("/proc/device-tree/model")
    device = board.read_text().strip("\0\n ") if board.exists() else platform.processor() or platform.machine()
    ordered = sorted(times)
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        "format": 1,
        "target": json.loads(manifest.read_text())["profile"]["name"],
        "model_sha256": hashlib.sha256((HERE / "model.tflite").read_bytes()).hexdigest(),
        "device": {
            "device": device + (" with Edge TPU" if asked.edgetpu else ""),
            "system": platform.platform(terse=True), "threads": str(asked.threads), "runtime": runtime().__name__,
        },
        "outputs": outputs,
        "latency_ms": {name: ordered[min(len(times) - 1, int(share * len(times)))] for name, share in at.items()},
        "runs": len(times),
        "batch": int(np.load(HERE / json.loads((HERE / "check.json").read_text())["inputs"][0]).shape[0]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "engine_bytes": model.stat().st_size,
        "built_by": "edgetpu_compiler" if asked.edgetpu else runtime().__name__.split(".")[0],
    }  # fmt: skip


def snr_db(expected, got):
    noise = float(((expected - got) ** 2).sum())
    signal = float((expected**2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(max(signal, 1e-30) / noise)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--calls", type=int, default=50)
    options.add_argument("--edgetpu", action="store_true", help="run model_edgetpu.tflite on the Edge TPU")
    asked = options.parse_args()
    told = json.loads((HERE / "check.json").read_text())
    file = HERE / ("model_edgetpu.tflite" if asked.edgetpu else "model.tflite")
    if not file.is_file():
        sys.exit(f"{file.name} is missing: " + ("run compile_edgetpu.sh." if asked.edgetpu else "copy it again."))
    model = interpreter(file, asked.threads, asked.edgetpu)
    sources, results = model.get_input_details(), model.get_output_details()
    for place, name in enumerate(told["inputs"]):
        model.set_tensor(sources[place]["index"], np.load(HERE / name))
    model.invoke()
    failed, compared = False, []
    for place, name in enumerate(told["outputs"]):
        expected, got = np.load(HERE / name), model.get_tensor(results[place]["index"])
        found = snr_db(expected.astype(np.float64), np.asarray(got, np.float64))
        good = expected.shape == got.shape and found >= SNR_DB[told["precision"]]
        failed = failed or not good
        far = float(np.abs(expected.astype(np.float64) - got).max()) if expected.shape == got.shape else 1e300
        compared.append({"name": name, "snr_db": None if np.isinf(found) else float(found), "max_abs": far})
        print(f"{name}: {found:.1f} dB, {'as expected' if good else 'WRONG'}")
    times = []
    for _ in range(asked.calls):
        start = time.perf_counter()
        model.invoke()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"{np.median(times):.3f} ms a call (median of {asked.calls}, {asked.threads} threads)")
    told = report(asked, file, compared, times)
    if told is not None:
        (HERE / "device_report.json").write_text(json.dumps(told, indent=2) + "\n")
        print("device_report.json tells it all: planish import-report ARTIFACT device_report.json")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
