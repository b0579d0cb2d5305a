from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.packing import BELOW, packed, stored_bytes, unpacked
from planish.compiler.program import Program
from planish.compiler.trace import trace

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]


def sparse(share: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape).mul(50).to(dtype)
    return torch.where(torch.rand(shape) < share, torch.zeros((), dtype=dtype), values)


@given(
    share=st.floats(0, 1), rows=st.integers(1, 70), columns=st.integers(1, 90), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_tensors_come_back(share: float, rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    tensors = {"a": sparse(share, rows, columns, dtype=dtype), "b.c": torch.randn(3)}
    stored, shapes = packed(tensors)
    back = unpacked(stored, json.loads(json.dumps(shapes)))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert sum(tensor.nbytes for tensor in stored.values()) == sum(map(stored_bytes, tensors.values()))
    assert all(BELOW * tensors[name].nbytes > stored_bytes(tensors[name]) for name in shapes)


def entropy(share: float) -> float:
    """Bits that say of one place whether it is among the ``share``, at the least."""
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_places_take_little_more_than_their_entropy(share: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(400_000, dtype=dtype)
    tensor[torch.randperm(len(tensor))[: round(share * len(tensor))]] = 1
    places = stored_bytes(tensor) - share * tensor.nbytes
    assert 0.99 < 8 * places / (len(tensor) * entropy(share)) < 1.1
    assert stored_bytes(torch.ones(10000, dtype=dtype)) == 10000 * dtype.itemsize


def test_two_of_four_take_half_of_the_values_and_two_thirds_of_a_bit_each() -> None:
    order = torch.rand(100_000, 4).argsort(1)
    tensor = torch.where(order < 2, 1.0, 0.0).flatten()
    places = stored_bytes(tensor) - tensor.nbytes / 2
    assert math.log2(6) / 4 <= 8 * places / len(tensor) < 0.7


def test_bits_that_do_not_compress_are_stored_as_they_are_and_so_are_those_of_old_archives() -> None:
    tensor = torch.where(torch.rand(20_000) < 0.5, 0.0, 1.0)
    stored, _ = packed({"x": tensor})
    raw = torch.from_numpy(np.packbits(tensor.numpy() != 0))
    assert torch.equal(stored["bits/x"], raw)
    thin = torch.zeros(20_000)
    thin[7] = 1
    old = {"x": torch.ones(1), "bits/x": torch.from_numpy(np.packbits(thin.numpy() != 0))}
    assert torch.equal(unpacked(old, {"x": [20_000]})["x"], thin)


def test_bits_that_would_fill_the_memory_are_refused() -> None:
    bomb = torch.from_numpy(np.frombuffer(zlib.compress(bytes(1 << 24)), np.uint8).copy())
    with pytest.raises(UserError, match="bits of a packed tensor do not fit its shape"):
        unpacked({"x": torch.ones(1), "bits/x": bomb}, {"x": [8 * len(bomb) + 80]})
    with pytest.raises(UserError, match="cannot be read"):
        unpacked({"x": torch.ones(1), "bits/x": torch.arange(9, dtype=torch.uint8)}, {"x": [1000]})


def test_values_that_are_no_numbers_stay_and_negative_zeros_become_positive() -> None:
    tensor = torch.zeros(5000)
    tensor[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    back = unpacked(*packed({"x": tensor}))["x"]
    assert back[0].isnan() and back[1].isinf() and not back[2].signbit()


def test_an_archive_of_a_sparse_program_is_small_and_computes_the_same(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100)).eval()
    x = torch.randn(4, 300)
    dense = trace(model, Inputs((x,))).save(tmp_path / "dense").stat().st_size
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.1)
    program = trace(model, Inputs((x,)))
    path = program.save(tmp_path / "sparse")
    loaded = Program.load(path)
    assert path.stat().st_size < 0.2 * dense
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in program.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(x), program(x))
    assert path.read_bytes() == program.save(tmp_path / "again").read_bytes()


def test_tied_sparse_weights_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.two.weight = self.one.weight
            nn.init.sparse_(self.one.weight, 0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    loaded = Program.load(trace(Tied().eval(), Inputs((torch.randn(2, 64),))).save(tmp_path / "tied"))
    assert len([*loaded.parameters()]) == 3


def rewrite(path: Path, **change: Any) -> None:
    """An archive as someone would forge it."""
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("graph.json"))
        tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
    document["packed"].update(change.get("packed", {}))
    tensors.update(change.get("tensors", {}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("graph.json", json.dumps(document))
        archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packed": {"weight": [10**9, 10**9]}}, "bits of a packed tensor do not fit its shape"),
        ({"packed": {"weight": [-64, 64]}}, "bits of a packed tensor do not fit its shape"),
        ({"tensors": {"bits/weight": torch.zeros(512)}}, "bits of a packed tensor do not fit its shape"),
        ({"tensors": {"weight": torch.zeros(3)}}, "values of a packed tensor do not fit its bits"),
        ({"packed": {"nothing": [3]}}, "Save the Program again"),
    ],
)
def test_a_forged_archive_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    model = nn.Linear(64, 64)
    nn.init.sparse_(model.weight, 0.9)
    path = trace(model.eval(), Inputs((torch.randn(2, 64),))).save(tmp_path / "forged")
    rewrite(path, **change)
    with pytest.raises(UserError, match=said):
        Program.load(path)


def test_archives_of_the_first_format_are_still_read(tmp_path: Path) -> None:
    path = trace(nn.Linear(4, 3).eval(), Inputs((torch.randn(2, 4),))).save(tmp_path / "old")
    with zipfile.ZipFile(path) as archive:
        document, tensors = json.loads(archive.read("graph.json")), archive.read("tensors.safetensors")
    document.pop("packed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("graph.json", json.dumps(document | {"format": 1}))
        archive.writestr("tensors.safetensors", tensors)
    assert Program.load(path).state_dict().keys() == {"weight", "bias"}
