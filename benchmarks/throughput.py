"""How fast training is: samples a second for each preset, and how that grows with images and questions in a batch.

Each figure comes from one run of the training command in a process of its own; its checkpoint records samples and seconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_export.system.children import our_command, run
from simmim_export.system.host import available_threads
from simmim_export.system.watch import Watch

# preset -> (images in a batch, steps). Larger presets get fewer of both, so that a figure takes a minute at most.
SIZES = {"tiny": (32, 40), "small": (8, 6), "base": (4, 3), "large": (4, 3)}
# How preset tiny grows: images in a batch with 8 questions each, then questions per image in a batch of 16.
IMAGES, QUESTIONS = (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One training, and the table that its figure is for."""

    table: str
    preset: str
    stage: str
    images: int
    steps: int
    questions: int = 8

    def measure(self) -> tuple[float, float]:
        """(samples a second, seconds a step) of the training alone, without loading and evaluation."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "ckpt"
            words = ["--preset", self.preset, "--steps", self.steps, "-o", output]
            words += ["--batch-size", self.images, "--eval-scenes", 0]
            if self.stage == "finetune":
                words += ["--questions", self.questions, "--rehearse", 0]
            run(our_command("simmim-train", self.stage, *words)).output()
            record = json.loads((output / "checkpoint.json").read_text(encoding="utf-8"))["provenance"]
        return record["samples"] / record["seconds"], record["seconds"] / record["steps"]


def throughput(presets: Sequence[str], watch: Watch) -> dict[str, Any]:
    """``threads``, and ``rows`` of three tables: ``presets`` (images a second in pretrain, questions a second in finetune),
    and questions a second of preset tiny as a batch gets more ``images`` or more ``questions``."""
    runs = [
        _Run(table="presets", preset=preset, stage=stage, images=SIZES[preset][0], steps=SIZES[preset][1])
        for preset in presets
        for stage in ("pretrain", "finetune")
    ]
    runs += [_Run(table="images", preset="tiny", stage="finetune", images=images, steps=40) for images in IMAGES]
    runs += [
        _Run(table="questions", preset="tiny", stage="finetune", images=16, steps=40, questions=questions)
        for questions in QUESTIONS
    ]
    rows = []
    for index, one in enumerate(runs):
        watch(f"{one.preset} {one.stage}, {one.images} images", index, len(runs))
        rate, seconds = one.measure()
        row = asdict(one)
        del row["steps"]
        rows.append(row | {"samples_per_second": rate, "seconds_per_step": seconds})
    return {"threads": available_threads(), "rows": rows}
