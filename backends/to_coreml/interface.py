"""What an app sees of a package: image inputs, class labels, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program

_COLORS = {"GRAYSCALE": 10, "RGB": 20, "BGR": 30}  # FeatureTypes.proto, enum ColorSpace


@dataclass(frozen=True)
class Image:
    """An input that the app gives as an image: the model gets ``scale * pixel + bias``, pixels from 0 to 255.

    ``scale`` and ``bias`` are one number, or one a channel. For the usual normalization by ``mean`` and ``std`` of
    pixels from 0 to 1: ``scale = 1 / (255 * std)``, ``bias = -mean / std``.
    """

    scale: float | tuple[float, ...] = 1 / 255
    bias: float | tuple[float, ...] = 0.0
    layout: Literal["RGB", "BGR", "GRAYSCALE"] = "RGB"

    def __post_init__(self) -> None:
        if self.layout not in _COLORS:
            raise UserError(
                f"Name a known layout of images: there is no {self.layout!r}{closest(self.layout, _COLORS)}"
            )
        for name in ("scale", "bias"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(values) != self.channels:
                raise UserError(f"Give {name} one number, or {self.channels} for {self.layout}, not {len(values)}.")
        if bool((self.per_channel(self.scale) == 0).any()):
            raise UserError("Give an image a scale other than 0: it would be black.")

    @property
    def channels(self) -> int:
        return 1 if self.layout == "GRAYSCALE" else 3

    def per_channel(self, values: float | tuple[float, ...]) -> Tensor:
        """[1, channels, 1, 1]"""
        listed = values if isinstance(values, tuple) else (values,) * self.channels
        return torch.tensor(listed, dtype=torch.float32).reshape(1, -1, 1, 1)

    def pixels(self, values: Tensor) -> Tensor:
        """What the package takes where the model takes ``values``."""
        return (values - self.per_channel(self.bias)) / self.per_channel(self.scale)

    def to_json(self) -> dict[str, Any]:
        return {"scale": self.scale, "bias": self.bias, "layout": self.layout}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Image:
        options: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
        return cls(**options)


def demand_images(program: Program, images: Mapping[str, Image]) -> None:
    """Raise UserError unless each of ``images`` is an input of one image, with the channels of its layout."""
    leaves = dict(zip((str(n.target) for n in program.placeholders), program.example_inputs.leaves(), strict=True))
    for name, image in images.items():
        if name not in leaves:
            raise UserError(f"Name an input of the model: there is no {name!r}{closest(name, leaves)}")
        shape = [*leaves[name].shape]
        if len(shape) != 4 or shape[0] != 1 or shape[1] != image.channels:
            raise UserError(
                f"Give input {name!r} the shape [1, {image.channels}, height, width] to be a {image.layout} image; "
                f"it is {shape}."
            )


def describe_images(spec: Any, images: Mapping[str, Image]) -> None:
    """Tell apps that these inputs are images; the program goes on taking tensors, as coremltools has it too."""
    for feature in spec.description.input:
        image = images.get(feature.name)
        if image is not None:
            *_, height, width = feature.type.multiArrayType.shape
            kind = feature.type.imageType
            kind.width, kind.height, kind.colorSpace = width, height, _COLORS[image.layout]
