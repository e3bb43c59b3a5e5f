"""z = f_v(x) (+) f_t(y): how image tokens and text tokens become one set for the interaction.

Knows the two token tensors. Must not know what is computed on the result. Shapes: b batch, n image tokens, s text
tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from simmim_export.errors import UsageError


class Joint(NamedTuple):
    """The token matrix Z = [context; rows]: only ``rows`` are updated, and every row sees all of Z.

    That the context is not updated is what lets an image be encoded once for all its questions.
    """

    context: Tensor  # [b, n, D]
    rows: Tensor  # [b, s, D]
    rows_mask: Tensor  # int64 [b, s], 1 for a real row


class ConcatSequence(nn.Module):
    """Z in R^{(n+s) x D}: image tokens as the context, text tokens as the rows."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Joint:
        """Fuse image_tokens [b, n, D] and text_tokens [b, s, D] with attention_mask [b, s]."""
        return Joint(image_tokens, text_tokens, attention_mask)


FUSIONS: dict[str, type[nn.Module]] = {"concat_sequence": ConcatSequence}


def fusion(name: str) -> nn.Module:
    """The fusion called ``name``; raise :class:`UsageError` naming the choices."""
    if name not in FUSIONS:
        raise UsageError(f"unknown fusion {name!r}", fix=f"choose one of {', '.join(FUSIONS)}")
    return FUSIONS[name]()
