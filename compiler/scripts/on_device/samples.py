"""The sample inputs and expected outputs beside build.json: raw values, row by row, without numpy."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import Stop

FORMATS = {
    "float32": "f",
    "float16": "e",
    "float64": "d",
    "int64": "q",
    "int32": "i",
    "int8": "b",
    "uint8": "B",
    "bool": "?",
}
"""Names of dtypes -> letters of the module struct."""
WARM_UP = 20
LEAST_RUNS = 100


def check_files(told: dict[str, Any], folder: Path) -> None:
    """Raise Stop naming a file that is missing or was damaged on its way."""
    for name, sha256 in told["files"].items():
        path = folder / name
        if not path.is_file():
            raise Stop(f"{name} is missing: copy the whole folder that planish wrote.")
        if _sha256(path) != sha256:
            raise Stop(f"{name} is damaged or was changed: copy it again.")


def inputs(told: dict[str, Any], folder: Path) -> dict[str, bytes]:
    return {each["name"]: (folder / each["file"]).read_bytes() for each in told["inputs"]}


def compare(told: dict[str, Any], folder: Path, results: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Each output against the expected one."""
    found = []
    for each in told["outputs"]:
        expected = unpack((folder / each["file"]).read_bytes(), each["dtype"])
        if each["name"] not in results:
            raise Stop(f"the engine has no output {each['name']}: was it built from another model?")
        got = results[each["name"]]
        if len(got) != len(expected):
            raise Stop(f"output {each['name']} has {len(got)} values instead of {len(expected)}.")
        largest = max((abs(a - b) for a, b in zip(expected, got)), default=0.0)  # noqa: B905 # Python 3.8 has no strict
        found.append({"name": each["name"], "snr_db": snr_db(expected, got), "max_abs": _number(largest)})
    return found


def snr_db(expected: Sequence[float], got: Sequence[float]) -> float | None:
    """10 log10(signal / error); None where both are equal."""
    signal = sum(value * value for value in expected)
    error = sum((a - b) ** 2 for a, b in zip(expected, got))  # noqa: B905 # as above
    if error == 0:
        return None
    return 10 * math.log10(signal / error) if signal > 0 and math.isfinite(error) else -300.0


def _number(value: float) -> float:
    return value if math.isfinite(value) else 1e300  # JSON has no infinity


def unpack(data: bytes, dtype: str) -> list[float]:
    letter = FORMATS[dtype]
    count = len(data) // struct.calcsize(letter)
    return [float(value) for value in struct.unpack(f"<{count}{letter}", data)]


def converted(data: bytes, source: str, target: str) -> bytes:
    """The same values in another type: TensorRT before 9 has INT32 where the model has INT64."""
    if source == target:
        return data
    count = len(data) // struct.calcsize(FORMATS[source])
    values = struct.unpack(f"<{count}{FORMATS[source]}", data)
    whole = FORMATS[target] in "qibB"
    return struct.pack(f"<{count}{FORMATS[target]}", *[int(value) if whole else value for value in values])


def measure(one_call: Callable[[], float], seconds: float) -> list[float]:
    """What ``one_call`` gives, its milliseconds, again and again for ``seconds``; those of the warm-up are left out."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    for call in range(10**9):
        took = one_call()
        if call >= WARM_UP:
            times.append(took)
        if len(times) >= LEAST_RUNS and time.perf_counter() > stop:
            break
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    if not times:
        raise Stop("nothing was measured.")
    ordered = sorted(times)
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def read_trtexec_outputs(path: Path) -> dict[str, list[float]]:
    """What ``trtexec --exportOutput`` wrote."""
    return {each["name"]: [float(value) for value in each["values"]] for each in _json(path)}


def read_trtexec_times(path: Path) -> list[float]:
    """What ``trtexec --exportTimes`` wrote: the time of the kernels of each query."""
    return [float(each["computeMs"]) for each in _json(path)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise Stop(f"{path.name} is missing or incomplete: run build.sh again, and read what trtexec said.") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------- what all scripts do


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the device, run nothing")
    parser.add_argument("--other-device", action="store_true", help="go on where device or version are others")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure (10)")
    return parser


def ended(work: Callable[[dict[str, Any]], None], folder: Path) -> int:
    """The exit status of ``work`` on what build.json tells, its files checked; what stops it is told in a sentence."""
    try:
        told = json.loads((folder / "build.json").read_text())
        check_files(told, folder)
        work(told)
    except Stop as problem:
        print(f"\nStopped: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"\nStopped: Make room or give rights: {problem}.", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------------- device_report.json


def report(
    told: dict[str, Any], facts: dict[str, str], outputs: list[dict[str, Any]], times: Sequence[float]
) -> dict[str, Any]:
    """What every report tells; ``times`` in milliseconds."""
    return {
        "format": 1,
        "target": told["target"],
        "model_sha256": told["files"][told["model"]],
        "device": facts,
        "outputs": outputs,
        "latency_ms": percentiles(times),
        "runs": len(times),
        "batch": told["inputs"][0]["shape"][0] if told["inputs"] and told["inputs"][0]["shape"] else 1,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_report(told: dict[str, Any], folder: Path, found: dict[str, Any]) -> None:
    """Write ``device_report.json``. Raises Stop where the outputs are not the expected ones."""
    path = folder / "device_report.json"
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(found, indent=2) + "\n")
    beside.replace(path)
    latency = found["latency_ms"]
    print(f"Latency: p50 {latency['p50']:.3f} ms, p95 {latency['p95']:.3f}, p99 {latency['p99']:.3f}.")
    print(f"{path} tells it all: planish import-report ARTIFACT {path.name} puts it into the report.")
    worst = min((output["snr_db"] for output in found["outputs"] if output["snr_db"] is not None), default=None)
    if worst is not None and worst < told["snr_db_least"]:
        raise Stop(
            f"the outputs are {worst:.1f} dB from the expected ones, {told['snr_db_least']:g} dB is the least. "
            "Do not use what was built; send device_report.json to planish."
        )
