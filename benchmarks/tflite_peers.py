"""What Google's own tools make of a model: a script for a Python with litert-torch, ai-edge-quantizer and torchao.

    python tflite_peers.py MODEL.pt2 CALIBRATION.npz FOLDER

``MODEL.pt2`` is an exported program that takes one image [1, C, H, W]; the arrays of ``CALIBRATION.npz`` are such
images. Writes FOLDER/TOOL.tflite, all of them with channels last, and prints as its last line a JSON object:
tool -> seconds and peak_mib, or the failure.
"""

import json
import sys
import time
import traceback
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def peak_mib():
    """The high-water mark of this process: each tool adds to that of those before it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def channels_last(model):
    return litert_torch.to_channel_last_io(model, args=[0])


def convert_float(model, images, folder):
    path = folder / "litert-torch.tflite"
    path.write_bytes(litert_torch.convert(channels_last(model), (images[0],)).model_content())


def convert_pt2e_int8(model, images, folder):
    """The recipe of litert-torch's own documentation; without ``fold_quantize=False`` its files do not convert."""
    config = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    exported = torch.export.export(channels_last(model), (images[0],)).module()
    prepared = prepare_pt2e(exported, config)
    for image in images:
        prepared(image)
    quantized = convert_pt2e(prepared, fold_quantize=False)
    content = litert_torch.convert(quantized, (images[0],), quant_config=QuantConfig(pt2e_quantizer=config))
    (folder / "litert-torch-pt2e.tflite").write_bytes(content.model_content())


def quantize_static(model, images, folder):
    made = quantizer.Quantizer(str(folder / "litert-torch.tflite"), recipe.static_wi8_ai8())
    signature = "serving_default"
    ranges = made.calibrate({signature: [{"args_0": image.numpy()} for image in images]})
    made.quantize(ranges).export_model(str(folder / "ai-edge-quantizer.tflite"), overwrite=True)


def quantize_dynamic(model, images, folder):
    made = quantizer.Quantizer(str(folder / "litert-torch.tflite"), recipe.dynamic_wi8_afp32())
    made.quantize().export_model(str(folder / "ai-edge-quantizer-dynamic.tflite"), overwrite=True)


TOOLS = {
    "litert-torch": convert_float,
    "litert-torch-pt2e": convert_pt2e_int8,
    "ai-edge-quantizer": quantize_static,
    "ai-edge-quantizer-dynamic": quantize_dynamic,
}


def main(model_path, calibration_path, folder):
    torch.set_num_threads(1)
    model = torch.export.load(model_path).module()  # written by benchmarks/tflite.py a moment ago
    with np.load(calibration_path) as arrays:
        images = [torch.from_numpy(arrays[name]).permute(0, 2, 3, 1).contiguous() for name in arrays.files]
    found = {"imported": {"peak_mib": peak_mib()}}
    for name, make in TOOLS.items():
        start = time.perf_counter()
        try:
            make(model, images, Path(folder))
            found[name] = {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}
        except Exception as failure:  # the table lists it
            traceback.print_exc()
            found[name] = {"failure": f"{type(failure).__name__}: {failure}"[:200]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
