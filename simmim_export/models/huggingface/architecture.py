"""Which class of transformers a folder was saved from, if a model type has several and a family supports some of them."""

from __future__ import annotations

from collections.abc import Collection

from simmim_export.errors import CheckpointError
from simmim_export.models.huggingface.folder import CONFIG, Folder


def require_architecture(folder: Folder, *, supported: Collection[str]) -> str:
    """The architecture of ``folder``, one of ``supported``. Raise :class:`CheckpointError` for any other, and for none."""
    if folder.architecture in supported:
        return folder.architecture
    names = " and ".join(supported)
    what = (
        f"the architecture is {folder.architecture!r}" if folder.architecture else "config.json names no architecture"
    )
    what = f"{what}; of the type {folder.model_type!r}, {names} can be exported"
    raise CheckpointError(
        what, where=folder.path / CONFIG, fix=f"give a model that was saved as {' or '.join(supported)}"
    )
