"""Runs commands of ours in forks of one process that has already imported what they import: the same `python -m`, without
the seconds that PyTorch takes to load, in every test of a command.

Knows processes. Must not know what a command does. Requests and replies are JSON, one a line. Nothing but imports happens
before a fork: no thread pool has started, so a fork is as good as a new process.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import psutil

WARM = ("torch", "torchvision", "transformers", "accelerate", "onnx", "onnxscript", "onnxruntime", "numpy", "PIL.Image")
# What these load lazily is most of the time they take.
WARM += ("torch.onnx", "transformers.models.bert.modeling_bert", "simmim_export.training.run")
WARM += ("simmim_export.export.exporter", "simmim_export.export.onnx")


class Zygote:
    """The process that forks; started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, module: str, arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """``python -m module *arguments``, its output captured; raise :class:`subprocess.TimeoutExpired` as `run` does."""
        if self._process is None:
            command = [sys.executable, str(Path(__file__).resolve())]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            atexit.register(self._process.kill)
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {"module": module, "arguments": arguments, "folder": folder, "cwd": str(Path.cwd())}
            self._process.stdin.write(json.dumps(request | {"env": dict(os.environ), "timeout": timeout}) + "\n")
            self._process.stdin.flush()
            code = json.loads(self._process.stdout.readline())
            out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        command = [sys.executable, "-m", module, *arguments]
        if code is None:
            raise subprocess.TimeoutExpired(command, timeout, out, err)
        return subprocess.CompletedProcess(command, code, out, err)

    def kill(self) -> None:
        """End the command that runs in another thread, and all that it started, as a power cut would."""
        assert self._process is not None
        for process in psutil.Process(self._process.pid).children(recursive=True):
            process.kill()


def _child(request: dict) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        folder = Path(request["folder"])
        for number, path in ((0, os.devnull), (1, folder / "out"), (2, folder / "err")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(path, flags, 0o600), number)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - shown, and the fork must end here whatever it is
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(Exception):
            atexit._run_exitfuncs()
        os._exit(code)


def main() -> None:
    """Import, then fork for every request until stdin closes."""
    import importlib
    import signal

    from translations import keep_translations

    for name in WARM:
        importlib.import_module(name)
    keep_translations()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            replies.close()
            _child(request)
        expired: list[int] = []

        def expire(*_: object, pid: int = pid, expired: list[int] = expired) -> None:
            expired.append(pid)
            os.killpg(pid, signal.SIGKILL)

        signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        _, status = os.waitpid(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        code = None if expired else os.waitstatus_to_exitcode(status)
        print(json.dumps(code), file=replies, flush=True)


if __name__ == "__main__":
    main()
