"""A deduplication on a cluster writes what one on one machine writes, byte for byte, whatever is lost on the way."""

from __future__ import annotations

import time

import pytest

from evalkit.corpora.shards import find_shards
from evalkit.dedup import dedup as deduplication
from evalkit.dedup import parts
from evalkit.dedup.dedup import CLUSTERS, PAIRS_FILE, WORK, DedupSpec, dedup
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shingles import Shingling
from evalkit.dedup.signatures import MinHashing
from evalkit.engines import LocalEngine
from tests.dedup import corpora
from tests.ray.conftest import STORE_BYTES

N_FILES = 12
SPEC = DedupSpec(MinHashing(Shingling("words", 3), num_perm=96), threshold=0.6, bands=Bands(24, 1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.write(tmp_path_factory.mktemp("corpus"), corpora.documents(240), N_FILES)


def run(corpus, out, engine, memory_bytes=1 << 17):
    """So little memory that there are several tasks of most kinds, and files that pass."""
    dedup(find_shards([str(corpus)]), out, SPEC, engine=engine, memory_bytes=memory_bytes)
    assert not (out / WORK).exists()
    return [(out / name).read_bytes() for name in (CLUSTERS, PAIRS_FILE)]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    """What this process writes."""
    return run(corpus, tmp_path_factory.mktemp("plain"), LocalEngine(1), deduplication.MEMORY_BYTES)


def test_three_nodes_write_what_one_machine_writes(corpus, plain, tmp_path, engine):
    assert run(corpus, tmp_path, engine) == plain


def slow_sign_part(task):
    """Each part takes as long as a real one might."""
    time.sleep(0.3)
    parts.sign_part(task)


def test_a_node_that_is_killed_in_the_middle_changes_nothing(corpus, plain, tmp_path, cluster, engine, monkeypatch):
    monkeypatch.setattr(deduplication, "sign_part", slow_sign_part)
    lost = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    original, n_done = engine.map, []

    def until_killed(function, tasks):
        for done in original(function, tasks):
            n_done.append(function)
            if len(n_done) == N_FILES // 2:
                cluster.remove_node(lost, allow_graceful=False)
            yield done

    monkeypatch.setattr(engine, "map", until_killed)
    assert run(corpus, tmp_path, engine) == plain
    assert n_done[N_FILES // 2] is slow_sign_part
