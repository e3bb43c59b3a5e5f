"""A file is whole or not there, and a digest is of content alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from simmim_export.files import digest, replacing


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_digest_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert digest(tmp_path / "a") == hashlib.sha256(b"x").hexdigest()
    before = digest(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert digest(tmp_path) != before
