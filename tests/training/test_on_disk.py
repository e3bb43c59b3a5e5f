"""simmim-train on data sets on disk: few examples, incomplete held-out splits, and evaluation that fails after
training."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim_export.errors import DataError
from simmim_export.training.data.base import CAPTIONS, QUESTIONS, Data
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.figures import check_classes
from simmim_export.training.options import DataChoice

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox")


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def classes(root: Path, split: str, names: tuple[str, ...] = CLASSES, each: int = 2) -> Path:
    """An image_folder with one color per class."""
    for place, name in enumerate(names):
        (root / split / name).mkdir(parents=True)
        for number in range(each):
            (root / split / name / f"{number}.png").write_bytes(png((40 * place, 10 * number, 0)))
    return root


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def asked(root: Path, split: str, count: int, questions: bool = True) -> Path:
    """A webdataset of captions and, with ``questions``, one question per image, each with a different answer."""
    members = {}
    for number in range(count):
        said: dict[str, object] = {"caption": f"number {number}"}
        if questions:
            said["questions"] = [{"question": "how many ?", "answer": f"{number}"}]
        members |= {f"{number:03d}.png": png((10 * number, 0, 0)), f"{number:03d}.json": json.dumps(said).encode()}
    tar(root / f"{split}.tar", members)
    return root


def test_few_examples_have_the_classes_of_all(tmp_path: Path) -> None:
    few = DataChoice("image_folder", root=classes(tmp_path / "c", "train"), examples=3).open(0, "train", size=64)
    assert few.limit("classes") == 3 and few.labels == {"image_class": CLASSES}
    choice = DataChoice("webdataset", root=asked(asked(tmp_path / "w", "train", 12), "test", 12), examples=2)
    train, test = (choice.open(0, stream, size=64) for stream in ("train", "test"))
    assert train.limit("questions") == 2 and test.limit("questions") == 12
    assert train.labels == test.labels == train.on("test").labels and len(train.labels["vqa"]) == 12
    batch = train.batch(0, 2, want=QUESTIONS)
    assert batch.scores is not None and batch.scores.shape == (2, 4, 12)


def test_rehearsal_is_on_the_same_few_examples(tmp_path: Path) -> None:
    train = DataChoice("webdataset", root=asked(tmp_path, "train", 12), examples=3).open(0, "train", size=64)
    again = train.on("train-rehearsal")
    assert again.limit("captions") == 3 and train.on("samples").limit("captions") == 12
    own = {caption for row in train.batch(0, 3, want=CAPTIONS).captions for caption in row}
    assert {
        caption for index in range(4) for row in again.batch(index, 3, want=CAPTIONS).captions for caption in row
    } == own


def test_rehearsal_on_shapes_is_on_the_same_few_scenes() -> None:
    train = Shapes(0, examples=8)
    again = train.on("train-rehearsal")
    scenes = [{scene for i in range(4) for scene in data.batch(i, 4, want=CAPTIONS).scenes} for data in (train, again)]
    assert scenes[0] == scenes[1] and len(scenes[0]) == 8
    assert train.on("test").examples is None
    # Without a limit rehearsal has scenes of its own.
    other = Shapes(0).on("train-rehearsal").batch(0, 4, want=CAPTIONS)
    assert not np.array_equal(other.pixels, Shapes(0).batch(0, 4, want=CAPTIONS).pixels)


def test_classes_that_change_while_a_model_trains_are_refused(tmp_path: Path) -> None:
    classes(classes(tmp_path, "train"), "test")

    def opened(stream: str) -> Data:
        """As a command of its own finds it."""
        return DataChoice("image_folder", root=tmp_path).open(0, stream, size=64)

    trained = opened("train").labels["image_class"]
    check_classes(opened("test"), "image_class", trained=trained)
    classes(tmp_path, "train", ("gnu",))
    with pytest.raises(DataError, match=r"image_class .*: gnu"):
        check_classes(opened("test"), "image_class", trained=trained)
    with pytest.raises(DataError):
        check_classes(opened("test"), "image_class", trained=("gnu", *CLASSES))


def finetune(run_cli, task: str, data: str, root: Path, output: Path, *more: object):
    few = ("--batch-size", "2", "--data", data, "--data-root", root, "--task", task)
    steps = () if "--steps" in more else ("--steps", "3")
    return run_cli("train", "finetune", *few, *steps, *more, "-o", output, "--json")


def test_training_on_few_examples_is_judged_by_all_classes(run_cli, tmp_path: Path) -> None:
    from simmim_export.models.simmim.checkpoint import load
    from simmim_export.proof.evidence import Evidence

    root = classes(classes(tmp_path / "data", "train"), "test")
    done = finetune(run_cli, "image_class", "image_folder", root, tmp_path / "ckpt.pt", "--examples", "2")
    assert done.returncode == 0, done.stderr
    checkpoint = load(tmp_path / "ckpt.pt")
    assert checkpoint.labels["image_class"] == list(CLASSES) and checkpoint.metrics["image_class"]["n"] == 12
    assert checkpoint.provenance["data"]["records"] == 2
    evidence = Evidence.load(checkpoint.evidence.numpy().tobytes())
    pictures = evidence.images["classed"]
    # The red channel says which class an image is of.
    assert (pictures[:, 0, 0, 0] // 40).tolist() == evidence.tasks["image_class"].labels.ravel().tolist()
    done = run_cli("train", "evaluate", tmp_path / "ckpt.pt", "--data", "image_folder", "--data-root", root, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image_class"]["accuracy"] == checkpoint.metrics["image_class"]["accuracy"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_text_that_is_too_long_is_named_before_training(run_cli, tmp_path: Path, split: str) -> None:
    from simmim_export.models.simmim.checkpoint import load

    root = asked(asked(tmp_path / "data", "train", 4), "test", 4)
    said = {"caption": "long " * 40, "questions": [{"question": "how many ?", "answer": "0"}]}
    tar(root / f"{split}.tar", {"0.png": png((0, 0, 0)), "0.json": json.dumps(said).encode()} | {
        "1.png": png((9, 0, 0)), "1.json": json.dumps(said | {"caption": "short"}).encode()
    })  # fmt: skip
    # Nobody waits for so many steps: the message comes first.
    done = finetune(run_cli, "retrieval", "webdataset", root, tmp_path / "x.pt", "--steps", "1000000")
    assert done.returncode == 5 and "42 tokens" in done.stderr and "--max-length 42" in done.stderr
    if split == "train":
        done = finetune(run_cli, "retrieval", "webdataset", root, tmp_path / "x.pt", "--max-length", "42")
        assert done.returncode == 0, done.stderr
        assert load(tmp_path / "x.pt").config.max_length == 42


def test_data_without_any_task_are_an_error(run_cli, tmp_path: Path) -> None:
    tar(tmp_path / "data/train.tar", {"0.png": png((0, 0, 0)), "0.json": b"{}"})
    done = finetune(run_cli, "vqa", "webdataset", tmp_path / "data", tmp_path / "x.pt")
    assert done.returncode == 2 and "give data with questions, captions or classes" in done.stderr


def test_a_missing_test_split_is_reported_before_training(run_cli, tmp_path: Path) -> None:
    root = classes(tmp_path / "data", "train")
    # Nobody waits for so many steps: the message comes first.
    done = finetune(run_cli, "image_class", "image_folder", root, tmp_path / "x.pt", "--steps", "1000000")
    assert done.returncode == 2 and "split 'test'" in done.stderr and "--eval-scenes 0" in done.stderr
    assert not (tmp_path / "x.pt").exists() and not (tmp_path / "x.pt.trainer").exists()
    done = finetune(run_cli, "image_class", "image_folder", root, tmp_path / "x.pt", "--eval-scenes", "0")
    assert done.returncode == 0, done.stderr


def test_val_replaces_a_missing_test_split_with_a_warning(run_cli, tmp_path: Path) -> None:
    from simmim_export.models.simmim.checkpoint import load
    from simmim_export.proof.evidence import Evidence

    root = classes(classes(tmp_path / "data", "train"), "val", each=20)
    done = finetune(run_cli, "image_class", "image_folder", root, tmp_path / "x.pt", "--eval-scenes", "40")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("split 'test'") == 1 and "'val'" in done.stderr
    checkpoint = load(tmp_path / "x.pt")
    assert checkpoint.metrics["image_class"]["n"] == 40 and checkpoint.metrics["image_class"]["data"]["split"] == "val"
    # Figures and evidence share the split, and no picture.
    measured = DataChoice("image_folder", root=root).open(0, "test", size=64)
    figures = {p.tobytes() for p in measured.labeled(0, 40).pixels}
    evidence = Evidence.load(checkpoint.evidence.numpy().tobytes()).images["classed"]
    assert len(evidence) == len(figures) == 40 and not figures & {p.tobytes() for p in evidence}
    classes(root, "test")
    done = run_cli("train", "evaluate", tmp_path / "x.pt", "--data", "image_folder", "--data-root", root, "--json")
    assert done.returncode == 0 and "split 'test'" not in done.stderr, done.stderr
    assert json.loads(done.stdout)["image_class"]["n"] == 12


def test_a_single_class_is_an_error(run_cli, tmp_path: Path) -> None:
    root = classes(classes(tmp_path / "data", "train", ("ant",)), "test", ("ant",))
    done = finetune(run_cli, "image_class", "image_folder", root, tmp_path / "x.pt")
    assert done.returncode == 5 and "one class for image_class, 'ant'" in done.stderr, done.stderr


def test_images_with_different_numbers_of_captions_pretrain(run_cli, tmp_path: Path) -> None:
    from test_readers import coco

    for split in ("train2014", "val2014"):
        coco(tmp_path / "data", split)
    words = ("--data", "coco", "--data-root", tmp_path / "data", "--steps", "2", "--batch-size", "3")
    done = run_cli("train", "pretrain", *words, "-o", tmp_path / "x.pt", "--json")
    assert done.returncode == 0, done.stderr


def test_a_split_without_questions_is_not_measured(run_cli, tmp_path: Path) -> None:
    root = asked(asked(tmp_path / "data", "train", 4), "test", 4, questions=False)
    done = finetune(run_cli, "vqa", "webdataset", root, tmp_path / "ckpt.pt")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["vqa"] == {"not_measured": "test of webdataset has no questions"} and metrics["match"]["n"] == 8
    done = run_cli("train", "evaluate", tmp_path / "ckpt.pt", "--data", "webdataset", "--data-root", root, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vqa"] == metrics["vqa"]


def test_a_failed_evaluation_can_be_resumed_without_training(run_cli, tmp_path: Path) -> None:
    from simmim_export.models.simmim.checkpoint import load

    root, output = classes(classes(tmp_path / "data", "train"), "test"), tmp_path / "ckpt.pt"
    bad = root / "test/cow/0.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:20])
    done = finetune(run_cli, "image_class", "image_folder", root, output)
    assert done.returncode == 5 and bad.name in done.stderr and not output.exists()
    assert "repeat the command with --resume" in done.stderr
    state = torch.load(tmp_path / "ckpt.pt.trainer", weights_only=True)
    assert state["progress"]["step"] == 3
    bad.write_bytes(whole)
    other = asked(asked(tmp_path / "other", "train", 4), "test", 4)
    for change, expected in (
        (("--batch-size", "3"), "batch_size was 2, is 3"),
        (("--examples", "5"), "examples was None, is 5"),
        (("--rehearse", "0"), "rehearse was 8, is 0"),
        (("--no-curriculum",), "curriculum was True, is False"),
        (("--task", "vqa", "--data", "webdataset", "--data-root", other), "data was image_folder, is webdataset"),
    ):
        done = finetune(run_cli, "image_class", "image_folder", root, output, "--resume", *change)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
    done = finetune(run_cli, "image_class", "image_folder", root, output, "--resume")
    assert done.returncode == 0, done.stderr
    checkpoint = load(output)
    assert checkpoint.provenance["seconds"] == round(state["progress"]["seconds"], 1)
    assert checkpoint.provenance["steps"] == 3 and checkpoint.metrics["image_class"]["n"] == 12
    assert all(torch.equal(value, state["stage"][f"model.{key}"].cpu()) for key, value in checkpoint.state.items())
    assert not (tmp_path / "ckpt.pt.trainer").exists()


def test_a_state_of_another_start_or_of_other_weights_is_refused(run_cli, tmp_path: Path) -> None:
    starts = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, start in enumerate(starts):
        done = run_cli("train", "init", "--seed", seed, "-o", start)
        assert done.returncode == 0, done.stderr
    root = asked(tmp_path / "data", "train", 4)
    # Pictures that do not decode: training ends, and its evaluation fails.
    tar(root / "test.tar", {"0.png": b"x", "0.txt": b"one", "1.png": b"x", "1.txt": b"two"})
    few = ("--steps", "2", "--batch-size", "2", "--mlm", "0", "--data", "webdataset", "--data-root", root)
    few += ("-o", tmp_path / "c.pt")
    done = run_cli("train", "pretrain", "--from", starts[0], *few)
    assert done.returncode == 5 and (tmp_path / "c.pt.trainer").exists(), done.stderr
    done = run_cli("train", "pretrain", "--from", starts[1], *few, "--resume")
    assert done.returncode == 2 and "parent was " in done.stderr, done.stderr
    done = run_cli("train", "pretrain", "--from", starts[0], *few, "--resume", "--itc", "0.5")
    assert done.returncode == 2 and "objectives was " in done.stderr, done.stderr
    # Without figures there is nothing to fail at.
    done = run_cli("train", "pretrain", "--from", starts[0], *few, "--resume", "--eval-scenes", "0")
    assert done.returncode == 0, done.stderr
