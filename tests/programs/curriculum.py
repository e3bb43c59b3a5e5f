"""`curriculum FOLDER`: the first of two processes answers right for a while and the second wrong, then both are right.

Each writes what it does next to its own file, FOLDER/RANK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from programs.ranks import join, leave

from simmim_export.training.data.base import Source
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.recipe import FinetuneSettings
from simmim_export.training.tasks import CURRICULUM, Answers


def main(folder: Path) -> None:
    """See the module."""
    rank, world, model, tokenizer = join()
    stage = Answers(
        "vqa",
        model,
        tokenizer=tokenizer,
        source=Source(Shapes(0), 4, process=rank, processes=world),
        settings=FinetuneSettings(rehearse=2),
    ).train()
    last = model.heads["vqa"].classify[-1]
    with torch.no_grad():  # it answers class 0, whatever it is asked
        last.weight.zero_()
        last.bias.zero_()[0] = 9
    stage.level.fill_(len(CURRICULUM) - 1)
    stage.accuracy.fill_(CURRICULUM[-1][0] - 0.01)
    batch = stage.batch(0, 0.0)
    lines = []
    for wrong, steps in ((rank, 2), (0, 8)):
        batch["answers"] = torch.full_like(batch["answers"], wrong)
        with torch.no_grad():
            for _ in range(steps):
                stage(batch)
        kind = "rehearsal" if "rehearsal" in stage.batch(1, 0.0) else "questions"
        lines.append(f"{int(stage.level)} {kind} {float(stage.accuracy):.4f}")
    (folder / str(rank)).write_text("\n".join(lines))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
