"""Zero-shot choices: which of the plain texts is nearest to each image, by the outputs and by PyTorch, and what a budget says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from two_families import DECIDE, HEAR, SEE, graph_specs, manifest_of, tokens_of

from simmim_export.bundle import Manifest
from simmim_export.errors import BundleError, UsageError
from simmim_export.proof.budget import Budget, promised
from simmim_export.proof.evidence import FOLDER, SAMPLES, ZERO_SHOT, Evidence, Task
from simmim_export.proof.examine import Examiner
from simmim_export.proof.figures import nearest_texts
from simmim_export.proof.fitting import require_fit

SPECS = graph_specs("length")
TOWERS = manifest_of(SPECS, SEE, HEAR)
PLAIN = ("1", "2 3", "4")
# Each image is nearest to the text of its own number.
REFERENCE = {
    "images/a": np.array([[1, 0.1, 0], [0.1, 1, 0]], np.float32),
    "images/b": np.array([[0, 0.1, 1], [1, 0, 0.1]], np.float32),
    "texts": np.eye(3, dtype=np.float32),
}


def evidence(**changes: object) -> Evidence:
    images = {name: np.zeros((2, 4, 4, 3), np.uint8) for name in "ab"}
    whole = Evidence(images=images, tasks={}, source={"name": SAMPLES}, plain=PLAIN, reference=REFERENCE)
    return replace(whole, **changes)  # type: ignore[arg-type]


def figures_of(outputs: dict[str, np.ndarray], held_out: Evidence, manifest: Manifest = TOWERS) -> dict:
    return Examiner(manifest, held_out, tokens=tokens_of()).figures(outputs)


def test_images_of_all_sets_are_compared_with_pytorchs_choice() -> None:
    outputs = REFERENCE | {"images/b": REFERENCE["images/b"][::-1]}
    row = figures_of(outputs, evidence())["tasks"][ZERO_SHOT]
    assert (row["n"], row["top1"], row["value"], row["reference"], row["loss"]) == (4, 0.5, 0.5, 1.0, 50.0)
    assert not row["suspicious"] and row["lost"] == 2
    assert figures_of(dict(REFERENCE), evidence())["tasks"][ZERO_SHOT]["top1"] == 1


def test_a_budget_of_agreement_passes_and_fails() -> None:
    of = promised(TOWERS)
    assert of["agreement"] == (ZERO_SHOT,) and of["answers"] == ()
    lost = REFERENCE | {"images/a": REFERENCE["images/a"][::-1]}
    for outputs, limit, kept in ((REFERENCE, "99%", True), (lost, "99%", False), (lost, "50%", True)):
        (line,) = Budget.parse(f"agreement={limit}").lines(figures_of(dict(outputs), evidence()), of=of)
        assert (line.name, line.kept) == (f"agreement {ZERO_SHOT}", kept)


def test_outputs_that_are_not_finite_choose_nothing() -> None:
    images = REFERENCE["images/a"].copy()
    images[0, 0] = np.inf
    row = figures_of(REFERENCE | {"images/a": images}, evidence())["tasks"][ZERO_SHOT]
    assert (row["top1"], row["not_finite"]) == (0.75, 1)
    texts = REFERENCE["texts"].copy()
    texts[1, 1] = np.nan
    figures = figures_of(REFERENCE | {"texts": texts}, evidence())
    assert figures["tasks"][ZERO_SHOT]["top1"] == 0
    (line,) = Budget.parse("agreement=1%").lines(figures, of=promised(TOWERS))
    assert not line.kept and line.reason


@pytest.mark.parametrize("plain", [("1",), ("1", "1"), ()])
def test_without_a_choice_nothing_is_judged(plain: tuple[str, ...]) -> None:
    count = len(set(plain))
    reference = REFERENCE | {"texts": REFERENCE["texts"][:count]}
    if not plain:
        del reference["texts"]
    figures = figures_of(dict(reference), evidence(plain=plain, reference=reference))
    assert ZERO_SHOT not in figures["tasks"]
    for source, option in ((SAMPLES, "--evidence"), (FOLDER, "--evidence"), ("shapes", "--eval-scenes")):
        told = figures | {"source": {"name": source}, "embeddings": {"images": {}, "texts": {}}}
        for limit in ("agreement=99%", "retrieval=0.5pt"):
            (left_out,) = Budget.parse(limit).not_judged(told, of=promised(TOWERS))
            assert option in left_out.fix
            assert source == "shapes" or "--eval-scenes" not in left_out.fix


def test_one_image_agrees_or_not() -> None:
    reference = {"images/a": REFERENCE["images/a"][:1], "texts": REFERENCE["texts"]}
    alone = evidence(images={"a": np.zeros((1, 4, 4, 3), np.uint8)}, reference=reference)
    assert figures_of(dict(reference), alone)["tasks"][ZERO_SHOT]["top1"] == 1
    moved = reference | {"images/a": REFERENCE["images/a"][1:]}
    assert figures_of(moved, alone)["tasks"][ZERO_SHOT]["top1"] == 0


def test_too_few_captioned_pictures_say_how_many_it_takes() -> None:
    captions = Task(images="a", texts=(("1",), ("2 3",)), labels=np.zeros((2, 1), np.int64))
    held_out = evidence(tasks={"retrieval": captions}, source={"name": FOLDER})
    figures = figures_of(dict(REFERENCE), held_out)
    with pytest.raises(UsageError) as caught:
        Budget.parse("retrieval=0.5pt").require_measurable(figures, of=promised(TOWERS))
    assert "600" in str(caught.value.fix) and "--evidence" in str(caught.value.fix)


def test_a_model_with_heads_is_judged_by_its_answers() -> None:
    assert promised(manifest_of(SPECS, SEE, HEAR, DECIDE))["agreement"] == ("decision",)
    assert promised(manifest_of(SPECS, SEE))["agreement"] == ()


def test_no_task_may_have_the_name_of_zero_shot_choices() -> None:
    task = Task(images="a", texts=(("1",), ("2",)), labels=np.zeros((2, 1), np.int64))
    with pytest.raises(BundleError) as caught:
        require_fit(evidence(tasks={ZERO_SHOT: task}), TOWERS, referenced=False)
    assert ZERO_SHOT in caught.value.what


def test_choices_of_many_images_are_those_of_each() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(2500, 3)).astype(np.float32), random.normal(size=(7, 3)).astype(np.float32)
    np.testing.assert_array_equal(nearest_texts(images, texts), [(texts @ image).argmax() for image in images])
