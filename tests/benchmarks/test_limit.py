"""The peaks of this host, and the floors that follow from peaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simmim_export.benchmarks.limit.floor import chosen_sizes, floor, floor_of, golden_sizes
from simmim_export.benchmarks.limit.peaks import Peak, Peaks, PeaksWorker
from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError
from simmim_export.precision.cost import Cost
from simmim_export.spec import Precision, PrecisionPlan


def peak(speed: float) -> Peak:
    return Peak(flops_per_second=speed, library="torch", rows=512)


def peaks(*, cache: int | None = 1000, **products: float) -> Peaks:
    """100 bytes a second, and the given operations a second."""
    speeds = {name: peak(speed) for name, speed in products.items()}
    return Peaks(threads=2, products=speeds, copy=100.0, read=80.0, cache=cache, missing={})


def test_the_slower_of_operations_and_bytes_decides() -> None:
    computing = floor(Cost(flops=500, weights=0, values=100), Precision.FP32, peaks=peaks(fp32=100.0))
    moving = floor(Cost(flops=500, weights=0, values=1000), Precision.FP32, peaks=peaks(fp32=100.0))
    assert computing is not None and (computing.seconds, computing.bound) == (5.0, "compute")
    assert moving is not None and (moving.seconds, moving.bound) == (10.0, "memory")


def test_weights_may_have_stayed_in_the_cache() -> None:
    cost = Cost(flops=0, weights=3000, values=50)
    for cache, moved in ((1000, 2050), (5000, 50), (None, 50)):
        least = floor(cost, Precision.FP32, peaks=peaks(fp32=1.0, cache=cache))
        assert least is not None and least.bytes == moved


def test_a_precision_without_a_peak_has_no_floor() -> None:
    cost = Cost(flops=500, weights=0, values=100)
    assert floor(cost, Precision.FP16, peaks=peaks(fp32=100.0)) is None
    # INT8 may run nodes in FP32, so slow INT8 products do not raise its floor.
    slow = floor(cost, Precision.INT8, peaks=peaks(fp32=100.0, int8=10.0))
    assert slow is not None and slow.seconds == 5.0


def test_a_pipeline_takes_the_sum_of_its_graphs(tiny_bundle: Path) -> None:
    bundle, slow = Bundle.open(tiny_bundle), peaks(fp32=1e6, int8=4e6, cache=None)
    sizes = golden_sizes(bundle, batch=2)

    def seconds(target: str, precision: str) -> float:
        plan = PrecisionPlan.parse(precision)
        least = floor_of(bundle, target, engine="ort", plan=plan, sizes=sizes, peaks=slow)
        assert least is not None
        return least.seconds

    pipeline = next(each for each in bundle.manifest.pipelines if len(each.graphs) > 1)
    parts = [seconds(f"graph:{graph}", "fp32") for graph in pipeline.graphs]
    assert seconds(f"pipeline:{pipeline.name}", "fp32") == pytest.approx(sum(parts))
    assert seconds("graph:text_encoder", "int8") < seconds("graph:text_encoder", "fp32")


def test_the_peaks_of_this_processor_are_no_limit_of_a_gpu(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    sizes, plan = golden_sizes(bundle, batch=1), PrecisionPlan()
    for engine in ("ort@cuda", "trt"):
        assert floor_of(bundle, "graph:fusion", engine=engine, plan=plan, sizes=sizes, peaks=peaks(fp32=1.0)) is None


@pytest.mark.parametrize("choice", ["sequence", "sequence=", "sequence=two", "width=3", "sequence=100000", "batch=0"])
def test_a_wrong_axis_is_a_usage_error(tiny_bundle: Path, choice: str) -> None:
    with pytest.raises(UsageError):
        chosen_sizes(Bundle.open(tiny_bundle), [choice])


def test_every_library_multiplies_what_it_says_that_it_can() -> None:
    worker = PeaksWorker()
    found = {
        (library, precision): worker.product(precision, library, 64)
        for library in ("torch", "onnxruntime")
        for precision in ("fp32", "bf16", "int8")
    }
    assert found.pop(("onnxruntime", "bf16")) is None
    assert all(speed is not None and speed > 0 for speed in found.values())


def test_limit_prints_the_peaks_and_a_floor_for_each_variant(
    run_cli: Callable[..., CompletedProcess[str]], tiny_bundle: Path
) -> None:
    done = run_cli("bench", "limit", "--bundle", tiny_bundle, "--axis", "sequence=12", "--json")
    assert done.returncode == 0, done.stderr
    limit = json.loads(done.stdout)
    assert limit["sizes"]["sequence"] == 12 and limit["sizes"]["batch"] == 1
    assert {"fp32", "bf16", "int8"} == set(limit["peaks"]["products"]) | set(limit["peaks"]["missing"])
    bundle = Bundle.open(tiny_bundle)
    rows = {(row["graph"], row["variant"], row["precision"]): row["floor"] for row in limit["rows"]}
    for artifact in bundle.manifest.artifacts:
        assert (artifact.graph, artifact.variant, str(Precision(artifact.variant.partition("-")[0]))) in rows
    assert rows["text_encoder", "fp32", "fp32"]["seconds"] > 0 and rows["text_encoder", "fp16", "fp16"] is None


def test_limit_refuses_a_size_that_the_graphs_do_not_take(
    run_cli: Callable[..., CompletedProcess[str]], tiny_bundle: Path
) -> None:
    assert run_cli("bench", "limit", "--bundle", tiny_bundle, "--axis", "sequence=9999").returncode == 2
