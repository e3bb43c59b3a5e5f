"""docs/results.md and its picture, made from the results of the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_export.console.metrics import control_accuracies
from simmim_export.training.emoji_page import EMOJI, emoji_section

# Two-sided 95 % of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776)
SEEDS, SHARES = (0, 1, 2), (1, 5, 10, 100)
_LABELED = (("shapes", "vqa"), ("digits", "image_class"))
Results = Mapping[str, Any]

# Raise this whenever training, data or figures change so that a run would come out differently.
REVISION = 3

_HEAD = """# Results

`make results` runs what is missing here and writes this page. [results.json](results.json) has every figure with its interval.
{done} of {all} runs are done; they took {minutes:.0f} minutes on one core. All use preset `tiny` and held-out data. The runs are
short, so that they can be compared with each other; the README shows what a longer training reaches.
"""
_OLDER = """
{older} of them were made by an earlier revision of training or data and would differ a little now. To repeat a run, delete it and
the run it starts from in results.json.
"""
_PAIRS = """## Fusion x interaction on shapes VQA

The encoders were aligned for 300 steps, then trained on questions for 450, without masked words (a fusion to one vector cannot
learn from them). "Question only" is the most frequent answer to the same question. Families and controls are means over the
same seeds.
"""
_LABELS = """## Does pretraining lower the need for labels?

![accuracy against labels](labels.png)

The same number of fine-tuning steps, from a checkpoint pretrained on images and captions of shapes, and from random weights.
Means of 3 seeds with 95 % intervals (Student's t); gains are paired by seed.
"""
_EXPORTS = """## Every task and every pair exports

ONNX Runtime compared with PyTorch at every probed shape. The limits are an error of 1e-4 and a cosine of 0.99999.

"""
_COGENT = """## CoGenT: trained on A, asked about A and B

In A, squares and triangles each have four colors of their own; in B they swap them.

"""
_THROUGHPUT = """## Training throughput

`simmim-bench train` with {threads} threads and nothing else running. A sample is an image in pretraining, a question in
fine-tuning.
"""


def _metric(results: Results, key: str, task: str) -> dict[str, Any] | None:
    metrics = results.get(key, {}).get("metrics", {}).get(task)
    return metrics if metrics and "not_measured" not in metrics and "untrained" not in metrics else None


def _percent(value: float | None) -> str:
    return "not run" if value is None else f"{value:.1%}"


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of 2 to 5 values (Student's t); NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def _mean(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds; for a single seed just its value."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.1%} (1 seed)"
    return f"{statistics.mean(values):.1%} ± {interval(values):.1%}"


def _values(results: Results, keys: Sequence[str], task: str) -> list[float]:
    return [m["accuracy"] for key in keys if (m := _metric(results, key, task))]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(results: Results, keys: Sequence[str]) -> str:
    """The whole page, with those of the runs ``keys`` that are in ``results``."""
    mine = [row for key, row in results.items() if key != EMOJI]
    done, seconds = sum(key in results for key in keys), sum(row["seconds"] for row in mine)
    lines = [*_HEAD.format(done=done, all=len(keys), minutes=seconds / 60).splitlines()]
    older = sum(row.get("revision") != REVISION for row in mine)
    lines += [*(_OLDER.format(older=older).splitlines() if older else []), ""]
    lines += (
        _pairs(results, keys) + _labels(results) + _cogent(results) + _video(results) + _others(results) + _mim(results)
    )
    return "\n".join(lines + emoji_section(results, _table) + _exports(results, keys) + _throughput(results))


def _pairs(results: Results, keys: Sequence[str]) -> list[str]:
    pairs = dict.fromkeys(tuple(key.split("/")[1:3]) for key in keys if key.startswith("pair/"))
    families: list[str] = []
    rows: list[list[str]] = []
    reached: dict[str, dict[str, float]] = {}
    for fusion, interaction in pairs:
        mine = [key for key in keys if key.startswith(f"pair/{fusion}/{interaction}/")]
        metrics = [m for key in mine if (m := _metric(results, key, "vqa"))]
        if not metrics:
            rows.append([f"{fusion} x {interaction}", "not run"])
            continue
        families = list(metrics[0]["by_family"])
        columns = [[m["controls"][name]["accuracy"] for m in metrics] for name in ("question_only", "shuffled_image")]
        columns += [[m["by_family"][name]["accuracy"] for m in metrics] for name in families]
        cells = [_percent(statistics.mean(column)) for column in columns]
        rows.append([f"{fusion} x {interaction}", _mean(_values(results, mine, "vqa")), *cells])
        means = [statistics.mean(column) for column in columns[2:]]
        reached[f"{fusion} x {interaction}"] = dict(zip(families, means, strict=True))
    header = ["pair", "all", "question only", "shuffled image", *families]
    return [*_PAIRS.splitlines(), "", *_expectation(reached), *_table(header, rows)]


def _expectation(reached: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What was expected of relations, and what came out."""
    attention, feature = reached.get("concat_sequence x attention"), reached.get("concat_feature x linear")
    if attention is None or feature is None:
        return []
    best = max(reached, key=lambda pair: reached[pair]["relation"])
    return [
        "We expected concat_feature to fail on relations (left of, above) and attention to succeed. The best pair on relations",
        f"is {best} with {reached[best]['relation']:.1%}, where guessing gives 50 %. On spatial questions",
        f"(what is at a named place) attention reaches {attention['spatial']:.1%} and concat_feature {feature['spatial']:.1%}.",
        "",
    ]


def _labels(results: Results) -> list[str]:
    rows, claims = [], []
    for data, task in _LABELED:
        verdicts = {}
        for share in SHARES:
            starts = {start: _labeled(results, data, start, share, task) for start in ("pretrained", "scratch")}
            gains = [
                value - starts["scratch"][seed]
                for seed, value in starts["pretrained"].items()
                if seed in starts["scratch"]
            ]
            control = _blind(results, data, task)
            shown = "not run"
            if gains:
                shown = f"{100 * statistics.mean(gains):+.1f} ± {100 * interval(gains):.1f} points"
                verdicts[share] = verdict(gains)
            means = [_mean(list(values.values())) for values in starts.values()]
            rows.append([data, f"{share} %", *means, shown, _percent(control)])
        if verdicts:
            told = ", ".join(f"{word} at {share} %" for share, word in verdicts.items())
            claims += [
                f"- {data}: compared with scratch, pretraining is {told} of the labels. {_saving(results, data, task)}"
            ]
    header = ["data", "labels", "pretrained", "scratch", "gain", "best control"]
    return [*_LABELS.splitlines(), "", *claims, "", *_table(header, rows)]


def _saving(results: Results, data: str, task: str) -> str:
    """The fewest labels with which a pretrained model does as well as a model from scratch with all of them."""
    means: dict[str, dict[int, float]] = {"pretrained": {}, "scratch": {}}
    for start, row in means.items():
        for share in SHARES:
            if values := _labeled(results, data, start, share, task):
                row[share] = statistics.mean(values.values())
    whole = means["scratch"].get(100)
    enough = [share for share, mean in means["pretrained"].items() if whole is not None and mean >= whole]
    if whole is None or not enough:
        return "It never reaches what a model from scratch reaches with all labels."
    reached = f"{means['pretrained'][enough[0]]:.1%} against {whole:.1%}"
    return f"With {enough[0]} % of them it reaches what scratch reaches with all ({reached}, means)."


def verdict(gains: Sequence[float]) -> str:
    """What the paired gains of 2 or more seeds show: better, worse, or undecided (the interval contains zero)."""
    mean, half = statistics.mean(gains), interval(gains)
    if not mean - half <= 0 <= mean + half and not math.isnan(half):
        return "better" if mean > 0 else "worse"
    return "undecided"


def _labeled(results: Results, data: str, start: str, share: int, task: str) -> dict[int, float]:
    """The accuracy for each seed."""
    keys = {seed: f"labels/{data}/{start}/{share}/{seed}" for seed in SEEDS}
    return {seed: metric["accuracy"] for seed, key in keys.items() if (metric := _metric(results, key, task))}


def _blind(results: Results, data: str, task: str) -> float | None:
    metric = _metric(results, f"labels/{data}/scratch/100/0", task)
    return max(control_accuracies(metric).values(), default=None) if metric else None


def _cogent(results: Results) -> list[str]:
    rows = []
    for name, key in (("A", "cogent/0"), ("B", "cogent-B/0")):
        vqa = _metric(results, key, "vqa")
        if vqa is None:
            rows.append([name, "not run"])
            continue
        kinds = [_percent(vqa["by_family"][family]["accuracy"]) for family in ("colour", "shape")]
        blind = _percent(vqa["controls"]["question_only"]["accuracy"])
        rows.append([name, _percent(vqa["accuracy"]), *kinds, blind])
    return _COGENT.splitlines() + _table(["asked about", "all", "colour", "shape", "question only"], rows)


def _video(results: Results) -> list[str]:
    keys = [f"video_class/{seed}" for seed in SEEDS]
    rows = []
    asked = (("direction of the moving thing", "video_class", keys), ("questions", "video_qa", ["video_qa/0"]))
    for name, task, mine in asked:
        first = _metric(results, mine[0], task) or {"controls": {}}
        controls = control_accuracies(first)
        blind = controls.get("majority", controls.get("question_only"))
        shown = [_percent(controls.get(control)) for control in ("shuffled_frames", "single_frame")]
        rows.append([name, _mean(_values(results, mine, task)), *shown, _percent(blind)])
        families = first.get("by_family", {}).items()
        rows += [[f"... {family}", _percent(row["accuracy"]), "", "", ""] for family, row in families]
    header = ["task", "accuracy", "shuffled frames", "single frame", "majority or question only"]
    return ["## Video", "", *_table(header, rows)]


def _others(results: Results) -> list[str]:
    rows = []
    retrieval = _metric(results, "retrieval/0", "retrieval")
    for way in ("text_to_image", "image_to_text"):
        for stage in ("embeddings", "reranked"):
            title, row = f"{way.replace('_', ' ')} R@1 of 256, {stage}", retrieval[way] if retrieval else None
            if row is None:
                rows.append([title, "not run", ""])
                continue
            value = row[stage]["recall_at_1"]["accuracy"]
            control = f"chance {row['chance']:.1%}, a perfect model {row['oracle']:.1%}"
            rows.append([title, f"{value:.1%}, {value / row['oracle']:.0%} of perfect", control])
    stated = _metric(results, "text_class/0", "text_class")
    blind = {name: f"{value:.1%}" for name, value in control_accuracies(stated or {}).items()}
    control = f"majority {blind['majority']}, another image {blind['shuffled_image']}" if stated else ""
    rows.append(["statements, true or false", _percent(stated["accuracy"] if stated else None), control])
    point = results.get("pointing/0", {}).get("metrics", {}).get("pointing")
    control = f"chance {point['chance']:.1%}; on any thing {point['any_thing']:.1%}" if point else ""
    title = "pointing game: hottest token on the thing that was asked about"
    rows.append([title, _percent(point and point["accuracy"]), control])
    return ["## Retrieval, statements, and where the model looks", "", *_table(["task", "figure", "control"], rows)]


def _mim(results: Results) -> list[str]:
    rows = []
    for name, title in (("base", "off"), ("base-mim", "on")):
        rows.append([title, _mean(_values(results, [f"mim/{name}/{seed}" for seed in SEEDS], "vqa"))])
    header = ["mim in pretraining", "VQA after 250 steps of questions"]
    return ["## Masked image modeling, on and off", "", *_table(header, rows)]


def _exports(results: Results, keys: Sequence[str]) -> list[str]:
    lines = _EXPORTS.splitlines()
    rows = []
    for key in (key for key in keys if key.startswith("export/")):
        name, parity = key.removeprefix("export/"), results.get(key, {}).get("metrics", {}).get("parity")
        if parity is None:
            rows.append([name, "not run", "", ""])
            continue
        error, cosine = max(r["scaled_error"] for r in parity.values()), min(r["cosine"] for r in parity.values())
        rows.append([name, ", ".join(parity), f"{error:.1e}", f"{cosine:.7f}"])
    return lines + _table(["checkpoint", "graphs", "worst error", "worst cosine"], rows)


def _throughput(results: Results) -> list[str]:
    measured = results.get("throughput", {}).get("metrics")
    if measured is None:
        return ["## Training throughput", "", "not run", ""]
    lines = [*_THROUGHPUT.format(threads=measured["threads"]).splitlines(), ""]
    rows = []
    for row in measured["rows"]:
        each = str(row["questions"]) if row["stage"] == "finetune" else ""
        rate, step = f"{row['samples_per_second']:.1f}", f"{row['seconds_per_step']:.3f}"
        rows.append([row["preset"], row["stage"], str(row["images"]), each, rate, step])
    return lines + _table(["preset", "stage", "images", "questions each", "samples/s", "seconds a step"], rows)


def plot(results: Results, path: Path) -> None:
    """Draw accuracy against labels, with intervals and the best control, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, (data, task) in zip(axes, _LABELED, strict=True):
        for start, color in (("pretrained", "tab:blue"), ("scratch", "tab:orange")):
            measured = {share: list(_labeled(results, data, start, share, task).values()) for share in SHARES}
            points = [(share, statistics.mean(v), interval(v)) for share, v in measured.items() if len(v) > 1]
            if points:
                shares, means, halves = zip(*points, strict=True)
                axis.errorbar(shares, means, halves, marker="o", capsize=3, color=color, label=start)
        blind = _blind(results, data, task)
        if blind is not None:
            axis.axhline(blind, color="gray", linestyle="--", linewidth=1, label="best control")
        axis.set(xscale="log", xlabel="labels, % of the training set", title=data, ylim=(0, 1))
        axis.set_xticks(SHARES, [str(share) for share in SHARES])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
