"""A manifest of any size and depth is read or refused in little time and memory."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edits import Content, dumped

from simmim_export.bundle import parse_manifest
from simmim_export.bundle.schema import MAX_BYTES, MAX_DEPTH
from simmim_export.errors import BundleError


@pytest.mark.parametrize("levels", [MAX_DEPTH, 500, 990, 5000])
@pytest.mark.parametrize("key", ["model", "provenance", "metrics"])
def test_deep_nesting_is_refused(content: Content, key: str, levels: int) -> None:
    text = dumped(content).replace(
        f'"{key}": {{', f'"{key}": {{"deep": ' + '{"a": [' * levels + "]}" * levels + ", ", 1
    )
    with pytest.raises(BundleError):
        parse_manifest(text, "here")


def test_a_long_history_is_not_too_deep(content: Content) -> None:
    changed, history = copy.deepcopy(content), {"seed": 0}
    for _ in range(40):
        history = {"parent": {"provenance": history}}
    changed["provenance"]["training"] = history
    assert parse_manifest(dumped(changed), "here").provenance["training"] == history


# Opens a bundle in a process that may take 400 MB more than it starts with, and 10 seconds of a processor.
LIMITED = """
import resource, sys
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError
start = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (start + 400 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
try:
    Bundle.open(sys.argv[1])
except BundleError as error:
    sys.exit(error.exit_code)
"""


def _names(content: Content) -> str:
    content["pipelines"][3]["graphs"] = ["image_encoder"] * 100_000
    return dumped(content)


def _graphs(content: Content) -> str:
    content["graphs"] = [{}] * 10**6
    return dumped(content)


def _empty_objects(content: Content) -> str:
    return "[" + "{}," * ((MAX_BYTES - 10) // 3) + "{}]"


def _labels(content: Content) -> str:
    content["labels"]["vqa"] = ["x"] * 500_000
    return dumped(content)


def _keys(content: Content) -> str:
    content["files"] = {str(n): "0" for n in range(300_000)}
    return dumped(content)


@pytest.mark.parametrize("make", [_names, _graphs, _empty_objects, _labels, _keys])
def test_too_many_of_anything_are_refused_in_little_memory(content: Content, tmp_path: Path, make) -> None:
    (tmp_path / "manifest.json").write_text(make(copy.deepcopy(content)))
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr


def test_a_manifest_of_500_mb_is_refused_in_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(500 * 10**6)
    started = time.process_time()
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr
    assert time.process_time() - started < 5 and resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
