"""Commands take addresses as they take paths: the same results, whole or not there; others' files are left alone."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalkit import cli, places
from evalkit.addresses import named
from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.index import build_index, load_index, save_index
from evalkit.errors import InputError
from tests.corpora.hub import hub
from tests.places.commands import (
    TABLES,
    WORDS,
    audit_words,
    evalkit,
    expected,
    results,
    written,
)
from tests.reports.runs import write_run
from tests.runs.conftest import save_tiny_model


def test_an_audit_at_an_address_is_the_audit_in_a_folder(full, tmp_path):
    printed = evalkit(*audit_words(full, f"{full.url}/out/leaks"))
    assert f"Audit: {full.url}/out/leaks" in printed
    assert {*TABLES, "bad_rows.jsonl", "audit.json"} == set(full.names("out/leaks"))
    evalkit(*audit_words(full, tmp_path / "leaks"))
    for name in full.names("out/leaks"):
        if name != "audit.json":
            assert full.read(f"out/leaks/{name}") == (tmp_path / "leaks" / name).read_bytes(), name
    record = full.read("out/leaks/audit.json").decode()
    assert json.loads(record)["benchmarks"][0]["source"] == f"{full.url}/items.jsonl"
    assert str(tmp_path) not in record
    left = [path for path in (tmp_path / "cache/outputs").rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []  # nothing stays on this machine


def test_what_reads_an_audit_reads_it_at_an_address(full):
    leaks = f"{full.url}/leaks"
    evalkit(*audit_words(full, leaks))
    assert f"{full.url}/corpus/" in evalkit("audit", "show", leaks, "--n", "1")
    assert json.loads(evalkit("audit", "verify", leaks, "--json"))["ok"]
    evalkit("audit", "judge", leaks, "--rule", "palm", "--out", f"{full.url}/palm")
    assert json.loads(full.read("palm/audit.json"))["rules"] == ["palm"]
    # In place: the tables are replaced where they are.
    evalkit("audit", "judge", leaks, "--rule", "palm")
    assert json.loads(full.read("leaks/audit.json"))["rules"] == ["palm"]
    assert full.read("leaks/items.parquet") == full.read("palm/items.parquet")
    # And what was copied before is not taken for what is there now.
    assert "palm" in evalkit("audit", "show", leaks, "--n", "1")


def test_only_what_is_needed_is_fetched_and_only_once(full):
    leaks = f"{full.url}/leaks"
    evalkit(*audit_words(full, leaks))
    full.proxy.seen.clear()
    evalkit("audit", "show", leaks, "--n", "1")
    fetched = [path.rpartition("/")[2].partition("?")[0] for method, path in full.proxy.seen if method == "GET"]
    assert "matches.parquet" in fetched and "scan.parquet" not in fetched
    full.proxy.seen.clear()
    evalkit("audit", "show", leaks, "--n", "1")
    assert not [path for method, path in full.proxy.seen if method == "GET" and ".parquet" in path]


def test_an_audit_that_is_there_is_replaced_only_when_asked_and_what_others_put_there_stays(full):
    leaks = f"{full.url}/leaks"
    full.write("leaks/notes.txt", b"theirs")
    evalkit(*audit_words(full, leaks))
    full.write("leaks/figures/plot.parquet", b"theirs")
    before = results(full, "leaks")
    assert "already holds an audit" in evalkit(*audit_words(full, leaks), code=2)
    assert results(full, "leaks") == before
    full.write("corpus/0.jsonl", b"\n".join(full.read("corpus/0.jsonl").splitlines()[:-1]))  # without the bad row
    evalkit(*audit_words(full, leaks), "--overwrite")
    assert "bad_rows.jsonl" not in full.names("leaks")
    assert full.read("leaks/notes.txt") == full.read("leaks/figures/plot.parquet") == b"theirs"
    assert not [name for name in full.names("leaks") if name.startswith(".")]


def test_files_of_others_with_names_of_ours_are_not_replaced(full):
    full.write("leaks/items.parquet", b"theirs")
    assert "items.parquet" in evalkit(*audit_words(full, f"{full.url}/leaks"), "--overwrite", code=2)
    assert full.names("leaks") == ["items.parquet"]
    assert full.read("leaks/items.parquet") == b"theirs"


def test_a_command_that_fails_leaves_nothing(full):
    full.write("corpus/broken.parquet", b"no parquet")
    assert "broken.parquet" in evalkit(*audit_words(full, f"{full.url}/leaks"), code=2)
    assert [name for name in full.names("leaks") if ".unfinished/" not in name] == []


def test_uploads_that_break_now_and_then_change_nothing(full):
    full.proxy.faults += [503, None, "break", "lost", None, 500, None, "break"] * 2
    evalkit(*audit_words(full, f"{full.url}/leaks"))
    assert results(full, "leaks") == expected(full)


def test_runs_are_compared_and_reported_at_addresses(full, tmp_path):
    evalkit(*audit_words(full, f"{full.url}/leaks"))
    table = pq.read_table(pa.BufferReader(full.read("leaks/items.parquet")))
    items = {("items", name): float(n % 3 > 0) for n, name in enumerate(sorted(set(table["doc_hash"].to_pylist())))}
    for name, scores in (("a", items), ("b", {key: 1.0 for key in items})):
        write_run(tmp_path / name, scores, name=name)
        for path in (tmp_path / name).iterdir():
            full.write(f"runs/{name}/{path.name}", path.read_bytes())
    a, b = f"{full.url}/runs/a", f"{full.url}/runs/b"
    assert json.loads(evalkit("compare", a, b, "--json")) == json.loads(
        evalkit("compare", tmp_path / "a", tmp_path / "b", "--json")
    )
    gate = ["gate", a, b, "--rule", "better on items", "--junit", f"{full.url}/ci/gate.xml"]
    evalkit(*gate, "--summary", tmp_path / "s.md")
    assert full.read("ci/gate.xml").startswith(b"<?xml")
    evalkit("report", a, b, "-o", f"{full.url}/pages/report.html")
    page = full.read("pages/report.html").decode()
    assert "<html" in page and str(tmp_path / "cache") not in page
    evalkit("diff", a, b)
    # What is added to an audit is put there; the rest is left as it is.
    before = {name: full.fs.info(f"{full.url}/leaks/{name}")["LastModified"] for name in full.names("leaks")}
    evalkit("audit", "score", f"{full.url}/leaks", "--run", a)
    assert set(full.names("leaks")) == {*before, "score_split.json"}
    assert before == {name: full.fs.info(f"{full.url}/leaks/{name}")["LastModified"] for name in before}
    assert "contamination" in evalkit("compare", a, b, "--audit", f"{full.url}/leaks")


def test_a_run_is_worked_on_here_and_published_at_its_end(full, tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat sat", "source": "a"}\n')
    words = ["run", "--model", model, "--perplexity", tmp_path / "texts.jsonl", "--out", f"{full.url}/runs/p",
             "--device", "cpu"]  # fmt: skip
    evalkit(*words)
    assert {"run.json", "samples.parquet", "journal.sqlite"} <= set(full.names("runs/p"))
    stamps = {name: full.fs.info(f"{full.url}/runs/p/{name}")["ETag"] for name in ("samples.parquet", "run.json")}
    again = json.loads(evalkit(*words, "--json"))  # on any machine: what was published is fetched
    assert again["n_errors"] == 0
    assert stamps == {name: full.fs.info(f"{full.url}/runs/p/{name}")["ETag"] for name in stamps}


def test_other_file_systems_take_results_too(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    try:
        for name, data in written().items():
            memory.pipe(f"/data/{name}", data)
        words = ["audit", "--corpus", "memory://data/corpus", "--benchmark", "memory://data/items.jsonl",
                 "--allow-bad-rows", "1", "--workers", "1", "--out"]  # fmt: skip
        evalkit(*words, "memory://out/leaks")
        assert "/out/leaks/audit.json" in memory.store
        assert not [name for name in memory.store if "/." in name]
        assert "corpus" in evalkit("audit", "show", "memory://out/leaks", "--n", "1")
        evalkit(*words, f"file://{tmp_path}/local/leaks")
        assert (tmp_path / "local/leaks/audit.json").is_file()
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_duplicates_at_an_address_are_those_in_a_folder(full, tmp_path):
    full.write("corpus/again.jsonl", full.read("corpus/1.jsonl"))
    words = ["dedup", "--corpus", f"{full.url}/corpus", "--allow-bad-rows", "1", "--workers", "1", "--out"]
    evalkit(*words, tmp_path / "dups")
    printed = json.loads(evalkit(*words, f"{full.url}/dups", "--json"))
    files = [path.relative_to(tmp_path / "dups") for path in (tmp_path / "dups").rglob("*") if path.is_file()]
    assert full.names("dups") == sorted(str(path) for path in files if not str(path).startswith("."))
    assert full.read("dups/clusters.parquet") == (tmp_path / "dups/clusters.parquet").read_bytes()
    assert printed["n_documents"] == 300
    assert not [name for name in full.names("dups") if str(tmp_path).encode() in full.read(f"dups/{name}")]


def test_a_corpus_and_a_benchmark_on_the_hub_are_read(here, tmp_path):
    """From a server of the hub's kind; in a process of its own, as the hub's address is read at the start."""
    with hub("org/data", written()) as (url, asked):
        words = ["--corpus", "hf://datasets/org/data/corpus", "--benchmark", "hf://datasets/org/data/items.jsonl"]
        done = subprocess.run(
            [sys.executable, "-m", "evalkit.cli", "audit", *words, "--out", "leaks", "--allow-bad-rows", "1", "--json"],
            env={**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    record = json.loads((here / "leaks/audit.json").read_text())
    assert [one["file"].rpartition("/")[2] for one in record["corpus"]] == [f"{n}.jsonl" for n in range(4)]
    assert json.loads(done.stdout)["n_documents"] == 240
    assert any(path.endswith("/corpus/3.jsonl") and span for path, span in asked)


def test_a_saved_index_lies_at_an_address(full):
    items = tuple(Item(f"{n:064x}", {"question": " ".join(WORDS[n : n + 20])}) for n in range(9))
    index = build_index([Benchmark("b", "", items, 0)], 8)
    save_index(index, f"{full.url}/index")
    assert load_index(f"{full.url}/index").fingerprint == index.fingerprint
    full.fs.rm_file(f"{full.url}/index/index.json")
    with pytest.raises(InputError, match="index cannot be opened"):
        load_index(f"{full.url}/index")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["audit", "clean", "LEAKS", "--to", "s3://bucket/clean"], "a cleaned corpus is written to this machine"),
        (["audit", "show", "LEAKS", "--n", "1", "--document"], None),
        (["quickstart", "--out", "s3://bucket/q"], "takes a path of this machine's"),
        (["tasks", "--tasks-dir", "s3://bucket/tasks"], "takes a path of this machine's"),
        (["run", "--model", "m", "--tasks", "t", "--out", "o", "--journal", "s3://bucket/j.sqlite"], "this machine"),
        (["report", "a", "b", "-o", "https://host/report.html"], "takes no files"),
        (["audit", "--corpus", "c", "--benchmark", "b", "--out", "https://host/leaks"], "takes no files"),
        (["audit", "--corpus", "c", "--benchmark", "b", "--out", "s3://bucket/*"], "a pattern"),
        (["audit", "--corpus", "c", "--benchmark", "b", "--out", "nonsense://bucket/a"], "cannot be read"),
        (["rescore", "s3://bucket/run", "--task", "t.yaml"], "--out"),
    ],
)
def test_what_takes_no_address_says_so(words, what, store):
    if what is not None:
        assert what in evalkit(*words, code=2)


def test_a_spec_file_names_only_paths_of_this_machine(tmp_path):
    (tmp_path / "spec.yaml").write_text("model: m\ntasks: t\nout: s3://bucket/run\n")
    assert "this takes a path" in evalkit("run", tmp_path / "spec.yaml", code=2)


def test_every_option_that_takes_a_path_has_a_role_or_refuses():
    """The list of those that refuse: who adds an option decides."""
    refusing = set()
    for app, group in ((cli.app, ""), (cli.audit_commands, "audit"), (cli.judge_commands, "judge")):
        works = [(one.name or one.callback.__name__.replace("_", "-"), one.callback) for one in app.registered_commands]
        if group:
            works.append(("", app.registered_callback.callback))
        for name, work in works:
            hints = typing.get_type_hints(inspect.unwrap(work))
            command = f"{group} {name}".strip()
            session = places._Session(command, {"out": "given"})
            refusing |= {
                f"{command} {parameter}"
                for parameter, hint in hints.items()
                if Path in (hint, *typing.get_args(hint)) and session._role(parameter) == "refuse"
            }
    assert refusing == {
        *("run tasks_dir", "run data", "run vllm_python", "run journal", "tasks tasks_dir"),
        *("audit tasks_dir", "audit data", "audit clean", "audit clean to"),
        *("dedup tasks_dir", "dedup data", "dedup write"),
        *("judge vllm_python", "judge probe vllm_python", "quickstart out"),
    }


def test_copies_go_by_their_addresses():
    assert named("nothing here") == "nothing here"
