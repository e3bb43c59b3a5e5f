"""The command ``adopt``: from ONNX files that somebody else exported to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.cli.lower import LowerOptions, MaxBatch, parity_by_graph
from simmim_export.cli.tables import print_parity, print_search
from simmim_export.console import print_json, print_table, progress_bar, say
from simmim_export.console.options import AsJson, Overwrite, output
from simmim_export.export.limits import MAX_BATCH

if TYPE_CHECKING:
    from simmim_export.export.adopt.canaries import Canary

EXAMPLES = (
    "simmim-export adopt model.onnx --like spec.toml -o bundle",
    "simmim-export adopt folder --like spec.toml --precision int8",
)


def adopt(
    lower: LowerOptions,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, or folder of them.", show_default=False)],
    like: Annotated[
        Path,
        typer.Option(
            "--like",
            metavar="SPEC",
            help="TOML file that says what the model is: inputs, outputs, preprocessing, tokenizer. See docs/adopt.md.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, output("BUNDLE", "Folder to write.")] = Path("bundle"),
    overwrite: Overwrite = False,
    max_batch: MaxBatch = MAX_BATCH,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of ONNX files that somebody else exported.

    Pixels, ids and masks are converted inside the graphs, as the spec file says. ONNX Runtime in FP32 is the reference. Exit code
    4 if outputs are not finite, are the same for different inputs, do not have unit length, or depend on the batch or on padding;
    or if a lower precision fails, as for onnx.
    """
    from simmim_export.bundle import Staging
    from simmim_export.errors import EngineUnavailable
    from simmim_export.export.limits import require_batch
    from simmim_export.system.outputs import full_disk, no_empty_folders

    chosen = lower.parse()
    require_batch(max_batch)
    with no_empty_folders(output), Staging(output, overwrite):
        pass
    try:
        from simmim_export.export.adopt.adopter import adopt_bundle
    except ModuleNotFoundError as error:
        fix = "pip install 'simmim-export[export]'"
        raise EngineUnavailable(f"adopting needs the package {error.name}", fix=fix) from error
    with full_disk(output), progress_bar("adopt", estimates=True) as progress:
        adopted = adopt_bundle(
            model,
            output,
            like=like,
            overwrite=overwrite,
            max_batch=max_batch,
            lower=chosen,
            evidence=lower.evidence,
            progress=progress,
        )
    exported = adopted.exported
    reference = exported.bundle.manifest.reference
    if as_json:
        document = {
            "bundle": str(exported.bundle.root),
            "reference": reference,
            "canaries": [canary.as_row() for canary in adopted.canaries],
            "parity": parity_by_graph(exported.reports),
            "planning": exported.bundle.manifest.provenance.get("planning", []),
        }
        print_json(document)
        return
    _print_canaries(adopted.canaries, f"{output}: canaries on real samples")
    say()
    print_parity(exported.reports, f"{output}: every file compared with {reference.words} at every shape checked")
    for search in exported.searches:
        print_search(search)


def _print_canaries(canaries: list[Canary], title: str) -> None:
    """Print the worst of each canary for each output."""
    worst: dict[tuple[str, str, str], Canary] = {}
    for one in canaries:
        key = one.graph, one.output, one.name
        other = worst.setdefault(key, one)
        if (one.measured > other.measured) != (one.name == "distinct"):
            worst[key] = one
    rows = [
        (one.graph, one.output, one.name, f"{one.measured:.1e}", f"{one.limit:.0e}", "yes" if one.passed else "NO")
        for one in worst.values()
    ]
    print_table(title, ("graph", "output", "canary", ">measured", ">limit", "passed"), rows)
