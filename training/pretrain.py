"""Pretraining: a weighted mixture of objectives over images and their captions.

Each objective may add a head to the model while it trains; no exported graph contains it. Shapes: b images, n image
tokens, s text tokens, k captions per image, t phrases, D width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.checks import objective_weights, require_pairs
from simmim_export.training.data.base import CAPTIONS, Source
from simmim_export.training.objectives import (
    contrastive_loss,
    hard_negatives,
    mask_words,
    match_loss,
    similarities,
    tag_loss,
)
from simmim_export.training.options import COMPARING
from simmim_export.training.processes import gather, mean_of_all
from simmim_export.training.tokenizer import encode

Batch = Mapping[str, Tensor]


def identity(text: str) -> int:
    """63 bits of the text's SHA-256; unlike Python's hash, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Seen(NamedTuple):
    """What the encoders made of a batch: the images, and one caption each if an objective compares captions."""

    image_tokens: Tensor  # [b, n, D]
    image_embed: Tensor  # [b, E]
    text_tokens: Tensor | None  # [b, s, D]
    text_embed: Tensor | None  # [b, E]


class Objective(nn.Module):
    """One way to learn from images and captions."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, *, source: Source) -> None:
        super().__init__()

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """What this objective adds to batch number ``index``, on the CPU, from the captions of each image."""
        return {}

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError


def alike(images: Tensor, captions: Tensor) -> Tensor:
    """bool [b, b]: whether caption j describes image i, from the ids of both, int64 [b]. It does if it equals i's own
    caption, or if j is the same image: a batch may contain an image twice with two captions."""
    return (images[:, None] == images) | (captions[:, None] == captions)


class Itc(Objective):
    """Contrast: an image is closer to its own caption than to others, and a caption to its own image."""

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """Symmetric InfoNCE over the batches of all processes; :func:`alike` says which pairs are positives."""
        assert seen.text_embed is not None
        image, text = gather(seen.image_embed), gather(seen.text_embed)
        same = alike(gather(batch["image_ids"]), gather(batch["caption_ids"]))
        return contrastive_loss(similarities(image, text, model.logit_scale), same)


class Itm(Objective):
    """Matching: does this caption belong to this image? The wrong ones are those that the encoders find most similar."""

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """Cross-entropy of b pairs that match and 2 b that do not, drawn from the batch of this process."""
        assert seen.text_embed is not None and seen.text_tokens is not None
        image, text, mask = seen.image_tokens, seen.text_tokens, batch["attention_mask"]
        scores = similarities(seen.image_embed, seen.text_embed, model.logit_scale)
        same = alike(batch["image_ids"], batch["caption_ids"])
        other_text, other_image = hard_negatives(scores, same), hard_negatives(scores.T, same)
        fused = model.fuse(
            torch.cat([image, image, image[other_image]]),
            torch.cat([text, text[other_text], text]),
            torch.cat([mask, mask[other_text], mask]),
        )
        return match_loss(model.classify("match", fused))


class Mlm(Objective):
    """Masked language modeling with the image as context: which word is hidden here?

    Each image gives as many captions as the image with the fewest: all of `shapes`, and in turn if a data set has
    different numbers.
    """

    RATE = 0.3

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, *, source: Source) -> None:
        """Raise :class:`UsageError` for a tokenizer without [MASK], or a fusion that does not keep a row for each word."""
        super().__init__(model, tokenizer, source=source)
        if not model.fusion.keeps_words:
            what = f"the fusion {model.config.fusion} does not keep words apart, so mlm cannot fill them in"
            raise UsageError(
                what, fix="use --mlm 0, or start from simmim-train init --fusion concat_sequence -o NEW.pt"
            )
        self.tokenizer, self.max_length = tokenizer, model.config.max_length
        mask_id = tokenizer.token_to_id("[MASK]")
        if mask_id is None:
            raise UsageError("the tokenizer has no [MASK], which masked language modeling needs", fix="use --mlm 0")
        self.mask_id = mask_id
        size = int(model.config.text["vocab_size"])
        words = [tokenizer.token_to_id(word) for word in source.data.visual_words()]
        self.maskable = torch.zeros(size, dtype=torch.bool)
        self.maskable[[word for word in words if word is not None]] = True
        self.predict = nn.Linear(model.config.width, size)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """masked_ids and masked_attention int64 [b k, s], k captions of each image one after the other; hidden bool [b
        k, s]; hidden_words int64, one for each hidden position."""
        each = min(map(len, captions))
        chosen = [own[(index + row + turn) % len(own)] for row, own in enumerate(captions) for turn in range(each)]
        tokens = encode(self.tokenizer, chosen, max_length=self.max_length)
        random = torch.Generator().manual_seed(index)
        ids, hidden = mask_words(
            tokens["input_ids"], self.maskable, rate=self.RATE, mask_id=self.mask_id, generator=random
        )
        words = tokens["input_ids"][hidden]
        return {
            "masked_ids": ids,
            "masked_attention": tokens["attention_mask"],
            "hidden": hidden,
            "hidden_words": words,
        }

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """Cross-entropy over the vocabulary, averaged over the hidden words of all processes."""
        ids, mask = batch["masked_ids"], batch["masked_attention"]
        text_tokens, _ = model.encode_text(ids, mask)
        repeats = len(ids) // len(seen.image_tokens)
        rows = model.fuse_rows(seen.image_tokens, text_tokens, mask, repeats)
        wanted = batch["hidden_words"]
        total = F.cross_entropy(self.predict(rows[batch["hidden"]]).float(), wanted, reduction="sum")
        return mean_of_all(total, len(wanted))


class Tags(Objective):
    """Word detection: every image token says which phrases of the captions it shows. Nothing says where they are; that
    is learned."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, *, source: Source) -> None:
        super().__init__(model, tokenizer, source=source)
        self.phrases = {phrase: index for index, phrase in enumerate(source.data.phrases())}
        self.detect = nn.Linear(model.config.width, len(self.phrases))
        # A token shows few phrases, so start near 2 %; from a half, the first steps would only learn to say no.
        nn.init.constant_(self.detect.bias, -4.0)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """present, float32 [b, t]: 1 if a caption of the image contains the phrase."""
        present = torch.zeros(len(captions), len(self.phrases))
        for row, texts in enumerate(captions):
            for text in texts:
                words = re.findall(r"\w+", text.lower())
                pairs = [f"{a} {b}" for a, b in pairwise(words)]
                present[row, [self.phrases[phrase] for phrase in (*words, *pairs) if phrase in self.phrases]] = 1
        return {"present": present}

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """A noisy or over the tokens; see :func:`tag_loss`."""
        return tag_loss(self.detect(seen.image_tokens), batch["present"])


class Mim(Objective):
    """Masked image modeling: hidden patches are painted from their surroundings.

    A patch is one image token (32 pixels of a ResNet). 60 % are hidden behind a learned color; a 1x1 convolution and a
    pixel shuffle paint; the loss is L1 on hidden pixels only. Batch norm does not update its statistics here, because
    pictures full of holes have others. Source: Xie et al., 2022, "SimMIM".
    """

    RATIO = 0.6

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, *, source: Source) -> None:
        super().__init__(model, tokenizer, source=source)
        self.patch = int(model.image_encoder.trunk.stride)
        self.side = round(model.image_encoder.tokens**0.5)
        if model.config.image_size % self.patch:
            what = (
                f"images of {model.config.image_size} pixels are not a whole number of patches of {self.patch} pixels"
            )
            raise UsageError(what, fix="use --mim 0")
        self.color = nn.Parameter(torch.zeros(3))  # in units of the normalized picture
        self.paint = nn.Conv2d(model.config.width, 3 * self.patch**2, 1)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """holes, bool [b, side, side]: the same number in every image."""
        random = torch.Generator().manual_seed(index)
        count = round(self.RATIO * self.side**2)
        order = torch.rand(len(captions), self.side**2, generator=random).argsort(dim=1)
        return {"holes": (order < count).view(-1, self.side, self.side)}

    def loss(self, model: SimMIM, batch: Batch, *, seen: Seen) -> Tensor:
        """Mean absolute difference of hidden pixels, in units of the normalized picture."""
        encoder = model.image_encoder
        hidden = batch["holes"].repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)[:, None]  # b 1 H W
        wanted = batch["pixels"].permute(0, 3, 1, 2).to(encoder.scale.dtype) * encoder.scale + encoder.shift
        masked = torch.where(hidden, self.color.view(1, 3, 1, 1), wanted)
        with frozen_statistics(encoder):
            tokens, _ = encoder(((masked - encoder.shift) / encoder.scale).permute(0, 2, 3, 1))
        grid = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        painted = F.pixel_shuffle(self.paint(grid), self.patch)
        return ((painted - wanted).abs() * hidden).sum() / (3 * hidden.sum())


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """A block in which batch norms use their statistics and do not update them."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


OBJECTIVES: Mapping[str, type[Objective]] = {"itc": Itc, "itm": Itm, "mlm": Mlm, "tags": Tags, "mim": Mim}


class Pretrain(nn.Module):
    """The weighted sum of several objectives. Each image, and each caption that is compared, is encoded once for all of
    them."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, *, source: Source, weights: Mapping[str, float]) -> None:
        """Raise :class:`UsageError` for an unknown objective, a bad weight, no objective, or a batch of 1 if captions
        are compared."""
        super().__init__()
        self.weights = objective_weights(weights)
        require_pairs(self.weights, source.images)
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](model, tokenizer, source=source) for name in self.weights}
        )
        self.compares = bool(COMPARING & set(self.weights))
        limit = source.data.limit("captions") if self.compares else None
        if limit is not None and limit < 2:
            what = f"itc and itm need 2 images or more with captions, and the data have {limit}"
            raise UsageError(
                what, fix="give more; or train without them: pretrain --itc 0 --itm 0, finetune --rehearse 0"
            )

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels uint8 [b, H, W, 3], and what each objective adds.

        If captions are compared: input_ids and attention_mask [b, s] of one caption each, in turn, and image_ids and
        caption_ids int64 [b], which are equal for the same image and for equal captions.
        """
        data = self.source.data.batch(self.source.number(index), self.source.images, want=CAPTIONS)
        batch: dict[str, Any] = {"pixels": torch.from_numpy(data.pixels)}
        if self.compares:
            texts = [captions[(index + row) % len(captions)] for row, captions in enumerate(data.captions)]
            batch |= encode(self.tokenizer, texts, max_length=self.model.config.max_length)
            batch["image_ids"] = torch.tensor([identity(key) for key in data.keys])
            batch["caption_ids"] = torch.tensor([identity(text) for text in texts])
        for name in self.weights:
            batch |= self._objective(name).prepare(data.captions, self.source.number(index))
        return batch

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Number of images in a batch."""
        return len(batch["pixels"])

    def forward(self, batch: Batch) -> Tensor:
        """The weighted sum of the objectives' losses."""
        model = self.model
        image_tokens, image_embed = model.encode_image(batch["pixels"])
        seen = Seen(image_tokens, image_embed, None, None)
        if self.compares:
            text_tokens, text_embed = model.encode_text(batch["input_ids"], batch["attention_mask"])
            seen = Seen(image_tokens, image_embed, text_tokens, text_embed)
        losses = [weight * self._objective(name).loss(model, batch, seen=seen) for name, weight in self.weights.items()]
        return torch.stack(losses).sum()

    def _objective(self, name: str) -> Objective:
        objective = self.objectives[name]
        assert isinstance(objective, Objective)
        return objective
