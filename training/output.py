"""Whether an output can be written, said before anything is computed. Knows names and folders; must not know what goes there."""

from __future__ import annotations

import os
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.files import require_new, room_for


def check_output(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` unless a checkpoint, and the trainer's state beside it, can be written to ``path``.

    A name in .pt is a file. A name without a suffix is a folder; so is one in a number, as lr0.001. Another suffix is a
    mistake: nobody wants a folder called m.safetensors. What exists is replaced with ``overwrite`` alone, by its own kind.
    """
    kind = path.suffix[1:2]
    if path.suffix != ".pt" and kind.isalpha():
        fix = f"choose -o {path.with_suffix('.pt')} for a file, or -o {path.with_suffix('')} for a folder"
        raise UsageError(f"a checkpoint is no {path.suffix} file", where=path, fix=fix)
    require_new(path, overwrite)
    if path.suffix == ".pt" and path.is_dir():
        raise UsageError(
            "the output is a folder, and a checkpoint in .pt is a file", where=path, fix="choose another -o"
        )
    if path.suffix != ".pt" and path.exists():
        _check_is_folder(path, "a checkpoint without .pt")
        try_writing(path / "checkpoint.json")
    try_writing(path)


def check_folder(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` unless files can be written to the folder ``path``, which is made; one that exists is taken
    with ``overwrite`` alone."""
    if path.exists():
        _check_is_folder(path, "what is drawn")
    require_new(path, overwrite)
    try_writing(path / "records.json")


def _check_is_folder(path: Path, what: str) -> None:
    if not path.is_dir():
        raise UsageError(f"the output is a file, and {what} is a folder", where=path, fix="choose another -o")


def try_writing(path: Path) -> None:
    """Write beside ``path``, under the longest name that anything there will have, and take it away again; make the folder.

    Raise :class:`UsageError` where that fails. What the permissions say is not enough: to an administrator they allow
    everything, on whatever file system.
    """
    trial = path.with_name(f".{path.name}.trainer.{os.getpid()}.tmp")
    with room_for(path):
        trial.touch()
        trial.unlink()
