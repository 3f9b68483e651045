"""The peer of the contamination benchmarks, AllenAI's decon: its environment, its input and its output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import peer_environment
from planting import Item, ItemFile, read_lines

REQUIREMENT = "decontaminate==0.3.0.post4"
_OLDEST = (3, 12)

DETECT = """
import sys, decon
training, evals, reports, workers = sys.argv[1:]
decon.detect(decon.Config(training, evals, reports, worker_threads=int(workers)))
"""
"""Run in decon's environment with the folders of the corpus, of the references and of the reports, and the workers."""


def decon_python() -> Path:
    """The interpreter of an environment with decon: `EVALKIT_DECON_PYTHON`, or one made beside the checkout's own."""
    if given := os.environ.get("EVALKIT_DECON_PYTHON"):
        return Path(given)
    return peer_environment("peer-decon", [REQUIREMENT], python=_new_python()) / "python"


def _new_python() -> str:
    """An interpreter that decon's package can be installed for."""
    if sys.version_info >= _OLDEST:
        return sys.executable
    found = [path for minor in (12, 13, 14) if (path := shutil.which(f"python3.{minor}"))]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/3.1[2-4].*/bin/python3")))
    for python in found:  # pyenv's shims are on the PATH, and fail when the version is not installed
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    sys.exit(f"decon ({REQUIREMENT}) needs Python 3.12 to 3.14: install one, or set EVALKIT_DECON_PYTHON")


def write_references(benchmarks: Sequence[ItemFile], folder: Path) -> None:
    """Write the items as decon's reference records, as its own download does: one record for each choice."""
    folder.mkdir()
    number = 0
    for benchmark in benchmarks:
        with (folder / f"{benchmark.name}.jsonl").open("w", encoding="utf-8") as out:
            for item in benchmark.items:
                for record in _records(item):
                    number += 1
                    out.write(json.dumps({**record, "doc_id": number}) + "\n")


def _records(item: Item) -> list[dict[str, Any]]:
    common = {"eval_key": item.benchmark, "eval_instance_index": item.number, "split": "test"}
    return [
        {
            **common,
            "question": item.question,
            "answer": answer,
            "fingerprint": hashlib.sha256(f"{item.question}\0{answer}".encode()).hexdigest(),
            **({"sub_index": place, "is_correct": answer == item.answer} if item.choices else {}),
        }
        for place, answer in enumerate(item.choices or (item.answer,))
    ]


def read_reports(folder: Path) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    """Read which items decon found in which documents: (benchmark, item) and (corpus file, row)."""
    return {
        ((row["eval_key"], row["eval_instance_index"]), (row["training_file"], row["training_line"]))
        for path in folder.glob("*.jsonl")
        for row in read_lines(path)
    }


def seconds_in(printed: str, name: str) -> float:
    """Read one of the times that decon prints, such as "Index building time 26.02s" or "1m 5.3s"."""
    found = re.search(rf"{name}\s+((?:[\d.]+\s?(?:h|ms|m|s|μs)\s*)+)", printed)
    if found is None:
        sys.exit(f"decon's output has no '{name}':\n{printed}")
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "μs": 1e-6}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+)\s?(h|ms|m|s|μs)", found[1]))
