"""The bundle: a folder with a model's graphs and the proof that they compute what PyTorch computed (docs/format.md).

::

    manifest.json                      what the bundle holds, with the digest of every file below and its own
    graphs/<graph>.<variant>.onnx
    tokenizer.json
    golden.npz                         inputs of every graph, and PyTorch's outputs for them
    evidence.npz                       held-out examples with their labels, and PyTorch's outputs for them

A device adds files that are not in the manifest:

    certificate.json                   what was measured and proven on that device
    engines/<engine>/                  what was compiled for that device

Nothing is unpickled. A path that leads out of the folder is refused. A file of the manifest is used only after its SHA-256 was
checked. The manifest is parsed once, into typed objects, and every field is checked then (:mod:`.manifest`).
"""

from simmim_export.bundle.manifest import SCHEMA, Artifact, Manifest, check_draft, digest_of, parse_manifest
from simmim_export.bundle.opened import Bundle
from simmim_export.bundle.staging import Staging

__all__ = ["SCHEMA", "Artifact", "Bundle", "Manifest", "Staging", "check_draft", "digest_of", "parse_manifest"]
