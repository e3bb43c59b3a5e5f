"""Opens the model that the engine options of a command ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simmim_export.console import say
from simmim_export.console.options import EngineOptions

if TYPE_CHECKING:
    from simmim_export.runtime import Model


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
