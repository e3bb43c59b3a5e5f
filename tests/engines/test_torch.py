"""PyTorch in FP16, compiled and on a GPU. The code for a GPU is also tested with the CPU as its device."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import golden_of, make_checkpoint

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.engines import get_engine
from simmim_export.engines.base import GpuTimed
from simmim_export.engines.torch import TorchCudaEngine, TorchEngine
from simmim_export.errors import EngineUnavailable
from simmim_export.proof.parity import compare
from simmim_export.spec import Precision


class HalfOnCpu(TorchEngine):
    """FP16 as on a GPU."""

    precisions = TorchCudaEngine.precisions


class CompiledOnCpu(TorchEngine):
    inductor = True


@pytest.fixture(scope="module")
def every_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from simmim_export.models.simmim.heads import HEADS

    return make_checkpoint(tmp_path_factory.mktemp("torch") / "every.pt", heads=tuple(HEADS), frames=8)


def test_fp16_agrees_on_every_graph(every_bundle: Path, every_checkpoint: Path) -> None:
    cases = golden_of(every_bundle).cases
    # The first and the last case: FP16 is slow on a CPU.
    first, *_, last = cases
    golden = Golden({first: cases[first], last: cases[last]})
    for spec in Bundle.open(every_bundle).manifest.graphs:
        session = HalfOnCpu().open(every_checkpoint, spec, precision=Precision.FP16)
        report = compare(session, spec, golden=golden, precision=Precision.FP16)
        assert report.passed and report.scaled_error > 0, report
        assert set(session.precision_proof().executed) == {"float16"}


def test_a_compiled_module_agrees(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    spec = Bundle.open(tiny_bundle).manifest.graph("head.match")
    session = CompiledOnCpu().open(tiny_checkpoint, spec, precision=Precision.FP32)
    assert compare(session, spec, golden=golden_of(tiny_bundle), precision=Precision.FP32).passed
    assert not isinstance(session, GpuTimed)
    session.close()
    assert not session.precision_proof().executed


@pytest.mark.parametrize("name", ["torch@cuda", "torch-compile@cuda"])
def test_without_a_gpu_asking_and_opening_are_refused(name: str, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    engine = get_engine(name)
    if engine.why_unavailable() is None:
        pytest.skip("there is a GPU here")
    assert "NVIDIA driver" in str(engine.why_unavailable())
    spec = Bundle.open(tiny_bundle).manifest.graph("head.match")
    with pytest.raises(EngineUnavailable):
        engine.open(tiny_checkpoint, spec, precision=Precision.FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["torch@cuda", "torch-compile@cuda"])
def test_parity_and_clock_on_the_gpu(name: str, precision: str, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    engine, asked = get_engine(name), Precision(precision)
    reason = engine.why_unavailable()
    if reason is not None:
        pytest.skip(f"engine {name} cannot run here: {reason}")
    for spec in Bundle.open(tiny_bundle).manifest.graphs:
        session, golden = engine.open(tiny_checkpoint, spec, precision=asked), golden_of(tiny_bundle)
        assert compare(session, spec, golden=golden, precision=asked).passed
        assert isinstance(session, GpuTimed) and session.gpu_seconds(golden.feeds(next(iter(golden.cases)), spec)) > 0
