from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from planish.compiler.report import Report
from tests.compiler.command_line import TARGET, USER_CODE, planish_says


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with ``user.py`` and some arrays in it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "user.py").write_text(USER_CODE)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 16), dtype=np.float32)
    np.save(folder / "rows.npy", rows)
    np.savez(folder / "named.npz", x=rows, labels=np.zeros(40))
    np.savez(folder / "positional.npz", rows)
    np.savez(folder / "uneven.npz", rows, rows[:3])
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    np.save(folder / "three.npy", rows[:3])
    (folder / "damaged.planish").write_bytes(b"PK\x03\x04 and no more")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def compiled(user_folder: Path) -> Path:
    """An artifact, compiled on the command line."""
    out, _ = planish_says(
        "compile", "user.py:net", "--target", TARGET, "--calibration", "user.py:batches", "--metric", "user.py:metric",
        "--pass", "quantize-int8:calibrator=minmax,samples=8,keep_float=second", "--output", "artifact", "--json",
    )  # fmt: skip
    document = json.loads(out)
    assert document["artifact"] == "artifact"
    assert Report.model_validate(document["report"]) == Report.load(user_folder / "artifact" / "report.json")
    return user_folder / "artifact"
