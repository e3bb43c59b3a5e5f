"""Writes a bundle or another folder: it is invisible until it is complete, and is then put in place in one step."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from simmim_export.bundle.checks.files import REQUIRED_FILES
from simmim_export.bundle.manifest import Manifest
from simmim_export.bundle.opened import REPLACED, Bundle
from simmim_export.bundle.schema import MAX_BYTES
from simmim_export.errors import BundleRestored, UsageError
from simmim_export.system.files import digest, parse_json, read_file
from simmim_export.system.outputs import leftovers, require_new, room_for
from simmim_export.system.signals import ending_cleanly

# Everything that a bundle may hold, apart from the temporary files of certify.
_OURS = {"manifest.json", "graphs", "tokenizer.json", "golden.npz", "evidence.npz", "certificate.json", "engines"}
# The end of the name of a bundle that is being written. Like the name of one that was moved aside (REPLACED), it begins with a
# dot, the name of the bundle and the number of the process.
PARTIAL = ".partial"


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` is an empty folder or a bundle, perhaps a damaged one. Other projects have a manifest.json too.

    Our manifest has a set of keys that no other project's has. If it is not JSON any more, the other files of a bundle must lie
    beside it, and nothing else.
    """
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        content = parse_json(read_file(folder / "manifest.json", most=MAX_BYTES).decode("utf-8"))
    except OSError:
        return False
    except ValueError:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".certificate.json.")}
        complete = (folder / "graphs").is_dir() and all((folder / name).is_file() for name in REQUIRED_FILES)
        return complete and names <= _OURS
    keys = {"schema": int, "digest": str, "graphs": list, "artifacts": list}
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in keys.items())


class Staging:
    """A context manager for a new bundle, which is written beside its final place and is invisible until :meth:`publish`.

    A killed export leaves the old bundle or the new one, never a mixture. After SIGTERM, SIGHUP and Ctrl-C, what was written is
    removed. After SIGKILL, the next export to the same place puts back the old bundle and removes what is left.
    """

    root: Path

    def __init__(
        self, target: Path, overwrite: bool, *, is_ours: Callable[[Path], bool] = is_bundle, kind: str = "bundle"
    ) -> None:
        """Raise :class:`UsageError` if ``target`` exists and may not be overwritten, is not a bundle, or cannot be written.

        If ``target`` is a link, the folder that it points to is replaced and the link stays. For a folder of another ``kind``,
        ``is_ours`` says whether what is there may be replaced; :meth:`put_in_place` then takes the place of :meth:`publish`.
        """
        # A folder cannot be exchanged with a link.
        asked, self.target = target, Path(os.path.realpath(target)) if target.is_symlink() else target
        self._signals = ExitStack()
        with room_for(self.target):
            for path in {asked, self.target}:
                _recover(path, kind)
            require_new(self.target, overwrite)
            if self.target.exists() and not is_ours(self.target):
                fix = "choose another -o, or remove it yourself"
                raise UsageError(f"the output exists and is not a {kind}", where=self.target, fix=fix)

    def __enter__(self) -> Staging:
        """Make the folder; raise :class:`UsageError` if that fails."""
        with ExitStack() as stack:
            stack.enter_context(ending_cleanly())
            with room_for(self.target):
                prefix = f".{self.target.name}.{os.getpid()}."
                self.root = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=self.target.absolute().parent))
            self._signals = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._signals:
            shutil.rmtree(self.root, ignore_errors=True)

    def add(self, relative: str, data: bytes | str | None = None) -> Path:
        """The path of a file in the new bundle. With ``data``, write it."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def publish(self, manifest: Manifest, digested: tuple[str, ...]) -> Bundle:
        """Fill in the digests of the files named in ``digested``, write the manifest, and put the bundle in place.

        Raise :class:`BundleError` for a bundle that would not open, and leave the target alone.
        """
        manifest = replace(manifest, files={name: digest(self.root / name) for name in digested})
        self.add("manifest.json", manifest.dumps())
        Bundle.open(self.root).check_graphs()
        self.put_in_place()
        return Bundle.open(self.target)

    def put_in_place(self) -> None:
        """Put the folder in its place as it is."""
        for path in sorted(self.root.rglob("*")):
            _sync(path)
        _sync(self.root)
        self.root.chmod(0o755)
        if not self.target.exists():
            self.root.rename(self.target)
        elif not _exchange(self.root, self.target):
            _replace_in_two_steps(self.root, self.target)
        _sync(self.target.absolute().parent)


def _replace_in_two_steps(new: Path, target: Path) -> None:
    """Replace ``target`` by ``new`` on a system that cannot exchange them; :func:`_recover` repairs what a kill interrupts."""
    aside = target.absolute().with_name(f".{target.name}.{os.getpid()}{REPLACED}")
    target.rename(aside)
    try:
        new.rename(target)
    finally:
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)


def _recover(target: Path, kind: str) -> None:
    """Put back the folder that a killed export had moved aside, unless a new one is in its place, and remove everything else
    that killed exports to ``target`` left. Warn :class:`BundleRestored`."""
    aside = sorted(leftovers(target, REPLACED), key=lambda path: path.lstat().st_ctime)
    # We move folders aside, never links.
    aside, links = [p for p in aside if not p.is_symlink() and p.is_dir()], [p for p in aside if p.is_symlink()]
    if aside and not target.exists() and not target.is_symlink():
        restored = aside.pop()
        restored.rename(target)
        what = f"{target} was missing because an export was killed while replacing it; the old {kind} is back"
        warnings.warn(what, BundleRestored, stacklevel=3)
    for path in (*aside, *links, *leftovers(target, PARTIAL)):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step (Linux renameat2, RENAME_EXCHANGE); return False if the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return library.renameat2(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0
