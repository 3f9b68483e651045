"""Which documents are equal: a shuffle of the hashes of all texts, a range of the hashes at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalkit.dedup.parts import Part
from evalkit.dedup.shuffle import merged, rows_within, sorting

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Parts of the corpus that follow each other and are shuffled together, so that there are fewer files.

    Attributes
    ----------
    number
        Among the groups.
    parts, firsts
        The parts, and the number of the first document of each among all documents; one number more at the end.
    """

    number: int
    parts: tuple[Part, ...]
    firsts: tuple[int, ...]


@dataclass(frozen=True)
class HashTask:
    """The hashes of the texts of a group to be sorted.

    Attributes
    ----------
    group
        Which.
    column
        "text_hash" or "raw_hash".
    n_alike
        Documents from this number on are left out.
    memory_bytes
        For the rows.
    path
        Run to be written: 64 bits of the hash, the other 64, document.
    """

    group: Group
    column: str
    n_alike: int
    memory_bytes: int
    path: Path


def sort_hashes(task: HashTask) -> None:
    """Write the sorted hashes of a group."""
    with sorting(task.path, 3, task.memory_bytes, n_keys=1) as add:
        for part, first in zip(task.group.parts, task.group.firsts, strict=False):
            done = first
            for hashes in part.hashes(task.column) if first < task.n_alike else ():
                documents = np.arange(done, done + len(hashes))
                add(np.column_stack([hashes.view(np.int64), documents])[: max(0, task.n_alike - done)])
                done += len(hashes)


@dataclass(frozen=True)
class EqualTask:
    """A range of hashes to be looked through for equal ones.

    Attributes
    ----------
    runs
        What `sort_hashes` has written.
    low, high
        The range of the first 64 bits.
    memory_bytes
        For the rows.
    is_counted
        Whether only the number of documents is wanted that are equal to an earlier one.
    path
        Run to be written: document, the first one that is equal; or one row with the number.
    """

    runs: tuple[Path, ...]
    low: int
    high: int
    memory_bytes: int
    is_counted: bool
    path: Path


def find_equal(task: EqualTask) -> None:
    """Write the documents that are equal to an earlier one."""
    n_equal, head = 0, np.zeros(3, dtype=np.int64)
    is_begun = False
    with sorting(task.path, 1 if task.is_counted else 2, task.memory_bytes // 2) as add:
        for window in merged(task.runs, rows_within(task.memory_bytes // 2, 3), task.low, task.high, n_keys=1):
            # With the first of the last ones before: equal rows may go on from window to window.
            rows = np.concatenate([head[np.newaxis], window])
            is_first = np.append(True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1))
            is_first[1] |= not is_begun
            is_begun = True
            first = rows[np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0)), 2]
            n_equal += int((~is_first).sum())
            if not task.is_counted:
                add(np.column_stack([rows[~is_first, 2], first[~is_first]]))
            head = np.append(rows[-1, :2], first[-1])
        if task.is_counted:
            add(np.array([[n_equal]]))
