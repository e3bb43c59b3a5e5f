"""TensorRT as the other packages see it: whether it can run here, and how to compile, find and open a plan file.

TensorRT and CUDA are imported only when they are needed, so asking for this engine costs nothing on a machine without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from simmim_export.engines.base import LATENCY, Session
from simmim_export.engines.checks import require_hint, require_variants
from simmim_export.engines.failures import running
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.engines.tensorrt.library import RTX, TENSORRT, Library, use
from simmim_export.engines.tensorrt.proof import read_layer_list, require_precision
from simmim_export.engines.tensorrt.request import COMPATIBILITY, Profile, Request
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.files import digest
from simmim_export.system.outputs import replacing
from simmim_export.system.watch import Watch

if TYPE_CHECKING:
    from simmim_export.engines.tensorrt.session import TrtSession

_VARIANTS = {
    Precision.FP32: (Variant.FP32,),
    Precision.FP16: (Variant.FP16,),
    Precision.INT8: (Variant.INT8_S8_FP16, Variant.INT8_S8),
}


def _why_no_cuda() -> str | None:
    """None if NVIDIA's bindings are installed, else the reason. Imports nothing but the namespace ``cuda``."""
    try:
        here = find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        here = False
    return None if here else "not installed: cuda-bindings"


def _why_no_gpu() -> str | None:
    from cuda.bindings import runtime as cuda

    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        return f"no NVIDIA GPU answers ({error.name})"
    return None


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What is known about a plan file: what it runs on, its layers by type, and the figures of its parity, None if it was never
    run."""

    target: plan_files.Target
    executed: Mapping[str, int]
    parity: Mapping[str, Any] | None


class TrtEngine:
    """NVIDIA TensorRT: builds plan files on the GPU that they run on, and proves them there."""

    name = "trt"
    library: ClassVar[Library] = TENSORRT
    install = "on a machine with an NVIDIA GPU: pip install 'simmim-export[gpu]' (JetPack from 7 on brings its own)"
    reads_checkpoint = False
    hints: tuple[str, ...] = (LATENCY,)

    def why_unavailable(self) -> str | None:
        """What is missing: packages, then a version that is new enough, then a GPU."""
        return self.library.why_missing() or _why_no_cuda() or _why_no_gpu()

    def why_no_build(self) -> str | None:
        """None if this machine can build plan files, else the reason in one line."""
        return self.why_unavailable()

    def require_request(self, request: Request) -> None:
        """Raise :class:`UsageError` for an option that this engine does not have."""
        if request.targets:
            fix = "leave --target out, or build with --engine trt-rtx"
            raise UsageError("trt builds for the GPU of this machine, not for one that is named", fix=fix)

    def here(self) -> plan_files.Target:
        """This device. Raise :class:`EngineUnavailable` if TensorRT cannot be loaded or the GPU does not answer."""
        version = use(self.library).__version__
        try:
            from simmim_export.engines.tensorrt import device
        except ImportError as error:
            raise EngineUnavailable(f"CUDA cannot be loaded: {error}", fix=self.install) from error
        gpu, sm, driver = device.describe()
        return plan_files.Target(library=self.library.title, version=version, sms=(sm,), gpu=gpu, driver=driver)

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """FP32, FP16, and INT8 with symmetric activations."""
        return require_variants(self.name, precision, variants=_VARIANTS)

    def compiled(self, root: Path, spec: GraphSpec, *, precision: Precision, sha256: str) -> Path:
        """The plan file of ``spec``; see :meth:`~simmim_export.engines.base.CompilingEngine.compiled`."""
        path = plan_files.plan_file_path(root, spec.name, engine=self.name, precision=precision)
        plan_files.require_source(path, plan_files.read_sidecar(path), sha256=sha256)
        return path

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TrtSession:
        """Open a plan file that :meth:`compile` wrote.

        Before TensorRT reads it, raise :class:`EngineUnavailable` if it is for another device or version, and
        :class:`BundleError` if it is damaged or for another graph or precision.
        """
        self.variants(precision)
        require_hint(self.name, hint, has=self.hints)
        sidecar = self._usable_sidecar(path, spec, precision=precision)
        plan_files.require_target(path, sidecar, here=self.here())
        profile = plan_files.require_profile(path, sidecar, spec=spec)
        with running(self.name, spec, where=path, opens=True):
            return self._session(path.read_bytes(), spec, profile=profile, sha256=sidecar.sha256)

    def _session(self, content: bytes, spec: GraphSpec, *, profile: Profile, sha256: str) -> TrtSession:
        from simmim_export.engines.tensorrt.session import TrtSession

        return TrtSession(content, spec, profile=profile)

    @staticmethod
    def _usable_sidecar(path: Path, spec: GraphSpec, *, precision: Precision) -> plan_files.Sidecar:
        sidecar = plan_files.read_sidecar(path)
        plan_files.require_graph(path, sidecar, graph=spec.name, precision=precision)
        plan_files.require_whole(path, sidecar)
        return sidecar

    def _require_usable(self, path: Path, sidecar: plan_files.Sidecar) -> None:
        """Raise :class:`EngineUnavailable` if :meth:`compile` would now build for another device or version."""
        plan_files.require_target(path, sidecar, here=self.here())

    def up_to_date(self, path: Path, spec: GraphSpec, *, precision: Precision, sha256: str, request: Request) -> bool:
        """Whether the plan file at ``path`` can be kept: it was built from the graph with the digest ``sha256`` and with this
        ``request``, for the device that :meth:`compile` would build for now."""
        try:
            sidecar = self._usable_sidecar(path, spec, precision=precision)
            plan_files.require_source(path, sidecar, sha256=sha256)
            self._require_usable(path, sidecar)
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
        content, evidence = self._compile(
            graph, spec, precision=precision, request=request, prove=prove, module_of=module_of, watch=watch
        )
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
            target=evidence.target,
            recipe=request.recipe(spec),
            executed=evidence.executed,
            parity=evidence.parity,
        )
        plan_files.write_sidecar(path, sidecar)
        return sidecar

    def _compile(
        self,
        graph: Path,
        spec: GraphSpec,
        *,
        precision: Precision,
        request: Request,
        prove: Callable[[Session], dict[str, Any]],
        module_of: Callable[[str], str],
        watch: Watch,
    ) -> tuple[bytes, _Evidence]:
        """The content of a plan file, proven on the GPU of this machine."""
        here = self.here()
        from simmim_export.engines.tensorrt.build import Gpu, build_plan_file
        from simmim_export.engines.tensorrt.device import free_memory

        gpu = Gpu(here, free=free_memory())
        built = build_plan_file(graph, spec, request=request, on=gpu, module_of=module_of, watch=watch)
        session = self._session(built.content, spec, profile=request.profile(spec), sha256="")
        try:
            proof, multiplied = session.inspect()
            require_precision(
                proof, precision, quantized=built.quantized, multiplied=multiplied, graph=spec.name, where=graph
            )
            parity = prove(session)
        finally:
            session.close()
        return built.content, _Evidence(target=here, executed=proof.executed, parity=parity)


class TrtRtxEngine(TrtEngine):
    """NVIDIA TensorRT for RTX: builds plan files for GPUs that need not be here, so they are built and not run."""

    name = "trt-rtx"
    library = RTX
    install = (
        "pip install 'simmim-export[trt-rtx]', which builds on any machine; running needs an NVIDIA GPU and its driver"
    )

    def why_no_build(self) -> str | None:
        """None if the packages are installed: no GPU is needed."""
        return self.library.why_missing()

    def require_request(self, request: Request) -> None:
        """Raise :class:`UsageError` without a target, for one that this version does not build for, and for options that it
        ignores. Loads the library."""
        use(self.library)
        from simmim_export.engines.tensorrt.rtx import require_targets

        require_targets(request.targets)
        if request.compatibility != COMPATIBILITY[0]:
            what = "trt-rtx has no --hardware-compatibility"
            raise UsageError(what, fix="name every GPU generation with --target")

    def _require_usable(self, path: Path, sidecar: plan_files.Sidecar) -> None:
        if (sidecar.target.library, sidecar.target.version) != (self.library.title, use(self.library).__version__):
            raise EngineUnavailable("the plan file is of another version", where=path)

    def _session(self, content: bytes, spec: GraphSpec, *, profile: Profile, sha256: str) -> TrtSession:
        from simmim_export.engines.tensorrt.rtx import context_with_cache
        from simmim_export.engines.tensorrt.session import TrtSession

        return TrtSession(content, spec, profile=profile, engine=self.name, new_context=context_with_cache(sha256))

    def _compile(
        self,
        graph: Path,
        spec: GraphSpec,
        *,
        precision: Precision,
        request: Request,
        prove: Callable[[Session], dict[str, Any]],
        module_of: Callable[[str], str],
        watch: Watch,
    ) -> tuple[bytes, _Evidence]:
        """The content of a plan file, with the types of its layers as the builder lists them. It was never run."""
        version = use(self.library).__version__
        from simmim_export.engines.tensorrt.build import build_plan_file
        from simmim_export.engines.tensorrt.rtx import for_targets

        built = build_plan_file(
            graph, spec, request=request, on=None, configure=for_targets(request), module_of=module_of, watch=watch
        )
        proof, multiplied = read_layer_list(built.layers)
        require_precision(
            proof, precision, quantized=built.quantized, multiplied=multiplied, graph=spec.name, where=graph
        )
        target = plan_files.Target(library=self.library.title, version=version, sms=request.targets)
        return built.content, _Evidence(target=target, executed=proof.executed, parity=None)
