"""Groups counted by hand: the oracle sees what is coupled too little, only counting what is coupled too much."""

from __future__ import annotations

import pytest
import torch

from benchmarks.zoo_families import zoo
from planish.compiler.coupling.groups import couple
from planish.compiler.trace import trace
from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.oracle import coupled

NETS = {family.name: family for family in nets()}
FAMILIES = {family.name: family for family in zoo()}

BLOCKS = 12
ENCODER = 2 * 4
"""Two layers of heads, width of queries and keys, width of values, width of the feed-forward."""

COUNTED = {
    # stem, 4 residual streams, 2 widths in each of 3 + 4 + 6 + 3 bottlenecks
    "resnet50": 1 + 4 + 2 * 16,
    # stem, 3 transitions, and in each of 6 + 12 + 24 + 16 layers its bottleneck and its growth
    "densenet121": 1 + 3 + 2 * 58,
    # the stream, and in each block heads, width of queries and keys, width of values, MLP
    "vit_tiny_patch16_224": 1 + 4 * BLOCKS,
    # the same, with a stream in each of 4 stages
    "swin_tiny_patch4_window7_224": 4 + 4 * BLOCKS,
    # stem, 7 streams, 16 expanded widths (the first of 17 blocks expands nothing), head
    "mobilenetv2_100": 1 + 7 + 16 + 1,
    # 4 streams, and the MLP of each of 2 + 2 + 6 + 2 blocks
    "convnext_atto": 4 + 12,
    # stem, 5 streams, 10 expanded widths, 9 squeezes, last convolution, head
    "mobilenetv3_small_100": 1 + 5 + 10 + 9 + 1 + 1,
    # one a convolution: nothing is added, all is concatenated
    "inception_v3": 94,
    # stream, two layers, and the pooler in front of the classifier
    "BERT": 1 + ENCODER + 1,
    # the same, with a layer in front of the classifier
    "DistilBERT": 1 + ENCODER + 1,
    # stream, tied to the embedding
    "GPT-2": 1 + ENCODER,
    # stream; heads of keys, queries a key, width of queries and keys, width of values, feed-forward
    "Llama": 1 + 2 * 5,
    # heads of the encoder, of the decoder and of the cross attention, each one for all layers by their position bias;
    # two layers of two widths and a feed-forward, two of four and one; the stream is returned, so it stays
    "T5": 3 + 2 * 3 + 2 * 5,
    # embedding, the state of each of two layers, hidden layer of the head
    "BiLSTM classifier": 1 + 2 + 1,
    # two convolutions at each of 4 scales down and 3 up, and what is upsampled
    "UNet": 2 * 4 + 2 * 3 + 3,
}
OF_NETS = {
    # heads, width of queries and keys, width of values
    "attention, fused projection": 3,
    "attention, parts inside heads": 3,
    "attention, keys and values fused": 3,
    # and what the last projection gives
    "attention of the library": 3 + 1,
    # the state of each layer; that of all where they are read as one tensor
    "LSTM of two layers and directions": 2,
    "LSTM of three layers, its last state": 3,
    "GRU, last states": 1,
    # the channels before and behind: groups, and channels of each
    "grouped convolution": 1 + 1 + 1,
}
QUICK = ("BERT", "GPT-2", "Llama", "T5", "BiLSTM classifier", "UNet", "mobilenetv2_100", "convnext_atto")


@pytest.mark.parametrize("name", OF_NETS)
def test_as_many_groups_are_found_in_a_net_as_were_counted(name: str) -> None:
    assert len(coupled(NETS[name])[0].groups) == OF_NETS[name]


@pytest.mark.usefixtures("timm", "transformers")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COUNTED]
)
def test_as_many_groups_are_found_as_were_counted(name: str) -> None:
    torch.manual_seed(0)
    family = FAMILIES[name]
    assert len(couple(trace(family.build().eval(), family.inputs(2))).groups) == COUNTED[name]
