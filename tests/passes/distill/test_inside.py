"""Features by name, projectors, and the layers of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.training_data import TrainingData
from planish.passes.distill.distill import Distill
from planish.passes.distill.feature_losses import Features, Layers
from planish.passes.distill.losses import HardLabels, SoftTargets
from planish.passes.distill.projectors import Projector
from planish.passes.distill.taps import attentions, find, tapped, untapped
from tests.compiler.models import Cnn, Several
from tests.passes.distill.students import FAST, Mlp, distilled, student
from tests.passes.training.tasks import assert_same_tensors


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, mask[:, None, None].bool())
        result: Tensor = x + self.out(attended.transpose(1, 2).flatten(2))
        return result


class Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(11, width)
        self.layers = nn.ModuleList(Block(width, heads, False) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x, mask)
        result: Tensor = self.head(x)
        return result


IDS = torch.randint(0, 11, (24, 6), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(6) < torch.randint(2, 7, (24, 1), generator=torch.Generator().manual_seed(2))).long()


def encoder(layers: int, width: int = 8, heads: int = 2) -> Encoder:
    torch.manual_seed(layers)
    return Encoder(layers, width, heads).eval()


def tokens() -> TrainingData:
    labels = (IDS % 3).masked_fill(MASK == 0, -100)
    batches = [{"ids": IDS[part], "mask": MASK[part], "labels": labels[part]} for part in (slice(0, 12), slice(12, 24))]
    return TrainingData(batches)


def traced(model: Encoder) -> Program:
    return planish.trace(model, {"ids": IDS, "mask": MASK})


# ---------------------------------------------------------------------- taps


def test_a_tapped_program_hands_out_what_a_hook_sees_and_is_itself_again_untapped() -> None:
    model, x = Cnn().eval(), torch.randn(3, 3, 8, 8)
    program = planish.trace(model, x)
    seen: dict[str, Tensor] = {}
    for name in ("branch.0", "branch", "head"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: seen.__setitem__(name, result.clone())
        )
    names = [find(program, name, "student") for name in ("branch.0", "branch", "head")]
    watched = tapped(program, names)
    outputs, features = watched(x)
    torch.testing.assert_close(outputs, model(x))
    for name, feature in zip(("branch.0", "branch", "head"), features, strict=True):
        torch.testing.assert_close(feature, seen[name])
    again = untapped(watched, program)
    assert again.graph_module.code == program.graph_module.code
    assert torch.equal(again(x), program(x))


def test_nested_outputs_keep_their_structure_beside_features() -> None:
    pair = (torch.randn(2, 4), torch.randn(2, 4))
    program = planish.trace(Several(), (pair,))
    outputs, (feature,) = tapped(program, [find(program, "left", "student")])(pair)
    expected = program(pair)
    assert outputs.keys() == expected.keys() and torch.equal(outputs["parts"][1][0], expected["parts"][1][0])
    assert torch.equal(feature, expected["parts"][0])


def test_a_node_is_found_by_its_own_name_too() -> None:
    program = student()
    node = next(iter(program.calls()))
    assert find(program, node.name, "student") == node.name


# ---------------------------------------------------------------------- features


@pytest.mark.parametrize("how", ["squared", "cosine", "similarity", "distances", "angles", "contrastive"])
def test_features_are_learnt_by_every_formula_and_projectors_stay_out(how: str) -> None:
    loss = Features(pairs=(("first", "second"),), how=how)
    start = student(12)
    settings = Distill(Mlp(20), losses=(loss,), training=replace(FAST, steps=40, weight_decay=0.0), diagnosis=False)
    trained, notes = distilled(start, settings, metric=False)
    assert trained.state_dict().keys() == start.state_dict().keys()
    assert trained.graph_module.code == start.graph_module.code
    assert not torch.equal(trained.state_dict()["first.weight"], start.state_dict()["first.weight"])
    assert torch.equal(trained.state_dict()["last.weight"], start.state_dict()["last.weight"])  # not on the way
    assert notes[-1].startswith("Trained 40 steps")


def test_features_go_down_with_training() -> None:
    from planish.passes.distill.session import Session
    from tests.passes.distill.students import context

    settings = Distill(Mlp(20), losses=(Features(pairs=("first",)), SoftTargets()), diagnosis=False)
    start = student(12)
    history = Session(settings, start, context(metric=False)).fit(start, replace(FAST, steps=60)).history
    first, last = history.records[1].losses, history.records[-1].losses
    assert first.keys() == {"features", "soft-targets"}
    assert last["features"] < 0.7 * first["features"]


def test_maps_of_attention_come_from_images_and_tokens_and_need_one_size() -> None:
    loss = Features(pairs=("stem",), how="attention-transfer")
    assert loss._loss(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)).isfinite()
    assert loss._loss(torch.randn(2, 6, 3), torch.randn(2, 6, 5)).isfinite()
    for shapes in (((2, 3, 4, 4), (2, 3, 5, 5)), ((2, 6, 3), (2, 7, 3)), ((2, 3), (2, 3))):
        with pytest.raises(UserError, match="as many pixels or tokens"):
            loss._loss(*map(torch.randn, shapes))


@pytest.mark.parametrize(
    ("ours", "theirs"), [((4, 8), (4, 5)), ((4, 6, 8), (4, 3, 5)), ((4, 8, 6, 6), (4, 3, 4, 2)), ((4, 6, 8), (4, 3, 8))]
)
def test_a_projector_leads_from_any_shape_to_the_other(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = torch.randn(ours), torch.randn(theirs)
    assert Projector(student, teacher)(student, teacher).shape == teacher.shape


def test_features_of_another_kind_are_told_with_both_shapes() -> None:
    with pytest.raises(UserError, match=r"float32 \[4, 8\] of the student .* float32 \[4, 8, 2\] of the teacher"):
        Projector(torch.zeros(4, 8), torch.zeros(4, 8, 2))


# ---------------------------------------------------------------------- transformers


def test_attention_maps_are_what_attention_computes() -> None:
    program = traced(encoder(2))
    attention = attentions(program, "student")[1]
    assert attention.layer == "layers.1"
    (node,) = [node for node in program.calls() if node.name == attention.query]
    result = [n for n in program.calls(torch.ops.aten.scaled_dot_product_attention.default)][1].name
    _, (query, key, value, mask, expected) = tapped(program, [*attention.names, result])(ids=IDS, mask=MASK)
    torch.testing.assert_close(attention.log_map(query, key, mask).exp() @ value, expected)
    assert node.name == attention.query


@pytest.mark.parametrize(
    ("layer_map", "ours", "theirs", "pairs"),
    [
        ("uniform", 2, 6, ((0, 2), (1, 5))),
        ("uniform", 3, 4, ((0, 0), (1, 2), (2, 3))),
        ("last", 2, 6, ((0, 4), (1, 5))),
        (((0, 1), (1, 3)), 2, 6, ((0, 1), (1, 3))),
    ],
)
def test_layers_are_mapped(layer_map: Any, ours: int, theirs: int, pairs: tuple[tuple[int, int], ...]) -> None:
    assert Layers(layer_map=layer_map)._map(ours, theirs) == pairs


def test_layers_that_do_not_exist_are_told() -> None:
    settings = Distill(encoder(4), losses=(Layers(layer_map=((0, 4),)),), training=FAST, diagnosis=False)
    with pytest.raises(UserError, match=r"0 of the student to 4 of the teacher .* they have 2 and 4, counted from 0"):
        distilled(traced(encoder(2)), settings, train=tokens(), metric=False)


@pytest.mark.parametrize(("width", "heads"), [(8, 2), (12, 3)])
def test_a_shallow_transformer_learns_from_the_layers_of_a_deep_one(width: int, heads: int) -> None:
    start = traced(encoder(2, 8, 2))
    losses = (Layers(layer_map="uniform"), SoftTargets(mask="mask"), HardLabels())
    settings = Distill(encoder(4, width, heads), losses=losses, training=replace(FAST, steps=4), diagnosis=False)
    trained, _ = distilled(start, settings, train=tokens(), metric=False)
    assert trained.state_dict().keys() == start.state_dict().keys()
    assert not torch.equal(trained.state_dict()["layers.0.qkv.weight"], start.state_dict()["layers.0.qkv.weight"])


def test_equal_transformers_have_no_loss() -> None:
    from planish.passes.distill.session import Session
    from tests.passes.distill.students import context

    model = encoder(2)
    settings = Distill(model, losses=(Layers(), SoftTargets()), training=replace(FAST, steps=1), diagnosis=False)
    start = traced(model)
    history = Session(settings, start, context(tokens(), metric=False)).fit(start, settings.training).history
    assert all(abs(loss) < 1e-6 for loss in history.records[-1].losses.values())


def test_padding_does_not_count() -> None:
    """A teacher that differs in padded tokens alone teaches what one that does not differ does."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder(4)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            result: Tensor = self.inner(ids, mask) + 100.0 * (1 - mask)[..., None] * torch.tensor([1.0, 0.0, 0.0])
            return result

    unlabelled = TrainingData([{"ids": IDS, "mask": MASK}])
    settings = Distill(encoder(4), losses=(SoftTargets(mask="mask"),), training=replace(FAST, steps=3), diagnosis=False)
    trained = [
        distilled(traced(encoder(2)), replace(settings, teacher=teacher), train=source, metric=False)[0]
        for teacher in (encoder(4), Noisy())
        for source in (unlabelled,)
    ]
    assert_same_tensors(*trained)


def test_a_mask_that_does_not_exist_is_told() -> None:
    settings = Distill(encoder(4), losses=(SoftTargets(mask="attention_mask"),), training=FAST, diagnosis=False)
    with pytest.raises(UserError, match="Name a keyword input as mask: the model gets ids, mask"):
        distilled(traced(encoder(2)), settings, train=tokens(), metric=False)
