"""What the commands share that run a model: how they open it, and what happens to an item that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.console import progress_bar, say
from simmim_export.console.options import EngineOptions

if TYPE_CHECKING:
    from simmim_export.runtime import Model
    from simmim_export.runtime.bulk import Failure, Item

# The number of items from which on a progress bar appears.
MANY = 50


def open_model(bundle: Path, options: EngineOptions) -> Model:
    """Open ``bundle`` as ``options`` ask; say on stderr which engine ``--engine auto`` chose.

    Raises what :func:`simmim_export.load` raises.
    """
    from simmim_export.runtime import load

    model = load(
        bundle,
        options.engine,
        precision=options.precision,
        device=options.device,
        checkpoint=options.checkpoint,
        threads=options.threads,
    )
    if model.why is not None:
        say(f"engine auto: {model.engine.name} at {model.plan}: {model.why}", error=True)
    return model


@contextmanager
def running(title: str, items: Sequence[Item], *, strict: bool, as_json: bool) -> Iterator[dict[str, Any]]:
    """The options with which a command calls :func:`~simmim_export.runtime.bulk.run_each`. Many items show a progress bar.

    An item that fails is reported on stderr at once. It ends the command with ``strict``, or if it is the only item; with
    ``as_json`` the failure of a single item is part of the result instead.
    """
    options = {"strict": strict or (len(items) == 1 and not as_json), "failed": _report}
    if len(items) < MANY:
        yield options
        return
    with progress_bar(title) as watch:
        yield options | {"watch": watch}


def _report(failure: Failure) -> None:
    say(f"left out: {failure.error}", error=True, lines=True)
