"""Runs model.mlpackage with Apple's runtime and compares it with samples.json: python verify.py [ALL|CPU_ONLY|…]

Needs macOS, and: pip install coremltools numpy pillow
"""

import collections
import json
import pathlib
import sys
import time

import coremltools as ct
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


def array(sample):
    values = np.fromfile(HERE / sample["file"], np.float32 if sample["dtype"] == "float32" else np.int32)
    return values.reshape(sample["shape"])


def given(sample):
    values = array(sample)
    if not sample["image"]:
        return values
    from PIL import Image

    pixels = values[0].transpose(1, 2, 0).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def snr_db(expected, got):
    noise = float(((expected - got) ** 2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float((expected**2).sum()) / noise)


def compared(sample, result):
    if "scores" in sample:
        labels = sorted(sample["scores"])
        return np.array([sample["scores"][each] for each in labels]), np.array([result[each] for each in labels])
    return array(sample).astype(np.float64), np.asarray(result, np.float64)


def computed_on(model, units):
    """How many operations of the program each unit is planned to run."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    counts = collections.Counter()
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            counts[type(usage.preferred_compute_device).__name__] += 1
    return dict(counts)


def main():
    samples = json.loads((HERE / "samples.json").read_text())
    units = ct.ComputeUnit[sys.argv[1] if len(sys.argv) > 1 else "ALL"]
    model = ct.models.MLModel(str(HERE / samples["model"]), compute_units=units)
    inputs = {sample["name"]: given(sample) for sample in samples["inputs"]}
    results = model.predict(inputs)
    good = True
    for sample in samples["outputs"]:
        ratio = snr_db(*compared(sample, results[sample["name"]]))
        good &= ratio >= samples["snr_db"]
        print(f"{sample['name']}: {ratio:.1f} dB against the reference evaluation ({samples['snr_db']} wanted)")
    times = []
    for _ in range(50):
        start = time.perf_counter()
        model.predict(inputs)
        times.append((time.perf_counter() - start) * 1e3)
    print(f"median {np.median(times):.3f} ms, 95 % below {np.percentile(times, 95):.3f} ms, on {units.name}")
    print(f"operations by unit: {computed_on(model, units)}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
