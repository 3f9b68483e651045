"""Connected components on the disk are scipy's, also where hardly an edge fits into the memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evalkit.dedup import components
from evalkit.dedup.arrays import load_array
from evalkit.dedup.components import connect
from evalkit.dedup.shuffle import sorted_rows, write_rows


def by_scipy(edges):
    """(node, least node of its component) of all nodes but the least ones."""
    n = int(edges.max(initial=-1)) + 1
    if not n:
        return []
    _, label = connected_components(coo_array((np.ones(len(edges)), edges.T), shape=(n, n)), directed=False)
    least = np.full(n, n)
    np.minimum.at(least, label, np.arange(n))
    return [(node, int(least[label[node]])) for node in range(n) if least[label[node]] != node]


def connected(folder, edges, memory_bytes, n_runs=3):
    runs = [folder / f"edges-{k}.npy" for k in range(n_runs)]
    for path, some in zip(runs, np.array_split(edges, n_runs), strict=True):
        write_rows(path, sorted_rows(some.copy()), is_passing=True)
    n = connect(runs, folder / "forest.npy", memory_bytes)
    forest = load_array(folder / "forest.npy")
    assert n == len(forest)
    assert len(list(folder.iterdir())) == n_runs + 1
    return list(map(tuple, forest.tolist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("components")


@given(st.integers(0, 1 << 30), st.integers(1, 60), st.integers(0, 120), st.sampled_from([2000, 6000, 1 << 20]))
@settings(max_examples=40, deadline=None)
def test_random_graphs_are_connected_as_by_scipy(folder, seed, n_nodes, n_edges, memory_bytes):
    edges = np.random.default_rng(seed).integers(0, n_nodes, (n_edges, 2))
    assert connected(folder, edges, memory_bytes) == by_scipy(edges)


N = 4000


@pytest.mark.parametrize(
    ("name", "most_rounds"),
    [("chain", 9), ("shuffled chain", 16), ("star", 3), ("star around the last", 4), ("giant", 7)],
)
def test_long_chains_and_giant_components_take_few_rounds(folder, monkeypatch, name, most_rounds):
    order = np.random.default_rng(1).permutation(N)
    edges = {
        "chain": np.column_stack([np.arange(N - 1), np.arange(1, N)]),
        "shuffled chain": np.column_stack([order[:-1], order[1:]]),
        "star": np.column_stack([np.zeros(N, dtype=np.int64), order + 1]),
        "star around the last": np.column_stack([np.full(N, N), order]),
        "giant": np.random.default_rng(2).integers(0, N, (2 * N, 2)),
    }[name]
    n_rounds, fingerprint = 0, components._fingerprint

    def counted(*arguments):
        nonlocal n_rounds
        n_rounds += 1
        return fingerprint(*arguments)

    monkeypatch.setattr(components, "_fingerprint", counted)
    # A tenth of the edges at a time.
    assert connected(folder, edges, 80_000) == by_scipy(edges)
    assert 0 < n_rounds <= most_rounds
