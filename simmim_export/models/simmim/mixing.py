"""A(Z) Z: three ways in which the rows of a token matrix influence each other.

Each is a module with the same two methods, so that a layer can hold any of them: ``visible(joint)`` turns the mask into
what the module needs, once for all layers, and ``forward`` mixes. Shapes: b batch, s rows, n image tokens, k = s + n
all rows of Z, q rows computed, D width, h heads.
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
    """The A of H = A(Z) Z + Z W2^T."""

    # Whether the image's rows change too. If not, an image is encoded once for all its questions.
    updates_image = True

    def visible(self, joint: Joint) -> Tensor:
        """What :meth:`forward` needs to know about the mask."""
        raise NotImplementedError

    def forward(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        """A(Z) Z, [b, s, D], or with ``first_only`` its first row, [b, 1, D]. The rows of ``joint`` are normalized."""
        raise NotImplementedError


class SoftmaxMixing(Mixing):
    """A is a multi-head softmax over [image; rows], computed for the rows only: the image does not change."""

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
        """A bias [b, 1, 1, n + s]. The image has no padding, so its part is 0."""
        assert joint.image is not None
        return F.pad(mask_bias(joint.mask), (joint.image.shape[1], 0))

    def forward(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        query, key, value = self._projected(joint, first_only)
        return self.output(attention(query, key, value, visible).transpose(1, 2).flatten(2))

    def weights(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        """How much each row attends to each image token, the mean over heads: [b, q, n] in [0, 1]. A row's sum is at
        most 1."""
        assert joint.image is not None
        query, key, _ = self._projected(joint, first_only)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + visible
        return scores.softmax(dim=-1)[..., : joint.image.shape[1]].mean(dim=1)

    def _projected(self, joint: Joint, first_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        assert joint.image is not None
        image = repeat(self.image_key_value(joint.image), joint.repeats)
        # An exported graph also takes a single image for all texts.
        image = image.expand(joint.rows.shape[0], -1, -1)
        key, value = torch.cat([image, self.key_value(joint.rows)], dim=1).chunk(2, dim=-1)  # b (n+s) D
        rows = joint.rows[:, :1] if first_only else joint.rows
        return split(self.query(rows), self.heads), split(key, self.heads), split(value, self.heads)


def rows_of(matrix: Tensor, layout: Layout, rows: int) -> Tensor:
    """The part [k, k] of ``matrix`` [text + image, text + image] for k = ``rows``, the last ``image`` of which are the
    image.

    A shorter text uses the first rows and columns of the text part. So the sequence is dynamic although the matrix is
    not.
    """
    text = rows - layout.image
    matrix = torch.cat([matrix[:text], matrix[layout.text :]], dim=0)
    return torch.cat([matrix[:, :text], matrix[:, layout.text :]], dim=1)


class ConstantMixing(Mixing):
    """A = W1, learned, the same for every input: token i always takes the same share of token j.

    The article prints h = W1 z + W2 z^T, whose types fit for no vector. Over Z in R^{N x D} it reads H = W1 Z + (W2
    Z^T)^T = W1 Z + Z W2^T with W1 in R^{N x N} and W2 in R^{D x D}; the off-diagonal blocks of W1 are its "image and
    text influence each other". For a fused vector, N is 1 and W1 a number, which is literally what the article says.
    """

    def __init__(self, width: int, heads: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        count = layout.text + layout.image
        self.weight = nn.Parameter(torch.randn(count, count) * count**-0.5)

    def visible(self, joint: Joint) -> Tensor:
        """1 or 0 for each row, [b, k, 1]."""
        return joint.mask.to(torch.float32)[:, :, None]

    def forward(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        weight = rows_of(self.weight, self.layout, joint.rows.shape[1])
        return (weight[:1] if first_only else weight) @ (joint.rows * visible)


def adjacency(layout: Layout) -> Tensor:
    """bool [N, N]: which rows are neighbors; each is its own neighbor.

    A word and the words before and after it are neighbors, an image token and the 8 tokens around it on their square
    grid, and every word and every image token.
    """
    text = torch.arange(layout.text)
    words = (text[:, None] - text[None, :]).abs() <= 1
    side = round(layout.image**0.5)
    place = torch.stack([torch.arange(layout.image) // side, torch.arange(layout.image) % side])
    grid = (place[:, :, None] - place[:, None, :]).abs().amax(dim=0) <= 1
    cross = torch.ones(layout.text, layout.image, dtype=torch.bool)
    return torch.cat([torch.cat([words, cross], dim=1), torch.cat([cross.T, grid], dim=1)], dim=0)


class GraphMixing(Mixing):
    """A is a softmax over each row's neighbors (:func:`adjacency`), with the scores of GATv2.

    score_ij = a^T LeakyReLU(Wq z_i + Wk z_j), with an a for each head. Source: Brody et al., 2022, equation 7. The
    graph is a dense bias and not a scatter, so that it exports to plain matrix products.
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
        """A bias [b, 1, k, k], 0 for a real neighbor."""
        return mask_bias(joint.mask) + rows_of(self.bias, self.layout, joint.rows.shape[1])

    def forward(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        rows = joint.rows[:, :1] if first_only else joint.rows
        visible = visible[:, :, :1] if first_only else visible
        query, key = split(self.query(rows), self.heads), split(self.key(joint.rows), self.heads)
        pairs = F.leaky_relu(query[:, :, :, None] + key[:, :, None], 0.2)  # b h q k D/h
        scores = (pairs * self.score).sum(dim=-1) + visible
        mixed = scores.softmax(dim=-1) @ split(self.value(joint.rows), self.heads)
        return self.output(mixed.transpose(1, 2).flatten(2))
