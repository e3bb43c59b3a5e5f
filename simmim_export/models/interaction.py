"""H = A(Z) Z + Z W2^T: cross-modal interaction over the fused token matrix.

The article prints h = W1 z + W2 z^T. Read over Z in R^{N x D} that is token mixing plus channel mixing,
H = W1 Z + (W2 Z^T)^T = W1 Z + Z W2^T. Every interaction is this one form with its own A, followed by a residual,
LayerNorm and a feed-forward network; here A is a softmax (``attention``).

Knows a :class:`~simmim_export.models.fusion.Joint`. Must not know encoders or heads. Shapes: b batch, n context tokens,
s rows, q rows computed, D width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.attention import attention, mask_bias
from simmim_export.models.fusion import Joint


class AttentionLayer(nn.Module):
    """One pre-norm layer: A is a multi-head softmax over [context; rows]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} attention heads do not divide a width of {width}", fix="choose a divisor")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.context_key_value = nn.Linear(width, 2 * width)
        self.mix_tokens = nn.Linear(width, width)
        self.mix_channels = nn.Linear(width, width, bias=False)  # W2
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def split(self, x: Tensor) -> Tensor:
        """[b, t, D] to [b, h, t, D/h]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, joint: Joint, bias: Tensor, repeats: int, first_only: bool) -> Tensor:
        """The updated rows [b, s, D], or with ``first_only`` the first row [b, 1, D], which attends to all the others."""
        z = self.norm(joint.rows)
        context = self.context_key_value(joint.context)
        if repeats > 1:
            context = context.repeat_interleave(repeats, dim=0)
        key, value = torch.cat([context, self.key_value(z)], dim=1).chunk(2, dim=-1)  # b (n+s) D
        rows = joint.rows
        if first_only:
            rows, z = rows[:, :1], z[:, :1]
        mixed = attention(self.split(self.query(z)), self.split(key), self.split(value), bias)  # b h q D/h
        rows = rows + self.mix_tokens(mixed.transpose(1, 2).flatten(2)) + self.mix_channels(z)
        return rows + self.ffn(self.norm_ffn(rows))


class AttentionInteraction(nn.Module):
    """Layers of text rows attending to image context and to each other; gives the first row, fused [b, D].

    The last layer computes that row alone: the others would be thrown away.
    """

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Variance-preserving (LeCun et al., 1998). torch's default is 3 times smaller in variance: attention
                # starts uniform, the image reaches the text at a tenth of its scale, and at width 96 retrieval by
                # attention took three times as many steps to emerge.
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, joint: Joint, repeats: int = 1, every_row: bool = False) -> Tensor:
        """``joint`` with rows of batch b and a context of batch b / ``repeats`` (each image serves that many texts).

        With ``every_row`` the last layer computes all rows too: [b, s, D], which masked language modelling reads.
        """
        # The context has no padding: its part of the bias is 0.
        bias = F.pad(mask_bias(joint.rows_mask), (joint.context.shape[1], 0))  # b 1 1 (n+s)
        rows = joint.rows
        for layer in self.layers:
            last = layer is self.layers[-1]
            rows = layer(joint._replace(rows=rows), bias, repeats, first_only=last and not every_row)
        return self.norm(rows) if every_row else self.norm(rows)[:, 0]


INTERACTIONS: dict[str, type[nn.Module]] = {"attention": AttentionInteraction}


def interaction(name: str, width: int, heads: int, layers: int) -> nn.Module:
    """The interaction called ``name``; raise :class:`UsageError` naming the choices."""
    if name not in INTERACTIONS:
        raise UsageError(f"unknown interaction {name!r}", fix=f"choose one of {', '.join(INTERACTIONS)}")
    return INTERACTIONS[name](width, heads, layers)
