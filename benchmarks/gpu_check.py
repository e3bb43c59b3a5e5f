"""Proves on a machine with an NVIDIA GPU that everything works there, with the commands that a user types: ``make gpu-check``.

Every step is recorded with its exit code in one file. A step that fails is recorded as failed, and steps that need it are left
out; the others go on, and the whole ends with exit code 4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import document as files
from simmim_export.benchmarks.driver import Contestant
from simmim_export.benchmarks.measure import paired_ratio, percentile
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.console import progress_bar, run_app, say
from simmim_export.engines import versions
from simmim_export.errors import GateFailed
from simmim_export.system import nvidia
from simmim_export.system.children import PROGRAMS, QUOTED_LINES, python_command, run
from simmim_export.system.host import fingerprint
from simmim_export.system.watch import Watch, unwatched

SCHEMA = 1
FILE = Path("gpu-certificate.json")
BUILT = ("fp32", "fp16", "int8")
CONTESTANTS = (
    *("torch@cuda", "torch@cuda:fp16", "torch-compile@cuda", "torch-compile@cuda:fp16"),
    *("ort@cuda", "ort@cuda:fp16", "ort-graph@cuda", "ort-graph@cuda:fp16"),
    *(f"trt:{precision}" for precision in BUILT),
)
# The steps of a whole check: five beside those of each precision and each contestant.
STEPS = len(BUILT) + len(CONTESTANTS) + 5
BASELINE = "torch-compile@cuda"
# The tests that need a GPU, or say more where there is one.
TESTS = ("tests/engines", "tests/contracts/test_engines.py")
# Seconds that a step may take. TensorRT builds preset base in minutes; a step that hangs must not hide the results of the others.
LONGEST = 3600
EVENTS = "events of the GPU, without copies"
WALL = "wall time from host arrays to host arrays, until the GPU is idle again"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command. ``printed`` is the JSON that it printed, and ``error`` the end of what it wrote if it failed. ``exit_code`` is
    None for a step that was not run; ``error`` then says why."""

    name: str
    command: str
    exit_code: int | None
    seconds: float
    printed: Any = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran and ended with exit code 0."""
        return self.exit_code == 0


@dataclass
class Record:
    """Steps in order, run as they are added. ``watch`` is told of each step before it runs, and ``save`` is called after it, so
    that a kill does not lose what is known."""

    steps: list[Step] = field(default_factory=list)
    save: Callable[[Record], None] = lambda record: None
    watch: Watch = unwatched

    def passed(self, name: str) -> bool:
        """Whether the step called ``name`` was run and passed."""
        return any(step.passed for step in self.steps if step.name == name)

    def run(self, name: str, program: str, *arguments: object, needs: Sequence[str] = ()) -> Step:
        """Run one of our programs, or a module of Python's, unless a step that it ``needs`` has not passed."""
        self.watch(name, len(self.steps), STEPS)
        words = [program, *map(str, arguments)]
        if missing := [step for step in needs if not self.passed(step)]:
            why = f"not run: {', '.join(missing)} did not pass"
            step = Step(name=name, command=shlex.join(words), exit_code=None, seconds=0.0, error=why)
        else:
            step = _run(name, words)
        self.steps.append(step)
        self.save(self)
        return step


def _run(name: str, words: Sequence[str]) -> Step:
    started = time.monotonic()
    done = run(python_command(PROGRAMS.get(words[0], words[0]), *words[1:]), seconds=LONGEST)
    seconds = round(time.monotonic() - started, 2)
    printed = None
    with contextlib.suppress(ValueError):
        printed = json.loads(done.stdout)
    said = "\n".join(("" if printed is not None else done.stdout, done.stderr)).strip().splitlines()[-QUOTED_LINES:]
    return Step(
        name=name,
        command=shlex.join(words),
        exit_code=done.code,
        seconds=seconds,
        printed=printed,
        error="\n".join(said) if done.code else None,
    )


def check(record: Record, folder: Path, *, preset: str) -> None:
    """Run every step, with what it makes in ``folder``; bench.json there is the measurement, if the steps got that far."""
    checkpoint, bundle = folder / "ckpt.pt", folder / "bundle"
    record.run("doctor", "simmim-export", "doctor", "--json")
    record.run("model", "simmim-train", "init", "--preset", preset, "-o", checkpoint, "--overwrite", "--json")
    lowered = ("--precision", "int8", "--precision", "fp16")
    made = ("-o", bundle, *lowered, "--overwrite", "--json")
    record.run("export", "simmim-export", "onnx", checkpoint, *made, needs=["model"])
    for precision in BUILT:
        wanted = ("--engine", "trt", "--precision", precision, "--json")
        record.run(f"build trt:{precision}", "simmim-export", "build", bundle, *wanted, needs=["export"])
    for name in CONTESTANTS:
        contestant = Contestant.parse(name)
        wanted = ("--engine", contestant.engine, "--precision", contestant.precision, "--json")
        source = ("--checkpoint", checkpoint) if contestant.reads_checkpoint else ()
        needs = [f"build {name}" if contestant.engine == "trt" else "export"]
        record.run(f"verify {name}", "simmim-export", "verify", bundle, *wanted, *source, needs=needs)
    proven = [name for name in CONTESTANTS if record.passed(f"verify {name}")]
    engines = [word for name in proven for word in ("--engine", name)]
    # If no engine was proven, the benchmark is not run, and that does not count as passed.
    needs = [f"verify {name}" for name in proven or CONTESTANTS]
    source = ("--checkpoint", checkpoint) if any(Contestant.parse(name).reads_checkpoint for name in proven) else ()
    bench = ("--bundle", bundle, *source, *engines, "--save", folder / "bench.json", "--overwrite")
    record.run("bench", "simmim-bench", *bench, needs=needs)
    record.run("tests", "pytest", "-q", *TESTS)


def figures(results: Sequence[BenchmarkResult]) -> list[dict[str, Any]]:
    """For every target and contestant: its median in milliseconds, by which clock, and how many times faster it is than
    torch.compile at the same precision (for INT8, which PyTorch lacks, at FP16), both by the same clock. The ratio is None if it
    was not measured or took too few rounds."""
    rows = []
    for result in results:
        precision = "fp16" if result.precision == "int8" else result.precision
        wanted = (BASELINE, precision, result.target)
        same = next((r for r in results if (r.engine, r.precision, r.target) == wanted), None)
        ratio, clock = None, None
        if same is not None and result.engine != BASELINE:
            if same.gpu_rounds and result.gpu_rounds:
                clock, ratio = EVENTS, paired_ratio(same.gpu_rounds, result.gpu_rounds)
            else:
                clock, ratio = WALL, paired_ratio(same.rounds, result.rounds)
        p50 = percentile(result.gpu_samples or result.samples, 0.5)
        rows.append(
            {
                "target": result.target,
                "engine": result.engine,
                "precision": result.precision,
                "p50_ms": None if p50 is None else round(1000 * p50, 4),
                "clock": EVENTS if result.gpu_rounds else WALL,
                "times_torch_compile": None if ratio is None else asdict(ratio),
                "ratio_clock": clock,
                "parity": dict(result.parity),
            }
        )
    return rows


def certificate(record: Record, measured: Sequence[BenchmarkResult], *, complete: bool = True) -> dict[str, Any]:
    """The content of the file. ``passed`` is true only if the record is ``complete`` and every step was run and passed."""
    driver = nvidia.driver()
    return {
        "schema": SCHEMA,
        "host": fingerprint(),
        "driver": None if driver is None else asdict(driver),
        "versions": versions(),
        "passed": complete and bool(record.steps) and all(step.passed for step in record.steps),
        "steps": [asdict(step) | {"passed": step.passed} for step in record.steps],
        "figures": figures(measured),
    }


def require_passed(document: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`GateFailed` naming the steps that failed or were not run."""
    failed = [step["name"] for step in document["steps"] if not step["passed"]]
    if not document["passed"]:
        what = f"{len(failed)} of {len(document['steps'])} steps did not pass: {', '.join(failed)}"
        raise GateFailed(what, where=path, fix="read in that file what each of them said, and run its command again")


def main() -> None:
    """Prove everything that needs a GPU, and record it; exit with 3 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base", help="the model that is built, with random weights")
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"), help="where model, bundle and samples go")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    # First, because everything else takes minutes.
    nvidia.require_gpu()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = options.folder / "bench.json"
    bench.unlink(missing_ok=True)  # which an earlier run may have left
    with progress_bar("gpu-check") as watch:
        record = Record(
            save=lambda record: files.write(certificate(record, [], complete=False), options.output), watch=watch
        )
        check(record, options.folder, preset=options.preset)
    document = certificate(record, files.read(bench).results if record.passed("bench") else [])
    files.write(document, options.output)
    for step in record.steps:
        state = "passed" if step.passed else "NOT RUN" if step.exit_code is None else f"FAILED with {step.exit_code}"
        say(f"{step.name}: {state}, {step.seconds:.0f} s")
    say(f"wrote {options.output}")
    require_passed(document, options.output)


if __name__ == "__main__":
    run_app(main)
