"""Operating systems: which deployment target a profile allows, and what each of them brings."""

from __future__ import annotations

import re
from typing import Any

from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile

OLDEST = 15
"""iOS 15 is the first with ML Programs: https://apple.github.io/coremltools/docs-guides/source/target-conversion-formats.html"""
_BEHIND = {"ios": 0, "ipados": 0, "tvos": 0, "macos": -3, "watchos": -7}
"""macOS 12 came with iOS 15, watchOS 8 too; from 26 on all have one number."""


def ios_version(profile: HardwareProfile) -> int:
    """The oldest iOS, or its sibling, that the profile allows; what is not said is the oldest with ML Programs."""
    for system, behind in _BEHIND.items():
        bound = re.search(r"(?:>=|==|~=)(\d+)", profile.runtime.versions.get(system, ""))
        if bound:
            own = int(bound[1])
            version = own if own >= 26 else own - behind
            if version < OLDEST:
                raise UserError(f"Raise {system} of {profile.name} to {OLDEST + behind}: ML Programs begin there.")
            return version
    return OLDEST


def deployment_target(profile: HardwareProfile) -> Any:
    """Coremltools' own name for the newest target that is not above the profile's."""
    import coremltools as ct

    known = {int(each.name.removeprefix("iOS")): each for each in ct.target if each.name.startswith("iOS")}
    version = ios_version(profile)
    return known[max(each for each in known if each <= version)]
