"""Combines the frames of a clip into the tokens of one image, by temporal attention at each place of the image.

The result has the shape of an image's tokens, so fusion and every head work on clips too. Shapes: b clips, f frames, n
image tokens per frame, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from simmim_export.models.simmim.attention import attention, mask_bias
from simmim_export.models.simmim.encoders import positions_1d
from simmim_export.models.simmim.mixing import check_heads, split


class TemporalLayer(nn.Module):
    """A pre-norm transformer layer over the frames at each place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [b n, f, D] with bias [b n, 1, 1, f], to the same shape."""
        query, key, value = (split(part, self.heads) for part in self.query_key_value(self.norm(x)).chunk(3, dim=-1))
        x = x + self.output(attention(query, key, value, bias).transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm_ffn(x))


class VideoEncoder(nn.Module):
    """frame_tokens [b, f, n, D] and frame_mask int64 [b, f] (1 for a real frame) to image_tokens [b, n, D].

    The mean over frames cannot tell a clip from its reverse. So each frame's token gets its time, frames attend to each
    other at each place, and the result, which says what happened there and when, is added to the mean. A clip may have
    any number of frames up to ``max_frames``.
    """

    times: Tensor

    def __init__(self, width: int, heads: int, *, layers: int, max_frames: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TemporalLayer(width, heads) for _ in range(layers))
        self.score = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("times", positions_1d(max_frames, width), persistent=False)

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
        frames, places = frame_tokens.shape[1], frame_tokens.shape[2]
        real = frame_mask.to(frame_tokens.dtype)  # b f
        bias = mask_bias(frame_mask).expand(-1, places, -1, -1).flatten(0, 1)[:, None]  # (b n) 1 1 f
        x = frame_tokens + self.times[:frames, None]
        x = x.transpose(1, 2).flatten(0, 1)  # (b n) f D
        for layer in self.layers:
            x = layer(x, bias)
        share = (self.score(x).transpose(1, 2) + bias[:, 0]).softmax(dim=-1)  # (b n) 1 f
        change = self.norm((share @ x)[:, 0]).unflatten(0, (-1, places))  # b n D
        mean = (frame_tokens * real[:, :, None, None]).sum(dim=1) / real.sum(dim=1)[:, None, None]
        return mean + change
