"""TensorRT as the other packages see it: whether it can run here, and how to compile, find and open a plan file.

TensorRT and CUDA are imported only when they are needed, so asking for this engine costs nothing on a machine without them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.engines.base import LATENCY, Session
from simmim_export.engines.checks import require_hint, require_variants
from simmim_export.engines.failures import running
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.engines.tensorrt.proof import require_precision
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.conflicts import installed
from simmim_export.system.files import digest
from simmim_export.system.outputs import replacing
from simmim_export.system.watch import Watch

if TYPE_CHECKING:
    from simmim_export.engines.tensorrt.session import TrtSession

OLDEST = (10, 12)
# Each of them brings the module tensorrt.
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_VARIANTS = {
    Precision.FP32: (Variant.FP32,),
    Precision.FP16: (Variant.FP16,),
    Precision.INT8: (Variant.INT8_S8,),
}


def _missing() -> list[str]:
    """The packages that are not installed. Imports nothing but the namespace ``cuda``."""
    missing = []
    for distribution, module in (("tensorrt", "tensorrt"), ("cuda-bindings", "cuda.bindings")):
        try:
            here = find_spec(module) is not None
        except ModuleNotFoundError:
            here = False
        if not here:
            missing.append(distribution)
    return missing


def _too_old() -> str | None:
    """The version of TensorRT if it is older than this engine supports, else None; None too if no package names its version."""
    versions = (text for distribution in DISTRIBUTIONS if (text := installed(distribution)))
    return next((text for text in versions if tuple(map(int, text.split(".")[:2])) < OLDEST), None)


def target() -> plan_files.Target:
    """This device. Raise :class:`EngineUnavailable` if TensorRT cannot be loaded or the GPU does not answer."""
    try:
        import tensorrt

        from simmim_export.engines.tensorrt import device
    except ImportError as error:
        raise EngineUnavailable(f"TensorRT cannot be loaded: {error}", fix=TrtEngine.install) from error
    gpu, sm, driver = device.describe()
    return plan_files.Target(gpu, sm, driver, tensorrt.__version__)


def _usable_sidecar(path: Path, spec: GraphSpec, *, precision: Precision) -> plan_files.Sidecar:
    """The sidecar of the plan file at ``path``. Raise :class:`EngineUnavailable` if that is for another device or version, and
    :class:`BundleError` if it is damaged or for another graph or precision."""
    sidecar = plan_files.read_sidecar(path)
    plan_files.require_graph(path, sidecar, graph=spec.name, precision=precision)
    plan_files.require_target(path, sidecar, here=target())
    plan_files.require_whole(path, sidecar)
    return sidecar


class TrtEngine:
    """NVIDIA TensorRT."""

    name = "trt"
    install = "on a machine with an NVIDIA GPU: pip install 'simmim-export[gpu]' (JetPack from 7 on brings its own)"
    reads_checkpoint = False
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

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """FP32, FP16, and INT8 with symmetric activations."""
        return require_variants(self.name, precision, variants=_VARIANTS)

    def compiled(self, root: Path, spec: GraphSpec, *, precision: Precision, sha256: str) -> Path:
        """The plan file of ``spec``; see :meth:`~simmim_export.engines.base.CompilingEngine.compiled`."""
        path = plan_files.plan_file_path(root, spec.name, precision=precision)
        plan_files.require_source(path, plan_files.read_sidecar(path), sha256=sha256)
        return path

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TrtSession:
        """Open a plan file that :meth:`compile` wrote. Raise what :func:`_usable_sidecar` raises before TensorRT reads it."""
        self.variants(precision)
        require_hint(self.name, hint, has=self.hints)
        sidecar = _usable_sidecar(path, spec, precision=precision)
        from simmim_export.engines.tensorrt.session import TrtSession

        profile = plan_files.require_profile(path, sidecar, spec=spec)
        with running(self.name, spec, where=path, opens=True):
            return TrtSession(path.read_bytes(), spec, profile=profile)

    def up_to_date(self, path: Path, spec: GraphSpec, *, precision: Precision, sha256: str, request: Request) -> bool:
        """Whether :meth:`compile` would make the plan file at ``path`` again from the graph with the digest ``sha256``."""
        try:
            sidecar = _usable_sidecar(path, spec, precision=precision)
            plan_files.require_source(path, sidecar, sha256=sha256)
        except (BundleError, EngineUnavailable):
            return False
        return sidecar.recipe == request.recipe(spec)

    def compile(
        self,
        graph: Path,
        spec: GraphSpec,
        *,
        precision: Precision,
        path: Path,
        request: Request,
        prove: Callable[[Session], dict[str, Any]],
        module_of: Callable[[str], str],
        watch: Watch,
    ) -> plan_files.Sidecar:
        """Build the ONNX file ``graph`` to the plan file ``path``. Keep it only if it computes in ``precision`` and ``prove``
        returns (the figures of its parity).

        Raise :class:`GateFailed` for a plan file that computes in another precision, and what ``prove`` and
        :func:`~simmim_export.engines.tensorrt.build.build_plan_file` raise. ``module_of`` gives the PyTorch module of a node;
        ``watch`` is told the progress.
        """
        here = target()
        from simmim_export.engines.tensorrt.build import build_plan_file
        from simmim_export.engines.tensorrt.device import free_memory
        from simmim_export.engines.tensorrt.session import TrtSession

        content = build_plan_file(
            graph, spec, request=request, target=here, free=free_memory(), module_of=module_of, watch=watch
        )
        session = TrtSession(content, spec, profile=request.profile(spec))
        try:
            proof = session.precision_proof()
            quantized = b"QuantizeLinear" in graph.read_bytes()
            require_precision(proof, precision, quantized=quantized, graph=spec.name, where=graph)
            parity = prove(session)
        finally:
            session.close()
        # In this order: a plan file without its own sidecar is refused, and so is a sidecar without its plan file.
        path.parent.mkdir(parents=True, exist_ok=True)
        plan_files.sidecar_path(path).unlink(missing_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        sidecar = plan_files.Sidecar(
            graph=spec.name,
            graph_sha256=digest(graph),
            precision=precision,
            sha256=digest(path),
            bytes=len(content),
            target=here,
            recipe=request.recipe(spec),
            executed=proof.executed,
            parity=parity,
        )
        plan_files.write_sidecar(path, sidecar)
        return sidecar
