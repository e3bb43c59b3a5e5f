"""Evidence from a folder of the user's: what is read of it, what is refused, and that certificates are judged by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Once, make_checkpoint

from simmim_export.bundle import Bundle
from simmim_export.errors import DataError, FewSamples, ImageError, InputError, TextError, UsageError
from simmim_export.export.description import describe
from simmim_export.export.evidence_folder import require_evidence, with_evidence
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.proof.evidence import FOLDER, Evidence

COLORS = ("red", "green", "blue")
Rows = Sequence[tuple[str, Sequence[str]]]


@pytest.fixture(scope="session")
def towers(once: Once) -> Path:
    """A checkpoint that embeds images and texts, without heads."""
    return once("towers.pt", lambda path: make_checkpoint(path, heads=()))


@pytest.fixture(scope="session")
def source(towers: Path) -> SourceModel:
    return family_of(towers).load(towers, LoadOptions(max_batch=2))


def write(folder: Path, count: int = 4, *, texts: Sequence[str] | None = None, captions: Rows | None = None) -> Path:
    """A folder of ``count`` different pictures, 0.png and so on."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((9, 12, 3), 20 * number + 10, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    if texts is not None:
        (folder / "texts.txt").write_text("\n".join(texts))
    if captions is not None:
        lines = [json.dumps({"image": name, "texts": row}) for name, row in captions]
        (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def read(model: SourceModel, folder: Path) -> Evidence:
    return Evidence.load(with_evidence(model, folder, describe(model, "simmim", provenance={})).evidence)


def test_texts_are_choices_and_repeated_ones_count_once(source: SourceModel, tmp_path: Path) -> None:
    evidence = read(source, write(tmp_path, texts=["red circle", "", "blue square", "red circle"]))
    assert evidence.plain == ("red circle", "blue square") and not evidence.tasks
    assert {name: len(images) for name, images in evidence.images.items()} == {"others": 4}
    assert evidence.source["name"] == FOLDER


def test_captions_rank_their_pictures(source: SourceModel, tmp_path: Path) -> None:
    captions = [("2.png", ["a red circle", "one circle", "a red circle"]), ("0.png", ["a blue square", "one", "two"])]
    evidence = read(source, write(tmp_path, captions=captions))
    task = evidence.tasks["retrieval"]
    assert task.texts == (("a red circle", "one circle"), ("a blue square", "one"))
    assert evidence.plain == ("a red circle", "one circle", "a blue square", "one", "two")
    assert evidence.images[task.images][:, 0, 0, 0].tolist() == [50, 10]
    assert evidence.images["others"][:, 0, 0, 0].tolist() == [30, 70]
    assert evidence.tasks.keys() == {"retrieval"}
    (tmp_path / "texts.txt").write_text("red\nblue\n")
    assert read(source, tmp_path).plain == ("red", "blue")


def test_a_head_that_matches_is_judged_by_captions(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = family_of(tiny_checkpoint).load(tiny_checkpoint, LoadOptions(max_batch=2))
    folder = write(tmp_path, captions=[("0.png", ["red"]), ("1.png", ["blue"])])
    task = read(model, folder).tasks["match"]
    assert task.texts == (("red", "blue"), ("blue", "red")) and task.labels.tolist() == [[1, 0], [1, 0]]
    (folder / "captions.jsonl").write_text('{"image": "0.png", "texts": ["red"]}')
    assert read(model, folder).tasks.keys() == {"retrieval"}  # one picture has no caption of another


def test_copies_of_a_picture_count_once(source: SourceModel, tmp_path: Path) -> None:
    folder = write(tmp_path, captions=[("0.png", ["red"]), ("1.png", ["green"]), ("again.png", ["blue"])])
    (folder / "again.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.warns(FewSamples, match=r"again\.png"):
        evidence = read(source, folder)
    assert evidence.tasks["retrieval"].texts == (("red",), ("green",))
    assert {name: len(images) for name, images in evidence.images.items()} == {"captioned": 2, "others": 2}


ROW = b'{"image": "0.png", "texts": ["red"]}\n'
BAD = {
    "a picture that is not there": b'{"image": "9.png", "texts": ["red"]}',
    "a picture elsewhere": b'{"image": "../0.png", "texts": ["red"]}',
    "an absolute path": b'{"image": "/etc/hostname", "texts": ["red"]}',
    "a file that is not a picture": b'{"image": "captions.jsonl", "texts": ["red"]}',
    "a picture twice": ROW,
    "no texts": b'{"image": "1.png", "texts": []}',
    "a text for texts": b'{"image": "1.png", "texts": "red"}',
    "another field": b'{"image": "1.png", "texts": ["red"], "path": "x"}',
    "a lacking field": b'{"image": "1.png"}',
    "a number": b"7",
    "half a line": b'{"image": "1.png", "texts": ["re',
    "deep nesting": b'{"image": "1.png", "texts": ' + b"[" * 100_000,
    "bytes that are not UTF-8": b'{"image": "1.png", "texts": ["\xff"]}',
    "an empty text": b'{"image": "1.png", "texts": [" "]}',
    "half a character": b'{"image": "1.png", "texts": ["\\ud800"]}',
    "a text without end": b'{"image": "1.png", "texts": ["' + b"a" * 2_000_000 + b'"]}',
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_of_captions_is_named(source: SourceModel, tmp_path: Path, line: bytes) -> None:
    write(tmp_path)
    (tmp_path / "captions.jsonl").write_bytes(ROW + b"\n" + line)
    with pytest.raises((DataError, TextError)) as caught:
        read(source, tmp_path)
    assert caught.value.exit_code == 5 and caught.value.where == f"{tmp_path / 'captions.jsonl'}, line 3"


def test_a_folder_that_cannot_judge_is_refused(source: SourceModel, tmp_path: Path) -> None:
    def refused(kind: type[InputError], where: Path | str) -> None:
        with pytest.raises(kind) as caught:
            read(source, tmp_path / "x")
        assert caught.value.exit_code == 5 and caught.value.where == str(where) and caught.value.fix

    folder = tmp_path / "x"
    refused(DataError, folder)
    folder.write_text("a file")
    refused(DataError, folder)
    folder.unlink()
    write(folder, 0, texts=["red"])
    refused(DataError, folder)
    write(folder, 2)
    (folder / "texts.txt").unlink()
    refused(DataError, folder)
    (folder / "texts.txt").write_text("\n \n")
    refused(DataError, folder / "texts.txt")
    (folder / "texts.txt").write_bytes(b"red\n\xff\n")
    refused(TextError, f"{folder / 'texts.txt'}, line 2")
    (folder / "texts.txt").write_text("red\n")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    refused(ImageError, folder / "1.png")
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(write(tmp_path / "elsewhere", 1) / "0.png")
    refused(DataError, folder / "1.png")
    (folder / "1.png").unlink()
    (folder / "texts.txt").unlink()
    (folder / "texts.txt").symlink_to("/dev/zero")
    refused(DataError, folder / "texts.txt")


def test_evidence_that_nothing_uses_is_a_wrong_option(source: SourceModel, tmp_path: Path) -> None:
    folder = write(tmp_path, texts=["red", "blue"])
    with pytest.raises(UsageError) as caught:
        require_evidence(folder, tmp_path / ".." / tmp_path.name)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError) as caught:
        with_evidence(replace(source, evidence=b"its own"), folder, describe(source, "simmim", provenance={}))
    assert "--evidence" in str(caught.value.fix)
    manifest = describe(replace(source, pipelines=source.pipelines[:1]), "simmim", provenance={})
    write(folder, captions=[("0.png", ["red"])])
    with pytest.raises(UsageError) as caught:
        with_evidence(source, folder, manifest)
    assert caught.value.where == str(folder / "captions.jsonl")
    (folder / "captions.jsonl").unlink()
    with pytest.raises(UsageError) as caught:
        with_evidence(source, folder, replace(manifest, pipelines=()))
    assert "--evidence" in str(caught.value.fix)


@pytest.fixture(scope="session")
def bundle(once: Once, towers: Path, tmp_path_factory: pytest.TempPathFactory, zygote) -> Path:
    """The bundle of the towers, with the evidence of twelve captioned pictures, in FP32 and INT8."""
    folder = tmp_path_factory.mktemp("told") / "pictures"
    captions = [(f"{n}.png", [f"a {COLORS[n % 3]} circle {'? ' * (n // 3)}"]) for n in range(12)]
    write(folder, 12, texts=[f"what shape is {color}" for color in COLORS], captions=captions)

    def make(path: Path) -> None:
        words = ("onnx", str(towers), "-o", str(path), "--evidence", str(folder), "--precision", "int8")
        done = zygote.run("simmim_export.cli", [*words, "--max-batch", "2"], timeout=300)
        assert done.returncode == 0, done.stderr

    return once("towers-bundle", make)


def test_the_bundle_carries_the_evidence(bundle: Path) -> None:
    evidence = Evidence.load(bundle / "evidence.npz")
    assert len(evidence.images["captioned"]) == 12 and len(evidence.plain) == 3
    assert evidence.reference.keys() == {"images/captioned", "texts"}
    assert Bundle.open(bundle).check()


def test_a_certificate_is_judged_by_the_evidence(bundle: Path, run_cli) -> None:
    budget = "retrieval=25pt,agreement=90%,cosine=0.99"
    words = ("export", "certify", bundle, "--engine", "ort", "--engine", "ort:int8", "--rounds", 1, "--json")
    done = run_cli(*words, "--budget", budget)
    assert done.returncode == 0, done.stderr
    names = ["retrieval", "agreement zero-shot", "cosine images", "cosine texts"]
    for certificate in json.loads(done.stdout)["certificates"]:
        assert [line["name"] for line in certificate["lines"]][:4] == names and certificate["passed"]
    done = run_cli(*words, "--budget", "agreement=90%,cosine=1")
    assert done.returncode == 4, done.stderr
    done = run_cli(*words, "--budget", "retrieval=0.5pt")
    assert done.returncode == 2 and "600" in done.stderr and "--eval-scenes" not in done.stderr, done.stderr


def test_bad_evidence_ends_the_command_before_pytorch_is_loaded(towers: Path, tmp_path: Path, run_cli) -> None:
    done = run_cli("export", "onnx", towers, "-o", tmp_path / "b", "--evidence", tmp_path / "none")
    assert done.returncode == 5 and "none" in done.stderr and not (tmp_path / "b").exists()
