"""Puts the plots and the tables of benchmark files on one HTML page, which loads nothing from anywhere."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from simmim_export.benchmarks.code_digest import is_current
from simmim_export.benchmarks.document import Document, read
from simmim_export.benchmarks.html import plots, series, style, tables
from simmim_export.benchmarks.html.plots import Plot
from simmim_export.benchmarks.html.tables import Table
from simmim_export.errors import DataError, EngineUnavailable
from simmim_export.system.cache import cache_folder
from simmim_export.system.printing import printable

# Title and lead of the plots of a suite that are curves.
_CURVES = {
    "growth": (
        "How latency grows",
        "Medians on logarithmic axes. If the time is proportional to the size, doubling the size doubles the time.",
    ),
    "throughput": (
        "Throughput",
        "Images or texts in a second, by the number in one call. Streams are calls from several threads.",
    ),
    "reuse": (
        "Several questions about one image",
        "An image is encoded once for all of its questions, so each one costs less.",
    ),
    "photos": (
        "From a photograph to its embedding",
        "Decoding a JPEG file, resizing and embedding, by the size of the photograph.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: ``key`` is its anchor."""

    key: str
    heading: str
    lead: str
    plots: Sequence[Plot]
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is on the page."""

    documents: Mapping[str, Document]
    sections: Sequence[Section]

    @property
    def plots(self) -> list[Plot]:
        """All plots, in order."""
        return [plot for section in self.sections for plot in section.plots]

    def svg_files(self) -> dict[str, str]:
        """The plots as files of their own, by name."""
        return {f"{plot.name}.svg": style.as_file(plot.svg) for plot in self.plots}

    def html(self) -> str:
        """The page. Every text from a file is escaped; the only markup that is not is the SVG that this package drew."""
        from jinja2 import Environment, StrictUndefined

        documents = list(self.documents.values())
        rules = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
        template = rules.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
        processors = dict.fromkeys(printable(str(d.host.get("cpu")))[:100] for d in documents)
        presets = dict.fromkeys(series.plain(str(d.bundle.get("preset"))) for d in documents)
        return template.render(
            title=f"Benchmark of {' and '.join(presets)}",
            lead=f"Measured on {' and '.join(processors)}.",
            warnings=_warnings(self.documents),
            glance=tables.glance(documents),
            sections=self.sections,
            rows=tables.every_row(documents),
            hosts=tables.hosts(documents, list(self.documents)),
            dark=style.dark_rules(),
        )


def require_libraries() -> None:
    """Raise :class:`EngineUnavailable` if what draws the report is not installed."""
    # matplotlib keeps a list of fonts, by default in the home folder.
    kept = cache_folder("matplotlib")
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp() if kept is None else str(kept))
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        what = f"the report needs {error.name}, which is not installed"
        raise EngineUnavailable(what, fix="pip install 'simmim-export[bench]'") from error


def report(paths: Sequence[Path]) -> Report:
    """The report of the files ``paths``.

    Raise :class:`DataError` for a file that is damaged or has no row, and for two files that have the same row.
    """
    documents: dict[str, Document] = {}
    places: dict[tuple[object, ...], Path] = {}
    for path in paths:
        document = read(path)
        if not document.results:
            raise DataError("the file has no row", where=path, fix="measure again: simmim-bench --save FILE")
        for row in document.results:
            if row.key in places:
                what = f"{series.target(row)} of {series.name(row)} is also in {places[row.key]}"
                fix = f"leave one out, or compare the two: simmim-bench compare {places[row.key]} {path} --accept runs"
                raise DataError(what, where=path, fix=fix)
            places[row.key] = path
        documents[_label(path.stem, documents)] = document
    return Report(documents=documents, sections=_sections(list(documents.values())))


def _label(stem: str, taken: Collection[str]) -> str:
    """``stem``, with a number if it is ``taken``."""
    numbered = (f"{stem} ({number})" for number in itertools.count(2))
    return stem if stem not in taken else next(label for label in numbered if label not in taken)


def _sections(documents: Sequence[Document]) -> list[Section]:
    """The sections that these rows have something for."""
    rows = [row for document in documents for row in document.results]
    found = []
    drawn: list[Plot] = [plots.accuracy(s, name=f"accuracy-{i}") for i, s in enumerate(series.scatters(rows), 1)]
    lead = "A fast engine is useful only if it still gives the same embeddings."
    found.append(
        Section(
            key="accuracy", heading="Accuracy against latency", lead=lead, plots=drawn, table=tables.peers(documents)
        )
    )
    drawn = [plots.ladder(each, name=f"ladder-{i}") for i, each in enumerate(series.ladders(rows), 1)]
    lead = "From the graph alone to the call that a program makes."
    found.append(Section(key="ladder", heading="The ladder", lead=lead, plots=drawn))
    for suite, (heading, lead) in _CURVES.items():
        drawn = []
        if panels := series.panels(rows, suite):
            drawn = [plots.curves(panels, name=suite, title=heading, caption="")]
        found.append(Section(key=suite, heading=heading, lead=lead, plots=drawn))
    drawn = []
    if panels := series.soaks(rows):
        caption = "Beside each name: the growth per minute, without the first quarter, in which caches fill."
        drawn = [plots.curves(panels, name="soak", title="Memory over time", caption=caption)]
    lead = "Mixed work for minutes: the resident memory of each engine's process has to stay flat."
    found.append(Section(key="soak", heading="Memory over time", lead=lead, plots=drawn))
    lead = "A new process, from its start to its first result."
    found.append(
        Section(key="start", heading="Start, memory and files", lead=lead, plots=[], table=tables.starts(documents))
    )
    return [one for one in found if one.plots or (one.table is not None and one.table.rows)]


def _warnings(documents: Mapping[str, Document]) -> list[str]:
    """What a reader has to know before the figures: other code, several machines, disturbances, failures, unfinished runs."""
    found = []
    rows = [row for document in documents.values() for row in document.results]
    if earlier := sum(not is_current(row.suite, row.code) for row in rows):
        found.append(
            f"{earlier} of {len(rows)} rows were measured with earlier code than that of the program that wrote this page."
        )
    if len({str(document.host) for document in documents.values()}) > 1:
        found.append(
            "These files were measured on different machines or with different packages: compare figures within a file only."
        )
    for label, document in documents.items():
        found += [f"{series.plain(label)}: {printable(text)[:300]}." for text in document.warnings[:5]]
        rounds = document.method.get("rounds")
        if isinstance(rounds, int) and document.finished_rounds < rounds:
            found.append(
                f"{series.plain(label)}: the run was interrupted after {document.finished_rounds} of {rounds} rounds."
            )
    failed = Counter(series.name(row) for row in rows if row.failed is not None)
    found += [f"{contestant} failed in {count} rows; the table says why." for contestant, count in failed.items()]
    return found
