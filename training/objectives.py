"""Losses as pure functions of tensors.

Shapes: b images and texts of a batch, E embedding, c classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_export.errors import UsageError
from simmim_export.models.simmim.model import MAX_LOGIT_SCALE


def similarities(image_embed: Tensor, text_embed: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines float32 [b, b] of image i with text j, from embeddings [b, E] of unit length and log(1 /
    temperature).

    Autocast is off: it would compute the product in 16 bits, and at 100 times a cosine round it by up to 0.25.
    """
    with torch.autocast(image_embed.device.type, enabled=False):
        scale = logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        return scale * image_embed.float() @ text_embed.float().T


def contrastive_loss(scores: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al., 2018) over scores [b, b], the mean of both directions.

    ``same`` (bool [b, b], symmetric, true on its diagonal) says which texts belong to which image. All texts of an
    image share its target equally. Raise :class:`UsageError` for a batch of 1, which has nothing to contrast.
    """
    if len(scores) < 2:
        raise UsageError("a contrastive loss needs a batch of 2 or more", fix="raise --batch-size")
    targets = same.float() / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2


def hard_negatives(scores: Tensor, same: Tensor) -> Tensor:
    """For each row of scores [b, b], a column drawn from the softmax of the row, never one where ``same`` [b, b] is
    true.

    If a row has no candidate because everything is the same, another row is drawn uniformly. (ALBEF and BLIP zero the
    diagonal and normalize, which crashes in that case.)
    """
    masked = scores.detach().float().masked_fill(same, float("-inf"))
    hopeless = same.all(dim=1)
    others = torch.zeros_like(masked).fill_diagonal_(float("-inf"))
    masked = torch.where(hopeless[:, None], others, masked)
    return torch.multinomial(masked.softmax(dim=1), 1)[:, 0]


def match_loss(logits: Tensor) -> Tensor:
    """Cross-entropy over logits [3 b, 2]: b pairs that match, then 2 b pairs that do not.

    The matching third weighs as much as the other two together, so always answering "no" gains nothing.
    """
    positives = len(logits) // 3
    yes = F.cross_entropy(logits[:positives], logits.new_ones(positives, dtype=torch.int64))
    no = F.cross_entropy(logits[positives:], logits.new_zeros(len(logits) - positives, dtype=torch.int64))
    return (yes + no) / 2


def tag_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Word detection by multiple-instance learning: the loss summed over t tags and averaged over b images.

    ``logits`` [b, n, t] say for each of n image tokens whether it shows a tag; ``present`` [b, t] (0 or 1) says whether
    the image's captions contain it. An image shows a tag if any token does, as a noisy or: 1 - prod_n (1 - p_n). So
    each token learns what it covers although the captions do not say where things are. Source: Fang et al., 2015, "From
    captions to visual concepts and back", section 3.
    """
    none = F.logsigmoid(-logits.float()).sum(dim=1).clamp(max=-1e-6)  # log of prod_n (1 - p_n), [b, t]
    any_ = torch.log(-torch.expm1(none)) - none  # the logit of 1 - exp(none)
    return F.binary_cross_entropy_with_logits(any_, present.float(), reduction="none").sum(dim=1).mean()


def mask_words(
    ids: Tensor, maskable: Tensor, *, rate: float, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide words of int64 ``ids`` [b, s]; return the ids with ``mask_id`` in their place, and bool [b, s] of what was
    hidden.

    Each word whose entry in bool ``maskable`` [vocabulary] is true is hidden with probability ``rate``, and at least
    one word of each text that has any. All of them become [MASK]. BERT's 10 % random and 10 % kept words (Devlin et
    al., 2019) gain nothing at higher rates, and hiding a third beats 15 % (Wettig et al., 2023).
    """
    candidates = maskable[ids]
    draw = torch.rand(ids.shape, generator=generator)
    hidden = (draw < rate) & candidates
    first = draw.masked_fill(~candidates, 2.0).argmin(dim=1)
    rows = torch.arange(len(ids))
    hidden[rows, first] |= candidates[rows, first]
    return ids.masked_fill(hidden, mask_id), hidden


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy over logits [b, c] and the single right answer int64 [b].

    Every question of `shapes` has exactly one answer, so the answers compete. Binary cross-entropy on soft scores, as
    for VQAv2's ten annotators, would spend most of its gradient on pushing 22 zeros down.
    """
    return F.cross_entropy(logits.float(), answers)


def soft_answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Binary cross-entropy of logits [b, c] with scores [b, c] in [0, 1], summed over answers, averaged over questions.

    For questions with several answers that are partly right. Source: Teney et al., 2018, section 3.3.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="none").sum(dim=1).mean()
