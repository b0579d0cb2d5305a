"""The families: one small variant of every timm module, tiny transformers, and hand-written nets for the rest."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import nn

from benchmarks.models import tolerate_mismatched_torchvision
from planish.compiler.inputs import Inputs
from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family

# The smallest variant by parameters x pixels among the small ones of each module of timm.models -> image size.
TIMM = {
    "beit_base_patch16_224": 224,
    "halonet_h1": 256,
    "test_byobnet": 160,
    "cait_xxs24_224": 224,
    "coat_tiny": 224,
    "convit_tiny": 224,
    "convmixer_768_32": 224,
    "test_convnext": 160,
    "cpubone_nano": 224,
    "crossvit_tiny_240": 240,
    "csatv2": 512,
    "cs3darknet_focus_s": 256,
    "cspnext_tiny": 224,
    "davit_tiny": 224,
    "deepseek_vit_412m": 546,
    "deit_tiny_patch16_224": 224,
    "densenet121": 224,
    "dla34": 224,
    "dpn48b": 224,
    "edgenext_xx_small": 256,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "test_efficientnet": 160,
    "efficientvim_m1": 224,
    "efficientvit_b0": 224,
    "efficientvit_m0": 224,
    "eva02_tiny_patch14_224": 224,
    "fasternet_t0": 224,
    "fastvit_t8": 256,
    "focalnet_tiny_srf": 224,
    "gcvit_xxtiny": 224,
    "gemma4_vit_167m": 768,
    "ghostnet_050": 224,
    "hardcorenas_b": 224,
    "hgnetv2_b0": 224,
    "hiera_tiny_224": 224,
    "hieradet_small": 256,
    "hrnet_w18_small": 224,
    "iformer_t": 224,
    "inception_next_atto": 224,
    "inception_resnet_v2": 299,
    "inception_v3": 299,
    "inception_v4": 299,
    "lcnetv2_small": 224,
    "levit_128": 224,
    "lowformer_b0": 224,
    "test_mambaout": 160,
    "test_coatnet": 160,
    "poolformer_s12": 224,
    "gmlp_ti16_224": 224,
    "mobilenetv3_small_050": 224,
    "mobilenetv5_base": 256,
    "mobilevit_xxs": 256,
    "mvitv2_tiny": 224,
    "naflexvit_base_patch16_gap": 384,
    "nasnetalarge": 331,
    "nest_tiny": 224,
    "nextvit_small": 224,
    "test_nfnet": 160,
    "pit_ti_224": 224,
    "pnasnet5large": 331,
    "pvt_v2_b0": 224,
    "qwen3_vit_88m": 768,
    "rdnet_tiny": 224,
    "regnetx_002": 224,
    "repghostnet_050": 224,
    "repvit_m1": 224,
    "res2net50_14w_8s": 224,
    "resnest14d": 224,
    "test_resnet": 160,
    "resnetv2_18": 224,
    "rexnet_100": 224,
    "selecsls42": 224,
    "legacy_seresnet18": 224,
    "sequencer2d_s": 224,
    "shvit_s1": 224,
    "skresnet18": 224,
    "starnet_s050": 224,
    "swiftformer_xs": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "swinv2_cr_tiny_224": 224,
    "tiny_vit_5m_224": 224,
    "tnt_s_legacy_patch16_224": 224,
    "tresnet_m": 224,
    "twins_svt_small": 224,
    "vgg11": 224,
    "visformer_tiny": 224,
    "test_vit": 160,
    "vit_tiny_r_s16_p8_224": 224,
    "test_vit_relpos": 160,
    "samvit_base_patch16_224": 224,
    "vitamin_small_224": 224,
    "volo_d1_224": 224,
    "ese_vovnet19b_slim_dw": 224,
    "xception": 299,
    "xception41p": 299,
    "xcit_nano_12_p8_224": 224,
}

# Where even the smallest variant is large, fewer blocks of it.
SHALLOW: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
    "naflexvit_base_patch16_gap": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 3},
}


def families() -> list[Family]:
    return [*family_layers.families(), *family_transformers.families(), *timm_families()]


def timm_families() -> list[Family]:
    return [
        Family(name, functools.partial(_timm_model, name), functools.partial(_image, size))
        for name, size in TIMM.items()
    ]


def _image(size: int, batch: int) -> Inputs:
    return Inputs((torch.randn(batch, 3, size, size),))


def _timm_model(name: str) -> nn.Module:
    timm = import_timm()
    model: nn.Module = timm.create_model(name, **SHALLOW.get(name, {}))
    return model


def import_timm() -> Any:
    """timm beside a torch without CUDA, where importing the torchvision that it brings would fail."""
    tolerate_mismatched_torchvision()
    return importlib.import_module("timm")
