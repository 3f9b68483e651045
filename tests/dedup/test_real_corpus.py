"""On 5,000 real documents: nothing is found that is not so, and what is very similar is found."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from evalkit.corpora.readers import read_shard
from evalkit.corpora.shards import find_shards
from evalkit.dedup.dedup import PAIRS_FILE, DedupSpec, dedup
from evalkit.dedup.shingles import Shingling, normalised, shingles_of
from evalkit.engines import LocalEngine

N = 5000


def all_pairs(texts, shingling, threshold):
    """The Jaccard similarities of all pairs that reach the threshold, by the product of the sets as a matrix."""
    numbers: dict[bytes, int] = {}
    sets = [[numbers.setdefault(one, len(numbers)) for one in shingles_of(text, shingling)] for text in texts]
    bounds = np.append(0, np.cumsum([len(one) for one in sets]))
    matrix = csr_array((np.ones(bounds[-1], dtype=np.int32), np.concatenate(sets), bounds), (len(sets), len(numbers)))
    common = (matrix @ matrix.T).tocoo()
    sizes = np.diff(bounds)
    similarity = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    chosen = (common.row < common.col) & (similarity >= threshold)
    pairs = zip(common.row[chosen].tolist(), common.col[chosen].tolist(), strict=True)
    return dict(zip(pairs, similarity[chosen].tolist(), strict=True))


def test_precision_is_one_and_the_very_similar_are_found(data_dir, tmp_path):
    [shard] = find_shards([str(data_dir / "corpora" / "assistant_answers.jsonl.zst")])
    texts = random.Random(0).sample([text for batch in read_shard(shard) for text in batch.texts.to_pylist()], N)
    (tmp_path / "sample.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    dedup(find_shards([str(tmp_path / "sample.jsonl")]), tmp_path / "out", DedupSpec(), engine=LocalEngine(1))
    found = {
        (row["one"], row["other"]): row["similarity"]
        for row in pq.read_table(tmp_path / "out" / PAIRS_FILE).to_pylist()
    }
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        first.setdefault(normalised(text), number)
    among = set(first.values())
    true = {pair: value for pair, value in all_pairs(texts, Shingling(), 0.8).items() if among.issuperset(pair)}
    assert len(true) > 20
    assert found.items() <= true.items()
    assert all(pair in found for pair, value in true.items() if value >= 0.9)
    # As many as the curve says, within five standard errors; of so few missed ones, Poisson's.
    missed = (1 - DedupSpec().chosen_bands.probability(np.array(list(true.values())))).sum()
    assert len(true) - len(found) < missed + 5 * np.sqrt(missed) + 1
