#!/bin/sh
# Compiles model.tflite for the Edge TPU, on x86-64 Linux, and says what of it will run on the CPU.
# https://coral.ai/docs/edgetpu/compiler/
set -eu
cd "$(dirname "$0")"
command -v edgetpu_compiler >/dev/null || {
    echo "Stopped: edgetpu_compiler was not found. It is a package for Debian (https://coral.ai/docs/edgetpu/compiler/)." >&2
    exit 1
}
edgetpu_compiler --show_operations --out_dir . model.tflite || {
    echo "Stopped: edgetpu_compiler failed; its last lines say why. It takes full INT8 with fixed shapes alone." >&2
    exit 1
}
[ -f model_edgetpu.tflite ] || {
    echo "Stopped: edgetpu_compiler wrote no model_edgetpu.tflite." >&2
    exit 1
}
on_cpu=$(sed -n 's/^Number of operations that will run on CPU: *//p' model_edgetpu.log | head -n 1)
[ "${on_cpu:-0}" = 0 ] || echo "$on_cpu operations will run on the CPU: model_edgetpu.log lists them with the reason."
echo "Copy this folder to the device and run there: python3 check.py --edgetpu"
