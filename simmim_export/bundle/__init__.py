"""The bundle: a folder that holds a model's graphs and the evidence that they compute what PyTorch computed.

::

    manifest.json                      what is inside, with a digest of every file named below and of itself
    graphs/<graph>.<variant>.onnx
    tokenizer.json
    golden.npz                         inputs of every graph, and what PyTorch gave for them
    evidence.npz                       questions with their answers, and what PyTorch answered

and, made on a device and not named in the manifest, each with its own digests:

    certificate.json                   what was proven there (certificate.py)
    engines/<engine>/                  what was compiled there (engines/)

Nothing is unpickled, a path that leaves the folder is refused, and a file is used only after its SHA-256 was checked. A
manifest is parsed once, into typed objects, and everything in it is checked there (:mod:`.manifest`).
"""

from simmim_export.bundle.manifest import SCHEMA, Artifact, Manifest, check_draft, digest_of, parse_manifest
from simmim_export.bundle.opened import Bundle
from simmim_export.bundle.staging import Staging

__all__ = ["SCHEMA", "Artifact", "Bundle", "Manifest", "Staging", "check_draft", "digest_of", "parse_manifest"]
