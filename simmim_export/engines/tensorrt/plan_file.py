"""Plan files, TensorRT's compiled engines on disk, and the JSON sidecar beside each: what it was built from, for and with.

A plan file is machine code. TensorRT runs what it is given; with a plan file of another GPU or version it hardly says what is
wrong, or crashes. So everything is checked here before TensorRT sees a byte of it, without importing TensorRT.

A plan file belongs to a device, while the manifest belongs to the model. So plan files are not in the manifest, and the digest of
a bundle (with every certificate) stays the same on each device that the bundle is copied to. A plan file refers to its graph by
that graph's SHA-256 instead.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from simmim_export.engines.tensorrt.request import Profile
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.spec import GraphSpec
from simmim_export.system.files import digest, parse_json, read_file
from simmim_export.system.outputs import replacing
from simmim_export.system.plain import as_json

SCHEMA = 2
# A sidecar takes a few kilobytes.
MOST_BYTES = 16 << 20
ENDING = "plan"
# Where a bundle keeps its plan files, in a folder for each engine.
FOLDER = Path("engines")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a plan file runs on: GPUs of the compute capabilities ``sms`` (``8.7``) with the same ``version`` of ``library``.

    A plan file that was built on a GPU also belongs to that ``gpu``, and to the ``driver``, the newest CUDA that it runs as CUDA
    counts it (12060). One that was built ahead of time has neither.
    """

    library: str
    version: str
    sms: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,3}\Z")], ...], msgspec.Meta(min_length=1)
    ]
    gpu: str | None = None
    driver: int | None = None

    def __str__(self) -> str:
        sms = f"SM {', '.join(self.sms)}"
        gpu = sms if self.gpu is None else f"{self.gpu} ({sms})"
        driver = "" if self.driver is None else f", CUDA driver {self.driver}"
        return f"{gpu}, {self.library} {self.version}{driver}"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Everything known about a plan file. ``recipe`` is what :meth:`Request.recipe` gives, ``executed`` the number of layers by
    type, and ``parity`` the figures of :meth:`~simmim_export.proof.parity.ParityReport.summary`; None if the plan file was built
    and never run."""

    graph: str
    graph_sha256: str
    precision: str
    sha256: str
    bytes: int
    target: Target
    recipe: Mapping[str, Any]
    executed: Mapping[str, Annotated[int, msgspec.Meta(ge=1)]]
    parity: Mapping[str, Any] | None


def plan_file_path(root: Path, graph: str, *, engine: str, precision: str) -> Path:
    """Where the bundle at ``root`` keeps the plan file of ``graph`` for ``engine``."""
    return root / FOLDER / engine / f"{graph}.{precision}.{ENDING}"


def sidecar_path(plan_file: Path) -> Path:
    """The JSON beside ``plan_file``."""
    return plan_file.with_name(f"{plan_file.name}.json")


def rebuild_command(plan_file: Path) -> str:
    """The command that builds ``plan_file``."""
    precision, engine = plan_file.name.removesuffix(f".{ENDING}").rpartition(".")[2], plan_file.parent.name
    command = f"simmim-export build {shlex.quote(str(plan_file.parents[2]))} --engine {engine} --precision {precision}"
    return command if engine == "trt" else f"{command} --target TARGET"


def write_sidecar(plan_file: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of ``plan_file``, whole or not at all."""
    with replacing(sidecar_path(plan_file)) as path:
        path.write_text(json.dumps({"schema": SCHEMA} | as_json(sidecar), indent=1) + "\n", encoding="utf-8")


class _Recipe(TypedDict):
    """What :meth:`Request.recipe` writes."""

    workspace: Annotated[int, msgspec.Meta(ge=1)] | None
    level: int
    compatibility: Literal["none", "same_compute_capability", "ampere_plus"]
    targets: list[str]
    profile: dict[str, Any]


class _Parity(TypedDict):
    """The figures of parity that are shown; there may be more."""

    passed: bool
    scaled_error: float


def read_sidecar(plan_file: Path) -> Sidecar:
    """The sidecar of ``plan_file``, with every field checked.

    Raise :class:`EngineUnavailable` if there is no plan file, and :class:`BundleError` if its sidecar is missing or cannot be
    read. Both errors name the command that builds it.
    """
    fix, path = rebuild_command(plan_file), sidecar_path(plan_file)
    if not plan_file.is_file():
        raise EngineUnavailable("this graph is not built for this device yet", where=plan_file, fix=fix)
    try:
        content = parse_json(read_file(path, most=MOST_BYTES).decode("utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError("it has another schema than this version reads")
        sidecar = msgspec.convert(content, Sidecar)
        recipe = msgspec.convert(sidecar.recipe, _Recipe)
        Profile.from_json(recipe["profile"])
        msgspec.convert(sidecar.parity, _Parity | None)
        return sidecar
    except FileNotFoundError as error:
        what = "the plan file has no sidecar, so nobody knows what it is for"
        raise BundleError(what, where=plan_file, fix=fix) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"the sidecar of the plan file cannot be read: {error}", where=path, fix=fix) from error


def require_profile(plan_file: Path, sidecar: Sidecar, *, spec: GraphSpec) -> Profile:
    """The sizes that ``plan_file`` takes. Raise :class:`BundleError` unless they are given for exactly the axes of ``spec``."""
    profile = Profile.from_json(sidecar.recipe["profile"])
    wanted = {axis.name for axis in spec.axes}
    if set(profile.axes) != wanted:
        sizes = ", ".join(profile.axes) or "no axis"
        what = f"the plan file has sizes for {sizes}, but the axes of {spec.name} are {', '.join(sorted(wanted))}"
        raise _unusable(plan_file, what)
    return profile


def require_graph(plan_file: Path, sidecar: Sidecar, *, graph: str, precision: str) -> None:
    """Raise :class:`BundleError` unless ``plan_file`` is for ``graph`` at ``precision``."""
    if (sidecar.graph, sidecar.precision) != (graph, precision):
        what = f"the plan file is for {sidecar.graph} at {sidecar.precision}, not for {graph} at {precision}"
        raise _unusable(plan_file, what)


def require_source(plan_file: Path, sidecar: Sidecar, *, sha256: str) -> None:
    """Raise :class:`BundleError` unless ``plan_file`` was built from the graph file with that digest."""
    if sidecar.graph_sha256 != sha256:
        raise _unusable(plan_file, "the plan file was built from another graph than the bundle's")


def require_target(plan_file: Path, sidecar: Sidecar, *, here: Target) -> None:
    """Raise :class:`EngineUnavailable` unless ``plan_file`` may run ``here``.

    The library must have the same version. The GPU must be the same, or one that the hardware compatibility allows: of the same
    compute capability, or any from Ampere (8.0) on. The driver may be newer than the one that it was built with, not older. A
    plan file that was built ahead of time runs on every GPU of its compute capabilities.
    """
    built, (sm,) = sidecar.target, here.sms
    if built.gpu is None:
        same_gpu = sm in built.sms
    else:
        same_gpu = {
            "same_compute_capability": sm in built.sms,
            "ampere_plus": tuple(map(int, sm.split("."))) >= (8, 0),
        }.get(sidecar.recipe.get("compatibility", ""), (built.gpu, built.sms) == (here.gpu, here.sms))
    same_library = (built.library, built.version) == (here.library, here.version)
    if not same_gpu or not same_library or (built.driver or 0) > (here.driver or 0):
        what = f"the plan file was built for another device: {built}; this one is {here}"
        raise EngineUnavailable(what, where=plan_file, fix=rebuild_command(plan_file))


def require_whole(plan_file: Path, sidecar: Sidecar) -> None:
    """Raise :class:`BundleError` unless ``plan_file`` has the size and the SHA-256 in its sidecar."""
    size = plan_file.stat().st_size
    if size != sidecar.bytes:
        raise _unusable(plan_file, f"the plan file has {size} bytes, its sidecar says {sidecar.bytes}")
    if digest(plan_file) != sidecar.sha256:
        raise _unusable(plan_file, "the plan file was altered: its SHA-256 differs from its sidecar's")


def _unusable(plan_file: Path, what: str) -> BundleError:
    return BundleError(what, where=plan_file, fix=rebuild_command(plan_file))
