"""Parity, evidence and budgets of models with other names, other graphs and other verbs than SimMIM's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from two_families import (
    CLASSES,
    DECIDE,
    HEAR,
    LENGTH,
    SEE,
    Sessions,
    graph_specs,
    look,
    manifest_of,
    sense,
    tokens_of,
    unit,
    verdict,
)

from simmim_export.bundle import Manifest
from simmim_export.bundle.golden import Golden
from simmim_export.errors import BundleError
from simmim_export.proof.budget import Budget, promised
from simmim_export.proof.evidence import Evidence, Task
from simmim_export.proof.examine import Examiner, reproduction
from simmim_export.proof.fitting import require_fit
from simmim_export.proof.parity import compare, invariance
from simmim_export.spec import Precision

PHOTOS = np.random.default_rng(2).integers(0, 256, (5, 4, 4, 3), np.uint8)
TEXTS = (("1", "2 3 4"), ("5 6", "1"), ("7 8 9 10 11", "2 3 4"), ("12", "13 14"), ("15 16 17", "18 19 1 2 3"))
DISTINCT = 8
LABELS = np.array([[0, 1], [2, 0], [1, 1], [2, 2], [0, 1]], np.int64)
ANY, FIXED = graph_specs("length"), graph_specs(LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def evidence(**changes: object) -> Evidence:
    task = Task(images="album", texts=TEXTS, labels=LABELS)
    captions = Task(images="album", texts=TEXTS, labels=np.zeros_like(LABELS))
    tasks = {"decision": task, "retrieval": captions}
    return replace(Evidence(images={"album": PHOTOS}, tasks=tasks, source={"name": "photos"}), **changes)  # type: ignore[arg-type]


def examined(manifest: Manifest, sessions: Sessions, held_out: Evidence, length: int | None = None) -> dict:
    """The outputs for ``held_out``, once its references fit."""
    examiner = Examiner(manifest, require_fit(held_out, manifest, referenced=False), tokens=tokens_of(length))
    outputs = examiner.outputs(sessions)
    require_fit(held_out.with_reference(outputs), manifest)
    return outputs


def require_verdicts(logits: np.ndarray) -> None:
    for photo, texts, rows in zip(PHOTOS, TEXTS, logits, strict=True):
        for text, row in zip(texts, rows, strict=True):
            np.testing.assert_allclose(row, verdict(photo, text), rtol=1e-5, atol=1e-6)


def test_a_second_family_is_asked_everything(folder: Path) -> None:
    sessions = Sessions(ANY, folder)
    outputs = examined(manifest_of(ANY, SEE, HEAR, DECIDE), sessions, evidence())
    assert outputs.keys() == {"images/album", "texts", "logits/decision"}
    np.testing.assert_allclose(outputs["images/album"], [unit(look(photo)) for photo in PHOTOS], rtol=1e-5)
    np.testing.assert_allclose(
        outputs["texts"], [unit(sense(text)) for text in evidence().texts()], rtol=1e-5, atol=1e-6
    )
    require_verdicts(outputs["logits/decision"])
    # Once for each photo, each distinct text and each question; batches of short texts without padding.
    assert sessions.rows == {"eye": 5, "ear": DISTINCT, "judge": LABELS.size}
    assert min(sessions.lengths) < max(sessions.lengths) == 5


def test_a_model_without_embeddings_is_judged_by_its_answers(folder: Path) -> None:
    manifest = manifest_of(ANY, DECIDE)
    held_out = evidence(tasks={"decision": evidence().tasks["decision"]})
    outputs = examined(manifest, Sessions(ANY, folder), held_out)
    assert outputs.keys() == {"logits/decision"}
    require_verdicts(outputs["logits/decision"])
    assert promised(manifest) == {"answers": ("decision",), "agreement": ("decision",), "cosine": (), "retrieval": ()}
    figures = Examiner(manifest, held_out.with_reference(outputs), tokens=tokens_of()).figures(outputs)
    line = reproduction(manifest, figures, exact=["judge"])
    assert line is not None and line.kept
    lines = Budget.parse("answers=100pt,cosine=0.9").lines(figures, of=promised(manifest))
    assert [(line.name, line.kept) for line in lines] == [("answers decision", True), ("cosine", False)]
    with pytest.raises(BundleError) as caught:
        require_fit(evidence(), manifest, referenced=False)
    assert "retrieval" in caught.value.what


def test_a_model_with_embeddings_alone_has_no_answers(folder: Path) -> None:
    manifest = manifest_of(ANY, SEE, HEAR)
    held_out = evidence(tasks={"retrieval": evidence().tasks["retrieval"]})
    assert examined(manifest, Sessions(ANY, folder), held_out).keys() == {"images/album", "texts"}
    of = promised(manifest)
    assert of == {
        "answers": (),
        "agreement": ("zero-shot",),
        "cosine": ("images", "texts"),
        "retrieval": ("retrieval",),
    }
    with pytest.raises(BundleError) as caught:
        require_fit(evidence(), manifest, referenced=False)
    assert "decision" in caught.value.what


def test_texts_of_a_fixed_length_keep_their_padding(folder: Path, tmp_path: Path) -> None:
    sessions = Sessions(FIXED, tmp_path)
    outputs = examined(manifest_of(FIXED, SEE, HEAR, DECIDE), sessions, evidence(), LENGTH)
    require_verdicts(outputs["logits/decision"])
    assert sessions.lengths == {LENGTH}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"images": {"album": PHOTOS[:, :3]}}, "album"),
        ({"images": {"album": np.repeat(PHOTOS[:, None], 2, axis=1)}}, "album"),
        ({"tasks": {"decision": Task(images="album", texts=(), labels=LABELS[:, :1])}}, "decision"),
        ({"tasks": {"decision": Task(images="album", texts=TEXTS, labels=LABELS + CLASSES)}}, "decision"),
        ({"tasks": {"verdict": Task(images="album", texts=TEXTS, labels=LABELS)}}, "verdict"),
    ],
)
def test_evidence_about_another_model_is_refused(changes: dict, name: str) -> None:
    with pytest.raises(BundleError) as caught:
        require_fit(evidence(**changes), manifest_of(ANY, SEE, HEAR, DECIDE), referenced=False)
    assert name in caught.value.what


def test_a_reference_too_many_or_too_few_is_refused(folder: Path) -> None:
    manifest = manifest_of(ANY, SEE, HEAR, DECIDE)
    outputs = examined(manifest, Sessions(ANY, folder), evidence())
    for name in outputs:
        rest = {key: array for key, array in outputs.items() if key != name}
        for reference in (rest, rest | {f"{name}x": outputs[name]}, outputs | {f"{name}x": outputs[name]}):
            with pytest.raises(BundleError):
                require_fit(evidence().with_reference(reference), manifest)


def golden(sessions: Sessions) -> Golden:
    """Two cases: the longest texts in the largest batch, some with padding, and a single short text."""
    cases = {}
    for name, photos, texts in (
        ("many", PHOTOS[:4], ["1 2 3 4 5 6", "7", "8 9 10", "11 12"]),
        ("one", PHOTOS[4:], ["5"]),
    ):
        case = {"photo": photos} | tokens_of()(texts)
        for graph in ANY:
            case |= {f"{graph}:{tensor}": array for tensor, array in sessions(graph).run(case).items()}
        cases[name] = case
    made = Golden(cases)
    made.check(tuple(ANY.values()))
    return made


@pytest.mark.parametrize("graph", ANY)
def test_parity_of_a_second_family_checks_batches_and_padding(folder: Path, graph: str) -> None:
    sessions = Sessions(ANY, folder)
    report = compare(sessions(graph), ANY[graph], golden=golden(sessions), precision=Precision.FP32)
    checks = {row.check.split(",")[0] for row in report.rows}
    assert report.passed and checks == {"many", "one", "alone"} | ({"without padding"} if graph != "eye" else set())
    assert invariance(sessions(graph), ANY[graph], golden=golden(sessions))["padding"] < 1e-5


@pytest.mark.parametrize("graph", ["ear", "judge"])
def test_an_ignored_mask_fails_parity_under_any_name(folder: Path, graph: str) -> None:
    sessions = Sessions(ANY, folder)

    class Unmasked:
        def run(self, feeds):
            return sessions(graph).run(dict(feeds) | {"real": np.ones_like(feeds["real"])})

    made = golden(sessions)
    assert not compare(Unmasked(), ANY[graph], golden=made, precision=Precision.FP32).passed
    assert invariance(Unmasked(), ANY[graph], golden=made)["padding"] > 0.01


def test_logits_are_compared_as_answers_under_any_name(folder: Path) -> None:
    """A large offset hides other answers from a comparison of values, but not from one of answers."""
    sessions = Sessions(ANY, folder)

    class Offset:
        def __init__(self, order: slice) -> None:
            self.order = order

        def run(self, feeds):
            return {"verdict": sessions("judge").run(feeds)["verdict"][:, self.order] + np.float32(1e6)}

    cases = {
        name: {key: array + np.float32(1e6) if key == "judge:verdict" else array for key, array in case.items()}
        for name, case in golden(sessions).cases.items()
    }
    honest, turned = Offset(slice(None)), Offset(slice(None, None, -1))
    assert compare(honest, ANY["judge"], golden=Golden(cases), precision=Precision.FP32).passed
    assert not compare(turned, ANY["judge"], golden=Golden(cases), precision=Precision.FP32).passed
