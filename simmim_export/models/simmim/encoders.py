"""The two encoders: pixels to image tokens, token ids to text tokens.

Images are encoded by torchvision's ResNets, texts by Hugging Face's BERT family. Shapes: b batch, n image tokens, s
text tokens, D width, E embedding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, conv1x1

from simmim_export.models.huggingface.text_models import text_positions
from simmim_export.models.simmim.attention import NAME as ATTENTION
from simmim_export.models.simmim.attention import mask_bias
from simmim_export.models.simmim.parts import require_text_family, require_trunk
from simmim_export.system.telemetry import without_telemetry

with without_telemetry("transformers"):
    from transformers import AutoConfig, AutoModel

# ImageNet's, as torchvision's weights expect. They are part of the graph, so a host cannot apply them twice or forget
# them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class TinyTrunk(nn.Sequential):
    """A trunk for 64-pixel images made of torchvision's blocks: stages of 24, 48 and 96 channels, with a total stride
    of 16.

    A token covers 16 pixels, about a thing of `shapes`. With a stride of 8 (64 tokens), word detection took three times
    as many steps to learn and look-ups twice as many, and each step cost more.
    """

    channels = 96
    stride = 16

    @staticmethod
    def side(image_size: int) -> int:
        """Rows (and columns) of tokens: the stem has no padding, the stages have."""
        return math.ceil(image_size // 4 / 4)

    def __init__(self) -> None:
        def stage(inside: int, outside: int, stride: int) -> BasicBlock:
            shortcut = None
            if stride != 1 or inside != outside:
                shortcut = nn.Sequential(conv1x1(inside, outside, stride), nn.BatchNorm2d(outside))
            return BasicBlock(inside, outside, stride, shortcut)

        stem = nn.Sequential(nn.Conv2d(3, 24, 4, 4, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        super().__init__(stem, stage(24, 24, 1), stage(24, 48, 2), stage(48, 96, 2))


class ResNetTrunk(nn.Sequential):
    """A torchvision ResNet without its pooling and classifier: [b, 3, H, W] to [b, channels, H/32, W/32]."""

    stride = 32

    @staticmethod
    def side(image_size: int) -> int:
        """Rows (and columns) of tokens."""
        return math.ceil(image_size / ResNetTrunk.stride)

    def __init__(self, name: str) -> None:
        resnet = get_model(name, weights=None)
        children = {key: child for key, child in resnet.named_children() if key not in ("avgpool", "fc")}
        super().__init__()
        self.channels = resnet.fc.in_features
        for key, child in children.items():
            self.add_module(key, child)


def image_trunk(name: str) -> TinyTrunk | ResNetTrunk:
    """The trunk called ``name``: ``tiny`` or any torchvision ResNet. Raise :class:`UsageError` for another name."""
    require_trunk(name)
    return TinyTrunk() if name == "tiny" else ResNetTrunk(name)


def positions_1d(count: int, width: int) -> Tensor:
    """Fixed sine-cosine positions, float32 [count, width], with mean square 1. ``width`` is even.

    Source: Vaswani et al., 2017, section 3.5. The wavelengths go from 4 steps, so that neighbors differ, to 4 times
    ``count``. Their 10000 is for sentences; on a grid of 7 or 8 it would leave most channels constant.
    """
    highest, lowest = math.pi / 2, math.pi / (2 * count)
    frequencies = highest * (lowest / highest) ** (torch.arange(width // 2) / (width // 2))
    angles = torch.arange(count)[:, None] * frequencies
    return math.sqrt(2.0) * torch.cat([angles.sin(), angles.cos()], dim=1)


def positions_2d(rows: int, columns: int, width: int) -> Tensor:
    """:func:`positions_1d` of the row and of the column side by side, [rows * columns, width]. ``width`` is a multiple
    of 4.

    Their mean square is 1, like that of the content that they are added to.
    """
    count = max(rows, columns)
    by_row = positions_1d(count, width // 2)[:rows, None, :].expand(rows, columns, width // 2)
    by_column = positions_1d(count, width // 2)[None, :columns, :].expand(rows, columns, width // 2)
    return torch.cat([by_row, by_column], dim=2).reshape(rows * columns, width)


def unit_length(vectors: Tensor) -> Tensor:
    """Each row of [b, E] divided by its Euclidean length (at least 1e-6)."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-6)


class ImageEncoder(nn.Module):
    """pixels uint8 [b, H, W, 3] to image_tokens [b, n, D] and image_embed [b, E] of unit length."""

    scale: Tensor
    shift: Tensor
    positions: Tensor

    def __init__(self, trunk: str, image_size: int, *, width: int, embed_dim: int) -> None:
        super().__init__()
        self.trunk = image_trunk(trunk)
        side = self.trunk.side(image_size)
        self.tokens = side * side
        self.project = nn.Conv2d(self.trunk.channels, width, 1)
        self.kind = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, embed_dim)
        scale = 1.0 / (255.0 * torch.tensor(STD))
        shift = -torch.tensor(MEAN) / torch.tensor(STD)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("positions", positions_2d(side, side, width), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # Cast first: TensorRT accepts bytes as a network input only if a Cast reads them directly.
        x = pixels.to(self.scale.dtype).permute(0, 3, 1, 2) * self.scale + self.shift  # b 3 H W
        x = self.project(self.trunk(x)).flatten(2).transpose(1, 2)  # b n D
        # Content is brought to unit variance before positions are added: trained content grows, and would drown them.
        tokens = self.norm(x) + self.positions + self.kind
        return tokens, unit_length(self.embed(tokens.mean(dim=1)))


class TextEncoder(nn.Module):
    """input_ids and attention_mask, int64 [b, s], to text_tokens [b, s, D] and text_embed [b, E] of unit length.

    Padding tokens come out as exact zeros, so nothing downstream can depend on them. Dropout is off, whatever the
    configuration says. ``positions`` is the most tokens that a text may have; None means no limit. Raise
    :class:`UsageError` for a family that would give other results here than in transformers.
    """

    def __init__(self, config: Mapping[str, Any], *, width: int, embed_dim: int) -> None:
        super().__init__()
        options = dict(config)
        family = options.pop("model_type")
        require_text_family(family)
        hf_config = AutoConfig.for_model(family, **options)
        hf_config._attn_implementation = ATTENTION
        self.encoder = build_text_model(hf_config)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.positions = text_positions(self.encoder)
        # One segment: a zero of shape [1, 1] broadcasts over batch and sequence, and stays a constant in the exported
        # graph.
        takes_segments = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        self.segment_names = ("token_type_ids",) if takes_segments else ()
        self.register_buffer("segment", torch.zeros(1, 1, dtype=torch.int64), persistent=False)
        hidden = hf_config.hidden_size
        self.project = nn.Identity() if hidden == width else nn.Linear(hidden, width)
        self.embed = nn.Linear(width, embed_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        # transformers leaves a 4-D mask as it is, so ours reaches our attention untouched.
        segments = dict.fromkeys(self.segment_names, self.segment)
        x = self.encoder(input_ids=input_ids, attention_mask=mask_bias(attention_mask), **segments).last_hidden_state
        real = attention_mask.to(x.dtype)[:, :, None]  # b s 1
        tokens = self.project(x) * real
        return tokens, unit_length(self.embed(tokens.sum(dim=1) / real.sum(dim=1)))


def build_text_model(config: Any) -> nn.Module:
    """The Hugging Face encoder for ``config``, without a pooler if its class has one."""
    options = {}
    model_class = AutoModel._model_mapping[type(config)]
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    return AutoModel.from_config(config, attn_implementation=ATTENTION, **options)
