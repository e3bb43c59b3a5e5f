"""Results as Markdown tables, for the pages in docs/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from simmim_export.benchmarks.contestants import Contestant, contestant_of
from simmim_export.benchmarks.document import ratio_to, reference
from simmim_export.benchmarks.jobs import title
from simmim_export.benchmarks.measure import Ratio
from simmim_export.benchmarks.memory import growth
from simmim_export.benchmarks.results import BenchmarkResult, Suite
from simmim_export.benchmarks.tables import against_alone

ABSENT = "-"
Rows = Sequence[BenchmarkResult]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def latency(rows: Rows) -> str:
    """Each target on each engine: median, times PyTorch and its own FP32, times its floor, error and size."""
    against = reference(rows)
    header = (
        "target",
        "engine",
        "median",
        "times PyTorch",
        "95 %",
        "times own FP32",
        "x floor",
        "error to PyTorch",
        "files",
    )
    return table(
        header,
        (
            (
                _name(row),
                contestant_of(row),
                _ms(row),
                *_ratio(ratio_to(row, rows, engine=against)),
                _ratio(ratio_to(row, rows, engine=row.engine))[0],
                _times_floor(row),
                f"{row.parity['scaled_error']:.1e}" if row.parity else ABSENT,
                f"{row.bytes / 1e6:.1f} MB" if row.bytes else ABSENT,
            )
            for row in rows
        ),
    )


def ladder(rows: Rows) -> str:
    """Each verb on each engine: the time of each stage."""
    names = {"graphs": "graphs", "pipeline": "pipeline", "prepared": "with decoding, tokenizing", "api": "public API"}
    return _pivot(rows, ("verb", "engine"), "stage", names=names)


def throughput(rows: Rows) -> str:
    """Items a second of each pipeline on each engine, by batch and with streams."""
    batches = sorted({row.batch for row in rows})
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        column = "streams" if "streams" in row.params else str(row.batch)
        rate = f"{row.items / median(row.samples):.0f}" if row.samples else "failed"
        cells.setdefault((_name(row), contestant_of(row)), {})[column] = rate
    columns = [*map(str, batches), "streams"]
    header = ("pipeline, items a second", "engine", *(f"batch {batch}" for batch in batches), "several streams")
    return table(header, ((*key, *(own.get(column, ABSENT) for column in columns)) for key, own in cells.items()))


def reuse(rows: Rows) -> str:
    """Milliseconds a question, and how many times less that is than a question alone."""
    together = [row for row in rows if row.params.get("stage") != "alone"]
    alone = {contestant_of(row): f"{_ms(row, each=True)}" for row in rows if row.params.get("stage") == "alone"}
    cells = (
        (
            contestant_of(row),
            str(row.params["questions"]),
            _ms(row, each=True),
            alone.get(contestant_of(row), ABSENT),
            *_ratio(against_alone(row, rows)),
        )
        for row in together
    )
    return table(("engine", "questions", "each", "each alone", "times less", "95 %"), cells)


def photos(rows: Rows) -> str:
    """From photograph to embedding, against PyTorch with plain Pillow."""
    against = reference(rows)
    cells = (
        (f"{row.params['megapixels']:g} MP", contestant_of(row), _ms(row), *_ratio(ratio_to(row, rows, engine=against)))
        for row in rows
    )
    return table(("photograph", "engine", "median", "times PyTorch + Pillow", "95 %"), cells)


def growths(rows: Rows) -> str:
    """How the time of each graph grows along each of its axes."""
    lines: dict[tuple[str, str, str], list[tuple[Any, str]]] = {}
    for axis in dict.fromkeys(name for row in rows for name in row.params):
        for row in rows:
            others = {name: value for name, value in row.params.items() if name != axis}
            usual = {name: _usual(rows, row.target, name) for name in others}
            if axis in row.params and others == usual:
                point = (row.params[axis], _ms(row))
                lines.setdefault((_name(row), axis, contestant_of(row)), []).append(point)
    cells = (
        (*key, ", ".join(f"{size}: {time}" for size, time in sorted(points)))
        for key, points in lines.items()
        if len(points) > 1
    )
    return table(("graph", "axis", "engine", "size: median"), cells)


def _usual(rows: Rows, target: str, axis: str) -> Any:
    """The size of ``axis`` of most rows of ``target``: that while another axis grows."""
    sizes = [row.params[axis] for row in rows if row.target == target]
    return max(sizes, key=sizes.count)


def soak(rows: Rows) -> str:
    """The memory of each engine at the end of a soak, and how it grew."""
    cells = []
    for row in rows:
        grew = growth(row.memory)
        if grew is None:
            cells.append((contestant_of(row), ABSENT, ABSENT, ABSENT, ABSENT))
            continue
        size, minutes = f"{row.memory[-1][1] / 1e6:.0f} MB", f"{row.params['minutes']:g}"
        slope, grown = (
            f"{grew.bytes_per_minute / 1e6:+.2f} MB",
            f"{grew.grown / 1e6:+.1f} of {grew.allowed / 1e6:.0f} MB",
        )
        cells.append((contestant_of(row), minutes, size, slope, grown))
    return table(("engine", "minutes, all engines", "memory", "growth a minute", "growth, of what is allowed"), cells)


def starts(engines: Mapping[str, Mapping[str, Any]]) -> str:
    """Each engine's time to a first result in a new process, and its memory."""
    cells = []
    for name, info in engines.items():
        if "phases" in info and "peak_memory" in info:
            phases = (f"{info['phases'][phase]:.2f} s" for phase in ("import", "open", "first result"))
            cells.append((name, f"{info['cold_start']:.2f} s", *phases, f"{info['peak_memory'] / 1e6:.0f} MB"))
    return table(("engine", "cold start", "import", "open", "first result", "peak memory"), cells)


def peaks(measured: Mapping[str, Any] | None) -> list[str]:
    """A sentence about the peaks of the host, if they were measured."""
    if measured is None:
        return []
    products = (f"{name} {peak['flops_per_second'] / 1e9:.0f}" for name, peak in measured["products"].items())
    copied, read = (f"{measured[key] / 1e9:.1f} GB/s" for key in ("copy", "read"))
    return [
        f"Peaks of the host: {', '.join(products)} billion operations a second; memory {copied} copied, {read} read."
    ]


def peers(rows: Rows) -> str:
    """Accuracy beside latency of each peer, the fastest first; and why some have no figures."""
    against, cells, reasons = reference(rows), [], dict[str, None]()
    for job in dict.fromkeys(row.job for row in rows):
        mine = [row for row in rows if row.job == job]
        for row in sorted(mine, key=lambda one: median(one.samples) if one.samples else float("inf")):
            accuracy = row.accuracy or {}
            mean, first, top1 = (accuracy.get(key) for key in ("cosine_mean", "cosine_p1", "top1"))
            cells.append(
                (
                    title(row.target, row.params),
                    contestant_of(row),
                    _ms(row),
                    *_ratio(ratio_to(row, rows, engine=against)),
                    *(ABSENT if cosine is None else f"{cosine:.5f}" for cosine in (mean, first)),
                    ABSENT if top1 is None else f"{top1:.1%}",
                    f"{row.bytes / 1e6:.1f} MB" if row.bytes else ABSENT,
                    _times_floor(row),
                )
            )
            if row.failed is not None:
                reasons[f"Failed: {_name(row)} on {contestant_of(row)}: {' '.join(row.failed.message.split())}"] = None
    header = (
        "graph",
        "engine",
        "median",
        "times PyTorch",
        "95 %",
        "mean cosine",
        "1 %",
        "same neighbor",
        "files",
        "x floor",
    )
    return "\n\n".join([table(header, cells), *reasons])


def exports(records: Sequence[Mapping[str, Any]]) -> str:
    """How long each export took, and how large its graphs are in each variant."""
    cells = []
    for record in records:
        sizes: dict[str, list[str]] = {}
        for graph, variant, size in record["sizes"]:
            sizes.setdefault(graph, []).append(f"{variant} {size / 1e6:.1f}")
        large = [f"{graph}: {', '.join(own)}" for graph, own in sizes.items() if graph.endswith("encoder")]
        cells.append((record["preset"], f"{record['seconds']:.0f} s", "; ".join(large)))
    return table(("preset", "export with INT8", "encoders in MB"), cells)


def quantization(comparison: Mapping[str, Any]) -> str:
    """What ``simmim-bench quantization --json`` printed."""
    cells = []
    for row in comparison["rows"]:
        share = row["share_of_own_fp32"]
        figures = [f"{row[f'cosine_{kind}']:.5f}" for kind in ("mean", "p1", "min")]
        ratio = _ratio(Ratio(**share)) if share else (ABSENT, ABSENT)
        engine = str(Contestant(row["engine"], row["precision"]))
        cells.append((engine, row["recipe"] or "ours", *figures, f"{row['top1']:.1%}", *ratio))
    neighbor = f"same nearest neighbor of {comparison['sentences']:,}"
    header = ("engine", "recipe", "mean cosine", "1 %", "least", neighbor, "latency / own FP32", "95 %")
    return table(header, cells)


# The table of each suite.
TABLES: dict[Suite, Callable[[Rows], str]] = {
    "latency": latency,
    "ladder": ladder,
    "throughput": throughput,
    "reuse": reuse,
    "photos": photos,
    "growth": growths,
    "soak": soak,
    "peers": peers,
}


def _pivot(rows: Rows, index: tuple[str, str], param: str, *, names: Mapping[str, str]) -> str:
    """The medians of ``rows``: a line for each target and engine, a column for each value of ``param``."""
    cells: dict[tuple[str, str], dict[Any, str]] = {}
    for row in rows:
        cells.setdefault((_name(row), contestant_of(row)), {})[row.params[param]] = _ms(row)
    lines = ((*key, *(own.get(name, ABSENT) for name in names)) for key, own in cells.items())
    return table((*index, *names.values()), lines)


def _name(row: BenchmarkResult) -> str:
    return row.target.partition(":")[2]


def _ms(row: BenchmarkResult, *, each: bool = False) -> str:
    """The median of a run, or of one item; for an engine without any sample that it failed."""
    if not row.samples:
        return "failed"
    return f"{1000 * median(row.samples) / (row.items if each else 1):.2f} ms"


def _times_floor(row: BenchmarkResult) -> str:
    return f"{median(row.samples) / row.floor.seconds:.1f}" if row.floor and row.samples else ABSENT


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    return (ABSENT, ABSENT) if ratio is None else (f"{ratio.value:.2f}", ratio.span)
