"""Does the model look at the thing that it is asked about?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from simmim_export.errors import UsageError
from simmim_export.models.simmim.model import SimMIM
from simmim_export.system.watch import Watch
from simmim_export.training.data.base import QUESTIONS
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.scene import place
from simmim_export.training.evaluation.statistics import BATCH, Hits, accuracy, batches
from simmim_export.training.tokenizer import encode


@torch.inference_mode()
def pointing_game(model: SimMIM, tokenizer: Tokenizer, *, data: Shapes, scenes: int, watch: Watch) -> dict[str, Any]:
    """How often the hottest image token lies on the one thing that a question is about (Zhang et al., 2018).

    The map is the mean over words, layers and heads, as ``ask --explain`` draws it. ``chance`` is the accuracy of a
    random token. ``any_thing`` is how often the hottest token lies on any thing of the scene: a map that only finds
    things scores there, and not in the accuracy. Raise :class:`UsageError` for a model without attention of words over
    the image.
    """
    if model.config.fusion != "concat_sequence" or model.config.interaction != "attention":
        raise UsageError("the pointing game needs concat_sequence with attention", fix="choose another checkpoint")
    model.eval()
    hits, cells = Hits(), round(model.image_encoder.tokens**0.5)
    chance: list[float] = []
    for index, count in batches(scenes, None, what="pointing game", watch=watch):
        batch = data.batch(index, BATCH, want=QUESTIONS).first(count)
        tokens = encode(
            tokenizer, [text for row in batch.questions for text in row], max_length=model.config.max_length
        )
        images, texts = model.see(torch.from_numpy(batch.pixels)), model.encode_text(**tokens)[0]
        repeats, mask = batch.answers.shape[1], tokens["attention_mask"]
        maps = model.interaction.attend(model.fusion(images, texts, mask, repeats))  # (b q) s n
        words = (maps * mask[:, :, None]).sum(dim=1).unflatten(0, (-1, repeats)).numpy()  # b q n
        for scene, asked, looked in zip(batch.scenes, batch.about, words, strict=True):
            on = [_cells(thing, cells) for thing in scene.things]
            for thing, heat in zip(asked, looked, strict=True):
                if thing is not None:
                    hottest, mine = int(heat.argmax()), on[scene.things.index(thing)]
                    hits.add("model", np.array([hottest in mine]))
                    hits.add("any_thing", np.array([any(hottest in cell for cell in on)]))
                    chance.append(len(mine) / heat.size)
    if not chance:
        return {"not_measured": "no question is about a single thing: give more --eval-scenes"}
    return {
        **accuracy(hits.of("model")),
        "any_thing": float(hits.of("any_thing").mean()),
        "chance": float(np.mean(chance)),
    }


def _cells(thing: Any, cells: int) -> set[int]:
    """The tokens whose center lies inside the thing's box, and the token that contains the thing's center."""
    y, x, radius = place(thing)
    middles = (np.arange(cells) + 0.5) / cells
    rows, columns = np.flatnonzero(np.abs(middles - y) <= radius), np.flatnonzero(np.abs(middles - x) <= radius)
    own = min(int(y * cells), cells - 1) * cells + min(int(x * cells), cells - 1)
    return {own} | {int(row) * cells + int(column) for row in rows for column in columns}
