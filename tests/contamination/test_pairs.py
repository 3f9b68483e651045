"""What documents and items have in common is found by item, benchmark, rule and document, the largest share first."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit import tables
from evalkit.contamination.pairs import find_pairs
from evalkit.contamination.record import open_audit
from evalkit.errors import SpecError
from tests.contamination.audits import audited, benchmark, documents, write_lines

ITEMS = benchmark()


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = documents(ITEMS)
    for name, some in (("a.jsonl", rows[:30]), ("x/a.jsonl", rows[30:])):
        (folder / name).parent.mkdir(exist_ok=True)
        write_lines(folder / name, some)
    return open_audit(audited(folder, folder / "leaks", ITEMS, rules=("exact", "gpt3-clean")))


def keys(pairs):
    return [(Path(pair.file).parent.name == "x", pair.row, pair.doc_hash[:2]) for pair in pairs]


def test_each_document_and_item_is_one_pair_with_all_its_matches(audit):
    pairs = find_pairs(audit)
    matches = audit.read(tables.MATCHES).to_pylist()
    expected = {}
    for match in matches:
        expected.setdefault((match["file"], match["row"], match["benchmark"], match["doc_hash"]), []).append(match)
    found = {(pair.file, pair.row, pair.benchmark, pair.doc_hash): list(pair.matches) for pair in pairs}
    assert len(found) == len(pairs) == len(expected)
    assert pairs.n_matches == len(matches)
    for key, some in expected.items():
        assert found[key] == sorted(some, key=lambda match: (match["start"], match["end"]))


def test_the_largest_share_comes_first(audit):
    shares = [
        (max(match["coverage"] for match in pair.matches), max(match["n_tokens"] for match in pair.matches))
        for pair in find_pairs(audit)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == (1.0, 20) > shares[-1]


def test_an_item_a_benchmark_a_document_and_a_file_can_be_asked_for(audit):
    every = keys(find_pairs(audit))
    assert set(keys(find_pairs(audit, item="i3"))) == {key for key in every if key[2] == "03"}
    assert keys(find_pairs(audit, item="0300", benchmark="b")) == keys(find_pairs(audit, item="i3"))
    assert keys(find_pairs(audit, benchmark="b")) == every
    assert set(keys(find_pairs(audit, document="x/a.jsonl"))) == {key for key in every if key[0]}
    assert set(keys(find_pairs(audit, document="x/a.jsonl:6"))) == {key for key in every if key[:2] == (True, 6)}
    inner = next(file for file in audit.files if "/x/" not in file)
    assert set(keys(find_pairs(audit, document=f"{inner}:6"))) == {key for key in every if key[:2] == (False, 6)}
    assert keys(find_pairs(audit, document="x/a.jsonl:1")) == []


def test_a_rule_keeps_the_fields_that_it_finds_dirty(audit):
    items = audit.read(tables.ITEMS).to_pylist()
    dirty = {(row["doc_hash"], row["field"]) for row in items if row["rule"] == "exact" and row["label"] == "dirty"}
    matches = [match for pair in find_pairs(audit, rule="exact") for match in pair.matches]
    assert {(match["doc_hash"], match["field"]) for match in matches} == dirty
    assert len(matches) < find_pairs(audit).n_matches


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"benchmark": "bb"}, "--benchmark: the audit has no benchmark 'bb'. Did you mean 'b'"),
        ({"rule": "gpt3"}, "--rule: the audit has no rule 'gpt3'. .*It has: exact, gpt3-clean"),
        ({"item": "nobody"}, "--item: no item has"),
        ({"document": "a.jsonl:3"}, "--document: 'a.jsonl' means 2 files"),
        ({"document": "c.jsonl:3"}, "--document: the audit has no corpus file 'c.jsonl'"),
    ],
)
def test_what_the_audit_does_not_have_is_refused_with_what_it_has(audit, asked, message):
    with pytest.raises(SpecError, match=message):
        find_pairs(audit, **asked)
