"""Readers on small data sets in the exact public layouts, and on everything that can be wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.errors import DataError, UsageError
from simmim_export.training.data.readers import READERS, read
from simmim_export.training.data.readers.vqav2 import normalize_answer, soft_scores
from simmim_export.training.data.records import Question, Statement


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (200, 10, 10)).save(path)
    return path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def vqav2(root: Path, split: str = "val2014") -> str:
    picture(root / f"{split}/COCO_{split}_000000000042.jpg")
    questions = [{"image_id": 42, "question": "What colour is it?", "question_id": 420}]
    questions += [{"image_id": 42, "question": "How many?", "question_id": 421}]
    write(root / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
    given_answers = [["red"] * 6 + ["dark red"] * 3 + ["a rose"], ["2"] * 9 + ["two"]]
    annotations = [
        {"question_id": 420 + i, "image_id": 42, "answer_type": kind, "answers": [{"answer": a} for a in answers]}
        for i, (answers, kind) in enumerate(zip(given_answers, ("other", "number"), strict=True))
    ]
    write(root / f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})
    return split


def coco(root: Path, split: str = "val2017") -> str:
    for name in ("a.jpg", "b.jpg"):
        picture(root / split / name)
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    said = enumerate([(1, "x"), (2, "y"), (1, "z ")])
    captions = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in said]
    write(root / f"annotations/captions_{split}.json", {"images": images, "annotations": captions})
    return split


def karpathy(root: Path) -> str:
    picture(root / "val2014/a.jpg")
    picture(root / "val2014/b.jpg")
    rows = [{"filepath": "val2014", "filename": f"{n}.jpg", "split": s, "sentences": [{"raw": f"{n} 1"}, {"raw": f"{n} 2"}]}
            for n, s in (("a", "train"), ("b", "restval"))]  # fmt: skip
    write(root / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    return "train+restval"


def clevr(root: Path) -> str:
    picture(root / "images/val/CLEVR_val_000000.png")
    question = {"question": "How many cubes?", "image_filename": "CLEVR_val_000000.png", "answer": "3"}
    program = [{"function": "scene"}, {"function": "count"}]
    write(root / "questions/CLEVR_val_questions.json", {"questions": [question | {"program": program}, question]})
    return "val"


def snli_ve(root: Path, split: str = "dev") -> str:
    picture(root / "flickr30k_images/77.jpg")
    labels = ("neutral", "-", "entailment")
    rows = [{"Flickr30K_ID": "77", "sentence2": "it rains", "gold_label": label} for label in labels]
    write(root / f"snli_ve_{split}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    return split


def image_folder(root: Path, split: str = "train") -> str:
    for name in ("dog/2.png", "cat/1.png", "cat/10.png"):
        picture(root / split / name)
    return split


def frames(root: Path, split: str = "train") -> str:
    for number in (10, 2, 1):
        picture(root / f"{split}/wave/clip7/frame{number}.jpg")
        picture(root / f"{split}/nod/clip3/frame{number}.jpg")
    return split


def webdataset(root: Path) -> str:
    extra = {"captions": ["second"], "questions": [{"question": "how?", "answer": "so"}]}
    one = {"x/001.png": png(), "x/001.txt": b"first\n", "x/001.json": json.dumps(extra).encode()}
    tar(root / "train-000.tar", one)
    tar(root / "train-001.tar", {"x/002.jpg": picture(root / "t.jpg").read_bytes(), "x/002.cls": b"7\n"})
    return "train"


def table(root: Path, split: str = "train") -> str:
    picture(root / "images/a.png")
    picture(root / "images/b.png")
    rows = ["image,question,answer", 'images/a.png,"What colour, and why?",red', "images/a.png,How many?,2"]
    write(root / f"{split}.csv", "\r\n".join([*rows, "images/b.png,How many?,3"]) + "\r\n")
    return split


def emoji(root: Path) -> str:
    rows, names = [], []
    for code, name in (("1F600", "grinning face"), ("1F408", "cat")):  # the cat is held out
        picture(root / f"openmoji-png/{code}.png")
        names.append({"hexcode": code, "group": "x", "annotation": name, "tags": "a, b", "skintone": ""})
        file = f"{code.lower()}.png"
        rows.append({"unified": code, "image": file, "has_img_google": True, "has_img_twitter": True})
        for vendor in ("google", "twitter"):
            picture(root / f"node_modules/emoji-datasource-{vendor}/img/{vendor}/64/{file}")
            write(root / f"node_modules/emoji-datasource-{vendor}/emoji.json", rows)
    write(root / "node_modules/openmoji/data/openmoji.json", names)
    return "style"


ON_DISK = (vqav2, coco, karpathy, clevr, snli_ve, image_folder, frames, webdataset, table, emoji)
MAKERS = {maker.__name__: maker for maker in ON_DISK}


def test_every_reader_is_tested() -> None:
    assert set(MAKERS) == set(READERS)


def test_every_reader_has_a_tree_and_a_command_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    assert all(f"--data {name} --data-root data" in text and f"`{name}`" in text for name in READERS)


def made(name: str, root: Path) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(name, root, MAKERS[name](root))


def test_vqav2(tmp_path: Path) -> None:
    (record,) = made("vqav2", tmp_path)
    assert record.key == "42" and record.images[0].is_file()
    first, second = record.questions
    assert first.text == "What colour is it?" and first.family == "other"
    assert first.answers == pytest.approx({"red": 1.0, "dark red": 0.9, "rose": 0.3})
    assert second == Question("How many?", {"2": 1.0}, family="number")


def test_coco(tmp_path: Path) -> None:
    assert [(r.key, r.captions) for r in made("coco", tmp_path)] == [("1", ("x", "z")), ("2", ("y",))]


def test_karpathy(tmp_path: Path) -> None:
    both = made("karpathy", tmp_path)
    assert [r.captions for r in both] == [("a 1", "a 2"), ("b 1", "b 2")] and both[0].images[0].is_file()
    assert len(read("karpathy", tmp_path, "train")) == 1


def test_clevr(tmp_path: Path) -> None:
    (record,) = made("clevr", tmp_path)
    assert [(q.answers, q.family) for q in record.questions] == [({"3": 1.0}, "count"), ({"3": 1.0}, "all")]


def test_snli_ve_says_what_it_leaves_out(tmp_path: Path) -> None:
    split = snli_ve(tmp_path)
    with pytest.warns(UserWarning, match="1 pairs"):
        (record,) = read("snli_ve", tmp_path, split)
    assert record.statements == (Statement("it rains", "neutral"), Statement("it rains", "entailment"))


def test_image_folder_and_frames(tmp_path: Path) -> None:
    records = made("image_folder", tmp_path / "images")
    assert [(r.label, r.images[0].name) for r in records] == [("cat", "1.png"), ("cat", "10.png"), ("dog", "2.png")]
    _, clip = made("frames", tmp_path / "clips")
    assert [p.name for p in clip.images] == ["frame1.jpg", "frame2.jpg", "frame10.jpg"] and clip.label == "wave"


def test_webdataset(tmp_path: Path) -> None:
    first, second = made("webdataset", tmp_path)
    assert first.key == "x/001" and first.captions == ("first", "second")
    assert first.questions == (Question("how?", {"so": 1.0}),)
    assert second.label == "7" and Image.open(io.BytesIO(second.images[0])).size == (8, 6)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_missing_split_names_the_existing_ones(tmp_path: Path, name: str) -> None:
    split = MAKERS[name](tmp_path)
    with pytest.raises(UsageError, match="nowhere") as caught:
        read(name, tmp_path, "nowhere")
    assert split.split("+")[0] in caught.value.fix


# What each reader looks for, for a split that is not there.
LOOKED_FOR = {
    "vqav2": ("v2_OpenEnded_mscoco_nowhere_questions.json",),
    "coco": ("annotations/captions_nowhere.json",),
    "karpathy": ("dataset_coco.json",),
    "clevr": ("questions/CLEVR_nowhere_questions.json",),
    "snli_ve": ("snli_ve_nowhere.jsonl",),
    "image_folder": ("nowhere/",),
    "frames": ("nowhere/",),
    "webdataset": ("nowhere.tar", "nowhere-*.tar", "nowhere/*.tar"),
    "table": ("nowhere.csv", "nowhere.jsonl"),
    "emoji": ("nowhere",),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_missing_split_names_the_files_looked_for(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path)
    with pytest.raises(UsageError) as caught:
        read(name, tmp_path, "nowhere")
    assert all(file in caught.value.what for file in LOOKED_FOR[name]) and caught.value.where == str(tmp_path)
    with pytest.raises(UsageError) as caught:
        read(name, tmp_path / "none", "train")
    assert caught.value.where == str(tmp_path / "none") and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["vqav2", "coco", "karpathy", "clevr", "snli_ve", "table"])
def test_a_missing_picture_is_named(tmp_path: Path, name: str) -> None:
    split = MAKERS[name](tmp_path)
    gone = sorted(tmp_path.rglob("*.jpg")) + sorted(tmp_path.rglob("*.png"))
    gone[0].unlink()
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(name, tmp_path, split)
    assert gone[0].name in str(caught.value) and caught.value.exit_code == 5
    # A table of one's own names the line; public layouts are unpacked whole.
    assert (name == "table") == ("line" in str(caught.value.where))


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


VQA_Q, VQA_A = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
COCO, CLEVR = "annotations/captions_val2017.json", "questions/CLEVR_val_questions.json"
BROKEN = [
    ("vqav2", VQA_Q, lambda c: c["questions"][1].pop("question"), r"no 'question'.*questions\[1\]"),
    ("vqav2", VQA_Q, lambda c: c["questions"].append(dict(c["questions"][0])), "question_id 420 occurs twice"),
    ("vqav2", VQA_Q, lambda c: c["questions"].pop(), "annotation of question 421"),
    ("vqav2", VQA_A, lambda c: c["annotations"].pop(), "question 421 has no annotation"),
    ("vqav2", VQA_A, lambda c: c["annotations"][0].update(answers=[]), r"no answers.*annotations\[0\]"),
    ("vqav2", VQA_A, lambda c: c["annotations"][0].update(answers=[{"answer": 3}]), "'answer' is int, not str"),
    ("vqav2", VQA_A, lambda c: c.update(annotations=[]), "question 420 has no annotation"),
    ("coco", COCO, lambda c: c["annotations"][0].update(image_id=9), r"without an image: image_id 9.*ations\[0\]"),
    ("coco", COCO, lambda c: c["annotations"][1].update(id=0), r"caption id 0 occurs twice.*annotations\[1\]"),
    ("coco", COCO, lambda c: c["annotations"].pop(1), "1 images without a caption, the first is image 2"),
    ("coco", COCO, lambda c: c["images"].append(c["images"][0]), "image id 1 occurs twice"),
    ("coco", COCO, lambda c: c["annotations"][0].update(caption=" "), "caption is empty"),
    ("coco", COCO, lambda c: c.update(images=[], annotations=[]), "split is empty"),
    ("karpathy", "dataset_coco.json", lambda c: c["images"][0].update(sentences=[]), "image without a caption: a.jpg"),
    ("karpathy", "dataset_coco.json", lambda c: c["images"].append(c["images"][0]), "occurs twice"),
    ("clevr", CLEVR, lambda c: c["questions"][0].pop("answer"), "no 'answer'"),
    ("clevr", CLEVR, lambda c: c["questions"][0].update(program=[3]), "a step of 'program' is int"),
    ("clevr", CLEVR, lambda c: c.pop("questions"), "no 'questions'"),
]


@pytest.mark.parametrize(("name", "file", "change", "expected"), BROKEN)
def test_a_broken_record_is_named(tmp_path: Path, name: str, file: str, change, expected: str) -> None:
    split = MAKERS[name](tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(DataError) as caught:
        read(name, tmp_path, split)
    message = str(caught.value).replace("\n", " ")
    assert re.search(expected, message), message
    named = VQA_A if expected.startswith("annotation of") else VQA_Q if "has no annotation" in expected else file
    assert named.rpartition("/")[2] in message


def test_malformed_lines_labels_and_missing_files(tmp_path: Path) -> None:
    split = snli_ve(tmp_path)
    path = tmp_path / "snli_ve_dev.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read("snli_ve", tmp_path, split)
    assert "line 4" in str(caught.value)
    path.write_text('{"Flickr30K_ID": "77", "sentence2": "x", "gold_label": "maybe"}')
    with pytest.raises(DataError, match="maybe"):
        read("snli_ve", tmp_path, split)
    vqav2(tmp_path)
    (tmp_path / VQA_A).unlink()
    with pytest.raises(DataError) as caught:
        read("vqav2", tmp_path, "val2014")
    assert caught.value.where == str(tmp_path / VQA_A)
    with pytest.raises(DataError) as caught:
        read("karpathy", tmp_path, "train")
    assert caught.value.where == str(tmp_path)
    frames(tmp_path / "f")
    for number in (1, 2):
        (tmp_path / f"f/train/wave/clip7/frame{number}.jpg").unlink()
    with pytest.raises(DataError, match="1 frames"):
        read("frames", tmp_path / "f", "train")
    (tmp_path / "g/train/cat").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read("image_folder", tmp_path / "g", "train")
    assert caught.value.where == str(tmp_path / "g/train/cat")
    picture(tmp_path / "g/train/cat/deep/1.png")
    write(tmp_path / "g/train/cat/notes.txt", "x")
    with pytest.warns(UserWarning, match="1 files"):
        assert len(read("image_folder", tmp_path / "g", "train")) == 1
    with pytest.raises(UsageError, match="nope"):
        read("nope", tmp_path, "train")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a.txt": b"x"}, "0 pictures, not one"),
        ({"a.png": b"x", "a.jpg": b"x"}, "2 pictures, not one"),
        ({"a.png": b"x", "a.json": b"{"}, "malformed JSON"),
        ({"a.png": b"x", "a.json": b'{"questions": [{}]}'}, "no 'question'"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "not UTF-8"),
        ({"a.png": b"x", "a.exe": b"x"}, "unknown kind: .exe"),
        ({"a.png": b"x", "./a.png": b"x"}, "'png' occurs twice"),
        ({"a.png": b"x", "a.cls": b" "}, "label is empty"),
        ({"a.png": b"x", "a.txt": b"\n"}, "caption is empty"),
        ({"a.png": b"x", "a.json": b'{"label": true}'}, "label is bool, not str"),
        ({"a.png": b"x", "a.json": b"1" * 5000}, "malformed JSON"),
        ({}, "split is empty"),
    ],
)
def test_a_broken_shard_is_named(tmp_path: Path, members: dict[str, bytes], expected: str) -> None:
    tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=expected) as caught:
        read("webdataset", tmp_path, "train")
    assert caught.value.where


@pytest.mark.parametrize("how", ["between", "within", "header", "two", "gz", "link"])
def test_a_lost_member_of_a_shard_is_an_error(tmp_path: Path, how: str) -> None:
    path = tar(tmp_path / "train.tar", {f"{n}.png": png() for n in range(40)})
    whole = path.read_bytes()
    assert len(read("webdataset", tmp_path, "train")) == 40
    damaged = whole[:2048] + b"\xff" + whole[2049:]
    cut = {"between": whole[:5120], "within": whole[:5700], "gz": gzip.compress(whole)[:-40]}
    path.write_bytes((cut | {"header": damaged, "two": whole * 2}).get(how, whole))
    if how == "link":
        with tarfile.open(path, "a") as archive:
            (info := tarfile.TarInfo("x.png")).type = tarfile.SYMTYPE
            archive.addfile(info)
    with pytest.raises(DataError):
        read("webdataset", tmp_path, "train")


@given(st.lists(st.sampled_from("abcd"), min_size=10, max_size=10))
def test_soft_scores_are_the_official_leave_one_out(answers: list[str]) -> None:
    scores = soft_scores(answers)
    for answer in set(answers):
        kept = [[a for j, a in enumerate(answers) if j != i] for i in range(10)]
        assert scores[answer] == pytest.approx(np.mean([min(1, others.count(answer) / 3) for others in kept]))
        assert scores[answer] == pytest.approx({1: 0.3, 2: 0.6, 3: 0.9}.get(answers.count(answer), 1.0))


# Marks, contractions and case as the official evaluation has them, oddities included.
ANSWERS = """A Dog.=dog; two=2; dont know=don't know; 1,000=1000; 3.5=3.5; red/blue=red blue; red/ blue=red blue; id=id; Im=im
couldnt've=couldn't've; somebody'd=somebodyd; black-white - x=blackwhite x; 1,000 red/blue=1000 redblue"""


@pytest.mark.parametrize("pair", ANSWERS.replace("\n", "; ").split("; "))
def test_answers_are_normalized(pair: str) -> None:
    text, expected = pair.split("=")
    assert normalize_answer(text) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["vqav2", "coco", "karpathy", "clevr", "snli_ve", "webdataset", "table", "emoji"]),
    data=st.data(),
)
def test_damaged_files_raise_only_errors_with_a_fix(tmp_path: Path, name: str, data: st.DataObject) -> None:
    root = tmp_path / name
    split = MAKERS[name](root)
    files = [p for p in root.rglob("*") if p.suffix in (".json", ".jsonl", ".tar", ".csv")]
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(name, root, split)
        except (DataError, UsageError) as error:
            assert error.fix
