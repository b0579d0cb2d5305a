#!/usr/bin/env python3
"""Builds model.onnx into an engine of TensorRT on this device, checks its outputs and measures its latency.

Needs what JetPack brings and nothing else: Python 3.8, TensorRT's own Python module, the CUDA runtime.

    python3 build.py                    check the device, build, verify, measure; writes device_report.json
    python3 build.py --check            check the device only
    python3 build.py --other-device     go on although this is not the device, or not the version, of build.json
    python3 build.py --from-trtexec     verify and report what build.sh has left (build.sh calls this)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import samples
from machine import Stop

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    parser = samples.options(__doc__)
    parser.add_argument("--from-trtexec", action="store_true", help="verify and report what build.sh has left")
    parser.add_argument("--caches", type=Path, default=HERE, help="where the timing cache lies (here)")
    parser.add_argument("--workspace-mb", type=int, default=0, help="memory that the builder may try kernels with")
    options = parser.parse_args(arguments)

    def work(told: dict[str, Any]) -> None:
        facts = machine.facts()
        machine.check(told, facts, (), options.other_device)
        if not options.check:
            report = _from_trtexec(told, facts) if options.from_trtexec else _build(told, facts, options)
            samples.write_report(told, HERE, report)

    return samples.ended(work, HERE)


def _build(told: dict[str, Any], facts: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    try:
        import engine  # after the checks: it needs TensorRT
    except ImportError as failure:
        raise Stop(
            f"TensorRT's Python module is not to be had ({failure}): apt install python3-libnvinfer, or run build.sh."
        ) from None

    cache = options.caches / engine.cache_name(facts)
    built = engine.Engine.build(told, HERE / told["model"], HERE / engine.ENGINE, cache, options.workspace_mb)
    print(f"Built {built.file.name} ({built.file.stat().st_size / 1e6:.1f} MB) in {built.seconds:.0f} s.")
    outputs = samples.compare(told, HERE, built.run(samples.inputs(told, HERE)))
    times = samples.measure(built.timed(samples.inputs(told, HERE)), options.seconds)
    return {**samples.report(told, facts, outputs, times), **built.told()}


def _from_trtexec(told: dict[str, Any], facts: dict[str, str]) -> dict[str, Any]:
    outputs = samples.compare(told, HERE, samples.read_trtexec_outputs(HERE / "outputs.json"))
    times = samples.read_trtexec_times(HERE / "times.json")
    size = (HERE / "model.engine").stat().st_size
    return {**samples.report(told, facts, outputs, times), "engine_bytes": size, "built_by": "trtexec"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
