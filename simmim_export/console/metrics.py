"""The metrics of a checkpoint on held-out data, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simmim_export.console.output import Row, print_table


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print every figure beside its controls."""
    columns = ("task", ">result", ">95 % interval", ">n", "controls")
    print_table("results on held-out data", columns, (row for task in metrics for row in _rows(task, metrics[task])))


def control_accuracies(metric: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy in [0, 1] of each control of a metric, without those that the data cannot measure."""
    return {name: row["accuracy"] for name, row in metric.get("controls", {}).items() if "accuracy" in row}


def _rows(task: str, metric: Mapping[str, Any]) -> Iterator[Row]:
    if "accuracy" in metric:
        yield from _accuracy_rows(task, metric)
    elif "text_to_image" in metric:
        yield from _recall_rows(task, metric)
    else:
        state = "untrained" if "untrained" in metric else "not measured"
        yield task, state, "", "", metric.get("not_measured", "")


def _accuracy_rows(task: str, metric: Mapping[str, Any]) -> Iterator[Row]:
    accuracies = control_accuracies(metric) | {name: metric[name] for name in ("chance", "any_thing") if name in metric}
    controls = [f"{name} {value:.1%}" for name, value in accuracies.items()]
    controls += [
        f"{name} not measurable ({row['not_measurable']})"
        for name, row in metric.get("controls", {}).items()
        if "not_measurable" in row
    ]
    yield task, *_figures(metric), ", ".join(controls).replace("_", " ")
    for family, figure in metric.get("by_family", {}).items():
        yield f"  {family}", *_figures(figure), ""
    recall = metric.get("text_to_image_recall_at_1")
    if recall:
        yield f"  text to image R@1 of {recall['among']}", *_figures(recall), _chance(recall)


def _recall_rows(task: str, metric: Mapping[str, Any]) -> Iterator[Row]:
    yield task, "", "", "", f"{metric['captions']} captions of {metric['images']} images"
    for direction in ("text_to_image", "image_to_text"):
        recall = metric[direction]
        for stage in ("embeddings", "reranked"):
            for cut, figure in recall[stage].items():
                controls = _chance(recall) if cut.endswith("_1") else ""
                yield f"  {direction} {stage} {cut}".replace("_", " "), *_figures(figure), controls


def _chance(recall: Mapping[str, Any]) -> str:
    oracle = f", a perfect model {recall['oracle']:.1%}" if "oracle" in recall else ""
    return f"chance {recall['chance']:.1%}{oracle}"


def _figures(metric: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = metric["interval"]
    return f"{metric['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", str(metric["n"])
