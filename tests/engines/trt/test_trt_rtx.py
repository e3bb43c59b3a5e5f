"""TensorRT for RTX, the real one: every variant of the tiny graphs is parsed and built, and what cannot be built says why."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bindings
import onnx
import pytest

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.engines.tensorrt import library
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.engines.tensorrt.request import parse_targets
from simmim_export.errors import UsageError
from simmim_export.system.files import digest

Run = Callable[..., subprocess.CompletedProcess[str]]
TARGETS = ("--engine", "trt-rtx", "--target", "sm86,sm120")


@pytest.fixture(scope="session")
def rtx_folder() -> Path:
    try:
        return bindings.folder("rtx")
    except bindings.NotInstalled as reason:
        pytest.skip(str(reason))


@pytest.fixture
def build(rtx_folder: Path, run_cli: Run, tmp_path: Path) -> Run:
    """Run ``simmim-export build`` with TensorRT for RTX installed."""
    environment = os.environ | {"PYTHONPATH": str(rtx_folder), "SIMMIM_EXPORT_CACHE": str(tmp_path / "cache")}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return run_cli("export", "build", *words, env=environment)

    return run


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What --json printed. Nothing else may be on stdout: the compiler in TensorRT prints there past its log."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["graphs"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_graph_is_built_at_the_precision_asked_for(build: Run, bundle: Path, precision: str) -> None:
    before = Bundle.open(bundle).digest
    graphs = figures(build(bundle, *TARGETS, "--precision", precision, "--json"))
    assert set(graphs) == {spec.name for spec in Bundle.open(bundle).manifest.graphs}
    assert all(row["new"] and row["parity"] is None for row in graphs.values())
    products = {name: row["executed"].get("int8", 0) for name, row in graphs.items()}
    if precision == "int8":
        # Heads are too small to be quantized.
        assert {name for name, count in products.items() if count} == {"image_encoder", "text_encoder", "fusion"}
    else:
        assert not any(products.values())
    path = plan_files.plan_file_path(bundle, "text_encoder", engine="trt-rtx", precision=precision)
    sidecar = plan_files.read_sidecar(path)
    assert sidecar.target.sms == ("8.6", "12.0") and sidecar.target.gpu is None and sidecar.sha256 == digest(path)
    assert Bundle.open(bundle).digest == before


def test_a_second_build_keeps_what_fits(build: Run, bundle: Path) -> None:
    words = (bundle, *TARGETS, "--json")
    figures(build(*words))
    path = plan_files.sidecar_path(plan_files.plan_file_path(bundle, "fusion", engine="trt-rtx", precision="fp32"))
    content = json.loads(path.read_text())
    content["target"]["version"] = "1.5.0"
    path.write_text(json.dumps(content))
    assert [name for name, row in figures(build(*words)).items() if row["new"]] == ["fusion"]
    other = (bundle, "--engine", "trt-rtx", "--target", "sm89", "--json")
    assert all(row["new"] for row in figures(build(*other)).values())


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("--engine", "trt-rtx"), 2, "sm86"),
        (("--engine", "trt-rtx", "--target", "sm90"), 2, "sm90"),
        (("--engine", "trt-rtx", "--target", "ampere"), 2, "'ampere'"),
        (("--engine", "trt", "--target", "sm86"), 3, "tensorrt"),
        ((*TARGETS, "--hardware-compatibility", "ampere_plus"), 2, "--hardware-compatibility"),
        ((*TARGETS, "--max", "batch=900"), 2, "batch"),
    ],
)
def test_wrong_options_build_nothing(build: Run, bundle: Path, words: tuple[str, ...], code: int, what: str) -> None:
    done = build(bundle, *words)
    assert done.returncode == code and what in done.stderr, done.stderr
    assert not list(bundle.rglob("*.plan"))


def test_a_dry_run_asks_the_real_parser(build: Run, bundle: Path) -> None:
    graphs = figures(build(bundle, "--precision", "int8", "--dry-run", "--json"))
    verdicts = {name: row["parser"] for name, row in graphs.items()}
    assert all("TensorRT for RTX" in verdict["parser"] and verdict["refused"] is None for verdict in verdicts.values())
    for name, verdict in verdicts.items():
        nodes = onnx.load(bundle / f"graphs/{name}.int8-s8-fp16.onnx").graph.node
        makers = {output: node.op_type for node in nodes for output in node.output}
        products = [node for node in nodes if node.op_type in ("MatMul", "Gemm", "Conv")]
        assert verdict["products"] == sum(makers.get(node.input[1]) == "DequantizeLinear" for node in products)
    assert verdicts["text_encoder"]["products"] and not verdicts["head.vqa"]["products"]


def test_the_parser_refuses_the_variant_for_cpus(build: Run, bundle: Path) -> None:
    """U8 activations in the place of S8: the manifest says int8-s8-fp16."""
    source, path = (bundle / f"graphs/text_encoder.{variant}.onnx" for variant in ("int8-u8", "int8-s8-fp16"))
    replace(bundle, path, source.read_bytes())
    done = build(bundle, *TARGETS, "--precision", "int8")
    assert done.returncode == 5 and "text_encoder" in done.stderr and "QuantizeLinear" in done.stderr, done.stderr
    assert "Non-zero zero point" in done.stderr
    names = {path.name for path in bundle.rglob("*.plan")}
    assert names == {"image_encoder.int8.plan"}


@pytest.mark.parametrize("content", [b"\x08\x08", b"no model at all" * 9], ids=["empty", "garbage"])
def test_a_file_that_is_not_a_model_is_bad_input(build: Run, bundle: Path, content: bytes) -> None:
    path = bundle / "graphs/head.vqa.fp32.onnx"
    replace(bundle, path, content)
    done = build(bundle, *TARGETS)
    assert done.returncode == 5 and str(path) in done.stderr and "--workspace" not in done.stderr, done.stderr


def test_running_needs_a_driver(rtx_folder: Path, build: Run, run_cli: Run, bundle: Path) -> None:
    if get_engine("ort@cuda").why_unavailable() is None:
        pytest.skip("there is a GPU")
    figures(build(bundle, *TARGETS, "--json"))
    done = run_cli("export", "verify", bundle, "--engine", "trt-rtx", env=os.environ | {"PYTHONPATH": str(rtx_folder)})
    assert done.returncode == 3 and "cuda" in done.stderr.lower(), done.stderr


def test_without_the_packages_the_command_says_what_to_install(run_cli: Run, bundle: Path) -> None:
    if library.RTX.why_missing() is None:
        pytest.skip("TensorRT for RTX is installed")
    done = run_cli("export", "build", bundle, *TARGETS)
    assert done.returncode == 3 and "pip install 'simmim-export[trt-rtx]'" in done.stderr


def test_mismatched_package_versions_are_reported(
    rtx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(rtx_folder / "tensorrt_rtx_bindings", tmp_path / "tensorrt_rtx_bindings")
    for name, version in (("bindings", "1.7.1.116"), ("libs", "1.8.0.3")):
        metadata = tmp_path / f"tensorrt_rtx_cu13_{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: tensorrt-rtx-cu13-{name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = library.RTX.why_missing() or ""
    assert "1.7.1.116" in reason and "1.8.0.3" in reason


@pytest.mark.parametrize("text", ["", "86", "sm8", "SM86", "sm86;sm89", "sm86,,sm89", "sm1234"])
def test_a_target_that_does_not_parse_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_targets(text)
    assert caught.value.fix


def test_targets_are_in_order_and_unique() -> None:
    assert parse_targets("sm120, sm86,sm86") == ("8.6", "12.0")


def replace(bundle: Path, path: Path, content: bytes) -> None:
    """Replace the file ``path`` of ``bundle``, and let the manifest agree."""
    manifest = Bundle.open(bundle).manifest
    path.write_bytes(content)
    changed = tuple(
        dataclasses.replace(a, sha256=digest(path), bytes=len(content)) if a.path == f"graphs/{path.name}" else a
        for a in manifest.artifacts
    )
    (bundle / "manifest.json").write_text(dataclasses.replace(manifest, artifacts=changed).dumps())
