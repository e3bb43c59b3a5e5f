"""The demo: a model from nothing to answers, through the commands that a user types. Knows commands; must hold no logic.

Every step is printed before it runs, so that the demo is also a transcript to learn from. Leaves demo/ckpt.pt,
demo/bundle, demo/images and demo/summary.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from simmim_export.console import run_app, say
from simmim_export.console.metrics import control_accuracies
from simmim_export.system.children import PROGRAMS, child_environment, python_command

FOLDER = Path("demo")
ASKED = 3


def run(program: str, *arguments: object) -> None:
    """Print a command and run it; end with its exit code if it fails."""
    words = [str(argument) for argument in arguments]
    say()
    say(f"$ {program} {shlex.join(words)}")
    sys.stdout.flush()
    done = subprocess.run(python_command(PROGRAMS[program], *words), env=child_environment())
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Train, export, verify, benchmark, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--align-minutes", type=float, default=0.4)
    parser.add_argument("--pretrain-minutes", type=float, default=1.2)
    parser.add_argument("--finetune-minutes", type=float, default=3.7)
    options = parser.parse_args()
    started = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    aligned, pretrained, checkpoint, bundle, images = (
        FOLDER / name for name in ("aligned.pt", "pretrained.pt", "ckpt.pt", "bundle", "images")
    )
    again = "--overwrite"
    # The towers first, which is cheap: what is where in an image. Then what reads both. Then the task.
    # What the first two know by themselves is not asked: those seconds are better spent on training.
    pretrain, minutes = ("simmim-train", "pretrain", "--eval-scenes", 0), "--minutes"
    towers = ("--tags", 1, "--itm", 0, "--mlm", 0)
    run(*pretrain, "--preset", "tiny", *towers, "--lr", 2e-3, minutes, options.align_minutes, "-o", aligned, again)
    run(*pretrain, "--from", aligned, minutes, options.pretrain_minutes, "-o", pretrained, again)
    start = ("--from", pretrained)
    run("simmim-train", "finetune", *start, minutes, options.finetune_minutes, "-o", checkpoint, again)
    run("simmim-export", "onnx", checkpoint, "-o", bundle, again)
    run("simmim-export", "verify", bundle)
    run("simmim-bench", "--bundle", bundle, "--save", FOLDER / "bench.json", again)
    run("simmim-train", "draw", "--stream", "demo", "--count", ASKED, "-o", images, again)
    for record in json.loads((images / "records.json").read_text(encoding="utf-8")):
        questions = [row["question"] for row in record["questions"]]
        run("simmim-export", "ask", bundle, images / record["image"], *questions, "--top-k", 1)
        say("the right answers: " + ", ".join(row["answer"] for row in record["questions"]))
    captions = json.loads((images / "records.json").read_text(encoding="utf-8"))
    run("simmim-export", "match", bundle, images / "0000.png", captions[0]["captions"][0], captions[1]["captions"][0])
    summary = summarise(checkpoint, bundle, FOLDER / "bench.json")
    (FOLDER / "summary.md").write_text(summary, encoding="utf-8")
    say(f"\n{summary}", lines=True)
    say(f"{time.monotonic() - started:.0f} s in all; left {checkpoint}, {bundle}, {images}, {FOLDER / 'summary.md'}")


def summarise(checkpoint: Path, bundle: Path, bench: Path) -> str:
    """The demo's figures as a Markdown table, each beside its control."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    found = json.loads(bench.read_text(encoding="utf-8"))
    vqa, match = manifest["metrics"]["vqa"], manifest["metrics"]["match"]
    controls = {name: f"{value:.1%}" for name, value in control_accuracies(vqa).items()}
    colour, recall = vqa["by_family"]["colour"], match["text_to_image_recall_at_1"]
    training = manifest["provenance"]["training"]
    seconds, stage = 0.0, training
    while stage:
        seconds, stage = seconds + stage["seconds"], stage.get("parent", {}).get("provenance")
    worst = max(artifact["parity"]["scaled_error"] for artifact in manifest["artifacts"])
    cosine = min(artifact["parity"]["cosine"] for artifact in manifest["artifacts"])
    rows = [
        (
            "VQA accuracy on held-out scenes",
            f"{vqa['accuracy']:.1%} of {vqa['n']}",
            f"question only {controls['question_only']}",
        ),
        ("the same with another image", controls["shuffled_image"], f"question only {controls['question_only']}"),
        ("colour questions", f"{colour['accuracy']:.1%} of {colour['n']}", "one answer in eight: 12.5%"),
        ("match: own caption or another's", f"{match['accuracy']:.1%} of {match['n']}", "blind 50.0%"),
        (f"text to image R@1 of {recall['among']}", f"{recall['accuracy']:.1%}", f"chance {recall['chance']:.1%}"),
        ("training", f"{seconds:.0f} s", f"{training['samples']:,} questions"),
        ("worst error of any graph to PyTorch", f"{worst:.1e}", f"cosine {cosine:.7f}; allowed 1e-04 and 0.99999"),
    ]
    for row in found["summary"]:
        if row["engine"] == "torch":
            continue
        name = f"{row['target'].partition(':')[2]}, {row['engine']}, batch 1"
        if row["times_torch"] is None:
            rows.append((name, f"{row['median_ms']} ms", row["no_ratio"] or "PyTorch was not measured"))
        else:
            ratio = row["times_torch"]
            rows.append((name, f"{ratio['value']:.2f}x PyTorch", f"95 %: {ratio['low']:.2f} to {ratio['high']:.2f}"))
    lines = ["| what | figure | control |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_app(main)
