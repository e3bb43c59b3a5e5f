"""Mistakes in a training command are reported before PyTorch is imported."""

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
# Arguments, exit code, and a name that the message must quote.
WRONG = [
    (("init", "--preset", "huge", "-o", "x.pt"), 2, "'huge'"),
    (("init", "--fusion", "sum", "-o", "x.pt"), 2, "'sum'"),
    (("init", "--interaction", "graf", "-o", "x.pt"), 2, "'graf'"),
    (("init", "--fusion", "gated", "-o", "x.pt"), 2, "--interaction linear"),
    (("init", "--image-encoder", "vit", "-o", "x.pt"), 2, "'vit'"),
    (("init", "--image-weights", "none.pth", "-o", "x.pt"), 5, "none.pth"),
    (("init", "--text-encoder", "./none", "-o", "x.pt"), 5, "none"),
    (("init", "--text-encoder", "none/deep/er", "-o", "x.pt"), 5, "none/deep/er"),
    (("init", "-o", "there.pt"), 2, "there.pt"),
    (("init", "-o", "m.safetensors"), 2, "-o m.pt for a file, or -o m for a folder"),
    (("init", "-o", 300 * "x"), 2, "shorter name"),
    (("import", "none.pt", "-o", "x.pt"), 5, "none.pt"),
    (("import", "there.pt", "-o", "there.pt"), 2, "there.pt"),
    (("pretrain", "-o", "x.pt"), 2, "--minutes 3"),
    (("pretrain", "--steps", "1", "--minutes", "1", "-o", "x.pt"), 2, "drop --steps, or drop --minutes"),
    (("pretrain", "--minutes", "nan", "-o", "x.pt"), 2, "--minutes"),
    (("pretrain", "--steps", "0", "-o", "x.pt"), 2, "--steps 1000"),
    (("pretrain", "--steps", "1", "-o", "there.pt"), 2, "there.pt"),
    (("pretrain", "--preset", "huge", *TRAIN), 2, "'huge'"),
    (("pretrain", "--data", "cocoa", *TRAIN), 2, "'cocoa'"),
    (("pretrain", "--data", "coco", *TRAIN), 2, "--data-root"),
    (("pretrain", "--data", "coco", "--data-root", "nowhere", *TRAIN), 2, "nowhere"),
    (("pretrain", "--data", "table", "--data-root", ".", *TRAIN), 2, "train.csv"),
    (("pretrain", "--data", "table", "--data-root", ".", "--steps", "1", "-o", "x/y.pt"), 2, "train.csv"),
    (("pretrain", "--data-root", ".", *TRAIN), 2, "drop --data-root"),
    (("pretrain", "--data", "digits", *TRAIN), 2, "digits"),
    (("pretrain", "--split", "C", *TRAIN), 2, "'C'"),
    (("pretrain", "--optimizer", "sgd", *TRAIN), 2, "'sgd'"),
    (("pretrain", "--mixed-precision", "fp8", *TRAIN), 2, "'fp8'"),
    (("pretrain", "--lr", "nan", *TRAIN), 2, "--lr"),
    (("pretrain", "--itm", "-1", *TRAIN), 2, "0 or more"),
    (("pretrain", "--itc", "nan", *TRAIN), 2, "0 or more"),
    (("pretrain", "--itc", "0", "--itm", "0", "--mlm", "0", *TRAIN), 2, "itc, itm, mlm"),
    (("pretrain", "--batch-size", "1", *TRAIN), 2, "--batch-size"),
    (("pretrain", "--from", "none.pt", *TRAIN), 5, "none.pt"),
    (("pretrain", "--freeze", "text", *TRAIN), 2, "--from"),
    (("pretrain", "--freeze", "both", "--from", "there.pt", *TRAIN), 2, "'both'"),
    (("pretrain", "--resume", *TRAIN), 2, "x.pt.trainer"),
    (("finetune", "--task", "dance", *TRAIN), 2, "'dance'"),
    (("finetune", "--task", "video_qa", *TRAIN), 2, "video_qa"),
    (("finetune", "--data", "digits", *TRAIN), 2, "--task image_class"),
    (("finetune", "--batch-size", "1", *TRAIN), 2, "--rehearse 0"),
    (("finetune", "--task", "retrieval", "--batch-size", "1", *TRAIN), 2, "--batch-size"),
    (("finetune", "--from", "none.pt", *TRAIN), 5, "none.pt"),
    (("finetune", "--resume", *TRAIN), 2, "x.pt.trainer"),
    (("evaluate", "none.pt"), 5, "none.pt"),
    (("evaluate", "there.pt", "--stream", "train"), 2, "--stream train"),
    (("evaluate", "there.pt", "--stream", "train-rehearsal"), 2, "--stream train-rehearsal"),
    (("evaluate", "there.pt", "--stream", "samples"), 2, "--stream samples"),
    (("evaluate", "there.pt", "--eval-scenes", "0"), 2, "--eval-scenes 0"),
    (("evaluate", "there.pt", "--data", "cocoa"), 2, "'cocoa'"),
    (("evaluate", "there.pt", "--data", "shapes", "--stream", "tset"), 2, "'tset'"),
    (("draw", "--data", "coco", "-o", "pictures"), 2, "'coco'"),
    (("draw", "--stream", "tset", "-o", "pictures"), 2, "'tset'"),
    (("draw", "-o", "."), 2, "--overwrite"),
    (("draw", "-o", "there.pt", "--overwrite"), 2, "there.pt"),
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
    words = json.dumps([arguments for arguments, _, _ in WRONG])
    command = [sys.executable, "-c", BLOCK + RUN, words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = zip(WRONG, json.loads(done.stdout), strict=True)
    for (arguments, code, named), (got, message) in outcomes:
        assert got == code and named in message, (arguments, got, message)
        assert "error: " in message and "next:" in message, (arguments, message)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]
    assert (tmp_path / "there.pt").read_text() == "precious"


@pytest.mark.parametrize("module", ["checks", "options", "interrupt", "text_folder", "drawing", "cli_options"])
def test_modules_that_check_do_not_import_pytorch(module: str) -> None:
    command = [sys.executable, "-c", f"{BLOCK}import simmim_export.training.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_task_and_objective_is_implemented() -> None:
    assert set(options.TASKS) == set(tasks.STAGES) == set(EVALUATORS) - {"match"}
    assert set(options.OBJECTIVES) == set(OBJECTIVES) >= options.COMPARING


def test_data_on_disk_is_read_once(tmp_path: Path) -> None:
    from test_table import said

    said(tmp_path, "image,caption\na.png,x\nb.png,y\n")
    choice = options.DataChoice("table", root=tmp_path)
    choice.open(0, "train", size=64).open()
    (tmp_path / "train.csv").unlink()
    assert choice.open(0, "train", size=32).limit("captions") == 2
