"""The page in a real Chromium: it computes what Python computes, checks itself, and refuses what was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browsing, chromium
from pages import make_page, served, table, wait_for_proof, wait_for_state
from PIL import Image
from support import WORDS, Once

import simmim_export
from simmim_export.benchmarks.native import native_times
from simmim_export.bundle import Bundle
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer
from simmim_export.system.watch import unwatched
from simmim_export.web import site
from simmim_export.web.checks import token_ids

TEXTS = 1000


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, once: Once) -> Path:
    """The page of the tiny bundle at FP32, with native times beside those of the browser."""

    def make(path: Path) -> None:
        bundle = Bundle.open(tiny_bundle)
        artifacts = site.artifacts_for(bundle, site.plan_for_browser(bundle, "fp32"))
        native = native_times(bundle, artifacts, threads=1, watch=unwatched)
        make_page(tiny_bundle, path, native=native)

    return once("tiny-page", make)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browsing() as opened:
        yield opened


@pytest.fixture
def tab(browser: Page) -> Page:
    browser.events.clear()
    return browser


@pytest.fixture
def ready(folder: Path, tab: Page) -> Iterator[Page]:
    """The page, loaded and ready."""
    with served(folder) as address:
        tab.open(address)
        wait_for_state(tab, "ready")
        yield tab


def photograph(path: Path, width: int = 90, height: int = 70) -> Path:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def take(tab: Page, path: Path) -> None:
    tab.choose("#file", path)
    tab.wait_for(f"document.getElementById('picture-name').textContent === '{path.name}'", "the picture is not shown")


def perform(tab: Page, task: str, text: str = "") -> Any:
    """Choose a task, type a text and run it: the results as [label, score], or the trouble."""
    script = f"""(async () => {{
      const byId = (id) => document.getElementById(id);
      document.querySelector('input[value="{task}"]').click();
      byId("text").value = {json.dumps(text)};
      byId("run").click();
      const done = () => !byId("run").disabled && (byId("results").children.length || byId("trouble").textContent);
      while (!done()) await new Promise((resolve) => setTimeout(resolve, 20));
      const trouble = byId("trouble").textContent;
      const vector = document.querySelector("#results .vector");
      if (trouble) return {{trouble}};
      if (vector) return vector.textContent.split(" ").map(Number);
      return [...document.querySelectorAll("#results li")].map((one) => [one.firstChild.textContent, Number(one.dataset.score)]);
    }})()"""
    return tab.value(script)


def test_the_page_proves_itself(ready: Page, tiny_bundle: Path, record_property: Callable[[str, object], None]) -> None:
    assert wait_for_proof(ready) == "passed"
    with simmim_export.load(tiny_bundle) as model:
        reports = {report.graph: report for report in model.verify()}
    rows = table(ready)
    assert [row[0] for row in rows] == list(reports)
    for name, variant, passed, error, _, here, native in rows:
        count = len(reports[name].rows)
        assert (variant, passed) == ("fp32", f"{count} of {count}")
        assert float(error) == pytest.approx(reports[name].scaled_error, abs=5e-6)
        record_property(name, f"browser {here}, native {native}")
    verdict = ready.value("document.getElementById('verdict').textContent")
    sizes = ready.value("document.getElementById('sizes').textContent")
    times = "; ".join(f"{row[0]} {row[5]} (native {row[6]})" for row in rows)
    print(f"\n{verdict} {times}. {sizes}")
    assert ready.value("document.querySelectorAll('#host-checks .bad').length") == 0
    assert ready.value("document.querySelectorAll('#host-checks li').length") == 2


def test_answers_are_those_of_python(ready: Page, tiny_bundle: Path, tmp_path: Path) -> None:
    path = photograph(tmp_path / "photo.png")
    take(ready, path)
    question, texts = "what colour is the circle ?", [f"a {word} circle" for word in WORDS[:11]]
    with simmim_export.load(tiny_bundle) as model:
        answers = model.answer(path, question, top_k=4)
        scores = model.match(path, texts)
        vectors = {"embed-image": model.embed_image([path])[0], "embed-text": model.embed_text([question])[0]}
    shown = perform(ready, "ask", question)
    assert [label for label, _ in shown] == [answer.label for answer in answers]
    assert [score for _, score in shown] == pytest.approx([answer.score for answer in answers], abs=1e-5)
    shown = perform(ready, "match", "\n".join(texts))
    assert [label for label, _ in shown] == texts
    assert [score for _, score in shown] == pytest.approx(scores.tolist(), abs=1e-5)
    for task, vector in vectors.items():
        assert perform(ready, task, question) == pytest.approx(vector.tolist(), abs=1e-5)


def test_nothing_else_is_loaded_and_nothing_is_reported(ready: Page, tmp_path: Path) -> None:
    take(ready, photograph(tmp_path / "photo.png"))
    perform(ready, "ask", "what colour ?")
    assert wait_for_proof(ready) == "passed"
    here = ready.value("location.origin")
    requested = [event["request"]["url"] for event in ready.reported("Network.requestWillBeSent")]
    assert requested and all(url.startswith((here, "data:", "blob:")) for url in requested)
    assert not ready.reported("Runtime.exceptionThrown")
    assert not [e for e in ready.reported("Log.entryAdded") if e["entry"]["level"] == "error"]


def test_a_bad_input_is_a_message(ready: Page, tmp_path: Path) -> None:
    assert "picture" in perform(ready, "ask", "what ?")["trouble"]
    for name, content in (("notes.png", b"not a picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        ready.choose("#file", tmp_path / name)
        ready.wait_for(f"document.getElementById('trouble').textContent.startsWith('{name}')", "no message")
    take(ready, photograph(tmp_path / "photo.png"))
    assert "empty" in perform(ready, "ask", "  ")["trouble"]
    assert "50,000" in perform(ready, "ask", "red " * 20_000)["trouble"]
    # After a message, the page still works.
    assert len(perform(ready, "ask", "what colour ?")) == 4
    assert ready.value("document.body.dataset.state") == "ready"


@pytest.mark.parametrize("name", ["bundle/graphs/fusion.fp32.onnx", "bundle/golden.npz", "bundle/manifest.json"])
def test_a_flipped_byte_is_refused(folder: Path, tab: Page, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "page"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with served(copy) as address:
        tab.open(address)
        wait_for_state(tab, "failed")
    assert name in tab.value("document.getElementById('failure-text').textContent")
    assert tab.value("document.getElementById('work').hidden")


def test_a_missing_file_is_a_message(folder: Path, tab: Page, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "page"))
    (copy / "bundle/tokenizer.json").unlink()
    with served(copy) as address:
        tab.open(address)
        wait_for_state(tab, "failed")
    assert "tokenizer.json" in tab.value("document.getElementById('failure-text').textContent")


def test_an_insecure_host_is_a_message(folder: Path, tab: Page) -> None:
    # 127.0.0.1 counts as secure under its own names alone.
    with served(folder) as address:
        tab.open(address.replace("http://127.0.0.1", "http://page.test"))
        wait_for_state(tab, "failed")
    assert "https" in tab.value("document.getElementById('failure-text').textContent")


def test_pictures_are_resized_as_pillow_does(ready: Page) -> None:
    rng = np.random.default_rng(0)
    for width, height, side in ((97, 61, 64), (300, 5, 224), (1, 1, 7), (64, 64, 64), (64, 200, 64), (513, 1000, 96)):
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = load_pixels([rgb], ImagePreprocessing(height=side, width=side))[0]
        script = f"""import("./picture.js").then(({{fromRgb, resize}}) => {{
          const rgb = Uint8Array.from(atob("{_base64(rgb)}"), (letter) => letter.charCodeAt(0));
          return [...resize(fromRgb(rgb, {width}, {height}), {side}, {side})];
        }})"""
        assert ready.value(script) == expected.ravel().tolist(), (width, height, side)


def test_a_png_is_decoded_and_resized_as_in_python(ready: Page, tmp_path: Path) -> None:
    path = photograph(tmp_path / "photo.png", 333, 222)
    expected = load_pixels([path], ImagePreprocessing(height=64, width=64))[0]
    script = f"""import("./picture.js").then(async ({{decode, resize}}) => {{
      const bytes = Uint8Array.from(atob("{_base64(path.read_bytes())}"), (letter) => letter.charCodeAt(0));
      return [...resize(await decode(new Blob([bytes])), 64, 64)];
    }})"""
    assert ready.value(script) == expected.ravel().tolist()


def _base64(data: bytes | np.ndarray) -> str:
    import base64

    return base64.b64encode(bytes(data)).decode()


def sentences(words: list[str]) -> list[str]:
    """Texts of one word to many, some far too long, with words that no vocabulary has and signs of several scripts."""
    rng = np.random.default_rng(0)
    odd = ["Ärger", "naïve", "ΟΔΟΣ", "İ", "中文", "\U00020000", "😀", "it's", "(x)", "3.5%", "zzqx", "ﬁ"]
    odd += ["\u00a0", "e\u0301", "-", "«A»"]
    texts = []
    for _ in range(TEXTS):
        chosen = rng.choice(words, rng.integers(1, 40)).tolist()
        for place in rng.integers(0, len(chosen), rng.integers(0, 3)):
            chosen[place] = rng.choice(odd)
        text = rng.choice([" ", "  ", "\n", "\t"]).join(chosen)
        texts.append(rng.choice([str.lower, str.upper, str.title, str])(text))
    return texts


@pytest.mark.parametrize("name", ["tiny_bundle", "minilm_bundle"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_thousand_texts_have_the_same_ids(name: str, ready: Page, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(name))
    source = bundle.file("tokenizer.json").read_text(encoding="utf-8")
    limit = bundle.manifest.preprocessing["text"]["max_length"]
    tokenizer = Tokenizer(source, limit, graphs=bundle.manifest.graphs)
    rules = site.text_rules(source, tokenizer, specs=bundle.manifest.graphs)
    vocabulary = [word for word in json.loads(source)["model"]["vocab"] if word.isalnum()]
    texts = sentences([*WORDS, *vocabulary[:: max(1, len(vocabulary) // 500)]])
    expected = [token_ids(tokenizer, text) for text in texts]
    assert {len(row) for row in expected} >= {limit, 3}
    script = f"""import("./text.js").then(({{Texts}}) => {{
      const texts = new Texts({source}, {json.dumps(rules)});
      return {json.dumps(texts)}.map((text) => texts.encode(text).ids);
    }})"""
    shown = ready.value(script)
    assert [(t, a, b) for t, a, b in zip(texts, shown, expected, strict=True) if a != b][:3] == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_prove_themselves(precision: str, tiny_bundle: Path, tab: Page, tmp_path: Path) -> None:
    made = make_page(tiny_bundle, tmp_path / "page", precision=precision)
    with served(made.path) as address:
        tab.open(address, width=390, height=844, mobile=True)
        wait_for_state(tab, "ready")
        assert wait_for_proof(tab) == "passed"
        variants = {row[0]: row[1] for row in table(tab)}
    assert variants == dict(made.variants)
    # Nothing is wider than a phone.
    assert tab.value("document.documentElement.scrollWidth") <= 390


def test_labels_are_only_text(tiny_bundle: Path, tab: Page, tmp_path: Path) -> None:
    from dataclasses import replace

    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = Bundle.open(copy).manifest
    hostile = ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "{{7*7}}", "\u202e\x00 模型"]
    labels = dict(manifest.labels) | {"vqa": tuple(hostile)}
    (copy / "manifest.json").write_text(replace(manifest, labels=labels).dumps(), encoding="utf-8")
    made = make_page(copy, tmp_path / "page")
    with served(made.path) as address:
        tab.open(address)
        wait_for_state(tab, "ready")
        take(tab, photograph(tmp_path / "photo.png"))
        shown = perform(tab, "ask", "what ?")
    assert {label for label, _ in shown} == set(hostile)
    assert tab.value("document.querySelectorAll('#results img, #results script').length") == 0


def test_the_keyboard_is_enough(ready: Page) -> None:
    reached = []
    for _ in range(30):
        ready.press("Tab")
        names = ".id || document.activeElement.name || document.activeElement.ariaLabel"
        reached.append(ready.value(f"document.activeElement{names}"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        if reached[-1] == "Sample picture 1":
            assert ready.value(outline) != "none"
            ready.press("Enter", text="\r")
        if reached[-1] == "text":
            break
    assert reached[0] == "file" and "task" in reached and reached[-1] == "text"
    ready.ask("Input.insertText", text="what colour is the circle ?")
    ready.press("Enter", text="\r")
    ready.wait_for("document.querySelectorAll('#results li').length === 4", "Enter does not ask")
    fields = "[...document.querySelectorAll('input, textarea, button')]"
    assert ready.value(f"{fields}.filter(e => !e.labels?.length && !e.textContent && !e.ariaLabel).length") == 0
