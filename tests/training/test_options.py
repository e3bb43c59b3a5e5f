"""What is wrong with a training command is said before PyTorch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import BLOCK

from simmim_export.training import options, tasks
from simmim_export.training.evaluation import EVALUATORS
from simmim_export.training.pretrain import OBJECTIVES

TRAIN = ("--steps", "1", "-o", "x.pt")
# Arguments and exit code.
WRONG = [
    (("init", "--preset", "huge", "-o", "x.pt"), 2),
    (("init", "--fusion", "sum", "-o", "x.pt"), 2),
    (("init", "--interaction", "graf", "-o", "x.pt"), 2),
    (("init", "--fusion", "gated", "-o", "x.pt"), 2),
    (("init", "--image-encoder", "vit", "-o", "x.pt"), 2),
    (("init", "--image-weights", "none.pth", "-o", "x.pt"), 5),
    (("init", "--text-encoder", "./none", "-o", "x.pt"), 5),
    (("init", "-o", "there.pt"), 2),
    (("init", "-o", "m.safetensors"), 2),
    (("import", "none.pt", "-o", "x.pt"), 5),
    (("import", "there.pt", "-o", "there.pt"), 2),
    (("pretrain", "-o", "x.pt"), 2),
    (("pretrain", "--steps", "1", "--minutes", "1", "-o", "x.pt"), 2),
    (("pretrain", "--minutes", "nan", "-o", "x.pt"), 2),
    (("pretrain", "--steps", "1", "-o", "there.pt"), 2),
    (("pretrain", "--preset", "huge", *TRAIN), 2),
    (("pretrain", "--data", "cocoa", *TRAIN), 2),
    (("pretrain", "--data", "coco", *TRAIN), 2),
    (("pretrain", "--data", "coco", "--data-root", "nowhere", *TRAIN), 2),
    (("pretrain", "--data", "table", "--data-root", ".", *TRAIN), 2),
    (("pretrain", "--data-root", ".", *TRAIN), 2),
    (("pretrain", "--data", "digits", *TRAIN), 2),
    (("pretrain", "--split", "C", *TRAIN), 2),
    (("pretrain", "--optimizer", "sgd", *TRAIN), 2),
    (("pretrain", "--mixed-precision", "fp8", *TRAIN), 2),
    (("pretrain", "--lr", "nan", *TRAIN), 2),
    (("pretrain", "--itm", "-1", *TRAIN), 2),
    (("pretrain", "--itc", "0", "--itm", "0", "--mlm", "0", *TRAIN), 2),
    (("pretrain", "--batch-size", "1", *TRAIN), 2),
    (("pretrain", "--from", "none.pt", *TRAIN), 5),
    (("pretrain", "--freeze", "text", *TRAIN), 2),
    (("pretrain", "--freeze", "both", "--from", "there.pt", *TRAIN), 2),
    (("pretrain", "--resume", *TRAIN), 2),
    (("finetune", "--task", "dance", *TRAIN), 2),
    (("finetune", "--task", "video_qa", *TRAIN), 2),
    (("finetune", "--data", "digits", *TRAIN), 2),
    (("finetune", "--batch-size", "1", *TRAIN), 2),
    (("finetune", "--task", "retrieval", "--batch-size", "1", *TRAIN), 2),
    (("finetune", "--from", "none.pt", *TRAIN), 5),
    (("evaluate", "none.pt"), 5),
    (("evaluate", "there.pt", "--stream", "train"), 2),
    (("evaluate", "there.pt", "--eval-scenes", "0"), 2),
    (("evaluate", "there.pt", "--data", "cocoa"), 2),
    (("evaluate", "there.pt", "--data", "shapes", "--stream", "tset"), 2),
    (("draw", "--data", "coco", "-o", "pictures"), 2),
]
# Every command line in one process: importing torch fails there.
RUN = """
import contextlib, io, json
from simmim_export.training.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["simmim-train", *words]
    said = io.TextIOWrapper(io.BytesIO())
    try:
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), contextlib.redirect_stderr(said):
            main()
        codes.append([0, ""])
    except SystemExit as ended:
        said.seek(0)
        codes.append([ended.code, said.read()])
    except BaseException as error:
        codes.append([repr(error), ""])
print(json.dumps(codes))
"""


def test_usage_errors_come_before_pytorch(tmp_path: Path) -> None:
    import json

    (tmp_path / "there.pt").write_text("precious")
    words = json.dumps([arguments for arguments, _ in WRONG])
    command = [sys.executable, "-c", BLOCK + RUN, words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wrong = [(a, got) for (a, code), got in zip(WRONG, found, strict=True) if got[0] != code or "next:" not in got[1]]
    assert not wrong
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]


@pytest.mark.parametrize("module", ["options", "recall", "interrupt", "text_folder", "drawing", "data"])
def test_modules_that_check_do_not_import_pytorch(module: str) -> None:
    command = [sys.executable, "-c", f"{BLOCK}import simmim_export.training.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_name_has_what_it_stands_for() -> None:
    assert set(options.TASKS) == set(tasks.STAGES) == set(EVALUATORS) - {"match"}
    assert set(options.OBJECTIVES) == set(OBJECTIVES) >= options.COMPARING


def test_data_on_disk_are_read_once(tmp_path: Path) -> None:
    from test_readers import said

    said(tmp_path, "image,caption\na.png,x\nb.png,y\n")
    choice = options.DataChoice("table", root=tmp_path)
    choice.open(0, "train", size=64).open()
    (tmp_path / "train.csv").unlink()
    assert choice.open(0, "train", size=32).limit("captions") == 2
