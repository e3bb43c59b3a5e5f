"""The whole model: two encoders, fusion, interaction, heads. Shapes are named as in the parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim.encoders import ImageEncoder, TextEncoder
from simmim_export.models.simmim.fusion import fusion
from simmim_export.models.simmim.heads import head
from simmim_export.models.simmim.interaction import interaction
from simmim_export.models.simmim.presets import ModelConfig
from simmim_export.models.simmim.video import VideoEncoder

# exp(logit_scale) may not exceed 100 (temperature 0.01): beyond it training diverges (Radford et al., 2021).
MAX_LOGIT_SCALE = 4.6052
# One layer lets frames compare; more did not help on the clips of shapes.
VIDEO_LAYERS = 1


class SimMIM(nn.Module):
    """A model of the given configuration with random weights (seed torch first).

    Raise :class:`UsageError` for parts that do not go together, and for texts longer than the text encoder has
    positions for.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(
            config.image_trunk, config.image_size, width=config.width, embed_dim=config.embed_dim
        )
        self.text_encoder = TextEncoder(config.text, width=config.width, embed_dim=config.embed_dim)
        most = self.text_encoder.positions
        if most is not None and config.max_length > most:
            what = f"the text encoder has {most} positions, too few for texts of {config.max_length} tokens"
            raise UsageError(what, fix=f"give --max-length {most}, or an encoder with more positions")
        self.video_encoder = (
            VideoEncoder(config.width, config.attention_heads, layers=VIDEO_LAYERS, max_frames=config.frames)
            if config.frames
            else None
        )
        self.fusion = fusion(config.fusion, config.width)
        layout = self.fusion.layout(config.max_length, self.image_encoder.tokens)
        self.interaction = interaction(
            config.interaction,
            self.fusion,
            layout=layout,
            width=config.width,
            heads=config.attention_heads,
            layers=config.interaction_layers,
        )
        self.heads = nn.ModuleDict({name: head(name, config.width, n) for name, n in config.heads.items()})
        # log(1 / temperature) of the contrastive loss; 0.07 is CLIP's start (Radford et al., 2021).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def similarity_scale(self) -> float:
        """The factor of the cosines in the contrastive loss, 1 / temperature: at most 100."""
        return math.exp(min(float(self.logit_scale.detach()), MAX_LOGIT_SCALE))

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels uint8 [b, H, W, 3] to image_tokens [b, n, D] and image_embed [b, E]."""
        return self.image_encoder(pixels)

    def encode_clip(self, pixels: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Frames uint8 [b, f, H, W, 3] to image_tokens [b, n, D]. ``frame_mask`` is int64 [b, f]; None means that all
        frames are real.

        Raise :class:`UsageError` for a model without a video encoder.
        """
        if self.video_encoder is None:
            raise UsageError(
                "this model was made for images", fix="make one with simmim-train init --frames 8 -o NEW.pt"
            )
        tokens, _ = self.image_encoder(pixels.flatten(0, 1))
        if frame_mask is None:
            frame_mask = torch.ones(pixels.shape[:2], dtype=torch.int64, device=pixels.device)
        clip_tokens: Tensor = self.video_encoder(tokens.unflatten(0, pixels.shape[:2]), frame_mask)
        return clip_tokens

    def see(self, pixels: Tensor) -> Tensor:
        """image_tokens [b, n, D] of images [b, H, W, 3] or of clips [b, f, H, W, 3]."""
        return self.encode_clip(pixels) if pixels.ndim == 5 else self.encode_image(pixels)[0]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask, int64 [b, s], to text_tokens [b, s, D] and text_embed [b, E]."""
        return self.text_encoder(input_ids, attention_mask)

    def fuse(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor, repeats: int = 1) -> Tensor:
        """fused [b, D] from b texts and b / ``repeats`` images; image i belongs to the ``repeats`` texts from i *
        repeats on."""
        return self.interaction(self.fusion(image_tokens, text_tokens, attention_mask, repeats))

    def fuse_rows(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor, repeats: int = 1) -> Tensor:
        """As :meth:`fuse`, but every text row: [b, s, D], if the fusion keeps them. Only training needs this, no
        exported graph."""
        return self.interaction(self.fusion(image_tokens, text_tokens, attention_mask, repeats), every_row=True)

    def classify(self, name: str, fused: Tensor) -> Tensor:
        """Logits [b, classes] of the head called ``name``."""
        return self.heads[name](fused)
