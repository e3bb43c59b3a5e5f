"""TensorRT for RTX on a fake GPU: plan files that were built ahead of time run through the same code as those of TensorRT."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Rig

from simmim_export.bundle import Bundle
from simmim_export.engines.tensorrt import TrtEngine, TrtRtxEngine, library
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import EngineUnavailable
from simmim_export.runtime import load
from simmim_export.runtime.build import Built, build
from simmim_export.runtime.loading import plan_of
from simmim_export.tensorrt_rules.dry_run import modules


@pytest.fixture
def rtx(machine: Any, tiny_bundle: Path, tmp_path: Path) -> Rig:
    gpu, world = machine("rtx")
    gpu.sm = (8, 6)
    return Rig(Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), gpu, world, major="rtx", kept=tmp_path)


def built(rig: Rig, precision: str = "fp32", *, targets: tuple[str, ...] = ("8.6", "12.0")) -> list[Built]:
    opened = Bundle.open(rig.bundle)
    plan = plan_of(opened, "trt-rtx", precision=precision)
    request = Request(targets=targets)
    return build(opened, TrtRtxEngine(), plan=plan, request=request, modules=modules, watch=lambda *_: None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_plan_file_that_was_never_run_is_proven_on_the_device(rtx: Rig, precision: str) -> None:
    cards = [one.sidecar for one in built(rtx, precision)]
    assert rtx.world.asked["targets"] == ["SM86", "SM120"] and all(card.parity is None for card in cards)
    assert (precision == "int8") == any("int8" in card.executed for card in cards)
    with load(rtx.bundle, "trt-rtx", precision=precision) as model, load(rtx.bundle, "ort") as other:
        assert all(report.passed for report in model.verify())
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert (model.embed_image([pixels]) * other.embed_image([pixels])).sum() > 0.97


def test_kernels_are_kept_for_the_next_process(rtx: Rig, tmp_path: Path) -> None:
    built(rtx)
    for known in (None, True):
        with load(rtx.bundle, "trt-rtx") as model:
            assert model.compare("head.vqa", model.bundle.golden()).passed
        assert rtx.world.asked.pop("kernels", None) is known
    (kernels,) = (tmp_path / "cache/trt-rtx").glob("*/*.kernels")
    # A damaged file is removed before TensorRT sees it.
    kernels.write_bytes(b"other")
    with load(rtx.bundle, "trt-rtx") as model:
        assert model.compare("head.vqa", model.bundle.golden()).passed
    assert "kernels" not in rtx.world.asked


def test_a_gpu_that_is_not_a_target_is_refused(rtx: Rig) -> None:
    built(rtx)
    rtx.gpu.sm = (8, 9)
    with load(rtx.bundle, "trt-rtx") as model, pytest.raises(EngineUnavailable, match=r"8\.6, 12\.0.*8\.9") as caught:
        model.session("fusion")
    assert "--target" in caught.value.fix


def test_a_process_uses_one_tensorrt(rtx: Rig) -> None:
    built(rtx)
    with pytest.raises(EngineUnavailable, match="TensorRT for RTX"):
        TrtEngine().here()
    assert library.used() is library.RTX
