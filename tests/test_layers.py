"""Dependencies point one way: cli -> reports -> judges -> {runs, contamination} -> {corpora, stats, ...} -> tables."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LEVELS = {
    0: {"addresses", "errors", "files", "resources", "tables", "progress", "terminal", "__init__"},
    1: {"corpora", "engines", "stats", "tasks", "text"},
    2: {"runs", "contamination", "dedup"},
    3: {"judges"},
    4: {"reports"},
    5: {"places", "quickstart"},
    6: {"cli", "__main__"},
}
LEVEL_OF = {part: level for level, parts in LEVELS.items() for part in parts}
SOURCES = sorted((ROOT / "evalkit").rglob("*.py"))


def part_of(module: str) -> str:
    """The first name below `evalkit`: the unit that has a level."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path):
    """All evalkit modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "evalkit")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evalkit":
            if node.module == "evalkit":
                yield from (f"evalkit.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_its_own_package_and_lower_levels(path):
    relative = path.relative_to(ROOT / "evalkit")
    own = relative.parts[0].removesuffix(".py")
    assert own in LEVEL_OF, f"{own} has no level: give it one in this test and in docs/decisions.md"
    for module in imports_of(path):
        part = part_of(module)
        if part not in LEVEL_OF or part == own:  # `from evalkit import __version__`
            continue
        low_enough = LEVEL_OF[part] < LEVEL_OF[own] or (LEVEL_OF[part] == LEVEL_OF[own] == 0)
        assert low_enough, f"{relative} imports {module}, which is not below it"


def test_statistics_know_nothing_of_tables_models_or_corpora():
    for path in (ROOT / "evalkit" / "stats").glob("*.py"):
        assert {part_of(module) for module in imports_of(path)} <= {"stats", "errors"}, path


@pytest.mark.parametrize("module", ["evalkit", "evalkit.cli"])
def test_heavy_libraries_are_not_imported_at_start(module):
    heavy = {"numpy", "pandas", "torch", "pyarrow", "numba", "scipy", "lm_eval", "datasets", "matplotlib"}
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert heavy.isdisjoint(loaded)
