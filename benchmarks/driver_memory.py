"""Memory of the process that leads an audit, by the number of parts and files of the corpus.

    python benchmarks/driver_memory.py [--json] [--shapes 1000x1 1000x100 100000x1]

A shape is FILESxPARTS: so many files, each cut into so many parts of one document. A hundred documents hold a
benchmark item, whatever the shape, since memory does grow with what is found. The audit's own code makes the tasks,
joins what was found and writes the tables; only the workers are simulated: instead of scanning a part, they link what
the scan of such a part has written. Each shape is measured in a fresh process: its peak, and before that what
`find_shards` has left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from harness import arguments, finish, show

from evalkit.contamination import audit as audits
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.parts import ScanTask, scan_part
from evalkit.contamination.recorded import NEAR_SUFFIX
from evalkit.contamination.rules import load_rules
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine

SHAPES: Final = ("1000x1", "1000x100", "100000x1")
LINE_BYTES: Final = 1_000
FILES_IN_FOLDER: Final = 1_000
LINKS: Final = 10_000
"""Of one file; file systems allow some ten thousand."""

N_ITEMS: Final = 1_000
N_PLANTED: Final = 100


def question(number: int) -> str:
    """A question of twenty words that no other item has."""
    return " ".join(f"word{number * 20 + k}" for k in range(20))


class SimulatedWorkers(LocalEngine):
    """Workers that scan one part of each kind, and for the others link what they wrote for that."""

    def __init__(self) -> None:
        super().__init__(1)
        self._made: dict[Any, tuple[Path, int]] = {}

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Link each part's files to those of a part of its kind."""
        for number, task in enumerate(tasks):
            self._scan(task)
            yield number, None

    def _scan(self, task: ScanTask) -> None:
        part = task.shard
        with Path(str(part.path)).open("rb") as file:
            file.seek(part.start)
            # A line that begins at a cut belongs to the part before it.
            content = file.read((part.stop or part.size) - part.start + LINE_BYTES)
        kind = (content, part.start == 0, part.stop in (None, part.size))
        path, n_links = self._made.get(kind, (None, 0))
        if path is None or n_links >= LINKS:
            scan_part(task)
            self._made[kind] = (task.path, 1)
            return
        for suffix in (NEAR_SUFFIX, ".parquet"):
            os.link(path.with_suffix(suffix), task.path.with_suffix(suffix))
        self._made[kind] = (path, n_links + 1)


def line(*, has_item: bool) -> str:
    """A document of a fixed length."""
    text = (question(7) if has_item else "") + " the quick brown fox jumps over the lazy dog" * 30
    begin = json.dumps({"id": "d", "text": ""})[:-2]
    return begin + text[: LINE_BYTES - len(begin) - 3] + '"}\n'


def make_corpus(folder: Path, n_files: int, n_parts: int) -> None:
    """Write the items and the files, a thousand in a folder."""
    every = n_files * n_parts // N_PLANTED
    items = (json.dumps({"question": question(number)}) for number in range(N_ITEMS))
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")
    for number in range(n_files):
        place = folder / "corpus" / f"{number // FILES_IN_FOLDER:04}"
        place.mkdir(parents=True, exist_ok=True)
        documents = range(number * n_parts, (number + 1) * n_parts)
        lines = (line(has_item=document % every == 0) for document in documents)
        (place / f"part-{number % FILES_IN_FOLDER:05}.jsonl").write_text("".join(lines))


def lead(folder: Path, n_parts: int) -> None:
    """What the measured process does."""
    audits.PART_BYTES = LINE_BYTES
    shards = find_shards([str(folder / "corpus")])
    found = _peak()
    begun = time.monotonic()
    benchmark = from_file(folder / "items.jsonl")
    result = audits.audit(shards, [benchmark], load_rules(["llama3"]), folder / "out", engine=SimulatedWorkers())
    n_documents = len(shards) * n_parts
    if result.n_documents != n_documents or result.n_matches != N_PLANTED:
        raise SystemExit(f"error: {result.n_documents} documents and {result.n_matches} matches were found")
    print(json.dumps({"found_mib": round(found), "peak_mib": round(_peak()), "seconds": time.monotonic() - begun}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(shape: str) -> dict[str, float]:
    """Measure one shape in a fresh process."""
    n_files, n_parts = map(int, shape.split("x"))
    folder = Path(tempfile.mkdtemp(prefix="driver-memory-"))
    try:
        make_corpus(folder, n_files, n_parts)
        command = [sys.executable, __file__, "--lead", str(folder), str(n_parts)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        taken: dict[str, float] = json.loads(done.stdout)
        return taken
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="FILESxPARTS")
    parser.add_argument("--lead", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lead:
        lead(Path(options.lead[0]), int(options.lead[1]))
        return
    taken = {shape: measure(shape) for shape in options.shapes}
    first = taken[options.shapes[0]]["peak_mib"]
    show(
        "Memory of the leading process",
        ("files x parts", "files found", "peak", "of the first", "time"),
        [
            (
                shape,
                f"{one['found_mib']:,} MiB",
                f"{one['peak_mib']:,} MiB",
                f"{one['peak_mib'] / first:.2f}x",
                f"{one['seconds']:.0f} s",
            )
            for shape, one in taken.items()
        ],
    )
    figures: dict[str, float] = {f"peak_mib_{shape}": one["peak_mib"] for shape, one in taken.items()}
    finish(options, figures | {"driver_memory_ratio": round(max(figures.values()) / first, 2)})


if __name__ == "__main__":
    main()
