"""Rows read by their numbers are those that a reading of the whole file gives, in every format and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.corpora import Shard, find_shards, remote, split_shard
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.remote import Address
from evalkit.corpora.rows import Document, Missing, read_rows, shard_named
from evalkit.errors import InputError, SpecError
from tests.corpora.formats import LINE_FORMATS, as_shard, json_lines, read_all, write
from tests.corpora.web import Site, serve

RECORDS = [{"id": n, "text": f"document {n} ä🙂 " * (n % 7 + 1), "meta": {"body": f"body {n}"}} for n in range(300)]
LINES = json_lines(RECORDS)
WANTED = [299, 0, 17, 17, 298, 150]


def parquet_file(path: Path) -> Shard:
    pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=40)
    return as_shard(path)


def arrow_file(path: Path, *, has_footer: bool) -> Shard:
    table = pa.Table.from_pylist(RECORDS)
    opened = pa.ipc.new_file if has_footer else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    return as_shard(path)


def shard_of(kind: str, folder: Path) -> Shard:
    if kind in LINE_FORMATS:
        return write(folder / kind, LINE_FORMATS[kind](LINES))
    if kind == "groups.parquet":
        return parquet_file(folder / kind)
    return arrow_file(folder / kind, has_footer=kind == "footer.arrow")


ALL_KINDS = [*LINE_FORMATS, "groups.parquet", "stream.arrow", "footer.arrow"]


def by_row(shard: Shard, rows, **options) -> dict[int, Document | Missing]:
    return {one.row: one for one in read_rows(shard, rows, **options)}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("column", ["text", "meta.body", ["meta.body", "text"]])
def test_rows_are_those_of_the_whole_file_in_every_format(kind, column, tmp_path):
    shard = shard_of(kind, tmp_path)
    whole = {row: Document(row, doc_id, text) for row, doc_id, text in read_all(shard, text_column=column)[0]}
    assert by_row(shard, WANTED, text_column=column) == {row: whole[row] for row in WANTED}


def test_documents_come_in_the_order_of_the_file_each_once(tmp_path):
    for kind in ("plain.jsonl", "groups.parquet", "stream.arrow"):
        assert [one.row for one in read_rows(shard_of(kind, tmp_path), WANTED)] == sorted(set(WANTED))


def test_no_row_is_nothing(tmp_path):
    assert list(read_rows(shard_of("plain.jsonl", tmp_path), [])) == []


@settings(max_examples=30)
@given(
    lines=st.lists(
        st.sampled_from(['{"text": "a"}', "", "broken", '{"text": ""}', '{"text": null}', "[]"]), max_size=9
    ),
    rows=st.sets(st.integers(0, 12), max_size=6),
    has_mark=st.booleans(),
)
def test_what_is_no_document_says_why_and_rows_are_lines(lines, rows, has_mark, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    shard = write(path, (b"\xef\xbb\xbf" if has_mark else b"") + "".join(f"{one}\n" for one in lines).encode())
    lines = lines or [""] * has_mark  # a mark alone is a blank line
    found = by_row(shard, rows)
    assert found.keys() == rows
    for row, one in found.items():
        if row < len(lines) and lines[row] == '{"text": "a"}':
            assert one == Document(row, None, "a")
            continue
        assert isinstance(one, Missing)
        expected = {
            "": "blank" if row or not has_mark else "",
            "broken": "not valid JSON",
            '{"text": ""}': "empty",
            '{"text": null}': "null",
            "[]": "not a JSON object",
        }
        assert (f"only {len(lines)} rows" if row >= len(lines) else expected[lines[row]]) in one.reason


@pytest.mark.parametrize("kind", ["p.parquet", "a.arrow"])
def test_rows_of_columns_that_are_no_document_say_why(kind, tmp_path):
    table = pa.table({"text": ["a", None, "  ", "b"]})
    if kind == "p.parquet":
        pq.write_table(table, tmp_path / kind, row_group_size=2)
    else:
        with pa.OSFile(str(tmp_path / kind), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    found = by_row(as_shard(tmp_path / kind), range(6))
    assert (found[0], found[3]) == (Document(0, None, "a"), Document(3, None, "b"))
    assert "null" in found[1].reason and "empty" in found[2].reason
    assert found[4].reason == found[5].reason == "the file has only 4 rows"


def test_a_document_of_any_length_is_one(tmp_path, monkeypatch):
    shard = write(tmp_path / "long.jsonl", json_lines([{"text": "x" * (65 << 20)}]))
    [found] = read_rows(shard, [0])
    assert len(found.text) == 65 << 20


def test_nothing_after_the_last_row_is_read(tmp_path):
    data = gzip.compress(LINES * 200, compresslevel=0)
    shard = write(tmp_path / "cut.jsonl.gz", data[: len(data) // 2])
    assert [one.row for one in read_rows(shard, [3])] == [3]
    found = []
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: .*cut short or corrupt.* rows were read before"):
        found.extend(read_rows(shard, [3, 300 * 200 - 1]))
    assert [one.row for one in found] == [3]


def test_only_the_row_groups_with_wanted_rows_are_read(tmp_path):
    shard = parquet_file(tmp_path / "groups.parquet")
    data = bytearray(shard.path.read_bytes())
    column = pq.ParquetFile(shard.path).metadata.row_group(2).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    shard.path.write_bytes(bytes(data))
    assert [one.row for one in read_rows(shard, [0, 79, 120])] == [0, 79, 120]
    with pytest.raises(InputError, match="cut short or corrupt"):
        list(read_rows(shard, [80]))


@pytest.mark.parametrize("kind", ["plain.jsonl", "members.jsonl.gz", "groups.parquet", "stream.arrow"])
def test_rows_are_read_at_addresses_too(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    local = shard_of(kind, tmp_path)
    with serve(Site({kind: local.path.read_bytes()})) as site:
        [shard] = find_shards([f"{site.url}/{kind}"])
        assert by_row(shard, WANTED) == by_row(local, WANTED)


def test_no_more_of_an_address_is_fetched_than_up_to_the_row(monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100_000)
    with serve(Site({"long.jsonl": LINES * 200})) as site:
        [shard] = find_shards([f"{site.url}/long.jsonl"])
        assert [one.row for one in read_rows(shard, [5])] == [5]
        assert site.n_bytes_asked < 2 << 20 < shard.size / 3


def test_rows_of_datasets_that_only_datasets_can_read_are_numbered_in_their_part(tmp_path):
    datasets.disable_progress_bars()
    for part in range(2):
        table = datasets.Dataset.from_list([{"id": f"{part}-{n}", "text": f"text {part} {n}"} for n in range(10)])
        table.to_csv(tmp_path / f"train-{part}.csv")
    first, second = find_shards([f"hf:{tmp_path}::train"])
    assert by_row(second, [9, 2]) == {2: Document(2, "1-2", "text 1 2"), 9: Document(9, "1-9", "text 1 9")}
    assert by_row(first, [10]) == {10: Missing(10, "the file has only 10 rows")}
    for shard in (first, second):
        assert shard_named(str(shard.path), 0, shard.corpus) == shard


@pytest.mark.parametrize(
    "path",
    [
        Path("/data/a b/part-0.jsonl"),
        Path("/data/hf:x/part.parquet"),
        Address("s3://bucket/part-0.jsonl.zst"),
        Address("https://host/part.parquet"),
        Address("hf://datasets/a/b@main/x.parquet"),
        DatasetPart("allenai/c4", "en", "train", 3, 1024),
        DatasetPart("/data/my set", None, "test", 0, 1),
        DatasetPart("a", "b-c", "dev.part/1", 100000, 100001),
    ],
)
def test_a_shard_is_known_again_by_its_name(path):
    assert shard_named(str(path), 7, "pattern") == Shard("pattern", path, 7)


def test_the_query_of_a_web_address_which_may_hold_a_key_is_no_part_of_its_name():
    assert shard_named(str(Address("https://host/part.parquet?token=1")), 7, "pattern") == Shard(
        "pattern", Address("https://host/part.parquet"), 7
    )


@pytest.mark.parametrize(
    "name", ["a.jsonl", "./a.jsonl", "/d/corpus/../victim/a.jsonl", "/d//a.jsonl", "", "hf:x:y", 7]
)
def test_a_name_that_no_shard_has_is_refused(name):
    with pytest.raises(InputError, match="names no file of a corpus"):
        shard_named(name, 7)


def test_mistakes_are_told(tmp_path):
    shard = shard_of("plain.jsonl", tmp_path)
    with pytest.raises(InputError, match="no text column 'body'"):
        list(read_rows(parquet_file(tmp_path / "p.parquet"), [0], text_column="body"))
    with pytest.raises(SpecError, match="does not name a text column"):
        read_rows(shard, [0], text_column="a..b")
    with pytest.raises(ValueError, match="no row -1"):
        read_rows(shard, [-1])
    with pytest.raises(ValueError, match="part"):
        read_rows(split_shard(shard, 1000)[0], [0])
    missing = json.loads(json.dumps(str(tmp_path / "gone.jsonl")))
    with pytest.raises(InputError, match="No such file"):
        list(read_rows(shard_named(missing, 5), [0]))
