"""Random nets cut at random: what is left computes what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from planish.compiler.coupling.groups import couple
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from tests.compiler.coupling.oracle import enliven, judge, some_of_all
from tests.compiler.coupling.random_nets import IMAGE_OPS, SEQUENCE_OPS, Step, image_net, sequence_net, steps

FEW, MANY = 8, 25


def check(net: nn.Module, draw: Callable[[int], Tensor]) -> None:
    torch.manual_seed(0)
    program = trace(enliven(net).eval(), Inputs((draw(2),)))
    coupling = couple(program)
    assert not coupling.not_understood, coupling.not_understood
    for seed in range(2):
        removed = some_of_all(coupling, np.random.default_rng(seed))
        verdict = judge(coupling, removed, Inputs((draw(3),)), every_value=True)
        assert not verdict.where, verdict.where
        assert verdict.error < 1e-10


def check_image(listed: list[Step]) -> None:
    torch.manual_seed(0)
    check(image_net(listed), lambda batch: torch.randn(batch, 3, 4, 4))


def check_sequence(listed: list[Step]) -> None:
    torch.manual_seed(0)
    check(sequence_net(listed), lambda batch: torch.randn(batch, 5, 6))


@settings(max_examples=FEW)
@given(steps(IMAGE_OPS))
def test_a_random_net_of_images_is_cut_exactly(listed: list[Step]) -> None:
    check_image(listed)


@settings(max_examples=FEW)
@given(steps(SEQUENCE_OPS))
def test_a_random_net_of_sequences_is_cut_exactly(listed: list[Step]) -> None:
    check_sequence(listed)


@pytest.mark.slow
@settings(max_examples=MANY)
@given(steps(IMAGE_OPS))
def test_many_random_nets_of_images_are_cut_exactly(listed: list[Step]) -> None:
    check_image(listed)


@pytest.mark.slow
@settings(max_examples=MANY)
@given(steps(SEQUENCE_OPS))
def test_many_random_nets_of_sequences_are_cut_exactly(listed: list[Step]) -> None:
    check_sequence(listed)
