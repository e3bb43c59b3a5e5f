"""Verdicts on noise that was measured, what is refused, and two versions side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_document import Made, example, write_example

from simmim_export.benchmarks import compare as suite
from simmim_export.benchmarks.measure import PAIR_ROUNDS, Ratio, ratio_of_pairs
from simmim_export.benchmarks.results import Failed
from simmim_export.errors import DataError, EngineUnavailable, GateFailed, UsageError

TESTS = Path(__file__).parents[1]
NOISE = json.loads((Path(__file__).parent / "noise.json").read_text())["rows"]
RNG = np.random.default_rng


def simulated(random: np.random.Generator, *, slower: float, rows: int, rounds: int = PAIR_ROUNDS) -> list[str]:
    """The verdicts of a comparison of ``rows`` rows whose second side takes ``slower`` times as long, with measured noise."""
    confidence = 1 - (1 - suite.CONFIDENCE) / rows
    found = []
    for name in random.choice(list(NOISE), rows):
        # Which of two equal sides is called the first is arbitrary.
        noise = random.choice(NOISE[name], rounds) * random.choice((-1, 1), rounds)
        ratio = ratio_of_pairs([(1.0, slower * float(np.exp(each))) for each in noise], confidence=confidence)
        assert ratio is not None
        found.append(suite.verdict(ratio, threshold=suite.THRESHOLD))
    return found


def test_a_version_against_itself_raises_no_alarm() -> None:
    random = RNG(0)
    alarms = sum(set(simulated(random, slower=1.0, rows=27)) != {suite.NONE_SEEN} for _ in range(400))
    # 5 % are allowed; the limit of 2 % leaves far fewer.
    assert alarms <= 4


def test_a_planted_slowdown_is_found_and_has_the_right_sign() -> None:
    random = RNG(1)
    runs = [simulated(random, slower=1.1, rows=18) for _ in range(100)]
    assert np.mean([suite.SLOWER in run for run in runs]) > 0.98
    assert not any(suite.FASTER in run for run in runs)
    assert np.mean([suite.FASTER in simulated(random, slower=1 / 1.2, rows=18) for _ in range(50)]) > 0.98


def test_more_rounds_find_more_rows() -> None:
    shares = [
        np.mean(
            [
                verdict == suite.SLOWER
                for _ in range(20)
                for verdict in simulated(random, slower=1.1, rows=18, rounds=rounds)
            ]
        )
        for random, rounds in ((RNG(2), 14), (RNG(2), 60))
    ]
    assert shares[0] < shares[1] and shares[1] > 0.6


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.03, 1.2, suite.FASTER),
        (1.01, 1.2, suite.NONE_SEEN),
        (0.8, 1.2, suite.NONE_SEEN),
        (0.8, 0.99, suite.NONE_SEEN),
        (0.8, 0.97, suite.SLOWER),
    ],
)
def test_a_difference_needs_the_whole_interval(low: float, high: float, expected: str) -> None:
    assert suite.verdict(Ratio(value=(low + high) / 2, low=low, high=high), threshold=0.02) == expected


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rows", [1, 18, 100])
def test_the_rounds_that_are_said_to_be_needed_are_enough(paired: bool, rows: int, tmp_path: Path) -> None:
    confidence = 1 - 0.05 / rows
    least = suite.rounds_needed(confidence, paired=paired)
    for rounds in (least - 1, least):
        made = Made(rounds=rounds, iterations=2)
        results = [made.row(("ort", "fp32", ""), 2, target=f"graph:g{number}") for number in range(rows)]
        method = {"pair": "p"} if paired else {}
        path = write_example(tmp_path / f"{rounds}.json", results, method=method)
        comparison = suite.compare(path, path, accept=suite.ACCEPTED)
        assert comparison["paired"] == paired
        for row in comparison["rows"]:
            assert (row["verdict"] is None) == (rounds < least) == (row["reason"] is not None)


def pair_of(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda document: None, **words: Any
) -> tuple[Path, Path]:
    """Two files of one pair; ``change`` is made to the second document."""
    made = Made(rounds=14, iterations=4)
    results = [made.row(("ort", "fp32", ""), 2, target=f"graph:g{number}") for number in range(3)]
    document = example(results, method={"rounds": 14, "pair": "p"}, finished_rounds=14, **words)
    first, second = folder / "first.json", folder / "second.json"
    first.write_text(json.dumps(document))
    change(document)
    second.write_text(json.dumps(document))
    return first, second


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("runs", lambda d: d["method"].update(pair="q")),
        ("runs", lambda d: d["method"].pop("pair")),
        ("inputs", lambda d: d["results"][0].update(inputs="1" * 64)),
        ("method", lambda d: d["method"].update(rounds=15)),
        ("method", lambda d: d["host"].update(threads_used=1)),
        ("method", lambda d: d.update(finished_rounds=3)),
        ("host", lambda d: d["host"].update(cpu="abacus")),
    ],
)
def test_other_measurements_are_refused_unless_accepted(
    kind: str, change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    first, second = pair_of(tmp_path, change)
    with pytest.raises(DataError) as caught:
        suite.compare(first, second, accept=[each for each in suite.ACCEPTED if each != kind])
    assert caught.value.where == str(second) and (caught.value.fix or "").endswith(f"--accept {kind}")
    assert len(suite.compare(first, second, accept=[kind])["rows"]) == 3


def test_a_row_that_gets_slower_or_fails_is_named(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        slow, broken, _ = document["results"]
        slow["rounds"] = [[1.2 * each for each in samples] for samples in slow["rounds"]]
        broken |= {"rounds": [], "failed": {"error": "WorkerDied", "message": "gone"}}

    first, second = pair_of(tmp_path, change)
    comparison = suite.compare(first, second)
    assert [row["verdict"] for row in comparison["rows"]] == [suite.SLOWER, suite.BROKEN, suite.NONE_SEEN]
    assert comparison["rows"][0]["times_faster"] == pytest.approx(1 / 1.2)
    with pytest.raises(GateFailed) as caught:
        suite.require_none_slower(comparison)
    assert (
        caught.value.where == str(second)
        and "g0" in caught.value.what
        and "g1" in caught.value.what
        and "g2" not in caught.value.what
    )
    # The other way around it is faster, and what failed before does not count.
    back = suite.compare(second, first)
    assert [row["verdict"] for row in back["rows"]] == [suite.FASTER, None, suite.NONE_SEEN]
    suite.require_none_slower(back)


def test_rows_of_one_file_are_named(tmp_path: Path) -> None:
    first, second = pair_of(tmp_path, lambda document: document["results"][0].update(engine="trt"))
    comparison = suite.compare(first, second)
    assert len(comparison["rows"]) == 2
    assert (
        ["ort" in name for name in comparison["only_first"]]
        == ["trt" in name for name in comparison["only_second"]]
        == [True]
    )
    first, second = pair_of(tmp_path, lambda document: [row.update(engine="trt") for row in document["results"]])
    with pytest.raises(DataError):
        suite.compare(first, second)


def test_a_failed_row_needs_a_reason() -> None:
    row = Made().row(("ort", "fp32", ""), 1, target="graph:g", rounds=(), failed=Failed(error="E", message="m"))
    assert row.samples == []


def test_the_command_and_its_exit_codes(run_cli, tmp_path: Path) -> None:
    first, second = pair_of(
        tmp_path, lambda d: [r.update(rounds=[[2 * s for s in o] for o in r["rounds"]]) for r in d["results"]]
    )
    assert run_cli("bench", "compare", first, first).returncode == 0
    done = run_cli("bench", "compare", first, second)
    assert done.returncode == 4 and done.stdout.count(suite.SLOWER) == 3 and str(second) in done.stderr
    assert run_cli("bench", "compare", first, second, "--fail-on", "nothing").returncode == 0
    assert run_cli("bench", "compare", first, second, "--threshold", "100").returncode == 0
    said = json.loads(run_cli("bench", "compare", second, first, "--json").stdout)
    assert {row["verdict"] for row in said["rows"]} == {suite.FASTER} and said["paired"]
    for words in (("--accept", "luck"), ("--fail-on", "rain")):
        assert run_cli("bench", "compare", first, second, *words).returncode == 2


def test_two_versions_side_by_side(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    """The first version runs in an interpreter that is named, as another environment's would be."""
    words = (
        "--bundle",
        tiny_bundle,
        "--pipeline",
        "embed_text",
        "--rounds",
        7,
        "--iterations",
        2,
        "--fail-on",
        "nothing",
    )
    done = run_cli("bench", "pair", *words, "--against-python", sys.executable, "--save", tmp_path / "pair", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["paired"] and len(said["rows"]) == 2 and said["differs"] == []
    assert all(
        row["verdict"] in (suite.FASTER, suite.SLOWER, suite.NONE_SEEN) and row["low"] > 0 for row in said["rows"]
    )
    files = (tmp_path / "pair/first.json", tmp_path / "pair/second.json")
    assert suite.compare(*files)["rows"] == said["rows"]
    for path in files:
        for row in json.loads(path.read_text())["results"]:
            assert len(row["rounds"]) == 7 and row["parity"]["passed"] and len(row["code"]) == 64


def test_an_environment_that_cannot_measure_is_an_error(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    from simmim_export.benchmarks.document import Host
    from simmim_export.benchmarks.pair import Side

    host = Host({}, 0.0)
    with pytest.raises(UsageError):
        Side(bundle=tiny_bundle, python=tmp_path / "none").described(["latency"], host)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(EngineUnavailable):
        Side(bundle=tiny_bundle, python=python).described(["latency"], host)
    for answer in ("", "not JSON", "{}", "7"):
        python.write_text(f"#!/bin/sh\necho '{answer}'\n")
        with pytest.raises(UsageError) as caught:
            Side(bundle=tiny_bundle, python=python).described(["latency"], host)
        assert caught.value.where == str(python)
    done = run_cli("bench", "pair", "--bundle", tiny_bundle, "--against-python", tmp_path / "none")
    assert done.returncode == 2 and f"where: {tmp_path / 'none'}" in done.stderr
    # A file of the working directory, not a program of the same name on the path.
    (tmp_path / "true").write_text("#!/bin/sh\necho this one >&2\nexit 1\n")
    (tmp_path / "true").chmod(0o755)
    done = run_cli("bench", "pair", "--bundle", tiny_bundle.resolve(), "--against-python", "true", cwd=tmp_path)
    assert done.returncode == 3 and "this one" in done.stderr, done.stderr


@pytest.mark.parametrize("threshold", ["inf", "1e999", "nan", "-1"])
def test_a_threshold_is_a_share(run_cli, threshold: str) -> None:
    assert run_cli("bench", "compare", "a.json", "b.json", "--threshold", threshold).returncode == 2


def test_a_really_planted_slowdown_arrives_in_the_figures(tiny_bundle: Path, tmp_path: Path) -> None:
    """Slowed to three times, so that a machine's noise does not matter; smaller ones are measured, not tested."""
    from simmim_export.system.children import run

    program = TESTS / "programs" / "slowed_pair.py"
    words = [
        "--bundle",
        tiny_bundle,
        "--pipeline",
        "embed_text",
        "--rounds",
        "8",
        "--iterations",
        "3",
        "--json",
        "--fail-on",
        "nothing",
    ]
    done = run([sys.executable, "-P", str(program), "ort", "2.0", *map(str, words)])
    assert done.code == 0, done.failure
    rows = json.loads(done.stdout)["rows"]
    assert {row["verdict"] for row in rows} == {suite.SLOWER} and all(row["times_faster"] < 0.7 for row in rows)
