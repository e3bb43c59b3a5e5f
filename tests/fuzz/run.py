"""Fuzz the readers for a given time: ``python tests/fuzz/run.py --minutes 10 --target manifest --seed 1``.

Inputs run in a child process with limited memory, which is started again after a crash. Input number i of a target and seed is
always the same. Each distinct failure is saved as a folder of files that ``--replay`` runs again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]
GIB = 2**30
NOWHERE = "not in our code"


def ours(frames: list[tuple[str, int, str]]) -> str:
    """The innermost frame in our own source, as file:line function."""
    for path, line, function in reversed(frames):
        if path.startswith(str(ROOT)) and "/.venv" not in path and not path.startswith(str(HERE.parent)):
            return f"{path.removeprefix(str(ROOT) + '/')}:{line} {function}"
    return NOWHERE


def sources(arguments: argparse.Namespace) -> Any:
    """The bundle and checkpoint that were named, or new ones of the smallest preset."""
    from common import Sources

    made = arguments.save / "seeds"
    made.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = arguments.checkpoint, arguments.bundle
    if checkpoint is None:
        checkpoint = made / "tiny.pt"
        if not checkpoint.exists():
            from support import make_checkpoint

            make_checkpoint(checkpoint)
    if bundle is None:
        bundle = made / "tiny-bundle"
        if not bundle.exists():
            command = [sys.executable, "-P", "-m", "simmim_export.cli", "onnx", str(checkpoint), "-o", str(bundle)]
            subprocess.run(command, check=True)
    return Sources(bundle, checkpoint, arguments.scratch)


def child(arguments: argparse.Namespace) -> None:
    """Run inputs from ``--start`` on, one line of JSON to stdout before and after each."""
    from common import check, place
    from targets import TARGETS

    # What libraries print must not mix with what the driver reads.
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    dump = (arguments.scratch / "stack.txt").open("w")
    faulthandler.enable(dump, all_threads=False)
    faulthandler.register(signal.SIGUSR1, dump, all_threads=False)
    target = TARGETS[arguments.target](sources(arguments))
    folder = arguments.scratch / "input"
    check(target, place(folder, target.base, target.valid()))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(arguments.memory * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    index = arguments.start
    while True:
        print(json.dumps({"making": index}), file=report)
        try:
            place(folder, target.base, target.make(random.Random(f"{arguments.target} {arguments.seed} {index}")))
        except Exception:  # noqa: BLE001 - a mutator that fails is reported, and costs one input
            print(json.dumps({"harness": traceback.format_exc()}), file=report)
            index += 1
            continue
        print(json.dumps({"running": index}), file=report)
        started, failure, outcome = time.process_time(), None, "failed"
        try:
            error = check(target, folder)
            outcome = "accepted" if error is None else f"{type(error).__name__}: {error.what[:40]}"
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is not an Exception
            frames = [(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
            text = "".join(traceback.format_exception(error))
            where = ours(frames)
            if isinstance(error, AssertionError) and where == NOWHERE:
                where = f"{arguments.target}: {str(error).partition(':')[0][:60]}"
            failure = {"type": type(error).__name__, "where": where, "text": f"{text[:1500]}\n...\n{text[-2500:]}"}
        seconds = time.process_time() - started
        if failure is None and seconds > arguments.limit:
            failure = {"type": "slow", "where": "finished", "text": f"{seconds:.1f} s of processor time"}
        print(json.dumps({"done": index, "failure": failure, "outcome": outcome}), file=report)
        index += 1


class Driver:
    """Starts children for one target and notes what they report."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        self._arguments, self._name = arguments, name
        self.inputs, self.next = 0, arguments.start
        self.failures: dict[str, int] = {}
        self.outcomes: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Run inputs for so many seconds."""
        end, shown = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end and (self._arguments.inputs is None or self.inputs < self._arguments.inputs):
            with tempfile.TemporaryDirectory(prefix="fuzz-", dir=self._arguments.workspace) as scratch:
                self._one_child(Path(scratch), end)
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                self.show(seconds - (end - shown))

    def show(self, seconds: float) -> None:
        """Print progress."""
        rate = self.inputs / max(seconds, 1e-9)
        print(
            f"{self._name}: {self.inputs} inputs, {rate:.1f} a second, {len(self.failures)} distinct failures",
            flush=True,
        )

    def _one_child(self, scratch: Path, end: float) -> None:
        a = self._arguments
        command = [sys.executable, "-P", str(HERE / "run.py"), "--child", "--target", self._name, "--seed", str(a.seed)]
        command += [
            "--start",
            str(self.next),
            "--scratch",
            str(scratch),
            "--limit",
            str(a.limit),
            "--save",
            str(a.save),
            "--memory",
            str(a.memory),
        ]
        for option, value in (("--bundle", a.bundle), ("--checkpoint", a.checkpoint)):
            command += [] if value is None else [option, str(value)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
        environment["TMPDIR"] = str(scratch)
        with (scratch / "stderr.txt").open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert process.stdout is not None
        stage, began, cpu, reports, shown = "starting", time.monotonic(), 0.0, 0, time.monotonic()
        buffer = b""
        try:
            while time.monotonic() < end and (a.inputs is None or self.inputs < a.inputs):
                if select.select([process.stdout], [], [], 0.5)[0]:
                    data = os.read(process.stdout.fileno(), 1 << 20)
                    if not data:
                        process.wait()
                        self._died(stage, scratch, f"exit {process.returncode}" if process.returncode >= 0 else
                                   signal.Signals(-process.returncode).name)  # fmt: skip
                        return
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        stage, reports = self._heard(json.loads(line), stage, scratch), reports + 1
                    began, cpu = time.monotonic(), _cpu(process.pid)
                elif stage != "starting" and (
                    _cpu(process.pid) - cpu > a.limit or time.monotonic() - began > 6 * a.limit
                ):
                    process.send_signal(signal.SIGUSR1)
                    time.sleep(1)
                    process.kill()
                    process.wait()
                    self._died(stage, scratch, "hang")
                    return
                if time.monotonic() - shown > 30:
                    shown = time.monotonic()
                    self.show(a.minutes * 60 - (end - shown))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def _heard(self, report: dict[str, Any], stage: str, scratch: Path) -> str:
        if "done" in report:
            self.inputs, self.next = self.inputs + 1, report["done"] + 1
            self.outcomes[report["outcome"]] += 1
            if report["failure"]:
                self._note(report["done"], scratch, **report["failure"])
            return "between"
        if "harness" in report:
            print(f"a mutator failed: {report['harness']}", file=sys.stderr)
            return "between"
        self.next = report.get("running", report.get("making"))
        return "running" if "running" in report else "making"

    def _died(self, stage: str, scratch: Path, how: str) -> None:
        dump = (scratch / "stack.txt").read_text(errors="replace") if (scratch / "stack.txt").exists() else ""
        errors = (scratch / "stderr.txt").read_text(errors="replace")[-3000:]
        if stage != "running":
            print(f"the child ended while {stage} input {self.next}: {how}\n{dump}{errors}", file=sys.stderr)
            if stage == "starting":
                raise SystemExit("the child cannot start")
            self.next += 1
            return
        frames = []
        for line in dump.splitlines():
            if line.strip().startswith('File "'):
                path, rest = line.split('"')[1], line.split('", line ')[1]
                frames.append((path, int(rest.split(" ")[0]), rest.rpartition(" in ")[2]))
        self._note(self.next, scratch, type=how, where=ours(frames[::-1]), text=dump + errors)
        self.inputs, self.next = self.inputs + 1, self.next + 1

    def _note(self, index: int, scratch: Path, type: str, where: str, text: str) -> None:
        """Count a failure, and save the first input of its kind."""
        key = f"{type} at {where}"
        self.failures[key] = self.failures.get(key, 0) + 1
        if self.failures[key] > 1:
            return
        where = where if ": " in where else where.split(" ")[0]
        safe = "".join(c if c.isalnum() else "-" for c in f"{type}-{where}")[:80]
        folder = self._arguments.save / f"{self._name}-{safe}"
        print(f"{self._name}: input {index} of seed {self._arguments.seed}: {key}\n  saved in {folder}", flush=True)
        if folder.exists():
            return
        # The child has gone on by now: make the input again.
        command = [sys.executable, "-P", str(HERE / "run.py"), "--extract", str(index), "--target", self._name]
        command += ["--seed", str(self._arguments.seed), "--scratch", str(scratch), "--save", str(folder)]
        for option, value in (("--bundle", self._arguments.bundle), ("--checkpoint", self._arguments.checkpoint)):
            command += [] if value is None else [option, str(value)]
        subprocess.run(command, check=False, env=os.environ | {"PYTHONHASHSEED": "0"})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.txt").write_text(f"{key}\ninput {index} of seed {self._arguments.seed}\n\n{text}", encoding="utf-8",
                                            errors="replace")  # fmt: skip


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _target(arguments: argparse.Namespace) -> Any:
    from targets import TARGETS

    return TARGETS[arguments.target](sources(arguments))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", help="a target, several, or all without it")
    parser.add_argument("--minutes", type=float, default=1, help="for each target")
    parser.add_argument("--inputs", type=int, help="stop a target after so many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first input")
    parser.add_argument(
        "--limit", type=float, default=10, help="seconds of processor time for an input; six times that to wait"
    )
    parser.add_argument("--memory", type=float, default=4, help="GiB that inputs may add to what the child starts with")
    parser.add_argument("--save", type=Path, default=ROOT / "build" / "fuzz", help="where failing inputs go")
    parser.add_argument("--totals", type=Path, help="a JSON file that counts the inputs of all runs")
    parser.add_argument("--bundle", type=Path, help="a bundle of preset tiny; made without it")
    parser.add_argument("--checkpoint", type=Path, help="its checkpoint; made without it")
    parser.add_argument("--replay", type=Path, help="run one saved input of --target in this process")
    parser.add_argument("--workspace", type=Path, help="a folder for inputs; best in memory")
    for hidden in ("--child", "--scratch", "--extract"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, **({"action": "store_true"} if hidden == "--child" else {}))
    arguments = parser.parse_args()
    arguments.save = arguments.save.absolute()
    if arguments.child or arguments.extract is not None:
        arguments.scratch, (arguments.target,) = Path(arguments.scratch), arguments.target
        if arguments.extract is None:
            child(arguments)
            return
        own, arguments.save = arguments.save, arguments.save.parent
        arguments.scratch = arguments.scratch / "extract"
        arguments.scratch.mkdir(exist_ok=True)
        name, number = arguments.target, int(arguments.extract)
        files = _target(arguments).make(random.Random(f"{name} {arguments.seed} {number}"))
        from common import place

        place(own / "files", None, files)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=arguments.workspace) as scratch:
        if arguments.replay:
            from common import check, place

            arguments.scratch, (arguments.target,) = Path(scratch), arguments.target
            target, saved = _target(arguments), arguments.replay / "files"
            files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
            error = check(target, place(Path(scratch) / "input", target.base, files))
            print(f"{type(error).__name__}: {error}" if error else "accepted")
            return
    from targets import TARGETS

    arguments.scratch = arguments.save
    sources(arguments)
    drivers = {}
    for name in arguments.target or TARGETS:
        drivers[name] = driver = Driver(arguments, name)
        started = time.monotonic()
        driver.run(arguments.minutes * 60)
        driver.show(time.monotonic() - started)
        for outcome, count in driver.outcomes.most_common(8):
            print(f"  {count:6} {outcome!r}", flush=True)
        if arguments.totals:
            totals = json.loads(arguments.totals.read_text()) if arguments.totals.exists() else {}
            totals[name] = totals.get(name, 0) + driver.inputs
            arguments.totals.write_text(json.dumps(totals, indent=1) + "\n")
    width = max(map(len, drivers))
    print(f"\n{'target':{width}} | inputs | distinct failures")
    for name, driver in drivers.items():
        print(f"{name:{width}} | {driver.inputs:6} | {len(driver.failures)}")
        for key, count in sorted(driver.failures.items(), key=lambda item: -item[1]):
            print(f"{'':{width}} |        |   {count} x {key}")
    sys.exit(1 if any(driver.failures for driver in drivers.values()) else 0)


if __name__ == "__main__":
    main()
