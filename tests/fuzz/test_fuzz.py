"""A short, deterministic part of the fuzz run: every reader takes a fixed set of hostile inputs (see run.py for the long run)."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import Sources, Target, check, place
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from targets import TARGETS

GIB = 2**30
# Inputs of each target: fewer where one takes long. A graph can crash OpenVINO itself, and pytest with it.
INPUTS = {"graph-openvino": 0, "checkpoint": 12, "bundle": 8, "graph": 25, "golden": 20, "evidence": 20, "manifest": 40}
INPUTS |= {"compare": 25}


@pytest.fixture(scope="module")
def sources(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tiny_bundle, tiny_checkpoint, tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(params=sorted(TARGETS), scope="module")
def target(request: pytest.FixtureRequest, sources: Sources) -> Target:
    return TARGETS[request.param](sources)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 4 GiB more than now: an input that asks for more fails instead of exhausting the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_valid_input_is_accepted(target: Target, tmp_path: Path) -> None:
    assert check(target, place(tmp_path / "input", target.base, target.valid())) is None


@pytest.mark.usefixtures("little_memory")
def test_hostile_input_is_refused_or_works(target: Target, tmp_path: Path) -> None:
    if not INPUTS.get(target.name, 60):
        pytest.skip("run.py runs it, in a process of its own")

    @settings(
        max_examples=INPUTS.get(target.name, 60),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32 - 1))
    def one(seed: int) -> None:
        folder = place(tmp_path / "input", target.base, target.make(random.Random(seed)))
        started = time.process_time()
        check(target, folder)
        assert time.process_time() - started < 10, f"input {seed} took too long"

    one()
