"""Several attempts at one task at a time: all of them write what one alone writes, and leave nothing else."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from evalkit.dedup import candidates, clusters, shuffle
from evalkit.dedup.arrays import load_array, save_array
from evalkit.dedup.assemble import AssembleTask, assemble
from evalkit.dedup.candidates import CandidateTask, Signatures, find_candidates
from evalkit.dedup.clusters import ClusterTask, LabelTask, cluster, label_pairs
from evalkit.dedup.shuffle import MergeTask, sorting, write_rows

N = 100


class Unlike:
    """No further pairs are similar."""

    def measure(self, pairs):
        return np.full(len(pairs), 0.1)


def sort(task):
    with sorting(task.path, task.n_columns, task.memory_bytes) as add:
        for path in task.runs:
            add(load_array(path))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """One task of each kind that has files in between, with so little memory that it needs them."""
    monkeypatch.setattr(shuffle, "FAN_IN", 3)
    monkeypatch.setattr(candidates, "WINDOW", 3)
    monkeypatch.setattr(clusters, "MEASURED_CLUSTERS", 2)
    rng = np.random.default_rng(0)
    edges = np.sort(rng.integers(0, N, (3 * N, 2)), axis=1)
    edges = np.unique(edges[edges[:, 0] < edges[:, 1]], axis=0)
    values = rng.choice([0.8, 0.85, 0.9], len(edges)).view(np.int64)
    pairs, labelled, run, equal, parts, buckets = (
        tmp_path / f"{name}.npy" for name in ("pairs", "component", "run", "equal", "parts", "buckets")
    )
    write_rows(pairs, np.column_stack([edges, values]))
    write_rows(labelled, np.column_stack([np.zeros(len(edges), dtype=np.int64), edges, values]))
    write_rows(run, rng.integers(0, 1 << 40, (600, 2)))
    write_rows(equal, np.column_stack([np.arange(N, 2 * N), np.arange(N)]))
    write_rows(parts, np.array([[0, 0]]))
    write_rows(buckets, np.column_stack([np.full(N, 7), np.arange(N)]))
    write_rows(tmp_path / "pack.npy", np.column_stack([np.arange(N), np.ones(N, dtype=np.int64)]))
    save_array(tmp_path / "pack.signatures.npy", rng.integers(0, 2, (N, 4)).astype(np.uint32))
    kept = np.arange(N) // 10 * 10
    write_rows(tmp_path / "clusters.npy", np.column_stack([np.arange(N), kept, np.full(N, values[0])]))
    packs = Signatures((0, N), (tmp_path / "pack.npy",), 4)
    return {
        "sorting": (sort, MergeTask((run, run), 2, 3000, False, tmp_path / "sorted.npy")),
        "candidates": (
            find_candidates,
            CandidateTask(buckets, packs, 2, parts, 3000, tmp_path / "documents.npy", tmp_path / "found.npy"),
        ),
        "components": (label_pairs, LabelTask(pairs, (0.8, 0.9), 12_000, tmp_path / "labelled.npy")),
        "a large component": (
            cluster,
            ClusterTask(labelled, 0, 1 << 63, Unlike(), None, 0.8, True, 6000, tmp_path / "clustered.npy"),
        ),
        "numbers": (assemble, AssembleTask(tmp_path / "clusters.npy", equal, 3, 4000, tmp_path / "members.npy")),
    }


KINDS = ("sorting", "candidates", "components", "a large component", "numbers")


@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_that_runs_in_the_middle_of_another_changes_nothing(tasks, tmp_path, monkeypatch, kind):
    """While the one writes a file, and after that, the other runs from its beginning to its end."""
    function, task = tasks[kind]
    function(task)
    expected, files = load_array(task.path).tolist(), sorted(path.name for path in tmp_path.iterdir())
    original, depth, n_writes = shuffle.writing, 0, 0

    def once_more():
        nonlocal depth
        if not depth and n_writes in (2, 6, 11):
            depth += 1
            function(task)
            assert load_array(task.path).tolist() == expected
            depth -= 1

    @contextlib.contextmanager
    def writing(path, *given, **options):
        nonlocal n_writes
        n_writes += not depth
        with original(path, *given, **options) as write:
            yield write
            once_more()
        once_more()

    monkeypatch.setattr(shuffle, "writing", writing)
    function(task)
    assert n_writes > 5
    assert load_array(task.path).tolist() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == files


@pytest.mark.parametrize("kind", KINDS)
def test_attempts_at_the_same_time_are_all_right(tasks, tmp_path, kind):
    function, task = tasks[kind]
    begun = time.perf_counter()
    function(task)
    seconds = time.perf_counter() - begun
    expected, files = load_array(task.path).tolist(), sorted(path.name for path in tmp_path.iterdir())
    task.path.unlink()

    def attempt(number):
        time.sleep(number * seconds / 4)
        function(task)
        return load_array(task.path).tolist()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(attempt, range(3))) == [expected] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_what_a_killed_attempt_has_sent_is_not_taken_for_ones_own(tasks, tmp_path):
    function, task = tasks["a large component"]
    function(task)
    expected = load_array(task.path).tolist()
    for block in range(10):
        torn = np.arange(5).tobytes()
        (tmp_path / f"clustered.passing-0a1b2c3d.sent-{block}.npy").write_bytes(torn)
        (tmp_path / f"clustered.component.sent-{block}.npy").write_bytes(torn)
    again = replace(task, path=tmp_path / "clustered.npy")
    function(again)
    assert load_array(again.path).tolist() == expected
