"""A worker answers with data: results, errors and warnings come back as they were, and its death is one clear error."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simmim_export.errors import BundleError, FewerThreads, InputError, UsageError
from simmim_export.spec import Precision
from simmim_export.system.workers import Worker, WorkerDied


class OwnError(BundleError):
    """An error that only the worker's own module defines."""


@dataclass(frozen=True)
class Candidate:
    path: Path
    precision: Precision
    share: float = 1.0


class Served:
    """What the workers of these tests serve."""

    def __init__(self) -> None:
        self.calls = 0

    def typed(self, candidates: list[Candidate], *, where: Path | None) -> tuple[Candidate, ...]:
        assert where is None or isinstance(where, Path)
        assert all(isinstance(one.path, Path) and one.precision is Precision.INT8 for one in candidates)
        return tuple(candidates)

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def figures(self) -> dict[str, Any]:
        return {"cosine": np.float64(0.5), "rows": np.int64(3), "error": float("nan")}

    def fail(self, kind: str) -> None:
        if kind == "own":
            raise OwnError("a\nb", where="here", fix="type this")
        if kind == "plain":
            raise UsageError("no")
        raise ZeroDivisionError("a bug")

    def warn(self, text: str) -> int:
        warnings.warn(text, FewerThreads, stacklevel=1)
        warnings.warn("python's own", RuntimeWarning, stacklevel=1)
        return 1

    def warn_and_die(self) -> None:
        warnings.warn("the last words", FewerThreads, stacklevel=1)
        os.kill(os.getpid(), signal.SIGKILL)

    def shout(self) -> str:
        print("a library prints this")
        os.write(1, b"and this")
        return sys.stdin.read()

    def path(self) -> list[str]:
        import random

        return [random.__file__, *sys.path]

    def loaded(self) -> list[str]:
        return sorted(sys.modules)

    def give_object(self) -> object:
        return object()

    def sleep(self) -> None:
        time.sleep(60)

    def leave(self, code: int) -> None:
        os._exit(code)


class Broken:
    """Cannot even be made."""

    def __init__(self) -> None:
        raise InputError("not today")

    def count(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import this module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture(scope="module")
def shared():
    """One worker for the tests that do not end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with Worker(Served, name="a test") as worker:
            yield worker


def test_arguments_and_results_keep_their_types(shared: Worker) -> None:
    candidates = [Candidate(Path("a"), Precision.INT8, float("inf")), Candidate(Path("b"), Precision.INT8)]
    assert shared.ask(Served.typed, candidates, where=None) == tuple(candidates)
    assert shared.ask(Served.typed, [], where=Path("/x")) == ()


def test_figures_of_numpy_are_plain_numbers_and_nan_stays_nan(shared: Worker) -> None:
    figures = shared.ask(Served.figures)
    assert (figures["cosine"], figures["rows"]) == (0.5, 3) and math.isnan(figures["error"])
    assert [type(value) for value in figures.values()] == [float, int, float]


def test_a_worker_keeps_its_state(shared: Worker) -> None:
    first = shared.ask(Served.count)
    assert shared.ask(Served.count) == first + 1


def test_an_error_arrives_as_itself(shared: Worker) -> None:
    with pytest.raises(UsageError) as plain:
        shared.ask(Served.fail, "plain")
    assert (plain.value.what, plain.value.where, plain.value.fix) == ("no", None, None)
    with pytest.raises(BundleError) as own:
        shared.ask(Served.fail, "own")
    assert type(own.value) is BundleError
    assert (own.value.what, own.value.where, own.value.fix) == ("a\nb", "here", "type this")


def test_an_object_that_cannot_be_made_is_an_error_each_time() -> None:
    with Worker(Broken, name="a test") as worker:
        for _ in range(2):
            with pytest.raises(InputError):
                worker.ask(Broken.count)


def test_a_bug_arrives_with_its_traceback_and_the_worker_goes_on(shared: Worker) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)asked to fail.*line \d+, in fail\n.*ZeroDivisionError: a bug"):
        shared.ask(Served.fail, "bug")
    with pytest.raises(RuntimeError, match="give_object"):
        shared.ask(Served.give_object)
    with pytest.raises(RuntimeError, match="no attribute 'close'"):
        shared.ask(Worker.close)
    assert shared.ask(Served.count) > 0


def test_warnings_are_warned_of_in_this_process(shared: Worker) -> None:
    with pytest.warns(FewerThreads, match="one thread"), pytest.warns(RuntimeWarning, match="python's own"):
        assert shared.ask(Served.warn, "one thread") == 1


def test_what_a_library_prints_does_not_mix_with_answers(shared: Worker) -> None:
    assert shared.ask(Served.shout) == ""


def test_a_worker_loads_only_what_it_serves(shared: Worker) -> None:
    loaded = shared.ask(Served.loaded)
    assert not {"torch", "onnx", "onnxruntime", "openvino", "simmim_export.engines"} & set(loaded)


def test_a_killed_worker_is_an_error_that_names_the_signal() -> None:
    with Worker(Served, name="engine 'x'") as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"engine 'x'.*asked to count.*SIGKILL") as caught:
            worker.ask(Served.count)
    assert caught.value.exit_code == 3 and caught.value.fix


def test_a_worker_that_leaves_is_an_error_that_names_its_exit_code() -> None:
    with Worker(Served, name="a test") as worker, pytest.raises(WorkerDied, match="exit code 7"):
        worker.ask(Served.leave, 7)


def test_the_warnings_of_a_worker_that_dies_are_not_lost() -> None:
    with Worker(Served, name="a test") as worker, pytest.warns(FewerThreads), pytest.raises(WorkerDied):
        worker.ask(Served.warn_and_die)


def test_a_block_that_fails_kills_its_worker() -> None:
    started = time.monotonic()
    with pytest.raises(KeyError), Worker(Served, name="a test") as worker:
        raise KeyError
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(worker._process.pid, 0)


def test_a_worker_ignores_ctrl_c_and_ends_with_its_parent() -> None:
    with Worker(Served, name="a test") as worker:
        before = worker.ask(Served.count)
        os.kill(worker._process.pid, signal.SIGINT)
        assert worker.ask(Served.count) == before + 1


def test_a_worker_ignores_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("random", "json", "numpy", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with Worker(Served, name="a test") as worker:
        assert not any(path in ("", str(tmp_path)) or str(tmp_path) in path for path in worker.ask(Served.path))
    assert not (tmp_path / "planted").exists()
    assert "PYTHONSAFEPATH" not in os.environ
