"""Pretraining: objectives over images and their captions, mixed by weights.

Knows a model, captions, and what each objective adds to the model while it trains (a head that no graph needs). Must not
know optimisation. Shapes: b images, n image tokens, s text tokens, k captions an image, t phrases, D width.
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
from simmim_export.training.data.base import CAPTIONS
from simmim_export.training.objectives import (
    contrastive_loss,
    hard_negatives,
    mask_words,
    match_loss,
    similarities,
    tag_loss,
)
from simmim_export.training.options import COMPARING, objective_weights, require_pairs
from simmim_export.training.processes import gather, mean_of_all
from simmim_export.training.source import Source
from simmim_export.training.tokenizer import encode

Batch = Mapping[str, Tensor]


def identity(text: str) -> int:
    """63 bits of the text's SHA-256: the same in every process, unlike Python's own hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Seen(NamedTuple):
    """What the towers made of a batch: the images, and a caption of each where an objective compares whole captions."""

    image_tokens: Tensor  # [b, n, D]
    image_embed: Tensor  # [b, E]
    text_tokens: Tensor | None  # [b, s, D]
    text_embed: Tensor | None  # [b, E]


class Objective(nn.Module):
    """One way to learn from images and captions."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source) -> None:
        super().__init__()

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """What this objective adds to batch number ``index``, from the captions of each image, on the CPU."""
        return {}

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """A scalar."""
        raise NotImplementedError


def alike(images: Tensor, captions: Tensor) -> Tensor:
    """bool [b, b]: whether caption j is one of image i, from the ids of both, int64 [b]: it is if i's own caption is equal to
    it, or if j is the same image, which a batch may hold twice with two captions."""
    return (images[:, None] == images) | (captions[:, None] == captions)


class Itc(Objective):
    """Contrast: an image is closer to its own caption than to the others', and the other way round."""

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """Symmetric InfoNCE over the batches of all processes; see :func:`alike` for what is a positive."""
        assert seen.text_embed is not None
        image, text = gather(seen.image_embed), gather(seen.text_embed)
        same = alike(gather(batch["image_ids"]), gather(batch["caption_ids"]))
        return contrastive_loss(similarities(image, text, model.logit_scale), same)


class Itm(Objective):
    """Match: does this caption belong to this image? Against the others that the towers find most alike."""

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """Cross-entropy of b pairs that match and 2 b that do not, these drawn from the batch of this process."""
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
    """Masked language modelling, conditioned on the image: which word is hidden here?

    Of every image as many captions as the one that has the fewest: all of `shapes`, in turn of a data set in which they
    differ.
    """

    RATE = 0.3

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source) -> None:
        """Raise :class:`UsageError` for a tokenizer without [MASK], or a fusion that keeps no row a word."""
        super().__init__(model, tokenizer, source)
        if not model.fusion.keeps_words:
            what = f"the fusion {model.config.fusion} keeps no row a word, so none can be filled in"
            raise UsageError(
                what, fix="use --mlm 0, or start from simmim-train init --fusion concat_sequence -o NEW.pt"
            )
        self.tokenizer, self.max_length = tokenizer, model.config.max_length
        mask_id = tokenizer.token_to_id("[MASK]")
        if mask_id is None:
            raise UsageError("the tokenizer has no [MASK], which masked language modelling needs", fix="use --mlm 0")
        self.mask_id = mask_id
        size = int(model.config.text["vocab_size"])
        words = [tokenizer.token_to_id(word) for word in source.data.visual_words()]
        self.maskable = torch.zeros(size, dtype=torch.bool)
        self.maskable[[word for word in words if word is not None]] = True
        self.predict = nn.Linear(model.config.width, size)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """masked_ids, masked_attention int64 [b k, s], k captions of each image one after the other; hidden bool [b k, s];
        hidden_words int64, one for each true one."""
        each = min(map(len, captions))
        chosen = [own[(index + row + turn) % len(own)] for row, own in enumerate(captions) for turn in range(each)]
        tokens = encode(self.tokenizer, chosen, self.max_length)
        random = torch.Generator().manual_seed(index)
        ids, hidden = mask_words(tokens["input_ids"], self.maskable, self.RATE, self.mask_id, random)
        words = tokens["input_ids"][hidden]
        return {
            "masked_ids": ids,
            "masked_attention": tokens["attention_mask"],
            "hidden": hidden,
            "hidden_words": words,
        }

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """Cross-entropy over the vocabulary, averaged over the hidden words of all processes."""
        ids, mask = batch["masked_ids"], batch["masked_attention"]
        text_tokens, _ = model.encode_text(ids, mask)
        repeats = len(ids) // len(seen.image_tokens)
        rows = model.fuse_rows(seen.image_tokens, text_tokens, mask, repeats)
        wanted = batch["hidden_words"]
        total = F.cross_entropy(self.predict(rows[batch["hidden"]]).float(), wanted, reduction="sum")
        return mean_of_all(total, len(wanted))


class Tags(Objective):
    """Word detection: every image token says which phrases of the captions it shows, learned without knowing where."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source) -> None:
        super().__init__(model, tokenizer, source)
        self.phrases = {phrase: index for index, phrase in enumerate(source.data.phrases())}
        self.detect = nn.Linear(model.config.width, len(self.phrases))
        # A token shows few phrases: start near 2 % rather than at a half, or the first steps are spent on saying no.
        nn.init.constant_(self.detect.bias, -4.0)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """present, float32 [b, t]: 1 where a caption of the image holds the phrase."""
        present = torch.zeros(len(captions), len(self.phrases))
        for row, texts in enumerate(captions):
            for text in texts:
                words = re.findall(r"\w+", text.lower())
                pairs = [f"{a} {b}" for a, b in pairwise(words)]
                present[row, [self.phrases[phrase] for phrase in (*words, *pairs) if phrase in self.phrases]] = 1
        return {"present": present}

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """Noisy-or of the tokens; see :func:`tag_loss`."""
        return tag_loss(self.detect(seen.image_tokens), batch["present"])


class Mim(Objective):
    """Masked image modelling: hidden patches are painted again, from what surrounds them.

    A patch is one image token (32 pixels of a ResNet), 60 % are hidden behind a learned colour, a 1x1 convolution and a
    pixel shuffle paint, L1 on hidden pixels alone. Batch norm keeps its statistics: those of pictures full of holes are
    not those of pictures. Source: Xie et al., 2022, "SimMIM".
    """

    RATIO = 0.6

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source) -> None:
        super().__init__(model, tokenizer, source)
        self.patch = int(model.image_encoder.trunk.stride)
        self.side = round(model.image_encoder.tokens**0.5)
        if model.config.image_size % self.patch:
            what = f"images of {model.config.image_size} pixels are no whole number of patches of {self.patch}"
            raise UsageError(what, fix="use --mim 0")
        self.colour = nn.Parameter(torch.zeros(3))  # in units of the normalised picture
        self.paint = nn.Conv2d(model.config.width, 3 * self.patch**2, 1)

    def prepare(self, captions: Sequence[Sequence[str]], index: int) -> dict[str, Tensor]:
        """holes, bool [b, side, side]: the same number in every image."""
        random = torch.Generator().manual_seed(index)
        count = round(self.RATIO * self.side**2)
        order = torch.rand(len(captions), self.side**2, generator=random).argsort(dim=1)
        return {"holes": (order < count).view(-1, self.side, self.side)}

    def loss(self, model: SimMIM, batch: Batch, seen: Seen) -> Tensor:
        """Mean |difference| of hidden pixels, in units of the normalised picture."""
        encoder = model.image_encoder
        hidden = batch["holes"].repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)[:, None]  # b 1 H W
        wanted = batch["pixels"].permute(0, 3, 1, 2).to(encoder.scale.dtype) * encoder.scale + encoder.shift
        masked = torch.where(hidden, self.colour.view(1, 3, 1, 1), wanted)
        with frozen_statistics(encoder):
            tokens, _ = encoder(((masked - encoder.shift) / encoder.scale).permute(0, 2, 3, 1))
        grid = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        painted = F.pixel_shuffle(self.paint(grid), self.patch)
        return ((painted - wanted).abs() * hidden).sum() / (3 * hidden.sum())


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside use and keep the statistics they have."""
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
    """The weighted sum of some objectives; each image, and each caption that is compared, is encoded once for all."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source, weights: Mapping[str, float]) -> None:
        """Raise :class:`UsageError` for a batch of 1 where captions are compared, no or an unknown objective, a bad weight."""
        super().__init__()
        self.weights = objective_weights(weights)
        require_pairs(self.weights, source.images)
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.objectives = nn.ModuleDict({name: OBJECTIVES[name](model, tokenizer, source) for name in self.weights})
        self.compares = bool(COMPARING & set(self.weights))
        limit = source.data.limit("captions") if self.compares else None
        if limit is not None and limit < 2:
            what = f"itc and itm need 2 images or more, and there is {limit} with captions"
            raise UsageError(
                what, fix="give more; or train without them: pretrain --itc 0 --itm 0, finetune --rehearse 0"
            )

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels uint8 [b, H, W, 3]; where captions are compared input_ids, attention_mask [b, s], a caption each in turn,
        and image_ids, caption_ids int64 [b], the same for the same image and for equal captions; and what each objective
        adds."""
        found = self.source.data.batch(self.source.number(index), self.source.images, CAPTIONS)
        batch: dict[str, Any] = {"pixels": torch.from_numpy(found.pixels)}
        if self.compares:
            texts = [captions[(index + row) % len(captions)] for row, captions in enumerate(found.captions)]
            batch |= encode(self.tokenizer, texts, self.model.config.max_length)
            batch["image_ids"] = torch.tensor([identity(key) for key in found.keys])
            batch["caption_ids"] = torch.tensor([identity(text) for text in texts])
        for name in self.weights:
            batch |= self._objective(name).prepare(found.captions, self.source.number(index))
        return batch

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Images in a batch."""
        return len(batch["pixels"])

    def forward(self, batch: Batch) -> Tensor:
        """The weighted sum of the objectives' losses."""
        model = self.model
        image_tokens, image_embed = model.encode_image(batch["pixels"])
        seen = Seen(image_tokens, image_embed, None, None)
        if self.compares:
            text_tokens, text_embed = model.encode_text(batch["input_ids"], batch["attention_mask"])
            seen = Seen(image_tokens, image_embed, text_tokens, text_embed)
        losses = [weight * self._objective(name).loss(model, batch, seen) for name, weight in self.weights.items()]
        return torch.stack(losses).sum()

    def _objective(self, name: str) -> Objective:
        found = self.objectives[name]
        assert isinstance(found, Objective)
        return found
