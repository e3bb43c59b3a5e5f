"""The commands: certify, verify --evidence, --engine auto, and the plans that an export chose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from certificates import typed

from simmim_export.benchmarks.certify import lowered, unchanged
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine, versions
from simmim_export.engines.checks import int8_for_this_cpu
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.proof.certificate import FILE, read
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.proof.records import Certificate, Line
from simmim_export.runtime import load
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.host import fingerprint


def test_a_precision_that_no_node_ran_in_is_not_certified(certificate: Callable[..., Certificate]) -> None:
    def ran(precision: str, **executed: int) -> dict[str, Any]:
        return {"precision": precision, "executed": {"executed": executed}}

    assert lowered({"image_encoder": ran("fp32", float32=9)}) == []
    head = {"a": ran("int8", uint8=1, conversion=4), "b": ran("int8", float32=9, conversion=2)}
    assert [line.kept for line in lowered(head, untouched=["b"])] == [True]
    (kept, broken) = lowered(head | {"c": ran("bf16", bfloat16=2), "d": ran("fp32", int8=3)})[::-1]
    assert kept == Line(name="graphs in bf16", measured=1, allowed="all 1", kept=True)
    assert certificate(lines=msgspec.to_builtins([kept, broken])).failures() == ["graphs in int8 1, all 2"]


def test_only_a_copy_made_by_a_pass_counts_as_unchanged(tiny_bundle: Path) -> None:
    """OpenVINO runs BF16 from the FP32 file, so that an equal file does not mean that there is nothing to lower."""
    opened = Bundle.open(tiny_bundle)
    of = {Precision.FP32: ("fp32",), Precision.BF16: ("fp32",), Precision.INT8: ("int8-dot", "int8-u8")}
    engine: Any = SimpleNamespace(variants=of.__getitem__)
    assert unchanged(opened, engine, PrecisionPlan.parse("bf16")) == []
    # Heads are too small for INT8: their files are copies.
    assert set(unchanged(opened, engine, PrecisionPlan.parse("int8"))) == {"head.match", "head.vqa"}
    assert unchanged(opened, engine, PrecisionPlan.parse("head.match=bf16,head.vqa=int8")) == ["head.vqa"]


def test_what_cannot_be_proven_is_not_certified(tiny_bundle: Path, tmp_path: Path, run_cli) -> None:
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    done = run_cli("export", "certify", bundle.root, "--engine", "torch", "--rounds", 1)
    assert done.returncode == 2 and "torch" in done.stderr, done.stderr
    done = run_cli("export", "certify", bundle.root, "--engine", "ort", "--budget", "")
    assert done.returncode == 2 and "budget" in done.stderr, done.stderr
    files = {name: sha256 for name, sha256 in bundle.manifest.files.items() if name != EVIDENCE}
    (bundle.root / "manifest.json").write_text(replace(bundle.manifest, files=files).dumps())
    done = run_cli("export", "certify", bundle.root, "--engine", "ort", "--rounds", 1)
    assert done.returncode == 5 and "evidence" in done.stderr, done.stderr
    assert not (bundle.root / FILE).exists()


@pytest.fixture(scope="module")
def certified(asked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with evidence, for the tests of this file to certify."""
    return Path(shutil.copytree(asked_bundle, tmp_path_factory.mktemp("certify") / "bundle"))


def test_engine_auto_needs_a_certificate_and_no_other_choice(asked_bundle: Path, picture: Path, run_cli) -> None:
    words = ("export", "embed", asked_bundle, picture, "--engine", "auto")
    done = run_cli(*words)
    assert done.returncode == 3 and f"simmim-export certify {asked_bundle}" in done.stderr
    for option in (("--precision", "int8"), ("--threads", 64)):
        done = run_cli(*words, *option)
        assert done.returncode == 2 and f"drop the {option[0].removeprefix('--')}" in done.stderr
    with pytest.raises(UsageError) as caught:
        load(asked_bundle, "auto", hint="throughput")
    assert "drop the hint" in str(caught.value.fix)


def test_the_default_budget_lists_what_it_could_not_judge(certified: Path, run_cli) -> None:
    done = run_cli("export", "certify", certified, "--rounds", 1, "--engine", "ort")
    assert done.returncode == 0 and done.stdout.count("not judged: ") == 3, done.stderr
    (made,) = read(Bundle.open(certified))
    assert [one.name for one in made.not_judged] == ["answers match", "answers vqa", "retrieval"]
    assert [line.name for line in made.lines] == ["cosine images", "cosine texts", "references"]


def test_every_engine_is_certified_and_the_fastest_is_used(certified: Path, picture: Path, run_cli) -> None:
    done = run_cli("export", "certify", certified, "--rounds", 1, "--budget", "cosine=0.9", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {f"{row['engine']}:{row['precision']}": row for row in document["certificates"]}
    assert {"ort:fp32", "ort:int8", "openvino:fp32", "openvino:int8"} <= rows.keys()
    assert any("ort:fp16" in reason for reason in document["skipped"])
    opened = Bundle.open(certified)
    for name, row in rows.items():
        assert row["passed"] and row["host"] == fingerprint() and row["versions"] == versions(row["engine"])
        assert row["graphs"].keys() == {graph.name for graph in opened.manifest.graphs}
        for graph in row["graphs"].values():
            assert graph["variant"] == (int8_for_this_cpu()[0] if graph["precision"] == "int8" else "fp32")
            assert graph["parity"]["passed"] and graph["executed"]["executed"] and graph["invariance"]
        if name.endswith(":fp32"):
            assert all(task["loss"] == 0 for task in row["figures"]["tasks"].values())
        executed = row["graphs"]["image_encoder"]["executed"]["executed"]
        integers = any(count > 3 for kind, count in executed.items() if kind in ("int8", "uint8"))
        assert integers == name.endswith(":int8") or row["precision"] in ("planned", "fp32", "bf16")
        assert f"--engine {name}" in row["command"] and "--budget cosine=0.9" in row["command"]

    done = run_cli("export", "embed", certified, picture, "--engine", "auto")
    assert done.returncode == 0, done.stderr
    best = min(rows, key=lambda name: typed(rows[name]).speed())
    assert f"engine auto: {best.partition(':')[0]} at" in done.stderr and "the fastest of" in done.stderr
    assert run_cli("export", "verify", certified, "--engine", "auto").returncode == 0
    done = run_cli("export", "verify", certified, "--precision", "int8", "--evidence")
    assert done.returncode == 0 and "certified on" in done.stdout, done.stderr


def test_an_exceeded_budget_exits_4(asked_bundle: Path, tmp_path: Path, run_cli) -> None:
    bundle = Path(shutil.copytree(asked_bundle, tmp_path / "bundle"))
    done = run_cli("export", "verify", bundle, "--precision", "int8", "--evidence", "--budget", "cosine=1")
    assert done.returncode == 4 and "cosine images" in done.stderr
    done = run_cli("export", "verify", bundle, "--budget", "cosine=1")
    assert done.returncode == 2 and "add --evidence" in done.stderr
    done = run_cli("export", "certify", bundle, "--engine", "ort:int8", "--rounds", 1, "--budget", "cosine=1")
    assert done.returncode == 4 and "ort:int8: cosine" in done.stderr
    assert run_cli("export", "certify", bundle, "--engine", "trt").returncode == 3


def test_a_plan_travels_with_the_bundle(asked_bundle: Path, run_cli) -> None:
    opened = Bundle.open(asked_bundle)
    assert opened.manifest.plans.keys() == {"ort", "openvino"}
    planning = opened.manifest.provenance["planning"]
    chosen = {(plan["engine"], plan["variant"]): plan["chosen"] for plan in planning}
    plans = {(engine, variant): own[variant] for engine, own in opened.manifest.plans.items() for variant in own}
    assert chosen.keys() == {(engine, each) for engine in ("ort", "openvino") for each in int8_for_this_cpu()}
    assert all(plans[key] == plan for key, plan in chosen.items())
    assert plans.keys() == {(engine, each) for engine in ("ort", "openvino") for each in ("int8-dot", "int8-u8")}
    if Precision.BF16 in _precisions("openvino"):
        rows = {row["plan"] for plan in planning if plan["engine"] == "openvino" for row in plan["tried"]}
        assert ",".join(f"{graph.name}=bf16" for graph in sorted(opened.manifest.graphs, key=lambda g: g.name)) in rows
    for plan in planning:
        assert any(row["plan"] == plan["chosen"] and row["fits"] for row in plan["tried"])
        assert any(row["pareto"] for row in plan["tried"]) and all(row["costs"] for row in plan["tried"])
    done = run_cli("export", "verify", asked_bundle, "--engine", "openvino", "--precision", "planned")
    assert done.returncode == 0, done.stderr
    done = run_cli("export", "verify", asked_bundle, "--engine", "trt", "--precision", "planned")
    assert done.returncode == 3


def _precisions(engine: str) -> set[Precision]:
    """The precisions that ``engine`` has here."""
    has = set()
    for precision in Precision:
        with suppress(EngineUnavailable):
            get_engine(engine).variants(precision)
            has.add(precision)
    return has


def test_an_export_ends_if_no_plan_keeps_its_budget(tiny_checkpoint: Path, tmp_path: Path, run_cli) -> None:
    """FP32 itself is off by a rounding; whether INT8 is named depends on its being faster, which tiny's may not be."""
    words = ("--precision", "int8", "--budget", "cosine=1", "-o", tmp_path / "b")
    done = run_cli("export", "onnx", tiny_checkpoint, *words)
    assert done.returncode == 4 and "cosine=1" in done.stderr and "plan of ort" in done.stderr, done.stderr
    assert not (tmp_path / "b").exists()
