"""What a checkpoint reached on held-out data, as a table. Knows the form of its metrics; must not know how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simmim_export.console import stdout_console

if TYPE_CHECKING:
    from rich.table import Table


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Every figure beside its controls."""
    from rich.table import Table

    table = Table(title="held-out data; 95 % intervals")
    for column in ("task", "figure", "interval", "n", "controls"):
        table.add_column(column, justify="left" if column in ("task", "controls") else "right")
    for task, found in metrics.items():
        if "accuracy" in found:
            _add_accuracy(table, task, found)
        elif "text_to_image" in found:
            _add_recall(table, task, found)
        else:
            table.add_row(
                task, "untrained" if "untrained" in found else "not measured", "", "", found.get("not_measured")
            )
    stdout_console().print(table)


def control_accuracies(found: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy in [0, 1] of each control of a figure; what is not measurable on the data is left out."""
    return {name: row["accuracy"] for name, row in found.get("controls", {}).items() if "accuracy" in row}


def _add_accuracy(table: Table, task: str, found: Mapping[str, Any]) -> None:
    controls = control_accuracies(found) | {name: found[name] for name in ("chance", "any_thing") if name in found}
    shown = [f"{name} {value:.1%}" for name, value in controls.items()]
    missing = {
        name: row["not_measurable"] for name, row in found.get("controls", {}).items() if "not_measurable" in row
    }
    shown += [f"{name} not measurable ({reason})" for name, reason in missing.items()]
    table.add_row(task, *_figures(found), ", ".join(shown).replace("_", " "))
    for family, figure in found.get("by_family", {}).items():
        table.add_row(f"  {family}", *_figures(figure))
    recall = found.get("text_to_image_recall_at_1")
    if recall:
        oracle = f", a perfect model {recall['oracle']:.1%}" if "oracle" in recall else ""
        chance = f"chance {recall['chance']:.1%}{oracle}"
        table.add_row(f"  text to image R@1 of {recall['among']}", *_figures(recall), chance)


def _add_recall(table: Table, task: str, found: Mapping[str, Any]) -> None:
    table.add_row(task, "", "", "", f"{found['captions']} captions of {found['images']} images")
    for way in ("text_to_image", "image_to_text"):
        row = found[way]
        oracle = f", a perfect model {row['oracle']:.1%}" if "oracle" in row else ""
        for stage in ("embeddings", "reranked"):
            for cut, figure in row[stage].items():
                controls = f"chance {row['chance']:.1%}{oracle}" if cut.endswith("_1") else ""
                table.add_row(f"  {way} {stage} {cut}".replace("_", " "), *_figures(figure), controls)


def _figures(found: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = found["interval"]
    return f"{found['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", str(found["n"])
