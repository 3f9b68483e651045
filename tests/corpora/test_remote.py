"""Files at addresses read as files here do; what breaks off is fetched again, and nothing comes in part unnoticed."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
from collections.abc import Iterator

import fsspec
import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.corpora import Shard, find_shards, remote, row_offsets, split_shard
from evalkit.corpora.remote import Address, RemoteFile
from evalkit.errors import InputError
from tests.corpora.formats import LINE_FORMATS, Row, json_lines, naive_read, read_all
from tests.corpora.web import Site, serve

LINES = json_lines([{"id": n, "text": f"document {n} {os.urandom(20).hex()} ä🙂"} for n in range(200)])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server, and blocks so small that every file has many."""
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    with serve(Site({})) as served:
        yield served


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system in memory, empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def one(pattern: str) -> Shard:
    [shard] = find_shards([pattern])
    return shard


def rows_at(pattern: str) -> list[Row]:
    return read_all(one(pattern))[0]


def parquet_bytes(**options: object) -> bytes:
    """A file of which the text is the smaller part; pyarrow reads 64 KiB from its end in any case."""
    random.seed(0)
    sink = pa.BufferOutputStream()
    texts = [f"text {n}" for n in range(500)]
    pictures = [random.randbytes(2000) for _ in texts]
    pq.write_table(pa.table({"picture": pictures, "id": range(500), "text": texts}), sink, **options)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_every_format_reads_over_http_as_by_a_naive_reader(site, name):
    site.files[f"data/{name}"] = LINE_FORMATS[name](LINES)
    shard = one(f"{site.url}/data/{name}")
    assert shard == Shard(
        f"{site.url}/data/{name}", Address(f"{site.url}/data/{name}"), len(site.files[f"data/{name}"])
    )
    told: list[int] = []
    rows, reader = read_all(shard, on_progress=told.append)
    assert rows == naive_read(LINES)
    assert reader.counts.n_rows == 200
    assert sum(told) == shard.size
    assert site.n_bytes_asked == shard.size  # each byte once, and no more than that


def test_a_connection_that_breaks_now_and_then_changes_nothing_and_costs_only_the_block(site):
    site.files["f.jsonl"] = LINES
    shard = one(f"{site.url}/f.jsonl")
    site.faults += [None, "break", "break", None, "short", 503, 429, None, "break"]
    assert read_all(shard)[0] == naive_read(LINES)
    assert shard.size < site.n_bytes_asked <= shard.size + 6 * 1000
    starts = [start for _, start, _ in site.gets]
    assert starts == sorted(starts)  # never again from the beginning


def test_a_short_answer_goes_on_at_the_first_missing_byte(site):
    site.files["f.jsonl"] = LINES
    shard = one(f"{site.url}/f.jsonl")
    site.faults += ["short"]
    assert read_all(shard)[0] == naive_read(LINES)
    assert [(start, stop) for _, start, stop in site.gets[:3]] == [(0, 1000), (500, 1000), (1000, 2000)]


@pytest.mark.parametrize("fault", ["break", 500])
@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.jsonl.zst", "f.jsonl.xz"])
def test_a_place_that_never_comes_is_an_error_after_a_few_attempts(site, name, fault):
    pack = {"f.jsonl": "plain.jsonl"}.get(name, f"one.{name[2:]}")
    site.files[name] = LINE_FORMATS[pack](LINES)
    shard = one(f"{site.url}/{name}")
    site.always = (3000, fault)
    with pytest.raises(InputError, match=r"cannot be read to its end .*; \d+ rows were read before") as caught:
        read_all(shard)
    assert caught.value.where == f"{site.url}/{name}"
    assert len([start for _, start, _ in site.gets if start >= 3000]) == remote.N_ATTEMPTS


def test_what_is_forbidden_is_not_asked_for_again(site):
    site.files["f.jsonl"] = LINES
    shard = one(f"{site.url}/f.jsonl")
    site.always = (2000, 403)
    with pytest.raises(InputError, match="403"):
        read_all(shard)
    assert len([start for _, start, _ in site.gets if start >= 2000]) == 1


def test_a_server_that_never_answers_a_range_rightly_is_an_error_and_no_short_file(site):
    site.files["f.jsonl"] = LINES
    shard = one(f"{site.url}/f.jsonl")
    site.always = (3000, 416)  # "outside of the file", which fsspec takes for its end
    with pytest.raises(InputError, match=rf"only 3000 of {len(LINES)} bytes came"):
        read_all(shard)


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_a_server_without_ranges_is_read_in_one_stream(site, name):
    site.knows_ranges = False
    site.files[name] = LINE_FORMATS[name](LINES)
    assert rows_at(f"{site.url}/{name}") == naive_read(LINES)
    assert len(site.gets) <= 3


def test_a_stream_that_breaks_is_an_error(site):
    site.knows_ranges = False
    site.files["f.jsonl"] = LINES
    shard = one(f"{site.url}/f.jsonl")
    site.faults += [None, None, "break"]
    with pytest.raises(InputError, match="cannot be read to its end"):
        read_all(shard)


def test_parquet_from_a_server_without_ranges_is_an_error(site):
    site.knows_ranges = False
    site.files["f.parquet"] = parquet_bytes()
    with pytest.raises(InputError, match="range requests"):
        rows_at(f"{site.url}/f.parquet")


def test_of_a_parquet_file_only_the_columns_wanted_are_fetched(site):
    site.files["f.parquet"] = parquet_bytes()
    assert rows_at(f"{site.url}/f.parquet") == [(n, str(n), f"text {n}") for n in range(500)]
    assert site.n_bytes_asked < len(site.files["f.parquet"]) / 5


def test_a_parquet_file_survives_broken_connections(site):
    site.files["f.parquet"] = parquet_bytes(row_group_size=50)
    shard = one(f"{site.url}/f.parquet")
    site.faults += ["break", None, 503, None, "short", "break"] * 3
    assert read_all(shard)[0] == [(n, str(n), f"text {n}") for n in range(500)]


@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet", "f.arrow"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changed_since_it_was_found_is_an_error(site, name, change):
    site.files[name] = LINES
    shard = one(f"{site.url}/{name}")
    site.files[name] = LINES[:-1] if change < 0 else LINES + b"\n"
    with pytest.raises(InputError, match=rf"has {len(LINES) + change} bytes now, and had {len(LINES)}"):
        read_all(shard)


def test_a_file_of_unknown_size_is_refused(site):
    site.tells_size = False
    site.files["f.jsonl"] = LINES
    with pytest.raises(InputError, match=r"does not say how long .*Download"):
        find_shards([f"{site.url}/f.jsonl"])


def test_an_address_that_is_not_there_is_refused_with_what_the_server_says(site):
    site.files["f.jsonl"] = LINES
    with pytest.raises(InputError, match=r"gone\.jsonl: .*404"):
        find_shards([f"{site.url}/gone.jsonl"])


def test_a_server_that_is_not_there_is_refused_after_a_few_attempts(site):
    with serve(Site({})) as other:
        url = other.url
    with pytest.raises(InputError, match="Cannot connect"):
        find_shards([f"{url}/f.jsonl"])


def test_the_query_of_a_web_address_is_no_part_of_the_name(site):
    site.files["f.jsonl"] = LINES
    assert one(f"{site.url}/f.jsonl?token=a.b").path.name == "f.jsonl"
    assert rows_at(f"{site.url}/f.jsonl?token=a.b") == naive_read(LINES)


def test_folders_and_globs_on_a_web_server_mean_what_they_mean_here(site, capsys):
    for name in ("b.jsonl", "a.jsonl.zst", "deep/er/c.parquet", ".hidden.jsonl", ".cache/d.jsonl", "README.md"):
        site.files[f"data/{name}"] = b"12345"
    site.files["data/leaks/audit.json"] = site.files["data/leaks/items.parquet"] = b"{}"

    def found(pattern: str) -> list[str]:
        return [str(shard.path).removeprefix(f"{site.url}/data/") for shard in find_shards([f"{site.url}/{pattern}"])]

    assert found("data") == found("data/") == ["a.jsonl.zst", "b.jsonl", "deep/er/c.parquet"]
    message = capsys.readouterr().err
    assert "1 .md" in message and f"the results in {site.url}/data/leaks" in message
    assert found("data/*.jsonl*") == ["a.jsonl.zst", "b.jsonl"]
    assert found("data/d*/**/*.parquet") == ["deep/er/c.parquet"]
    assert [shard.size for shard in find_shards([f"{site.url}/data"])] == [5, 5, 5]
    with pytest.raises(InputError, match="nothing is at this address"):
        found("data/*.ndjson")
    with pytest.raises(InputError, match=r"only 1 file \(1 \.md\)"):
        found("data/*.md")


def test_options_of_fsspec_reach_the_server_and_bytes_are_never_recoded(site, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"X-Token": "secret"}})
    site.files["f.jsonl"] = LINES
    assert rows_at(f"{site.url}/f.jsonl") == naive_read(LINES)
    assert {headers.get("X-Token") for headers in site.headers} == {"secret"}
    assert {headers.get("Accept-Encoding") for headers in site.headers} == {"identity"}


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_every_format_reads_from_any_file_system(memory, name):
    memory.pipe(f"/corpus/{name}", LINE_FORMATS[name](LINES))
    shard = one(f"memory://corpus/{name}")
    assert str(shard.path) == f"memory:///corpus/{name}" or str(shard.path) == f"memory://corpus/{name}"
    assert read_all(shard)[0] == naive_read(LINES)
    assert pickle.loads(pickle.dumps(shard)) == shard


def test_folders_and_globs_of_any_file_system_mean_what_they_mean_here(memory, capsys):
    for name in ("b.jsonl", "a.jsonl.zst", "deep/er/c.parquet", ".hidden.jsonl", ".cache/d.jsonl", "leaks/audit.json"):
        memory.pipe(f"/corpus/{name}", b"12345")
    memory.pipe("/corpus/leaks/x.jsonl", b"{}")
    for name in ("state.json", "dataset_info.json", "data-0.arrow", "cache-1f.arrow"):
        memory.pipe(f"/saved/{name}", b"{}")

    def found(*patterns: str) -> list[str]:
        return [shard.path.name for shard in find_shards([f"memory://{pattern}" for pattern in patterns])]

    assert found("corpus") == ["a.jsonl.zst", "b.jsonl", "c.parquet"]
    assert "left out the results in memory://" in capsys.readouterr().err
    assert found("corpus/*.jsonl*") == ["a.jsonl.zst", "b.jsonl"]
    assert found("corpus/**/*.parquet", "corpus/deep/*", "corpus/**/c.*") == ["c.parquet"]
    assert found("corpus/leaks/*.jsonl") == ["x.jsonl"]
    assert found("corpus/.cache/*.jsonl") == ["d.jsonl"]
    assert found("saved") == ["data-0.arrow"]
    assert "1 caches of `datasets`" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing is at this address"):
        found("nowhere/*.jsonl")


def test_local_files_come_before_others_and_keep_their_paths(memory, tmp_path):
    memory.pipe("/a.jsonl", b"{}")
    (tmp_path / "z.jsonl").write_bytes(b"{}")
    shards = find_shards(["memory://a.jsonl", f"file://{tmp_path}/z.jsonl", str(tmp_path)])
    assert [shard.path.name for shard in shards] == ["z.jsonl", "a.jsonl"]
    assert (shards[0].path, shards[0].corpus) == (tmp_path / "z.jsonl", f"file://{tmp_path}/z.jsonl")


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(InputError, match=r"cannot be read .*nonsense"):
        find_shards(["nonsense://bucket/f.jsonl"])


@pytest.mark.parametrize(("address", "package"), [("s3://bucket/f.jsonl", "s3fs"), ("gs://bucket/f.jsonl", "gcsfs")])
def test_a_missing_package_is_named(address, package, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, address.partition(":")[0], raising=False)
    with pytest.raises(InputError, match=package):
        find_shards([address])


def test_chained_addresses_are_refused():
    with pytest.raises(InputError, match="chained"):
        find_shards(["zip://f.jsonl::http://127.0.0.1/x.zip"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    block_bytes=st.integers(1, 50),
    steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 300), st.integers(-1, 120)), max_size=8),
)
def test_a_remote_file_reads_as_a_file_in_memory(memory, data, block_bytes, steps):
    memory.pipe("/f", data)
    expected = io.BytesIO(data)
    with pytest.MonkeyPatch.context() as patch, RemoteFile(Address("memory://f"), len(data)) as file:
        patch.setattr(remote, "BLOCK_BYTES", block_bytes)
        patch.setattr(remote, "_MAX_BLOCKS", 2)
        for whence, offset, size in steps:
            by = {0: offset, 1: max(0, offset - 150), 2: -min(offset, len(data))}[whence]
            assert file.seek(by, whence) == expected.seek(by, whence)
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()


@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet"])
def test_parts_are_read_over_http(site, name):
    site.files["f.jsonl"] = LINES
    site.files["f.parquet"] = parquet_bytes(row_group_size=20)
    shard = one(f"{site.url}/{name}")
    parts = split_shard(shard, shard.size // 7)
    assert len(parts) > 5
    read = [read_all(part) for part in parts]
    offsets = row_offsets(parts, [reader.counts.n_lines for _, reader in read])
    rows = [
        (row + offset, doc_id, text)
        for (of_part, _), offset in zip(read, offsets, strict=True)
        for row, doc_id, text in of_part
    ]
    assert rows == read_all(shard)[0]
