"""An opened bundle: its manifest, and its files as soon as their digests have been checked."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.bundle.golden import Golden
from simmim_export.bundle.manifest import Artifact, Manifest, digest_of, parse_manifest
from simmim_export.bundle.onnx_file import check_graph_file
from simmim_export.bundle.schema import MAX_BYTES
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.system.files import as_path, digest, reading
from simmim_export.system.npz import MAX_UNPACKED
from simmim_export.system.outputs import leftovers
from simmim_export.system.plain import as_json

# The end of the name of a bundle that an export moved aside until the new one is in its place.
REPLACED = ".replaced"
# The most bytes of a file whose size is not in the manifest, checked before anything reads the file.
MOST_BYTES = {"tokenizer.json": 4 * (40 << 20)}


class Bundle:
    """An opened bundle. Files are reached through :meth:`file` and :meth:`artifact`, which check their digests."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest, and check that every file it names exists, has the right size and lies inside the folder.

        The digest of a file is checked when the file is first used, so that a device that only embeds images does not read the
        graphs for texts; :meth:`check` reads all files. Raise :class:`BundleError` for anything that is wrong.
        """
        root = as_path("bundle", path)
        with reading(root, BundleError):
            manifest_path = root / "manifest.json"
            fix = "make one: simmim-export onnx ckpt.pt -o BUNDLE"
            if not root.exists():
                raise _missing(root, fix)
            _inside(root, "manifest.json")
            if not manifest_path.is_file():
                raise BundleError("not a bundle: it has no manifest.json", where=root, fix=fix)
            with manifest_path.open("rb") as stream:
                # One byte more than parse_manifest accepts is enough to refuse the rest.
                data = stream.read(MAX_BYTES + 1)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BundleError(f"the manifest is not UTF-8: {error}", where=manifest_path, fix=fix) from error
            bundle = cls(root, parse_manifest(text, manifest_path))
            for name in bundle.manifest.files:
                size = bundle._locate(name).stat().st_size
                if size > (most := MOST_BYTES.get(name, MAX_UNPACKED)):
                    what = f"{name} has {size:,} bytes; the limit is {most:,}"
                    raise BundleError(what, where=root, fix="do not trust this bundle, or copy it again, whole")
            for artifact in bundle.manifest.artifacts:
                size = bundle._locate(artifact.path).stat().st_size
                if size != artifact.bytes:
                    raise BundleError(
                        f"{artifact.path} has {size:,} bytes, and the manifest says {artifact.bytes:,}",
                        where=root,
                        fix="copy the bundle again, whole",
                    )
            return bundle

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's content, which holds the digest of every file: it identifies the whole bundle."""
        return digest_of(as_json(self.manifest))

    def _digests(self) -> dict[str, str]:
        return dict(self.manifest.files) | {artifact.path: artifact.sha256 for artifact in self.manifest.artifacts}

    def inside(self, relative: str) -> Path:
        """The path of a file in the bundle, which need not exist; raise :class:`BundleError` if a link leads outside."""
        return _inside(self.root, relative)

    def _locate(self, relative: str) -> Path:
        # The manifest has only relative paths without "..", but a link may lead outside.
        path = self.inside(relative)
        if not path.is_file():
            raise BundleError(f"the bundle lacks {relative}", where=self.root, fix="copy the bundle again, whole")
        return path

    def file(self, relative: str) -> Path:
        """The path of a file that the manifest names.

        On first use, check its digest and, for an ONNX file, that it holds the graph in the manifest and nothing else. Raise
        :class:`BundleError` if it does not.
        """
        with reading(self.root / relative, BundleError):
            path = self._locate(relative)
            if relative not in self._checked:
                if digest(path) != self._digests()[relative]:
                    raise BundleError(
                        f"{relative} was changed: its SHA-256 is not the one in the manifest",
                        where=path,
                        fix="copy the bundle again, whole",
                    )
                self.check_graphs(relative)
                self._checked.add(relative)
            return path

    def golden(self) -> Golden:
        """The golden tensors, once the digest of their file has been checked, and that they fit the graphs of the manifest."""
        return Golden.load(self.file(GOLDEN), self.manifest.graphs)

    def check_graphs(self, path: str | None = None) -> None:
        """Check every ONNX file, or only the one at ``path``, as :func:`~simmim_export.bundle.onnx_file.check_graph_file` does.

        Raise :class:`BundleError` for a file that is not a graph of ours or does not compute what the manifest says.
        """
        for artifact in self.manifest.artifacts:
            if artifact.engine is None and path in (None, artifact.path):
                check_graph_file(self._locate(artifact.path), self.manifest.graph(artifact.graph))

    def check(self) -> int:
        """Check the digest of every file, and return the number of files."""
        for name in self._digests():
            self.file(name)
        return len(self._digests())

    def artifact(self, graph: str, *variants: str) -> Artifact:
        """The file of ``graph`` in the first of ``variants`` that this bundle has.

        Raise :class:`EngineUnavailable` if it has none of them, naming the variants that it has instead.
        """
        files: dict[str, Artifact] = {}
        for artifact in self.manifest.artifacts:
            if artifact.graph == graph and artifact.engine is None:
                files[artifact.variant] = artifact
        for variant in variants:
            if variant in files:
                return files[variant]
        raise EngineUnavailable(
            f"the bundle has no {' or '.join(variants)} variant of {graph} (it has: {', '.join(sorted(files)) or 'none'})",
            where=self.root,
            fix=f"add the --precision that makes it: simmim-export onnx ckpt.pt -o {self.root} --overwrite --precision ...",
        )


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        what = f"a path leads outside the bundle: {relative!r}"
        raise BundleError(what, where=root, fix="do not trust this bundle")
    return path


def _missing(root: Path, fix: str) -> BundleError:
    """The error for a bundle that does not exist. It says where to find the old one if an export was killed meanwhile."""
    real = Path(os.path.realpath(root))
    aside = leftovers(real, REPLACED) if real.parent.is_dir() else []
    if not aside:
        return BundleError("no such bundle", where=root, fix=fix)
    what = f"no such bundle: an export was killed while replacing it, and left the old one at {aside[-1]}"
    return BundleError(what, where=root, fix=f"put it back: mv {shlex.quote(str(aside[-1]))} {shlex.quote(str(real))}")
