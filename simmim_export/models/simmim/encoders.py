"""The two towers: pixels to image tokens, token ids to text tokens.

torchvision's ResNets encode images, Hugging Face's BERT family texts. Shapes: b batch, n image
tokens, s text tokens, D width, E embedding.
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

from simmim_export.models.simmim.attention import NAME as ATTENTION
from simmim_export.models.simmim.attention import mask_bias
from simmim_export.models.simmim.parts import require_text_family, require_trunk
from simmim_export.system.telemetry import without_telemetry

with without_telemetry("transformers"):
    from transformers import AutoConfig, AutoModel

# Of ImageNet, as torchvision's weights expect them; in the graph, so that a host cannot apply them twice or not at all.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class TinyTrunk(nn.Sequential):
    """A trunk for 64-pixel images in torchvision's own blocks: stages of 24, 48 and 96 channels, stride 16 in all.

    A token then covers 16 pixels, about a thing of `shapes`. With a stride of 8 (64 tokens) word detection took three
    times, and looking things up twice as many steps to learn, at a higher cost a step.
    """

    channels = 96
    stride = 16

    @staticmethod
    def side(image_size: int) -> int:
        """Rows (and columns) of tokens: the stem has no padding, the stages do."""
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
        self_channels = resnet.fc.in_features
        children = {key: child for key, child in resnet.named_children() if key not in ("avgpool", "fc")}
        super().__init__()
        self.channels = self_channels
        for key, child in children.items():
            self.add_module(key, child)


def image_trunk(name: str) -> TinyTrunk | ResNetTrunk:
    """The trunk called ``name``: ``tiny`` or any ResNet of torchvision. Raise :class:`UsageError` on another name."""
    require_trunk(name)
    return TinyTrunk() if name == "tiny" else ResNetTrunk(name)


def positions_1d(count: int, width: int) -> Tensor:
    """Fixed sine-cosine positions, float32 [count, width], of mean square 1.

    Source: Vaswani et al., 2017, section 3.5, with wavelengths from 4 steps, so that neighbours differ, to 4 times
    ``count``: their 10000 is for sentences, and on a grid of 7 or 8 leaves most channels constant. ``width``: even.
    """
    highest, lowest = math.pi / 2, math.pi / (2 * count)
    frequencies = highest * (lowest / highest) ** (torch.arange(width // 2) / (width // 2))
    angles = torch.arange(count)[:, None] * frequencies
    return math.sqrt(2.0) * torch.cat([angles.sin(), angles.cos()], dim=1)


def positions_2d(rows: int, columns: int, width: int) -> Tensor:
    """:func:`positions_1d` of the row and of the column side by side, [rows * columns, width]. ``width``: a multiple of 4.

    On a scale of mean square 1, that of the content they are added to.
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

    def __init__(self, trunk: str, image_size: int, width: int, embed_dim: int) -> None:
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
        """Encode; see the class for shapes."""
        # Cast first: TensorRT takes bytes as a network input only where a Cast reads them at once.
        x = pixels.to(self.scale.dtype).permute(0, 3, 1, 2) * self.scale + self.shift  # b 3 H W
        x = self.project(self.trunk(x)).flatten(2).transpose(1, 2)  # b n D
        # Content at unit variance before the place is added: trained content grows, and would drown where it is.
        tokens = self.norm(x) + self.positions + self.kind
        return tokens, unit_length(self.embed(tokens.mean(dim=1)))


class TextEncoder(nn.Module):
    """input_ids, attention_mask int64 [b, s] to text_tokens [b, s, D] and text_embed [b, E] of unit length.

    Tokens of padding come out as exact zeros, so nothing downstream can depend on them. There is no dropout, whatever the
    configuration calls it. ``positions`` is the most tokens that a text may have, None where nothing limits it. Raises
    :class:`UsageError` for a configuration of a family that would compute something else here than in transformers.
    """

    def __init__(self, config: Mapping[str, Any], width: int, embed_dim: int) -> None:
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
        # One segment: a [1, 1] zero broadcasts over batch and sequence and leaves a constant in the exported graph.
        takes_segments = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        self.segment_names = ("token_type_ids",) if takes_segments else ()
        self.register_buffer("segment", torch.zeros(1, 1, dtype=torch.int64), persistent=False)
        hidden = hf_config.hidden_size
        self.project = nn.Identity() if hidden == width else nn.Linear(hidden, width)
        self.embed = nn.Linear(width, embed_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; see the class for shapes."""
        # transformers returns a 4-D mask as it is, so ours reaches our attention untouched.
        segments = dict.fromkeys(self.segment_names, self.segment)
        x = self.encoder(input_ids=input_ids, attention_mask=mask_bias(attention_mask), **segments).last_hidden_state
        real = attention_mask.to(x.dtype)[:, :, None]  # b s 1
        tokens = self.project(x) * real
        return tokens, unit_length(self.embed(tokens.sum(dim=1) / real.sum(dim=1)))


def text_positions(encoder: nn.Module) -> int | None:
    """The most tokens that a Hugging Face encoder has positions for; None where they are computed.

    RoBERTa's family numbers positions from after that of padding, so some rows of the table are never a token's.
    """
    for name, table in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None


def build_text_model(config: Any) -> nn.Module:
    """The Hugging Face encoder for ``config``, without a pooler where its class has one."""
    options = {}
    model_class = AutoModel._model_mapping[type(config)]
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    return AutoModel.from_config(config, attn_implementation=ATTENTION, **options)
