"""The bundle: a folder that holds a model's graphs and the evidence that they compute what PyTorch computed.

::

    manifest.json                      what is inside, with a digest of every file named below and of itself
    graphs/<graph>.<variant>.onnx
    tokenizer.json
    golden.npz                         inputs of every graph, and what PyTorch gave for them
    evidence.npz                       questions with their answers, and what PyTorch answered

and, made on a device and named in no manifest, each with digests of its own:

    certificate.json                   what was proven there (certificate.py)
    engines/<engine>/                  what was compiled there (engines/)

Knows files, digests and the manifest. Must not know engines, PyTorch or ONNX. Nothing is unpickled; a path that leaves
the folder is refused; a file is used only after its SHA-256 was checked.

``SCHEMA`` is the version of the manifest. Bump it when an older reader would misunderstand a newer bundle: copy
``schemas/manifest.schema.json`` under the new number, teach :meth:`Bundle.open` to read both, and keep a bundle of the
old version among the tests.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.files import as_path, digest, parse_json, reading, require_new, room_for
from simmim_export.onnx_file import check_graph_file
from simmim_export.spec import GraphSpec, Pipeline, as_json, graph_from_json

SCHEMA = 1


@dataclass(frozen=True)
class Artifact:
    """One file that computes one graph: an ONNX variant (``engine`` is None) or an engine's own compiled form of it."""

    graph: str
    variant: str
    path: str
    sha256: str
    bytes: int
    engine: str | None
    precision: str
    built_for: Mapping[str, Any]
    parity: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. ``labels`` names the classes of each head; ``metrics`` is the checkpoint's own."""

    model: Mapping[str, Any]
    graphs: tuple[GraphSpec, ...]
    pipelines: tuple[Pipeline, ...]
    preprocessing: Mapping[str, Any]
    labels: Mapping[str, tuple[str, ...]]
    embedding: Mapping[str, Any]
    files: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    # engine -> the precision of each graph that the planner chose, as PrecisionPlan writes it.
    plans: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def graph(self, name: str) -> GraphSpec:
        """The graph called ``name``. KeyError if there is none."""
        return {graph.name: graph for graph in self.graphs}[name]

    def pipeline(self, name: str) -> Pipeline:
        """The pipeline called ``name``; raise :class:`UsageError` naming those that this bundle has."""
        found = {pipeline.name: pipeline for pipeline in self.pipelines}
        if name not in found:
            raise UsageError(f"this bundle has no pipeline {name!r}", fix=f"choose one of {', '.join(found)}")
        return found[name]

    def check_graphs(self, root: Path, path: str | None = None) -> None:
        """Raise :class:`BundleError` for an ONNX file under ``root`` (only the one at ``path``, if given) that is not a graph
        of ours or does not compute what this manifest says; see :func:`~simmim_export.onnx_file.check_graph_file`."""
        for artifact in self.artifacts:
            if artifact.engine is None and path in (None, artifact.path):
                check_graph_file(root / artifact.path, self.graph(artifact.graph))

    def dumps(self) -> str:
        """The manifest as JSON text, its own digest included."""
        content = as_json(self)
        return json.dumps(content | {"digest": _digest_of(content)}, indent=1, ensure_ascii=False) + "\n"


def _digest_of(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def _validator() -> Any:
    import fastjsonschema

    schema = resources.files("simmim_export.schemas").joinpath("manifest.schema.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(schema))


def parse_manifest(text: str, where: object) -> Manifest:
    """Parse manifest.json. Raise :class:`BundleError` on bad JSON, another schema, a broken digest or a bad reference."""
    import fastjsonschema

    again = "export it again: simmim-export onnx ckpt.pt -o BUNDLE --overwrite"
    try:
        content = parse_json(text)
    except ValueError as error:
        raise BundleError(f"the manifest is not JSON: {error}", where=where, fix=again) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        fix = "pip install -U simmim-export"
        raise BundleError(f"the bundle has schema {found}; this version reads up to {SCHEMA}", where=where, fix=fix)
    try:
        _validator()(content)
    except fastjsonschema.JsonSchemaException as error:
        raise BundleError(f"the manifest does not fit its schema: {error}", where=where, fix=again) from error
    if _digest_of(content) != content.pop("digest"):
        raise BundleError("the manifest was altered: its digest does not match", where=where, fix=again)
    graphs = tuple(graph_from_json(graph) for graph in content["graphs"])
    names = {graph.name for graph in graphs}
    pipelines = tuple(Pipeline(p["name"], tuple(p["graphs"]), tuple(p["outputs"])) for p in content["pipelines"])
    artifacts = tuple(Artifact(**artifact) for artifact in content["artifacts"])
    used = {name for pipeline in pipelines for name in pipeline.graphs} | {artifact.graph for artifact in artifacts}
    if used - names:
        raise BundleError(
            f"the manifest names graphs it does not describe: {sorted(used - names)}", where=where, fix=again
        )
    labels = {head: tuple(classes) for head, classes in content["labels"].items()}
    return Manifest(**content | {"graphs": graphs, "pipelines": pipelines, "artifacts": artifacts, "labels": labels})


class Bundle:
    """An opened bundle. Files are reached through :meth:`file` and :meth:`artifact`, which check their digests."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and see that every file it names is there, of the right size and inside the folder.

        Digests of the files are checked when a file is first used, so that a device which only embeds images does not
        read the text tower; :meth:`check` reads them all. Raise :class:`BundleError` for anything that is wrong.
        """
        root = as_path("bundle", path)
        with reading(root, BundleError):
            return cls._open(root)

    @classmethod
    def _open(cls, root: Path) -> Bundle:
        manifest_path = root / "manifest.json"
        fix = "make one: simmim-export onnx ckpt.pt -o BUNDLE"
        if not root.exists():
            raise BundleError("no such bundle", where=root, fix=fix)
        if not manifest_path.is_file():
            raise BundleError("not a bundle: it has no manifest.json", where=root, fix=fix)
        try:
            text = manifest_path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"the manifest is not UTF-8: {error}", where=manifest_path, fix=fix) from error
        bundle = cls(root, parse_manifest(text, manifest_path))
        for name in bundle._digests():
            bundle._locate(name)
        for artifact in bundle.manifest.artifacts:
            size = bundle._locate(artifact.path).stat().st_size
            if size != artifact.bytes:
                raise BundleError(
                    f"{artifact.path} has {size} bytes, the manifest says {artifact.bytes}",
                    where=root,
                    fix="copy the bundle again, whole",
                )
        return bundle

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's content, which holds the digest of every file: one name for these very graphs."""
        return _digest_of(as_json(self.manifest))

    def _digests(self) -> dict[str, str]:
        return dict(self.manifest.files) | {artifact.path: artifact.sha256 for artifact in self.manifest.artifacts}

    def _locate(self, relative: str) -> Path:
        pure = PurePosixPath(relative)
        path = self.root / relative
        leaves = pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative
        if leaves or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise BundleError(
                f"the manifest names a path outside the bundle: {relative!r}",
                where=self.root,
                fix="do not trust this bundle",
            )
        if not path.is_file():
            raise BundleError(f"the bundle lacks {relative}", where=self.root, fix="copy the bundle again, whole")
        return path

    def file(self, relative: str) -> Path:
        """The path of a file named in the manifest, once its digest has been checked, and that it is a graph of ours if it is one
        of the artifacts."""
        with reading(self.root / relative, BundleError):
            path = self._locate(relative)
            if relative not in self._checked:
                if digest(path) != self._digests()[relative]:
                    raise BundleError(
                        f"{relative} was altered: its SHA-256 is not the manifest's",
                        where=path,
                        fix="copy the bundle again, whole",
                    )
                self.manifest.check_graphs(self.root, relative)
                self._checked.add(relative)
            return path

    def check(self) -> int:
        """Check the digest of every file, and return how many there are."""
        for name in self._digests():
            self.file(name)
        return len(self._digests())

    def artifact(self, graph: str, variant: str, engine: str | None = None) -> Artifact:
        """The artifact for ``graph``; raise :class:`EngineUnavailable` naming what the bundle has instead."""
        mine = [a for a in self.manifest.artifacts if a.graph == graph and a.engine == engine]
        for artifact in mine:
            if artifact.variant == variant:
                return artifact
        have = ", ".join(sorted({a.variant for a in mine})) or "none"
        raise EngineUnavailable(
            f"the bundle has no {variant} variant of {graph} (it has: {have})",
            where=self.root,
            fix=f"simmim-export onnx ckpt.pt -o {self.root} --overwrite, with a --precision that makes it",
        )


class Staging:
    """A new bundle in the making, beside its final place and invisible until :meth:`publish`.

    A killed export leaves the old bundle or the new one, never a mixture; what a killed process left behind is removed
    by the next export to the same place.
    """

    def __init__(self, target: Path, overwrite: bool) -> None:
        """Raise :class:`UsageError` if ``target`` exists and is not to be overwritten, is no bundle, or cannot be written.

        Of a ``target`` that is a link, what it points to is replaced, and the link stays.
        """
        # A link is no folder to swap with one.
        asked, self.target = target, Path(os.path.realpath(target)) if target.is_symlink() else target
        target = self.target
        with room_for(target):
            require_new(target, overwrite)
            if target.exists() and not (target.is_dir() and (_is_ours(target) or not any(target.iterdir()))):
                fix = "choose another -o, or remove it yourself"
                raise UsageError("the output exists and is not a bundle", where=target, fix=fix)
            for path in {asked, target}:
                _remove_abandoned(path.absolute())
            prefix = f".{target.name}.{os.getpid()}."
            self.root = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=target.absolute().parent))

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def add(self, relative: str, data: bytes | str | None = None) -> Path:
        """The path of a file to be written under the new bundle; with ``data``, write it."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def publish(self, manifest: Manifest, digested: tuple[str, ...]) -> Bundle:
        """Fill in the digests of the files named in ``digested``, write the manifest last, and put the bundle in place."""
        manifest.check_graphs(self.root)
        manifest = replace(manifest, files={name: digest(self.root / name) for name in digested})
        self.add("manifest.json", manifest.dumps())
        for path in sorted(self.root.rglob("*")):
            _sync(path)
        _sync(self.root)
        self.root.chmod(0o755)
        if not self.target.exists():
            self.root.rename(self.target)
        elif not _exchange(self.root, self.target):
            aside = self.root.with_name(self.root.name + ".old")
            self.target.rename(aside)
            self.root.rename(self.target)
            shutil.rmtree(aside)
        _sync(self.target.absolute().parent)
        return Bundle.open(self.target)


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed export to ``target`` left beside it."""
    for left in target.parent.glob(f".{target.name}.*.partial"):
        owner = left.name.removeprefix(f".{target.name}.").split(".")[0]
        if not owner.isdigit() or _alive(int(owner)):
            continue
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether ``folder`` is a bundle, perhaps a damaged one: its manifest has what only ours have together, or, where that is no
    JSON any more, what belongs to it lies beside it. Other projects have a manifest.json too."""
    try:
        content = parse_json((folder / "manifest.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return (folder / "graphs").is_dir() and all(
            (folder / name).is_file() for name in ("tokenizer.json", "golden.npz")
        )
    keys = {"schema": int, "digest": str, "graphs": list, "artifacts": list}
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in keys.items())


def _alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step (Linux renameat2, RENAME_EXCHANGE); False where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return library.renameat2(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0
