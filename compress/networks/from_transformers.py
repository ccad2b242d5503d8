"""Networks that are published as classes of the `transformers` package, built there from their configurations, with random weights.

The package is asked for only when such a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from mcompress.errors import MissingBackendError


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingBackendError(
            "this reference network is described by the transformers package, which is not installed: pip install 'transformers>=5,<6'"
        ) from error


def _config(name: str, settings: Mapping[str, object]) -> object:
    make = cast("Callable[..., object]", getattr(_transformers(), name))
    return make(**settings)


def _model(name: str, config: object) -> nn.Module:
    make = cast("Callable[[object], nn.Module]", getattr(_transformers(), name))
    return make(config)


def segformer_b0() -> nn.Module:
    """SegFormer-B0 with 150 classes; logits at a quarter of the size."""
    return _model("SegformerForSemanticSegmentation", _config("SegformerConfig", {"num_labels": 150}))


def beit_base() -> nn.Module:
    """BEiT-B/16: relative position biases, mean of the patches."""
    settings = {
        "num_labels": 1000,
        "use_mask_token": False,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": True,
        "use_mean_pooling": True,
    }
    return _model("BeitForImageClassification", _config("BeitConfig", settings))


def depth_anything_small() -> nn.Module:
    """Depth Anything with the small DINOv2 backbone, patches of 14."""
    backbone = {
        "image_size": 518,
        "patch_size": 14,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "out_features": ["stage9", "stage10", "stage11", "stage12"],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    settings = {
        "backbone_config": _config("Dinov2Config", backbone),
        "reassemble_hidden_size": 384,
        "patch_size": 14,
        "neck_hidden_sizes": [48, 96, 192, 384],
        "fusion_hidden_size": 64,
        "head_in_index": -1,
        "head_hidden_size": 32,
    }
    return _model("DepthAnythingForDepthEstimation", _config("DepthAnythingConfig", settings))


def swin_v2_base() -> nn.Module:
    """Swin v2 base on 256x256, windows of 8."""
    settings = {"image_size": 256, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 8, "num_labels": 1000}
    return _model("Swinv2ForImageClassification", _config("Swinv2Config", settings))


class FramesFirst(nn.Module):
    """Takes (n, channels, frames, height, width), as published, and gives the network frames first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> object:
        return self.network(x.transpose(1, 2))


def video_mae_base() -> nn.Module:
    """VideoMAE-B: 16 frames, tubes of 2x16x16, 400 classes."""
    settings = {"num_labels": 400, "use_mean_pooling": True, "qkv_bias": True}
    return FramesFirst(_model("VideoMAEForVideoClassification", _config("VideoMAEConfig", settings)))


def masked_language_model(family: str, settings: Mapping[str, object]) -> nn.Module:
    """A masked language model with the family's own head: `Bert`, `DistilBert`, `Albert`."""
    return _model(f"{family}ForMaskedLM", _config(f"{family}Config", settings))


def nomic_embed_text() -> nn.Module:
    """Nomic Embed Text v1.5: a BERT with rotary positions and gated linear units."""
    return _model("NomicBertModel", _config("NomicBertConfig", {}))


class ImageAndText(nn.Module):
    """CLIP on an image and a text of 77 tokens; the tokens are taken from the image's first row, which costs one conversion."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> object:
        return self.network(input_ids=image[:, 0, 0, :77].to(torch.int64), pixel_values=image)


def clip_b16() -> nn.Module:
    """CLIP with ViT-B/16 and its text encoder."""
    config = _config("CLIPConfig", {"vision_config": {"patch_size": 16}, "projection_dim": 512})
    return ImageAndText(_model("CLIPModel", config))


class WithKeysAndValues(nn.Module):
    """An encoder that also makes the keys and values which each decoder layer attends to."""

    def __init__(self, encoder: nn.Module, inputs: int, outputs: int, layers: int, *, key_bias: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.keys = nn.ModuleList(nn.Linear(inputs, outputs, bias=key_bias) for _ in range(layers))
        self.values = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.encoder(x)[0]
        return [layer(hidden) for pair in zip(self.keys, self.values, strict=True) for layer in pair]


def trocr_small_encoder() -> nn.Module:
    """TrOCR-small's encoder (DeiT-S on 384x384) and the keys and values of six decoder layers of 256 channels."""
    settings = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "image_size": 384}
    make = cast("Callable[..., nn.Module]", _transformers().DeiTModel)
    return WithKeysAndValues(make(_config("DeiTConfig", settings), add_pooling_layer=False), 384, 256, 6, key_bias=True)
