"""The command that writes the page: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pages import make_page, require_packages
from support import word_tokenizer

from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.runtime.images import ImagePreprocessing
from simmim_export.runtime.text import Tokenizer
from simmim_export.web import checks, packages, site


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))


def test_the_command_writes_what_it_says(tiny_bundle: Path, tmp_path: Path, run_cli: Callable) -> None:
    require_packages()
    done = run_cli("export", "web", tiny_bundle, "-o", tmp_path / "page", "--precision", "int8", "--measure", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    written = [path for path in (tmp_path / "page").rglob("*") if path.is_file()]
    assert document["files"] == len(written) and document["bytes"] == sum(path.stat().st_size for path in written)
    assert set(document["graphs"].values()) == {"int8-u8"}
    assert set(document["native"]["milliseconds"]) == set(document["graphs"])
    assert 0 < document["download"]["gzipped"] < document["download"]["bytes"] < document["bytes"]
    again = run_cli("export", "web", tiny_bundle, "-o", tmp_path / "page")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert run_cli("export", "web", tiny_bundle, "-o", tmp_path / "page", "--overwrite").returncode == 0
    described = json.loads((tmp_path / "page/site.json").read_text())
    assert set(described["variants"].values()) == {"fp32"} and described["native"] is None


def test_only_a_page_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/notes.txt").write_text("notes")
    with pytest.raises(UsageError):
        make_page(tiny_bundle, tmp_path / "notes", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_failure_leaves_nothing(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_download", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_page(tiny_bundle, tmp_path / "page")
    assert list(tmp_path.iterdir()) == []


def test_missing_npm_is_an_error(
    no_cache: None, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable) as caught, packages.installed(lambda *_: None):
        pass
    assert "nodejs.org" in (caught.value.fix or "")


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_a_failing_npm_is_an_error(no_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"registry": "http://127.0.0.1:9", "cache": str(tmp_path / "npm"), "fetch_retries": "0"}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(EngineUnavailable) as caught, packages.installed(lambda *_: None):
        pass
    assert "npm" in caught.value.what and "registry" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("precision", "error"),
    [("bf16", EngineUnavailable), ("planned", EngineUnavailable), ("int4", UsageError), ("hed=int8", UsageError)],
)
def test_a_precision_that_a_browser_lacks(tiny_bundle: Path, precision: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        site.plan_for_browser(Bundle.open(tiny_bundle), precision)


def test_a_precision_that_the_bundle_lacks(every_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        make_page(every_bundle, tmp_path / "page", precision="int8")
    assert "int8-u8" in caught.value.what and caught.value.where == str(every_bundle)


def test_a_bundle_that_is_too_large(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = Bundle.open(copy).manifest
    large = 3 << 29
    artifacts = tuple(
        replace(one, bytes=large) if (one.graph, one.variant) == ("text_encoder", "fp32") else one
        for one in manifest.artifacts
    )
    # A file with a hole takes no space on the disk.
    os.truncate(copy / "graphs/text_encoder.fp32.onnx", large)
    (copy / "manifest.json").write_text(replace(manifest, artifacts=artifacts).dumps(), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        make_page(copy, tmp_path / "page")
    assert "too large" in caught.value.what and not (tmp_path / "page").exists()


def test_pictures_that_a_crop_refuses_are_no_checks() -> None:
    whole = checks.picture_checks(ImagePreprocessing(96, 96, interpolation="bicubic"))
    cut = checks.picture_checks(ImagePreprocessing(384, 384, resize="crop", interpolation="bicubic", shortest=384))
    sizes = [(one["width"], one["height"]) for one in cut]
    assert len(whole) == len(checks.SIZES) and sizes == [size for size in checks.SIZES if size != (640, 3)]


def test_an_altered_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    path = copy / "graphs/fusion.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        make_page(copy, tmp_path / "page")
    assert caught.value.where == str(path) and not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("section", "part", "named"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}, "Nmt"),
        ("model", {"type": "BPE", "vocab": {"[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "a": 1}, "merges": []}, "BPE"),
    ],
)
def test_a_part_of_a_tokenizer_that_javascript_lacks(section: str, part: dict, named: str) -> None:
    source = json.dumps(json.loads(word_tokenizer()) | {section: part})
    with pytest.raises(BundleError) as caught:
        site.text_rules(source, Tokenizer(source, 20), specs=[])
    assert named in caught.value.what


def test_packages_are_pinned() -> None:
    lock = json.loads((packages.HERE / "package-lock.json").read_text())
    wanted = json.loads((packages.HERE / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    # An address would tie the lock to one registry.
    for name, row in lock["packages"].items():
        assert not name or (row["integrity"].startswith("sha512-") and "resolved" not in row)
