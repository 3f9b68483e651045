"""The way of a corpus from its signatures on, for signatures that are made when they are read.

python benchmarks/dedup_shuffle.py FOLDER SIGNATURES WORKERS MEMORY_BYTES BANDSxROWS

Run by dedup_end_to_end.py. Nothing is stored of the signatures: each part makes its own from its number, twice (for the
band keys, and for those that share a band). Every hundredth document is an exact copy of an earlier one; of the others
some are planted copies, each value of which agrees with its original's with a given probability. The files in between,
the sorts, and all steps are those of `evalkit dedup --no-verify`; only the tables at the end are left out, since the
documents have no files. Ends with a line of JSON: seconds of each step, the peak of the own (anonymous) memory of this
process and of its workers, and of the files; pairs found of those planted, and pairs that nobody planted.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.dedup.arrays import load_array, save_array
from evalkit.dedup.dedup import DedupSpec, Run
from evalkit.dedup.lsh import Bands
from evalkit.dedup.parts import Part
from evalkit.engines import LocalEngine

NUM_PERM = 128
PART_DOCUMENTS = 250_000
SIMILARITIES = (0.65, 0.7, 0.8, 0.9)
"""Of the planted pairs."""

EQUAL_EVERY = 100
"""So many documents have an exact copy of an earlier one among them, the last."""


def mixed(values: npt.NDArray[np.uint64], salt: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 of numbers: random, and always the same."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(salt * 0x9E3779B97F4A7C15 % (1 << 64))
        values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return values ^ values >> np.uint64(31)


@dataclass(frozen=True)
class MadePart(Part):
    """A part whose signatures and hashes are made of its number.

    Attributes
    ----------
    first, n
        Its documents.
    planted
        File of int64[n_planted, 3], by document: document, pair, and the level of a copy or -1 for an original.
    """

    first: int
    n: int
    planted: Path

    @property
    def is_signed(self) -> bool:
        """Always."""
        return True

    @property
    def n_documents(self) -> int:
        """How many there are."""
        return self.n

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """All are of one token."""
        return np.ones(self.n, dtype=np.int64)

    @property
    def counts(self) -> dict[str, Any]:
        """All rows are documents."""
        return {"n_lines": self.n, "n_empty": 0, "n_bad": 0, "bad_rows": []}

    @property
    def signatures(self) -> npt.NDArray[np.uint32]:
        """Random ones, and those of planted pairs."""
        generator = np.random.Generator(np.random.SFC64([7, self.first]))
        values = generator.integers(0, 1 << 64, (self.n, NUM_PERM // 2), dtype=np.uint64, endpoint=False)
        values = values.view(np.uint32)
        rows = load_array(self.planted)
        rows = rows[slice(*np.searchsorted(rows[:, 0], [self.first, self.first + self.n]))]
        document, pair, level = rows.T
        cells = pair[:, np.newaxis].astype(np.uint64) * np.uint64(NUM_PERM) + np.arange(NUM_PERM, dtype=np.uint64)
        share = np.array([*SIMILARITIES, 1.0])[level][:, np.newaxis]
        agrees = mixed(cells, 1).astype(np.float64) < share * 2.0**64
        own = values[document - self.first]
        values[document - self.first] = np.where(agrees, mixed(cells, 2).astype(np.uint32), own)
        return values

    def hashes(self, name: str) -> Iterator[npt.NDArray[np.uint64]]:
        """Those of a document's number, or of the one that it is a copy of."""
        numbers = np.arange(self.first, self.first + self.n, dtype=np.uint64)
        copies = np.flatnonzero(numbers % EQUAL_EVERY == EQUAL_EVERY - 1)
        of = mixed(numbers[copies], 3) % numbers[copies]
        # A copy is of no copy.
        of -= (of % EQUAL_EVERY == EQUAL_EVERY - 1).astype(np.uint64)
        numbers[copies] = of
        yield np.column_stack([mixed(numbers, 4), mixed(numbers, 5)])


class FromSignatures(Run):
    """Takes given parts, and tells the seconds of each step."""

    def __init__(self, given: tuple[Part, ...], folder: Path, spec: DedupSpec, n_workers: int, memory_bytes: int):
        super().__init__([], folder, spec, "text", None, LocalEngine(n_workers), memory_bytes)
        self.given = given
        self.tasks = [None] * len(given)
        self.seconds: dict[str, float] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The given ones."""
        return self.given

    def _all(self, what: str, function: Any, tasks: Any) -> None:
        begun = time.perf_counter()
        super()._all(what, function, tasks)
        self.seconds[what] = self.seconds.get(what, 0) + time.perf_counter() - begun
        print(f"{time.strftime('%H:%M:%S')} {what}: {len(tasks)} tasks, {self.seconds[what]:.0f} s", file=sys.stderr)


class Watch:
    """Looks at the own memory of this process and of its workers, and at the files, from time to time."""

    def __init__(self, folder: Path) -> None:
        self.driver = self.worker = self.disk = 0
        self._folder, self._me, self._is_over = folder, os.getpid(), threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        turn = 0
        while not self._is_over.wait(0.1):
            self.driver = max(self.driver, self._own(self._me))
            for task in Path(f"/proc/{self._me}/task").iterdir():
                try:
                    children = (task / "children").read_text().split()
                except OSError:
                    continue
                self.worker = max([self.worker, *(self._own(int(one)) for one in children)])
            turn += 1
            if turn % 20 == 1:
                self.disk = max(self.disk, sum(self._sizes()))

    def _sizes(self) -> Iterator[int]:
        for path in self._folder.rglob("*.*"):
            try:
                yield path.stat().st_blocks * 512
            except OSError:
                continue

    @staticmethod
    def _own(process: int) -> int:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()


def plant(path: Path, n: int, n_planted: int) -> npt.NDArray[np.int64]:
    """Choose documents for so many pairs of each similarity; return them, int64[n_pairs, 2], the smaller first."""
    generator = np.random.default_rng(0)
    n_pairs = n_planted * len(SIMILARITIES)
    drawn = np.unique(generator.integers(0, n, 3 * n_pairs))
    drawn = generator.permutation(drawn[drawn % EQUAL_EVERY != EQUAL_EVERY - 1])[: 2 * n_pairs]
    pairs = np.sort(drawn.reshape(-1, 2), axis=1)
    level = np.repeat(np.arange(len(SIMILARITIES)), n_planted)
    number = np.arange(n_pairs)
    rows = np.concatenate([
        np.column_stack([pairs[:, 0], number, np.full(n_pairs, -1)]),
        np.column_stack([pairs[:, 1], number, level]),
    ])  # fmt: skip
    save_array(path, rows[np.argsort(rows[:, 0])])
    return pairs


def main() -> None:
    """Run the steps and print what they cost."""
    folder, n, n_workers, memory_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    n_planted = max(1000, n // 400)
    pairs = plant(folder / "planted.npy", n, n_planted)
    parts = tuple(
        MadePart(folder / f"part-{first}", first, min(PART_DOCUMENTS, n - first), folder / "planted.npy")
        for first in range(0, n, PART_DOCUMENTS)
    )
    # Verified by the estimate: there are no texts.
    spec = DedupSpec(threshold=0.4, bands=Bands(*map(int, sys.argv[5].split("x"))), verify=False)
    watch, begun = Watch(folder), time.perf_counter()
    run = FromSignatures(parts, folder / "out", spec, n_workers, memory_bytes)
    run.sign()
    run.find_exact()
    n_candidates, _ = run.find_pairs()
    run.make_clusters()
    seconds = time.perf_counter() - begun
    watch.stop()
    found = load_array(run.pairs)[:, :2]
    keys = np.sort(found[:, 0] * n + found[:, 1])
    wanted = pairs[:, 0] * n + pairs[:, 1]
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    is_found = keys[at] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
    told = {
        "seconds": seconds,
        "steps": {name: round(one, 1) for name, one in run.seconds.items()},
        "driver_bytes": watch.driver,
        "worker_bytes": watch.worker,
        "disk_bytes": watch.disk,
        "n_planted": n_planted,
        "found": [int(some.sum()) for some in np.split(is_found, len(SIMILARITIES))],
        "n_not_planted": len(found) - int(is_found.sum()),
        "n_candidates": n_candidates,
        "n_equal": len(load_array(run.equal)),
        "n_equal_planted": n // EQUAL_EVERY,
        "n_in_clusters": len(load_array(run.work / "members.npy")),
        "swapped": resource.getrusage(resource.RUSAGE_SELF).ru_nswap,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
