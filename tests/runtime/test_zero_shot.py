"""Classification by labels that nobody trained for: the scores, the templates, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import SimmimError, TextError, TruncatedText, UsageError
from simmim_export.runtime.scores import scores_of
from simmim_export.runtime.zero_shot import TEMPLATE, LabelEmbeddings
from simmim_export.spec import Score, Similarity

# The small vocabulary of the tests lacks "photo".
pytestmark = pytest.mark.filterwarnings("ignore::simmim_export.errors.UnknownWords")
LABELS = ("red", "green", "blue circle", "a left square")
TEMPLATES = ("a {}", "the {} is red", "how many {} are there")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path):
    with simmim_export.load(tiny_bundle) as opened:
        yield opened


def edited(bundle: Path, copy: Path, similarity: Similarity | None) -> Path:
    """A copy of ``bundle`` with another ``similarity``. None: a manifest of a version that did not have this field."""
    shutil.copytree(bundle, copy)
    manifest = replace(Bundle.open(copy).manifest, similarity=similarity)
    content = json.loads(manifest.dumps())
    if similarity is None:
        from simmim_export.bundle import digest_of

        del content["similarity"]
        content["digest"] = digest_of(content)
    (copy / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return copy


def cosines(model, picture: Path, template: str, labels: tuple[str, ...] = LABELS) -> np.ndarray:
    texts = model.embed_text([template.replace("{}", label) for label in labels]).astype(np.float64)
    return texts @ model.embed_image([picture])[0].astype(np.float64)


def test_scores_are_the_softmax_of_scaled_cosines(model, picture: Path) -> None:
    logits = model.bundle.manifest.similarity.scale * cosines(model, picture, "a photo of a {}")
    expected = np.exp(logits) / np.exp(logits).sum()
    answers = model.classify(picture, LABELS, top_k=9)
    assert [answer.score for answer in answers] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    assert dict(answers) == pytest.approx(dict(zip(LABELS, expected, strict=True)), rel=1e-4)
    assert np.ptp(expected) > 1e-4
    assert model.classify(picture, LABELS, top_k=1) == answers[:1]


def test_an_encoded_image_is_classified_as_the_image_itself(model, picture: Path) -> None:
    encoded = model.encode_image(picture)
    assert model.classify(encoded, LABELS) == model.classify(picture, LABELS)


def test_an_ensemble_takes_the_mean_of_its_templates(model, picture: Path) -> None:
    mean = np.mean([model.embed_text([each.replace("{}", label) for label in LABELS]) for each in TEMPLATES], axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    logits = model.bundle.manifest.similarity.scale * mean @ model.embed_image([picture])[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    answers = dict(model.classify(picture, LABELS, template=TEMPLATES, top_k=4))
    assert answers == pytest.approx(dict(zip(LABELS, expected, strict=True)), rel=1e-4)
    assert answers != pytest.approx(dict(model.classify(picture, LABELS, template=TEMPLATES[0], top_k=4)), rel=1e-4)
    assert dict(model.classify(picture, LABELS, template=[TEMPLATES[0]] * 2, top_k=4)) == pytest.approx(
        dict(model.classify(picture, LABELS, template=TEMPLATES[0], top_k=4)), rel=1e-5
    )


def test_a_sigmoid_rates_each_label_by_itself(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    similarity = Similarity(scale=10.0, bias=-4.0, score=Score.SIGMOID)
    with simmim_export.load(edited(tiny_bundle, tmp_path / "sigmoid", similarity)) as model:
        expected = 1 / (1 + np.exp(4 - 10 * cosines(model, picture, TEMPLATE)))
        answers = dict(model.classify(picture, LABELS, top_k=4))
        assert answers == pytest.approx(dict(zip(LABELS, expected, strict=True)), rel=1e-4)
        alone = model.classify(picture, LABELS[:1])[0]
        assert alone.score == pytest.approx(answers[LABELS[0]], rel=1e-4)


def test_a_second_image_costs_only_its_own_encoding(tiny_bundle: Path, picture: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        counts = dict.fromkeys(("image_encoder", "text_encoder"), 0)
        for graph in counts:
            _count(model.session(graph), counts, graph)
        first = model.classify(picture, LABELS, template=TEMPLATES)
        assert counts == {"image_encoder": 1, "text_encoder": len(TEMPLATES)}
        assert model.classify(picture, LABELS, template=TEMPLATES) == first
        assert model.classify(np.zeros((8, 8, 3), np.uint8), LABELS, template=TEMPLATES) != first
        assert counts == {"image_encoder": 3, "text_encoder": len(TEMPLATES)}
        model.classify(model.encode_image(picture), LABELS[:2], template=TEMPLATES[0])
        assert counts == {"image_encoder": 4, "text_encoder": len(TEMPLATES) + 1}


def _count(session, counts: dict[str, int], graph: str) -> None:
    run = session.run

    def counted(feeds):
        counts[graph] += 1
        return run(feeds)

    session.run = counted


def test_embeddings_are_kept_up_to_a_limit(model) -> None:
    asked: list[str] = []

    def embed(texts):
        asked.extend(texts)
        return model.embed_text(texts)

    # Two of these fit: 64 channels of 4 bytes, and the texts.
    kept = LabelEmbeddings(embed, most=2 * (64 * 4 + 20))
    for label in ("red", "green", "red", "blue", "red", "green"):
        rows = kept.of((label,), ("a {}",))
        np.testing.assert_allclose(rows, model.embed_text([f"a {label}"]), atol=1e-6)
        assert not rows.flags.writeable
    # Green was asked longest ago when blue came.
    assert asked == ["a red", "a green", "a blue", "a green"]
    asked.clear()
    nothing_fits = LabelEmbeddings(embed, most=10)
    for _ in range(2):
        assert nothing_fits.of(("red",), ("a {}",)).shape == (1, 64)
    assert len(asked) == 2


def test_threads_share_the_labels(tiny_bundle: Path, picture: Path) -> None:
    with simmim_export.load(tiny_bundle, threads=1) as model, ThreadPoolExecutor(4) as pool:
        expected = {labels: model.classify(picture, labels) for labels in (LABELS, LABELS[:2], LABELS[1:])}
        jobs = [pool.submit(model.classify, picture, labels) for labels in [*expected] * 6]
        for job, labels in zip(jobs, [*expected] * 6, strict=True):
            assert job.result() == expected[labels]


def test_braces_in_a_label_are_letters(model, picture: Path) -> None:
    with pytest.warns(UserWarning):
        answers = model.classify(picture, ["{}", "{0.__class__}", "{red"], template="a {}")
    assert {answer.label for answer in answers} == {"{}", "{0.__class__}", "{red"}


def test_a_label_that_is_cut_is_a_warning(model, picture: Path) -> None:
    with pytest.warns(TruncatedText, match=r"texts\[1\]"):
        model.classify(picture, ["red", "circle " * 50])


@pytest.mark.parametrize(
    ("labels", "options", "error", "where"),
    [
        ([], {}, UsageError, None),
        ("red", {}, UsageError, None),
        (7, {}, UsageError, None),
        (["red", "blue", "red"], {}, UsageError, "labels[2]"),
        (["red", 7], {}, TextError, "labels[1]"),
        (["red", " "], {}, TextError, "labels[1]"),
        (["red", "\ud800"], {}, TextError, "labels[1]"),
        (["red"], {"template": "a photo"}, UsageError, None),
        (["red"], {"template": "{} and {}"}, UsageError, None),
        (["red"], {"template": "a {0}"}, UsageError, None),
        (["red"], {"template": []}, UsageError, None),
        (["red"], {"template": ["a {}", 7]}, UsageError, None),
        (["red"], {"template": 7}, UsageError, None),
        (["red"], {"top_k": 0}, UsageError, None),
        (None, {"template": "a {}"}, UsageError, None),
        (None, {}, UsageError, "{bundle}"),
    ],
)
def test_bad_labels_and_templates_are_errors(
    model, tiny_bundle: Path, picture: Path, labels, options: dict, error: type[SimmimError], where: str | None
) -> None:
    with pytest.raises(error) as caught:
        model.classify(picture, labels, **options)
    assert caught.value.where == (where and where.format(bundle=tiny_bundle)) and caught.value.fix


def test_a_bundle_of_an_older_version_is_exported_again(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    old = edited(tiny_bundle, tmp_path / "old", None)
    with simmim_export.load(old) as model:
        assert model.bundle.manifest.similarity is None and len(model.answer(picture, "what colour ?")) == 3
        with pytest.raises(UsageError) as caught:
            model.classify(picture, LABELS)
    assert caught.value.where == str(old) and "simmim-export onnx" in str(caught.value.fix)


def test_labels_need_both_embeddings(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = Bundle.open(tmp_path / "copy").manifest
    kept = tuple(one for one in manifest.pipelines if one.verb != "embed_text")
    (tmp_path / "copy/manifest.json").write_text(replace(manifest, pipelines=kept).dumps(), encoding="utf-8")
    with simmim_export.load(tmp_path / "copy") as model, pytest.raises(UsageError) as caught:
        model.classify(picture, LABELS)
    assert caught.value.where == str(tmp_path / "copy")


COSINES = st.lists(st.floats(-1, 1), min_size=1, max_size=20)


@given(COSINES, st.floats(1e-3, 1e4), st.floats(-1e4, 1e4), st.sampled_from(Score))
def test_scores_are_finite_and_in_the_order_of_the_cosines(
    values: list[float], scale: float, bias: float, score: Score
) -> None:
    row = np.array([values])
    scores = scores_of(row, Similarity(scale=scale, bias=bias, score=score))
    assert scores.shape == row.shape and ((scores >= 0) & (scores <= 1)).all()
    assert (np.diff(scores[0][np.argsort(values)]) >= 0).all()
    if score is Score.SOFTMAX:
        assert scores.sum() == pytest.approx(1)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_classifies_by_labels(run_cli: Callable, tiny_bundle: Path, picture: Path, model, tmp_path) -> None:
    words = ("export", "classify", tiny_bundle, picture, "--template", "a {}", "--template", "the {}", "--json")
    done = run_cli(*words, *(word for label in LABELS for word in ("--label", label)))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    expected = model.classify(picture, LABELS, template=("a {}", "the {}"))
    assert {one["label"]: one["score"] for one in row["classes"]} == pytest.approx(dict(expected), rel=1e-4)
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LABELS).encode())
    assert run_cli(*words, "--labels", tmp_path / "names.txt").stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "where"),
    [
        (("a circle", "--label", "red"), 2, None),
        (("--template", "a {{}}"), 2, None),
        (("--label", "red", "--template", "a"), 2, None),
        (("--label", "red", "--labels", "{tmp}/names"), 2, None),
        (("--label", "red", "--label", "red"), 2, "labels[1]"),
        (("--label", ""), 5, "labels[0]"),
        (("--labels", "{tmp}/none"), 5, "{tmp}/none"),
        (("--labels", "{tmp}/names"), 5, "{tmp}/names:3"),
        ((), 2, "{bundle}"),
    ],
)
def test_the_command_refuses(run_cli, tiny_bundle, picture, tmp_path, arguments, code, where) -> None:
    (tmp_path / "names").write_text("red\ngreen\nred\n")
    names = {"tmp": tmp_path, "bundle": tiny_bundle}
    done = run_cli("export", "classify", tiny_bundle, picture, *(word.format(**names) for word in arguments))
    assert done.returncode == code and done.stderr.startswith("error: ") and not done.stdout, done.stderr
    assert "next:" in done.stderr and (where is None or f"where: {where.format(**names)}\n" in done.stderr)
