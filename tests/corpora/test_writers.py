"""Shards written anew: what was to change has changed, and everything else is as it was, in every format."""

from __future__ import annotations

import decimal
import json
import random
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.corpora import Shard, find_shards, write_columns
from evalkit.corpora.edits import Pending
from evalkit.corpora.fields import text_fields
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.remote import Address
from evalkit.corpora.shards import format_of_name
from evalkit.corpora.streams import read_chunks
from evalkit.corpora.write_lines import rewrite_lines
from evalkit.corpora.writers import describe_saved, output_name, rewrite_shard
from evalkit.errors import InputError
from tests.corpora.formats import LINE_FORMATS, as_shard, read_all, write

LINES = [
    b'{"id": 1, "text": "one", "big": 123456789012345678901234567890, "f": 1.10e5, "text2": "text"}',
    b'{"id": "b", "meta": {"text": "no"}, "text": "zwei \\u00e4 \\/ \\ud83d\\ude42"}\r',
    b"",
    b"not JSON",
    b'{"text": null}',
    b'{"text":"","id":2}',
    '{"text": "drüber 日本 🙂", "a": [1, {"text": "x"}], "id": 3}'.encode(),
    b'  {"id": 4, "text": "four", "n": ' + b"9" * 300 + b"}  ",
    b'{"id": 5, "text": "first", "text": "last"}',
    b"\xff\xfe",
    b'{"text": "the end"}',
]
DOCUMENTS = [0, 1, 6, 7, 8, 10]


def rewrite(shard, rows, edit, target=None, **columns):
    target = (
        target
        or (shard.path.parent if isinstance(shard.path, Path) else columns.pop("folder")) / "new" / shard.path.name
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    rewrite_shard(shard, target, rows, edit, **columns)
    return target


def data_of(path):
    return b"".join(read_chunks(path, format_of_name(path.name).compression, lambda n: None))


def drop(row, doc_id, texts):
    return []


def keep(row, doc_id, texts):
    return [list(texts)]


# JSON lines


@pytest.mark.parametrize("name", LINE_FORMATS)
@pytest.mark.parametrize("last", [b"\n", b""])
def test_all_lines_but_those_that_are_dropped_keep_their_bytes(tmp_path, name, last):
    rng = random.Random(name)
    for number in range(10):
        dropped = sorted(rng.sample(DOCUMENTS, rng.randint(0, len(DOCUMENTS))))
        (tmp_path / str(number)).mkdir()
        shard = write(tmp_path / str(number) / name, LINE_FORMATS[name](b"\n".join(LINES) + last))
        expected = b"".join(line + b"\n" for n, line in enumerate(LINES) if n not in dropped)
        if not last and LINES[-1] in expected.split(b"\n"):
            expected = expected[:-1]
        assert data_of(rewrite(shard, dropped, drop)) == expected


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([b"{}", b"", b"x" * 50, b'{"text":"t"}']), max_size=40), st.data())
def test_wherever_the_chunks_end_the_right_lines_go(tmp_path, lines, data):
    rows = [n for n, line in enumerate(lines) if line == b'{"text":"t"}']
    dropped = sorted(data.draw(st.sets(st.sampled_from(rows)))) if rows else []
    content = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=10)))
    chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    shard = Shard("c", tmp_path / "a.jsonl", len(content))
    pending = Pending(dropped, drop, shard)
    with (tmp_path / "out").open("wb") as out:
        rewrite_lines(chunks, out, pending, text_fields("text", "id"))
    kept = [line for n, line in enumerate(lines) if n not in dropped]
    end = b"\n" if kept and dropped and dropped[-1] == len(lines) - 1 else b""
    assert (tmp_path / "out").read_bytes() == b"\n".join(kept) + end


def test_only_the_text_of_a_changed_line_changes(tmp_path):
    shard = write(tmp_path / "a.jsonl", b"\n".join(LINES))

    def edit(row, doc_id, texts):
        seen.append((row, doc_id, texts))
        return [[f"ä{row}"], ['two "\n']]

    seen = []
    lines = data_of(rewrite(shard, DOCUMENTS, edit)).split(b"\n")
    assert [(row, doc_id) for row, doc_id, _ in seen] == [(0, "1"), (1, "b"), (6, "3"), (7, "4"), (8, "5"), (10, None)]
    assert [texts for _, _, texts in seen] == [
        ["one"], ["zwei ä / 🙂"], ["drüber 日本 🙂"], ["four"], ["last"], ["the end"]
    ]  # fmt: skip
    assert lines == [
        LINES[0].replace(b'"one"', b'"\\u00e40"'),
        LINES[0].replace(b'"one"', b'"two \\"\\n"'),
        LINES[1][:44] + b'"\\u00e41"}\r',
        LINES[1][:44] + b'"two \\"\\n"}\r',
        *LINES[2:6],
        LINES[6].replace("drüber 日本 🙂".encode(), "ä6".encode()),
        LINES[6].replace("drüber 日本 🙂".encode(), b'two \\"\\n'),
        LINES[7].replace(b"four", b"\\u00e47"),
        LINES[7].replace(b"four", b'two \\"\\n'),
        LINES[8].replace(b"last", b"\\u00e48"),
        LINES[8].replace(b"last", b'two \\"\\n'),
        LINES[9],
        LINES[10].replace(b"the end", b"\\u00e410"),
        LINES[10].replace(b"the end", b'two \\"\\n'),
    ]


def test_a_byte_order_mark_stays_at_the_beginning_and_only_there(tmp_path):
    shard = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert data_of(rewrite(shard, [0], drop)) == b'\xef\xbb\xbf{"text": "b"}\n'
    twice = rewrite(shard, [0], lambda *_: [["1"], ["2"]])
    assert data_of(twice) == b'\xef\xbb\xbf{"text": "1"}\n{"text": "2"}\n{"text": "b"}\n'


CHAT = {
    "id": 1,
    "messages": [
        {"role": "user", "content": "Why?"},
        {"role": "tool", "content": None},
        None,
        {"role": "assistant", "content": "Because."},
    ],
    "meta": {"body": "body", "when": 1},
    "turns": [["a", "b"], [], None, ["c"]],
}
PATHS = ["messages[].content", "meta.body", "turns[][]"]


def upper(row, doc_id, texts):
    return [[text.upper() for text in texts]]


def changed_chat():
    chat = json.loads(json.dumps(CHAT))
    chat["messages"][0]["content"], chat["messages"][3]["content"] = "WHY?", "BECAUSE."
    chat["meta"]["body"], chat["turns"] = "BODY", [["A", "B"], [], None, ["C"]]
    return chat


@pytest.mark.parametrize("paths", [PATHS, PATHS[::-1]])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_texts_inside_of_a_row_are_changed_where_they_are(tmp_path, name, paths):
    table = pa.Table.from_pylist([{**CHAT, "id": 0}, CHAT, {**CHAT, "id": 2}])
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    new = rewrite(as_shard(tmp_path / name), [1], upper, text_column=paths)
    if name == "a.jsonl":
        found = [json.loads(line) for line in new.read_text().splitlines()]
    else:
        found = (
            pq.read_table(new) if name == "a.parquet" else pa.ipc.open_stream(new.read_bytes()).read_all()
        ).to_pylist()
    assert found == [{**CHAT, "id": 0}, changed_chat(), {**CHAT, "id": 2}]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=10,
    ),
    st.text().map("x{}".format),
    st.text(),
    st.booleans(),
)
def test_any_line_is_changed_in_its_text_alone(tmp_path, other, text, new, ascii_only):
    try:
        line = json.dumps({"a": other, "text": text, "b": other}, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    changed = json.loads(data_of(rewrite(write(tmp_path / "a.jsonl", line), [0], lambda *_: [[new]])))
    assert changed == {"a": other, "text": new, "b": other}


# Parquet


def rich_table(n=100):
    """Columns of many types."""
    return pa.table(
        {
            "id": pa.array(range(n), pa.int32()),
            "text": pa.array([f"text {i}" for i in range(n)]),
            "when": pa.array([i * 10**9 + 1 for i in range(n)], pa.timestamp("ns", "UTC")),
            "price": pa.array([decimal.Decimal(i) / 100 for i in range(n)], pa.decimal128(9, 2)),
            "tags": pa.array([["a"] * (i % 3) for i in range(n)], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
            "pairs": pa.array([[("k", i)] for i in range(n)], pa.map_(pa.string(), pa.int64())),
            "raw": pa.array([bytes([i]) for i in range(n)], pa.binary(1)),
            "label": pa.array([None if i % 5 == 0 else str(i % 4) for i in range(n)]).dictionary_encode(),
            "nothing": pa.nulls(n),
        }
    ).replace_schema_metadata({"huggingface": '{"info": {}}', "mine": "yes"})


def drop_and_double(row, doc_id, texts):
    return [] if row % 2 else [[texts[0] + " A"], [texts[0] + " B"]]


def expected_rows(rows, edited):
    result = []
    for row in rows:
        if row["id"] not in edited:
            result.append(row)
        elif row["id"] % 2 == 0:
            result += [{**row, "text": row["text"] + " A"}, {**row, "text": row["text"] + " B"}]
    return result


@pytest.mark.parametrize(
    "text_type", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_keeps_all_other_columns_of_whatever_type(tmp_path, text_type):
    table = rich_table()
    table = table.set_column(1, pa.field("text", text_type), table.column("text").cast(text_type))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    edited = [0, 1, 2, 29, 30, 31, 60, 98, 99]
    new = pq.read_table(rewrite(as_shard(tmp_path / "a.parquet"), edited, drop_and_double))
    old = pq.read_table(tmp_path / "a.parquet")
    assert new.schema.equals(old.schema, check_metadata=True)
    assert new.to_pylist() == expected_rows(old.to_pylist(), edited)


def described(path):
    """What a Parquet file says of itself, but for what depends on its rows and its writer."""
    metadata = pq.read_metadata(path)
    chunks = [
        [metadata.row_group(g).column(c) for c in range(metadata.num_columns)] for g in range(metadata.num_row_groups)
    ]
    return {
        "schema": str(pq.ParquetFile(path).schema).split("\n", 1)[1],
        # What it holds is compared as a schema; the names of list elements in it are pyarrow's business.
        "metadata": {key: key != b"ARROW:schema" and value for key, value in (metadata.metadata or {}).items()},
        "rows": [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
        "codecs": [[chunk.compression for chunk in group] for group in chunks],
        "dictionaries": [[chunk.has_dictionary_page for chunk in group] for group in chunks],
        "indexes": [[chunk.has_offset_index for chunk in group] for group in chunks],
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "compression_level": 9},
        {"compression": {"id": "gzip", "text": "brotli", "label": "lz4"}},
        {"compression": "none", "use_dictionary": False, "store_schema": False},
        {"use_dictionary": ["label"], "write_page_index": True},
        {"use_deprecated_int96_timestamps": True},
        {"use_compliant_nested_type": False},
        {"version": "1.0", "data_page_version": "2.0", "coerce_timestamps": "ms", "allow_truncated_timestamps": True},
    ],
    ids=str,
)
def test_parquet_is_written_as_it_was(tmp_path, options):
    pq.write_table(rich_table().drop_columns(["nothing"]), tmp_path / "a.parquet", row_group_size=30, **options)
    new = rewrite(as_shard(tmp_path / "a.parquet"), [3, 5, 95], drop)
    before, after = described(tmp_path / "a.parquet"), described(new)
    assert after.pop("rows") == [28, 30, 30, 9]
    assert before.pop("rows") == [30, 30, 30, 10]
    assert after == before


def test_a_row_group_without_rows_goes_and_a_huge_one_is_divided(tmp_path, monkeypatch):
    pq.write_table(rich_table(), tmp_path / "a.parquet", row_group_size=40)
    new = rewrite(as_shard(tmp_path / "a.parquet"), range(40, 80), drop)
    assert described(new)["rows"] == [40, 20]
    assert described(rewrite(as_shard(tmp_path / "a.parquet"), range(100), drop))["rows"] == []
    monkeypatch.setattr(write_columns, "MAX_GROUP_BYTES", 1000)
    monkeypatch.setattr(write_columns, "_BATCH_BYTES", 1000)
    new = rewrite(as_shard(tmp_path / "a.parquet"), [1], drop)
    assert max(described(new)["rows"]) < 40
    assert pq.read_table(new).num_rows == 99


def test_a_pandas_frame_comes_back_as_a_frame(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "c"], "x": pd.Categorical(["u", "v", "u"])}, index=[7, 8, 9])
    frame.to_parquet(tmp_path / "a.parquet")
    new = pd.read_parquet(rewrite(as_shard(tmp_path / "a.parquet"), [1], drop))
    pd.testing.assert_frame_equal(new, frame.drop(index=8))


# Arrow


def write_arrow(path, table, *, footer, compression=None, rows=30):
    new = pa.ipc.new_file if footer else pa.ipc.new_stream
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return as_shard(path)


def read_arrow_file(path):
    data = path.read_bytes()
    return (pa.ipc.open_file(data) if data.startswith(b"ARROW1") else pa.ipc.open_stream(data)).read_all()


def codec_of(path):
    data = path.read_bytes()
    source = pa.py_buffer(data[8:] if data.startswith(b"ARROW1") else data)
    return write_columns._body_compression(pa.BufferReader(source))


@pytest.mark.parametrize("footer", [False, True])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_keeps_its_kind_its_batches_and_its_compression(tmp_path, footer, compression):
    shard = write_arrow(tmp_path / "a.arrow", rich_table(), footer=footer, compression=compression)
    assert codec_of(shard.path) == compression
    edited = [0, 1, 29, 30, 98, 99]
    path = rewrite(shard, edited, drop_and_double)
    new, old = read_arrow_file(path), rich_table()
    assert new.schema.equals(old.schema, check_metadata=True)
    assert new.to_pylist() == expected_rows(old.to_pylist(), edited)
    assert path.read_bytes().startswith(b"ARROW1") is footer
    assert codec_of(path) == compression
    assert [len(batch) for batch in new.to_batches()] == [29, 31, 30, 10]


def test_a_smaller_file_tells_that_it_is_compressed(tmp_path):
    table = pa.table({"text": ["the same again"] * 10_000})
    for compression in (None, "lz4", "zstd"):
        shard = write_arrow(tmp_path / f"{compression}.arrow", table, footer=False, compression=compression, rows=1000)
        assert rewrite(shard, [], drop).stat().st_size == pytest.approx(shard.size, rel=0.01)


def test_texts_in_a_dictionary_can_be_dropped_and_in_a_stream_be_changed(tmp_path):
    table = rich_table()
    table = table.set_column(1, "text", table.column("text").dictionary_encode())
    stream = write_arrow(tmp_path / "a.arrow", table, footer=False)
    assert read_arrow_file(rewrite(stream, [2, 40], drop_and_double)).to_pylist() == expected_rows(
        table.to_pylist(), [2, 40]
    )
    file = write_arrow(tmp_path / "b.arrow", table, footer=True)
    assert read_arrow_file(rewrite(file, [1, 41], drop)).num_rows == 98
    with pytest.raises(InputError, match="Drop the documents instead"):
        rewrite(file, [2, 40], drop_and_double)


@pytest.mark.parametrize("splits", [None, ["train", "test"]])
def test_a_saved_dataset_can_be_loaded_again(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(10)], "label": [0, 1] * 5})
    saved = one if splits is None else datasets.DatasetDict(dict.fromkeys(splits, one))
    saved.save_to_disk(str(tmp_path / "saved"))
    shards = find_shards([str(tmp_path / "saved")])
    folders = {}
    for shard in shards:
        target = tmp_path / "new" / shard.path.relative_to(tmp_path / "saved")
        rewrite(shard, [3], drop, target)
        folders[shard.path.parent] = target.parent
    written = describe_saved(folders, "change")
    assert all(path.is_file() for path in written)
    new = datasets.load_from_disk(str(tmp_path / "new"))
    for name in splits or [None]:
        split = new if name is None else new[name]
        assert len(split) == 9
        assert split.features == one.features
        assert split._fingerprint != one._fingerprint


@pytest.mark.parametrize(
    "state",
    [
        *(b"{}", b"[]", b"{", b"\xff"),
        b'{"_data_files": [{"filename": "a.arrow"}]}',
        b'{"_data_files": 3, "_fingerprint": "x"}',
        b'{"_data_files": ["a.arrow"], "_fingerprint": "x"}',
        b'{"_data_files": [{"filename": 1}], "_fingerprint": "x"}',
    ],
)
def test_a_state_json_of_another_program_is_passed_over(tmp_path, state):
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.arrow").write_bytes(b"")
    (tmp_path / "old" / "dataset_info.json").write_text("{}")
    (tmp_path / "old" / "state.json").write_bytes(state)
    assert describe_saved({tmp_path / "old": tmp_path / "new"}, "change") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.arrow"]


def test_a_saved_dataset_whose_description_is_gone_or_broken_does_not_end_the_work(tmp_path):
    good = {"state.json": '{"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "x"}', "dataset_info.json": "{}"}
    for number, wrong in enumerate(
        [{"dataset_info.json": None}, {"dataset_info.json": "{"}, {"dataset_info.json": "7"}]
    ):
        old, new = (tmp_path / f"{number}" / name for name in ("old", "new"))
        for folder in (old, new):
            folder.mkdir(parents=True)
            (folder / "a.arrow").write_bytes(b"")
        for name, text in {**good, **wrong}.items():
            if text is not None:
                (old / name).write_text(text)
        assert describe_saved({old: new}, "change") == []
    for text in (None, "{", "[]", '{"splits": 7}', '{"splits": [7, "train"]}'):
        old, new = (tmp_path / str(text).encode().hex() / name / "train" for name in ("old", "new"))
        for folder in (old, new):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "a.arrow").write_bytes(b"")
        for name, one in good.items():
            (old / name).write_text(one)
        if text is not None:
            (old.parent / "dataset_dict.json").write_text(text)
        assert [path.name for path in describe_saved({old: new}, "change")] == ["dataset_info.json", "state.json"]


# Elsewhere


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.arrow"])
def test_files_at_an_address_are_written_here_in_the_same_format(tmp_path, name):
    table = rich_table(50).select(["id", "text"])
    local = tmp_path / name
    if name == "a.jsonl.gz":
        local.write_bytes(
            LINE_FORMATS["members.jsonl.gz"]("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())
        )
    elif name == "a.parquet":
        pq.write_table(table, local)
    else:
        write_arrow(local, table, footer=True)
    fsspec.filesystem("memory").pipe(f"/writers/{name}", local.read_bytes())
    shard = Shard("memory", Address(f"memory://writers/{name}"), local.stat().st_size)
    here = rewrite(as_shard(local), [4, 7], drop_and_double, tmp_path / "here" / name)
    there = rewrite(shard, [4, 7], drop_and_double, tmp_path / "there" / name)
    assert there.read_bytes() == here.read_bytes()


def test_a_part_of_a_dataset_becomes_parquet(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("id,text\n" + "".join(f"{n},text {n}\n" for n in range(2500)))
    [shard] = find_shards([f"hf:{tmp_path / 'data'}"])
    assert isinstance(shard.path, DatasetPart)
    new = rewrite(shard, [1, 2400], drop_and_double, tmp_path / "new" / output_name(shard))
    assert new.suffix == ".parquet"
    rows = [{"id": n, "text": f"text {n}"} for n in range(2500)]
    assert pq.read_table(new).to_pylist() == expected_rows(rows, {1, 2400})
    assert len(read_all(as_shard(new))[0]) == 2500


# What cannot be


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_row_that_is_not_there_or_no_document_is_an_error(tmp_path, name):
    table = pa.table({"text": ["a", None, "", "b"]})
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif name == "a.parquet":
        pq.write_table(table, path)
    else:
        write_arrow(path, table, footer=False)
    with pytest.raises(InputError, match=r"row 4: there is no such row"):
        rewrite(as_shard(path), [0, 4], drop)
    with pytest.raises(InputError, match=r"row 1: this (line|row) is no document"):
        rewrite(as_shard(path), [0, 1], drop)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name):
    path = tmp_path / name
    if name.startswith("a.jsonl"):
        path.write_bytes(LINE_FORMATS[f"one.{name[2:]}"](b'{"text": "abc"}\n' * 10_000))
    elif name == "a.parquet":
        pq.write_table(rich_table(), path)
    else:
        write_arrow(path, rich_table(), footer=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=name):
        rewrite(as_shard(path), [0], drop)
    shard = Shard("c", path, path.stat().st_size + 1)
    with pytest.raises(InputError, match="had"):
        rewrite(shard, [0], drop)


def test_a_line_may_be_nested_as_deep_as_can_be_read(tmp_path):
    line = b'{"x": ' + b"[" * 1000 + b"]" * 1000 + b', "text": "t"}\n'
    shard = write(tmp_path / "a.jsonl", line)
    assert rewrite(shard, [0], upper).read_bytes() == line.replace(b'"t"', b'"T"')
