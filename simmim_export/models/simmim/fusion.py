"""z = f_v(x) (+) f_t(y): how image tokens and text tokens are combined for the interaction.

Shapes: b batch of texts, n image tokens, s text tokens, D width. An image may belong to several texts: with ``repeats``
r there are b / r images, and image i belongs to the texts i r ... i r + r - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simmim_export.models.simmim.parts import require_fusion


class Layout(NamedTuple):
    """How many rows Z has: at most ``text`` (padding included), and ``image``."""

    text: int
    image: int


class Joint(NamedTuple):
    """The token matrix Z = [rows; image]. In the end, the answer is read from row 0.

    The image part is separate, once for each image, so that an interaction can encode it once for all questions.
    """

    rows: Tensor  # [b, s, D]
    mask: Tensor  # int64 [b, s], 1 for a real row
    image: Tensor | None  # [b / repeats, n, D]
    repeats: int = 1

    def whole(self) -> Joint:
        """All of Z as rows, [b, s + n, D], with each image repeated for each of its texts."""
        if self.image is None:
            return self
        image = repeat(self.image, self.repeats)
        real = torch.ones_like(image[:, :, 0], dtype=self.mask.dtype)
        return Joint(torch.cat([self.rows, image], dim=1), torch.cat([self.mask, real], dim=1), None)


def repeat(images: Tensor, repeats: int) -> Tensor:
    """Each image's tensor ``repeats`` times in a row."""
    return images if repeats == 1 else images.repeat_interleave(repeats, dim=0)


def pooled(text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the real tokens, [b, D]."""
    real = attention_mask.to(text_tokens.dtype)[:, :, None]
    return (text_tokens * real).sum(dim=1) / real.sum(dim=1)


class Fusion(nn.Module):
    """Image tokens and text tokens to a :class:`Joint`."""

    # Whether there is a row for each word, which masked language modeling needs.
    keeps_words = False
    # Whether Z is a single vector, which has nothing to attend to.
    single = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def layout(self, text: int, image: int) -> Layout:
        """The rows of Z for ``text`` and ``image`` tokens."""
        return Layout(text if self.keeps_words else 1, 0 if self.single else image)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor, repeats: int = 1) -> Joint:
        """Fuse image_tokens [b / repeats, n, D] and text_tokens [b, s, D] with attention_mask int64 [b, s]."""
        text = pooled(text_tokens, attention_mask)
        vector = self.combine(repeat(image_tokens.mean(dim=1), repeats), text)
        return Joint(vector[:, None], attention_mask[:, :1], None)

    def combine(self, image: Tensor, text: Tensor) -> Tensor:
        """Combine the mean image token and the mean text token, [b, D] each, into one vector [b, D]."""
        raise NotImplementedError


class ConcatSequence(Fusion):
    """Z in R^{(s+n) x D}: text tokens as rows, with the image tokens beside them."""

    keeps_words = True
    single = False

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor, repeats: int = 1) -> Joint:
        return Joint(text_tokens, attention_mask, image_tokens, repeats)


class ConcatFeature(Fusion):
    """z = W [v; t], one vector for the image next to one for the text: literally what the article says."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.project = nn.Linear(2 * width, width)

    def combine(self, image: Tensor, text: Tensor) -> Tensor:
        return self.project(torch.cat([image, text], dim=1))


class Gated(Fusion):
    """z = g * Wv v + (1 - g) * Wt t with g = sigmoid(Wg [v; t]). Source: Arevalo et al., 2017, equation 3."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gate = nn.Linear(2 * width, width)
        self.image = nn.Linear(width, width)
        self.text = nn.Linear(width, width)

    def combine(self, image: Tensor, text: Tensor) -> Tensor:
        gate = self.gate(torch.cat([image, text], dim=1)).sigmoid()
        return gate * self.image(image) + (1 - gate) * self.text(text)


class Bilinear(Fusion):
    """z = P (tanh(U v) * tanh(W t)): a bilinear form of rank D. Source: Kim et al., 2017, equation 6."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.image = nn.Linear(width, width)
        self.text = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def combine(self, image: Tensor, text: Tensor) -> Tensor:
        return self.project(self.image(image).tanh() * self.text(text).tanh())


class Film(Fusion):
    """Z = [t; (1 + gamma(t)) * V + beta(t)]: the text scales and shifts every image token. Source: Perez et al., 2018."""

    single = False

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gamma = nn.Linear(width, width)
        self.beta = nn.Linear(width, width)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor, repeats: int = 1) -> Joint:
        text = pooled(text_tokens, attention_mask)[:, None]
        image = (1 + self.gamma(text)) * repeat(image_tokens, repeats) + self.beta(text)
        return Joint(text, attention_mask[:, :1], image)


FUSIONS: Mapping[str, type[Fusion]] = {
    "concat_sequence": ConcatSequence,
    "concat_feature": ConcatFeature,
    "gated": Gated,
    "film": Film,
    "bilinear": Bilinear,
}


def fusion(name: str, width: int) -> Fusion:
    """The fusion called ``name``. Raise :class:`UsageError`, naming the choices, for another name."""
    require_fusion(name)
    return FUSIONS[name](width)
