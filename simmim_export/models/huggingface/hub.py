"""Finds the model that a user names: a path, or else a name on Hugging Face's model hub, from which it is downloaded.

A path on this machine always wins, and never touches the network.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError, EngineUnavailable
from simmim_export.models.huggingface.folder import CONFIG, WEIGHTS
from simmim_export.system.printing import say
from simmim_export.system.telemetry import without_telemetry
from simmim_export.system.watch import Watch, unwatched

# "owner/name": models without an owner are older than those that can be exported.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Files of weights, which nobody calls a repository on the hub.
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".npz", ".zip")
# Seconds until the hub has to answer the first question.
_PATIENCE = 10.0
# What is read of a model besides its weights.
_TEXTS = (".json", ".txt")


def is_hub_name(source: str) -> bool:
    """Whether ``source`` is a name on the hub, and cannot be a path: neither it nor its parent is on this machine."""
    if _HUB_NAME.fullmatch(source) is None or source.lower().endswith(_FILES):
        return False
    return not os.path.lexists(source) and not Path(source).parent.is_dir()


def model_path(source: str, *, check: Callable[[Path], object], watch: Watch = unwatched) -> Path:
    """The path ``source``, or the folder to which the model of that name on the hub was downloaded.

    ``check`` is called with the path. Of a model from the hub, the folder then holds only JSON and text files, so that nobody
    waits for weights that cannot be used. ``watch`` is called while files are downloaded.

    Raise what ``check`` raises; :class:`CheckpointError` for a name that the hub does not give; and :class:`EngineUnavailable`
    without the package huggingface_hub.
    """
    if not is_hub_name(source):
        check(Path(source))
        return Path(source)
    try:
        hub = _library()
    except ModuleNotFoundError as error:
        what = f"there is no folder {source!r}, and the model hub needs the package {error.name}"
        raise EngineUnavailable(what, fix="pip install 'simmim-export[export]'") from error
    with _naming(source):
        sizes = _ask(source)
    if sizes is None:
        folder = _cached(source)
        check(folder)
        return folder
    texts = [name for name in sizes if name.endswith(_TEXTS)]

    def download(names: list[str], *, besides: list[str]) -> Path:
        bar = _bar(f"download {source}", total=sum(sizes[name] for name in names), watch=watch)
        with _naming(source):
            # With the branch, not with a revision, so that the cache finds it without a network, too.
            return Path(hub.snapshot_download(source, allow_patterns=[*besides, *names], tqdm_class=bar))

    check(download(texts, besides=[]))
    return download(_weights(sizes), besides=texts)


def require_on_hub(name: str) -> None:
    """Raise unless the model hub, or its cache on this machine, has ``name``.

    This asks once. transformers would retry an unreachable hub for half a minute. The error is one of huggingface_hub or of the
    network.
    """
    if not _cached_files(name):
        say(f"there is no folder {name!r}; looking for a model of that name on the hub", error=True)
        _library().model_info(name, timeout=_PATIENCE)


def _library() -> Any:
    """huggingface_hub, with its telemetry off."""
    with without_telemetry("huggingface_hub"):
        import huggingface_hub
        import huggingface_hub.errors

    return huggingface_hub


def _ask(name: str) -> Mapping[str, int] | None:
    """The files of the model ``name`` and their bytes.

    None if the hub cannot be reached and a copy is in the cache; this is said on stderr.
    """
    hub = _library()
    say(f"there is no folder {name!r}; looking for a model of that name on the hub", error=True)
    try:
        model = hub.model_info(name, timeout=_PATIENCE, files_metadata=True)
    except hub.errors.HfHubHTTPError:  # it answered
        raise
    except Exception as error:
        if not _cached_files(name):
            raise
        say(f"the model hub does not answer ({_reason(error)}); using the copy in {_cached(name)}", error=True)
        return None
    # Files in folders are for other programs. A name with a sign of a pattern would be taken for one.
    files = {file.rfilename: int(file.size or 0) for file in model.siblings or ()}
    return {file: size for file, size in files.items() if not re.search(r"[/\\*?\[]", file)}


def _weights(sizes: Mapping[str, int]) -> list[str]:
    """Those of the files that hold the weights: those that transformers reads, else all; and safetensors, if there are any."""
    for ending in (".safetensors", ".bin"):
        every = [name for name in sizes if name.endswith(ending)]
        stems = tuple(name.partition(".")[0] for name in WEIGHTS if ending in name)
        own = [name for name in every if name.startswith(stems)]
        if every:
            return own or every
    return []


def _cached_files(name: str) -> list[Path]:
    files = (_library().try_to_load_from_cache(name, file) for file in (CONFIG, "open_clip_config.json"))
    return [Path(file) for file in files if isinstance(file, str)]


def _cached(name: str) -> Path:
    return _cached_files(name)[0].parent


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """For a block that asks the hub for ``name``: whatever is raised is a :class:`CheckpointError` that says why."""
    try:
        yield
    except CheckpointError:
        raise
    # Besides its own errors, huggingface_hub raises those of the network, of the disk and of its certificates.
    except Exception as error:
        what = f"there is no folder {name!r}, and the model hub does not give it either: {_reason(error)}"
        fix = (
            f"check the name; or where there is a network: hf download {name} --local-dir FOLDER, and give that folder"
        )
        raise CheckpointError(what, where=name, fix=fix) from error


def _reason(error: Exception) -> str:
    errors = _library().errors
    if isinstance(error, errors.GatedRepoError):
        return "its owner has to give you access (accept the terms on its page, then: hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it has no model of that name, or a private one (hf auth login)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bar(step: str, *, total: int, watch: Watch) -> type[Any]:
    """A class of progress bars, as huggingface_hub makes them, that shows nothing itself and calls ``watch`` with bytes."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B":
                watch(step, min(int(self.n), total), total)
            return bool(shown)

    return Bar
