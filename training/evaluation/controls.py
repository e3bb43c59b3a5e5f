"""What the controls show a model instead of its own input: another text, another image, or frames in another order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Whether the answer ``guess`` (int64 [g]) would be right for the texts ``text`` (int64 [t], positions): bool [t, g].
WouldBeRight = Callable[[np.ndarray, np.ndarray], np.ndarray]


def identities(input_ids: Tensor) -> np.ndarray:
    """int64 [m]: equal numbers for equal rows of ``input_ids`` [m, s]. Two texts that the tokenizer cannot tell apart
    (for example in upper and lower case) count as the same."""
    return np.unique(input_ids.numpy(), axis=0, return_inverse=True)[1].reshape(-1)


def different_text(identity: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of m texts the position of a different one (int64 [m]), and whether there is one (bool [m]).

    The search begins at ``start`` (int64 [m]) and goes on to the following texts, around the end, until one has another
    ``identity``. If all texts are the same, the position is that of the text itself.
    """
    texts, first = identity.tolist(), start.tolist()
    count = len(texts)
    if len(set(texts)) == 1:
        return np.arange(count), np.zeros(count, bool)
    # following[i]: the first position after i, around the end, whose text is not that of i.
    following = [0] * (2 * count)
    for place in reversed(range(2 * count - 1)):
        after = place + 1
        following[place] = following[after] if texts[after % count] == texts[place % count] else after
    chosen = [s if texts[s] != own else following[s] % count for own, s in zip(texts, first, strict=True)]
    return np.array(chosen), np.ones(count, bool)


def other_image(
    identity: np.ndarray, image: np.ndarray, *, answers: np.ndarray, known: np.ndarray, would_be_right: WouldBeRight
) -> tuple[np.ndarray, np.ndarray]:
    """For each of m texts an image (int64 [m]) other than its own, and whether there is one (bool [m]).

    ``image`` int64 [m] is the image that each text belongs to, ``answers`` int64 [m] its right answer, and ``known``
    bool [m] whether that is known. An image with the same text and the same answer does not count, because a model that
    looks at it would be right. The previous image is taken if it counts, else the nearest before it that does.
    """
    count = int(image.max()) + 1
    alike = np.zeros((len(image), count), bool)
    alike[np.arange(len(image)), image] = True
    order = np.argsort(identity, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(identity[order])) + 1):
        if len(same) > 1:
            answered = same[known[same]]
            coincides = would_be_right(same, answers[answered])
            for column, place in enumerate(image[answered].tolist()):
                alike[same[coincides[:, column]], place] = True
    if count == 1:
        return image, np.zeros(len(image), bool)
    before = (image[:, None] - np.arange(1, count)) % count
    usable = ~np.take_along_axis(alike, before, axis=1)
    return before[np.arange(len(image)), usable.argmax(axis=1)], np.asarray(usable.any(axis=1))


def other_order(pixels: Tensor, random: torch.Generator) -> tuple[Tensor, np.ndarray]:
    """Clips uint8 [b, f, H, W, 3] with their frames in another order, and which clips then look different (bool [b]).

    The order is random. If it happens to show the same pictures in the same order, all frames move by one. A clip whose
    frames are all equal has no other order.
    """
    order = torch.stack([torch.randperm(pixels.shape[1], generator=random) for _ in pixels])
    mixed = pixels[torch.arange(len(pixels))[:, None], order]
    unchanged = (mixed == pixels).flatten(1).all(dim=1)
    mixed[unchanged] = pixels[unchanged].roll(1, dims=1)
    return mixed, moves(pixels)


def moves(pixels: Tensor) -> np.ndarray:
    """bool [b]: whether the frames of each clip in ``pixels`` [b, f, H, W, 3] differ."""
    return (pixels != pixels[:, :1]).flatten(1).any(dim=1).numpy()
