"""Every kind of message that a user can see, in one file to read: messages.txt.

``python tests/wording/messages.py --write`` (``make wording``) runs the commands below and writes what they say on stderr.
The test fails if a message differs from the file, so a change of wording shows in one diff.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from simmim_export.errors import GateFailed

MESSAGES = Path(__file__).with_name("messages.txt")
WRITE = "SIMMIM_WRITE_WORDING"
PROGRAMS = {
    "simmim-export": "simmim_export.cli",
    "simmim-train": "simmim_export.training.cli",
    "simmim-bench": "simmim_export.benchmarks.cli",
}
# Lines that depend on the time: "export: image_encoder (1/13)".
PROGRESS = re.compile(r"^[a-z]+: .+ \(\d+/\d+\)\n", re.MULTILINE)
# Figures that depend on the machine: those of a gate, such as 1.98e-02, and the size of a graph.
MEASURED = re.compile(r"\d+\.\d+(e-\d+)?")
# Which checks of a graph are worst depends on the machine as well.
CHECKS = re.compile(r"(^    .*\n)+", re.MULTILINE)
SIZE = re.compile(r"(?<=says )[\d,]+")
# Sections of commands. A word such as {bundle} is a path that places.py makes; files named without a folder are made there too.
COMMANDS: Mapping[str, str] = {
    "words on the command line": """
simmim-export
simmim-export exprot
simmim-export verify
simmim-export verify {bundle} --engin ort
simmim-export verify {bundle} --threads 0
simmim-export verify {bundle} --threads many
simmim-export ask {bundle} {picture}
simmim-export embed {bundle}
simmim-export embed {bundle} {picture} --text "a circle"
simmim-export embed {bundle} --recursive --text "a circle"
simmim-export embed {bundle} {picture} -o
simmim-bench --rounds 3 --bundle {bundle} compare a b
simmim-train pretrain
""",
    "engines, devices and precisions": """
simmim-export verify {bundle} --engine tpu
simmim-export verify {bundle} --engine openvino --device cuda
simmim-export verify {bundle} --device tpu
simmim-export verify {bundle} --precision fp8
simmim-export verify {bundle} --precision image_encodr=int8
simmim-export verify {bundle} --precision image_encoder=
simmim-export verify {bundle} --precision fp16
simmim-export verify {every} --precision int8
simmim-export verify {bundle} --precision planned
simmim-export verify {bundle} --engine torch
simmim-export verify {bundle} --engine torch --checkpoint missing.pt
simmim-export verify {bundle} --engine torch --checkpoint {every_checkpoint}
simmim-export verify {bundle} --checkpoint {checkpoint}
simmim-export verify {bundle} --engine auto
simmim-export verify {bundle} --engine auto --precision int8
simmim-export verify {bundle} --engine auto --device cuda
simmim-export build {bundle} --engine ort --dry-run
simmim-export build {bundle} --dry-run --workspace lots
simmim-export build {bundle} --dry-run --max batch
simmim-export build {bundle} --dry-run --max batch=99
simmim-export build {bundle} --dry-run --max rows=2
simmim-export build {bundle} --dry-run --min batch=4 --max batch=2
simmim-export build {bundle} --dry-run --shapes missing.log
simmim-export build {bundle} --dry-run --shapes text.txt
simmim-export build {bundle} --dry-run --hardware-compatibility all
""",
    "export": """
simmim-export onnx missing.pt -o out
simmim-export onnx empty.pt -o out
simmim-export onnx text.txt -o out
simmim-export onnx cut.pt -o out
simmim-export onnx {bundle} -o out
simmim-export onnx folder -o out
simmim-export onnx {checkpoint} -o {bundle}
simmim-export onnx {checkpoint} -o folder/notes.txt
simmim-export onnx {checkpoint} -o text.txt/out
simmim-export onnx {checkpoint} -o folder --overwrite
simmim-export onnx {checkpoint} -o out --opset 9
simmim-export onnx {checkpoint} -o out --max-batch 1
simmim-export onnx {checkpoint} -o out --max-batch 257
simmim-export onnx {checkpoint} -o out --precision bf16
simmim-export onnx {checkpoint} -o out --precision int4
simmim-export onnx {checkpoint} -o out --precision int8 --calibration missing
simmim-export onnx {checkpoint} -o out --precision int8 --calibration text.txt
simmim-export onnx {checkpoint} -o out --calibration folder
simmim-export onnx {checkpoint} -o out --budget answers
simmim-export onnx {checkpoint} -o out --budget speed=2
simmim-export onnx {checkpoint} -o out --budget cosine=2
""",
    "models of other makers": """
simmim-export onnx models/llava -o out
simmim-export onnx models/llava -o out --family clip
simmim-export onnx models/clip -o out
simmim-export onnx models/code -o out
simmim-export onnx {checkpoint} -o out --family llava
simmim-export onnx {checkpoint} -o out --answers text.txt
simmim-export onnx {checkpoint} -o out --answers gaps.txt
simmim-export onnx {checkpoint} -o out --image-size 384
simmim-export onnx {checkpoint} -o out --image-size 384x512
simmim-export onnx {checkpoint} -o out --evidence missing
simmim-export onnx {checkpoint} -o out --evidence folder
simmim-export adopt text.txt --like models/spec.toml -o out
simmim-export adopt text.txt --like models/typo.toml -o out
simmim-export adopt text.txt --like missing.toml -o out
simmim-export classify {bundle} {picture} --label red --label red
simmim-export classify {bundle} {picture} --label red --template "a photo"
simmim-export classify {bundle} {picture} --labels gaps.txt
""",
    "bundles": """
simmim-export inspect missing
simmim-export inspect folder
simmim-export inspect text.txt
simmim-export inspect damaged/not_json
simmim-export inspect damaged/not_utf8
simmim-export inspect damaged/nested
simmim-export inspect damaged/newer
simmim-export inspect damaged/altered
simmim-export inspect damaged/wrong_type
simmim-export inspect damaged/outside
simmim-export inspect damaged/no_graph
simmim-export inspect damaged/flipped
simmim-export inspect damaged/no_golden
simmim-export verify damaged/not_onnx
simmim-export verify damaged/spoiled
simmim-export verify damaged/no_golden
simmim-export embed damaged/tokenizer --text "a red circle"
simmim-export verify {bundle} --budget cosine=0.9
simmim-export verify {bundle} --evidence --budget answers=1pt
simmim-export verify {asked} --evidence --budget answers=0.1pt
simmim-export verify {asked} --evidence --precision int8 --budget cosine=0.99999999
simmim-export verify damaged/certificate --evidence
simmim-export certify {bundle} --engine torch
simmim-export certify {bundle} --engine tpu
simmim-export certify {bundle} --budget answers=1pt
""",
    "images and clips": """
simmim-export embed {bundle} missing.png
simmim-export embed {bundle} empty.png
simmim-export embed {bundle} text.png
simmim-export embed {bundle} cut.png
simmim-export embed {bundle} huge.png
simmim-export embed {bundle} floats.tiff
simmim-export embed {bundle} folder
simmim-export embed {bundle} folder --recursive
simmim-export embed {bundle} {picture} text.png missing.png empty.png
simmim-export embed {bundle} {picture} text.png --strict
simmim-export ask {bundle} animation.gif "what colour is the circle ?"
simmim-export ask {bundle} folder "what colour is the circle ?"
simmim-export ask {every} frames "what colour is the circle ?"
simmim-export ask {every} one_frame "what colour is the circle ?"
simmim-export match {every} frames "a red circle"
simmim-export classify {bundle} {picture}
simmim-export classify {bundle} {picture} "a red circle"
simmim-export ask {bundle} {picture} "what colour is the circle ?" --explain out.jpg
simmim-export ask {bundle} {picture} "what colour is the circle ?" --explain no/out.png
simmim-export ask {bundle} {picture} "what colour is the circle ?" --explain out.png
simmim-export ask {every} {picture} "what colour is the circle ?" --explain {picture}
""",
    "texts": """
simmim-export embed {bundle} --text ""
simmim-export embed {bundle} --text "   "
simmim-export embed {bundle} --text "zzz qqq"
simmim-export ask {bundle} {picture} "zzz qqq"
simmim-export embed {bundle} --texts missing.txt
simmim-export embed {bundle} --texts folder
simmim-export embed {bundle} --texts empty.txt
simmim-export embed {bundle} --texts latin1.txt
simmim-export embed {bundle} --texts long.txt
simmim-export embed {bundle} --texts gaps.txt
simmim-export match {bundle} {picture} "a red circle" ""
""",
    "outputs": """
simmim-export embed {bundle} {picture} -o text.txt
simmim-export embed {bundle} {picture} -o folder
simmim-export embed {bundle} {picture} -o text.txt/v.npz
simmim-export embed {bundle} {picture} -o /dev/null
simmim-train init -o text.txt
simmim-train init -o model.onnx
simmim-train init -o folder.pt
simmim-train init -o {checkpoint}
simmim-bench --engine ort --bundle {bundle} --save text.txt
simmim-bench --engine ort --bundle {bundle} --save folder
""",
    "the page for browsers": """
simmim-export web missing -o page
simmim-export web {bundle} -o folder
simmim-export web {bundle} -o folder --overwrite
simmim-export web {bundle} -o text.txt/page
simmim-export web {bundle} -o page --precision bf16
simmim-export web {bundle} -o page --precision planned
simmim-export web {every} -o page --precision int8
simmim-export web damaged/flipped -o page
simmim-export web damaged/tokenizer -o page
""",
    "names that a terminal would obey": """
simmim-export verify "evil_\\x1b[31m_\\n_name"
simmim-export verify {bundle} --engine "evil_\\x1b[31m_\\n_name"
simmim-export embed {bundle} "evil_\\x1b[31m_\\n_name.png"
simmim-export "evil_\\x1b[31m_\\n_name"
simmim-train evaluate "evil_\\x1b[31m_\\n_name"
""",
    "training": """
simmim-train init -o new.pt --preset huge
simmim-train init -o new.pt --fusion sum
simmim-train init -o new.pt --interaction none
simmim-train init -o new.pt --fusion gated --interaction graph
simmim-train init -o new.pt --image-encoder resnet9
simmim-train init -o new.pt --image-weights DEFAULT
simmim-train init -o new.pt --text-encoder ./missing
simmim-train init -o new.pt --text-encoder folder
simmim-train init -o new.pt --text-encoder text.txt
simmim-train import missing.pt -o new.pt
simmim-train import {checkpoint} -o new.pt
simmim-train pretrain -o new.pt
simmim-train pretrain -o new.pt --steps 1 --minutes 1
simmim-train pretrain -o new.pt --steps 0
simmim-train pretrain -o new.pt --minutes -1
simmim-train pretrain -o new.pt --steps 1 --lr 0
simmim-train pretrain -o new.pt --steps 1 --seed -1
simmim-train pretrain -o new.pt --steps 1 --optimizer sgd
simmim-train pretrain -o new.pt --steps 1 --mixed-precision fp8
simmim-train pretrain -o new.pt --steps 1 --itc 0 --itm 0 --mlm 0
simmim-train pretrain -o new.pt --steps 1 --itc -1
simmim-train pretrain -o new.pt --steps 1 --batch-size 1
simmim-train pretrain -o new.pt --steps 1 --data digits
simmim-train pretrain -o new.pt --steps 1 --data imagenet
simmim-train pretrain -o new.pt --steps 1 --data coco
simmim-train pretrain -o new.pt --steps 1 --data coco --data-root missing
simmim-train pretrain -o new.pt --steps 1 --data coco --data-root text.txt
simmim-train pretrain -o new.pt --steps 1 --data coco --data-root folder
simmim-train pretrain -o new.pt --steps 1 --data shapes --data-root folder
simmim-train pretrain -o new.pt --steps 1 --split C
simmim-train pretrain -o new.pt --steps 1 --freeze fusion
simmim-train pretrain -o new.pt --steps 1 --freeze image
simmim-train pretrain -o new.pt --steps 1 --from missing.pt
simmim-train pretrain -o new.pt --steps 1 --from {checkpoint} --preset small
simmim-train pretrain -o new.pt --steps 1 --resume
simmim-train finetune -o new.pt --steps 1 --task poetry
simmim-train finetune -o new.pt --steps 1 --data clips --examples 9
simmim-train finetune -o new.pt --steps 1 --data clips --task vqa
simmim-train finetune -o new.pt --steps 1 --data table --data-root tables/no_columns
simmim-train finetune -o new.pt --steps 1 --data table --data-root tables/no_image
simmim-train finetune -o new.pt --steps 1 --data table --data-root tables/blank
simmim-train finetune -o new.pt --steps 1 --data frames --data-root folder
simmim-train finetune -o new.pt --steps 1 --data image_folder --data-root folder --task image_class
simmim-train evaluate missing.pt
simmim-train evaluate text.txt
simmim-train evaluate {checkpoint} --stream train
simmim-train evaluate {checkpoint} --eval-scenes 0
simmim-train draw -o drawn --data coco
simmim-train draw -o drawn --stream nowhere
simmim-train draw -o folder
""",
    "benchmarks": """
simmim-bench --engine tpu
simmim-bench --engine ort:fp99
simmim-bench --engine ort --bundle missing
simmim-bench --engine ort --bundle {bundle} --pipeline dance
simmim-bench --engine ort --bundle {bundle} --batch 64
simmim-bench --engine ort:int8 --bundle {every}
simmim-bench --engine ort:image_encodr=int8 --bundle {bundle}
simmim-bench --engine ort --bundle {bundle} --checkpoint {checkpoint}
simmim-bench --engine torch --bundle {bundle}
simmim-bench --engine torch --bundle {bundle} --checkpoint {every_checkpoint}
simmim-bench compare missing.json missing.json
simmim-bench compare text.txt text.txt
simmim-bench compare runs/other_version.json runs/other_version.json
simmim-bench compare runs/no_rows.json runs/no_rows.json
simmim-bench compare runs/no_host.json runs/no_rows.json
simmim-bench compare missing.json missing.json --accept luck
simmim-bench compare missing.json missing.json --fail-on rain
simmim-bench report missing.json
simmim-bench report runs/no_rows.json -o r.html
simmim-bench pair --bundle missing
simmim-bench pair --bundle {bundle} --against-python missing
simmim-bench footprint --bundle missing
simmim-bench footprint --bundle {bundle} --source folder
simmim-bench train --preset huge
simmim-bench quantization
simmim-bench quantization --text-encoder ./missing --engine ort:fp32 --recipe none --sentences 2
simmim-bench quantization --text-encoder ./missing --engine ort:fp32 --recipe magic
simmim-bench quantization --text-encoder ./missing --engine ort:fp32 --recipe none --sentences 99999
""",
}


def lines() -> Iterator[tuple[str, str]]:
    """(section, command line) of every command."""
    for section, block in COMMANDS.items():
        for line in block.strip().splitlines():
            yield section, line


def document(run: Callable[[str, list[str]], subprocess.CompletedProcess[str]], paths: Mapping[str, Path]) -> str:
    """What every command says on stderr, below the command line and its exit code.

    ``run(module, arguments)`` runs a command in the folder ``paths["here"]``. Paths are shown as the names of ``paths``.
    """
    parts = ["# What the commands say on stderr. Generated by `make wording`; read it aloud when it changes.\n"]
    section = ""
    for title, line in lines():
        if title != section:
            section = title
            parts.append(f"\n## {section}\n")
        program, *words = (word.encode().decode("unicode_escape") for word in shlex.split(line))

        done = run(PROGRAMS[program], [word.format(**paths) for word in words])
        message = neutral(done.stderr, paths)
        if done.returncode == GateFailed.exit_code:
            message = CHECKS.sub("    ...\n", MEASURED.sub("N", message))
        parts.append(f"\n$ {line.replace('{', '').replace('}', '')}\nexit {done.returncode}\n{message}")
    return "".join(parts)


def neutral(text: str, paths: Mapping[str, Path]) -> str:
    """``text`` without what differs between machines and runs: folders, progress, and the module name of a program."""
    for name, path in sorted(paths.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(path), "." if name == "here" else name)
    for program, module in PROGRAMS.items():
        text = re.sub(rf"(python3? -m )?{re.escape(module)}(?![\w.])", program, text)
    return SIZE.sub("N", PROGRESS.sub("", text))


if __name__ == "__main__":
    if "--write" not in sys.argv:
        sys.exit("usage: python tests/wording/messages.py --write")
    test = str(Path(__file__).with_name("test_wording.py"))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", test]
    sys.exit(subprocess.run(command, env=os.environ | {WRITE: "1"}).returncode)
