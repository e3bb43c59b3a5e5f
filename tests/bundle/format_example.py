"""Prints a manifest briefly, for docs/format.md: one of each, without what only people read.

``python tests/bundle/format_example.py BUNDLE/manifest.json``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# The most characters of a line.
WIDTH = 110


def shortened(manifest: dict[str, Any]) -> dict[str, Any]:
    """``manifest`` with its first graph and artifact, its first pipeline with labels, and what readers need of the rest."""
    pipeline = next(row for row in manifest["pipelines"] if row["labels"])
    return manifest | {
        "model": {"preset": manifest["model"]["preset"]},
        "graphs": manifest["graphs"][:1],
        "pipelines": [pipeline],
        "labels": {pipeline["labels"]: manifest["labels"][pipeline["labels"]]},
        "artifacts": manifest["artifacts"][:1],
        "provenance": {"checkpoint_sha256": manifest["provenance"]["checkpoint_sha256"]},
    }


def lines(value: Any, indent: str = "", *, room: int = WIDTH) -> str:
    """``value`` as JSON, with whatever fits into ``room`` characters on one line."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= room or not isinstance(value, dict | list):
        return text
    inner = indent + "  "
    if isinstance(value, list):
        parts = [lines(item, inner, room=WIDTH - len(inner)) for item in value]
        return f"[\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}]"
    rows = [
        f"{json.dumps(key)}: {lines(item, inner, room=WIDTH - len(inner) - len(key))}" for key, item in value.items()
    ]
    return f"{{\n{inner}" + f",\n{inner}".join(rows) + f"\n{indent}}}"


if __name__ == "__main__":
    print(lines(shortened(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
