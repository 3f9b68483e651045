"""Memory of the process that leads an audit, by the number of corpus files: it should not depend on it.

    python benchmarks/driver_memory.py [--json] [--files 1000 100000]

Tiny files are written, each with one document, of which one in ten holds a benchmark item. The audit's own code makes
the tasks, joins what was found and writes the tables; only the workers are simulated: instead of scanning a part, they
copy what the scan of such a part has written. Each size is measured in a fresh process: its peak, and before that what
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

from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.parts import ScanTask, scan_part
from evalkit.contamination.recorded import NEAR_SUFFIX
from evalkit.contamination.rules import load_rules
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine

SIZES: Final = (1_000, 100_000)
FILES_IN_FOLDER: Final = 1_000
LINKS: Final = 10_000
"""Of one file; file systems allow some ten thousand."""

N_ITEMS: Final = 1_000


def question(number: int) -> str:
    """A question of twenty words that no other item has."""
    return " ".join(f"word{number * 20 + k}" for k in range(20))


class SimulatedWorkers(LocalEngine):
    """Workers whose parts were all scanned before, in a sense: two kinds of parts are, and the others are links."""

    def __init__(self) -> None:
        super().__init__(1)
        self._made: dict[bool, tuple[Path, int]] = {}

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Link each part's files to those of a part of its kind."""
        for number, task in enumerate(tasks):
            self._scan(task)
            yield number, None

    def _scan(self, task: ScanTask) -> None:
        has_item = Path(str(task.shard.path)).name.endswith("0.jsonl")
        path, n_links = self._made.get(has_item, (None, 0))
        if path is None or n_links >= LINKS:
            scan_part(task)
            self._made[has_item] = (task.path, 1)
            return
        for suffix in (NEAR_SUFFIX, ".parquet"):
            os.link(path.with_suffix(suffix), task.path.with_suffix(suffix))
        self._made[has_item] = (path, n_links + 1)


def make_corpus(folder: Path, n_files: int) -> None:
    """Write the items and tiny files, a thousand in a folder."""
    items = (json.dumps({"question": question(number)}) for number in range(N_ITEMS))
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")
    filler = "the quick brown fox jumps over the lazy dog " * 20
    for number in range(n_files):
        place = folder / "corpus" / f"{number // FILES_IN_FOLDER:04}"
        place.mkdir(parents=True, exist_ok=True)
        text = filler + (question(7) if number % 10 == 0 else "")
        (place / f"part-{number % FILES_IN_FOLDER:05}.jsonl").write_text(json.dumps({"id": "d", "text": text}) + "\n")


def lead(folder: Path) -> None:
    """What the measured process does."""
    shards = find_shards([str(folder / "corpus")])
    found = _peak()
    begun = time.monotonic()
    benchmark = from_file(folder / "items.jsonl")
    result = audit(shards, [benchmark], load_rules(["llama3"]), folder / "out", engine=SimulatedWorkers())
    if result.n_documents != len(shards) or result.n_matches != -(-len(shards) // 10):
        raise SystemExit(f"error: {result.n_documents} documents and {result.n_matches} matches were found")
    print(json.dumps({"after_find_mib": found, "peak_mib": _peak(), "seconds": time.monotonic() - begun}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n_files: int) -> dict[str, float]:
    """Measure one size in a fresh process."""
    folder = Path(tempfile.mkdtemp(prefix="driver-memory-"))
    try:
        make_corpus(folder, n_files)
        command = [sys.executable, __file__, "--lead", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"n_files": n_files, **json.loads(done.stdout)}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--files", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--lead", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lead:
        lead(options.lead)
        return
    measured = [measure(n_files) for n_files in options.files]
    ratio = measured[-1]["peak_mib"] / measured[0]["peak_mib"]
    if options.json:
        print(json.dumps({"sizes": measured, "driver_memory_ratio": ratio}))
        return
    for one in measured:
        print(
            f"{one['n_files']:>8,} files: peak {one['peak_mib']:,.0f} MiB, {one['after_find_mib']:,.0f} MiB when they "
            f"were found; {one['seconds']:,.0f} s"
        )
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
