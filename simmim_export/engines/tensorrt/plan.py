"""The sidecar of a plan: what a plan was built from, for and with, in JSON beside it.

Knows files and digests. Must not import TensorRT or CUDA. A plan is machine code: TensorRT runs what it is given, and of a
plan for another GPU or version it says little or crashes. So everything is checked here, before TensorRT sees a byte of it.

A plan belongs to a device and the manifest to the model: plans are not in the manifest, so that the digest of a bundle (and
with it every certificate) is the same on every device that it is copied to. A plan names the graph it was built from by that
graph's own SHA-256 instead.
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
from simmim_export.spec import GraphSpec, as_json
from simmim_export.system.files import digest, parse_json, read_file, replacing

SCHEMA = 1
# A sidecar takes a few kilobytes.
MOST_BYTES = 16 << 20
ENDING = "plan"


@dataclass(frozen=True)
class Target:
    """What a plan runs on. ``sm`` is the compute capability (``8.7``), ``driver`` the newest CUDA it knows, as CUDA counts
    (12060)."""

    gpu: str
    sm: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,3}\Z")]
    driver: int
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} (SM {self.sm}), TensorRT {self.tensorrt}, CUDA driver {self.driver}"


@dataclass(frozen=True)
class Sidecar:
    """Everything known of a plan. ``recipe`` as :meth:`Request.recipe` has it; ``executed`` counts layers by type, and
    ``parity`` holds the figures of :meth:`~simmim_export.proof.parity.ParityReport.summary`."""

    graph: str
    graph_sha256: str
    precision: str
    sha256: str
    bytes: int
    target: Target
    recipe: Mapping[str, Any]
    executed: Mapping[str, Annotated[int, msgspec.Meta(ge=1)]]
    parity: Mapping[str, Any]


def plan_path(root: Path, graph: str, precision: str) -> Path:
    """Where the bundle at ``root`` keeps the plan of ``graph``."""
    return root / "engines" / "trt" / f"{graph}.{precision}.{ENDING}"


def sidecar_path(plan: Path) -> Path:
    """The JSON beside ``plan``."""
    return plan.with_name(f"{plan.name}.json")


def rebuild(plan: Path) -> str:
    """The command that builds ``plan``."""
    precision = plan.name.removesuffix(f".{ENDING}").rpartition(".")[2]
    return f"simmim-export build {shlex.quote(str(plan.parents[2]))} --engine trt --precision {precision}"


def write(plan: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of ``plan``, whole or not at all."""
    with replacing(sidecar_path(plan)) as path:
        path.write_text(json.dumps({"schema": SCHEMA} | as_json(sidecar), indent=1) + "\n", encoding="utf-8")


class _Recipe(TypedDict):
    """What :meth:`Request.recipe` writes."""

    workspace: Annotated[int, msgspec.Meta(ge=1)] | None
    level: int
    compatibility: Literal["none", "same_compute_capability", "ampere_plus"]
    profile: dict[str, Any]


class _Parity(TypedDict):
    """What is shown of a plan's parity; there may be more."""

    passed: bool
    scaled_error: float


def read(plan: Path) -> Sidecar:
    """The sidecar of ``plan``, with every field checked. Raise :class:`EngineUnavailable` if there is no plan, and
    :class:`BundleError` if its sidecar is missing or cannot be read; both errors name the command that builds the plan."""
    fix, path = rebuild(plan), sidecar_path(plan)
    if not plan.is_file():
        raise EngineUnavailable("this graph is not built for this device yet", where=plan, fix=fix)
    try:
        content = parse_json(read_file(path, most=MOST_BYTES).decode("utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError("it has another schema than this version reads")
        sidecar = msgspec.convert(content, Sidecar)
        recipe = msgspec.convert(sidecar.recipe, _Recipe)
        Profile.from_json(recipe["profile"])
        msgspec.convert(sidecar.parity, _Parity)
        return sidecar
    except FileNotFoundError as error:
        raise BundleError("the plan has lost its sidecar: nobody knows what it is for", where=plan, fix=fix) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"the sidecar of the plan cannot be read: {error}", where=path, fix=fix) from error


def require_profile(plan: Path, sidecar: Sidecar, spec: GraphSpec) -> Profile:
    """The sizes that ``plan`` takes. Raise :class:`BundleError` unless they are given for exactly the axes of ``spec``."""
    profile = Profile.from_json(sidecar.recipe["profile"])
    wanted = {axis.name for axis in spec.axes}
    if set(profile.axes) != wanted:
        what = f"the plan has sizes for {', '.join(profile.axes) or 'no axis'}, {spec.name} has {', '.join(sorted(wanted))}"
        raise BundleError(what, where=plan, fix=rebuild(plan))
    return profile


def require_graph(plan: Path, sidecar: Sidecar, graph: str, precision: str) -> None:
    """Raise :class:`BundleError` unless ``plan`` is of ``graph`` at ``precision``."""
    if (sidecar.graph, sidecar.precision) != (graph, precision):
        what = f"the plan is of {sidecar.graph} at {sidecar.precision}, not of {graph} at {precision}"
        raise BundleError(what, where=plan, fix=rebuild(plan))


def require_source(plan: Path, sidecar: Sidecar, sha256: str) -> None:
    """Raise :class:`BundleError` unless ``plan`` was built from the very file with that digest."""
    if sidecar.graph_sha256 != sha256:
        raise BundleError("the plan was built from another graph than the bundle's", where=plan, fix=rebuild(plan))


def require_target(plan: Path, sidecar: Sidecar, here: Target) -> None:
    """Raise :class:`EngineUnavailable` unless ``plan`` may run ``here``.

    TensorRT's version must be the very same. The GPU too, or what the plan's hardware compatibility promises: the same compute
    capability, or any from Ampere (8.0) on. A driver may be newer than the one that built it, not older.
    """
    built = sidecar.target
    same_gpu = {
        "same_compute_capability": built.sm == here.sm,
        "ampere_plus": tuple(map(int, here.sm.split("."))) >= (8, 0),
    }.get(sidecar.recipe.get("compatibility", ""), (built.gpu, built.sm) == (here.gpu, here.sm))
    if not same_gpu or built.tensorrt != here.tensorrt or built.driver > here.driver:
        what = f"the plan was built for another device: {built}; this one is {here}"
        raise EngineUnavailable(what, where=plan, fix=rebuild(plan))


def require_whole(plan: Path, sidecar: Sidecar) -> None:
    """Raise :class:`BundleError` unless ``plan`` has the size and SHA-256 that its sidecar names."""
    size = plan.stat().st_size
    if size != sidecar.bytes:
        what = f"the plan has {size} bytes, its sidecar says {sidecar.bytes}"
        raise BundleError(what, where=plan, fix=rebuild(plan))
    if digest(plan) != sidecar.sha256:
        raise BundleError("the plan was altered: its SHA-256 is not its sidecar's", where=plan, fix=rebuild(plan))
