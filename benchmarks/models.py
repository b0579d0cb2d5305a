"""The networks that the latency benchmarks compress, with seeded random weights.

ResNet: https://arxiv.org/abs/1512.03385, with the stride on the 3x3 convolution of a bottleneck as most
runtimes benchmark it. MobileNetV2: https://arxiv.org/abs/1801.04381. BERT: https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo_cases import load_case

Inputs = tuple[Tensor, ...]

TOKENS = 128
VOCABULARY = 30522


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """``relu(branch(x) + shortcut(x))``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def basic_block(inputs: int, width: int, stride: int) -> nn.Module:
    branch = nn.Sequential(*conv_bn(inputs, width, 3, stride), nn.ReLU(), *conv_bn(width, width, 3))
    return Residual(branch, shortcut(inputs, width, stride))


def bottleneck(inputs: int, width: int, stride: int) -> nn.Module:
    reduce, middle = conv_bn(inputs, width, 1), conv_bn(width, width, 3, stride)
    branch = nn.Sequential(*reduce, nn.ReLU(), *middle, nn.ReLU(), *conv_bn(width, 4 * width, 1))
    return Residual(branch, shortcut(inputs, 4 * width, stride))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))


def resnet(block: Callable[[int, int, int], nn.Module], expansion: int, depths: Sequence[int]) -> nn.Module:
    layers = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for index in range(depth):
            layers.append(block(inputs, width, 2 if stage and not index else 1))
            inputs = expansion * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class InvertedResidual(nn.Module):
    """Widen by a 1x1, filter each channel, project down without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int):
        super().__init__()
        hidden = inputs * expand
        widen = [] if expand == 1 else [*conv_bn(inputs, hidden, 1), nn.ReLU6()]
        filters = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.branch = nn.Sequential(*widen, *filters, *conv_bn(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def mobilenet_v2() -> nn.Module:
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    layers, inputs = [*conv_bn(3, 32, 3, 2), nn.ReLU6()], 32
    for expand, outputs, repeats, stride in stages:
        for index in range(repeats):
            layers.append(InvertedResidual(inputs, outputs, 1 if index else stride, expand))
            inputs = outputs
    layers += [*conv_bn(inputs, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


class HiddenStates(nn.Module):
    """A transformers encoder as ``(ids, mask) -> last hidden state``, all of shape [N, TOKENS, ...]."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def bert_base() -> nn.Module:
    tolerate_mismatched_torchvision()
    from transformers import BertConfig, BertModel

    return HiddenStates(BertModel(BertConfig(), add_pooling_layer=False))


def tolerate_mismatched_torchvision() -> None:
    """Let transformers import where a CUDA torchvision lies beside a CPU torch.

    transformers imports torchvision where it finds one, although BERT does not need it, and torchvision then
    registers fake kernels for operators that its library failed to load. Declaring them lets the import pass.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for op in ("nms", "qnms"):
            signature = f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            TORCHVISION_OPERATORS.define(signature)


TORCHVISION_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def images(count: int, seed: int, side: int = 224) -> Inputs:
    """Standardized noise [count, 3, side, side] with the coarse structure of photographs."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(count, 3, side, side)
    for size in (7, 28, side):
        noise = torch.randn(count, 3, size, size, generator=generator)
        pixels += F.interpolate(noise, (side, side), mode="bilinear")
    return (pixels / pixels.std(),)


def token_ids(count: int, seed: int) -> Inputs:
    """Random ids and masks, int64 [count, TOKENS]: half full length, half padded to a random length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count, TOKENS), generator=generator)
    lengths = torch.randint(TOKENS // 4, TOKENS, (count, 1), generator=generator)
    lengths[::2] = TOKENS
    return ids, (torch.arange(TOKENS) < lengths).long()


@dataclass(frozen=True)
class Workload:
    """An architecture and a source of inputs; ``draw(count, seed)`` gives tensors of ``count`` rows."""

    build: Callable[[], nn.Module]
    draw: Callable[[int, int], Inputs]
    input_names: tuple[str, ...]


WORKLOADS = {
    "resnet18": Workload(lambda: resnet(basic_block, 1, (2, 2, 2, 2)), images, ("image",)),
    "resnet50": Workload(lambda: resnet(bottleneck, 4, (3, 4, 6, 3)), images, ("image",)),
    "mobilenetv2": Workload(mobilenet_v2, images, ("image",)),
    "bert-base": Workload(bert_base, token_ids, ("ids", "mask")),
    # pads outside its convolutions, as TensorFlow does; its architecture comes with the trained models
    "mobilenetv1-0.25": Workload(
        lambda: load_case("mobilenetv1-imagenet").model, partial(images, side=128), ("image",)
    ),
}


def seeded_model(workload: Workload, seed: int = 0) -> nn.Module:
    """The model in eval mode: random weights, batch norms with the statistics of random images."""
    torch.manual_seed(seed)
    model = workload.build()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the passes: nothing of the initial values stays
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.1)
    if norms:
        with torch.no_grad():
            for step in range(2):
                model.train()(*workload.draw(16, seed + 1000 + step))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()
