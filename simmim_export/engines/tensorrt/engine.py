"""TensorRT as the other packages see it: is it here, is a plan here and for this device, compile one, open one.

Knows what its neighbours do. Must not know bundles beyond the folder that plans are kept in. TensorRT and CUDA are imported
when they are needed and not before, so that asking for this engine where it cannot run costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.engines.base import LATENCY, Session, no_such_precision, require_hint
from simmim_export.engines.failures import running
from simmim_export.engines.tensorrt import plan as plans
from simmim_export.engines.tensorrt.proof import require_precision
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.spec import GraphSpec, Precision
from simmim_export.system.files import digest, replacing

if TYPE_CHECKING:
    from simmim_export.engines.tensorrt.session import TrtSession

OLDEST = (10, 12)
# Each of them brings the module tensorrt.
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_VARIANTS = {Precision.FP32: "fp32", Precision.FP16: "fp16", Precision.INT8: "int8-s8"}


def _missing() -> list[str]:
    """The packages that are not installed. Imports nothing but the namespace ``cuda``."""
    found = []
    for distribution, module in (("tensorrt", "tensorrt"), ("cuda-bindings", "cuda.bindings")):
        try:
            here = find_spec(module) is not None
        except ModuleNotFoundError:
            here = False
        if not here:
            found.append(distribution)
    return found


def _too_old() -> str | None:
    """The version of TensorRT if it is older than this engine can use; None where nobody says."""
    for distribution in DISTRIBUTIONS:
        try:
            text = version(distribution)
        except PackageNotFoundError:
            continue
        if tuple(int(part) for part in text.split(".")[:2]) < OLDEST:
            return text
    return None


def target() -> plans.Target:
    """This device. Raise :class:`EngineUnavailable` where TensorRT's libraries or the GPU do not answer."""
    try:
        import tensorrt

        from simmim_export.engines.tensorrt import device
    except ImportError as error:
        raise EngineUnavailable(f"TensorRT cannot be loaded: {error}", fix=TrtEngine.install) from error
    gpu, sm, driver = device.describe()
    return plans.Target(gpu, sm, driver, tensorrt.__version__)


class TrtEngine:
    """NVIDIA TensorRT."""

    name = "trt"
    install = "on a machine with an NVIDIA GPU: pip install 'simmim-export[gpu]' (JetPack from 7 on brings its own)"
    reads_checkpoint = False
    saturates = False
    hints: tuple[str, ...] = (LATENCY,)

    def why_unavailable(self) -> str | None:
        """What is missing: packages, then a version that is new enough, then a GPU."""
        if missing := _missing():
            return f"not installed: {', '.join(missing)}"
        if (old := _too_old()) is not None:
            return f"TensorRT {old} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
        from cuda.bindings import runtime as cuda

        error, count = cuda.cudaGetDeviceCount()
        if error != cuda.cudaError_t.cudaSuccess or not count:
            return f"no NVIDIA GPU answers ({error.name})"
        return None

    def variant(self, precision: Precision) -> str:
        """fp32 and fp16 graphs as they are; int8 with symmetric activations."""
        if precision not in _VARIANTS:
            raise no_such_precision(self.name, precision, tuple(_VARIANTS))
        return _VARIANTS[precision]

    def compiled(self, root: Path, spec: GraphSpec, precision: Precision, sha256: str) -> Path:
        """The plan of ``spec`` in the bundle at ``root``, from the graph with that digest; raise
        :class:`EngineUnavailable` or :class:`BundleError`, with the command that builds it, where there is none."""
        path = plans.plan_path(root, spec.name, precision)
        plans.require_source(path, plans.read(path), sha256)
        return path

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TrtSession:
        """Open a plan that :meth:`compile` wrote. Raise :class:`EngineUnavailable` for one of another device or version, and
        :class:`BundleError` for one that is damaged or of another precision, before TensorRT reads it."""
        self.variant(precision)
        require_hint(self.name, hint, self.hints)
        sidecar = plans.read(path)
        plans.require_graph(path, sidecar, spec.name, precision)
        plans.require_target(path, sidecar, target())
        plans.require_whole(path, sidecar)
        from simmim_export.engines.tensorrt.session import TrtSession

        profile = plans.require_profile(path, sidecar, spec)
        with running(self.name, spec, where=path, opens=True):
            return TrtSession(path.read_bytes(), spec, profile)

    def up_to_date(self, path: Path, spec: GraphSpec, precision: Precision, sha256: str, request: Request) -> bool:
        """Whether the plan at ``path`` is what :meth:`compile` would make of the same graph here and now."""
        try:
            sidecar = plans.read(path)
            plans.require_graph(path, sidecar, spec.name, precision)
            plans.require_source(path, sidecar, sha256)
            plans.require_target(path, sidecar, target())
            plans.require_whole(path, sidecar)
        except (BundleError, EngineUnavailable):
            return False
        return sidecar.recipe == request.recipe(spec)

    def compile(
        self,
        graph: Path,
        spec: GraphSpec,
        precision: Precision,
        path: Path,
        request: Request,
        prove: Callable[[Session], dict[str, Any]],
        where: Callable[[str], str],
        watch: Callable[[str, int, int], None],
    ) -> plans.Sidecar:
        """Build the ONNX file ``graph`` to the plan ``path``, and keep it only if it computes in ``precision`` and ``prove``
        returns (the figures of its parity).

        Raise :class:`GateFailed` for a plan that does not, and what :func:`build.build_plan` raises. ``where`` names the
        PyTorch module of a node; ``watch`` is told of progress.
        """
        here = target()
        from simmim_export.engines.tensorrt.build import build_plan
        from simmim_export.engines.tensorrt.device import free_memory
        from simmim_export.engines.tensorrt.session import TrtSession

        plan = build_plan(graph, spec, request, here, free_memory(), where, watch)
        session = TrtSession(plan, spec, request.profile(spec))
        try:
            proof = session.precision_proof()
            quantised = b"QuantizeLinear" in graph.read_bytes()
            require_precision(proof, precision, quantised, spec.name, graph)
            parity = prove(session)
        finally:
            session.close()
        # In this order: a plan without its own sidecar is refused, a sidecar without its plan too.
        path.parent.mkdir(parents=True, exist_ok=True)
        plans.sidecar_path(path).unlink(missing_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(plan)
        recipe = request.recipe(spec)
        sidecar = plans.Sidecar(
            graph=spec.name,
            graph_sha256=digest(graph),
            precision=precision,
            sha256=digest(path),
            bytes=len(plan),
            target=here,
            recipe=recipe,
            executed=proof.executed,
            parity=parity,
        )
        plans.write(path, sidecar)
        return sidecar
