"""The report of benchmark files: in a real browser, from hostile files, and its parts."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import Page, browsing, chromium
from example_document import OURS, Made, example, rows, write_example
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.benchmarks.html import page, series, style
from simmim_export.errors import DataError

SVG = "{http://www.w3.org/2000/svg}"
SECTIONS = {"accuracy", "ladder", "growth", "throughput", "reuse", "photos", "soak", "start", "rows", "host"}
# Names that a stranger could put into a file.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://example.com/x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ \x1b[2J \x00 \u202e",
    "]]>--><style>*{display:none}</style>",
    "模型 " * 60,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> page.Report:
    return page.report([write_example(tmp_path_factory.mktemp("report") / "example.json")])


@pytest.fixture
def tab() -> Iterator[Page]:
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browsing() as opened:
        yield opened


def hostile(text: str) -> dict[str, object]:
    """A document with ``text`` in every place that takes a name."""
    made = Made(rounds=1, iterations=2)
    results = []
    for suite, params in (
        ("peers", {}),
        ("ladder", {"stage": "api"}),
        ("growth", {"batch": 1, text: 2}),
        ("latency", {}),
    ):
        for number in range(2):
            sizes = {"batch": 2.0**number} if suite == "growth" else {}
            words = {
                "suite": suite,
                "target": f"graph:{text}",
                "params": params | sizes,
                "accuracy": {"cosine_mean": 0.99},
            }
            results.append(made.row((f"{text}{number}", "fp32", text), 2, **words))
    host = {"cpu": text, "packages": {text: text}, text: text}
    engines = {text: {"cold_start": text, "peak_memory": None}}
    return example(
        results,
        host=host,
        bundle={"preset": text},
        warnings=[text],
        command=[text],
        engines=engines,
        peaks={text: text},
    )


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_every_plot_and_loads_nothing(
    report: page.Report, tab: Page, tmp_path: Path, dark: bool
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.html(), encoding="utf-8")
    tab.open(path, dark=dark)
    assert tab.reported("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    requested = [event["request"]["url"] for event in tab.reported("Network.requestWillBeSent")]
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    boxes = tab.value(
        "[...document.querySelectorAll('svg.plot')].map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    )
    assert len(boxes) == len(report.plots) == 8 and all(width > 700 and height > 100 for width, height in boxes)
    # No text of a plot sticks out of the page, and none of them covers another.
    labels = tab.value(
        "[...document.querySelectorAll('svg.plot')].map(s => [...s.querySelectorAll('text')].map(t => {"
        "const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom, t.textContent]}))"
    )
    for plot in labels:
        assert all(left >= 0 and right <= 900 for left, _, right, _, _ in plot)
        for a, b in itertools.combinations(plot, 2):
            apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 4 or b[3] <= a[1] + 4
            assert apart, (a, b)
    pixels = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"), dtype=float)
    background = pixels[2, 2]
    assert background < 40 if dark else background > 240
    # A tenth of the rows or more have something on them that is easy to tell from the background.
    assert np.mean((abs(pixels - background) > 80).any(axis=1)) > 0.1 and pixels.shape[0] > 3000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_only_a_name(text: str, tmp_path: Path, tab: Page) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(hostile(text)), encoding="utf-8")
    made = page.report([path])
    out = tmp_path / "report.html"
    out.write_text(made.html(), encoding="utf-8")
    for content in made.svg_files().values():
        assert {element.tag for element in ElementTree.fromstring(content).iter()}.isdisjoint(
            {f"{SVG}script", f"{SVG}image"}
        )
    tab.open(out)
    assert tab.value("document.querySelectorAll('script, img, iframe, object, embed').length") == 0
    assert tab.reported("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    assert not [e for e in tab.reported("Network.requestWillBeSent") if e["request"]["url"].startswith("http")]
    assert tab.value("document.querySelector('svg.plot').getBoundingClientRect().height") > 100
    assert "49" not in tab.value("document.querySelector('h1').textContent")


def test_the_page_has_what_the_files_have(report: page.Report, tmp_path: Path) -> None:
    found = set(re.findall(r'<h2 id="(\w+)"', report.html()))
    assert found == SECTIONS
    alone = write_example(tmp_path / "a.json", [row for row in rows(Made()) if row.suite == "latency"])
    html = page.report([alone]).html()
    assert set(re.findall(r'<h2 id="(\w+)"', html)) == {"accuracy", "start", "rows", "host"}
    assert "SIGKILL" in html and "worker of engine" in html


def test_files_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    every = list(rows(Made()))
    parts = [every[0::3], every[1::3], every[2::3]]
    paths = [tmp_path / "a" / "x.json", tmp_path / "b" / "x.json", tmp_path / "x (2).json"]
    for path, part in zip(paths, parts, strict=True):
        path.parent.mkdir(exist_ok=True)
        write_example(path, part)
    assert sum(len(d.results) for d in page.report(paths).documents.values()) == sum(map(len, parts))


def test_a_plot_reads_without_being_seen(report: page.Report) -> None:
    for plot in report.plots:
        root = ElementTree.fromstring(plot.svg)
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert root.get("role") == "img" and title is not None and description is not None and description.text
        assert (root.get("aria-labelledby") or "").split() == [title.get("id"), description.get("id")]
    identities = re.findall(r' id="([^"]+)"', report.html())
    assert len(identities) == len(set(identities))


def test_svg_files_stand_alone_and_are_the_same_each_time(report: page.Report, tmp_path: Path) -> None:
    again = page.report([write_example(tmp_path / "example.json")])
    assert again.svg_files() == report.svg_files() and len(report.svg_files()) == 8
    for content in report.svg_files().values():
        assert ElementTree.fromstring(content).get("width") == str(style.WIDTH) and "prefers-color-scheme" in content


def test_figures_of_earlier_code_are_marked(tmp_path: Path) -> None:
    current = [row for row in rows(Made()) if row.suite == "photos"]
    assert "earlier code" not in page.report([write_example(tmp_path / "now.json", current)]).html()
    document = example(current)
    document["results"][0]["code"] = "0" * 64
    (tmp_path / "then.json").write_text(json.dumps(document))
    assert f"1 of {len(current)} rows were measured with earlier code" in page.report([tmp_path / "then.json"]).html()


def test_files_of_several_machines_and_of_an_interrupted_run_are_marked(tmp_path: Path) -> None:
    made = list(rows(Made()))
    first = write_example(tmp_path / "a.json", [row for row in made if row.suite == "photos"])
    second = write_example(
        tmp_path / "b.json", [row for row in made if row.suite == "reuse"], host={"cpu": "abacus"}, finished_rounds=2
    )
    html = page.report([first, second]).html()
    assert "different machines" in html and "2 of 6 rounds" in html and "abacus" in html
    with pytest.raises(DataError) as caught:
        page.report([first, write_example(tmp_path / "c.json")])
    assert caught.value.where == str(tmp_path / "c.json") and "simmim-bench compare" in (caught.value.fix or "")


def test_the_frontier_is_what_nothing_beats() -> None:
    found = series.scatters(list(rows(Made())))
    assert [each.target for each in found] == ["text_encoder"]
    best = found[0].frontier()
    for point, other in itertools.product(found[0].points, best):
        assert not (point.seconds < other.seconds and point.nines > other.nines)
    assert [p.seconds for p in best] == sorted(p.seconds for p in best) and best[0].name == "openvino:int8 (nncf)"
    assert found[0].floor == pytest.approx(0.6e-3) and all(p.low <= p.seconds <= p.high for p in found[0].points)


def test_the_ladder_adds_up() -> None:
    for ladder in series.ladders(list(rows(Made()))):
        assert ladder.stages == tuple(series.RUNGS.values()) and len(ladder.bars) == len(OURS)
        assert all(each >= 0 for _, seconds in ladder.bars for each in seconds)
    base = next(seconds for name, seconds in ladder.bars if name == "torch")
    assert 1000 * sum(base) == pytest.approx(12.1 * 1.03 + 0.47, rel=0.1)


def test_curves_follow_each_axis_apart() -> None:
    made = list(rows(Made()))
    growth = series.panels(made, "growth")
    assert [(p.title, p.across) for p in growth] == [("image_encoder", "batch"), ("text_encoder", "tokens in a text")]
    assert growth[1].curves[0].x == (4, 8, 16, 32, 64, 128)
    rates = series.panels(made, "throughput")[0].curves[0].y
    assert rates[0] == pytest.approx(1000 / 12.5, rel=0.1) and rates[-1] > rates[0]
    assert series.panels(made, "photos")[0].curves[0].name == "torch, pillow"


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_labels_are_spread_out_in_order(wanted: list[float]) -> None:
    places = style.spread_out(wanted, gap=16, low=-200, high=200)
    gap = min(16, 400 / max(1, len(wanted) - 1))
    ordered = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(sorted(places)))
    assert ordered == sorted(ordered) and min(places) >= -200 - 1e-6 and max(places) <= 200 + 1e-6


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.floats(1e-9, 1e9), st.floats(-1, 1)), min_size=2, max_size=40))
def test_any_figures_can_be_drawn(figures: list[tuple[float, float]]) -> None:
    from simmim_export.benchmarks.html import plots

    made = Made(rounds=1, iterations=1)
    results = [
        made.row(
            (f"engine{i}", "fp32", ""),
            1000 * seconds,
            suite="peers",
            target="graph:g",
            accuracy={"cosine_mean": cosine},
        )
        for i, (seconds, cosine) in enumerate(figures)
    ]
    for scatter in series.scatters(results):
        assert ElementTree.fromstring(plots.accuracy(scatter, name="x").svg).get("role") == "img"


def test_the_command(run_cli, tmp_path: Path) -> None:
    words = ("report", write_example(tmp_path / "a.json"), "-o", tmp_path / "out.html", "--svg", tmp_path / "svg")
    done = run_cli("bench", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    assert {path.name for path in (tmp_path / "svg").iterdir()} >= {"accuracy-1.svg", "ladder-1.svg", "growth.svg"}
    assert run_cli("bench", *words).returncode == 2
    assert run_cli("bench", *words, "--overwrite").returncode == 0
    before = (tmp_path / "a.json").read_bytes()
    for where in (("-o", tmp_path / "a.json"), ("-o", tmp_path / "x", "--svg", tmp_path / "x")):
        assert run_cli("bench", "report", tmp_path / "a.json", *where, "--overwrite").returncode == 2
    assert (tmp_path / "a.json").read_bytes() == before and not (tmp_path / "x").exists()
    (tmp_path / "empty.json").write_text(json.dumps(example([])))
    for bad in ("none.json", "empty.json"):
        done = run_cli("bench", "report", tmp_path / bad, "-o", tmp_path / "b.html")
        assert done.returncode == 5 and f"where: {tmp_path / bad}" in done.stderr and not (tmp_path / "b.html").exists()
