"""Transformers of every shape from tiny configurations."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.models import tolerate_mismatched_torchvision
from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.families import Family

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
GQA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 30,
}


def families() -> list[Family]:
    text: dict[str, dict[str, Any]] = {
        "Bert": SMALL,
        "Roberta": SMALL,
        "Electra": {**SMALL, "embedding_size": 16},
        "Albert": {**SMALL, "embedding_size": 16},
        "DistilBert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37},
        "MPNet": SMALL,
        "DebertaV2": {
            **SMALL,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_position_embeddings": 64,
        },
        "ModernBert": {
            **SMALL,
            "pad_token_id": 0,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        "GPT2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        "OPT": {**SMALL, "ffn_dim": 37, "word_embed_proj_dim": 32, "use_cache": False},
        "Llama": GQA,
        "Mistral": {**GQA, "sliding_window": 4},
        "Qwen2": GQA,
        "Qwen3": {**GQA, "head_dim": 8},
        "Gemma": {**GQA, "head_dim": 8},
        "Phi": SMALL | {"use_cache": False},
        "GPTNeoX": SMALL | {"use_cache": False},
        "Falcon": {**SMALL, "use_cache": False},
        "Bloom": {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        "Mamba": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "use_cache": False},
        "FNet": SMALL,
        "Mixtral": {**GQA, "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 40},
    }
    images: dict[str, dict[str, Any]] = {
        "ViT": IMAGE,
        "DeiT": IMAGE,
        "Dinov2": IMAGE,
        "Beit": IMAGE,
        "Swin": {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        "Segformer": {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "ConvNext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
        "MobileViT": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48]},
    }
    speech: dict[str, dict[str, Any]] = {"Wav2Vec2": SPEECH, "Hubert": SPEECH, "WavLM": SPEECH}
    return [
        *(_family(name, options, _tokens) for name, options in text.items()),
        *(
            _family(name, options, functools.partial(_pixels, options.get("image_size", 64)))
            for name, options in images.items()
        ),
        *(_family(name, options, _waves) for name, options in speech.items()),
        _family(
            "T5",
            {
                "vocab_size": 99,
                "d_model": 32,
                "d_kv": 8,
                "d_ff": 37,
                "num_layers": 2,
                "num_heads": 4,
                "use_cache": False,
            },
            _sequences,
        ),
        _family(
            "Bart",
            {
                "vocab_size": 99,
                "d_model": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 37,
                "decoder_ffn_dim": 37,
                "max_position_embeddings": 64,
                "use_cache": False,
            },
            _sequences,
        ),
        Family("transformers-CLIP", _clip, _clip_inputs),
        Family("transformers-WhisperEncoder", _whisper, _spectrogram),
        Family("transformers-BertClassifier", _classifier, _tokens),
    ]


def _family(name: str, options: dict[str, Any], inputs: Callable[[int], Inputs]) -> Family:
    return Family(f"transformers-{name}", functools.partial(_model, name, options), inputs)


def _transformers() -> Any:
    tolerate_mismatched_torchvision()
    return importlib.import_module("transformers")


def _model(name: str, options: dict[str, Any]) -> nn.Module:
    library = _transformers()
    model: nn.Module = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**options))
    return model


def _tokens(batch: int) -> Inputs:
    mask = torch.ones(batch, 10, dtype=torch.long)
    mask[0, 7:] = 0
    return Inputs((), {"input_ids": torch.randint(3, 99, (batch, 10)), "attention_mask": mask})


def _sequences(batch: int) -> Inputs:
    return Inputs(
        (), {"input_ids": torch.randint(3, 99, (batch, 10)), "decoder_input_ids": torch.randint(3, 99, (batch, 6))}
    )


def _pixels(size: int, batch: int) -> Inputs:
    return Inputs((), {"pixel_values": torch.randn(batch, 3, size, size)})


def _waves(batch: int) -> Inputs:
    return Inputs((), {"input_values": torch.randn(batch, 800)})


def _spectrogram(batch: int) -> Inputs:
    return Inputs((), {"input_features": torch.randn(batch, 20, 40)})


def _clip() -> nn.Module:
    library = _transformers()
    text = {**SMALL, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    model: nn.Module = library.CLIPModel(library.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16))
    return model


def _clip_inputs(batch: int) -> Inputs:
    return Inputs((), {**_tokens(batch).kwargs, **_pixels(32, batch).kwargs})


def _whisper() -> nn.Module:
    library = _transformers()
    options = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "num_mel_bins": 20,
        "max_source_positions": 20,
    }
    encoder: nn.Module = importlib.import_module("transformers.models.whisper.modeling_whisper").WhisperEncoder(
        library.WhisperConfig(**options)
    )
    return encoder


def _classifier() -> nn.Module:
    library = _transformers()
    model: nn.Module = library.BertForSequenceClassification(library.BertConfig(**SMALL, num_labels=3))
    return model
