"""Files are at an address whole or not at all, whatever breaks; secrets are shown nowhere."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import fsspec
import pytest

from evalkit.addresses import has_password, redact, without_query
from evalkit.corpora import find_shards, objects, remote
from evalkit.corpora.objects import Stored, end_uploads, fetch, fetch_all, join, listed, put, put_all, remove
from evalkit.errors import InputError
from tests.corpora.formats import json_lines, naive_read, read_all
from tests.corpora.store import Store, object_server, store  # noqa: F401 - fixtures
from tests.corpora.web import Site, serve

LINES = json_lines([{"id": n, "text": f"document {n} ä🙂"} for n in range(500)])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "local.bin"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.fixture(params=["s3", "memory", "file"])
def place(request, tmp_path, memory):
    """An empty folder on a file system of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('store').url}/folder"
    return {"memory": "memory://folder", "file": f"file://{tmp_path}/folder"}[request.param]


def test_what_is_put_is_listed_fetched_and_removed(place, local, tmp_path):
    assert listed(place) == {}
    put_all({"a.bin": local, "deep/er/b.bin": local, ".hidden/c": local}, place)
    found = listed(place)
    assert {name: one.size for name, one in found.items()} == dict.fromkeys(
        ["a.bin", "deep/er/b.bin", ".hidden/c"], 100_000
    )
    assert all(one.stamp for one in found.values())
    assert set(listed(join(place, "a.bin"))) == {""}
    fetch_all(place, found, tmp_path / "back")
    assert (tmp_path / "back/deep/er/b.bin").read_bytes() == local.read_bytes()
    remove(place, ["a.bin", ".hidden/c", "never-there"])
    assert set(listed(place)) == {"deep/er/b.bin"}


def test_another_version_has_another_stamp(place, local):
    put(local, join(place, "a"))
    before = listed(place)["a"]
    local.write_bytes(local.read_bytes()[::-1])
    put(local, join(place, "a"))
    after = listed(place)["a"]
    assert after.size == before.size
    assert after.stamp != before.stamp


@pytest.mark.parametrize("faults", [[503], ["break"], ["lost"], [500, "break", 503, "lost"]])
def test_a_put_outlives_what_passes(store, local, faults):  # noqa: F811
    store.proxy.faults += faults
    put(local, f"{store.url}/a.bin")
    assert store.read("a.bin") == local.read_bytes()


def test_a_put_that_never_works_is_an_error_and_leaves_what_was_there(store, local):  # noqa: F811
    store.write("a.bin", b"before")
    store.proxy.faults += [503] * 200
    with pytest.raises(InputError, match="cannot be written"):
        put(local, f"{store.url}/a.bin")
    assert store.read("a.bin") == b"before"
    assert store.names() == ["a.bin"]


def test_a_large_file_that_breaks_off_in_the_middle_is_put_again_and_leaves_no_upload(store, tmp_path):  # noqa: F811
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(1 << 20) * 101)  # from 100 MiB on s3fs puts in parts
    store.proxy.faults += [None, None, 503, "break"]
    put(path, f"{store.url}/large.bin")
    assert [method for method, _ in store.proxy.seen].count("PUT") >= 3
    assert hashlib.sha256(store.read("large.bin")).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert store.uploads() == []


def test_nobody_sees_half_of_a_file(place, tmp_path, local):
    """A reader that looks all the time sees no file, then one of the versions in full."""
    sizes, ended = set(), threading.Event()

    def watch():
        while not ended.is_set():
            sizes.update((name, one.size) for name, one in listed(place).items() if objects.put_name(name) is None)

    thread = threading.Thread(target=watch)
    thread.start()
    for size in (1 << 20, 3 << 20, 2 << 20):
        local.write_bytes(os.urandom(size))
        put(local, join(place, "a.bin"))
    ended.set()
    thread.join()
    assert sizes <= {("a.bin", 1 << 20), ("a.bin", 3 << 20), ("a.bin", 2 << 20)}


def test_a_put_that_arrives_in_part_is_no_put(memory, local, monkeypatch):
    real = type(memory).put_file

    def cut(self, source, target, **options):
        real(self, source, target, **options)
        self.store[target].truncate(10)

    monkeypatch.setattr(type(memory), "put_file", cut)
    with pytest.raises(InputError, match="only 10 of 100000 bytes arrived"):
        put(local, "memory://folder/a.bin")
    assert listed("memory://folder") == {}


def test_uploads_of_a_killed_process_are_ended_and_those_of_others_are_not(store):  # noqa: F811
    bucket = store.url.removeprefix("s3://")
    for key in ("out/items.parquet", "out/theirs.bin", "other/items.parquet"):
        store.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert end_uploads(f"{store.url}/out", lambda name: name == "items.parquet") == 1
    assert sorted(store.uploads()) == ["other/items.parquet", "out/theirs.bin"]


def test_a_bucket_that_is_not_there_is_said_at_once(store, local):  # noqa: F811
    with pytest.raises(InputError, match=r"cannot be written .*bucket"):
        put(local, "s3://no-such-bucket-here/a.bin")
    assert len([one for one in store.proxy.seen if one[0] == "PUT"]) == 1


def test_a_file_that_has_another_size_now_is_not_fetched(store, tmp_path):  # noqa: F811
    store.write("a.bin", b"12345")
    with pytest.raises(InputError, match="has 5 bytes now, and had 6"):
        fetch_all(store.url, {"a.bin": Stored(6, "")}, tmp_path)
    assert list(tmp_path.glob("*.bin")) == []


def test_web_addresses_are_read_and_never_written(local, tmp_path):
    with serve(Site({"f/a.bin": b"12345"})) as site:
        assert {name: one.size for name, one in listed(f"{site.url}/f/").items()} == {"a.bin": 5}
        fetch(f"{site.url}/f/a.bin", tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == b"12345"
        with pytest.raises(InputError, match="takes no files"):
            put(local, f"{site.url}/f/b.bin")


def test_a_corpus_is_read_in_parts_from_an_object_store(store: Store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    store.write("corpus/a.jsonl", LINES)
    store.write("corpus/leaks/audit.json", b"{}")
    store.write("corpus/leaks/.unfinished/b.jsonl", LINES)
    [shard] = find_shards([f"{store.url}/corpus"])
    assert str(shard.path) == f"{store.url}/corpus/a.jsonl"
    assert read_all(shard)[0] == naive_read(LINES)
    assert len([one for one in store.proxy.seen if one[0] == "GET"]) > len(LINES) / 1000


SIGNED = "https://host.example/d/f.jsonl?X-Amz-Credential=AKIA1&X-Amz-Signature=1f2e3d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{SIGNED}: 403", "https://host.example/d/f.jsonl?... 403"),
        (f"HTTPError: '{SIGNED}' (403)", "HTTPError: 'https://host.example/d/f.jsonl?...' (403)"),
        ("sftp://me:pass@word@host/f", "sftp://...@host/f"),
        ("s3://AKIA:se/cret+x@bucket/f", "s3://...@bucket/f"),
        ("http://127.0.0.1:8000/a@b.jsonl", "http://127.0.0.1:8000/a@b.jsonl"),
        ("hf://datasets/a/b@main/f", "hf://datasets/a/b@main/f"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("s3://AKIA:/abc+def@bucket is not there", "s3://...@bucket is not there"),
        ("s3://AKIA:7/abc@bucket", "s3://...@bucket"),
        ("https://ghp_token@host/x: 404", "https://...@host/x: 404"),
        ("no address in a/b?c=d", "no address in a/b?c=d"),
        ("path /d/f?X-Amz-Signature=1f2e3d&x=1", "path /d/f?X-Amz-Signature=...&x=1"),
    ],
)
def test_secrets_in_addresses_are_not_shown(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


def test_addresses_with_passwords_are_told_from_those_with_ports():
    assert has_password("sftp://me:pass@host/f")
    assert has_password("s3://AKIA:se/cret@bucket/f")
    assert not has_password("sftp://me@host:22/f")
    assert not has_password("http://127.0.0.1:8000/a@b.jsonl")
    for address in ("hf://datasets/a/b@main/f", "abfss://container@account/f", "s3://bucket/a@b", "file:///d/a:b@c",
                    "https://[::1]:8000/a@b", "https://host/f?t=12:30@x"):  # fmt: skip
        assert not has_password(address), address
    assert without_query("s3://bucket/part-?.jsonl") == "s3://bucket/part-?.jsonl"
    assert without_query("https://h/x?a='q&X-Amz-Signature=1f2e") == "https://h/x"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "s3://AKIA:/abc+def@bucket",
            "s3://AKIA:7/abc@bucket",
            "s3a://AKIA%3Asecret@b",
            "S3://AKIA:a'b\"c d@bucket/f",
        ),
        *(f"s3://AKIA:{'x' * 600}@b", "https://ghp_token@host/x", "gs://token@bucket/f", "sftp://me:a/b@host/f"),
        *("abfs://container:key@account/f", "https://u:p@[::1]:8000/f"),
    ],
)
def test_passwords_are_found_whatever_is_in_them(address):
    assert has_password(address)
    with pytest.raises(InputError, match="password stands in this address") as caught:
        listed(address)
    assert address.partition("://")[2] not in str(caught.value)


def test_an_address_with_a_password_is_refused_without_repeating_it(local):
    for work in (listed, lambda url: put(local, url), lambda url: find_shards([url])):
        with pytest.raises(InputError, match="password stands in this address") as caught:
            work("s3://AKIA123:verysecret@bucket/f.jsonl")
        assert "verysecret" not in str(caught.value) and "AKIA123" not in str(caught.value)


def test_a_signed_address_is_read_with_its_query_and_recorded_without(capsys):
    with serve(Site({"f.jsonl": LINES, "g.jsonl": LINES})) as site:
        [shard] = find_shards([f"{site.url}/f.jsonl?X-Amz-Signature=hidden1"])
        assert read_all(shard)[0] == naive_read(LINES)
        assert "hidden1" not in f"{shard} {shard!r} {shard.path} {shard.corpus}"
        assert str(shard.path) == shard.corpus == f"{site.url}/f.jsonl"
        site.always = (0, 403)
        with pytest.raises(InputError, match="403") as caught:
            read_all(shard)
        assert "hidden1" not in str(caught.value)
        with pytest.raises(InputError, match="404") as caught:
            find_shards([f"{site.url}/gone.jsonl?X-Amz-Signature=hidden1"])
        assert "hidden1" not in str(caught.value)
        with pytest.raises(InputError, match="differ only in their query"):
            find_shards([f"{site.url}/g.jsonl?v={n}" for n in range(2)])


def test_a_listing_of_many_pages_has_every_file_and_those_of_no_neighbour(store: Store, monkeypatch):  # noqa: F811
    for n in range(30):
        store.write(f"a/b/{n:02}", b"x")
    store.write("a/bc", b"x")
    real = type(store.fs).call_s3
    monkeypatch.setattr(type(store.fs), "call_s3", lambda *given, **options: real(*given, **options, MaxKeys=7))
    store.proxy.seen.clear()
    assert sorted(listed(f"{store.url}/a/b")) == [f"{n:02}" for n in range(30)]
    assert len(store.proxy.seen) == 5
    assert sorted(listed(f"{store.url}/a/bc")) == [""]
    assert listed(f"{store.url}/a/b/0") == {}


def test_long_messages_are_redacted_in_no_time():
    begun = time.monotonic()
    letters = "x" * 500_000
    for text in (letters, f"{letters}://{letters}", "s3://" + "a:" * 100_000, "http://a/?" * 50_000):
        redact(text)
    assert time.monotonic() - begun < 20
