"""Nothing is lost or given away at an address: what is removed or replaced there is ours, whenever a kill comes."""

from __future__ import annotations

import json
import shutil

import fsspec
import pytest

from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.index import build_index, save_index
from evalkit.corpora import objects
from evalkit.corpora import results as published
from evalkit.corpora.objects import remove
from evalkit.corpora.results import AlreadyPublishedError, ResultFile, Results, local_copy
from evalkit.errors import InputError, SpecError
from tests.corpora.store import KEY
from tests.corpora.web import Site, serve
from tests.places.commands import WORDS, evalkit
from tests.runs.conftest import save_tiny_model

OURS = {"audit.json": b"{}", "items.parquet": b"items", "score_split.json": b"{}", "notes.txt": b"theirs"}


@pytest.fixture
def out(store):
    """An audit of small files, and somebody's notes."""
    for name, data in OURS.items():
        store.write(f"leaks/{name}", data)
    return f"{store.url}/leaks"


def machine(monkeypatch, tmp_path, name):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / name))


def work(out, files, command="audit", **options):
    """What a command does, up to its end."""
    results = Results(out, **options)
    results.begin(command)
    for name, data in files.items():
        (results.folder / name).write_bytes(data)
    return results


def killed(monkeypatch, at, work):
    """Do this until a function of `results` is called, and then nothing more."""

    class KilledError(BaseException):
        pass

    def kill(*_, **__):
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(published, at, kill)
        work()


def test_a_kill_while_the_folder_is_cleared_removes_nothing_at_the_address(store, out, monkeypatch):
    results = work(out, {"audit.json": b'{"v": 2}'})
    real = shutil.rmtree

    def half(folder, **options):
        for path in folder.rglob("items.parquet"):
            path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(published.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        results.publish()
    monkeypatch.setattr(published.shutil, "rmtree", real)
    again = Results(out)
    again.begin("another")
    again.publish()
    assert {"audit.json", "items.parquet", "notes.txt"} <= set(store.names("leaks"))
    assert store.read("leaks/audit.json") == b'{"v": 2}'


def test_a_kill_while_results_are_taken_over_blocks_nothing(store, out, monkeypatch):
    real = published.fetch_all

    def half(address, files, folder):
        real(address, dict(list(files.items())[:1]), folder)
        raise KeyboardInterrupt

    for _ in range(2):  # the first time, and after unfinished work
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(published, "fetch_all", half)
            Results(out).begin("judge")
        results = work(out, {"verdicts.parquet": b"begun"})
        results.leave()
        store.write("leaks/audit.json", b'{"changed": 1}')
        store.write("leaks/items.parquet", b"changed")
    results = work(out, {})
    assert (results.folder / "items.parquet").read_bytes() == b"changed"
    results.leave()


def test_a_killed_publishing_does_not_replace_what_another_machine_has_completed(store, out, monkeypatch, tmp_path):
    mine, theirs = {"audit.json": b"mine.", "items.parquet": b"mine."}, {"audit.json": b"their", "items.parquet": b"t"}
    machine(monkeypatch, tmp_path, "a")
    killed(monkeypatch, "put_all", work(out, mine).publish)
    machine(monkeypatch, tmp_path, "b")
    work(out, theirs).publish()
    machine(monkeypatch, tmp_path, "a")
    for command in ("audit", "another"):
        with pytest.raises(InputError, match=r"somebody else meanwhile.*Remove .*outputs"):
            Results(out).begin(command)
    assert [store.read(f"leaks/{name}") for name in theirs] == list(theirs.values())


@pytest.mark.parametrize("at", ["put_all", "put", "end_uploads"])
def test_a_killed_publishing_goes_on_when_nobody_else_was_there(store, out, monkeypatch, at):
    results = work(out, {"audit.json": b"mine", "items.parquet": b"mine"}, has_parts=True)
    results._mark = lambda names: None  # or "put" would be reached too early
    killed(monkeypatch, at, results.publish)
    again = Results(out, has_parts=True)
    if at == "end_uploads":  # all was there
        again.begin("audit")
        again.leave()
    else:
        with pytest.raises(AlreadyPublishedError):
            again.begin("audit")
    assert store.names("leaks") == ["audit.json", "items.parquet", "notes.txt"]
    assert store.read("leaks/items.parquet") == b"mine"


def test_a_command_that_fails_leaves_the_list_of_what_another_had_begun_to_publish(store, out, monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, "a")
    results = work(out, {"audit.json": b"mine", "items.parquet": b"mine"})
    killed(monkeypatch, "put_all", results.publish)
    assert "audit.json" not in store.names("leaks")
    marker = store.read("leaks/.unfinished/evalkit.json")
    assert json.loads(marker)["files"] == ["audit.json", "items.parquet", "score_split.json"]
    machine(monkeypatch, tmp_path, "b")
    Results(out).begin("killed at once")
    machine(monkeypatch, tmp_path, "c")
    work(out, {}).leave()
    share = Results(out, together=True)
    share.begin("share")
    share.leave()
    assert store.read("leaks/.unfinished/evalkit.json") == marker
    work(out, {"audit.json": b"whole"}).publish()
    assert store.read("leaks/audit.json") == b"whole"


def test_only_an_audit_removes_the_parts_of_audits(store, out):
    part = f".unfinished/{'a' * 64}.parquet"
    for name in (part, ".unfinished/theirs", ".items.parquet.0123abcd.tmp", ".notes.txt.0123abcd.tmp"):
        store.write(f"leaks/{name}", b"x")
    work(out, {"items.parquet": b"judged"}, command="judge").publish()
    assert {part, ".unfinished/theirs", ".notes.txt.0123abcd.tmp"} <= set(store.names("leaks"))
    assert not {".items.parquet.0123abcd.tmp", ".unfinished/evalkit.json"} & set(store.names("leaks"))
    work(out, {"items.parquet": b"again"}, has_parts=True).publish()
    assert {name for name in store.names("leaks") if "unfinished" in name} == {".unfinished/theirs"}


def test_uploads_that_cannot_be_ended_end_no_command(store, out):
    store.proxy.held = lambda method, path: "drop" if method == "GET" and "uploads" in path else None
    work(out, {"audit.json": b"mine"}).publish()
    assert store.read("leaks/audit.json") == b"mine"


def test_only_results_are_taken_over_and_only_results_are_removed(store, out):
    for name in ("corpus/0.jsonl", "deep/er/audit.json", "a::b.txt", "/abs"):
        store.write(f"leaks/{name}", b"theirs")
    before = set(store.names("leaks"))
    results = Results(out, lambda name: "/" not in name)
    results.begin("dedup")
    here = {path.relative_to(results.folder).as_posix() for path in results.folder.rglob("*") if path.is_file()}
    assert here == {"audit.json", "items.parquet", "score_split.json"}
    (results.folder / "score_split.json").unlink()
    (results.folder / "audit.json").write_bytes(b"again")
    results.publish()
    assert set(store.names("leaks")) == before - {"score_split.json"}


def test_names_that_no_file_can_have_stop_nobody_from_reading(store, out, capsys):
    for name in ("a::b.txt", "/abs"):
        store.write(f"leaks/{name}", b"theirs")
    copy = local_copy(out)
    assert {path.name for path in copy.iterdir()} == set(OURS)
    assert "2 files at" in capsys.readouterr().err


def test_removing_knows_no_patterns(store, out):
    items = tuple(Item(f"{n:064x}", {"question": " ".join(WORDS[n : n + 20])}) for n in range(9))
    index = build_index([Benchmark("b", "", items, 0)], 8)
    store.write("one/index.json", b"theirs")
    with pytest.raises(SpecError, match="a pattern"):
        save_index(index, f"{store.url}/*")
    remove(store.url, ["*/index.json", "leaks/*", "leaks/item?.parquet"])
    assert store.names() == sorted([*(f"leaks/{name}" for name in OURS), "one/index.json"])
    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/one/index.json", b"theirs")
    remove("memory://folder", ["*/index.json"])
    assert set(objects.listed("memory://folder")) == {"one/index.json"}
    memory.rm("/folder", recursive=True)


def test_a_file_is_written_by_one_command_at_a_time_and_stays_when_it_cannot_be_put(store, tmp_path):
    address = f"{store.url}/pages/report.html"
    first = ResultFile(address)
    first.begin()
    with pytest.raises(SpecError, match="another command"):
        ResultFile(address).begin()
    with pytest.raises(InputError, match="no file"):
        first.publish()
    first.path.write_text("page")
    assert first.path.parent.parent.stat().st_mode & 0o077 == 0
    store.proxy.faults += [403] * 10
    with pytest.raises(InputError, match="cannot be written"):
        first.publish()
    assert first.path.read_text() == "page"
    store.proxy.faults.clear()
    first.publish()
    first.leave()
    assert store.read("pages/report.html") == b"page"
    ResultFile(address).begin()


def test_a_run_over_signed_addresses_publishes_neither_their_queries_nor_paths_of_this_machine(store, tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    with serve(Site({"t.jsonl": b'{"text": "the cat sat", "source": "a"}\n'})) as site:
        signed = f"{site.url}/t.jsonl?X-Amz-Credential={KEY}&X-Amz-Signature=hidden-signature&t='hidden-token"
        evalkit("run", "--model", model, "--perplexity", signed, "--out", f"{store.url}/p", "--device", "cpu")
    for name in store.names("p"):
        data = store.read(f"p/{name}")
        assert not [one for one in (b"hidden", KEY.encode(), str(tmp_path / "cache").encode()) if one in data], name
    assert json.loads(store.read("p/run.json"))["spec"]["perplexity"] == [f"{site.url}/t.jsonl"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["run", "--model", "s3://b/m", "--tasks", "t", "--out", "o"], "read from folders of this machine"),
        (["run", "--checkpoints", "s3://b/ck-*", "--tasks", "t", "--out", "o"], "read from folders of this machine"),
        (["audit", "--corpus", "c", "--benchmark", "memory://b/*.jsonl", "--out", "o"], "patterns are not read"),
        (["audit", "show", "S3://AKIA:/hid den'x@bucket/a"], "password stands"),
        (["report", "a", "b", "-o", "https://hidden@host/report.html"], "password stands"),
        (["run", "--model", "m", "--backend", "openai", "--base-url", "http://u:hid'den x@h", "--tasks", "t",
          "--out", "o"], "password stands"),
    ],
)  # fmt: skip
def test_what_is_read_from_no_address_says_so_without_repeating_secrets(words, what):
    said = evalkit(*words, code=2)
    assert what in said and "hid" not in said


def test_schemes_are_read_in_any_case(store, out, tmp_path):
    store.write("corpus/a.txt", b"x")
    upper = out.replace("s3://", "S3://")
    assert "already holds results (audit.json), and shares" in evalkit(
        "audit", "--corpus", "c", "--benchmark", "b", "--share", "1/2", "--overwrite", "--out", upper, code=2
    )
    assert "no complete audit" in evalkit("audit", "show", f"FILE://{tmp_path}", code=2)
