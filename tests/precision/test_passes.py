"""The cache of the passes: the same result without work, and never a damaged file or a result of something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError
from simmim_export.export.lower import Lower
from simmim_export.precision import passes
from simmim_export.precision.int8_u8 import Int8ForCpu
from simmim_export.precision.passes import PASSES, CachedPasses, Options, variants_of, write_variant
from simmim_export.spec import Precision, Variant


@pytest.mark.parametrize("variant", ["fp8", "bf16", Variant.FP32])
def test_unknown_variant_is_an_error(tiny_bundle: Path, tmp_path: Path, variant: Variant) -> None:
    source, target = tiny_bundle / "graphs/head.vqa.fp32.onnx", tmp_path / "x.onnx"
    with pytest.raises(UsageError, match=str(variant)) as caught:
        write_variant(source, target, variant=variant, feeds=[])
    assert caught.value.exit_code == 2 and caught.value.fix and not target.exists()


def test_every_variant_belongs_to_its_precision_and_has_a_pass() -> None:
    for precision in (Precision.FP16, Precision.INT8):
        assert {variant.precision for variant in variants_of([precision])} == {Precision.FP32, precision}
    assert set(variants_of([Precision.FP16, Precision.INT8])) == set(Variant)
    assert set(PASSES) == set(Variant) - {Variant.FP32}


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP32])
def test_asking_for_a_precision_without_files_is_an_error(precision: Precision) -> None:
    with pytest.raises(UsageError, match=str(precision)) as caught:
        Lower((precision,))
    assert caught.value.exit_code == 2 and caught.value.fix


def test_a_full_cache_does_not_cost_the_result(
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
    cached = CachedPasses({"head.vqa": []})
    cached.write("head.vqa", Variant.INT8_U8, source=source, target=target, options=Options())
    assert target.is_file() and not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_cached_result_is_whole_or_made_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))
    golden, spec = golden_of(tiny_bundle), Bundle.open(tiny_bundle).manifest.graph("text_encoder")
    rows = golden.feeds(max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size), spec)
    feeds = [{name: array[[index]] for name, array in rows.items()} for index in range(4)]
    source, target = tiny_bundle / "graphs/text_encoder.fp32.onnx", tmp_path / "x.onnx"
    spared = Int8ForCpu.touched(onnx.load(source))[0]
    made: list[Variant] = []
    real = passes.write_variant
    monkeypatch.setattr(
        passes, "write_variant", lambda *args, **rest: made.append(rest["variant"]) or real(*args, **rest)
    )

    def write(options: Options = Options()) -> bytes:
        cached = CachedPasses({"text_encoder": feeds})
        cached.write("text_encoder", Variant.INT8_U8, source=source, target=target, options=options)
        return target.read_bytes()

    first = write()
    assert write() == first and len(made) == 1
    assert write(Options(keep_float=(spared,))) != first and len(made) == 2
    (kept,) = [path for path in (tmp_path / "cache").rglob("graph.onnx") if path.read_bytes() == first]
    kept.write_bytes(first[:1000] + bytes([first[1000] ^ 1]) + first[1001:])
    assert write() == first and len(made) == 3
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", "off")
    assert write() == first and len(made) == 4
