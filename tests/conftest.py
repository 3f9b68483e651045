"""Fixtures for all tests: the real data that lie outside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real benchmarks and corpora; CI must have it, others may do without."""
    folder = Path(os.environ.get("EVALKIT_DATA", ROOT.parent / "shared" / "data"))
    folder = folder if folder.is_absolute() else ROOT / folder
    if not folder.is_dir():
        reason = f"the real data are absent: set EVALKIT_DATA (looked in {folder})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder
