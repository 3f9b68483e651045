"""Clusters are stars around what is kept, whatever the order of the pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.dedup import clusters
from evalkit.dedup.arrays import load_array
from evalkit.dedup.clusters import ClusterTask, make_clusters
from evalkit.dedup.shuffle import from_bits, write_rows

N = 9
VALUES = st.lists(st.sampled_from([0.1, 0.5, 0.7, 0.8, 0.9, 1.0]), min_size=N * N, max_size=N * N)


def matrix_of(values):
    full = np.triu(np.array(values).reshape(N, N), 1)
    return full + full.T + np.eye(N)


def clustered(similarity, threshold, rank, order=None, split=True):
    pairs = np.array(
        [(i, j) for i, j in itertools.combinations(range(N), 2) if similarity[i, j] >= threshold], dtype=np.int64
    )
    pairs = pairs.reshape(-1, 2)[order if order is not None else slice(None)]
    return make_clusters(
        pairs, similarity[tuple(pairs.T)], rank, threshold, lambda some: similarity[tuple(some.T)], split=split
    )


def greedily(similarity, threshold, rank):
    """The definition: the best document that is left takes what is like it and connected to it; and so on."""
    group = list(range(N))
    for i, j in itertools.combinations(range(N), 2):
        if similarity[i, j] >= threshold:
            group = [min(group[i], group[j]) if one in (group[i], group[j]) else one for one in group]
    kept, left = {}, sorted(range(N), key=lambda one: rank[one])
    while left:
        head = left[0]
        mine = [one for one in left if group[one] == group[head] and similarity[head, one] >= threshold]
        kept |= dict.fromkeys(mine, head)
        left = [one for one in left if one not in mine]
    return {one: head for one, head in kept.items() if list(kept.values()).count(head) > 1}


@given(VALUES, st.permutations(range(N)), st.randoms())
def test_clusters_are_those_of_the_definition(values, rank, rng):
    similarity, rank = matrix_of(values), np.array(rank)
    found = clustered(similarity, 0.8, rank)
    assert dict(zip(found.documents.tolist(), found.kept.tolist(), strict=True)) == greedily(similarity, 0.8, rank)
    assert found.similarities.tolist() == similarity[found.documents, found.kept].tolist()
    n_pairs = int((np.triu(similarity, 1) >= 0.8).sum())
    order = np.array(rng.sample(range(n_pairs), n_pairs), dtype=np.int64)
    again = clustered(similarity, 0.8, rank, order)
    assert again.kept.tolist() == found.kept.tolist()


@given(VALUES, st.permutations(range(N)))
def test_what_only_a_runaway_chain_connects_is_clustered_by_known_pairs(values, rank):
    similarity, rank = matrix_of(values), np.array(rank)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clusters, "MEASURED_CLUSTERS", 0)
        found = clustered(similarity, 0.8, rank)
    # All similar pairs are known here, so nothing is lost.
    assert dict(zip(found.documents.tolist(), found.kept.tolist(), strict=True)) == greedily(similarity, 0.8, rank)
    assert found.similarities.tolist() == similarity[found.documents, found.kept].tolist()


def test_a_long_chain_takes_no_longer_than_its_pairs():
    n = 200_000
    pairs = np.column_stack([np.arange(n - 1), np.arange(1, n)])
    n_asked = 0

    def measure(some):
        nonlocal n_asked
        n_asked += len(some)
        return np.zeros(len(some))

    found = make_clusters(pairs, np.full(n - 1, 0.9), np.arange(n), 0.8, measure)
    assert found.kept.tolist() == [k - k % 2 for k in range(n)]
    assert n_asked <= clusters.MEASURED_CLUSTERS * n


def test_a_chain_is_split_unless_it_is_wanted():
    similarity = np.eye(N)
    for i in range(N - 1):
        similarity[i, i + 1] = similarity[i + 1, i] = 0.9
    chain = clustered(similarity, 0.8, np.arange(N))
    assert chain.kept.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]  # and 8 is alone
    assert (chain.n_split, chain.n_components, chain.largest_component) == (1, 1, N)
    assert clustered(similarity, 0.8, np.arange(N), split=False).kept.tolist() == [0] * N


class Known:
    """Similarities and tokens of documents, from arrays."""

    def __init__(self, similarity, tokens):
        self.similarity, self.tokens = similarity, tokens

    def measure(self, pairs):
        assert (pairs[:, 0] < pairs[:, 1]).all()
        return self.similarity[tuple(pairs.T)]

    def n_tokens(self, documents):
        return self.tokens[documents]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(2, 60),
    density=st.sampled_from([0.02, 0.05, 0.2]),
    measured=st.sampled_from([0, 1, 20]),
    split=st.booleans(),
    longest=st.booleans(),
    memory_bytes=st.sampled_from([1000, 3000, 6000]),
)
def test_components_that_do_not_fit_are_clustered_as_in_memory(
    tmp_path_factory, seed, n, density, measured, split, longest, memory_bytes
):
    rng = np.random.default_rng(seed)
    similarity = rng.choice([0.1, 0.7, 0.8, 0.9, 1.0], p=[1 - density, *[density / 4] * 4], size=(n, n))
    similarity = np.triu(similarity, 1)
    similarity[np.arange(n - 1), np.arange(1, n)] = 0.85  # one long chain through all of it
    similarity += similarity.T + np.eye(n)
    tokens = rng.integers(1, 5, n)
    pairs = np.argwhere(np.triu(similarity, 1) >= 0.8)
    values = similarity[tuple(pairs.T)]
    folder = tmp_path_factory.mktemp("large")
    write_rows(folder / "labelled.npy", np.column_stack([np.zeros(len(pairs), dtype=int), pairs, values.view(int)]))
    known = Known(similarity, tokens)
    task = ClusterTask(
        folder / "labelled.npy", 0, 1 << 63, known, known if longest else None, 0.8, split, memory_bytes,
        folder / "clusters.npy",
    )  # fmt: skip
    rank = np.arange(n)
    if longest:
        rank[np.lexsort((rank, -tokens))] = np.arange(n)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clusters, "MEASURED_CLUSTERS", measured)
        clusters.cluster(task)
        expected = make_clusters(pairs, values, rank, 0.8, known.measure, split=split)
    found = load_array(task.path)
    assert found[:, :2].tolist() == np.column_stack([expected.documents, expected.kept]).tolist()
    assert from_bits(found[:, 2]).tolist() == expected.similarities.tolist()
    counts = [expected.n_components, expected.largest_component, expected.n_split]
    assert load_array(task.counts_path).tolist() == counts
    assert len(list(folder.iterdir())) == 3
