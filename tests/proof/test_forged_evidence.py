"""Certification when the evidence is wrong, although every digest fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from forging import LABELS, LOGITS, Arrays, forged, put, words
from support import change_graph

from simmim_export.benchmarks.certify import choose_witness, judgeable
from simmim_export.benchmarks.driver import Contestant
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, UsageError
from simmim_export.proof.budget import DEFAULT, Budget
from simmim_export.proof.certificate import read, write
from simmim_export.proof.examine import Examiner, reproduction, require_evidence
from simmim_export.runtime import load


def test_references_that_fp32_does_not_give_are_not_certified(asked_bundle: Path, tmp_path: Path, run_cli) -> None:
    """Only INT8 is asked for. FP32 runs all the same, and shows that the references are those of another model."""
    bundle = forged(asked_bundle, tmp_path / "bundle", put(LOGITS, lambda a: a[::-1].copy()))
    done = run_cli("export", "certify", bundle.root, "--engine", "ort:int8", "--rounds", 1, "--json")
    assert done.returncode == 4 and "references" in done.stderr, done.stderr
    (made,) = read(bundle)
    assert not made.passed and [line.name for line in made.lines if not line.kept] == ["references"]
    done = run_cli("export", "embed", bundle.root, "--text", "a circle", "--engine", "auto")
    assert done.returncode == 3, done.stderr
    done = run_cli("export", "verify", bundle.root, "--evidence", "--json")
    assert done.returncode == 4
    assert [row["name"] for row in json.loads(done.stdout)["budget"] if not row["kept"]] == ["references"]


def test_answers_better_than_those_of_fp32_are_suspicious(asked_bundle: Path, tmp_path: Path, run_cli) -> None:
    """The references have too few right answers. At INT8 they are not checked, but the gain is shown."""
    with load(asked_bundle, "ort", precision="int8") as model:
        evidence = require_evidence(model.bundle)
        answers = Examiner(model.bundle.manifest, evidence, tokens=model.tokens).outputs(model.session)["logits/vqa"]

    def change(arrays: Arrays) -> None:
        arrays[LABELS] = answers.argmax(axis=2)
        arrays[LOGITS] = np.roll(arrays[LOGITS], 1, axis=2)

    bundle = forged(asked_bundle, tmp_path / "bundle", change)
    done = run_cli("export", "verify", bundle.root, "--evidence", "--precision", "int8", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["evidence"]["tasks"]["vqa"]["suspicious"] and len(document["suspicious"]) == 1
    assert not any(document["evidence"]["tasks"][name]["suspicious"] for name in ("match", "retrieval"))
    done = run_cli("export", "certify", bundle.root, "--engine", "ort:int8", "--rounds", 1)
    assert done.returncode == 4 and "suspicious: vqa" in done.stdout
    (made,) = read(bundle)
    assert len(made.suspicious) == 1 and made.figures.tasks["vqa"].suspicious and not made.passed


@pytest.mark.parametrize("command", ["certify", "verify"])
def test_a_command_exits_5_for_evidence_that_does_not_fit(
    asked_bundle: Path, tmp_path: Path, run_cli, command: str
) -> None:
    bundle = forged(asked_bundle, tmp_path / "bundle", put(LOGITS, lambda a: a.astype(np.complex64)))
    more = ["--evidence"] if command == "verify" else ["--rounds", 1]
    done = run_cli("export", command, bundle.root, "--engine", "ort", *more)
    assert done.returncode == 5 and "logits/vqa" in done.stderr and not done.stdout, done.stderr
    assert not (bundle.root / "certificate.json").exists()


def test_a_bundle_with_nothing_to_judge_is_not_certified(asked_bundle: Path, tmp_path: Path) -> None:
    """The evidence has only texts, so no limit on answers can be judged."""

    def change(arrays: Arrays) -> None:
        words(lambda content: content.update(tasks={}, plain=["a circle"]))(arrays)
        embeds = arrays["reference/texts"][:1]
        for key in [key for key in arrays if key != "words"]:
            del arrays[key]
        arrays["reference/texts"] = embeds

    bundle = forged(asked_bundle, tmp_path / "bundle", change)
    _, left_out = judgeable(bundle, Budget.parse(DEFAULT), False)
    assert {one.name for one in left_out} == {"answers match", "answers vqa", "retrieval", "cosine images"}
    for strict, error in ((False, BundleError), (True, UsageError)):
        with pytest.raises(error) as caught:
            judgeable(bundle, Budget.parse("answers=1pt,retrieval=1pt"), strict)
        assert caught.value.exit_code == (2 if strict else 5) and caught.value.fix


def test_the_witness_is_a_contestant_or_an_engine_of_theirs_at_fp32(asked_bundle: Path) -> None:
    opened = Bundle.open(asked_bundle)

    def chosen(*names: str) -> str:
        return str(choose_witness(opened, [Contestant.parse(name) for name in names]))

    assert chosen("ort:int8", "openvino:bf16", "openvino") == "openvino"
    assert chosen("openvino:int8", "ort:int8") == "openvino" and chosen("trt:int8") == "ort"


def test_an_explicit_budget_must_be_judged_whole(asked_bundle: Path) -> None:
    opened = Bundle.open(asked_bundle)
    with pytest.raises(UsageError):
        judgeable(opened, Budget.parse(DEFAULT), True)
    of, left_out = judgeable(opened, Budget.parse("answers=30pt,cosine=0.9,agreement=50%"), True)
    assert not left_out and of["answers"] == ("match", "vqa")


def test_an_offset_of_logits_does_not_hide_other_answers(asked_bundle: Path, tmp_path: Path, run_cli) -> None:
    """FP32 computes logits around 1000. The references are close to these values, but answer everything right."""

    def shift(model: onnx.ModelProto, path: Path) -> None:
        (output,) = (value.name for value in model.graph.output)
        for node in model.graph.node:
            node.output[:] = ["raw" if name == output else name for name in node.output]
        values = {"scale": np.float32(0.01), "offset": np.float32(1000)}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
        model.graph.node.append(onnx.helper.make_node("Mul", ["raw", "scale"], ["small"]))
        model.graph.node.append(onnx.helper.make_node("Add", ["small", "offset"], [output]))

    def claim(arrays: Arrays) -> None:
        claimed = np.full_like(arrays[LOGITS], 1000)
        np.put_along_axis(claimed, arrays[LABELS][..., None], np.float32(1000.02), axis=2)
        arrays[LOGITS] = claimed

    changed = change_graph(asked_bundle, tmp_path / "shifted", "head.vqa", shift)
    bundle = forged(changed, tmp_path / "bundle", claim)
    with load(bundle.root) as model:
        evidence = require_evidence(model.bundle)
        examiner = Examiner(model.bundle.manifest, evidence, tokens=model.tokens)
        line = reproduction(
            model.bundle.manifest,
            examiner.figures(examiner.outputs(model.session)),
            exact=[graph.name for graph in model.bundle.manifest.graphs],
        )
    assert line is not None and not line.kept and line.measured > 1e-4
    done = run_cli("export", "verify", bundle.root, "--evidence", "--json")
    assert done.returncode == 4
    rows = {row["name"]: row for row in json.loads(done.stdout)["budget"]}
    assert not rows["references"]["kept"] and not rows["answers vqa"]["kept"]


def test_the_budget_of_another_machine_is_not_used(asked_bundle: Path, tmp_path: Path, run_cli) -> None:
    """A certificate that came with the bundle allows everything."""
    bundle = Path(shutil.copytree(asked_bundle, tmp_path / "bundle"))
    done = run_cli("export", "certify", bundle, "--engine", "ort", "--rounds", 1, "--budget", "cosine=0.5")
    assert done.returncode == 0, done.stderr
    opened = Bundle.open(bundle)
    (mine,) = read(opened)
    done = run_cli("export", "verify", bundle, "--evidence", "--json")
    assert json.loads(done.stdout)["limits"] == "cosine=0.5"
    (bundle / "certificate.json").unlink()
    write(opened, [msgspec.structs.replace(mine, host=mine.host | {"cpu": "another"})])
    done = run_cli("export", "verify", bundle, "--evidence", "--json")
    assert json.loads(done.stdout)["limits"] == DEFAULT and len(json.loads(done.stdout)["certificates"]) == 1
