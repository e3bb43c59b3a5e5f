"""Reads and writes files of tensors. A file may come from a stranger: no code in it is executed, and errors say what is wrong.

PyTorch is imported where it is used, so that a path can be checked before.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - for the name of its error alone
import warnings
import zipfile
import zlib
from pathlib import Path
from pickletools import genops
from typing import TYPE_CHECKING, Any

from simmim_export.errors import CheckpointError
from simmim_export.system.outputs import replacing

if TYPE_CHECKING:
    from torch import Tensor

# What zipfile and torch's restricted unpickler raise on damaged or hostile bytes: the unpickler is a stack machine that
# indexes and calls before it checks, so nonsense opcodes surface as any of these.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
PICKLED = "the file holds pickled code or objects, which are never executed"
_TENSORS_ONLY = "save tensors, numbers and texts only, or give a .safetensors file"
COPY_AGAIN = "copy it again, whole"


def require_weights(path: Path) -> None:
    """Raise :class:`CheckpointError` unless ``path`` is a file."""
    if path.is_dir():
        what = "this is a folder, and a file of weights is needed"
        raise CheckpointError(what, where=path, fix="give the file in it")
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=path, fix="check the path")


def read_tensors(path: Path) -> Any:
    """The content of a ``.safetensors`` file, or of any file that ``torch.save`` wrote.

    It consists of tensors and primitives in dicts and lists; floats come as float32. Raise :class:`CheckpointError` for a
    file that is missing, damaged or holds code, and for odd tensors (:func:`simmim_export.models.weights.plain_tensors`).
    """
    from simmim_export.models.weights import plain_tensors

    require_weights(path)
    return plain_tensors(read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path), path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are stored. Raise :class:`CheckpointError` for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (*_DAMAGE, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}", where=path, fix=COPY_AGAIN) from error


def read_archive(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``, as it is stored.

    Raise :class:`CheckpointError` for another kind of file, for a damaged one, for one that would take much more memory than it
    has bytes, and for one that holds anything but tensors and primitives.
    """
    import torch

    with path.open("rb") as stream:
        start = stream.read(4)
    if start != b"PK\x03\x04":
        what = "not a checkpoint (torch.save writes a zip archive)" if start else "the checkpoint is empty"
        raise CheckpointError(what, where=path, fix="give the file that was saved")
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError("the checkpoint is truncated", where=path, fix=COPY_AGAIN)
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
        with warnings.catch_warnings():
            # For developers, about kinds of tensors that plain_tensors refuses by name.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch raises this for everything but tensors and primitives, and has executed none of it.
        raise CheckpointError(PICKLED, where=path, fix=_TENSORS_ONLY) from error
    except _DAMAGE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the checkpoint is damaged: {first}", where=path, fix=COPY_AGAIN) from error


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        # A bomb, or packed again by something else than torch.save.
        what = f"the checkpoint unpacks from {size:,} bytes to {unpacked:,}, and torch.save never compresses"
        raise CheckpointError(what, where=path, fix="save it again with torch.save")
    # torch does not compare the checksums of tensors: a flipped bit would load as another weight.
    if (damaged := archive.testzip()) is not None:
        raise CheckpointError(f"the checkpoint is damaged: {damaged}", where=path, fix=COPY_AGAIN)
    for name in archive.namelist():
        # torch's unpickler makes a bytearray of any length that a few bytes ask for.
        if name.endswith("/data.pkl") and any("bytearray" in str(word) for _, word, _ in genops(archive.read(name))):
            raise CheckpointError(PICKLED, where=path, fix=_TENSORS_ONLY)


def save_tensors(content: Any, path: Path) -> None:
    """Write ``content`` with ``torch.save``, atomically.

    Raise :class:`UsageError` if ``path`` cannot be written or the disk is full.
    """
    import torch

    with replacing(path) as temporary:
        try:
            # Through a Python file: torch's own says only "iostream error" if the disk is full.
            with temporary.open("wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:
            # torch fails once more while it closes the archive; the system's own error came before.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise cause from None
