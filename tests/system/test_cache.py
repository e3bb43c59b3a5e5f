"""Where the cache is, and when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_export.errors import NoCache
from simmim_export.system.cache import cache_folder


def test_variables_choose_the_cache_folder(tmp_path: Path) -> None:
    assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": "off"}) is None
    assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path / "a")}) == tmp_path / "a/x"
    assert cache_folder("x", {"XDG_CACHE_HOME": str(tmp_path / "b")}) == tmp_path / "b/simmim-export/x"
    assert (tmp_path / "a/x").is_dir() and (tmp_path / "b/simmim-export/x").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.warns(NoCache, match="SIMMIM_EXPORT_CACHE"):
        assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path / "file")}) is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(mode)
    with pytest.warns(NoCache, match=str(tmp_path / "x")):
        assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path)}) is None
    made = cache_folder("y", {"SIMMIM_EXPORT_CACHE": str(tmp_path)})
    assert made is not None and not made.stat().st_mode & 0o077


def test_a_user_without_a_home_has_no_cache() -> None:
    """As in a container that runs under a user number: no HOME, and no entry in passwd."""
    code = """
import os, pwd, warnings
from simmim_export.system.cache import cache_folder
os.environ.pop("HOME")
if os.getuid() == 0:
    os.setuid(54321)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert cache_folder("x", {}) is None or os.getuid() != 54321
print(*(f"{w.category.__name__}: {w.message}" for w in caught))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.getuid() != 0 or ("NoCache" in done.stdout and "SIMMIM_EXPORT_CACHE" in done.stdout)
