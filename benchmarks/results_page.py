"""docs/results.md and its picture from the figures of the runs. Knows tables; must not know how a run is made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Two-sided 95 % of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776)
Found = Mapping[str, Any]


def _metric(found: Found, key: str, task: str) -> dict[str, Any] | None:
    metrics = found.get(key, {}).get("metrics", {}).get(task)
    return metrics if metrics and "not_measured" not in metrics and "untrained" not in metrics else None


def _percent(value: float | None) -> str:
    return "not run" if value is None else f"{value:.1%}"


def _mean(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds; of a single seed its value."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.1%} (1 seed)"
    half = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.1%} ± {half:.1%}"


def _values(found: Found, keys: Sequence[str], task: str) -> list[float]:
    return [m["accuracy"] for key in keys if (m := _metric(found, key, task))]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(found: Found, keys: Sequence[str]) -> str:
    """The whole page."""
    done = sum(key in found for key in keys)
    seconds = sum(row["seconds"] for row in found.values())
    lines = ["# Results", "", "`make results` runs what is missing here and writes this page; every figure is in"]
    lines += [
        f"[results.json](results.json) with its intervals. {done} of {len(keys)} runs are done, {seconds / 60:.0f}"
    ]
    lines += [
        "minutes on one core. All of preset `tiny`, held-out data, seeds as said. These are short trainings that are"
    ]
    lines += ["compared with each other; what a longer one reaches is in the README.", ""]
    return "\n".join(
        [
            *lines,
            *_pairs(found, keys),
            *_labels(found),
            *_cogent(found),
            *_video(found),
            *_others(found),
            *_mim(found),
            *_exports(found, keys),
        ]
    )


def _pairs(found: Found, keys: Sequence[str]) -> list[str]:
    lines = ["## Fusion x interaction on shapes VQA", ""]
    lines += [
        "Towers aligned for 300 steps, questions for 450, without masked words (a fusion to one vector cannot learn"
    ]
    lines += ["from them). Question only is the majority answer of the exact text.", ""]
    pairs = dict.fromkeys(tuple(key.split("/")[1:3]) for key in keys if key.startswith("pair/"))
    families: list[str] = []
    rows = []
    for fusion, interaction in pairs:
        mine = [key for key in keys if key.startswith(f"pair/{fusion}/{interaction}/") and key in found]
        first = _metric(found, mine[0], "vqa") if mine else None
        if first is None:
            rows.append([f"{fusion} x {interaction}", "not run"])
            continue
        families = list(first["by_family"])
        controls = [_percent(first["controls"][name]["accuracy"]) for name in ("question_only", "shuffled_image")]
        by_family = [_percent(first["by_family"][name]["accuracy"]) for name in families]
        rows.append([f"{fusion} x {interaction}", _mean(_values(found, mine, "vqa")), *controls, *by_family])
    return lines + _table(["pair", "all", "question only", "shuffled image", *families], rows)


def _labels(found: Found) -> list[str]:
    lines = ["## Does pretraining lower the need for labels?", "", "![accuracy against labels](labels.png)", ""]
    lines += [
        "The same steps of fine-tuning from a checkpoint pretrained on images and captions of shapes, and from random"
    ]
    lines += ["weights. Mean of 3 seeds with its 95 % interval (Student's t).", ""]
    rows = []
    for data, task in (("shapes", "vqa"), ("digits", "image_class")):
        for share in (1, 5, 10, 100):
            starts = {}
            for start in ("pretrained", "scratch"):
                starts[start] = _values(found, [f"labels/{data}/{start}/{share}/{seed}" for seed in range(3)], task)
            control = _metric(found, f"labels/{data}/scratch/{share}/0", task)
            blind = max(c["accuracy"] for c in control["controls"].values()) if control else None
            gain = "not run"
            if all(starts.values()):
                gain = (
                    f"{100 * (statistics.mean(starts['pretrained']) - statistics.mean(starts['scratch'])):+.1f} points"
                )
            rows.append([data, f"{share} %", *(_mean(values) for values in starts.values()), gain, _percent(blind)])
    return lines + _table(["data", "labels", "pretrained", "scratch", "gain", "best blind control"], rows)


def _cogent(found: Found) -> list[str]:
    lines = ["## CoGenT: trained on A, asked about A and B", ""]
    lines += ["In A squares and triangles have each their own four colours; in B they swap.", ""]
    rows = []
    for name, key in (("A", "cogent/0"), ("B", "cogent-B/0")):
        vqa = _metric(found, key, "vqa")
        if vqa:
            kinds = [_percent(vqa["by_family"][f]["accuracy"]) for f in ("colour", "shape")]
            rows.append(
                [name, _percent(vqa["accuracy"]), *kinds, _percent(vqa["controls"]["question_only"]["accuracy"])]
            )
        else:
            rows.append([name, "not run", "", "", ""])
    return lines + _table(["asked about", "all", "colour", "shape", "question only"], rows)


def _video(found: Found) -> list[str]:
    lines = ["## Video", ""]
    keys = [f"video_class/{seed}" for seed in range(3)]
    rows = []
    for name, task, mine in (
        ("direction of the moving thing", "video_class", keys),
        ("questions", "video_qa", ["video_qa/0"]),
    ):
        first = _metric(found, mine[0], task)
        controls = first["controls"] if first else {}
        shown = [_percent(controls.get(c, {}).get("accuracy")) for c in ("shuffled_frames", "single_frame")]
        blind = controls.get("majority", controls.get("question_only", {})).get("accuracy")
        rows.append([name, _mean(_values(found, mine, task)), *shown, _percent(blind)])
        rows += [
            [f"... {family}", _percent(row["accuracy"]), "", "", ""]
            for family, row in (first or {}).get("by_family", {}).items()
        ]
    return lines + _table(["task", "accuracy", "shuffled frames", "single frame", "majority or question only"], rows)


def _others(found: Found) -> list[str]:
    lines = ["## Retrieval, statements, and where the model looks", ""]
    rows = []
    retrieval = _metric(found, "retrieval/0", "retrieval")
    for way in ("text_to_image", "image_to_text"):
        for stage in ("embeddings", "reranked"):
            row = retrieval[way] if retrieval else None
            value = row[stage]["recall_at_1"]["accuracy"] if row else None
            control = f"chance {row['chance']:.1%}, a perfect model {row['oracle']:.1%}" if row else ""
            share = f"{value / row['oracle']:.0%} of perfect" if row and value is not None else ""
            rows.append([f"{way.replace('_', ' ')} R@1 of 256, {stage}", f"{_percent(value)} {share}".strip(), control])
    stated = _metric(found, "text_class/0", "text_class")
    control = ""
    if stated:
        blind = {name: row["accuracy"] for name, row in stated["controls"].items()}
        control = f"majority {blind['majority']:.1%}, another image {blind['shuffled_image']:.1%}"
    rows.append(["statements, true or false", _percent(stated["accuracy"] if stated else None), control])
    point = found.get("pointing/0", {}).get("metrics", {}).get("pointing")
    control = f"chance {point['chance']:.1%}; on any thing {point['any_thing']:.1%}" if point else ""
    rows.append(
        ["pointing game: hottest token on the thing asked about", _percent(point and point["accuracy"]), control]
    )
    return lines + _table(["task", "figure", "control"], rows)


def _mim(found: Found) -> list[str]:
    lines = ["## Masked image modelling, on and off", ""]
    rows = []
    for name, title in (("base", "off"), ("base-mim", "on")):
        rows.append([title, _mean(_values(found, [f"mim/{name}/{seed}" for seed in range(2)], "vqa"))])
    return lines + _table(["mim in pretraining", "VQA after 250 steps of questions, 2 seeds"], rows)


def _exports(found: Found, keys: Sequence[str]) -> list[str]:
    lines = ["## Every task and every pair exports", ""]
    lines += [
        "ONNX Runtime against PyTorch at every probed shape; allowed are an error of 1e-04 and a cosine of 0.99999.",
        "",
    ]
    rows = []
    for key in (key for key in keys if key.startswith("export/")):
        parity = found.get(key, {}).get("metrics", {}).get("parity")
        name = key.removeprefix("export/")
        if parity is None:
            rows.append([name, "not run", "", ""])
            continue
        error, cosine = max(r["scaled_error"] for r in parity.values()), min(r["cosine"] for r in parity.values())
        rows.append([name, ", ".join(parity), f"{error:.1e}", f"{cosine:.7f}"])
    return lines + _table(["checkpoint", "graphs", "worst error", "worst cosine"], rows)


def plot(found: Found, path: Path) -> None:
    """Accuracy against labels, with intervals and the blind control, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, (data, task) in zip(axes, (("shapes", "vqa"), ("digits", "image_class")), strict=True):
        for start, colour in (("pretrained", "tab:blue"), ("scratch", "tab:orange")):
            points = []
            for share in (1, 5, 10, 100):
                values = _values(found, [f"labels/{data}/{start}/{share}/{seed}" for seed in range(3)], task)
                if values:
                    spread = statistics.stdev(values) if len(values) > 1 else 0.0
                    half = _T[len(values) - 2] * spread / math.sqrt(len(values)) if len(values) > 1 else 0.0
                    points.append((share, statistics.mean(values), half))
            if points:
                shares, means, halves = zip(*points, strict=True)
                axis.errorbar(shares, means, halves, marker="o", capsize=3, color=colour, label=start)
        control = _metric(found, f"labels/{data}/scratch/100/0", task)
        if control:
            blind = max(c["accuracy"] for c in control["controls"].values())
            axis.axhline(blind, color="grey", linestyle="--", linewidth=1, label="best blind control")
        axis.set(xscale="log", xlabel="labels, % of the training set", title=data, ylim=(0, 1))
        axis.set_xticks([1, 5, 10, 100], ["1", "5", "10", "100"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
