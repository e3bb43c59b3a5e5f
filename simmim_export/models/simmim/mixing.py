"""A(Z) Z: three ways in which the rows of a token matrix reach each other.

Knows a :class:`~simmim_export.models.simmim.fusion.Joint`. Must not know layers. Each is a module with the same two methods, so
that a layer holds any of them: ``visible(joint)``, what the mask means to it, made once for all layers, and ``forward``.
Shapes: b batch, s rows, n image tokens, k = s + n all rows of Z, q rows computed, D width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim.attention import MASKED, attention, mask_bias
from simmim_export.models.simmim.fusion import Joint, Layout, repeat


def split(x: Tensor, heads: int) -> Tensor:
    """[b, t, D] to [b, h, t, D / h]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def check_heads(width: int, heads: int) -> None:
    """Raise :class:`UsageError` unless ``heads`` divide ``width``."""
    if width % heads:
        raise UsageError(f"{heads} attention heads do not divide a width of {width}", fix="choose a divisor")


class Mixing(nn.Module):
    """A of the form H = A(Z) Z + Z W2^T."""

    # Whether the image's rows change too. Where they do not, an image is encoded once for all its questions.
    updates_image = True

    def visible(self, joint: Joint) -> Tensor:
        """What :meth:`forward` needs to know of the mask."""
        raise NotImplementedError

    def forward(self, joint: Joint, visible: Tensor, first_only: bool) -> Tensor:
        """A(Z) Z, [b, s, D], or with ``first_only`` its first row [b, 1, D]; the rows of ``joint`` are normalised."""
        raise NotImplementedError


class SoftmaxMixing(Mixing):
    """A is a multi-head softmax over [image; rows], for the rows alone: the image stays as it is."""

    updates_image = False

    def __init__(self, width: int, heads: int, layout: Layout) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.image_key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def visible(self, joint: Joint) -> Tensor:
        """A bias [b, 1, 1, n + s]. The image has no padding: its part is 0."""
        assert joint.image is not None
        return F.pad(mask_bias(joint.mask), (joint.image.shape[1], 0))

    def forward(self, joint: Joint, visible: Tensor, first_only: bool) -> Tensor:
        """As :meth:`Mixing.forward`."""
        query, key, value = self._projected(joint, first_only)
        return self.output(attention(query, key, value, visible).transpose(1, 2).flatten(2))

    def weights(self, joint: Joint, visible: Tensor, first_only: bool) -> Tensor:
        """How much each row looks at each image token, the mean over heads: [b, q, n] in [0, 1], over rows too at most 1."""
        assert joint.image is not None
        query, key, _ = self._projected(joint, first_only)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + visible
        return scores.softmax(dim=-1)[..., : joint.image.shape[1]].mean(dim=1)

    def _projected(self, joint: Joint, first_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        assert joint.image is not None
        image = repeat(self.image_key_value(joint.image), joint.repeats)
        key, value = torch.cat([image, self.key_value(joint.rows)], dim=1).chunk(2, dim=-1)  # b (n+s) D
        rows = joint.rows[:, :1] if first_only else joint.rows
        return split(self.query(rows), self.heads), split(key, self.heads), split(value, self.heads)


def rows_of(matrix: Tensor, layout: Layout, rows: int) -> Tensor:
    """The part [k, k] of ``matrix`` [text + image, text + image] for k = ``rows``, of which the last ``image`` are the image.

    This is what keeps the sequence dynamic although the matrix is not: a shorter text takes its first rows and columns.
    """
    text = rows - layout.image
    matrix = torch.cat([matrix[:text], matrix[layout.text :]], dim=0)
    return torch.cat([matrix[:, :text], matrix[:, layout.text :]], dim=1)


class ConstantMixing(Mixing):
    """A = W1, learned and the same for every input: token i always takes the same share of token j.

    The article prints h = W1 z + W2 z^T, which type-checks for no vector. Over Z in R^{N x D} it reads
    H = W1 Z + (W2 Z^T)^T = W1 Z + Z W2^T with W1 in R^{N x N}, W2 in R^{D x D}, and W1's blocks off the diagonal are its
    "image and text influence each other". For a fused vector N is 1 and W1 a number: the article's letter.
    """

    def __init__(self, width: int, heads: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        count = layout.text + layout.image
        self.weight = nn.Parameter(torch.randn(count, count) * count**-0.5)

    def visible(self, joint: Joint) -> Tensor:
        """1 or 0 a row, [b, k, 1]."""
        return joint.mask.to(torch.float32)[:, :, None]

    def forward(self, joint: Joint, visible: Tensor, first_only: bool) -> Tensor:
        """As :meth:`Mixing.forward`."""
        weight = rows_of(self.weight, self.layout, joint.rows.shape[1])
        return (weight[:1] if first_only else weight) @ (joint.rows * visible)


def adjacency(layout: Layout) -> Tensor:
    """bool [N, N]: who is a neighbour of whom, each of itself too.

    Words: the one before and the one after. Image tokens: the 8 around them on their square grid. A word and an image
    token: always.
    """
    text = torch.arange(layout.text)
    words = (text[:, None] - text[None, :]).abs() <= 1
    side = round(layout.image**0.5)
    place = torch.stack([torch.arange(layout.image) // side, torch.arange(layout.image) % side])
    grid = (place[:, :, None] - place[:, None, :]).abs().amax(dim=0) <= 1
    cross = torch.ones(layout.text, layout.image, dtype=torch.bool)
    return torch.cat([torch.cat([words, cross], dim=1), torch.cat([cross.T, grid], dim=1)], dim=0)


class GraphMixing(Mixing):
    """A is a softmax over each row's neighbours in :func:`adjacency`, with the scores of GATv2.

    score_ij = a^T LeakyReLU(Wq z_i + Wk z_j), each head with its own a. Source: Brody et al., 2022, equation 7. The graph
    is a dense bias rather than a scatter, so that it exports to plain matrix products.
    """

    bias: Tensor

    def __init__(self, width: int, heads: int, layout: Layout) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.layout = heads, layout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.score = nn.Parameter(torch.randn(heads, 1, 1, width // heads) * (width // heads) ** -0.5)
        self.output = nn.Linear(width, width)
        self.register_buffer("bias", (~adjacency(layout)).float() * MASKED, persistent=False)

    def visible(self, joint: Joint) -> Tensor:
        """A bias [b, 1, k, k]: 0 for a real neighbour."""
        return mask_bias(joint.mask) + rows_of(self.bias, self.layout, joint.rows.shape[1])

    def forward(self, joint: Joint, visible: Tensor, first_only: bool) -> Tensor:
        """As :meth:`Mixing.forward`."""
        rows = joint.rows[:, :1] if first_only else joint.rows
        visible = visible[:, :, :1] if first_only else visible
        query, key = split(self.query(rows), self.heads), split(self.key(joint.rows), self.heads)
        pairs = F.leaky_relu(query[:, :, :, None] + key[:, :, None], 0.2)  # b h q k D/h
        scores = (pairs * self.score).sum(dim=-1) + visible
        mixed = scores.softmax(dim=-1) @ split(self.value(joint.rows), self.heads)
        return self.output(mixed.transpose(1, 2).flatten(2))
