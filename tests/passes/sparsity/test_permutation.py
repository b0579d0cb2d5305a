from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, set_tensor
from planish.compiler.rules import verify
from planish.compiler.trace import trace
from planish.passes.sparsity.assignment import best_order
from planish.passes.sparsity.criteria import kept_share, magnitude
from planish.passes.sparsity.layers import find_layers, weight_name
from planish.passes.sparsity.patterns import NOfM
from planish.passes.sparsity.permutation import is_exchangeable, permute_channels, reordered
from planish.passes.sparsity.walk import weight_of
from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.oracle import coupled, in_double
from tests.passes.nets import traced, warm

aten = torch.ops.aten
NETS = {family.name: family for family in nets()}
TWO_FOUR = NOfM(2, 4)
GENERATOR = torch.Generator().manual_seed(0)


def computed(program: Program, inputs: Inputs) -> list[Tensor]:
    leaves = [
        leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in inputs.leaves()
    ]
    found = iter(leaves)
    with torch.no_grad():
        results = torch.utils._pytree.tree_leaves(inputs.map(lambda _: next(found)).call(in_double(program)))
    return [result for result in results if isinstance(result, Tensor)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_any_order_of_exchangeable_units_leaves_the_outputs_equal(name: str) -> None:
    coupling, inputs = coupled(NETS[name])
    program = coupling.program.fork()
    for group in coupling.groups:
        if is_exchangeable(group):
            for tensor, value in reordered(program, group, torch.randperm(group.width, generator=GENERATOR)).items():
                set_tensor(program.graph_module, tensor, value)
    assert_equal(computed(program, inputs), computed(coupling.program, inputs))


def test_orders_of_most_nets_are_really_tried() -> None:
    tried = [name for name in NETS if any(is_exchangeable(group) for group in coupled(NETS[name])[0].groups)]
    assert len(tried) > 0.8 * len(NETS)


def test_units_that_lie_over_several_dimensions_index_by_index_are_not_exchangeable() -> None:
    coupling, _ = coupled(NETS["group norm over misaligned cat"])
    (group,) = (group for group in coupling.groups if len(group.units) > 1)
    assert not is_exchangeable(group)


@given(groups=st.integers(2, 8), rows=st.integers(1, 20), kept=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_order_is_a_permutation_and_never_keeps_less(groups: int, rows: int, kept: int, seed: int) -> None:
    pattern = NOfM(kept, 4)
    values = torch.rand(rows, 4 * groups, generator=torch.Generator().manual_seed(seed))
    order = best_order(values, pattern, seed)
    assert sorted(order.tolist()) == [*range(4 * groups)]

    def best(of: Tensor) -> float:
        return float(of.unflatten(1, (-1, 4)).topk(kept, dim=2).values.sum())

    assert best(values[:, order]) >= best(values) * (1 - 1e-6)


def test_large_columns_that_stand_together_are_taken_apart() -> None:
    values = torch.cat([torch.ones(3, 8), torch.zeros(3, 8)], 1)
    kept = values[:, best_order(values, TWO_FOUR)].unflatten(1, (-1, 4)).topk(2, dim=2).values
    assert float(kept.sum()) == 24


class Block(nn.Module):
    """Attention and a feed-forward net around a residual stream, which is also the output."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.norm(y + self.o(attended))
        return y + self.down(nn.functional.gelu(self.up(y)))


class Images(nn.Module):
    """A residual net of images with a group convolution and a flatten, whose channels meet in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.body, self.n1 = nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.grouped, self.mix = nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Conv2d(64, 32, 1)
        self.middle, self.head = nn.Linear(512, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n0(self.stem(x)).relu()
        y = y + self.n1(self.body(y)).relu()
        y = self.mix(torch.cat([y, self.grouped(y)], 1))
        y = nn.functional.adaptive_avg_pool2d(y, 4).flatten(1)
        return self.head(self.middle(y).relu())


def shares(program: Program) -> dict[str, float]:
    found = {}
    for layer in find_layers(program)[0]:
        if layer.inputs % 4 == 0:
            weight = layer.matrix(weight_of(program, layer))
            found[weight_name(layer)] = kept_share(weight, magnitude(weight, None, TWO_FOUR, 0)[1])
    return found


@pytest.mark.parametrize(
    ("build", "shape", "names"),
    [(Block, (5, 6), {"q", "k", "v", "o", "up", "down"}), (Images, (3, 8, 8), {"body", "mix"})],
)
def test_reordered_programs_compute_the_same_and_keep_more(
    build: Callable[[], nn.Module], shape: tuple[int, ...], names: set[str]
) -> None:
    x = torch.randn(2, *shape)
    program = traced(warm(build()), x)
    made, gained = permute_channels(program, TWO_FOUR, (), 1, 0)
    verify(made, "permuting")
    assert_equal(computed(made, Inputs((x,))), computed(program, Inputs((x,))))
    before, after = shares(program), shares(made)
    assert gained.keys() == {f"{name}.weight" for name in names}  # the others read pixels, or too few channels
    for name, share in gained.items():
        assert share.before == pytest.approx(before[name]) and share.after == pytest.approx(after[name])
    assert sum(share.after - share.before for share in gained.values()) > 0


def test_channels_that_reach_the_output_are_put_back_there() -> None:
    made, gained = permute_channels(traced(Block().eval(), torch.randn(2, 5, 6)), TWO_FOUR, (), 1, 0)
    assert {"q.weight", "k.weight", "v.weight", "up.weight", "down.weight"} <= gained.keys()
    (restored,) = made.calls(aten.index_select.default)
    assert restored in made.output.all_input_nodes
    assert not [*made.calls(aten.matmul.default)]


def test_nothing_changes_where_no_order_keeps_more() -> None:
    last = nn.Linear(16, 16)
    nn.init.constant_(last.weight, 0.5)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), last)
    program = traced(model, torch.randn(2, 16))
    made, gained = permute_channels(program, TWO_FOUR, (), 1, 0)
    assert made is program and not gained


def test_a_real_encoder_keeps_more_magnitude_in_every_layer(zoo: ModuleType) -> None:
    torch.manual_seed(0)
    model = zoo.MiniLM(vocabulary=100, layers=2)  # its published weights are not at hand: any will do for exactness
    ids, mask = torch.randint(100, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    program = trace(model.eval(), Inputs((ids, mask)))
    made, gained = permute_channels(program, TWO_FOUR, (), 1, 0)
    assert_equal(computed(made, Inputs((ids, mask))), computed(program, Inputs((ids, mask))))
    assert len(gained) == 12 and all(share.after > share.before for share in gained.values())
    assert not any(math.isnan(share.after) for share in gained.values())
