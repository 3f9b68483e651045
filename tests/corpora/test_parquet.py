"""Parquet shards of any string type read the same; nulls and broken UTF-8 are counted; other columns refused."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.corpora import Shard, read_shard
from evalkit.corpora.rows import read_rows
from evalkit.errors import InputError
from tests.corpora.formats import as_shard, json_lines, read_all, write

TEXTS = ["eins", "zwei \u2028 zwei", "日本語", "eins", "🙂" * 100]
STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def write_parquet(path: Path, columns: dict[str, pa.Array], **options: object) -> Shard:
    pq.write_table(pa.table(columns), path, **options)
    return as_shard(path)


def not_utf8(values: list[bytes | None]) -> pa.Array:
    """A string array that Arrow believes in, whatever the bytes are."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
@pytest.mark.parametrize("batch_bytes", [1, 20, 8 << 20])
def test_every_string_type_gives_the_same_documents(tmp_path, kind, batch_bytes):
    columns = {"id": pa.array(range(5)), "text": pa.array(TEXTS).cast(kind), "unused": pa.array([[1]] * 5)}
    shard = write_parquet(tmp_path / "f.parquet", columns, row_group_size=2)
    rows, reader = read_all(shard, batch_bytes=batch_bytes)
    assert rows == [(row, str(row), text) for row, text in enumerate(TEXTS)]
    assert reader.counts.n_rows == reader.counts.n_documents == 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.none() | st.text()),
    row_group_size=st.integers(1, 10),
    batch_bytes=st.integers(1, 100),
)
def test_any_texts_come_out_as_from_json_lines(tmp_path, texts, row_group_size, batch_bytes):
    ids = [None if row % 3 == 0 else f"id {row}" for row in range(len(texts))]
    columns = {"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}
    rows, reader = read_all(
        write_parquet(tmp_path / "f.parquet", columns, row_group_size=row_group_size), batch_bytes=batch_bytes
    )
    lines = json_lines([{"id": doc_id, "text": text} for doc_id, text in zip(ids, texts, strict=True)])
    expected, by_lines = read_all(write(tmp_path / "f.jsonl", lines), batch_bytes=batch_bytes)
    assert rows == expected
    for bad in (reader.counts.bad_rows, by_lines.counts.bad_rows):
        assert [(one.row, one.reason) for one in bad] == [
            (n, "the text is null") for n, t in enumerate(texts) if t is None
        ]
    assert (reader.counts.n_rows, reader.counts.n_empty) == (by_lines.counts.n_rows, by_lines.counts.n_empty)


def test_a_file_without_an_id_column_has_null_ids(tmp_path):
    rows, _ = read_all(write_parquet(tmp_path / "f.parquet", {"text": pa.array(["a"])}))
    assert rows == [(0, None, "a")]


def test_a_file_without_rows_has_no_documents(tmp_path):
    shard = write_parquet(tmp_path / "f.parquet", {"text": pa.array([], pa.string())})
    told: list[int] = []
    rows, reader = read_all(shard, on_progress=told.append)
    assert rows == [] and reader.counts.n_rows == 0
    assert sum(told) == shard.size


def test_buffers_of_a_batch_start_at_zero(tmp_path):
    shard = write_parquet(tmp_path / "f.parquet", {"text": pa.array(TEXTS * 20)})
    for batch in read_shard(shard, batch_bytes=50):
        assert (batch.texts.offset, memoryview(batch.texts.buffers()[1]).cast("q")[0]) == (0, 0)


def test_broken_utf8_and_nulls_are_bad_rows_and_reading_goes_on(tmp_path):
    texts = not_utf8([b"good", b"bad \xff", None, b"\xed\xa0\x80", b"", "gut ä".encode()])
    rows, reader = read_all(write_parquet(tmp_path / "f.parquet", {"text": texts}))
    assert rows == [(0, None, "good"), (5, None, "gut ä")]
    assert [(bad.row, bad.reason) for bad in reader.counts.bad_rows] == [
        (1, "the text is not valid UTF-8 (byte 4)"),
        (2, "the text is null"),
        (3, "the text is not valid UTF-8 (byte 0)"),
    ]
    assert (reader.counts.n_rows, reader.counts.n_empty, reader.counts.n_bad) == (6, 1, 3)


def test_an_id_that_is_not_utf8_makes_a_bad_row(tmp_path):
    columns = {"id": not_utf8([b"x", b"\xff"]), "text": pa.array(["a", "b"])}
    rows, reader = read_all(write_parquet(tmp_path / "f.parquet", columns))
    assert rows == [(0, "x", "a")]
    assert [bad.reason for bad in reader.counts.bad_rows] == ["the id is not valid UTF-8 (byte 0)"]


def test_a_missing_text_column_is_refused_with_the_columns_there_are(tmp_path):
    shard = write_parquet(tmp_path / "f.parquet", {"content": pa.array(["a"]), "url": pa.array(["u"])})
    with pytest.raises(
        InputError, match=r"f\.parquet: there is no text column 'text' \(the columns are: content, url\)"
    ):
        read_all(shard)


@pytest.mark.parametrize(
    "values",
    [pa.array([1]), pa.array([["a"]]), pa.array([b"a"]), pa.array([1]).dictionary_encode(), pa.nulls(1)],
    ids=lambda values: str(values.type),
)
def test_a_text_column_without_text_in_it_is_refused(tmp_path, values):
    with pytest.raises(InputError, match=r"column 'text' has type .*, which is not text"):
        read_all(write_parquet(tmp_path / "f.parquet", {"text": values}))


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("twice", ["text", "id"])
def test_of_two_columns_with_one_name_nobody_knows_which_is_meant(tmp_path, name, twice):
    columns = [(one, pa.array(["a", "b"])) for one in ("id", "text", twice, "other", "other")]
    table = pa.Table.from_arrays([column for _, column in columns], names=[one for one, _ in columns])
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if name == "file.arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=rf"{name}: 2 columns are called '{twice}'.*Rename"):
        read_all(as_shard(path))
    with pytest.raises(InputError, match=f"2 columns are called '{twice}'"):
        list(read_rows(as_shard(path), [0]))


def test_an_id_column_of_lists_is_refused(tmp_path):
    shard = write_parquet(tmp_path / "f.parquet", {"id": pa.array([["a"]]), "text": pa.array(["a"])})
    with pytest.raises(InputError, match="cannot serve as a document id"):
        read_all(shard)
    assert read_all(shard, id_column=None)[0] == [(0, None, "a")]


def test_a_parquet_file_cut_anywhere_is_refused(tmp_path):
    whole = write_parquet(tmp_path / "f.parquet", {"text": pa.array(TEXTS * 10)}).path.read_bytes()
    for length in range(0, len(whole), 5):
        with pytest.raises(InputError, match=r"cut short or corrupt .*; 0 rows"):
            read_all(write(tmp_path / "cut.parquet", whole[:length]))


def test_a_damaged_page_is_refused_when_the_file_has_checksums(tmp_path):
    texts = pa.array([f"text number {n}" for n in range(10_000)])
    shard = write_parquet(
        tmp_path / "f.parquet", {"text": texts}, row_group_size=5000, write_page_checksum=True, use_dictionary=False
    )
    damaged = bytearray(shard.path.read_bytes())
    damaged[pq.read_metadata(shard.path).row_group(1).column(0).data_page_offset + 200] ^= 0x10
    with pytest.raises(InputError, match=r"cut short or corrupt .*; 4096 rows were read before"):
        read_all(write(shard.path, bytes(damaged)))


def test_a_flipped_bit_gives_all_rows_or_an_error(tmp_path):
    # Some of these flips make pyarrow end the process when it is asked for the metadata of a column.
    whole = write_parquet(tmp_path / "f.parquet", {"text": pa.array([f"t {n}" for n in range(300)])}).path.read_bytes()
    for position in range(4, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        shard = write(tmp_path / "damaged.parquet", bytes(damaged))
        reader = read_shard(shard)
        try:
            list(reader)
        except InputError:
            continue
        assert reader.counts.n_rows == 300


def test_a_column_name_may_contain_a_dot(tmp_path):
    columns = {"a": pa.array([{"b": "nested"}]), "a.b": pa.array(["plain"]), "raw.id": pa.array([7])}
    shard = write_parquet(tmp_path / "f.parquet", columns)
    assert read_all(shard, text_column="a.b", id_column="raw.id")[0] == [(0, "7", "plain")]


def test_a_file_that_vanished_or_is_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    for name in ("gone.parquet", "folder.parquet"):
        with pytest.raises(InputError, match=name):
            read_all(Shard("x", tmp_path / name, 1))


def test_progress_adds_up_to_the_size_of_the_file(tmp_path):
    shard = write_parquet(tmp_path / "f.parquet", {"text": pa.array(TEXTS * 100)}, row_group_size=50)
    told: list[int] = []
    read_all(shard, batch_bytes=500, on_progress=told.append)
    assert sum(told) == shard.size
    assert len(told) > 5


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    # One row group of 200 MB, read in another process since Arrow's memory is not Python's.
    texts = pa.array([f"{n} " + "some words of text " * 100 for n in range(110_000)])
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, row_group_size=len(texts), compression="zstd")
    program = """
import resource, sys
from pathlib import Path
from evalkit.corpora import Shard, read_shard
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n_bytes = sum(batch.texts.nbytes for batch in read_shard(Shard("x", path, path.stat().st_size), batch_bytes=4 << 20))
print(n_bytes >> 20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    result = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    n_megabytes, grown = map(int, result.stdout.split())
    assert n_megabytes > 190
    assert grown < 80
