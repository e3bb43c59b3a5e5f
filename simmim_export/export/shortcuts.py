"""Warns of heads that may answer without looking at their input."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from simmim_export.console.metrics import control_accuracies
from simmim_export.errors import ShortcutLearned

# The least gap, as a share, between a head and its best blind control. A head below it has learned the questions and not the
# images.
LEAST_GAP = 0.05
# What a head may ignore if it is hardly better than this control. For any other control: its input.
_UNUSED = {
    "question_only": "its image",
    "shuffled_image": "its image",
    "image_only": "its text",
    "shuffled_frames": "the order of the frames",
    "single_frame": "more than one frame",
}


def warn_of_shortcuts(metrics: Mapping[str, Any]) -> None:
    """Warn with :class:`ShortcutLearned` of every head that is less than :data:`LEAST_GAP` above its best blind control.

    Controls that could not be measured on the data are left out. A control that was measured on some of the questions is compared
    with the model's accuracy on those.
    """
    for name, figure in metrics.items():
        if "accuracy" not in figure:
            continue
        blind = control_accuracies(figure)
        gaps = {key: figure["controls"][key].get("model", figure["accuracy"]) - value for key, value in blind.items()}
        closest = min(gaps, key=gaps.__getitem__, default=None)
        if closest is not None and gaps[closest] < LEAST_GAP:
            accuracy, unused = blind[closest] + gaps[closest], _UNUSED.get(closest, "its input")
            what = f"{accuracy:.1%} correct, and {blind[closest]:.1%} by {closest.replace('_', ' ')}"
            warnings.warn(f"{name}: {what}: it may not look at {unused}", ShortcutLearned, stacklevel=3)
