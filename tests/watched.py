"""Runs a program in a folder that a stranger filled, with an empty home, and says what it imported, wrote and connected to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLANTED = (
    "json",
    "torch",
    "numpy",
    "onnxruntime",
    "openvino",
    "typing",
    "simmim_export",
    "random",
    "tempfile",
    "multiprocessing",
)
STRACE = shutil.which("strace")
NO_STRACE = "strace is not installed, so what a command writes and connects to cannot be seen"
_CALLS = "connect,sendto,open,openat,creat,mkdir,mkdirat"
_OPENED = re.compile(r"^(?:open|openat|creat)\(.*O_(?:WRONLY|RDWR|CREAT).*\) = \d+<([^>]*)>")
_MADE = re.compile(r'^mkdir(?:at)?\((?:AT_FDCWD<([^>]*)>, )?"([^"]*)", .*\) = 0$')
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]*)"')
_LOCAL = re.compile(r"^(127\.|::1$|0\.0\.0\.0$|::$|::ffff:127\.)")
# Neither files nor output: devices, shared memory and what the kernel shows.
_NOT_FILES = ("/dev/", "/proc/", "/sys/", "/memfd:", "pipe:", "socket:", "anon_inode:")


@dataclass
class Seen:
    """``done`` is the ended process. ``planted`` names the planted modules that were executed. ``written`` and ``hosts`` are None
    without strace: files opened for writing or folders made outside the allowed ones, and addresses or lookups beyond this
    machine."""

    done: subprocess.CompletedProcess[str]
    planted: list[str]
    written: list[str] | None = None
    hosts: list[str] | None = None


@dataclass
class Room:
    """A folder for one run: ``work`` is its working directory with planted modules, ``out`` takes outputs, ``home`` is empty."""

    root: Path
    allowed: Sequence[Path] = field(default=())

    def __post_init__(self) -> None:
        for name in ("work", "out", "home", "cache", "temporary", "traces"):
            (self.root / name).mkdir(parents=True)
        for name in PLANTED:
            code = f"open({str(self.root / 'planted')!r}, 'a').write('{name}\\n')\nraise SystemExit(99)\n"
            (self.work / f"{name}.py").write_text(code)

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def environment(self) -> dict[str, str]:
        """A user's environment that sets no switch of any package."""
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
        home = self.root / "home"
        folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
        own = {"SIMMIM_EXPORT_CACHE": str(self.root / "cache"), "TMPDIR": str(self.root / "temporary")}
        # Bytecode beside the sources is Python's own doing, once.
        return kept | folders | own | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, *command: object, timeout: float = 300) -> Seen:
        """Run ``command`` in the working directory, under strace where there is one."""
        words = [str(word) for word in command]
        if STRACE:
            words = [
                STRACE,
                "-ff",
                "-y",
                "-qq",
                "--seccomp-bpf",
                "-e",
                f"trace={_CALLS}",
                "-o",
                str(self.root / "traces/t"),
                *words,
            ]
        done = subprocess.run(
            words,
            cwd=self.work,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        marker = self.root / "planted"
        planted = sorted(set(marker.read_text().split())) if marker.exists() else []
        if not STRACE:
            return Seen(done, planted)
        lines = [
            line for path in (self.root / "traces").iterdir() for line in path.read_text(errors="replace").splitlines()
        ]
        return Seen(done, planted, self._written(lines), _hosts(lines))

    def _written(self, lines: Sequence[str]) -> list[str]:
        paths = {match[1] for line in lines if (match := _OPENED.match(line))}
        paths |= {os.path.join(match[1] or "", match[2]) for line in lines if (match := _MADE.match(line))}  # noqa: PTH118
        allowed = [str(path) for path in (self.out, self.root / "cache", self.root / "temporary", *self.allowed)]
        outside = (path for path in paths if not path.startswith(_NOT_FILES))
        return sorted(path for path in outside if not any(path == a or path.startswith(f"{a}/") for a in allowed))


def _hosts(lines: Sequence[str]) -> list[str]:
    """Addresses beyond this machine that were connected or sent to; /etc/resolv.conf for a host that was looked up."""
    found = set()
    for line in lines:
        if "resolv.conf" in line and line.startswith("open"):
            found.add("/etc/resolv.conf")
        for port, address in _ADDRESS.findall(line) if line.startswith(("connect", "sendto")) else ():
            if not _LOCAL.match(address):
                found.add(f"{address}:{port}")
    return sorted(found)
