"""The command ``inspect``: what a bundle holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmim_export.console import print_json, print_section, print_table, say
from simmim_export.console.metrics import print_metrics
from simmim_export.console.options import AsJson, BundlePath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simmim_export.spec import TensorSpec

EXAMPLES = ("simmim-export inspect bundle", "simmim-export inspect bundle --json > bundle.json")


def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what a bundle holds and where it comes from.

    Lists its pipelines, inputs, labels, graphs, files and metrics.
    """
    from simmim_export.bundle import Bundle
    from simmim_export.spec import Reference
    from simmim_export.system.plain import as_json as plain

    opened = Bundle.open(bundle)
    opened.check()
    manifest = opened.manifest
    if as_json:
        print_json(plain(manifest) | {"digest": opened.digest})
        return
    megabytes = sum(artifact.bytes for artifact in manifest.artifacts) / 1e6
    say(f"{bundle}: preset {manifest.model['preset']}, {len(manifest.graphs)} graphs, {megabytes:.1f} MB")
    print_section("pipelines", (f"{one.name}: {' > '.join(one.graphs)}" for one in manifest.pipelines))
    image, text = manifest.preprocessing["image"], manifest.preprocessing["text"]
    facts = [
        f"image: {image['height']}x{image['width']} pixels, {image['resize']}, {image['interpolation']}",
        f"text: at most {text['max_length']} tokens",
        f"embedding: {manifest.embedding['dim']} channels, space {manifest.embedding['digest'][:12]}",
    ]
    facts += [f"labels of {head}: {', '.join(labels)}" for head, labels in manifest.labels.items()]
    print_section("inputs and labels", facts)
    tensors = ((f"{one.name}: {_names(one.inputs)}", f"  -> {_names(one.outputs)}") for one in manifest.graphs)
    print_section("graphs", (line for lines in tensors for line in lines))
    say()
    print_table(
        "files",
        ("graph", "variant", ">MB", f">error to|{manifest.reference.words}"),
        (
            (one.graph, one.variant, f"{one.bytes / 1e6:.2f}", f"{one.parity['scaled_error']:.1e}")
            for one in manifest.artifacts
        ),
    )
    plans = [f"{engine} with {variant}: {own[variant]}" for engine, own in manifest.plans.items() for variant in own]
    if plans:
        print_section("precision plans", plans)
    if manifest.metrics:
        say()
        print_metrics(manifest.metrics)
    kind = "checkpoint" if manifest.reference is Reference.PYTORCH else "adopted ONNX file"
    checkpoint = manifest.provenance["checkpoint_sha256"][:12]
    print_section("origin", (f"{kind} {checkpoint}, schema {manifest.schema}", f"digest {opened.digest}"))


def _names(tensors: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} ({', '.join(map(str, tensor.shape))})" for tensor in tensors)
