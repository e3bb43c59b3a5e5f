"""The command ``inspect``: what a bundle holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmim_export.console import print_json, print_table, stdout_console
from simmim_export.console.app import App
from simmim_export.console.metrics import print_metrics
from simmim_export.console.options import AsJson, BundlePath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simmim_export.spec import TensorSpec

EXAMPLES = ("simmim-export inspect bundle", "simmim-export inspect bundle --json > bundle.json")


def register(app: App) -> None:
    """Add the command to ``app``."""
    app.command(examples=EXAMPLES)(inspect)


def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what a bundle holds and where it comes from.

    Lists its pipelines, inputs, labels, graphs, files and metrics.
    """
    from simmim_export.bundle import Bundle
    from simmim_export.spec import as_json as plain

    opened = Bundle.open(bundle)
    opened.check()
    manifest = opened.manifest
    if as_json:
        print_json(plain(manifest) | {"digest": opened.digest})
        return
    console = stdout_console()
    megabytes = sum(artifact.bytes for artifact in manifest.artifacts) / 1e6
    console.print(f"{bundle}: preset {manifest.model['preset']}, {len(manifest.graphs)} graphs, {megabytes:.1f} MB")
    console.print("")
    console.print("pipelines")
    for pipeline in manifest.pipelines:
        console.print(f"  {pipeline.name}: {' > '.join(pipeline.graphs)}")
    console.print("")
    console.print("inputs and labels")
    image, text = manifest.preprocessing["image"], manifest.preprocessing["text"]
    console.print(f"  image: {image['height']}x{image['width']} pixels, {image['resize']}, {image['interpolation']}")
    console.print(f"  text: at most {text['max_length']} tokens")
    console.print(f"  embedding: {manifest.embedding['dim']} channels, space {manifest.embedding['digest'][:12]}")
    for head, labels in manifest.labels.items():
        console.print(f"  labels of {head}: {', '.join(labels)}")
    console.print("")
    console.print("graphs")
    for graph in manifest.graphs:
        console.print(f"  {graph.name}: {_tensors(graph.inputs)}")
        console.print(f"    -> {_tensors(graph.outputs)}")
    console.print("")
    print_table(
        "files",
        ("graph", "variant", ">MB", ">error to|PyTorch"),
        (
            (one.graph, one.variant, f"{one.bytes / 1e6:.2f}", f"{one.parity['scaled_error']:.1e}")
            for one in manifest.artifacts
        ),
    )
    if manifest.metrics:
        console.print("")
        print_metrics(manifest.metrics)
    console.print("")
    console.print("origin")
    console.print(f"  checkpoint {manifest.provenance['checkpoint_sha256'][:12]}, schema {manifest.schema}")
    console.print(f"  digest {opened.digest}")


def _tensors(tensors: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} ({', '.join(map(str, tensor.shape))})" for tensor in tensors)
