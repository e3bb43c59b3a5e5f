"""Which code a result depends on, and what changes its digest."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from simmim_export.benchmarks import code_digest as digests
from simmim_export.benchmarks.results import Suite


def reached(*roots: str) -> set[str]:
    return set(digests.modules((*digests._ALWAYS, *roots), left_out=digests.LEFT_OUT))


def test_what_runs_counts_and_what_prints_does_not() -> None:
    names = reached()
    wanted = {
        "runtime.model",
        "engines.ort",
        "engines.openvino",
        "engines.torch",
        "models.simmim.family",
        "benchmarks.worker",
    }
    assert wanted | {"precision.int8_u8", "export.exporter", "spec", "bundle.manifest", "benchmarks.workloads"} <= names
    # The engines and the family are named in strings only.
    for outside in (
        "cli",
        "console",
        "training",
        "benchmarks.html",
        "benchmarks.report",
        "benchmarks.compare",
        "version",
    ):
        assert not [name for name in names if name == outside or name.startswith(f"{outside}.")]


def test_every_named_module_exists() -> None:
    for name in (*digests._ALWAYS, *digests.LEFT_OUT, *(root for roots in digests.ROOTS.values() for root in roots)):
        assert digests._source(name) is not None, name


@pytest.mark.parametrize("suite", [*get_args(Suite), "train", "quantization", "footprint"])
def test_a_digest_stays_the_same(suite: str) -> None:
    assert re.fullmatch("[0-9a-f]{64}", digests.code_digest(suite))
    assert (
        digests.is_current(suite, digests.code_digest(suite))
        and not digests.is_current(suite, "")
        and not digests.is_current(suite, None)
    )


def test_suites_that_run_other_code_have_another_digest() -> None:
    assert len({digests.code_digest(suite) for suite in ("latency", "peers", "train", "quantization")}) == 4
    assert digests.code_digest("latency") == digests.code_digest("growth")


SOURCE = '''
"""What it is for."""
import os
# why
def f(a, b=1):
    """What it does."""
    return a + b  # sum
class C:
    x = None
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("What it does", "It adds", True),
        ("# why", "# because", True),
        ("a + b", "a  +  b", True),
        ('"""What it is for."""', "", True),
        ("a + b", "a - b", False),
        ("b=1", "b=2", False),
        ("x = None", "x = 0", False),
        ("x = None", "y = None", False),
        ("import os", "import sys", False),
    ],
)
def test_only_what_runs_changes_the_digest(old: str, new: str, same: bool) -> None:
    before, after = (digests._outline(ast.parse(text)) for text in (SOURCE, SOURCE.replace(old, new)))
    assert (before == after) == same


def test_a_digest_does_not_depend_on_where_the_code_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests.code_digest("latency")
    monkeypatch.chdir(tmp_path)
    digests._digest.cache_clear()
    assert digests.code_digest("latency") == before
