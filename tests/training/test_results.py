"""The runs behind docs/results.md are commands that exist, in an order that works; the page shows their results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import typer

from simmim_export.training.results import Run, runs
from simmim_export.training.results_page import interval, page, verdict

ALL = list(runs())
STORED = Path(__file__).parents[2] / "docs/results.json"


def test_a_run_comes_after_the_one_it_starts_from() -> None:
    seen: set[str] = set()
    for run in ALL:
        assert run.key not in seen
        assert run.after is None or run.after in seen
        assert any("{start}" in word for command in run.commands for word in command) == (run.after is not None)
        seen.add(run.key)


@pytest.mark.parametrize("run", ALL, ids=lambda run: run.key)
def test_every_command_parses(run: Run) -> None:
    for module, *words in run.commands:
        application = typer.main.get_command(importlib.import_module(module).app)
        name, *arguments = words
        application.commands[name].make_context(name, [*arguments], resilient_parsing=False)  # type: ignore[attr-defined]


def test_the_interval_is_that_of_students_t() -> None:
    # scipy.stats.t.interval(0.95, 2, loc=2, scale=sem([1, 2, 3])) is 2 +- 2.4841
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-3)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((0.1, 0.11, 0.12), "better"),
        ((-0.1, -0.11, -0.12), "worse"),
        ((0.1, -0.1, 0.2), "undecided"),
        ((0.3,), "undecided"),
    ],
)
def test_a_gain_counts_only_outside_its_interval(gains: tuple[float, ...], said: str) -> None:
    assert verdict(gains) == said


def test_the_stored_page_shows_the_stored_results() -> None:
    results = json.loads(STORED.read_text(encoding="utf-8"))
    assert page(results, [run.key for run in ALL]) == STORED.with_name("results.md").read_text(encoding="utf-8")
    assert "not run" not in page(results, [run.key for run in ALL])
    assert "not run" in page({}, [run.key for run in ALL])
