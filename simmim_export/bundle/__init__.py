"""The bundle: a folder with a model's graphs and the evidence that they compute what PyTorch computed (docs/format.md).

::

    manifest.json                      what the bundle holds, with a digest of every file below and of itself
    graphs/<graph>.<variant>.onnx
    tokenizer.json
    golden.npz                         inputs of every graph, and PyTorch's outputs for them
    evidence.npz                       questions with their answers, and PyTorch's answers

A device adds files that are not in the manifest and carry digests of their own:

    certificate.json                   what was proven there
    engines/<engine>/                  what was compiled there

Nothing is unpickled, a path that leaves the folder is refused, and a file is used only after its SHA-256 was checked. The
manifest is parsed once, into typed objects, and every field is checked then (:mod:`.manifest`).
"""

from simmim_export.bundle.manifest import SCHEMA, Artifact, Manifest, check_draft, digest_of, parse_manifest
from simmim_export.bundle.opened import Bundle
from simmim_export.bundle.staging import Staging

__all__ = ["SCHEMA", "Artifact", "Bundle", "Manifest", "Staging", "check_draft", "digest_of", "parse_manifest"]
