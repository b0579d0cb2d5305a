"""OpenVINO on this device: takes the place of the ONNX backend's runtime.py, which check.py runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from machine import Stop


def facts(told: dict[str, Any]) -> dict[str, str]:
    return {"openvino": openvino.get_version().split("-")[0]}


def problems(told: dict[str, Any]) -> list[str]:
    wanted, found = told["device_name"], openvino.Core().available_devices
    if any(name.split(".")[0] == wanted for name in found):
        return []
    return [f"OpenVINO finds no {wanted} here, but {', '.join(found) or 'nothing'}: install the driver of the device."]


class Session:
    """The model, compiled."""

    def __init__(self, told: dict[str, Any], folder: Path, threads: int) -> None:
        config: dict[str, Any] = dict(told["config"])
        if told["device_name"] == "CPU":
            config["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            model = core.read_model(folder / told["model"])
            model.reshape({each["name"]: each["shape"] for each in told["inputs"]})
            self._compiled = core.compile_model(model, told["device_name"], config)
        except RuntimeError as failure:
            raise Stop(f"OpenVINO does not compile {told['model']}: {str(failure).strip().splitlines()[-1]}") from None
        self._request = self._compiled.create_infer_request()
        self._told = told

    def run(self, inputs: dict[str, bytes]) -> dict[str, list[float]]:
        """The outputs for raw inputs, by name."""
        for each in self._told["inputs"]:
            array = np.frombuffer(inputs[each["name"]], each["dtype"]).reshape(each["shape"])
            self._request.set_tensor(each["name"], openvino.Tensor(np.ascontiguousarray(array)))
        self._request.infer()
        return {
            each["name"]: np.asarray(self._request.get_tensor(each["name"]).data, np.float64).ravel().tolist()
            for each in self._told["outputs"]
        }

    def call(self) -> None:
        """Once more, to be timed: inputs and outputs lie in the memory of the host."""
        self._request.infer()

    def told(self) -> dict[str, Any]:
        """The nodes by the precision that OpenVINO runs them in."""
        counts: dict[str, int] = {}
        for node in self._compiled.get_runtime_model().get_ops():
            information = node.get_rt_info()
            if "runtimePrecision" in information:
                precision = str(information["runtimePrecision"].astype(str))
                counts[precision] = counts.get(precision, 0) + 1
        names = ", ".join(f"{count} nodes in {name}" for name, count in sorted(counts.items()))
        return {
            "built_by": f"OpenVINO {openvino.get_version().split('-')[0]} ({names})",
            "layers": [{"name": name, "inputs": f"{count} nodes"} for name, count in sorted(counts.items())],
        }
