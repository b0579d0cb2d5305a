#!/bin/sh
# Builds model.onnx with trtexec, checks the outputs and writes device_report.json: build.py without TensorRT's Python module.
# planish writes the lines between the marks; trtexec's options are those of the versions that build.json names.
set -eu
cd "$(dirname "$0")"
trtexec=/usr/src/tensorrt/bin/trtexec
[ -x "$trtexec" ] || trtexec=$(command -v trtexec) || {
    echo "Stopped: trtexec was not found. JetPack has it in /usr/src/tensorrt/bin (apt install libnvinfer-bin)." >&2
    exit 1
}
other_device=
[ "${1:-}" != --other-device ] || other_device=--other-device
python3 build.py --check $other_device
rm -f outputs.json times.json
# --- planish
@OPTIONS@
# --- planish
if ! "$trtexec" --onnx=model.onnx --saveEngine=model.engine "$@" --exportOutput=outputs.json --exportTimes=times.json; then
    echo "Stopped: trtexec failed; its last lines say why. Where memory ran out, close other programs or add swap." >&2
    exit 1
fi
exec python3 build.py --from-trtexec $other_device
