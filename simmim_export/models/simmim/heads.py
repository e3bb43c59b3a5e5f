"""Task heads: they read the fused vector, or the image tokens.

A head is a row of ``HEADS``; its number of classes comes from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.spec import Verb


class LinearHead(nn.Module):
    """fused [b, D] to logits [b, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)

    def forward(self, fused: Tensor) -> Tensor:
        return self.classify(fused)


class HiddenHead(nn.Module):
    """fused [b, D] to logits [b, classes], through one hidden layer of 2 D."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, classes))

    def forward(self, fused: Tensor) -> Tensor:
        return self.classify(fused)


class PooledHead(nn.Module):
    """image_tokens [b, n, D] to logits [b, classes]: a hidden layer at every token, then their mean.

    The layer comes before the mean, so that a token can combine its content with its place.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, image_tokens: Tensor) -> Tensor:
        return self.classify(self.token(image_tokens).mean(dim=1))


@dataclass(frozen=True)
class HeadRow:
    """A head: its module, the tensor it reads, the pipeline that ends in it and its verb, and whether it takes clips."""

    module: type[nn.Module]
    _: KW_ONLY
    reads: str
    pipeline: str
    verb: Verb
    video: bool = False


HEADS: Mapping[str, HeadRow] = {
    "match": HeadRow(LinearHead, reads="fused", pipeline="match", verb=Verb.MATCH),
    "vqa": HeadRow(HiddenHead, reads="fused", pipeline="answer", verb=Verb.ANSWER),
    "text_class": HeadRow(HiddenHead, reads="fused", pipeline="classify_text", verb=Verb.CLASSIFY_TEXT),
    "image_class": HeadRow(PooledHead, reads="image_tokens", pipeline="classify_image", verb=Verb.CLASSIFY),
    "video_class": HeadRow(PooledHead, reads="image_tokens", pipeline="classify_video", verb=Verb.CLASSIFY, video=True),
    "video_qa": HeadRow(HiddenHead, reads="fused", pipeline="answer_video", verb=Verb.ANSWER, video=True),
}


def head(name: str, width: int, classes: int) -> nn.Module:
    """The head called ``name``. Raise :class:`UsageError`, naming the choices, for another name."""
    if name not in HEADS:
        raise UsageError(f"unknown head {name!r}", fix=f"choose one of {', '.join(HEADS)}")
    return HEADS[name].module(width, classes)
