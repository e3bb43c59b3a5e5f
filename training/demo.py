"""The demo: from nothing to a model that answers questions, through the commands that a user types.

It leaves demo/ckpt.pt, demo/bundle, demo/images, demo/answers.png, demo/summary.md and, with every command and what it
printed, demo/log.txt.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from simmim_export.console import run_app, say
from simmim_export.console.metrics import control_accuracies
from simmim_export.console.output import SafeConsole
from simmim_export.system.children import child_environment, our_command
from simmim_export.training.progress import clock

FOLDER = Path("demo")
LOG = FOLDER / "log.txt"
CHECKPOINT, BUNDLE, IMAGES = FOLDER / "ckpt.pt", FOLDER / "bundle", FOLDER / "images"
ANSWERS, SUMMARY, BENCH = FOLDER / "answers.png", FOLDER / "summary.md", FOLDER / "bench.json"

Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A part of the demo: its name, what it does, how many seconds it takes on two cores, and its commands."""

    name: str
    purpose: str
    _: KW_ONLY
    seconds: float
    commands: tuple[Command, ...]


class StageFailed(Exception):
    """A command of a stage ended with another code than 0."""

    def __init__(self, stage: Stage, code: int) -> None:
        super().__init__(stage.name)
        self.stage = stage
        self.code = code


def command(program: str, *words: object) -> Command:
    """A command of ours: the name of the program and its words."""
    return (program, *map(str, words))


def building(*, align: float, pretrain: float, finetune: float) -> list[Stage]:
    """The stages that make and measure the bundle, with so many minutes of training in the first three.

    The encoders learn first, which is cheap: what is where in an image. Then the layers that combine both. Then the task. The
    first two stages are not measured; those seconds are better spent on training.
    """
    aligned, pretrained = FOLDER / "aligned.pt", FOLDER / "pretrained.pt"
    again = "--overwrite"
    train = ("simmim-train", "pretrain", "--eval-scenes", 0, again)
    encoders = ("--preset", "tiny", "--tags", 1, "--itm", 0, "--mlm", 0, "--lr", 2e-3)
    learn = command(*train, *encoders, "--minutes", align, "-o", aligned)
    match = command(*train, "--from", aligned, "--minutes", pretrain, "-o", pretrained)
    answer = command("simmim-train", "finetune", "--from", pretrained, "--minutes", finetune, "-o", CHECKPOINT, again)
    export = command("simmim-export", "onnx", CHECKPOINT, "-o", BUNDLE, "--attention", again)
    verify = command("simmim-export", "verify", BUNDLE)
    measure = command("simmim-bench", "--bundle", BUNDLE, "--save", BENCH, again)
    draw = command("simmim-train", "draw", "--stream", "demo", "--count", 3, "-o", IMAGES, again)
    return [
        Stage("align", "learn what is where in an image", seconds=60 * align + 20, commands=(learn,)),
        Stage("pretrain", "learn to match images and captions", seconds=60 * pretrain + 20, commands=(match,)),
        Stage("finetune", "learn to answer questions", seconds=60 * finetune + 40, commands=(answer,)),
        Stage("export", "convert to ONNX and compare with PyTorch", seconds=40, commands=(export,)),
        Stage("verify", "check the bundle without PyTorch", seconds=10, commands=(verify,)),
        Stage("benchmark", "measure the speed next to PyTorch", seconds=60, commands=(measure,)),
        Stage("draw", "draw new images and questions", seconds=3, commands=(draw,)),
    ]


def asking(records: list[dict[str, Any]]) -> Stage:
    """The stage that asks about the drawn images, and draws the answers to the first questions about the first image."""
    commands = []
    for record in records:
        questions = [row["question"] for row in record["questions"]]
        commands.append(command("simmim-export", "ask", BUNDLE, IMAGES / record["image"], *questions, "--top-k", 1))
    first = records[0]
    questions = [row["question"] for row in pictured(first)]
    show = ("--top-k", 1, "--explain", ANSWERS, "--overwrite")
    commands.append(command("simmim-export", "ask", BUNDLE, IMAGES / first["image"], *questions, *show))
    captions = [record["captions"][0] for record in records[:2]]
    commands.append(command("simmim-export", "match", BUNDLE, IMAGES / first["image"], *captions))
    return Stage("ask", "ask about the new images", seconds=20, commands=tuple(commands))


def pictured(record: dict[str, Any]) -> list[dict[str, str]]:
    """The three questions of an image, with their right answers, that the picture of answers shows: "what ..." first."""
    return sorted(record["questions"], key=lambda row: not row["question"].startswith("what"))[:3]


def main() -> None:
    """Train, export, verify, benchmark, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--align-minutes", type=float, default=0.4)
    parser.add_argument("--pretrain-minutes", type=float, default=1.2)
    parser.add_argument("--finetune-minutes", type=float, default=3.7)
    options = parser.parse_args()
    started = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    stages = building(align=options.align_minutes, pretrain=options.pretrain_minutes, finetune=options.finetune_minutes)
    try:
        with shown() as run:
            for stage in stages:
                run(stage)
            records = json.loads((IMAGES / "records.json").read_text(encoding="utf-8"))
            run(asking(records))
    except StageFailed as failed:
        say(f"{failed.stage.name} failed; the last lines of {LOG}:", error=True)
        for line in LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]:
            say(f"  {line}", error=True)
        sys.exit(failed.code)
    except KeyboardInterrupt:
        say("stopped; to start again, repeat the command", error=True)
        raise
    summary = summarize(BUNDLE, BENCH)
    SUMMARY.write_text(summary, encoding="utf-8")
    say(f"\n{summary}", lines=True)
    for line in warned(LOG.read_text(encoding="utf-8", errors="replace")):
        say(line, error=True)
    say(f"Done in {clock(time.monotonic() - started)}. Every command and its output: {LOG}")
    right = ", ".join(row["answer"] for row in pictured(records[0]))
    say(f"The model's answers, and where it looked: {ANSWERS} (right answers: {right})")
    say("\nTry next:", lines=True)
    for words in suggestions(records):
        say(f"  {shlex.join((installed(words[0]), *words[1:]))}")


def warned(log: str) -> list[str]:
    """The warnings in the text of a log, each once. One of them may be why the figures are worse than those in README."""
    return list(dict.fromkeys(line for line in log.splitlines() if line.startswith("warning: ")))


def suggestions(records: list[dict[str, Any]]) -> list[Command]:
    """Commands that continue from here."""
    last = records[-1]
    question = last["questions"][0]["question"]
    return [
        command("simmim-export", "ask", BUNDLE, IMAGES / last["image"], question),
        command("simmim-export", "inspect", BUNDLE),
        command("simmim-export", "onnx", CHECKPOINT, "--precision", "int8", "-o", FOLDER / "int8"),
        command("simmim-export", "certify", FOLDER / "int8", "--budget", "answers=1pt,cosine=0.99"),
        command("simmim-train", "finetune", "--from", CHECKPOINT, "--minutes", 20, "-o", FOLDER / "better.pt"),
    ]


def installed(program: str) -> str:
    """How to start ``program`` from this folder: its name if the shell finds it, else its path."""
    path = Path(sysconfig.get_path("scripts")) / program
    if shutil.which(program) == str(path):
        return program
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def shown() -> Iterator[Any]:
    """Yield ``run(stage)``. On a terminal each stage has one line on stderr that shows its time; elsewhere one line when it
    starts and one when it ends."""
    console = SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:

        def run_in_lines(stage: Stage) -> None:
            started = time.monotonic()
            say(f"{stage.name}: {stage.purpose}, about {clock(stage.seconds)}", error=True)
            perform(stage)
            say(f"{stage.name}: done in {clock(time.monotonic() - started)}", error=True)

        yield run_in_lines
        return

    with Progress(SpinnerColumn(finished_text="*"), StageColumn(), console=console) as progress:

        def run(stage: Stage) -> None:
            task = progress.add_task(stage.name, total=1, stage=stage)
            perform(stage)
            progress.update(task, completed=1)

        yield run


class StageColumn(ProgressColumn):
    """The name of a stage, what it does, and its elapsed and expected time."""

    def render(self, task: Task) -> Text:
        """The text of the line, computed anew with every refresh."""
        stage: Stage = task.fields["stage"]
        elapsed = clock((task.finished_time if task.finished else task.elapsed) or 0.0)
        expected = "" if task.finished else f" of about {clock(stage.seconds)}"
        return Text(f"{stage.name:<10} {stage.purpose:<42} {elapsed}{expected}")


def perform(stage: Stage) -> None:
    """Run the commands of a stage, writing them and what they print to the log. Raise :class:`StageFailed`."""
    for program, *words in stage.commands:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shlex.join((program, *words))}\n")
            log.flush()
            process = subprocess.Popen(
                our_command(program, *words), stdout=log, stderr=subprocess.STDOUT, env=child_environment()
            )
            try:
                code = process.wait()
            except BaseException:
                # Ctrl-C or SIGTERM: the command ends and cleans up before the demo does.
                process.terminate()
                try:
                    process.wait(30.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if code:
            raise StageFailed(stage, code)


def summarize(bundle: Path, bench: Path) -> str:
    """The demo's figures as a Markdown table, each next to its control."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    measured = json.loads(bench.read_text(encoding="utf-8"))
    vqa, match = manifest["metrics"]["vqa"], manifest["metrics"]["match"]
    controls = {name: f"{value:.1%}" for name, value in control_accuracies(vqa).items()}
    blind = f"question only {controls['question_only']}"
    color, recall = vqa["by_family"]["colour"], match["text_to_image_recall_at_1"]
    training = manifest["provenance"]["training"]
    seconds, stage = 0.0, training
    while stage:
        seconds, stage = seconds + stage["seconds"], stage.get("parent", {}).get("provenance")
    worst = max(artifact["parity"]["scaled_error"] for artifact in manifest["artifacts"])
    cosine = min(artifact["parity"]["cosine"] for artifact in manifest["artifacts"])
    rows = [
        ("VQA accuracy on held-out scenes", f"{vqa['accuracy']:.1%} of {vqa['n']}", blind),
        ("the same with another image", controls["shuffled_image"], blind),
        ("questions about color", f"{color['accuracy']:.1%} of {color['n']}", "one answer in eight: 12.5%"),
        ("match: own caption or another's", f"{match['accuracy']:.1%} of {match['n']}", "blind 50.0%"),
        (f"text to image R@1 of {recall['among']}", f"{recall['accuracy']:.1%}", f"chance {recall['chance']:.1%}"),
        ("training", f"{seconds:.0f} s", f"{training['samples']:,} questions"),
        ("worst error of any graph to PyTorch", f"{worst:.1e}", f"cosine {cosine:.7f}; allowed 1e-04 and 0.99999"),
    ]
    for row in measured["summary"]:
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
