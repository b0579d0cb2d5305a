"""ONNX Runtime on this device, with the execution providers that build.json names."""

from __future__ import annotations

import collections
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import samples
from machine import Stop


def facts(told: dict[str, Any]) -> dict[str, str]:
    """Versions of what build.json names; what is not installed is left out."""
    found = {"onnxruntime": str(ort.__version__)}
    for name in told["versions"]:
        try:
            found.setdefault(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def problems(told: dict[str, Any]) -> list[str]:
    """A sentence for each execution provider that this ONNX Runtime lacks."""
    missing = [each for each in told["providers"] if not _is_there(each)]
    return [
        f"ONNX Runtime has no {each['name']} here: pip install {each['package']}"
        + (" (and uninstall onnxruntime: only one of the two can be there)" if each["instead"] else "")
        + f"; {each['url']}"
        for each in missing
    ]


def _is_there(provider: dict[str, Any]) -> bool:
    return provider["name"] in ort.get_available_providers() or bool(_plugin_devices(provider))


def _plugin_devices(provider: dict[str, Any]) -> list[Any]:
    """The devices of a provider that comes as a library of its own: https://onnxruntime.ai/docs/execution-providers"""
    if not provider["module"] or not hasattr(ort, "get_ep_devices"):
        return []
    try:
        module = importlib.import_module(provider["module"])
    except ImportError:
        return []
    found = [each for each in ort.get_ep_devices() if each.ep_name == provider["name"]]
    if not found:
        ort.register_execution_provider_library(provider["name"], module.get_library_path())
        found = [each for each in ort.get_ep_devices() if each.ep_name == provider["name"]]
    return [each for each in found if "NPU" in str(each.device.type)] or found


class Session:
    """The model, loaded."""

    def __init__(self, told: dict[str, Any], folder: Path, threads: int) -> None:
        self._told, self._folder = told, folder
        self._inputs: dict[str, Any] = {}
        self._profiled = _profiled_nodes(told, folder, threads)
        self._session = _session(told, folder, _options(folder, threads, profiled=False))
        for provider in told["providers"]:
            if provider["name"] not in self._session.get_providers():
                raise Stop(
                    f"ONNX Runtime left {provider['name']} out: its libraries or its device were not found. "
                    f"{provider['url']}"
                )

    def run(self, inputs: dict[str, bytes]) -> dict[str, list[float]]:
        """The outputs for raw inputs, by name."""
        self._inputs = _arrays(self._told, inputs)
        names = [each.name for each in self._session.get_outputs()]
        results = dict(zip(names, self._session.run(None, self._inputs)))  # noqa: B905 # Python 3.8 has no strict
        return {name: np.asarray(value, np.float64).ravel().tolist() for name, value in results.items()}

    def call(self) -> None:
        """Once more, to be timed: inputs and outputs lie in the memory of the host."""
        self._session.run(None, self._inputs)

    def told(self) -> dict[str, Any]:
        """Which provider ran how many nodes, as ONNX Runtime's own profile says."""
        counts = collections.Counter(self._profiled)
        layers = [{"name": name, "inputs": f"{count} nodes"} for name, count in counts.items()]
        names = ", ".join(f"{count} nodes on {name}" for name, count in counts.items())
        return {"built_by": f"ONNX Runtime {ort.__version__} ({names})", "layers": layers}


def _session(told: dict[str, Any], folder: Path, options: Any) -> Any:
    file = str(folder / told["model"])
    names: list[Any] = []
    for provider in told["providers"]:
        devices = [] if provider["name"] in ort.get_available_providers() else _plugin_devices(provider)
        if devices:
            options.add_provider_for_devices(devices, provider["options"])
        else:
            names.append((provider["name"], provider["options"]))
    try:
        if len(names) < len(told["providers"]):
            return ort.InferenceSession(file, options)
        return ort.InferenceSession(file, options, providers=[*names, "CPUExecutionProvider"])
    except Exception as failure:  # its own classes, by provider
        raise Stop(f"ONNX Runtime {ort.__version__} does not load {told['model']}: {failure}") from None


def _options(folder: Path, threads: int, profiled: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = profiled
    options.profile_file_prefix = str(folder / "profile")
    return options


def _profiled_nodes(told: dict[str, Any], folder: Path, threads: int) -> list[str]:
    """The provider of each node of one call. A session of its own: profiling takes time."""
    session = _session(told, folder, _options(folder, threads, profiled=True))
    session.run(None, _arrays(told, samples.inputs(told, folder)))
    written = Path(session.end_profiling())
    events = json.loads(written.read_text())
    written.unlink()
    return [
        event["args"]["provider"]
        for event in events
        if event.get("name", "").endswith("_kernel_time") and event.get("args", {}).get("provider")
    ]


def _arrays(told: dict[str, Any], inputs: dict[str, bytes]) -> dict[str, Any]:
    return {
        each["name"]: np.frombuffer(inputs[each["name"]], each["dtype"]).reshape(each["shape"])
        for each in told["inputs"]
    }
