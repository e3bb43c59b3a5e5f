"""The proof on a machine with an NVIDIA GPU, by the commands that a user types: ``make gpu-check``.

Knows commands and the JSON that they print; must hold no logic of theirs. Every step is written down with its exit code, into one
file. One that fails is written down as failed and leaves out what needs it; the others go on, and the whole ends with 4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import report
from simmim_export.benchmarks.driver import Contestant
from simmim_export.benchmarks.measure import BenchmarkResult, paired_ratio
from simmim_export.console import progress_bar, run_app, say
from simmim_export.engines import versions
from simmim_export.errors import GateFailed
from simmim_export.system import nvidia
from simmim_export.system.children import PROGRAMS, child_environment, python_command
from simmim_export.system.host import fingerprint

SCHEMA = 1
FILE = Path("gpu-certificate.json")
BUILT = ("fp32", "fp16", "int8")
CONTESTANTS = (
    *("torch@cuda", "torch@cuda:fp16", "torch-compile@cuda", "torch-compile@cuda:fp16"),
    *("ort@cuda", "ort@cuda:fp16", "ort-graph@cuda", "ort-graph@cuda:fp16"),
    *(f"trt:{precision}" for precision in BUILT),
)
BASELINE = "torch-compile@cuda"
# Of a step that failed, so many of the last lines that it wrote.
LINES = 12
# Seconds that a step may take: TensorRT builds base in minutes; what hangs must not keep the others from being known.
LONGEST = 3600
EVENTS, WALL = "events of the GPU, without copies", "wall time from host arrays to host arrays, GPU idle again"


@dataclass(frozen=True)
class Step:
    """What a command gave: ``found`` is its JSON, ``error`` the end of what it wrote where it failed. ``exit_code`` is None for
    one that was not run, and ``error`` then says why."""

    name: str
    command: str
    exit_code: int | None
    seconds: float
    found: Any = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran and ended with 0."""
        return self.exit_code == 0


@dataclass
class Record:
    """Steps in order, run as they are added; ``saved`` is told of each, so that what is known outlives a kill."""

    steps: list[Step] = field(default_factory=list)
    saved: Callable[[Record], None] = lambda record: None

    def passed(self, name: str) -> bool:
        """Whether the step called ``name`` was run and passed."""
        return any(step.passed for step in self.steps if step.name == name)

    def run(self, name: str, program: str, *arguments: object, needs: Sequence[str] = ()) -> Step:
        """Run a command of ours (or a module of Python's), unless a step that it ``needs`` has not passed."""
        words = [program, *map(str, arguments)]
        lacking = [step for step in needs if not self.passed(step)]
        if lacking:
            step = Step(name, shlex.join(words), None, 0.0, error=f"not run: {', '.join(lacking)} did not pass")
        else:
            started = time.monotonic()
            command = python_command(PROGRAMS.get(program, program), *words[1:])
            code, out, err = _run(command)
            seconds = round(time.monotonic() - started, 2)
            found = None
            with contextlib.suppress(ValueError):
                found = json.loads(out)
            said = "\n".join((out if found is None else "", err)).strip().splitlines()[-LINES:]
            step = Step(name, shlex.join(words), code, seconds, found, "\n".join(said) if code else None)
        self.steps.append(step)
        self.saved(self)
        return step


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; 124, as of timeout(1), for one that did not end in :data:`LONGEST` seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, env=child_environment())
    except subprocess.TimeoutExpired as error:
        out, err = ((text or b"").decode(errors="replace") for text in (error.stdout, error.stderr))
        return 124, out, f"{err}\nit did not end in {LONGEST} s and was killed"
    return done.returncode, done.stdout, done.stderr


def check(
    folder: Path, preset: str, watch: Any = lambda *_: None, saved: Callable[[Record], None] = lambda record: None
) -> Record:
    """Every step, with what it makes in ``folder``; bench.json there is the measurement, if it came to that."""
    record, checkpoint, bundle = Record(saved=saved), folder / "ckpt.pt", folder / "bundle"
    total = len(CONTESTANTS) + len(BUILT) + 5

    def step(name: str, program: str, *arguments: object, needs: Sequence[str] = ()) -> None:
        watch(name, len(record.steps), total)
        record.run(name, program, *arguments, needs=needs)

    step("doctor", "simmim-export", "doctor", "--json")
    step("model", "simmim-train", "init", "--preset", preset, "-o", checkpoint, "--overwrite", "--json")
    lowered = ("--precision", "int8", "--precision", "fp16")
    made = ("-o", bundle, *lowered, "--overwrite", "--json")
    step("export", "simmim-export", "onnx", checkpoint, *made, needs=["model"])
    for precision in BUILT:
        wanted = ("--engine", "trt", "--precision", precision, "--json")
        step(f"build trt:{precision}", "simmim-export", "build", bundle, *wanted, needs=["export"])
    for name in CONTESTANTS:
        one = Contestant.parse(name)
        wanted = ("--engine", one.engine, "--precision", one.precision, "--json")
        source = ("--checkpoint", checkpoint) if one.reads_checkpoint else ()
        needs = [f"build {name}" if one.engine == "trt" else "export"]
        step(f"verify {name}", "simmim-export", "verify", bundle, *wanted, *source, needs=needs)
    proven = [name for name in CONTESTANTS if record.passed(f"verify {name}")]
    engines = [word for name in proven for word in ("--engine", name)]
    # With nothing to measure the benchmark is not run, and that is no pass.
    needs = [f"verify {name}" for name in proven or CONTESTANTS]
    source = ("--checkpoint", checkpoint) if any(Contestant.parse(name).reads_checkpoint for name in proven) else ()
    bench = ("--bundle", bundle, *source, *engines, "--json", folder / "bench.json", "--overwrite")
    step("bench", "simmim-bench", *bench, needs=needs)
    step(
        "tests",
        "pytest",
        "-q",
        "tests/engines",
        "tests/contracts/test_engines.py",
        "tests/engines/trt/test_trt_build.py",
        "tests/engines/trt/test_trt_plan.py",
    )
    return record


def figures(results: Sequence[BenchmarkResult]) -> list[dict[str, Any]]:
    """For every target and contestant its median in milliseconds, by which clock, and how many times faster than torch.compile
    at the same precision (at FP16 for INT8, which PyTorch has not), both by one clock; None where that was not measured, or
    in too few rounds."""
    rows = []
    for result in results:
        precision = "fp16" if result.precision == "int8" else result.precision
        same = [r for r in results if (r.engine, r.precision, r.target) == (BASELINE, precision, result.target)]
        ratio, clock = None, None
        if same and result.engine != BASELINE:
            both = bool(same[0].gpu_rounds and result.gpu_rounds)
            clock = EVENTS if both else WALL
            pair = (same[0].gpu_rounds, result.gpu_rounds) if both else (same[0].rounds, result.rounds)
            paired = paired_ratio(*pair)
            ratio = None if paired is None else asdict(paired)
        p50 = result.gpu_p50 if result.gpu_rounds else result.p50
        rows.append(
            {
                "target": result.target,
                "engine": result.engine,
                "precision": result.precision,
                "p50_ms": None if p50 is None else round(1000 * p50, 4),
                "clock": EVENTS if result.gpu_rounds else WALL,
                "times_torch_compile": ratio,
                "ratio_clock": clock,
                "parity": dict(result.parity),
            }
        )
    return rows


def certificate(record: Record, measured: Sequence[BenchmarkResult], whole: bool = True) -> dict[str, Any]:
    """The content of the file. ``passed`` is true only if every step was run and passed, which nothing is before it is
    ``whole``."""
    driver = nvidia.driver()
    return {
        "schema": SCHEMA,
        "host": fingerprint(),
        "driver": None if driver is None else asdict(driver),
        "versions": versions(),
        "passed": whole and bool(record.steps) and all(step.passed for step in record.steps),
        "steps": [asdict(step) | {"passed": step.passed} for step in record.steps],
        "figures": figures(measured),
    }


def require_passed(document: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`GateFailed` naming the steps that failed and those that were not run."""
    failed = [step["name"] for step in document["steps"] if not step["passed"]]
    if not document["passed"]:
        what = f"{len(failed)} of {len(document['steps'])} steps did not pass: {', '.join(failed)}"
        raise GateFailed(what, where=path, fix="read there what each of them said, and run its command again")


def main() -> None:
    """Prove everything that needs a GPU, and write it down; exit with 3 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base", help="the model that is built, with random weights")
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"), help="where model, bundle and samples go")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    # First of all: everything else takes minutes.
    nvidia.require_gpu()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = options.folder / "bench.json"
    bench.unlink(missing_ok=True)  # that of an earlier run is none of this one
    with progress_bar("gpu-check") as watch:
        record = check(
            options.folder,
            options.preset,
            watch,
            lambda known: report.write(certificate(known, [], whole=False), options.output),
        )
    document = certificate(record, report.read(bench)["results"] if record.passed("bench") else [])
    report.write(document, options.output)
    for step in record.steps:
        state = "passed" if step.passed else "NOT RUN" if step.exit_code is None else f"FAILED with {step.exit_code}"
        say(f"{step.name}: {state}, {step.seconds:.0f} s")
    say(f"wrote {options.output}")
    require_passed(document, options.output)


if __name__ == "__main__":
    run_app(main)
