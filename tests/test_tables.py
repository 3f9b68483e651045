"""The six tables: what is written is read again, and what is wrong is named by file, column and row."""

from __future__ import annotations

import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalkit import tables
from evalkit.errors import TableError

ITEM = {
    "benchmark": "b",
    "doc_hash": "h",
    "field": "question",
    "rule": "llama3",
    "contamination": 0.5,
    "label": "dirty",
    "n_documents": 3,
    "best_document": "a.jsonl:7",
    "longest_match": 12,
}


def test_there_are_the_six_tables_of_the_design():
    assert set(tables.TABLES) == {"samples", "items", "matches", "documents", "clusters", "verdicts"}


@pytest.mark.parametrize("table", tables.TABLES.values(), ids=lambda table: table.name)
def test_an_empty_table_survives_the_round_trip(table, tmp_path):
    path = tmp_path / "t.parquet"
    tables.write(path, tables.from_rows(table, []), table)
    assert tables.read(path, table).schema.equals(table.schema)


def test_rows_survive_the_round_trip(tmp_path):
    path = tmp_path / "items.parquet"
    rows = [ITEM, {**ITEM, "doc_hash": "g", "best_document": None, "longest_match": None}]
    tables.write(path, tables.from_rows(tables.ITEMS, rows), tables.ITEMS)
    assert tables.read(path, tables.ITEMS).to_pylist() == rows


def test_columns_of_dictionaries_are_columns_of_text_in_the_file(tmp_path):
    path = tmp_path / "items.parquet"
    plain = tables.from_rows(tables.ITEMS, [ITEM, ITEM | {"field": "answer"}])
    encoded = pa.table({name: plain[name].combine_chunks() for name in plain.column_names})
    for name in ["benchmark", "doc_hash", "field", "rule", "label"]:
        encoded = encoded.set_column(encoded.column_names.index(name), name, plain[name].dictionary_encode())
    tables.write(path, encoded, tables.ITEMS)
    assert tables.read(path, tables.ITEMS).equals(plain)
    assert pq.read_table(path).column("label").type == pa.string()
    twice = pa.concat_tables([encoded, encoded])
    with pytest.raises(TableError, match="2 rows of the items table have the same key"):
        tables.write(path, twice, tables.ITEMS)


def test_a_table_made_by_pandas_with_other_integer_types_and_extra_columns_is_read(tmp_path):
    path = tmp_path / "items.parquet"
    frame = pd.DataFrame([{**ITEM, "n_documents": 3, "mine": "x"}]).astype({"n_documents": "int32"})
    frame.to_parquet(path)
    assert tables.read(path, tables.ITEMS).to_pylist() == [ITEM]


def test_a_failed_write_leaves_the_old_table_and_no_litter(tmp_path):
    path = tmp_path / "items.parquet"
    tables.write(path, tables.from_rows(tables.ITEMS, [ITEM]), tables.ITEMS)
    before = path.read_bytes()
    bad = tables.from_rows(tables.ITEMS, [ITEM]).drop_columns(["rule"])
    with pytest.raises(TableError):
        tables.write(path, bad, tables.ITEMS)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["items.parquet"]


def refusal(data, table, path, **metadata):
    """Write `data` as a foreign Parquet file and return how reading it is refused."""
    pq.write_table(data.replace_schema_metadata({k.replace("_", "."): v for k, v in metadata.items()}), path)
    with pytest.raises(TableError) as error:
        tables.read(path, table)
    assert str(path) in str(error.value)
    return str(error.value)


def test_each_fault_is_named_with_file_column_and_row(tmp_path):
    path = tmp_path / "items.parquet"
    good = tables.from_rows(tables.ITEMS, [ITEM, {**ITEM, "doc_hash": "g"}])
    assert "no column 'rule'" in refusal(good.drop_columns(["rule"]), tables.ITEMS, path)
    texts = good.set_column(6, "n_documents", pa.array(["many", "few"]))
    assert "column 'n_documents'" in refusal(texts, tables.ITEMS, path)
    nulls = good.set_column(5, "label", pa.array(["dirty", None]))
    assert re.search(r"column 'label' .* null in row 1", refusal(nulls, tables.ITEMS, path))
    twice = tables.from_rows(tables.ITEMS, [ITEM]).to_pylist() * 2
    copies = pa.Table.from_pylist(twice, schema=tables.ITEMS.schema)
    assert "2 rows of the items table have the same key (benchmark=b, doc_hash=h" in refusal(copies, tables.ITEMS, path)
    assert "newer" not in refusal(good, tables.MATCHES, path)
    assert "upgrade" in refusal(good, tables.ITEMS, path, evalkit_version="2.0").lower()
    assert "holds the items table" in refusal(good, tables.SAMPLES, path, evalkit_table="items")


def test_a_closed_column_refuses_other_values():
    row = {"corpus": "c", "file": "f", "row": 1, "action": "burn", "reasons": ["r"]}
    with pytest.raises(TableError, match=r"column 'action' has the value 'burn' in row 0.*drop, cut, keep"):
        tables.from_rows(tables.DOCUMENTS, [row])


def test_a_missing_file_and_a_file_that_is_not_parquet_are_one_line_errors(tmp_path):
    with pytest.raises(TableError, match="there is no such file"):
        tables.read(tmp_path / "none.parquet", tables.ITEMS)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(TableError, match="not a readable Parquet file") as error:
        tables.read(broken, tables.ITEMS)
    assert "\n" not in str(error.value)


def test_a_newer_minor_version_is_read(tmp_path):
    path = tmp_path / "items.parquet"
    data = tables.from_rows(tables.ITEMS, [ITEM])
    pq.write_table(data.replace_schema_metadata({"evalkit.table": "items", "evalkit.version": "1.9"}), path)
    assert tables.read(path, tables.ITEMS).num_rows == 1


def test_a_verdict_whose_order_nobody_knows_has_null_there():
    row = {"judge": "j", "pair_id": "p", "repeat": 0, "model_a": "x", "model_b": "y", "winner": "a"}
    assert tables.from_rows(tables.VERDICTS, [row]).column("order").to_pylist() == [None]
    with pytest.raises(TableError, match="'order' has the value 'first'"):
        tables.from_rows(tables.VERDICTS, [row | {"order": "first"}])
    with pytest.raises(TableError, match="null"):
        tables.from_rows(tables.VERDICTS, [row | {"winner": None}])
