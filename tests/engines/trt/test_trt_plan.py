"""Plan files that are damaged or not for this device are refused, on a fake GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Rig

from simmim_export.bundle import Bundle
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.errors import BundleError, EngineUnavailable, SimmimError
from simmim_export.runtime import load


@pytest.mark.parametrize("rig", ["11"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        {"recipe": None}, {"recipe": {}}, {"recipe": {"profile": {"batch": [1]}}}, {"executed": []}, {"bytes": "9"},
        {"sha256": None}, {"target": {"driver": "12060"}}, {"target": {"sms": None}}, {"target": {"sms": ["eight"]}},
        {"target": {"sms": []}},
        {"target": {"sms": ["9" * 5000 + ".0"]}}, {"recipe": {"compatibility": []}}, {"recipe": {"workspace": "all"}},
        {"recipe": {"profile": {"batch": [8, 1, 1]}}}, {"recipe": {"profile": {"batch": [1, 1, 1.5]}}},
        {"recipe": {"profile": {"batch": [1, 1, float("inf")]}}}, {"recipe": {"profile": []}}, {"parity": {}},
        {"executed": {"Half": 0}}, {"executed": {"Half": "1"}}, {"bytes": True},
    ],
)  # fmt: skip
def test_json_that_is_not_a_sidecar_is_an_error(rig: Rig, change: dict[str, Any]) -> None:
    rig.start_built()
    sidecar = plan_files.sidecar_path(rig.plan())
    content = json.loads(sidecar.read_text())
    merged = {key: content[key] | change[key] for key in ("target", "recipe") if change.get(key)}
    sidecar.write_text(json.dumps(content | change | merged))
    with pytest.raises(BundleError) as caught, load(rig.bundle, "trt") as model:
        model.session("image_encoder")
    assert caught.value.where == str(sidecar)
    assert [one.new for one in rig.build()] == [True, False, False, False, False]


@pytest.mark.parametrize("rig", ["11"], indirect=True)
@pytest.mark.parametrize("profile", [{}, {"batch": [1, 1, 8], "frames": [1, 1, 8]}, {"sequence": [1, 1, 8]}])
def test_a_profile_of_other_axes_is_an_error(rig: Rig, profile: dict[str, Any]) -> None:
    rig.start_built()
    sidecar = plan_files.sidecar_path(rig.plan())
    content = json.loads(sidecar.read_text())
    content["recipe"]["profile"] = profile
    sidecar.write_text(json.dumps(content))
    with pytest.raises(BundleError) as caught, load(rig.bundle, "trt") as model:
        model.session("image_encoder")
    assert caught.value.where == str(rig.plan())


def changed(rig: Rig, how: str) -> None:
    """Damage the plan file of the image encoder, or move it to another machine."""
    plan = rig.plan()
    sidecar = plan_files.sidecar_path(plan)
    content = json.loads(sidecar.read_text())
    if how == "another GPU":
        rig.gpu.name = b"Other GPU"
    elif how == "another version":
        content["target"]["version"] = "10.99.0"
    elif how == "older driver":
        rig.gpu.driver = 12000
    elif how == "no sidecar":
        sidecar.unlink()
        return
    elif how == "no JSON":
        sidecar.write_text("[")
        return
    elif how == "strange schema":
        content["schema"] = 99
    elif how == "truncated":
        plan.write_bytes(plan.read_bytes()[:1000])
    elif how == "altered":
        middle = bytearray(plan.read_bytes())
        middle[len(middle) // 2] ^= 1
        plan.write_bytes(middle)
    elif how == "another graph":
        content["graph_sha256"] = "0" * 64
    elif how == "another precision":
        for path in (plan, sidecar):
            shutil.copyfile(rig.plan(precision="fp16").with_name(path.name.replace("fp32", "fp16")), path)
        content = json.loads(sidecar.read_text())
        content["graph_sha256"] = Bundle.open(rig.bundle).artifact("image_encoder", "fp32").sha256
    else:
        plan.unlink()
    sidecar.write_text(json.dumps(content))


@pytest.mark.parametrize("rig", ["11"], indirect=True)
@pytest.mark.parametrize(
    ("how", "code", "what"),
    [
        ("another GPU", 3, "Fake GPU .SM 8.7.*Other GPU"),
        ("another version", 3, "TensorRT 10.99.0"),
        ("older driver", 3, "CUDA driver 12060"),
        ("no sidecar", 5, "no sidecar"),
        ("no JSON", 5, "cannot be read"),
        ("strange schema", 5, "schema"),
        ("truncated", 5, "1000 bytes"),
        ("altered", 5, "SHA-256"),
        ("another graph", 5, "another graph"),
        ("another precision", 5, "image_encoder at fp16.*image_encoder at fp32"),
        ("no plan file", 3, "not built"),
    ],
)
def test_an_unsuitable_plan_file_is_refused_before_tensorrt_reads_it(rig: Rig, how: str, code: int, what: str) -> None:
    rig.start_built()
    if how == "another precision":
        rig.start_built("fp16")
    changed(rig, how)
    with load(rig.bundle, "trt") as model, pytest.raises(SimmimError, match=what) as caught:
        model.session("image_encoder")
    assert caught.value.exit_code == code
    assert caught.value.fix == f"simmim-export build {rig.bundle} --engine trt --precision fp32"
    # The command that it names repairs it.
    rebuilt = {one.sidecar.graph: one.new for one in rig.build()}
    assert rebuilt["image_encoder"]
    with load(rig.bundle, "trt") as model:
        assert model.verify()[0].passed


@pytest.mark.parametrize(
    ("compatibility", "sm", "good"),
    [
        ("none", (8, 7), False),
        ("same_compute_capability", (8, 7), True),
        ("same_compute_capability", (8, 9), False),
        ("ampere_plus", (9, 0), True),
        ("ampere_plus", (7, 5), False),
    ],
)
def test_hardware_compatibility(tmp_path: Path, compatibility: str, sm: tuple[int, int], good: bool) -> None:
    built, here = (
        plan_files.Target(library="TensorRT", version="11.4.0", sms=(f"{m}.{n}",), gpu=gpu, driver=12060)
        for gpu, (m, n) in (("A", (8, 7)), ("B", sm))
    )
    card = plan_files.Sidecar(
        graph="x",
        graph_sha256="",
        precision="fp32",
        sha256="",
        bytes=0,
        target=built,
        recipe={"compatibility": compatibility},
        executed={},
        parity={},
    )
    if good:
        plan_files.require_target(tmp_path / "a/b/c/x.fp32.plan", card, here=here)
    else:
        with pytest.raises(EngineUnavailable):
            plan_files.require_target(tmp_path / "a/b/c/x.fp32.plan", card, here=here)


def test_a_plan_file_that_tensorrt_cannot_open_is_an_error(rig: Rig) -> None:
    rig.start_built()
    rig.world.refuse_open = True
    with (
        load(rig.bundle, "trt") as model,
        pytest.raises(BundleError, match="image_encoder") as caught,
    ):
        model.session("image_encoder")
    assert "memory" not in caught.value.fix
