"""Records which names TensorRT's Python API has, in ``api.json``: run it for each wheel that scripts are written for.

    pip download --no-deps tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 …
    python tests/backends/to_tensorrt/record_api.py tensorrt_bindings-8.6.1-*.whl tensorrt_cu12_bindings-10.3.0-*.whl

The wheels hold the bindings alone. They are loaded here beside libraries that are empty but for the functions that
they look for at once: enough to list classes and attributes, on a machine without TensorRT and without a GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

API = Path(__file__).with_name("api.json")
CLASSES = (
    "Builder", "BuilderFlag", "DataType", "DeviceType", "EngineInspector", "IBuilderConfig", "ICudaEngine",
    "IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorIOMode",
)  # fmt: skip
"""Those whose objects the scripts handle."""
_LIST = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("tensorrt_bindings.tensorrt", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
names = {name: [each for each in dir(getattr(module, name)) if not each.startswith("_")]
         for name in sys.argv[2:] if hasattr(module, name)}
print(json.dumps(names))
"""


def record(wheel: Path) -> tuple[str, dict[str, list[str]]]:
    """Version, and the public attributes of each class."""
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        zipfile.ZipFile(wheel).extractall(folder)
        library = folder / "tensorrt_bindings" / "tensorrt.so"
        _stand_ins(library, folder)
        ran = subprocess.run(
            [sys.executable, "-c", _LIST, str(library), *CLASSES], capture_output=True, check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        )  # fmt: skip
    return version, json.loads(ran.stdout)


def _stand_ins(library: Path, folder: Path) -> None:
    told = subprocess.run(["readelf", "-d", str(library)], capture_output=True, check=True, text=True).stdout
    wanted = re.findall(r"\[(libnv\w+\.so\.\d+)\]", told)
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, check=True, text=True)
    functions = re.findall(r"\b((?:create|get|init)\w+|_ZN\d+nv\w+)$", symbols.stdout, re.MULTILINE)
    source = folder / "functions.c"
    source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in functions))
    for name in wanted:
        subprocess.run(
            ["gcc", "-shared", "-w", "-fPIC", "-o", str(folder / name), f"-Wl,-soname,{name}", str(source)], check=True
        )


if __name__ == "__main__":
    known = json.loads(API.read_text()) if API.exists() else {}
    known.update(record(Path(name)) for name in sys.argv[1:])
    API.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
