"""Deduplication finds what brute force finds, whatever the order, the workers, the parts and the kills."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from evalkit import tables
from evalkit.corpora.shards import find_shards
from evalkit.dedup import candidates, shuffle
from evalkit.dedup import dedup as deduplication
from evalkit.dedup.dedup import BAD_ROWS, CLUSTERS, PAIRS_FILE, RECORD, WORK, DedupSpec, dedup, read_result
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shingles import Shingling, normalised, shingles_of
from evalkit.dedup.signatures import MinHashing, sign
from evalkit.engines import LocalEngine
from evalkit.errors import InputError, SpecError
from tests.dedup import corpora

N = 240
TEXTS = corpora.documents(N)
# Bands of one value: a similar pair is not found once in 10^9.
SPEC = DedupSpec(MinHashing(Shingling("words", 3), num_perm=96), threshold=0.6, bands=Bands(24, 1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.write(tmp_path_factory.mktemp("corpus"), TEXTS, 6)


def run(corpus, out, spec=SPEC, n_workers=1, shards=None, **options):
    return dedup(shards or find_shards([str(corpus)]), out, spec, engine=LocalEngine(n_workers), **options)


def clusters(out):
    return tables.read(out / CLUSTERS, tables.CLUSTERS).to_pylist()


def in_clusters(out):
    """Document number -> (cluster, kept, similarity)."""
    return {int(row["doc_id"][1:]): (row["cluster_id"], row["keep"], row["similarity"]) for row in clusters(out)}


def pairs_of(out):
    return [tuple(row.values()) for row in pq.read_table(out / PAIRS_FILE).to_pylist()]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    return run(corpus, tmp_path_factory.mktemp("whole") / "out").directory


def test_the_pairs_are_those_of_brute_force(whole):
    first = {}
    for number, text in enumerate(TEXTS):
        first.setdefault(normalised(text) or text, number)
    expected = corpora.similar(TEXTS, SPEC.how.shingling, SPEC.threshold)
    among = set(first.values())
    assert pairs_of(whole) == sorted((i, j, value) for (i, j), value in expected.items() if {i, j} <= among)
    assert len(pairs_of(whole)) > 30


@pytest.mark.parametrize("keep", ["first", "longest"])
def test_every_removed_document_is_like_the_one_that_is_kept(corpus, tmp_path, keep):
    spec = replace(SPEC, keep=keep)
    result = run(corpus, tmp_path, spec)
    found = in_clusters(tmp_path)
    sets = [shingles_of(text, SPEC.how.shingling) for text in TEXTS]
    n_tokens = sign(TEXTS, SPEC.how).n_tokens
    kept_of = {cluster: number for number, (cluster, keep, _) in found.items() if keep}
    assert set(kept_of) == {cluster for cluster, _, _ in found.values()}
    for number, (cluster, is_kept, value) in found.items():
        head = kept_of[cluster]
        if is_kept:
            assert value is None
            continue
        if sets[number]:
            assert value == len(sets[number] & sets[head]) / len(sets[number] | sets[head]) >= SPEC.threshold
        better = (0, number) if keep == "first" else (-n_tokens[number], number)
        assert ((0, head) if keep == "first" else (-n_tokens[head], head)) < better
    # What is left has no two that are alike.
    left = [k for k in range(N) if k not in found or found[k][1]]
    assert not corpora.similar([TEXTS[k] for k in left], SPEC.how.shingling, SPEC.threshold)
    assert result.n_removed == N - len(left) == sum(not keep for _, keep, _ in found.values())


def test_texts_without_words_are_equal_only_as_they_are_written(whole):
    found = in_clusters(whole)
    assert TEXTS[N // 3] == TEXTS[N // 2] == "?!"
    assert found[N // 2][:2] == (found[N // 3][0], False)
    assert N // 4 not in found


def test_the_result_depends_neither_on_order_nor_on_workers_nor_on_parts(corpus, whole, tmp_path, monkeypatch):
    shards = list(find_shards([str(corpus)]))
    rng = random.Random(0)
    for number, (n_workers, n_bytes, memory) in enumerate(
        [(1, 1 << 30, 1 << 16), (2, 2500, 1 << 30), (1, 4000, 1 << 16)]
    ):
        monkeypatch.setattr(deduplication, "PART_BYTES", n_bytes)
        monkeypatch.setattr(deduplication, "FAN_IN", 4 if n_bytes == 4000 else 512)
        rng.shuffle(shards)
        out = run(
            corpus, tmp_path / str(number), n_workers=n_workers, shards=shards, memory_bytes=memory
        ).directory  # fmt: skip
        assert clusters(out) == clusters(whole)
        assert pairs_of(out) == pairs_of(whole)
        assert not (out / WORK).exists()


def test_a_run_whose_first_task_spills_makes_its_folder(tmp_path, monkeypatch):
    spilled = []
    original = shuffle.write_rows

    def write_rows(path, rows, **options):
        spilled.append(path)
        original(path, rows, **options)

    monkeypatch.setattr(shuffle, "write_rows", write_rows)
    short = corpora.write(tmp_path / "short", [f"w{k % 900}" for k in range(1500)], 1)
    spec = DedupSpec(MinHashing(num_perm=16), bands=Bands(4, 4))
    assert run(short, tmp_path / "out", spec, memory_bytes=1 << 15).n_same_text == 600
    assert "spilled" in spilled[0].name


class DyingEngine:
    """Does so many tasks, then dies."""

    def __init__(self, n_tasks):
        self.left = n_tasks

    def map(self, function, tasks):
        for number, task in enumerate(tasks):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield number, function(task)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=strategies.permutations(range(6)),
    kills=strategies.lists(strategies.integers(0, 12), max_size=4),
    first=strategies.sets(strategies.integers(0, 5), max_size=5),
    part_bytes=strategies.sampled_from([4000, 1 << 30]),
    memory=strategies.sampled_from([1 << 16, 1 << 30]),
)
def test_any_order_kills_and_additions_give_the_same_clusters(
    corpus, whole, tmp_path_factory, order, kills, first, part_bytes, memory
):
    shards = find_shards([str(corpus)])
    out = tmp_path_factory.mktemp("any") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplication, "PART_BYTES", part_bytes)
        if first:  # some files before the others
            run(corpus, out, shards=[shards[k] for k in order if k in first])
        for n_tasks in kills:
            with contextlib.suppress(KeyboardInterrupt):
                some = [shards[k] for k in reversed(order)]
                dedup(some, out, SPEC, engine=DyingEngine(n_tasks), overwrite=True, memory_bytes=memory)
        run(corpus, out, shards=[shards[k] for k in order], overwrite=True, memory_bytes=memory)
    assert clusters(out) == clusters(whole)
    assert pairs_of(out) == pairs_of(whole)


def test_a_run_that_dies_goes_on_where_it_was(corpus, whole, tmp_path):
    out = tmp_path / "out"
    spec = replace(SPEC, bands=Bands(4, 2))
    expected = clusters(run(corpus, tmp_path / "other", spec).directory)
    n_runs = 0
    while not (out / RECORD).exists():
        try:
            dedup(find_shards([str(corpus)]), out, spec, engine=DyingEngine(3))
        except KeyboardInterrupt:
            n_runs += 1
    # 6 to sign; 5 for equal texts, 1 for known pairs; 1 sort of keys, 1 of buckets, 1 pack, 1 of candidates; 6 sets, 1
    # comparison, 1 merge; 4 for clusters. Parts are counted anew in each run.
    assert n_runs == 12
    assert clusters(out) == expected


def test_a_run_in_little_memory_that_dies_again_and_again_goes_on(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplication, "FAN_IN", 3)
    out, spec, memory_bytes = tmp_path / "out", replace(SPEC, bands=Bands(4, 2), keep="longest"), 20_000
    expected = clusters(run(corpus, tmp_path / "other", spec).directory)
    n_runs = 0
    while not (out / RECORD).exists():
        with contextlib.suppress(KeyboardInterrupt):
            n_runs += 1
            dedup(find_shards([str(corpus)]), out, spec, engine=DyingEngine(5), memory_bytes=memory_bytes)
        assert n_runs < 100
    assert n_runs > 10
    assert clusters(out) == expected


def test_a_killed_run_goes_on(corpus, whole, tmp_path):
    out = tmp_path / "out"
    code = f"""
import time
from evalkit.corpora.shards import find_shards
from evalkit.dedup import dedup as module
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shingles import Shingling
from evalkit.dedup.signatures import MinHashing
from evalkit.engines import LocalEngine
original = module.sign_part
def sign_part(task):
    time.sleep(0.2)
    original(task)
module.sign_part = sign_part
spec = module.DedupSpec(MinHashing(Shingling("words", 3), num_perm=96), threshold=0.6, bands=Bands(24, 1))
module.dedup(find_shards([{str(corpus)!r}]), module.Path({str(out)!r}), spec, engine=LocalEngine(1))
"""
    signed = out / deduplication.SIGNATURES
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while process.poll() is None and len(list(signed.glob("*.parquet"))) < 2:
            time.sleep(0.01)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in signed.glob("*.parquet")}
    run(corpus, out)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in signed.glob("*.parquet")}.items()
    assert clusters(out) == clusters(whole)


@pytest.mark.parametrize("added", [[0], [5], [1, 3], [0, 1, 2, 3, 4]])
def test_what_is_added_is_compared_with_all(corpus, whole, tmp_path, added, monkeypatch):
    shards = find_shards([str(corpus)])
    out = tmp_path / "out"
    before = run(corpus, out, shards=[shard for k, shard in enumerate(shards) if k not in added])
    signed = {path: path.stat().st_mtime_ns for path in (out / deduplication.SIGNATURES).glob("*.npy")}
    after = run(corpus, out, overwrite=True)
    assert clusters(out) == clusters(whole)
    assert pairs_of(out) == pairs_of(whole)
    assert signed.items() <= {path: path.stat().st_mtime_ns for path in signed}.items()
    from_scratch = run(corpus, tmp_path / "scratch")
    assert 0 < after.n_candidates < from_scratch.n_candidates or len(added) == 5
    assert before.n_documents < after.n_documents
    # The same again compares nothing; without a file all is found anew.
    assert run(corpus, out, overwrite=True).n_candidates == 0
    assert clusters(out) == clusters(whole)
    fewer = run(corpus, out, shards=shards[1:], overwrite=True)
    assert clusters(out) == clusters(run(corpus, tmp_path / "fewer", shards=shards[1:]).directory)
    assert fewer.n_documents < after.n_documents


def test_a_run_that_dies_between_its_pairs_and_its_record_loses_nothing(corpus, whole, tmp_path, monkeypatch):
    shards = find_shards([str(corpus)])
    run(corpus, tmp_path / "0", shards=shards[1:5])
    with monkeypatch.context() as patch:
        patch.setattr(deduplication.Run, "_write_record", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "0", shards=shards[:5], overwrite=True)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    for name, memory in (("0", deduplication.MEMORY_BYTES), ("1", 1 << 24)):
        fewer = run(corpus, tmp_path / name, shards=shards[:5], overwrite=True, memory_bytes=memory)
        after = run(corpus, tmp_path / name, overwrite=True)
        assert clusters(tmp_path / name) == clusters(whole)
        assert pairs_of(tmp_path / name) == pairs_of(whole)
        assert after.n_documents > fewer.n_documents
        assert run(corpus, tmp_path / name, overwrite=True).n_candidates == 0


def test_the_tables_are_the_same_bytes_whatever_the_memory(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplication, "ROW_GROUP", 16)
    outs = [
        run(corpus, tmp_path / str(memory), memory_bytes=memory).directory for memory in (1 << 16, 1 << 20, 1 << 30)
    ]
    for name in (CLUSTERS, PAIRS_FILE):
        first, *others = ((out / name).read_bytes() for out in outs)
        assert others == [first, first]
        assert pq.ParquetFile(outs[0] / name).num_row_groups > 2
    alone = corpora.write(tmp_path / "alone", ["a b c d"], 1)
    out = run(alone, tmp_path / "none").directory
    assert [pq.ParquetFile(out / name).num_row_groups for name in (CLUSTERS, PAIRS_FILE)] == [1, 1]


def test_large_buckets_are_counted_and_near_copies_in_them_are_found(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "WINDOW", 1)
    result = run(corpus, tmp_path)
    assert result.n_large_buckets > 0
    assert set(pairs_of(tmp_path)) < set(pairs_of(whole))


def test_without_verification_the_estimate_decides(corpus, tmp_path):
    spec = replace(SPEC, verify=False)
    run(corpus, tmp_path, spec)
    signatures = sign(TEXTS, spec.how).signatures
    found = {(i, j): value for i, j, value in pairs_of(tmp_path)}
    for (i, j), value in found.items():
        assert value == (signatures[i] == signatures[j]).mean() >= spec.threshold
    among = {k for pair in found for k in pair}
    for i, j in itertools.combinations(sorted(among), 2):
        assert ((i, j) in found) == ((signatures[i] == signatures[j]).mean() >= spec.threshold)


def test_the_statistics_are_those_of_the_tables(corpus, tmp_path):
    result = run(corpus, tmp_path)
    found = in_clusters(tmp_path)
    sizes = {}
    for _, group in itertools.groupby(sorted(cluster for cluster, _, _ in found.values())):
        n = len(list(group))
        sizes[n] = sizes.get(n, 0) + 1
    assert result.cluster_sizes == sizes
    assert result.n_same_text == N - len(set(TEXTS))
    assert result.n_same_normalised == N - len({normalised(text) or text for text in TEXTS})
    assert result.documents_by_corpus == {str(corpus): N}
    assert result.removed_by_corpus == {str(corpus): result.n_removed}
    assert [t for t, _ in result.removed_at] == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    removed = [n for _, n in result.removed_at]
    assert removed == sorted(removed, reverse=True)
    record = orjson.loads((tmp_path / RECORD).read_bytes())
    assert record["n_documents"] == N
    assert record["bands"] == {"n_bands": 24, "n_rows": 1}


def test_rows_are_those_of_the_file(corpus, whole):
    for row in clusters(whole):
        lines = Path(row["file"]).read_bytes().split(b"\n")
        assert orjson.loads(lines[row["row"]])["id"] == row["doc_id"]


def test_a_corpus_without_duplicates_and_an_empty_one(tmp_path):
    alone = corpora.write(tmp_path / "alone", ["a b c d", "?!", "e f g h i"], 1)
    assert run(alone, tmp_path / "out").n_clusters == 0
    assert clusters(tmp_path / "out") == []
    empty = corpora.write(tmp_path / "empty", [], 2)
    assert run(empty, tmp_path / "none").n_documents == 0


def test_a_complete_run_is_read_and_not_made_again(corpus, whole, tmp_path):
    first = run(corpus, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(corpus, tmp_path) == first == read_result(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert first.largest[0].n_documents == max(first.cluster_sizes)
    with pytest.raises(InputError, match=r"no dedup\.json"):
        read_result(corpus)
    (tmp_path / RECORD).write_text('{"spec": {}}')
    with pytest.raises(InputError, match="not what evalkit dedup writes"):
        read_result(tmp_path)


def test_rows_that_cannot_be_read_are_counted_and_listed(corpus, whole):
    record = read_result(whole)
    assert (record.n_bad_rows, record.n_empty) == (6, 0)
    listed = [orjson.loads(line) for line in (whole / BAD_ROWS).read_bytes().splitlines()]
    assert [(Path(row["file"]).name, row["row"]) for row in listed] == [(f"{k:02}.jsonl", 0) for k in range(6)]


def test_mistakes_are_told(corpus, whole, tmp_path):
    with pytest.raises(SpecError, match="already holds"):
        run(corpus, whole, replace(SPEC, threshold=0.7))
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(SpecError, match="audit"):
        run(corpus, tmp_path)
    for wrong in ({"threshold": 0.0}, {"keep": "best"}, {"bands": Bands(97, 1)}):
        with pytest.raises(SpecError):
            replace(SPEC, **wrong)
    shutil.copytree(whole, tmp_path / "damaged")
    (tmp_path / "damaged" / RECORD).write_text("{")
    with pytest.raises(InputError, match="record"):
        run(corpus, tmp_path / "damaged", overwrite=True)
