"""Attention masks as transformers' encoders take them: 4-D, float32, added to the scores before the softmax.

An encoder uses a 4-D mask as it is. It builds any other kind itself, with operators that TensorRT does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A score that no softmax notices.
MASKED = torch.finfo(torch.float32).min


def padding_mask(attention_mask: Tensor) -> Tensor:
    """attention_mask int64 [batch, sequence], 1 for a token, -> float32 [batch, 1, 1, sequence]: 0 for a token, MASKED for
    padding."""
    return (1.0 - attention_mask.float())[:, None, None, :] * MASKED


class CausalMask(nn.Module):
    """For a decoder of texts of up to ``longest`` tokens: no token sees a later one."""

    later: Tensor

    def __init__(self, longest: int) -> None:
        super().__init__()
        later = torch.full((longest, longest), MASKED).triu(1)
        self.register_buffer("later", later[None, None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [batch, sequence] -> float32 [1, 1, sequence, sequence]."""
        return self.later[:, :, : tokens.shape[1], : tokens.shape[1]]
