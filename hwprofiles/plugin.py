"""Registers the built-in hardware profiles."""

from __future__ import annotations

from pathlib import Path

import pluggy

# Made here by name: hwprofiles is data and imports nothing of planish.
hookimpl = pluggy.HookimplMarker("planish")


@hookimpl
def planish_profiles() -> list[Path]:
    return [Path(__file__).parent]
