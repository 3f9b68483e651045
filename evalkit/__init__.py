"""evalkit: is B really better than A? Evaluation, contamination audit and statistics joined by one table."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What notebooks call. By name, so that `import evalkit` imports nothing else and no layer depends on a higher one.
_PUBLIC = {
    "load_run": "reports.inputs",
    "compare": "reports.comparison",
    "report": "reports.significance",
    "write_report": "reports.significance",
    "trend": "reports.trend",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the keys are texts


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'evalkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"evalkit.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
