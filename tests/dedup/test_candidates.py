"""Buckets, their signatures and their pairs in hardly any memory are those of brute force."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from evalkit.dedup import candidates
from evalkit.dedup.arrays import load_array, save_array
from evalkit.dedup.candidates import BucketTask, CandidateTask, Signatures, find_buckets, find_candidates
from evalkit.dedup.shuffle import equal_ranges, sorted_rows, write_rows

N, N_VALUES, LEAST = 400, 7, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, signatures of few values, and keys, of which one is that of half of all documents."""
    folder = tmp_path_factory.mktemp("candidates")
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 3, (N, N_VALUES)).astype(np.uint32) + np.uint32((1 << 32) - 3)
    # From the least to the greatest number there is, so that their order is that of unsigned ones.
    signatures[:, 0] = rng.choice([0, 5, 1 << 31, (1 << 32) - 1], N)
    keys = rng.integers(-(1 << 62), 1 << 62, 150)[rng.integers(0, 150, N)]
    keys[rng.random(N) < 0.5] = 12345
    cuts = [0, 150, 390, N]
    for number, (low, high) in enumerate(itertools.pairwise(cuts)):
        write_rows(folder / f"pack-{number}.npy", np.column_stack([np.arange(low, high), np.ones(high - low, int)]))
        save_array(folder / f"pack-{number}.signatures.npy", signatures[low:high])
        rows = np.column_stack([keys[low:high], np.arange(low, high)])
        write_rows(folder / f"run-{number}.npy", sorted_rows(rows))
    write_rows(folder / "parts.npy", np.array([[0, 1], [100, 0], [100, 1], [300, 0]]))
    packs = Signatures(tuple(cuts), tuple(folder / f"pack-{k}.npy" for k in range(3)), N_VALUES)
    return folder, signatures, keys, packs


def found_in(made, tmp_path, memory_bytes, n_ranges=3):
    folder, _, _, packs = made
    pairs, n_large, n_in_buckets = set(), 0, 0
    for number, (low, high) in enumerate(equal_ranges(n_ranges)):
        buckets, documents = tmp_path / f"buckets-{number}.npy", tmp_path / f"documents-{number}.npy"
        runs = tuple(folder / f"run-{k}.npy" for k in range(3))
        find_buckets(BucketTask(runs, low, high, memory_bytes, documents, buckets))
        assert load_array(documents)[:, 0].tolist() == sorted(set(load_array(buckets)[:, 1].tolist()))
        n_in_buckets += len(load_array(buckets))
        task = CandidateTask(
            buckets, packs, LEAST, folder / "parts.npy", memory_bytes, tmp_path / f"more-{number}.npy",
            tmp_path / f"pairs-{number}.npy",
        )  # fmt: skip
        find_candidates(task)
        rows = list(map(tuple, load_array(task.path).tolist()))
        assert rows == sorted(set(rows))
        assert load_array(task.documents)[:, 0].tolist() == sorted({k for row in rows for k in row})
        pairs |= set(rows)
        n_large += int(load_array(task.counts_path)[0])
    return pairs, n_large, n_in_buckets


@pytest.mark.parametrize("memory_bytes", [1000, 6000, 1 << 20])
@pytest.mark.parametrize("window", [2000, 20])
def test_pairs_are_those_of_all_buckets(made, tmp_path, monkeypatch, memory_bytes, window):
    _, signatures, keys, _ = made
    monkeypatch.setattr(candidates, "WINDOW", window)
    is_old = (np.arange(N) < 100) | ((np.arange(N) >= 100) & (np.arange(N) < 300))
    expected, n_large, n_in_buckets = set(), 0, 0
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key).tolist()
        n_in_buckets += len(members) if len(members) > 1 else 0
        if len(members) > window + 1:
            n_large += 1
            members.sort(key=lambda one: (signatures[one].tolist(), one))
        for (a, i), (b, j) in itertools.combinations(enumerate(members), 2):
            if b - a <= window and not (is_old[i] and is_old[j]) and (signatures[i] == signatures[j]).sum() >= LEAST:
                expected.add((min(i, j), max(i, j)))
    assert found_in(made, tmp_path, memory_bytes) == (expected, n_large, n_in_buckets)
    assert n_large == (window == 20)
    assert len(expected) > 500


def test_a_bucket_of_any_size_takes_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "WINDOW", 2)
    memory_bytes, peaks = 1 << 20, []
    for n in (1000, 50_000, 200_000):
        signatures = np.random.default_rng(0).integers(0, 1 << 32, (n, 8)).astype(np.uint32)
        write_rows(tmp_path / "pack.npy", np.column_stack([np.arange(n), np.ones(n, dtype=np.int64)]))
        save_array(tmp_path / "pack.signatures.npy", signatures)
        write_rows(tmp_path / "buckets.npy", np.column_stack([np.full(n, 7), np.arange(n)]))
        write_rows(tmp_path / "parts.npy", np.array([[0, 0]]))
        task = CandidateTask(
            tmp_path / "buckets.npy", Signatures((0, n), (tmp_path / "pack.npy",), 8), 8, tmp_path / "parts.npy",
            memory_bytes, tmp_path / "documents.npy", tmp_path / "pairs.npy",
        )  # fmt: skip
        del signatures
        tracemalloc.start()
        find_candidates(task)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert load_array(task.counts_path).tolist() == [1]
    # The documents alone are 1.6 MB, their signatures 6.4.
    assert peaks[2] < min(1.2 * peaks[1], 2 * memory_bytes), peaks
