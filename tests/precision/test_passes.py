"""What the passes remember: the same again without work, and never a damaged file or a result for something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.precision import passes
from simmim_export.precision.passes import Options, Passes


def test_a_cache_that_is_full_costs_no_result(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))
    source, target = tiny_bundle / "graphs/head.vqa.fp32.onnx", tmp_path / "x.onnx"
    copy = passes.shutil.copyfile

    def full(source: Path, target: Path) -> object:
        if "cache" in Path(target).parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copy(source, target)

    monkeypatch.setattr(passes.shutil, "copyfile", full)
    Passes({"head.vqa": []}).make("head.vqa", "int8-u8", source, target, Options())
    assert target.is_file() and not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_result_is_kept_whole_or_made_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))
    golden, spec = golden_of(tiny_bundle), Bundle.open(tiny_bundle).manifest.graph("text_encoder")
    rows = golden.feeds(max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size), spec)
    feeds = [{name: array[[index]] for name, array in rows.items()} for index in range(4)]
    source, target = tiny_bundle / "graphs/text_encoder.fp32.onnx", tmp_path / "x.onnx"
    applied: list[str] = []
    real = passes.apply
    monkeypatch.setattr(passes, "apply", lambda variant, *rest: applied.append(variant) or real(variant, *rest))

    def make(options: Options = Options()) -> bytes:
        Passes({"text_encoder": feeds}).make("text_encoder", "int8-u8", source, target, options)
        return target.read_bytes()

    first = make()
    assert make() == first and len(applied) == 1
    assert make(Options(full_range=True)) != first and len(applied) == 2
    (kept,) = [path for path in (tmp_path / "cache").rglob("graph.onnx") if path.read_bytes() == first]
    kept.write_bytes(first[:1000] + bytes([first[1000] ^ 1]) + first[1001:])
    assert make() == first and len(applied) == 3
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", "off")
    assert make() == first and len(applied) == 4
