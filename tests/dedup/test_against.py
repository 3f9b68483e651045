"""Benchmark items that stand in a corpus as documents, perhaps edited, are found as brute force finds them."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest

from evalkit import tables
from evalkit.corpora.shards import find_shards
from evalkit.dedup.against import NEAR, ItemText, against
from evalkit.dedup.dedup import SIGNATURES, DedupSpec, dedup
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shingles import Shingling, shingles_of
from evalkit.dedup.signatures import MinHashing, sign
from evalkit.engines import LocalEngine
from evalkit.errors import SpecError
from tests.dedup import corpora

SPEC = DedupSpec(MinHashing(Shingling("words", 2), num_perm=64), threshold=0.5, bands=Bands(32, 1))


@pytest.fixture(scope="module")
def leaked(tmp_path_factory):
    """Items, and documents of which some are copies of them: folder, texts, items."""
    rng = random.Random(5)
    items = [
        ItemText("b" if number % 2 else "a", f"{number:064x}", "question", " ".join(rng.choices(corpora.WORDS, k=25)))
        for number in range(20)
    ]
    items += [ItemText("a", "f" * 64, "question", "?!")]
    texts = corpora.documents(60, seed=9)
    for number in range(0, 12):
        words = corpora.edited(items[number].text.split(), number % 4, rng)
        texts += [" ".join(words), " ".join(words).upper()][: 1 + number % 2]
    return corpora.write(tmp_path_factory.mktemp("leaked"), texts, 3), texts, items


def run(folder, items, out, n_workers=1, **options):
    return against(find_shards([str(folder)]), items, out, SPEC, engine=LocalEngine(n_workers), **options)


def test_the_pairs_are_those_of_brute_force(leaked, tmp_path):
    folder, texts, items = leaked
    result = run(folder, items, tmp_path)
    sets, wanted = ([shingles_of(one, SPEC.how.shingling) for one in some] for some in (texts, [i.text for i in items]))
    signatures, of_items = (sign(some, SPEC.how).signatures for some in (texts, [item.text for item in items]))
    expected = {}
    for k, item in enumerate(items):
        for d in range(len(texts)):
            value = len(wanted[k] & sets[d]) / len(wanted[k] | sets[d]) if wanted[k] else 0.0
            if value >= SPEC.threshold:
                estimate = float((signatures[d] == of_items[k]).mean())
                expected[item.doc_hash, f"d{d}"] = item.benchmark, value, estimate
    near = pq.read_table(tmp_path / NEAR).to_pylist()
    assert {
        (row["doc_hash"], row["doc_id"]): (row["benchmark"], row["similarity"], row["estimate"]) for row in near
    } == expected
    assert len(expected) == len(near) == result.n_pairs > 12
    rows = tables.read(tmp_path / "items.parquet", tables.ITEMS).to_pylist()
    assert [row["doc_hash"] for row in rows] == [item.doc_hash for item in items]
    for row in rows:
        mine = {pair: value for pair, value in expected.items() if pair[0] == row["doc_hash"]}
        assert row["label"] == ("dirty" if mine else "clean")
        assert row["n_documents"] == len(mine)
        assert row["contamination"] == max((value for _, value, _ in mine.values()), default=0.0)
    assert sum(result.n_dirty.values()) == sum(row["label"] == "dirty" for row in rows)
    matches = tables.read(tmp_path / "matches.parquet", tables.MATCHES).to_pylist()
    assert len(matches) == len(expected)
    for row in matches:
        assert (row["start"], row["end"]) == (0, len(texts[int(row["doc_id"][1:])]))


def test_workers_and_a_second_run_change_nothing(leaked, tmp_path):
    folder, _, items = leaked
    run(folder, items, tmp_path / "one")
    run(folder, items, tmp_path / "two", n_workers=2)
    run(folder, items, tmp_path / "two", overwrite=True)
    one, two = (pq.read_table(tmp_path / name / NEAR) for name in ("one", "two"))
    assert one.equals(two)


def test_mistakes_are_told(leaked, tmp_path):
    folder, _, items = leaked
    for wrong in ([], [items[0], items[0]]):
        with pytest.raises(SpecError):
            run(folder, wrong, tmp_path)
    run(folder, items, tmp_path)
    with pytest.raises(SpecError, match="already holds"):
        run(folder, items, tmp_path)


def test_a_deduplication_in_the_same_directory_shares_the_signatures(leaked, tmp_path):
    folder, _, items = leaked
    dedup(find_shards([str(folder)]), tmp_path, SPEC, engine=LocalEngine(1))
    signed = {path: path.stat().st_mtime_ns for path in (tmp_path / SIGNATURES).iterdir()}
    run(folder, items, tmp_path)
    assert signed.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / SIGNATURES).iterdir()}.items()
    run(folder, items, tmp_path / "alone")
    assert pq.read_table(tmp_path / NEAR).equals(pq.read_table(tmp_path / "alone" / NEAR))
