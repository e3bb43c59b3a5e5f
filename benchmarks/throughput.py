"""How fast training is: samples a second of each preset, and how that grows with images and questions in a batch.

Knows the training command and what its checkpoint records; must not know models. One process a figure.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import commands
from simmim_export.system.host import available_threads

# preset -> (images in a batch, steps): the larger, the fewer, so that a figure takes a minute at most.
SIZES = {"tiny": (32, 40), "small": (8, 6), "base": (4, 3), "large": (4, 3)}
# Growth, of preset tiny: images in a batch with 8 questions each, then questions an image in a batch of 16.
IMAGES, QUESTIONS = (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)

Watch = Callable[[str, int, int], None]


def throughput(presets: Sequence[str], watch: Watch) -> dict[str, Any]:
    """``threads``; ``presets``: for each and each stage images (pretrain) or questions (finetune) a second;
    ``images`` and ``questions``: questions a second of tiny as a batch grows."""
    plan = [("presets", preset, stage, *SIZES[preset], 8) for preset in presets for stage in ("pretrain", "finetune")]
    plan += [("images", "tiny", "finetune", images, 40, 8) for images in IMAGES]
    plan += [("questions", "tiny", "finetune", 16, 40, questions) for questions in QUESTIONS]
    rows = []
    for index, (table, preset, stage, images, steps, questions) in enumerate(plan):
        watch(f"{preset} {stage}, {images} images", index, len(plan))
        rate, seconds = _measure(preset, stage, images, steps, questions)
        rows.append({"table": table, "preset": preset, "stage": stage, "images": images, "questions": questions})
        rows[-1] |= {"samples_per_second": rate, "seconds_per_step": seconds}
    return {"threads": available_threads(), "rows": rows}


def _measure(preset: str, stage: str, images: int, steps: int, questions: int) -> tuple[float, float]:
    """(samples a second, seconds a step) of training alone, loading and evaluation left out."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "ckpt"
        words = [stage, "--preset", preset, "--steps", str(steps), "-o", str(output)]
        words += ["--batch-size", str(images), "--eval-scenes", "0"]
        if stage == "finetune":
            words += ["--questions", str(questions), "--rehearse", "0"]
        commands.run("training.cli", *words)
        found = json.loads((output / "checkpoint.json").read_text(encoding="utf-8"))["provenance"]
    return found["samples"] / found["seconds"], found["seconds"] / found["steps"]
