"""evaluate without --data: what the checkpoint was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_on_disk import classes

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.training.options import DataRequest


def test_evaluate_remembers_the_data_and_says_so(run_cli, tmp_path: Path) -> None:
    root = classes(classes(tmp_path / "data", "train"), "test")
    words = ("--task", "image_class", "--data", "image_folder", "--data-root", root, "--seed", "3")
    checkpoint = tmp_path / "ckpt.pt"
    done = run_cli("train", "finetune", *words, "--steps", "2", "--batch-size", "2", "-o", checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    done = run_cli("train", "evaluate", checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image_class"] == trained["image_class"] and str(root) in done.stderr
    moved = Path(shutil.move(root, tmp_path / "moved"))
    done = run_cli("train", "evaluate", checkpoint)
    assert done.returncode == 2 and str(root) in done.stderr and "--data-root" in done.stderr
    done = run_cli("train", "evaluate", checkpoint, "--data-root", moved, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image_class"]["accuracy"] == trained["image_class"]["accuracy"]


SHAPES = {"data": {"name": "shapes", "seed": 5, "split": "A", "stream": "train", "size": 64}, "recipe": {"seed": 5}}
HERE = Path("ckpt.pt")


def test_a_record_of_one_data_set_is_not_used_for_another(tmp_path: Path) -> None:
    choice, seed = DataRequest().resolve(SHAPES, HERE)
    assert (choice.name, choice.split, choice.root, seed) == ("shapes", "A", None, 5)
    choice, seed = DataRequest(name="clips", seed=0).resolve(SHAPES, HERE)
    assert (choice.name, choice.split, seed) == ("clips", "iid", 0)
    assert DataRequest(split="B").resolve(SHAPES, HERE)[0].split == "B"
    coco = {"data": {"name": "coco", "root": str(tmp_path), "split": "train2014"}}
    choice, seed = DataRequest().resolve(coco, HERE)
    assert (choice.name, choice.root, choice.split, seed) == ("coco", tmp_path, "iid", 0)
    assert DataRequest(name="shapes").resolve(coco, HERE)[0].root is None


def test_a_checkpoint_that_was_never_trained_is_evaluated_on_shapes() -> None:
    choice, seed = DataRequest().resolve({"seed": 0, "stage": "init"}, HERE)
    assert (choice.name, choice.root, choice.split, seed) == ("shapes", None, "iid", 0)


@pytest.mark.parametrize(
    "provenance",
    [{"data": "shapes"}, {"data": {"name": 3}}, {"data": {"name": "shapes", "split": []}}, {"recipe": {"seed": True}},
     {"data": {"name": "coco", "root": 1}}],
)  # fmt: skip
def test_a_malformed_record_is_an_error_of_the_checkpoint(provenance: dict) -> None:
    with pytest.raises(CheckpointError) as caught:
        DataRequest().resolve(provenance, HERE)
    assert caught.value.where == str(HERE) and caught.value.fix


def test_a_recorded_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = {"data": {"name": "coco", "root": str(tmp_path / "gone")}}
    with pytest.raises(UsageError) as caught:
        DataRequest().resolve(gone, HERE)
    assert str(tmp_path / "gone") in caught.value.what and "--data-root" in caught.value.fix
