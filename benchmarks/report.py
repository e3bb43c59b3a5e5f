"""The tables that the commands of simmim-bench print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simmim_export.benchmarks.contestants import Contestant
from simmim_export.benchmarks.measure import Ratio, too_few
from simmim_export.console import Row, print_table, stdout_console

# Shown in a cell without a figure.
ABSENT = "-"


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.compare.compare` returned."""
    console = stdout_console()
    if comparison["differs"]:
        console.print(f"the two differ in {' and '.join(comparison['differs'])}")
    if not comparison["paired"]:
        what = "these are separate runs: on a machine that others use, its speed alone can make the differences below"
        console.print(f"warning: {what}; simmim-bench pair measures side by side")
    rows: list[Row] = []
    reasons: dict[str, None] = {}
    for row in comparison["rows"]:
        medians = (ABSENT if value is None else f"{value:.3f}" for value in row["medians_ms"])
        if row["reason"] is not None:
            reasons[row["reason"]] = None
        if row["times_faster"] is None:
            rows.append((row["title"], *medians, ABSENT, ABSENT, row["verdict"] or "no verdict"))
        else:
            ratio = Ratio(value=row["times_faster"], low=row["low"], high=row["high"])
            rows.append((row["title"], *medians, f"{ratio.value:.2f}", ratio.span, row["verdict"]))
    columns = ("target", ">first,|median ms", ">second,|median ms", ">times|faster", ">interval", "verdict")
    print_table(f"{comparison['second']} compared with {comparison['first']}", columns, rows)
    sure, threshold = comparison["confidence"], comparison["threshold"]
    console.print(
        f"With {sure:.0%} confidence, all intervals contain the true ratio. Ratios compare the 10th percentiles of the rounds; "
        f"differences below {threshold:.1%} do not count."
    )
    for reason in reasons:
        console.print(reason)
    for place in ("first", "second"):
        if alone := comparison[f"only_{place}"]:
            console.print(f"only in the {place}: {'; '.join(alone)}")


def show_footprint(footprint: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.footprint.footprint` returned."""
    console = stdout_console()
    megabytes = {key: footprint[key] / 1e6 for key in ("environment_bytes", "pip_bytes")}
    console.print(f"packages: {', '.join(footprint['packages'])}")
    console.print(f"environment: {megabytes['environment_bytes']:.0f} MB, of which pip {megabytes['pip_bytes']:.0f} MB")
    for kind, row in footprint["cold_start"].items():
        console.print(
            f"process to first {kind} embedding: {row['total']:.2f} s (interpreter {row['interpreter']:.2f}, import and "
            f"open {row['import_and_open']:.2f}, first result {row['first_result']:.2f}), "
            f"peak {row['peak_memory'] / 1e6:.0f} MB"
        )
    console.print("commands: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in footprint["commands"].items()))


def show_throughput(throughput: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.throughput.throughput` returned."""
    rows = []
    for row in throughput["rows"]:
        questions = str(row["questions"]) if row["stage"] == "finetune" else ""
        figures = (f"{row['samples_per_second']:.1f}", f"{row['seconds_per_step']:.3f}")
        rows.append((row["preset"], row["stage"], str(row["images"]), questions, *figures))
    title = f"training on {throughput['threads']} threads; a sample is an image, or in finetune a question"
    print_table(title, ("preset", "stage", ">images", ">questions|each", ">samples/s", ">s per|step"), rows)


def show_quantization(comparison: Mapping[str, Any], *, not_measured: Mapping[str, str]) -> None:
    """Print what :func:`~simmim_export.benchmarks.quantization.measure` returned, and why recipes were not measured."""
    rows = []
    for row in comparison["rows"]:
        cosines = [f"{row[f'cosine_{kind}']:.5f}" for kind in ("mean", "p1", "min")]
        share = row["share_of_own_fp32"]
        cells = (f"{share['value']:.2f}", Ratio(**share).span) if share else ("", "")
        engine = str(Contestant(row["engine"], row["precision"]))
        rows.append((engine, row["recipe"] or "ours", *cosines, f"{row['top1']:.1%}", *cells))
    columns = (">mean|cosine", ">1st per-|centile", ">least", ">same|neighbor", ">latency /|own FP32", ">95 %")
    cut = f"{comparison['sentences']} sentences, {comparison['cut']} of them cut"
    print_table(f"text_encoder compared with ort fp32: {cut}; batch 1", ("engine", "recipe", *columns), rows)
    console = stdout_console()
    if no_ratio := too_few(comparison["rounds"]):
        console.print(no_ratio)
    for row in comparison["rows"]:
        if row["broken"]:
            console.print(f"{row['engine']} ({row['recipe']}): {row['broken']} embeddings were not finite")
    for name, reason in not_measured.items():
        console.print(f"not measured: {name}: {reason}")
