"""What a cut Program can still do: other batch sizes, training, ONNX, saving and loading."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.zoo import ONNX_AGREES, onnx_error
from benchmarks.zoo_families import WRITTEN_OUT, ZooFamily, zoo
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import couple
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import Family
from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.oracle import enliven, some_of_all

FAMILIES: dict[str, Family | ZooFamily] = {family.name: family for family in nets()}
ZOO = {family.name: family for family in zoo()}
LARGER = [*WRITTEN_OUT, "BERT", "GPT-2", "Llama", "T5", "CLIP"]
QUICK = {*[*FAMILIES][::10], "SqueezeNet", "variational autoencoder", "BiLSTM classifier", "BERT"}
UNTRAINABLE = {"written into a slice": "tracing leaves an aten.copy, which has no derivative, cut or not"}


def halved(family: Family | ZooFamily) -> Program:
    torch.manual_seed(0)
    coupling = couple(trace(enliven(family.build()).eval(), family.inputs(2)))
    return cut(coupling, some_of_all(coupling, np.random.default_rng(0)))


def floating(results: object) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def check(family: Family | ZooFamily, folder: Path) -> None:
    program = halved(family)
    verify(program, after="cut")
    inputs = family.inputs(5 if program.dynamic_axes else 2)
    expected = floating(inputs.call(program))

    sum(result.square().sum() for result in expected).backward()  # type: ignore[union-attr]
    reached = [parameter.grad for parameter in program.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in reached)
    assert any(bool(gradient.any()) for gradient in reached if gradient is not None)

    assert onnx_error(program, family.inputs) < ONNX_AGREES

    loaded = Program.load(program.save(folder / "cut.planish"))
    assert loaded.state_dict().keys() == program.state_dict().keys()
    for first, second in zip(expected, floating(inputs.call(loaded)), strict=True):
        torch.testing.assert_close(first, second)


def cases(names: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(FAMILIES))
def test_a_cut_net_trains_exports_saves_and_loads(name: str, tmp_path: Path) -> None:
    if name in UNTRAINABLE:
        pytest.xfail(UNTRAINABLE[name])
    check(FAMILIES[name], tmp_path)


@pytest.mark.usefixtures("timm", "transformers")
@pytest.mark.parametrize("name", cases(LARGER))
def test_a_cut_model_trains_exports_saves_and_loads(name: str, tmp_path: Path) -> None:
    check(ZOO[name], tmp_path)
