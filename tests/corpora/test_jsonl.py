"""JSON lines of any compression read the same as by a naive reader; bad lines are counted, cut files refused."""

import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.corpora import documents, find_shards, jsonl, read_shard, streams
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError
from tests.corpora.formats import (
    LINE_FORMATS,
    as_shard,
    gzip_members,
    json_lines,
    naive_read,
    read_all,
    rows_of,
    write,
    xz_streams,
    zstd_frames,
)

UNICODE = [
    "ä",
    "\u2028 in the middle \u2029",
    "\x85",
    "日本語" * 50,
    "🙂",
    'quote " and \\ and \n inside',
    "\x00",
    "a\r\nb",
]


@pytest.fixture(scope="module", autouse=True)
def _as_in_large_files():
    """Leave to the compiled loop what it would take in a large file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_FEW_BYTES", 0)
        yield


def one_row(tmp_path, line: bytes) -> str:
    """The reason why `line`, between two good lines, is bad."""
    good = b'{"text": "good"}\n'
    rows, reader = read_all(write(tmp_path / "f.jsonl", good + line + b"\n" + good))
    assert [row for row, _, _ in rows] == [0, 2]
    [bad] = reader.counts.bad_rows
    assert (bad.file, bad.row) == (str(tmp_path / "f.jsonl"), 1)
    assert (reader.counts.n_rows, reader.counts.n_documents, reader.counts.n_bad) == (3, 2, 1)
    return bad.reason


@pytest.mark.parametrize("name", LINE_FORMATS)
@pytest.mark.parametrize("batch_bytes", [1, 100, 8 << 20])
def test_every_format_gives_the_rows_of_a_naive_reader(tmp_path, name, batch_bytes, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 256)  # so that lines straddle blocks
    records = [{"id": f"doc-{n}", "text": UNICODE[n % len(UNICODE)] * (n % 7 + 1), "more": [n]} for n in range(300)]
    data = json_lines(records)
    rows, reader = read_all(write(tmp_path / name, LINE_FORMATS[name](data)), batch_bytes=batch_bytes)
    assert rows == naive_read(data)
    assert reader.counts.n_rows == len(records)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {"text": st.text()}, optional={"id": st.none() | st.text() | st.integers(-(2**63), 2**64 - 1)}
        )
    ),
    name=st.sampled_from(sorted(LINE_FORMATS)),
    batch_bytes=st.integers(1, 200),
    ascii_only=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    final=st.booleans(),
)
def test_any_documents_come_out_as_they_went_in(tmp_path, records, name, batch_bytes, ascii_only, line_end, final):
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    data = (line_end.join(lines) + (line_end if final else "")).encode()
    rows, reader = read_all(write(tmp_path / name, LINE_FORMATS[name](data)), batch_bytes=batch_bytes)
    assert rows == naive_read(data)
    counts = reader.counts
    assert counts.n_rows == len(records) == counts.n_documents + counts.n_empty + counts.n_bad
    assert counts.n_documents == len(rows)


def test_a_batch_ends_with_the_document_that_fills_it(tmp_path):
    texts = ["aaaa", "bb", "cc", "ddddddddd", "e"]
    shard = write(tmp_path / "f.jsonl", json_lines([{"text": text} for text in texts]))
    batches = [batch.texts.to_pylist() for batch in read_shard(shard, batch_bytes=5)]
    assert batches == [["aaaa", "bb"], ["cc", "ddddddddd"], ["e"]]


def test_buffers_of_a_batch_start_at_zero_and_have_no_nulls(tmp_path):
    shard = write(tmp_path / "f.jsonl", json_lines([{"text": "x" * n} for n in range(1, 50)]))
    for batch in read_shard(shard, batch_bytes=64):
        offsets = memoryview(batch.texts.buffers()[1]).cast("q")
        assert (batch.texts.offset, batch.doc_ids.offset, offsets[0], batch.texts.null_count) == (0, 0, 0, 0)
        assert len(batch) == len(batch.texts) == len(batch.doc_ids) == len(batch.rows)


def test_separators_other_than_the_newline_do_not_split_lines(tmp_path):
    text = "a\u2028b\u2029c\x85d\x1ce"
    rows, _ = read_all(write(tmp_path / "f.jsonl", json_lines([{"text": text}])))
    assert rows == [(0, None, text)]


def test_blank_lines_are_no_rows_but_keep_the_numbering(tmp_path):
    rows, reader = read_all(write(tmp_path / "f.jsonl", b'\n{"text": "a"}\n  \n\r\n{"text": "b"}\n\n'))
    assert rows == [(1, None, "a"), (4, None, "b")]
    assert (reader.counts.n_rows, reader.counts.n_bad) == (2, 0)


def test_a_last_line_needs_no_newline(tmp_path):
    rows, _ = read_all(write(tmp_path / "f.jsonl", b'{"text": "a"}\n{"text": "b"}'))
    assert [text for _, _, text in rows] == ["a", "b"]


def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path):
    rows, reader = read_all(write(tmp_path / "f.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n'))
    assert [text for _, _, text in rows] == ["a", "b"]
    assert reader.counts.n_bad == 0


def test_an_empty_plain_file_has_no_rows(tmp_path):
    rows, reader = read_all(write(tmp_path / "f.jsonl", b""))
    assert rows == [] and reader.counts.n_rows == 0


def test_empty_and_blank_texts_are_counted_but_not_given_out(tmp_path):
    data = json_lines([{"text": text} for text in ["", " \t\n", "\u3000\u2028", "a", "."]])
    rows, reader = read_all(write(tmp_path / "f.jsonl", data))
    assert [row for row, _, _ in rows] == [3, 4]
    assert (reader.counts.n_rows, reader.counts.n_empty, reader.counts.n_bad) == (5, 3, 0)


@pytest.mark.parametrize(
    ("value", "doc_id"),
    [
        ("x", "x"),
        (12, "12"),
        (2**64 - 1, "18446744073709551615"),
        (None, None),
        (True, "true"),
        ({"a": [1]}, '{"a":[1]}'),
        ("", ""),
    ],
)
def test_ids_that_are_no_strings_become_their_json_text(tmp_path, value, doc_id):
    rows, _ = read_all(write(tmp_path / "f.jsonl", json_lines([{"id": value, "text": "a"}])))
    assert rows == [(0, doc_id, "a")]


def test_columns_can_have_other_names_and_ids_can_be_left_out(tmp_path):
    shard = write(tmp_path / "f.jsonl", json_lines([{"id": 1, "url": "u", "content": "a"}]))
    assert read_all(shard, text_column="content", id_column="url")[0] == [(0, "u", "a")]
    assert read_all(shard, text_column="content", id_column=None)[0] == [(0, None, "a")]
    assert read_all(shard, text_column="content", id_column="nowhere")[0] == [(0, None, "a")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": "a"} {"text": "b"}', "not valid JSON"),
        (b'{"text": "a", "score": NaN}', '"score": NaN'),
        (b'{"text": "\\ud800"}', "not valid JSON"),
        (b'{"text": "\\udc00 low"}', "not valid JSON"),
        (b"[" * 5000 + b"]" * 5000, "not valid JSON"),
        (b'["text"]', "not a JSON object but an array"),
        (b'"text"', "not a JSON object but a string"),
        (b"null", "not a JSON object but null"),
        (b"17", "not a JSON object but a number"),
        (b"{}", "no field 'text' (the object is empty)"),
        (b'{"id": 1, "content": "a"}', "no field 'text' (it has: id, content)"),
        (b'{"text": null}', "the text is null"),
        (b'{"text": ["a"]}', "field 'text' is an array, not a string"),
        (b'{"text": 1.5}', "field 'text' is a number, not a string"),
        (b'{"text": true}', "field 'text' is true or false, not a string"),
        (b'{"text": {}}', "field 'text' is an object, not a string"),
        (b'{"text": "a\xff"}', "not valid UTF-8 (byte 11 of the line)"),
        (b'{"text": "a", "other": "\xed\xa0\x80"}', "not valid UTF-8"),
    ],
)
def test_a_bad_line_is_counted_with_its_reason_and_reading_goes_on(tmp_path, line, reason):
    assert reason in one_row(tmp_path, line)


def test_the_reason_stays_short_when_the_object_is_monstrous(tmp_path):
    line = json.dumps({"k" * 10_000 + str(n): n for n in range(100)}).encode()
    assert len(one_row(tmp_path, line)) < 600


def test_a_line_over_the_limit_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(streams, "_READ_BYTES", 64)
    assert "longer than" in one_row(tmp_path, b'{"text": "' + b"x" * 5000 + b'"}')


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.integers(0, 30), max_size=12).map(lambda sizes: b"\n".join(b"x" * size for size in sizes)),
    chunk_bytes=st.integers(1, 40),
    block_bytes=st.integers(1, 60),
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(data, chunk_bytes, block_bytes):
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "MAX_LINE_BYTES", 20)
        patch.setattr(streams, "BLOCK_BYTES", block_bytes)
        blocks = list(streams.split_blocks(chunks))
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert all(block.endswith(b"\n") for block in blocks[:-1] if block is not None)
    lines = [line for block in blocks for line in ([None] if block is None else block.removesuffix(b"\n").split(b"\n"))]
    assert lines == [line if len(line) <= 20 else None for line in expected]


def test_a_small_file_is_read_without_loading_the_compiler(tmp_path):
    shard = write(tmp_path / "f.jsonl", json_lines([{"text": "a"}] * 100))
    code = (
        "import sys; from evalkit.corpora import find_shards, read_shard; [shard] = find_shards(sys.argv[1:]); "
        "print(sum(map(len, read_shard(shard))), 'numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, shard.path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["100", "False"]


def test_a_file_of_bad_rows_keeps_all_counts_and_the_first_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_KEPT_BAD_ROWS", 10)
    _, reader = read_all(write(tmp_path / "f.jsonl", b"{}\n" * 25))
    assert reader.counts.n_bad == reader.counts.n_rows == 25
    assert [bad.row for bad in reader.counts.bad_rows] == list(range(10))


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip_members), ("xz", xz_streams), ("zst", zstd_frames)])
@pytest.mark.parametrize("n_members", [1, 3])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix, pack, n_members):
    random.seed(0)
    data = json_lines([{"id": n, "text": random.randbytes(20).hex()} for n in range(30)])
    whole = pack(data, n_members)
    # A cut exactly between two members leaves a valid, shorter file: no reader can tell.
    undetectable = {len(whole)}
    if n_members > 1:
        parts = [data[len(data) * i // n_members : len(data) * (i + 1) // n_members] for i in range(n_members)]
        undetectable |= {len(b"".join(pack(part, 1) for part in parts[: i + 1])) for i in range(n_members)}
    for length in range(len(whole) + 1):
        shard = write(tmp_path / f"f.jsonl.{suffix}", whole[:length])
        if length in undetectable:
            read_all(shard)
        else:
            with pytest.raises(InputError, match=r"cut short or corrupt \(the file .*; \d+ rows were read before"):
                read_all(shard)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip_members), ("xz", xz_streams), ("zst", zstd_frames)])
def test_a_cut_file_tells_how_many_whole_rows_came_before(tmp_path, suffix, pack):
    first, second = json_lines([{"text": f"a {n}"} for n in range(10)]), json_lines([{"text": "b" * 50}] * 10)
    packed = pack(first, 1) + pack(second, 1)[:-3]
    with pytest.raises(InputError) as caught:
        read_all(write(tmp_path / f"f.jsonl.{suffix}", packed))
    assert caught.value.where == str(tmp_path / f"f.jsonl.{suffix}")
    n_rows = int(caught.value.what.split("; ")[1].split()[0])
    assert 10 <= n_rows <= 20


def test_a_part_of_a_line_before_the_damage_is_not_a_bad_row(tmp_path):
    packed = zstd_frames(b'{"text": "a"}\n{"text": "hal', 1) + zstd_frames(b'f"}\n', 1)[:-2]
    reader = read_shard(write(tmp_path / "f.jsonl.zst", packed))
    with pytest.raises(InputError, match="1 rows were read"):
        list(reader)
    assert (reader.counts.n_documents, reader.counts.n_bad) == (1, 0)


def test_a_flipped_bit_is_refused_when_the_file_has_checksums(tmp_path):
    data = json_lines([{"text": f"document {n}"} for n in range(500)])
    packed = {
        "f.jsonl.gz": gzip.compress(data),
        "f.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(data),
    }
    for name, whole in packed.items():
        for position in range(len(whole) // 4, len(whole), 7):
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            with pytest.raises(InputError, match="cut short or corrupt"):
                read_all(write(tmp_path / name, bytes(damaged)))


@pytest.mark.parametrize("n_zeros", [1, 512, 3 * 2048, 1 << 20])
def test_zero_bytes_after_gzip_data_are_padding_as_for_gzip_itself(tmp_path, n_zeros):
    one, two = (gzip.compress(json_lines([{"text": text}])) for text in ("a", "b"))
    shard = write(tmp_path / "f.jsonl.gz", one + bytes(n_zeros))
    assert read_all(shard)[0] == [(0, None, "a")]
    unpacked = subprocess.run(["gzip", "-dc", shard.path], capture_output=True, check=True).stdout
    assert unpacked == json_lines([{"text": "a"}])
    # Nothing after the padding goes missing.
    assert len(read_all(write(tmp_path / "f.jsonl.gz", one + bytes(n_zeros) + two + bytes(3)))[0]) == 2
    for damaged in (one + bytes(n_zeros) + b"x", bytes(n_zeros) + one, one[:-4] + bytes(n_zeros) + b"xxx"):
        with pytest.raises(InputError, match="cut short or corrupt"):
            read_all(write(tmp_path / "f.jsonl.gz", damaged))


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.jsonl.xz", "f.jsonl.zst"])
def test_plain_text_under_a_compressed_name_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cut short or corrupt"):
        read_all(write(tmp_path / name, b'{"text": "a"}\n'))


def test_skippable_zstandard_frames_are_skipped(tmp_path):
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"meta"
    packed = skippable + zstd_frames(b'{"text": "a"}\n', 1) + skippable + zstd_frames(b'{"text": "b"}\n', 1)
    assert [text for _, _, text in read_all(write(tmp_path / "f.jsonl.zst", packed))[0]] == ["a", "b"]


def test_zstandard_files_with_a_long_window_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # streamed: the size is unknown
    packed = compressor.compress(b'{"text": "a"}\n') + compressor.flush()
    assert read_all(write(tmp_path / "f.jsonl.zst", packed))[0] == [(0, None, "a")]


def test_a_file_that_vanished_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: .*No such file.*; 0 rows"):
        read_all(Shard("x", tmp_path / "gone.jsonl", 1))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="directory"):
        read_all(Shard("x", tmp_path / "folder.jsonl", 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    shard = write(tmp_path / "f.jsonl", b"{}\n")
    shard.path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_all(shard)


def test_a_file_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="no reader knows"):
        read_all(write(tmp_path / "f.csv", b"text\na\n"))


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_progress_adds_up_to_the_size_of_the_file(tmp_path, name):
    data = json_lines([{"text": os.urandom(500).hex()} for _ in range(2000)])
    shard = write(tmp_path / name, LINE_FORMATS[name](data))
    told: list[int] = []
    read_all(shard, on_progress=told.append)
    assert sum(told) == shard.size
    assert len(told) > 1


def test_a_reader_can_be_left_early(tmp_path):
    shard = write(tmp_path / "f.jsonl", json_lines([{"text": "a"}] * 10))
    with read_shard(shard, batch_bytes=1) as reader:
        assert rows_of(next(reader)) == [(0, None, "a")]
    assert list(reader) == []


def test_what_find_shards_finds_read_shard_reads(tmp_path):
    for name, pack in LINE_FORMATS.items():
        write(tmp_path / name, pack(json_lines([{"text": name}])))
    texts = [text for shard in find_shards([str(tmp_path)]) for _, _, text in read_all(shard)[0]]
    assert texts == sorted(LINE_FORMATS)


def python_peak_while_reading(shard: Shard) -> tuple[int, int]:
    """Rows of the shard, and the peak of the memory that Python gave out while they were read."""
    tracemalloc.start()
    try:
        reader = read_shard(shard, batch_bytes=4 << 20)
        for _ in reader:
            pass
        return reader.counts.n_rows, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path):
    block = json_lines([{"id": n, "text": "some words of text " * 60} for n in range(1000)])
    path = tmp_path / "f.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for _ in range(190):
            writer.write(block)
    assert len(block) * 190 > 200 << 20
    # One frame that grows a thousandfold: hard for a decompressor that returns all it can.
    assert path.stat().st_size < 200 << 10
    n_rows, peak = python_peak_while_reading(as_shard(path))
    assert n_rows == 190_000
    assert peak < 60 << 20


def test_a_file_without_line_breaks_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 4 << 20)
    path = tmp_path / "f.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"text": "after"}\n')
    n_rows, peak = python_peak_while_reading(as_shard(path))
    assert n_rows == 2
    assert peak < 20 << 20


def test_a_real_corpus_reads_as_by_a_naive_reader(data_dir):
    [shard] = find_shards([f"{data_dir}/corpora/assistant_answers.jsonl.zst"])
    with shard.path.open("rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    rows, reader = read_all(shard)
    assert rows == naive_read(data)
    assert reader.counts.n_documents > 40_000
