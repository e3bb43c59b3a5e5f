"""What every engine must satisfy. A new row in ENGINES is tested here without changing a line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.bundle.onnx_file import check_graph_file
from simmim_export.engines import ENGINES, get_engine, require_engine
from simmim_export.engines.base import CompilingEngine, Engine, Session
from simmim_export.engines.tensorrt import TrtEngine
from simmim_export.engines.tensorrt.plan_file import plan_file_path
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import BundleError, EngineUnavailable, SimmimError, UsageError
from simmim_export.proof.parity import compare
from simmim_export.spec import TOLERANCES, Axis, GraphSpec, Precision, TensorSpec, Variant


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return get_engine(request.param)


def opened(engine: Engine, bundle: Bundle, graph: str, precision: Precision, scratch: Path) -> Session:
    """A session from the bundle's graph, or from the file that a compiling engine makes of it under ``scratch``."""
    spec, artifact = bundle.manifest.graph(graph), bundle.artifact(graph, *engine.variants(precision))
    if not isinstance(engine, TrtEngine):
        assert not isinstance(engine, CompilingEngine)
        return engine.open(bundle.file(artifact.path), spec, precision=precision)
    with pytest.raises(EngineUnavailable):
        engine.compiled(scratch, spec, precision=precision, sha256=artifact.sha256)
    engine.compile(
        bundle.file(artifact.path),
        spec,
        precision=precision,
        path=plan_file_path(scratch, graph, precision=precision),
        request=Request(),
        prove=lambda session: {},
        module_of=lambda node: "",
        watch=lambda step, done, total: None,
    )
    compiled = engine.compiled(scratch, spec, precision=precision, sha256=artifact.sha256)
    return engine.open(compiled, spec, precision=precision)


@pytest.fixture
def sessions(engine: Engine, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Session]:
    """A session for every graph of the tiny bundle; skipped with the reason if the engine cannot run."""
    reason = engine.why_unavailable()
    if reason is not None:
        pytest.skip(f"engine {engine.name} cannot run here: {reason}")
    bundle = Bundle.open(tiny_bundle)
    sessions = {}
    for spec in bundle.manifest.graphs:
        if engine.reads_checkpoint:
            sessions[spec.name] = engine.open(tiny_checkpoint, spec, precision=Precision.FP32)
        else:
            sessions[spec.name] = opened(engine, bundle, spec.name, Precision.FP32, tmp_path)
    return sessions


def test_an_engine_satisfies_the_protocol(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert ENGINES[engine.name][1] == type(engine).__name__
    assert engine.install


def test_every_precision_is_a_variant_or_an_error(engine: Engine) -> None:
    for precision in Precision:
        try:
            variants = engine.variants(precision)
            assert variants and len(set(variants)) == len(variants)
            for variant in variants:
                assert isinstance(variant, Variant) and (variant.precision is precision or not engine.reads_checkpoint)
        except EngineUnavailable as error:
            assert str(precision) in error.what and error.fix


def test_an_unavailable_engine_says_what_to_install(engine: Engine) -> None:
    if engine.why_unavailable() is None:
        assert require_engine(engine.name).name == engine.name
        return
    with pytest.raises(EngineUnavailable) as caught:
        require_engine(engine.name)
    assert caught.value.fix == engine.install


def test_parity_of_every_graph(sessions: dict[str, Session], tiny_bundle: Path) -> None:
    golden = golden_of(tiny_bundle)
    for spec in Bundle.open(tiny_bundle).manifest.graphs:
        assert isinstance(sessions[spec.name], Session)
        assert compare(sessions[spec.name], spec, golden=golden, precision=Precision.FP32).passed


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_one_row_of_a_shared_input_serves_the_whole_batch(
    engine: Engine, sessions: dict[str, Session], tiny_bundle: Path, tmp_path: Path, precision: Precision
) -> None:
    bundle = Bundle.open(tiny_bundle)
    shared = {spec.name: [t for t in spec.inputs if t.shared] for spec in bundle.manifest.graphs}
    assert [name for name, tensors in shared.items() if tensors] == ["fusion"]
    session, (tensor,), spec = sessions["fusion"], shared["fusion"], bundle.manifest.graph("fusion")
    if precision is Precision.INT8:
        try:
            session = opened(engine, bundle, "fusion", precision, tmp_path)
        except EngineUnavailable as error:
            pytest.skip(str(error).splitlines()[0])
    rng = np.random.default_rng(0)
    for rows in (1, 2, 8, 3):
        sizes = {"batch": rows, "sequence": 5}
        feeds = {t.name: rng.normal(size=t.resolve(sizes)).astype(t.dtype) for t in spec.inputs}
        feeds["attention_mask"] = (np.arange(5) < rng.integers(3, 6, (rows, 1))).astype(np.int64)
        feeds[tensor.name] = feeds[tensor.name][:1]
        repeated = feeds | {tensor.name: np.repeat(feeds[tensor.name], rows, axis=0)}
        one, each = session.run(feeds), session.run(repeated)
        for name in each:
            np.testing.assert_allclose(one[name], each[name], atol=1e-5)
    with pytest.raises(UsageError):
        session.run(feeds | {tensor.name: np.repeat(feeds[tensor.name], 2, axis=0)})


@pytest.mark.parametrize(("precision", "kinds"), [("bf16", {"bfloat16"}), ("int8", {"int8", "uint8"})])
def test_a_lower_precision_agrees_and_really_runs(
    engine: Engine, tiny_bundle: Path, precision: str, kinds: set[str], tmp_path: Path
) -> None:
    asked, bundle = Precision(precision), Bundle.open(tiny_bundle)
    try:
        engine.variants(asked)
    except EngineUnavailable as error:
        pytest.skip(str(error).splitlines()[0])
    if engine.why_unavailable() is not None:
        pytest.skip(f"engine {engine.name} cannot run here")
    golden = golden_of(tiny_bundle)
    for spec in bundle.manifest.graphs:
        session = opened(engine, bundle, spec.name, asked, tmp_path)
        report = compare(session, spec, golden=golden, precision=asked)
        assert report.passed, report
        # A head is small, so INT8 leaves it in FP32.
        if not spec.name.startswith("head."):
            assert report.scaled_error > TOLERANCES[Precision.FP32].scaled_error
            assert kinds & set(session.precision_proof().executed)


def full_range(kind: str, path: Path) -> GraphSpec:
    """Write a graph with one product to ``path``: U8 activations by S8 weights of -127 and 127, all with scale 1."""
    source, target = (["b", 64, 2, 2], ["b", 32, 2, 2]) if kind == "Conv" else (["b", 64], ["b", 32])
    weight = np.random.default_rng(0).choice([127, 127, 127, -127], (64, 32)).astype(np.int8)
    constants = {
        "w": weight.T[:, :, None, None] if kind == "Conv" else weight,
        "ones": np.ones(32, np.float32),
        "zeros": np.zeros(32, np.int8),
        "one": np.float32(1),
        "zero": np.uint8(0),
        # Kernels of convolutions give quantized values.
        "step": np.float32(2**13),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x.levels"]),
        helper.make_node("DequantizeLinear", ["x.levels", "one", "zero"], ["x.rounded"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["w.rounded"], axis=0 if kind == "Conv" else 1),
        helper.make_node(kind, ["x.rounded", "w.rounded"], ["product" if kind == "Conv" else "y"]),
    ]
    if kind == "Conv":
        nodes.append(helper.make_node("QuantizeLinear", ["product", "step", "zero"], ["y.levels"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y.levels", "step", "zero"], ["y"]))
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", source), ("y", target)))
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, path)
    inputs, outputs = TensorSpec("x", "float32", tuple(source)), TensorSpec("y", "float32", tuple(target))
    return GraphSpec("g", (inputs,), (outputs,), (Axis("b", 1, 4),))


def require_int8_dot(engine: Engine) -> None:
    """Skip the test unless ``engine`` takes the variant int8-dot here."""
    if engine.why_unavailable() is not None:
        pytest.skip(f"engine {engine.name} cannot run here")
    try:
        variants = engine.variants(Precision.INT8)
    except EngineUnavailable as error:
        pytest.skip(str(error).splitlines()[0])
    if Variant.INT8_DOT not in variants:
        pytest.skip(f"engine {engine.name} does not take int8-dot here")


def test_a_bundle_may_hold_weights_in_blocks_and_engines_multiply_them_in_int8(engine: Engine, tmp_path: Path) -> None:
    """Float activations by INT8 weights with a scale for 128 rows each: engines quantize the activations at run time.

    OpenVINO multiplies in float, without saying so, if a block is smaller than its group of activations.
    """
    require_int8_dot(engine)
    random, path = np.random.default_rng(0), tmp_path / "x.onnx"
    constants = {
        "w": random.integers(-127, 128, (256, 64)).astype(np.int8),
        "scales": random.uniform(0.001, 0.01, (2, 64)).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scales"], ["w.rounded"], axis=0, block_size=128),
        helper.make_node("MatMul", ["x", "w.rounded"], ["y"]),
    ]
    shapes = {"x": ["b", "s", 256], "y": ["b", "s", 64]}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items())
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.save(model, path)
    inputs, outputs = (TensorSpec(name, "float32", tuple(shape)) for name, shape in shapes.items())
    spec = GraphSpec("g", (inputs,), (outputs,), (Axis("b", 1, 4), Axis("s", 1, 8)))
    check_graph_file(path, spec)
    feeds = {"x": random.normal(size=(2, 8, 256)).astype(np.float32)}
    session = engine.open(path, spec, precision=Precision.INT8)
    assert {"int8", "uint8"} & set(session.precision_proof().executed)
    (exact,) = ReferenceEvaluator(str(path)).run(["y"], feeds)
    error = np.linalg.norm(session.run(feeds)["y"] - exact) / np.linalg.norm(exact)
    # The activations are rounded to 8 bits, which a float product would not do. An error of 0.006 was seen.
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_products_of_full_range_are_exact_where_int8_dot_runs(engine: Engine, kind: str, tmp_path: Path) -> None:
    """Kernels without VNNI add two products in 16 bits, which two products of 255 and 127 exceed."""
    require_int8_dot(engine)
    path = tmp_path / "x.onnx"
    spec = full_range(kind, path)
    x = np.random.default_rng(1).integers(200, 256, spec.inputs[0].resolve({"b": 3})).astype(np.float32)
    session = engine.open(path, spec, precision=Precision.INT8, threads=1)
    assert {"int8", "uint8"} & set(session.precision_proof().executed)
    expected = ReferenceEvaluator(str(path)).run(["y"], {"x": x})[0]
    assert len(np.unique(expected)) > 20
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-6, atol=0)


def test_outputs_belong_to_the_caller(sessions: dict[str, Session], tiny_bundle: Path) -> None:
    """A second run must not change what the first returned."""
    golden = golden_of(tiny_bundle)
    session = sessions["image_encoder"]
    first = session.run({"pixels": golden.cases["batch 1, sequence 3"]["pixels"]})
    kept = {name: value.copy() for name, value in first.items()}
    session.run({"pixels": np.zeros_like(golden.cases["batch 1, sequence 3"]["pixels"])})
    assert all(np.array_equal(first[name], value) for name, value in kept.items())


def test_nothing_runs_between_two_calls(engine: Engine, sessions: dict[str, Session], tiny_bundle: Path) -> None:
    """Threads that spin would hold the processor while the next graph of a pipeline wants it, and drain a battery."""
    if engine.reads_checkpoint:
        pytest.skip("PyTorch is the reference, and is not deployed")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("with one processor no second thread spins")
    golden, spec = golden_of(tiny_bundle), Bundle.open(tiny_bundle).manifest.graph("fusion")
    feeds = golden.feeds(max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size), spec)
    used = []
    for _ in range(3):
        sessions["fusion"].run(feeds)
        before = time.process_time()
        time.sleep(0.2)
        used.append(time.process_time() - before)
    # ONNX Runtime's threads spin for 0.04 s unless they are told to stop.
    assert min(used) < 0.01


def test_feeds_that_do_not_fit_are_refused(sessions: dict[str, Session]) -> None:
    ids, long = np.ones((2, 5), np.int64), np.ones((2, 21), np.int64)
    text = sessions["text_encoder"]
    for feeds, expected in [
        ({"input_ids": ids}, "'attention_mask'"),
        ({"input_ids": ids.astype(np.int32), "attention_mask": ids}, "input_ids: int64"),
        ({"input_ids": ids[0], "attention_mask": ids}, "input_ids"),
        ({"input_ids": ids, "attention_mask": ids[:1]}, "'batch' is 2 .* 1 in 'attention_mask'"),
        ({"input_ids": ids, "attention_mask": ids[:, :4]}, "'sequence' is 5 .* 4 in 'attention_mask'"),
        # Without a row there is no answer, and the mean of no tokens is NaN. Beyond the longest text engines fail or answer
        # zeros.
        ({"input_ids": ids[:0], "attention_mask": ids[:0]}, "'batch' is empty|batch 0"),
        ({"input_ids": ids[:, :0], "attention_mask": ids[:, :0]}, "'sequence' is empty|sequence 0"),
        ({"input_ids": long, "attention_mask": long}, "'sequence' is 21, .* 20|sequence 21"),
    ]:
        with pytest.raises(UsageError, match=expected):
            text.run(feeds)


def test_a_batch_may_be_larger_than_proven(engine: Engine, sessions: dict[str, Session]) -> None:
    if isinstance(engine, TrtEngine):
        pytest.skip("a plan file is built for a largest batch")
    ids = np.random.default_rng(0).integers(4, 20, (20, 5))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    many = sessions["text_encoder"].run(feeds)["text_embed"]
    alone = [sessions["text_encoder"].run({n: a[i : i + 1] for n, a in feeds.items()})["text_embed"] for i in (0, 19)]
    np.testing.assert_allclose(many[[0, 19]], np.concatenate(alone), atol=1e-5)


def test_precision_proof_is_read_from_the_engine(sessions: dict[str, Session]) -> None:
    for session in sessions.values():
        proof = session.precision_proof()
        assert proof.executed and sum(proof.executed.values()) > 0 and proof.source
        assert any("float" in kind for kind in proof.executed)
        assert not any("float16" in kind or kind in ("bfloat16", "int8") for kind in proof.executed)


def test_a_closed_session_is_an_error(sessions: dict[str, Session], tiny_bundle: Path) -> None:
    golden, bundle = golden_of(tiny_bundle), Bundle.open(tiny_bundle)
    for name, session in sessions.items():
        session.close()
        session.close()
        with pytest.raises(UsageError, match=name) as caught:
            session.run(golden.feeds("batch 1, sequence 3", bundle.manifest.graph(name)))
        assert caught.value.fix


def test_too_few_threads_are_an_error(engine: Engine, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    if isinstance(engine, TrtEngine) or engine.why_unavailable() is not None:
        pytest.skip(f"engine {engine.name} cannot run here, or has no threads")
    path = tiny_checkpoint if engine.reads_checkpoint else tiny_bundle / "graphs/head.match.fp32.onnx"
    for threads in (0, -1):
        with pytest.raises(UsageError, match=f"threads is {threads}"):
            engine.open(
                path, Bundle.open(tiny_bundle).manifest.graph("head.match"), precision=Precision.FP32, threads=threads
            )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which each engine's package is installed but fails to import, like one whose libraries are missing."""
    folder = tmp_path_factory.mktemp("broken")
    errors = {
        "onnxruntime": "ImportError('libtbb.so.12: cannot open shared object file')",
        "openvino": "OSError('/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34\\' not found')",
        "torchvision": "RuntimeError('operator torchvision::nms does not exist')",
    }
    for package, error in errors.items():
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(f"raise {error}\n")
    # A stand-in, because the real one takes seconds to import.
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("")
    return {**os.environ, "PYTHONPATH": str(folder)}


REASONS = {"ort": "libtbb.so.12: cannot open", "openvino": "GLIBC_2.34' not found", "torch": "torchvision::nms"}


def test_doctor_imports_installed_packages(run_cli, broken: dict[str, str]) -> None:
    done = run_cli("export", "doctor", "--json", env=broken)
    assert done.returncode == 0, done.stderr
    for name, reason in REASONS.items():
        state = json.loads(done.stdout)["engines"][name]
        assert not state["available"] and reason in state["reason"] and state["install"]


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_broken_package_makes_its_engine_unavailable(
    run_cli, broken: dict[str, str], tiny_bundle: Path, tiny_checkpoint: Path, name: str
) -> None:
    more = ("--checkpoint", tiny_checkpoint) if name == "torch" else ()
    done = run_cli("export", "embed", tiny_bundle, "--text", "a circle", "--engine", name, *more, env=broken)
    assert done.returncode == 3 and not done.stdout and "Traceback" not in done.stderr
    assert REASONS[name] in done.stderr and f"engine '{name}'" in done.stderr
    assert get_engine(name).install in " ".join(done.stderr.split())


def test_a_damaged_file_is_an_input_error(engine: Engine, tiny_bundle: Path, tmp_path: Path) -> None:
    if engine.why_unavailable() is not None:
        pytest.skip(f"engine {engine.name} cannot run here")
    path = tmp_path / "broken.onnx"
    spec = Bundle.open(tiny_bundle).manifest.graph("image_encoder")
    for content in (b"", b"not a graph", (tiny_bundle / "graphs/image_encoder.fp32.onnx").read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(SimmimError) as caught:
            engine.open(path, spec, precision=Precision.FP32)
        assert caught.value.exit_code == 5 and isinstance(caught.value, BundleError) != engine.reads_checkpoint


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        get_engine("tpu")


def test_one_engine_does_not_import_another() -> None:
    import subprocess

    code = "import sys; from simmim_export.engines import get_engine; get_engine('trt'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnxruntime", "simmim_export.engines.ort"} & set(loaded)


def test_every_hint_works_or_is_an_error(engine: Engine, sessions: dict[str, Session], tiny_bundle: Path) -> None:
    from simmim_export.engines.base import LATENCY, THROUGHPUT

    assert LATENCY in engine.hints and set(engine.hints) <= {LATENCY, THROUGHPUT}
    spec = Bundle.open(tiny_bundle).manifest.graph("image_encoder")
    for hint in {LATENCY, THROUGHPUT, "speed"} - set(engine.hints):
        with pytest.raises(SimmimError, match=hint) as caught:
            engine.open(tiny_bundle / "graphs/image_encoder.fp32.onnx", spec, precision=Precision.FP32, hint=hint)
        assert caught.value.exit_code in (2, 3) and caught.value.fix
