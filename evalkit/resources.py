"""Finds the data folders `tasks/`, `audits/` and `reports/`, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: Literal["tasks", "audits", "reports"]) -> Path:
    """Return the folder `name` that belongs to this evalkit.

    An installed wheel carries the folders inside the package; in a checkout they lie beside it.
    """
    installed = _PACKAGE / "resources_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
