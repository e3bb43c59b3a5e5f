"""Checks, before anything is computed, that an output can be written."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from simmim_export.errors import UsageError
from simmim_export.system.outputs import destination, require_new, require_writable


def check_output(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` unless a checkpoint, with the trainer's state beside it, can be written to ``path``.

    A name that ends in .pt is a file. A name without a suffix is a folder, and so is one that ends in a number, such as
    lr0.001. Any other suffix is an error: nobody wants a folder called m.safetensors. An existing output is replaced
    only with ``overwrite``, and only by the same kind.
    """
    kind = path.suffix[1:2]
    if path.suffix != ".pt" and kind.isalpha():
        fix = f"choose -o {path.with_suffix('.pt')} for a file, or -o {path.with_suffix('')} for a folder"
        raise UsageError(f"a checkpoint cannot be a {path.suffix} file", where=path, fix=fix)
    require_new(path, overwrite)
    if path.suffix == ".pt" and path.is_dir():
        raise UsageError(
            "the output is a folder, but a checkpoint that ends in .pt is a file", where=path, fix="choose another -o"
        )
    if path.suffix != ".pt" and path.exists():
        _check_is_folder(path, "a checkpoint without .pt")
        try_writing(path / "checkpoint.json")
    try_writing(path)


def check_folder(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` unless files can be written to the folder ``path``; an existing one needs
    ``overwrite``."""
    if path.exists():
        _check_is_folder(path, "this output")
    require_new(path, overwrite)
    try_writing(path / "records.json")


def _check_is_folder(path: Path, what: str) -> None:
    if not path.is_dir():
        raise UsageError(f"the output is a file, but {what} is a folder", where=path, fix="choose another -o")


def try_writing(path: Path) -> None:
    """Write a file beside ``path``, under the longest name that will be used there, and delete it again.

    Raise :class:`UsageError` if that fails. Permissions do not tell: they allow an administrator everything, even on a
    read-only file system. Missing folders are made inside a temporary folder, because other processes of the same
    training try the same path at the same time.
    """
    path = destination(path)
    require_writable(path)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    below = path.absolute().parent.relative_to(nearest)
    try:
        for folder in path.absolute().parents:
            if folder.is_symlink() and not folder.exists():
                raise FileNotFoundError(errno.ENOENT, "a parent folder is a broken link")
        with TemporaryDirectory(prefix=".trial.", dir=nearest) if below.parts else nullcontext(nearest) as base:
            folder = Path(base) / below
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / f".{path.name}.trainer.{os.getpid()}.tmp"
            trial.touch()
            trial.unlink()
    except OSError as error:
        what = f"the output cannot be written: {error.strerror or error}"
        raise UsageError(what, where=path, fix="choose another output") from error
