"""Checks that Arm processors compute what PyTorch and this machine compute: ``make arm-check``.

The commands that a user types (doctor, verify, embed, ask) run under qemu on each processor in PROCESSORS, in Debian for arm64
and with the wheels that an Arm device would install. Emulation tells which results a processor gives, never how fast: nothing
here measures time.

Packages come from Debian and the package index. They are kept in a folder, so only the first run downloads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_export.console import print_json, print_table, progress_bar, run_app
from simmim_export.errors import EngineUnavailable, GateFailed, UsageError
from simmim_export.spec import Precision
from simmim_export.system.cache import CACHE
from simmim_export.system.children import Finished, describe_end, our_command, python_command, run
from simmim_export.system.files import locked
from simmim_export.system.host import FEATURES
from simmim_export.system.watch import Watch, unwatched

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "arm"
# Debian 12 has Python 3.11, as Raspberry Pi OS of that release has, and glibc 2.36, which decides what wheels it takes.
DEBIAN, GLIBC, PYTHON = "bookworm", 36, "3.11"
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
)
# Where Debian's own qemu is too old for a processor.
DEBIAN_OF_QEMU = "trixie"
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC, 16, -1)), "manylinux2014_aarch64")
QEMU = ("qemu-aarch64", "qemu-aarch64-static")
ENGINES = ("ort", "openvino")
PRECISIONS = (Precision.FP32, Precision.INT8)
# The vectors of embed and the probabilities of ask may differ by this much from those of this machine. On the processors below
# they differed from a Zen 4 by less than 1e-6.
MOST_DIFFERENCE = 1e-3
TEXT, QUESTION = "a red circle", "what colour is the circle?"
# Seconds that one step may take. Emulation is slow, and a download may be, too.
LONGEST = 900


@dataclass(frozen=True, kw_only=True)
class Processor:
    """An Arm processor: the name that doctor shows, the number of the part, and its features, as Linux spells them."""

    cpu: str
    part: str
    features: str

    def cpuinfo(self) -> str:
        """/proc/cpuinfo of one core. Versions of qemu below 8.1 show the one of this machine, on which onnxruntime crashes."""
        lines = ("processor\t: 0", f"Features\t: {self.features}", "CPU implementer\t: 0x41", "CPU architecture: 8")
        return "\n".join((*lines, "CPU variant\t: 0x0", f"CPU part\t: {self.part}", "CPU revision\t: 3", "", ""))

    def midr(self) -> str:
        """The register that identifies the processor, which OpenVINO reads in /sys."""
        return f"0x{0x410F0003 | int(self.part, 16) << 4:016x}\n"


_V8 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# By the names that qemu gives them: without dot products (Raspberry Pi 3 and 4), with them (Pi 5), with i8mm and BF16 (servers).
PROCESSORS: Mapping[str, Processor] = {
    "cortex-a53": Processor(cpu="Cortex-A53", part="0xd03", features=_V8),
    "cortex-a72": Processor(cpu="Cortex-A72", part="0xd08", features=_V8),
    "cortex-a76": Processor(cpu="Cortex-A76", part="0xd0b", features=_V82),
    "neoverse-n2": Processor(cpu="Neoverse-N2", part="0xd49", features=f"{_V82} sve sve2 svei8mm svebf16 i8mm bf16"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one processor computed with one engine at one precision.

    ``scaled_error`` and ``cosine``: the worst of any graph in ``verify``. ``embed`` and ``ask``: the largest difference of a
    vector or a probability from this machine's; None if this machine takes another variant. ``failed`` is empty if all is well.
    """

    processor: str
    engine: str
    precision: Precision
    scaled_error: float | None = None
    cosine: float | None = None
    embed: float | None = None
    ask: float | None = None
    refused: bool = False
    failed: str = ""


# ------------------------------------------------------------------------------------------------ the emulated machine


def _tool(name: str, *, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        what = f"{name} is not installed, and the check for Arm needs it"
        raise EngineUnavailable(what, fix=f"on Debian or Ubuntu: apt-get install {package}")
    return path


def _fetch(what: str, command: Sequence[str | Path]) -> None:
    done = run([str(word) for word in command], seconds=LONGEST)
    if done.code:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        # pip says that it could not connect in a warning; what it calls an error is only what follows from that.
        reasons = [line for start in ("E:", "WARNING: Retrying", "ERROR:") for line in lines if line.startswith(start)]
        reason = (reasons or lines[-1:])[0][:250]
        fix = "check the network and what the message above names, then run it again; packages that are here are kept"
        raise EngineUnavailable(f"cannot download {what}: {reason}", fix=fix)


def _unpack_debian(packages: Sequence[str], target: Path, *, suite: str, architecture: str | None = None) -> None:
    """Unpack Debian's ``packages`` into ``target``, for ``architecture`` or this machine's own. The settings of apt on this
    machine are read, so that its proxy is used, and not changed. apt checks Debian's signatures."""
    apt, unpack = _tool("apt-get", package="apt"), _tool("dpkg-deb", package="dpkg")
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keys.exists():
        raise EngineUnavailable("Debian's keys are missing", where=keys, fix="apt-get install debian-archive-keyring")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "state" / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={keys}] http://deb.debian.org/debian {suite} main\n")
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Acquire::Languages": "none",
            "Acquire::Retries": "1",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",  # without it, update only warns if there is no network
        }
        if architecture is not None:
            settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        begin: list[str | Path] = ["env", f"--chdir={folder}", apt, *options, "-qq"]
        _fetch(f"Debian's list of packages ({suite})", [*begin, "update"])
        _fetch(f"Debian's packages ({suite})", [*begin, "download", *packages])
        target.mkdir(parents=True)
        for package in sorted(folder.glob("*.deb")):
            run([unpack, "-x", str(package), str(target)]).output()


def _install_wheels(engine: str, target: Path) -> None:
    """Install what a device with ``engine`` needs, as wheels for aarch64."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][engine]]
    words = ["install", "--quiet", "--disable-pip-version-check", "--retries", 1, "--target", target]
    words += ["--constraint", REPOSITORY / "constraints.txt", "--only-binary", ":all:", "--python-version", PYTHON]
    words += ["--implementation", "cp", *(word for name in PLATFORMS for word in ("--platform", name))]
    _fetch(f"the wheels of {engine} for aarch64", python_command("pip", *words, *wanted))


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """Runs Python as an Arm processor, from what lies in ``folder``; :meth:`prepare` makes that."""

    qemu: str
    folder: Path

    @classmethod
    def prepare(
        cls, folder: Path, *, processors: Sequence[str], engines: Sequence[str], qemu: str | None = None, watch: Watch
    ) -> Emulator:
        """Find qemu, or take ``qemu``; download what ``folder`` lacks for ``engines``.

        Raise :class:`EngineUnavailable` if qemu is missing or lacks one of ``processors``, or if something cannot be downloaded.
        """
        qemu = qemu or next(filter(None, map(shutil.which, QEMU)), None) or _tool(QEMU[0], package="qemu-user")
        # Its exit code depends on its version.
        known = run([qemu, "-cpu", "help"]).stdout.split()
        if lacking := [name for name in processors if name not in known]:
            fix = "install version 8.1 or newer, or add --fetch-qemu, or leave it out: --processor cortex-a72"
            raise EngineUnavailable(f"{_version(qemu)} cannot emulate {', '.join(lacking)}", where=qemu, fix=fix)
        emulator = cls(qemu=qemu, folder=folder / f"root-{_digest()}")
        emulator._complete("debian", lambda path: _unpack_debian(PACKAGES, path, suite=DEBIAN, architecture="arm64"))
        for done, engine in enumerate(engines):
            watch(f"wheels of {engine}", done, len(engines))
            emulator._complete(f"site-{engine}", lambda path, engine=engine: _install_wheels(engine, path))
        for name in processors:
            emulator._complete(name, lambda path, name=name: _imitate(PROCESSORS[name], path))
        return emulator

    def _complete(self, name: str, make: Any) -> None:
        make_once(self.folder / name, make)

    def run(self, processor: str, engine: str, *words: object) -> Finished:
        """Run simmim-export with ``words`` as ``processor``, where only the packages of ``engine`` are installed."""
        machine = self.folder / processor
        python = machine / "usr" / "bin" / f"python{PYTHON}"
        command = [self.qemu, "-cpu", processor, "-L", str(machine)]
        # A compiled model that one processor left must not reach another.
        changes = {CACHE: "off", "PYTHONPATH": f"{self.folder / f'site-{engine}'}:{REPOSITORY}"}
        program = python_command("simmim_export.cli", *words, python=python)
        return run([*command, *program], seconds=LONGEST, changes=changes)


def _version(qemu: str) -> str:
    return next(iter(run([qemu, "--version"]).stdout.splitlines()), "this qemu")


def make_once(path: Path, make: Any) -> None:
    """``make(path)`` unless that is there. Other processes wait meanwhile, and never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / f"{path.name}.lock"):
        partial = path.with_name(f"{path.name}.partial")
        if not path.exists():
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(path)


def fetch_qemu(folder: Path) -> str:
    """The newer qemu of Debian, unpacked once into ``folder``."""
    target = folder / f"qemu-{DEBIAN_OF_QEMU}"
    make_once(target, lambda path: _unpack_debian(["qemu-user"], path, suite=DEBIAN_OF_QEMU))
    return str(target / "usr" / "bin" / QEMU[0])


def _digest() -> str:
    """Changes if what is installed does."""
    files = b"".join((REPOSITORY / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(files + repr((DEBIAN, PACKAGES, PLATFORMS, PROCESSORS)).encode()).hexdigest()[:12]


def _imitate(processor: Processor, target: Path) -> None:
    """The root of a machine with ``processor``: Debian beside it, and what /proc and /sys say of the processor. qemu opens a path
    there, if it exists there, in place of the machine's own."""
    identification = target / "sys" / "devices" / "system" / "cpu" / "cpu0" / "regs" / "identification"
    identification.mkdir(parents=True)
    (identification / "midr_el1").write_text(processor.midr())
    (target / "proc").mkdir()
    (target / "proc" / "cpuinfo").write_text(processor.cpuinfo())
    for name in ("usr", "lib", "etc"):
        (target / name).symlink_to(f"../debian/{name}")


# ------------------------------------------------------------------------------------------------------------ the check


def check(
    emulator: Emulator,
    bundle: Path,
    *,
    processors: Sequence[str],
    engines: Sequence[str] = ENGINES,
    precisions: Sequence[Precision] = PRECISIONS,
    picture: Path,
    watch: Watch = unwatched,
) -> list[Row]:
    """Run every engine at every precision as every one of ``processors``, and here, and compare. The commands get ``bundle`` and
    ``picture``."""
    pairs = list(product(engines, precisions))
    total = len(pairs) * (1 + len(processors))
    here, rows = {}, []
    for engine, precision in pairs:
        watch(f"{engine}:{precision} on this machine", len(here), total)
        commands = _commands(bundle, engine, precision=precision, picture=picture)
        here[engine, precision] = {
            name: _json(run(our_command("simmim-export", *words))) for name, words in commands.items()
        }
    for processor in processors:
        doctor = {engine: emulator.run(processor, engine, "doctor", "--json") for engine in engines}
        for engine, precision in pairs:
            watch(f"{engine}:{precision} on {processor}", len(here) + len(rows), total)
            commands = _commands(bundle, engine, precision=precision, picture=picture)
            said = {"doctor": doctor[engine], "verify": emulator.run(processor, engine, *commands["verify"])}
            if said["verify"].code != EngineUnavailable.exit_code:
                said |= {name: emulator.run(processor, engine, *commands[name]) for name in ("embed", "ask")}
            row = Row(processor=processor, engine=engine, precision=precision)
            rows.append(judge(row, said, here[engine, precision]))
    return rows


def _commands(bundle: Path, engine: str, *, precision: Precision, picture: Path) -> dict[str, list[object]]:
    options = ("--engine", engine, "--precision", precision, "--json")
    return {
        "verify": ["verify", bundle, *options],
        "embed": ["embed", bundle, picture, *options],
        "ask": ["ask", bundle, picture, QUESTION, "--top-k", 1000, *options],
    }


def _end(done: Finished) -> str:
    """How a command that failed ended, and the first line of its error."""
    lines = done.stderr.splitlines()
    said = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")
    return f"ended with {describe_end(done.code)}, {said}"


def _json(done: Finished) -> Any:
    return json.loads(done.output())


def judge(row: Row, said: Mapping[str, Finished], here: Mapping[str, Any]) -> Row:
    """``row`` with what the commands ``said`` under emulation, compared with what they gave ``here``."""
    failed, figures = [], {}
    wanted = PROCESSORS[row.processor]
    doctor = _json(said["doctor"])
    features = sorted(set(FEATURES) & set(wanted.features.split()))
    if (doctor["cpu"], doctor["features"]) != (wanted.cpu, features):
        failed.append(f"doctor says {doctor['cpu']} with {' '.join(doctor['features']) or 'no features'}")
    if not doctor["engines"][row.engine]["available"]:
        failed.append(f"doctor says that {row.engine} cannot run")
    # OpenVINO has no INT8 on Arm. To run it nevertheless, set the variable that the error names.
    refused = (row.engine, row.precision) == ("openvino", Precision.INT8) and said["verify"].code == 3
    if not refused:
        failed += [f"{name} {_end(done)}" for name, done in said.items() if done.code]
        if said["verify"].stdout:
            parity = json.loads(said["verify"].stdout)["parity"]
            figures["scaled_error"] = max(graph["scaled_error"] for graph in parity.values())
            figures["cosine"] = min(graph["cosine"] for graph in parity.values())
            variants = [
                {name: graph["variant"] for name, graph in each.items()} for each in (parity, here["verify"]["parity"])
            ]
            if variants[0] == variants[1]:
                figures |= {
                    name: _apart(_json(said[name]), here[name]) for name in ("embed", "ask") if not said[name].code
                }
    failed += [
        f"{name} differs by {figures[name]:.1e}" for name in ("embed", "ask") if figures.get(name, 0) > MOST_DIFFERENCE
    ]
    return Row(**(asdict(row) | figures | {"refused": refused, "failed": "; ".join(failed)}))


def _apart(one: Any, other: Any) -> float:
    """The largest difference between the vectors of ``embed``, or between the probabilities that ``ask`` gives an answer."""
    if isinstance(one, Mapping):
        return float(np.abs(np.subtract(one["embeddings"], other["embeddings"])).max())
    scores = [{answer["answer"]: answer["score"] for answer in document[0]["answers"]} for document in (one, other)]
    return max(abs(scores[0][answer] - scores[1][answer]) for answer in scores[0])


def make_bundle(path: Path) -> None:
    """Write a bundle of preset tiny with random weights, in FP32 and INT8."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny.pt"
        run(our_command("simmim-train", "init", "-o", checkpoint)).output()
        run(our_command("simmim-export", "onnx", checkpoint, "--precision", "int8", "-o", path, "--overwrite")).output()


def draw(path: Path) -> None:
    """A picture of noise that is not square."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _show(rows: Sequence[Row], title: str) -> None:
    def figure(value: float | None, style: str = ".1e") -> str:
        return "-" if value is None else format(value, style)

    columns = ("processor", "engine", ">worst|error", ">worst|cosine", ">embed", ">ask", "passed")
    lines = []
    for row in rows:
        state = "NO" if row.failed else "refused, as it should be" if row.refused else "yes"
        figures = (figure(row.scaled_error), figure(row.cosine, ".7f"), figure(row.embed), figure(row.ask))
        lines.append((row.processor, f"{row.engine}:{row.precision}", *figures, state))
    print_table(title, columns, lines)


def _choice(given: Sequence[str] | None, known: Sequence[str], *, option: str) -> Sequence[str]:
    if unknown := [name for name in given or () if name not in known]:
        raise UsageError(
            f"unknown {option} {unknown[0]!r}", where=f"--{option}", fix=f"choose one of {', '.join(known)}"
        )
    return list(dict.fromkeys(given or known))


def main() -> None:
    """Check all processors, or those that are named. Exit with 4 if one computes something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor", action="append", metavar="NAME", help=f"of {', '.join(PROCESSORS)}; repeatable")
    parser.add_argument("--engine", action="append", metavar="NAME", help=f"of {', '.join(ENGINES)}; repeatable")
    parser.add_argument("--bundle", type=Path, help="a bundle with int8; default: preset tiny with random weights")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where downloads are kept; default: build/arm")
    parser.add_argument("--qemu", metavar="PATH", help="the emulator; default: qemu-aarch64 of this machine")
    parser.add_argument("--fetch-qemu", action="store_true", help=f"download the qemu of Debian {DEBIAN_OF_QEMU}")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args()
    processors = _choice(options.processor, list(PROCESSORS), option="processor")
    engines = _choice(options.engine, ENGINES, option="engine")
    progress: AbstractContextManager[Watch] = progress_bar("arm-check")
    with progress as watch, tempfile.TemporaryDirectory() as temporary:
        # Absolute, because links and programs below it are used from elsewhere.
        folder = options.folder.resolve()
        if options.qemu is not None and shutil.which(options.qemu) is None:
            raise UsageError("that is not a program", where=options.qemu, fix="drop --qemu, or add --fetch-qemu")
        qemu = fetch_qemu(folder) if options.fetch_qemu else options.qemu
        emulator = Emulator.prepare(folder, processors=processors, engines=engines, qemu=qemu, watch=watch)
        bundle, picture = options.bundle or Path(temporary) / "bundle", Path(temporary) / "picture.png"
        draw(picture)
        if options.bundle is None:
            watch("make a bundle", 0, 1)
            make_bundle(bundle)
        rows = check(emulator, bundle, processors=processors, engines=engines, picture=picture, watch=watch)
    version = _version(emulator.qemu)
    if options.json:
        print_json({"qemu": version, "rows": [asdict(row) for row in rows]})
    else:
        what = "worst of verify against PyTorch; embed and ask against this machine"
        _show(rows, f"{version}, Debian {DEBIAN} arm64, Python {PYTHON} ({what}, {platform.machine()})")
    if failed := [row for row in rows if row.failed]:
        lines = "\n".join(f"{row.processor} {row.engine}:{row.precision}: {row.failed}" for row in failed)
        fix = "run that row alone with --processor and --engine"
        raise GateFailed(f"{len(failed)} of {len(rows)} rows did not pass:\n{lines}", fix=fix)


if __name__ == "__main__":
    run_app(main)
