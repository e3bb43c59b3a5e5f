"""Fixtures for certificates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import row, typed

from simmim_export.bundle import Bundle
from simmim_export.proof.records import Certificate


@pytest.fixture(scope="session")
def certificate(tiny_bundle: Path) -> Callable[..., Certificate]:
    """``certificate(engine, precision=..., seconds=..., **changes)`` of the tiny bundle: whole, and in agreement with itself."""
    opened = Bundle.open(tiny_bundle)
    return lambda *words, **changes: typed(row(opened, *words, **changes))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle, to put a certificate into. Its files are links: write new ones, and change none."""
    return Bundle.open(
        shutil.copytree(
            tiny_bundle, tmp_path / "bundle", copy_function=os.link, ignore=shutil.ignore_patterns(".certificate*")
        )
    )
