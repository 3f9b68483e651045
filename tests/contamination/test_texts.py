"""The items' texts come back from the audit as they were looked for, and are found by what users call them."""

from __future__ import annotations

import pytest

from evalkit import tables
from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.texts import TEXTS, read_texts, texts_of
from evalkit.errors import InputError, SpecError

ITEMS = (
    Item("abcd1111", {"question": "Wie heißt\x1b[31m das?", "answer": "so"}, "7"),
    Item("abcd2222", {"question": "Lone \ud800 half"}, "dev/8"),
    Item("ffff0000", {"question": "And this?"}),
)
BENCHMARKS = [
    Benchmark("b", "test", ITEMS, 0),
    Benchmark("c", "test", (ITEMS[0],), 0, code_fields=frozenset({"answer"})),
]


@pytest.fixture
def texts(tmp_path):
    tables.write(tmp_path / "texts.parquet", texts_of(BENCHMARKS), TEXTS)
    return read_texts(tmp_path / "texts.parquet")


def test_texts_come_back_in_order_and_half_a_character_as_the_index_reads_it(texts):
    assert texts.benchmarks == ["b", "c"]
    assert list(texts.fields) == [("b", "abcd1111"), ("b", "abcd2222"), ("b", "ffff0000"), ("c", "abcd1111")]
    assert dict(texts.fields["b", "abcd1111"]) == ITEMS[0].fields
    assert texts.fields["b", "abcd2222"] == {"question": "Lone ? half"}
    assert texts.doc_ids["b", "ffff0000"] is None
    assert texts.code == {("c", "answer")}


@pytest.mark.parametrize("name", ["7", "abcd1111", "abcd1"])
def test_an_item_is_meant_by_its_id_its_hash_or_the_beginning_of_its_hash(texts, name):
    assert texts.find(name) == [("b", "abcd1111"), ("c", "abcd1111")]
    assert texts.find(name, "c") == [("c", "abcd1111")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("abcd", "'abcd' means 3 items"), ("abc", "no item has"), ("nothing", "no item has"), ("", "no item has")],
)
def test_no_item_and_several_items_are_refused(texts, name, message):
    with pytest.raises(SpecError, match=message):
        texts.find(name)


def test_no_benchmark_at_all_is_an_empty_table(tmp_path):
    tables.write(tmp_path / "texts.parquet", texts_of([]), TEXTS)
    assert not read_texts(tmp_path / "texts.parquet").fields


def test_an_audit_without_texts_says_so(tmp_path):
    with pytest.raises(InputError, match="does not hold the items' texts"):
        read_texts(tmp_path / "texts.parquet")
