"""The trained models and labelled images of ../shared/data, with the images that calibrate each of them."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CASES = ("resnet20-cifar10", "resnet44-cifar10", "mobilenetv1-imagenet", "mobilenetv1-wakewords")
CIFAR_CALIBRATION, OVERLAPPING_CALIBRATION = 512, 128


@dataclass(frozen=True)
class AccuracyCase:
    """``inputs[overlap:]`` took no part in calibration; ``calibrated_on`` says so in words."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    recorded: float
    calibration: Tensor
    calibrated_on: str
    overlap: int

    def top1(self, logits: np.ndarray, start: int = 0) -> float:
        """Percent of the images from ``start`` on whose label has the highest logit."""
        return 100 * float((logits.argmax(1) == self.labels.numpy())[start:].mean())


def zoo() -> ModuleType:
    file = DATA / "zoo.py"
    if not file.exists():
        raise SystemExit(f"{file} is missing: the accuracy benchmark needs its models and images.")
    spec = importlib.util.spec_from_file_location("zoo", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def load_case(name: str, seed: int = 0) -> AccuracyCase:
    source = zoo()
    case = source.load_real(name)
    if name.endswith("cifar10"):
        pixels, _ = source.cifar10("train_20k")
        shuffled = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        calibration = source.imagenet_norm(pixels[shuffled[:CIFAR_CALIBRATION]])
        words, overlap = f"{CIFAR_CALIBRATION} training images, shuffled with seed {seed}; none is scored", 0
    else:
        overlap = OVERLAPPING_CALIBRATION
        calibration = case.inputs[:overlap]
        words = f"the first {overlap} of the {len(case.inputs)} scored images: there is no training split"
    return AccuracyCase(case.model, case.inputs, case.labels, case.accuracy, calibration, words, overlap)
