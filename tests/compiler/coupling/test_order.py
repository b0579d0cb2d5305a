"""The groups do not depend on the order of the equations: all are recorded first, and solved shuffled."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch

from benchmarks.zoo_families import zoo
from planish.compiler.coupling import inference
from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.equations import Equations
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import Family
from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.nets_indexing import indexing
from tests.compiler.coupling.random_nets import Step, sequence_net

NETS = [*nets(), *indexing()]
ZOO = {family.name: family for family in zoo()}
LARGER = ("ShuffleNet V1", "ShuffleNet V2", "Llama")
SLOW = (
    "YOLO-like, CSP",
    "GPT-2",
    "swin_tiny_patch4_window7_224",
    "efficientvit_m0",
    "T5",
    "CLIP",
    "densenet121",
)

ORDERS = 3
Partition = frozenset[frozenset[frozenset[tuple[str, int, int]]]]


class Shuffled(Equations):
    """Records what is asked for; ``solve`` asks real Equations for it, in another order."""

    seed = 0

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Dim, Dim]] = []

    def unify(self, left: Dim, right: Dim) -> bool:
        self.asked.append((left, right))
        return True

    def solve(self) -> None:
        random.Random(self.seed).shuffle(self.asked)
        real = Equations()
        for left, right in self.asked:
            real.unify(left, right)
        real.solve()
        self.deferred = real.deferred


def partition(coupling: Coupling) -> Partition:
    """Groups as sets of units, units as sets of places: no names and no numbers."""
    return frozenset(frozenset(_places(coupling, index)) for index in range(len(coupling.groups)))


def _places(coupling: Coupling, index: int) -> Iterable[frozenset[tuple[str, int, int]]]:
    places: dict[int, list[tuple[str, int, int]]] = {}
    for member in coupling.groups[index].members:
        for position, unit in enumerate(member.units.tolist()):
            if unit >= 0:
                places.setdefault(unit, []).append((member.tensor, member.axis, position))
    return map(frozenset, places.values())


def check(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = partition(couple(program))
    monkeypatch.setattr(inference, "Equations", Shuffled)
    for seed in range(ORDERS):
        monkeypatch.setattr(Shuffled, "seed", seed)
        assert partition(couple(program)) == wanted, seed


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=pytest.mark.slow if index % 3 else ())
        for index, family in enumerate(NETS)
    ],
)
def test_the_order_of_equations_does_not_matter(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    check(trace(family.build().eval(), family.inputs(2)), monkeypatch)


@pytest.mark.parametrize(
    "steps",
    [
        # 8 channels are read as 3 + 4 + 1, as 2 x 4 and as 4 + 4: the fourth would be all that is left of the 1
        [(6, 0, 0, 10), (11, 0, 0, 0), (27, 0, 0, 0)],
        # as 4 + 4, as 4 x 2 and as 6 + 2 against 2 + 6: with the larger factor nothing could be cut
        [(27, 2, 2, 10), (7, 5, 3, 5), (2, 4, 2, 3), (21, 4, 0, 2), (11, 0, 2, 5), (7, 1, 0, 5)],
    ],
)
def test_the_order_does_not_matter_where_parts_and_factors_overlap(
    steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    program = trace(sequence_net(steps).eval(), Inputs((torch.randn(2, 5, 6),)))
    assert couple(program).groups
    check(program, monkeypatch)


@pytest.mark.usefixtures("timm", "transformers")
@pytest.mark.parametrize("name", [*LARGER, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_order_does_not_matter_in_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(trace(ZOO[name].build().eval(), ZOO[name].inputs(2)), monkeypatch)
