"""The report as a notebook: every figure and table is made anew by a public call of two or three lines."""

from __future__ import annotations

import hashlib
import json
import pprint
from pathlib import Path
from typing import Any, Final

from evalkit.reports.document import Claim, Report, markdown_text

_OPENING: Final = (
    "The report as a notebook: run it from top to bottom, then change what you like. Every cell calls a public "
    "function on the run directories; nothing is copied from the report that this was written with."
)

# What a researcher would change: the call behind each figure.
_CALLS: Final = {
    "forest": "from evalkit.reports.figures import forest_plot\n\nforest_plot(report.comparison)",
    "discordance": "from evalkit.reports.figures_evidence import discordance_bars\n\n"
    "discordance_bars(report.comparison)",
    "power": "from evalkit.reports.figures_evidence import power_curve\n\npower_curve(report.comparison)",
    "seeds": "from evalkit.reports.figures_evidence import seed_strip\n\nseed_strip(report.comparison)",
    "leaks": "from evalkit.reports.figures_evidence import leak_strip\n\nleak_strip(report.comparison)",
    "orders": 'report.figure("orders")',
    "trend": "from evalkit.reports.trend import checkpoint_trend\n\ncheckpoint_trend(report.trend)",
}


def notebook(report: Report) -> str:
    """Return the notebook as JSON (nbformat 4.5), without outputs.

    It works in JupyterLab, in VS Code, and converted by `marimo convert`: a cell uses only names that cells above it
    define once.
    """
    cells = [_markdown(f"# {markdown_text(report.title)}\n\n{_OPENING}"), _code(_load(report))]
    for claim in report.claims:
        cells += _cells(claim, report)
    cells.append(
        _markdown("## On your own\n\nThe comparison as a data frame; each result has `.to_frame()` and `.explain()`.")
    )
    cells.append(_code("report.comparison.to_frame()"))
    for place, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{place}:{cell['source']}".encode()).hexdigest()[:12]
    document = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1) + "\n"


def _load(report: Report) -> str:
    given = dict(report.made_by)
    runs = [_absolute(one) for one in given.pop("runs", [])]
    options = {
        name: _absolute(one) if isinstance(one, str | Path) and name in _PATHS else one for name, one in given.items()
    }
    lines = ["import evalkit", "", f"runs = {pprint.pformat(runs, width=110)}"]
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return "\n".join([*lines, f"report = evalkit.report(*runs{arguments})", "print(report)"])


_PATHS: Final = frozenset({"audit", "judge", "judge_labels", "checkpoints"})


def _absolute(place: Any) -> str:
    """A folder as an absolute path, so that the notebook can be moved; what is none stays."""
    path = Path(str(place))
    return str(path.resolve()) if path.exists() else str(place)


def _cells(claim: Claim, report: Report) -> list[dict[str, Any]]:
    cells = [_markdown(f"## {markdown_text(claim.title)}"), _code(f'report["{claim.key}"]')]
    return cells + [_code(_CALLS[name]) for name in claim.figures if name in report.drawings]


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}
