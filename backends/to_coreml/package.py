"""The .mlpackage as it is shipped: the same Program gives the same bytes."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planish.backends.to_coreml.mil import MODEL

MANIFEST = "Manifest.json"
_KEPT = ("Data", MANIFEST)
_VOLATILE = ("com.github.apple.coremltools.conversion_date",)


def finish(path: Path, metadata: Mapping[str, str], change: Callable[[Any], None] | None = None) -> None:
    """Rewrite what coremltools has put at ``path`` so that nothing in it depends on the day or on chance.

    1. The ids of Manifest.json are drawn at random: they become a function of what they name.
    2. The date goes from the metadata; ``metadata`` (author, license, version, description, and any other name)
       comes in. ``change`` may edit the rest of the specification.
    3. What is for debugging ExecuTorch is no part of the package.
    """
    from coremltools.proto import Model_pb2

    for entry in path.iterdir():
        if entry.name not in _KEPT:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    spec = Model_pb2.Model()
    spec.ParseFromString((path / MODEL).read_bytes())
    if change is not None:
        change(spec)
    _describe(spec.description.metadata, metadata)
    (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(_with_stable_ids(manifest), indent=4, sort_keys=True) + "\n")


def _describe(target: Any, metadata: Mapping[str, str]) -> None:
    known = {"author": "author", "license": "license", "version": "versionString", "description": "shortDescription"}
    for name, text in metadata.items():
        if name in known:
            setattr(target, known[name], text)
        else:
            target.userDefined[name] = text
    for name in _VOLATILE:
        target.userDefined.pop(name, None)


def _with_stable_ids(manifest: dict[str, Any]) -> dict[str, Any]:
    entries = manifest["itemInfoEntries"]
    stable = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for old, entry in entries.items()}
    return {
        **manifest,
        "itemInfoEntries": {stable[old]: entry for old, entry in entries.items()},
        "rootModelIdentifier": stable[manifest["rootModelIdentifier"]],
    }
