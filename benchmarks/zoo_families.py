"""What ``make zoo`` runs: the families that users have, then one small variant of every module of timm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import zoo_families_classifiers as classifiers
from benchmarks import zoo_families_dense as dense
from benchmarks import zoo_families_signals as signals
from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.family_models import SHALLOW, TIMM, import_timm
from tests.backends.to_onnx.family_transformers import GQA, IMAGE, SMALL, _transformers
from tests.backends.to_onnx.family_transformers import families as bare_transformers

Draw = Callable[[int], Inputs]


@dataclass(frozen=True)
class ZooFamily:
    """``inputs`` draws the arguments for a batch of the given size."""

    name: str
    kind: Literal["usual", "further"]
    """``further``: nobody looked at it while the rules were written."""
    build: Callable[[], nn.Module]
    inputs: Draw


def images(size: int, channels: int = 3) -> Draw:
    return lambda batch: Inputs((torch.randn(batch, channels, size, size),))


def floats(*shape: int) -> Draw:
    return lambda batch: Inputs((torch.randn(batch, *shape),))


def tokens(*length: int) -> Draw:
    return lambda batch: Inputs((torch.randint(3, 99, (batch, *length)),))


def ids(batch: int) -> Inputs:
    mask = torch.ones(batch, 10, dtype=torch.long)
    mask[0, 7:] = 0
    return Inputs((), {"input_ids": torch.randint(3, 99, (batch, 10)), "attention_mask": mask})


def from_and_to(batch: int) -> Inputs:
    return Inputs((), {**ids(batch).kwargs, "decoder_input_ids": torch.randint(3, 99, (batch, 6))})


def text_and_image(batch: int) -> Inputs:
    return Inputs((), {**ids(batch).kwargs, "pixel_values": torch.randn(batch, 3, 32, 32)})


def speech_and_text(batch: int) -> Inputs:
    tokens = torch.randint(3, 99, (batch, 6))
    return Inputs((), {"input_features": torch.randn(batch, 20, 40), "decoder_input_ids": tokens})


def unmasked(batch: int) -> Inputs:
    return Inputs((), {"input_ids": torch.randint(3, 99, (batch, 10))})


WRITTEN_OUT: dict[str, tuple[Callable[[], nn.Module], Draw]] = {
    "GoogLeNet": (classifiers.googlenet, images(64)),
    "SqueezeNet": (classifiers.squeezenet, images(64)),
    "ShuffleNet V1": (classifiers.shufflenet_v1, images(64)),
    "ShuffleNet V2": (classifiers.shufflenet_v2, images(64)),
    "ResNet for CIFAR, zero-padded": (classifiers.cifar_resnet, images(32)),
    "YOLO-like, CSP": (dense.Yolo, images(64)),
    "UNet": (dense.UNet, images(48)),
    "FPN": (dense.Fpn, images(48)),
    "DeepLab-like": (dense.DeepLab, images(48)),
    "autoencoder": (dense.autoencoder, images(32)),
    "variational autoencoder": (dense.Variational, floats(48)),
    "BiLSTM classifier": (functools.partial(signals.Recurrent, nn.LSTM, True), tokens(12)),
    "GRU classifier": (functools.partial(signals.Recurrent, nn.GRU, False), tokens(12)),
    "keyword spotter, Conv1d": (signals.keyword_spotter, floats(1, 4000)),
    "WaveNet": (signals.WaveNet, floats(1, 64)),
    "R(2+1)D, Conv3d": (signals.video_resnet, floats(3, 6, 32, 32)),
}

USUAL_OF_TIMM = {
    "resnet18": 96, "resnet50": 96, "resnext50_32x4d": 96, "seresnet50": 96, "skresnet18": 96, "regnetx_002": 96,
    "regnety_002": 96, "densenet121": 96, "vgg11_bn": 64, "inception_v3": 128, "mobilenetv2_100": 96,
    "mobilenetv3_small_100": 96, "efficientnet_b0": 96, "convnext_atto": 96, "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "mixer_s32_224": 224,
}  # fmt: skip
"""Name -> pixels of a side."""

TOO_LARGE = ("deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m", "csatv2", "nasnetalarge", "pnasnet5large")
"""Minutes and gigabytes each at the only input size they take."""

GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
DISTIL = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "seq_classif_dropout": 0.0}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 36, "num_layers": 2, "num_heads": 4, "use_cache": False}

WITH_HEADS: dict[str, tuple[str, str, dict[str, Any], Draw]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", {**SMALL, "num_labels": 3}, ids),
    "DistilBERT": ("DistilBertForSequenceClassification", "DistilBertConfig", {**DISTIL, "num_labels": 3}, ids),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2, ids),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", GQA, ids),
    "T5": ("T5ForConditionalGeneration", "T5Config", T5, from_and_to),
    "ViT of transformers": ("ViTForImageClassification", "ViTConfig", {**IMAGE, "num_labels": 3}, images(32)),
}
"""Family -> class, class of its configuration, options, inputs."""

MOBILE = {**SMALL, "true_hidden_size": 16, "intra_bottleneck_size": 16, "embedding_size": 12}
RWKV = {**SMALL, "attention_hidden_size": 32, "context_length": 64, "use_cache": False}
WHISPER = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_mel_bins": 20,
    "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip
FURTHER_WITH_HEADS: dict[str, tuple[str, str, dict[str, Any], Draw]] = {
    "RoFormer": ("RoFormerForSequenceClassification", "RoFormerConfig", {**SMALL, "embedding_size": 16}, ids),
    "MobileBERT": ("MobileBertForSequenceClassification", "MobileBertConfig", MOBILE, ids),
    "RWKV": ("RwkvForCausalLM", "RwkvConfig", RWKV, unmasked),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER, speech_and_text),
}


def zoo() -> list[ZooFamily]:
    return [*usual(), *further()]


def usual() -> list[ZooFamily]:
    """The families of issue 3."""
    clip = next(family for family in bare_transformers() if family.name == "transformers-CLIP")
    return [
        *(ZooFamily(name, "usual", build, inputs) for name, (build, inputs) in WRITTEN_OUT.items()),
        *(
            ZooFamily(name, "usual", functools.partial(_of_timm, name), images(size))
            for name, size in USUAL_OF_TIMM.items()
        ),
        *(
            ZooFamily(name, "usual", functools.partial(_of_transformers, kind, config, options), inputs)
            for name, (kind, config, options, inputs) in WITH_HEADS.items()
        ),
        ZooFamily("CLIP", "usual", clip.build, clip.inputs),
    ]


def further() -> list[ZooFamily]:
    return [
        *(
            ZooFamily(name, "further", functools.partial(_of_transformers, kind, config, options), inputs)
            for name, (kind, config, options, inputs) in FURTHER_WITH_HEADS.items()
        ),
        *(
            ZooFamily(family.name, "further", family.build, family.inputs)
            for family in bare_transformers()
            if family.name != "transformers-CLIP"
        ),
        *(
            ZooFamily(name, "further", functools.partial(_of_timm, name), images(size))
            for name, size in TIMM.items()
            if name not in TOO_LARGE and name not in USUAL_OF_TIMM
        ),
    ]


def _of_timm(name: str) -> nn.Module:
    model: nn.Module = import_timm().create_model(name, **SHALLOW.get(name, {}))
    return model


def _of_transformers(kind: str, config: str, options: dict[str, Any]) -> nn.Module:
    library = _transformers()
    model: nn.Module = getattr(library, kind)(getattr(library, config)(**options))
    return model
