"""The section of docs/results.md about emoji, whose figures :mod:`simmim_export.training.emoji_results` measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# The key in results.json: these figures need data that `make results` does not have.
EMOJI = "emoji"
_TEXT = """## Emoji: real images and real words

MiniLM's text encoder (all-MiniLM-L6-v2) with its published weights, frozen, and a {encoder} from random weights, trained on Noto
and Twemoji: {stages}.
OpenMoji and a tenth of the emoji were kept out of training
([the data](training.md#emoji-emoji-in-three-open-styles-with-their-names)). The search is by an emoji's name, among all images
of the row. Intervals are 95 % (Wilson). `make results` does not repeat this, because it needs the packages;
`python -P -m simmim_export.training.emoji_results ckpt.pt data` measures a checkpoint.

"""


def emoji_section(
    results: Mapping[str, Any], table: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]
) -> list[str]:
    """The lines of the section; none if nothing was measured. ``table`` makes the lines of a table from header and rows."""
    if EMOJI not in results:
        return []
    metrics = results[EMOJI]["metrics"]
    stages = [
        f"{stage['stage']} for {stage['seconds'] / 60:.0f} minutes ({stage['samples']:,} images of {stage['image_size']} pixels)"
        for stage in metrics["stages"]
    ]
    rows = []
    for row in metrics["rows"]:
        seen = ["seen" if row[f"seen_{name}"] else "not seen" for name in ("style", "emoji")]
        controls = [control["recall_at_5"]["accuracy"] for control in row["controls"].values()]
        guesses = [f"{figure:.1%}" for figure in (row["chance"]["recall_at_5"], *controls)]
        found = [_shown(row[f"recall_at_{cut}"]) for cut in (1, 5)]
        rows.append([row["style"], *seen, str(row["images"]), *found, *guesses])
    names = [f"R@5 {name}" for name in ("chance", *metrics["rows"][0]["controls"])]
    lines = _TEXT.format(encoder=metrics["image_encoder"], stages=", ".join(stages)).splitlines()
    return lines + table(["images", "style", "emoji", "among", "R@1", "R@5", *names], rows)


def _shown(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['accuracy']:.1%} ({low:.1%} to {high:.1%})"
