"""Repeated passages are those that looking at every window finds, whatever the workers, the parts and the kills."""

from __future__ import annotations

import json
import random

import pytest

from evalkit import tables
from evalkit.corpora.shards import find_shards
from evalkit.dedup import dedup as deduplication
from evalkit.dedup import substrings
from evalkit.dedup.substrings import FILE, SUBSTRINGS, find_substrings
from evalkit.engines import LocalEngine
from evalkit.errors import SpecError
from evalkit.text.tokens import tokens
from tests.dedup import corpora
from tests.dedup.test_dedup import DyingEngine

N_TOKENS = 7


def documents(n=120):
    rng = random.Random(2)
    passages = [rng.choices(corpora.WORDS, k=rng.choice([5, 6, 7, 8, 20, 60])) for _ in range(15)]
    texts = []
    for _ in range(n):
        words = rng.choices(corpora.WORDS, k=rng.choice([0, 3, 30]))
        for _ in range(rng.choice([0, 0, 1, 2])):
            passage = rng.choice(passages)
            cut = rng.randrange(len(passage))
            words[rng.randint(0, len(words)) : 0] = rng.choice([passage, passage[cut:], passage[:cut]])
        texts.append(rng.choice([" ", ", "]).join(words))
    return [*texts, "a b " * 10, "b a " * 9]


TEXTS = documents()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.write(tmp_path_factory.mktemp("corpus"), TEXTS, 4)


def brute(texts, n):
    """(document, start, end, tokens, documents, is a repeat) of each passage."""
    read = [tokens(text) for text in texts]
    windows = [[tuple(token.text for token in some[k : k + n]) for k in range(len(some) - n + 1)] for some in read]
    within = {}
    for d, mine in enumerate(windows):
        for window in mine:
            within.setdefault(window, set()).add(d)
    found = []
    for d, mine in enumerate(windows):
        before = None
        for k, window in enumerate(mine):
            n_documents, is_repeat = len(within[window]), min(within[window]) < d
            if n_documents < 2:
                before = None
                continue
            if before != is_repeat:
                found.append([d, read[d][k].start, 0, n - 1, 0, is_repeat])
            found[-1][2] = read[d][k + n - 1].end
            found[-1][3] += 1
            found[-1][4] = max(found[-1][4], n_documents)
            before = is_repeat
    return [tuple(one) for one in found]


def run(corpus, out, engine=None, **options):
    return find_substrings(find_shards([str(corpus)]), out, N_TOKENS, engine=engine or LocalEngine(1), **options)


def passages(out):
    rows = tables.read(out / FILE, SUBSTRINGS).to_pylist()
    names = ("start", "end", "n_tokens", "n_documents", "is_repeat")
    return [(int(row["doc_id"][1:]), *(row[name] for name in names)) for row in rows]


def test_the_passages_are_those_of_brute_force(corpus, tmp_path):
    result = run(corpus, tmp_path)
    expected = brute(TEXTS, N_TOKENS)
    assert passages(tmp_path) == expected
    assert len(expected) > 40
    assert result.n_passages == len(expected)
    assert result.n_with_passages == len({one[0] for one in expected})
    assert result.n_documents == sum(bool(text) for text in TEXTS)
    assert result.n_repeated_tokens == sum(one[3] for one in expected if one[5])
    for row in tables.read(tmp_path / FILE, SUBSTRINGS).to_pylist():
        with_row = row["file"], row["row"]
        line = json.loads(open(with_row[0], encoding="utf-8").read().split("\n")[with_row[1]])  # noqa: PTH123, SIM115
        assert line["id"] == row["doc_id"]


def test_workers_parts_and_kills_change_nothing(corpus, tmp_path, monkeypatch):
    expected = brute(TEXTS, N_TOKENS)
    monkeypatch.setattr(deduplication, "PART_BYTES", 1500)
    monkeypatch.setattr(substrings, "PART_BYTES", 1500)
    monkeypatch.setattr(substrings, "PARTITION_WINDOWS", 200)
    run(corpus, tmp_path / "two", LocalEngine(2))
    assert passages(tmp_path / "two") == expected
    n_kills = 0
    while not (tmp_path / "killed" / substrings.RECORD).exists():
        try:
            run(corpus, tmp_path / "killed", DyingEngine(9))
        except KeyboardInterrupt:
            n_kills += 1
    assert n_kills > 3
    assert passages(tmp_path / "killed") == expected


def test_mistakes_are_told(corpus, tmp_path):
    with pytest.raises(SpecError):
        find_substrings(find_shards([str(corpus)]), tmp_path, 1)
    assert run(corpus, tmp_path) == run(corpus, tmp_path)
    with pytest.raises(SpecError, match="already holds"):
        find_substrings(find_shards([str(corpus)]), tmp_path, 3)
