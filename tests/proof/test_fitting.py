"""Evidence that is not what it must be is refused, whatever its digests say."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forging import EMBED, LABELS, LOGITS, Arrays, forged, put, with_one, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.errors import BundleError
from simmim_export.proof.evidence import FILE, Evidence, Task
from simmim_export.proof.examine import Examiner, require_evidence
from simmim_export.proof.fitting import require_fit
from simmim_export.system.npz import unpack

BAD: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "complex logits": (put(LOGITS, lambda a: a.astype(np.complex64)), "logits/vqa"),
    "complex embeddings": (put(EMBED, lambda a: a.astype(np.complex64)), "texts"),
    "double logits": (put(LOGITS, lambda a: a.astype(np.float64)), "logits/vqa"),
    "half embeddings": (put(EMBED, lambda a: a.astype(np.float16)), "texts"),
    "big-endian logits": (put(LOGITS, lambda a: a.astype(">f4")), "logits/vqa"),
    "text for logits": (put(LOGITS, lambda a: a.astype("U8")), "logits/vqa"),
    "NaN logits": (put(LOGITS, lambda a: np.full_like(a, np.nan)), "logits/vqa"),
    "one NaN": (with_one(LOGITS, np.nan), "logits/vqa"),
    "one infinity": (with_one(EMBED, np.inf), "texts"),
    "long embedding": (with_one(EMBED, 2.0), "texts"),
    "zero embeddings": (put(EMBED, np.zeros_like), "texts"),
    "a row less": (put(EMBED, lambda a: a[1:]), "texts"),
    "a class less": (put(LOGITS, lambda a: a[..., 1:]), "logits/vqa"),
    "a question less": (put(LOGITS, lambda a: a[:, 1:]), "logits/vqa"),
    "flat logits": (put(LOGITS, lambda a: a.reshape(-1)), "logits/vqa"),
    "no logits": (lambda arrays: arrays.pop(LOGITS), "logits/vqa"),
    "no reference": (lambda arrays: [arrays.pop(k) for k in list(arrays) if k.startswith("ref")], "texts"),
    "an unknown reference": (lambda arrays: arrays.update({"reference/logits/x": arrays[LOGITS]}), "logits/x"),
    "an unknown part": (lambda arrays: arrays.update({"more/vqa": arrays[LABELS]}), "more/vqa"),
    "an unknown key": (lambda arrays: arrays.update(more=arrays[LABELS]), "more"),
    "labels of no task": (lambda arrays: arrays.update({"labels/x": arrays[LABELS]}), "x"),
    "scores of no task": (lambda arrays: arrays.update({"scores/x": arrays[LABELS]}), "x"),
    "no labels": (lambda arrays: arrays.pop(LABELS), "vqa"),
    "a label too high": (with_one(LABELS, 23), "vqa"),
    "a label too low": (with_one(LABELS, -1), "vqa"),
    "short labels": (put(LABELS, lambda a: a.astype(np.int32)), "vqa"),
    "labels of fewer images": (put(LABELS, lambda a: a[1:]), "vqa"),
    "no questions": (put(LABELS, lambda a: a[:, :0]), "vqa"),
    "NaN scores": (
        lambda arrays: arrays.update({"scores/vqa": np.full((48, 8, 23), np.nan, np.float32)}),
        "scores of 'vqa'",
    ),
    "scores above one": (
        lambda arrays: arrays.update({"scores/vqa": np.full((48, 8, 23), 2, np.float32)}),
        "scores of 'vqa'",
    ),
    "scores of fewer classes": (
        lambda arrays: arrays.update({"scores/vqa": np.ones((48, 8, 22), np.float32)}),
        "scores of 'vqa'",
    ),
    "double scores": (lambda arrays: arrays.update({"scores/vqa": np.ones((48, 8, 23))}), "scores of 'vqa'"),
    "no images": (put("images/captioned", lambda a: a[:0]), "captioned"),
    "smaller images": (put("images/captioned", lambda a: a[:, 1:]), "captioned"),
    "float images": (put("images/captioned", lambda a: a.astype(np.float32)), "captioned"),
    "gray images": (put("images/captioned", lambda a: a[..., :1]), "captioned"),
    "clips without a video encoder": (
        lambda arrays: arrays.update({"images/clips": np.zeros((2, 3, 64, 64, 3), np.uint8)}),
        "clips",
    ),
    "no words": (lambda arrays: arrays.pop("words"), "words"),
    "floating words": (put("words", lambda a: a.astype(np.float32)), "words"),
    "words that are not JSON": (put("words", lambda a: a[:-3]), ""),
    "words too deep": (
        put("words", lambda a: np.frombuffer(b'{"source":' + b"[" * 100_000, np.uint8)),
        "",
    ),
    "too many words": (put("words", lambda a: np.full(33 << 20, 32, np.uint8)), "words"),
    "too many values": (words(lambda content: content["source"].update(more=[[]] * 1_100_000)), "words"),
    "an unknown word": (words(lambda content: content.update(more=1)), "more"),
    "a text that is not one": (words(lambda content: content["plain"].append(3)), ""),
    "an empty text": (words(lambda content: content["plain"].append(" ")), ""),
    "a giant text": (words(lambda content: content["plain"].append("a" * 100_000)), "100000"),
    "a text more": (words(lambda content: content["plain"].append("a new text")), "texts"),
    "a question less in the texts": (words(lambda content: content["tasks"]["vqa"]["texts"][0].pop()), "vqa"),
    "no texts for a head that reads them": (words(lambda content: content["tasks"]["vqa"].update(texts=[])), "vqa"),
    "images that are not there": (words(lambda content: content["tasks"]["vqa"].update(images="x")), "x"),
    "a task of no head": (
        lambda arrays: (
            words(lambda content: content["tasks"].update(other=content["tasks"].pop("vqa")))(arrays),
            arrays.update({"labels/other": arrays.pop(LABELS), "reference/logits/other": arrays.pop(LOGITS)}),
        ),
        "other",
    ),
    "nothing at all": (
        lambda arrays: (
            words(lambda content: content.update(tasks={}, plain=[]))(arrays),
            [arrays.pop(key) for key in list(arrays) if key != "words"],
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_evidence_that_does_not_fit_is_refused(asked_bundle: Path, tmp_path: Path, name: str) -> None:
    change, tensor = BAD[name]
    with pytest.raises(BundleError) as caught:
        require_evidence(forged(asked_bundle, tmp_path / "bundle", change))
    assert caught.value.exit_code == 5 and FILE in str(caught.value.where) and tensor in caught.value.what


def test_evidence_as_exported_fits(asked_bundle: Path, tiny_bundle: Path, every_bundle: Path) -> None:
    for bundle in (asked_bundle, tiny_bundle, every_bundle):
        evidence = require_evidence(Bundle.open(bundle))
        assert Evidence.load(evidence.save()).save() == evidence.save() == (bundle / FILE).read_bytes()


def test_a_task_asks_about_what_its_head_reads(every_bundle: Path) -> None:
    """Clips for a head that reads images, texts for one that reads none, several answers of one image."""
    manifest = Bundle.open(every_bundle).manifest
    still, clip = np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 3, 64, 64, 3), np.uint8)
    texts = (("a", "b"), ("c", "d"))

    def fits(images: np.ndarray, head: str, texts: tuple[tuple[str, ...], ...], each: int = 2) -> bool:
        task = Task(images="s", texts=texts, labels=np.zeros((2, each), np.int64))
        try:
            require_fit(Evidence(images={"s": images}, tasks={head: task}, source={}), manifest, referenced=False)
        except BundleError as error:
            assert head in error.what or "clips" in error.what
            return False
        return True

    assert fits(still, "vqa", texts) and fits(clip, "video_qa", texts) and fits(still, "image_class", (), 1)
    assert fits(clip, "video_class", (), 1) and fits(still, "retrieval", texts)
    assert not fits(clip, "vqa", texts) and not fits(still, "video_qa", texts) and not fits(still, "video_class", (), 1)
    assert (
        not fits(still, "vqa", ()) and not fits(still, "image_class", texts) and not fits(still, "image_class", (), 2)
    )
    assert not fits(clip, "retrieval", texts) and not fits(still, "retrieval", ())
    assert not fits(np.zeros((2, 1, 64, 64, 3), np.uint8), "video_class", (), 1)
    assert not fits(np.zeros((2, 9, 64, 64, 3), np.uint8), "video_class", (), 1)


@pytest.mark.parametrize(
    "damage", [(b"{'descr'", b"{'descr("), (b"'fortran", b"\x00fortran"), (b"\x93NUMPY\x01", b"\x93NUMPY\x07")]
)
def test_a_damaged_header_is_a_bundle_error(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    """What a header makes Python's tokenizer raise is not a ValueError."""
    part = io.BytesIO()
    np.save(part, np.zeros(3, np.float32))
    content = part.getvalue()
    broken = content.replace(*damage)[: len(content)]
    assert broken != content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("reference/texts.npy", broken)
    with pytest.raises(BundleError):
        Evidence.load(stream.getvalue())
    (tmp_path / "golden.npz").write_bytes(stream.getvalue())
    with pytest.raises(BundleError):
        Golden.load(tmp_path / "golden.npz", ())


DTYPES = st.sampled_from(["float32", "float64", "float16", "complex64", "int64", "int32", "uint8", "bool", "U3", "S2"])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_evidence_is_refused_or_gives_whole_figures(asked_bundle: Path, data: st.DataObject) -> None:
    manifest = Bundle.open(asked_bundle).manifest
    arrays = unpack(asked_bundle / FILE)
    key = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[key]
    how = data.draw(st.sampled_from(["type", "cut", "value", "drop", "rename", "shape", "byte"]))
    if how == "type":
        arrays[key] = np.zeros(array.shape, data.draw(DTYPES))
    elif how == "cut":
        arrays[key] = array[: data.draw(st.integers(0, max(0, len(array) - 1)))]
    elif how == "value":
        value = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38])))
        changed = array.copy()
        with np.errstate(all="ignore"):
            changed.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = np.asarray(value).astype(array.dtype)
        arrays[key] = changed
    elif how == "drop":
        del arrays[key]
    elif how == "rename":
        arrays[data.draw(st.text(max_size=12))] = arrays.pop(key)
    elif how == "shape":
        arrays[key] = array.reshape(-1) if array.ndim > 1 else array[None]
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    content = stream.getvalue()
    if how == "byte":
        index = data.draw(st.integers(0, len(content) - 1))
        content = content[:index] + bytes([data.draw(st.integers(0, 255))]) + content[index + 1 :]
    try:
        evidence = require_fit(Evidence.load(content), manifest)
    except BundleError as error:
        assert error.fix and error.exit_code == 5
        return
    figures = Examiner(manifest, evidence, tokens=lambda texts: {}).figures(evidence.reference)
    assert figures["tasks"].keys() == {"retrieval", "match", "vqa"}
    assert figures["embeddings"].keys() == {"images", "texts"}
    numbers = [value for row in figures["tasks"].values() for value in (*row["interval"], row["loss"], row["top1"])]
    assert np.isfinite(numbers).all() and all(row["loss"] == 0 for row in figures["tasks"].values())
