#!/usr/bin/env python3
"""Runs the model on this device: are the outputs the expected ones, and how long does a call take?

Needs numpy and the runtime that build.json names (README.md says how to install it).

    python3 check.py                    check device and versions, verify, measure; writes device_report.json
    python3 check.py --check            check the device only
    python3 check.py --other-device     go on although this is not the device, or not the version, of build.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import samples
from machine import Stop

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    parser = samples.options(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1)")
    options = parser.parse_args(arguments)

    def work(told: dict[str, Any]) -> None:
        runtime = _runtime(told)
        facts = _check(told, runtime, options)
        if not options.check:
            samples.write_report(told, HERE, _measured(told, runtime, facts, options))

    return samples.ended(work, HERE)


def _runtime(told: dict[str, Any]) -> Any:
    try:
        import runtime
    except ImportError as failure:
        packages = " ".join(f"'{name}{allowed}'" for name, allowed in sorted(told["versions"].items()))
        raise Stop(f"{failure}: pip install numpy {packages}") from None
    return runtime


def _check(told: dict[str, Any], runtime: Any, options: argparse.Namespace) -> dict[str, str]:
    """Everything that can be wrong before the run, told at once."""
    facts = {**machine.processor_facts(), **runtime.facts(told)}
    machine.check(told, facts, runtime.problems(told), options.other_device)
    return facts


def _measured(told: dict[str, Any], runtime: Any, facts: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    inputs = samples.inputs(told, HERE)
    started = time.perf_counter()
    session = runtime.Session(told, HERE, options.threads)
    outputs = samples.compare(told, HERE, session.run(inputs))
    built = time.perf_counter() - started

    def one_call() -> float:
        start = time.perf_counter()
        session.call()
        return (time.perf_counter() - start) * 1e3

    times = samples.measure(one_call, options.seconds)
    return {
        **samples.report(told, {**facts, "threads": str(options.threads)}, outputs, times),
        "engine_bytes": (HERE / told["model"]).stat().st_size,
        "build_seconds": round(built, 1),
        **session.told(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
