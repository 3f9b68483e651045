"""An audit in parts: any number of workers and any cutting give the same tables, and a killed audit goes on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from evalkit import tables
from evalkit.contamination import audit as audits
from evalkit.contamination import part_files, parts
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.index import SavedIndex, build_index, keep_index, load_index, save_index
from evalkit.contamination.outputs import BAD_ROWS
from evalkit.contamination.recorded import NEAR_SUFFIX
from evalkit.contamination.rules import load_rules
from evalkit.corpora.objects import Stored
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine
from evalkit.errors import InputError

N_KILLS = 3
WORDS = [f"word{number}" for number in range(300)]


@pytest.fixture
def corpus(tmp_path):
    """Twelve files with bad and empty rows, and the items of a benchmark in some documents."""
    rng = random.Random(4)
    items = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(30)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    (tmp_path / "corpus").mkdir()
    for number in range(12):
        lines = []
        for row in range(400):
            text = " ".join(rng.choices(WORDS, k=rng.randint(0, 60)))
            if rng.random() < 0.05:
                text += " " + rng.choice(items)
            lines.append(rng.choice(["{", "", json.dumps({"text": ""})]) if rng.random() < 0.02 else None)
            lines[-1] = json.dumps({"id": f"{number}-{row}", "text": text}) if lines[-1] is None else lines[-1]
        (tmp_path / "corpus" / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(corpus, name, n_workers=1):
    return audits.audit(
        find_shards([str(corpus / "corpus")]),
        [from_file(corpus / "items.jsonl")],
        load_rules(["gpt3-clean", "llama3"]),
        corpus / name,
        engine=LocalEngine(n_workers),
    )


def contents(folder):
    """The tables and the bad rows."""
    found = {
        table.name: tables.read(folder / f"{table.name}.parquet", table).to_pylist()
        for table in (tables.ITEMS, tables.MATCHES, tables.DOCUMENTS)
    }
    return {**found, "bad rows": (folder / BAD_ROWS).read_text()}


def test_the_result_depends_neither_on_workers_nor_on_parts(corpus, monkeypatch):
    whole = contents(run(corpus, "whole").directory)
    assert len(whole["matches"]) > 100
    for number, (n_bytes, n_workers) in enumerate([(1000, 1), (7777, 2), (50_000, 3)]):
        monkeypatch.setattr(audits, "PART_BYTES", n_bytes)
        result = run(corpus, f"cut{number}", n_workers)
        assert contents(result.directory) == whole
        assert not (result.directory / audits.WORK).exists()


def scanned(out):
    """The parts that are complete, with the time at which each was written."""
    files = (out / audits.WORK).glob("*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in files if not path.name.endswith(NEAR_SUFFIX)}


def test_a_killed_audit_goes_on_where_it_was(corpus):
    whole = contents(run(corpus, "whole").directory)
    out = corpus / "killed"
    slow = f"""
import time
from evalkit.contamination import audit, parts
original = parts.scan_part
def scan_part(task):
    time.sleep(0.15)
    original(task)
audit.scan_part = scan_part
audit.PART_BYTES = 5000
from evalkit.cli import main
import sys
sys.argv = ["evalkit", "audit", "--corpus", {str(corpus / "corpus")!r}, "--out", {str(out)!r}, "--workers", "1"]
sys.argv += ["--benchmark", {str(corpus / "items.jsonl")!r}, "--rule", "gpt3-clean", "--rule", "llama3"]
sys.argv += ["--allow-bad-rows", "999"]
main()
"""
    kept: dict[str, int] = {}
    for kill in range(N_KILLS):
        with subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE) as process:
            while process.poll() is None and len(scanned(out)) < 8 * (kill + 1):
                time.sleep(0.01)
            assert process.poll() is None, process.stderr.read()
            os.kill(process.pid, signal.SIGKILL)
        assert not (out / "audit.json").exists()
        now = scanned(out)
        assert kept.items() <= now.items()
        kept = now
    done = subprocess.run([sys.executable, "-c", slow], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} of " in done.stderr
    assert contents(out) == whole


def test_what_changed_is_scanned_again(corpus, tmp_path):
    shards = find_shards([str(corpus / "corpus")])
    index = build_index([from_file(corpus / "items.jsonl")], 8)

    def key(shard, fingerprint=index.fingerprint, column="text"):
        return parts.Parts([shard], SavedIndex(tmp_path, fingerprint), fingerprint, tmp_path, column, "id").of(0)[0].key

    before = key(shards[0])
    assert before == key(shards[0]) != key(shards[1])
    assert before != key(shards[0], fingerprint="other")
    assert before != key(shards[0], column="body")
    os.utime(shards[0].path, ns=(1, 1))
    assert before != key(shards[0])


def test_a_saved_index_is_the_same_index(corpus):
    index = build_index([from_file(corpus / "items.jsonl")], 8)
    save_index(index, corpus / "index")
    loaded = load_index(corpus / "index")
    for name, value in vars(index).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(loaded, name))
            assert value.dtype == getattr(loaded, name).dtype
        elif "fold" not in name:
            assert value == getattr(loaded, name)
    for fold in ("fold", "code_fold"):
        assert np.array_equal(getattr(index, fold).codes, getattr(loaded, fold).codes)


def test_a_part_is_not_scanned_with_the_index_of_another_audit(corpus):
    lines = (corpus / "items.jsonl").read_text().splitlines(keepends=True)
    (corpus / "others.jsonl").write_text("".join(lines[:5]))
    mine, other = (build_index([from_file(corpus / name)], 8) for name in ("items.jsonl", "others.jsonl"))
    save_index(mine, corpus / "index")
    [shard, *_] = find_shards([str(corpus / "corpus")])
    saved = SavedIndex(corpus / "index", mine.fingerprint)
    [task] = parts.Parts([shard], saved, mine.fingerprint, corpus, "text", "id").of(0)
    save_index(other, corpus / "index")
    with pytest.raises(InputError, match="another audit"):
        parts.scan_part(task)


def test_files_are_cut_in_any_order_and_once(corpus, monkeypatch):
    """A few ahead by threads: the tasks come in the order of the files all the same."""
    shards = find_shards([str(corpus / "corpus")])
    made = parts.Parts(shards, SavedIndex(corpus, "f"), "f", corpus, "text", "id", 5000)
    plain = [task for number in range(len(shards)) for task in made.of(number)]
    cut, real = [], parts.split_shard

    def split(shard, n_bytes):
        time.sleep(0.02 * (shard == shards[0]))
        cut.append(shard.path.name)
        return real(shard, n_bytes)

    monkeypatch.setattr(parts, "split_shard", split)
    again = parts.Parts(shards, SavedIndex(corpus, "f"), "f", corpus, "text", "id", 5000)
    assert list(again.of_files([7, 2])) == [task for number in (7, 2) for task in made.of(number)]
    assert sorted(cut) == ["02.jsonl", "07.jsonl"]
    assert list(again) == plain == list(again)
    assert len(cut) == len(set(cut)) == len(shards)


def test_no_more_files_are_cut_ahead_than_a_few(corpus, monkeypatch):
    [shard, *_] = find_shards([str(corpus / "corpus")])
    made = parts.Parts([shard] * 500, SavedIndex(corpus, "f"), "f", corpus, "text", "id", 5000)
    cut, real = [], parts.split_shard
    monkeypatch.setattr(parts, "split_shard", lambda *given: (cut.append(0), real(*given))[1])
    tasks = iter(made)
    next(tasks)
    time.sleep(0.2)
    tasks.close()
    assert len(cut) <= 2 * parts._N_CUT


def test_a_file_that_cannot_be_cut_is_told_when_its_turn_comes(corpus):
    shards = find_shards([str(corpus / "corpus")])
    shards[3].path.unlink()
    tasks = iter(parts.Parts(shards, SavedIndex(corpus, "f"), "f", corpus, "text", "id"))
    assert [next(tasks).shard.path for _ in range(3)] == [shard.path for shard in shards[:3]]
    with pytest.raises(InputError, match=r"03\.jsonl"):
        next(tasks)


def test_part_files_at_an_address_take_32_bytes_a_part(monkeypatch):
    """The same is found as in a dictionary of the names."""
    n = 50_000
    names = {hashlib.sha256(str(number).encode()).hexdigest(): number for number in range(n)}

    def listing(_):
        for name, number in names.items():
            yield f"{name}.near.parquet", Stored(number, "")
            if number % 3:
                yield f"{name}.parquet", Stored(2 * number, "")
        yield "index.json", Stored(1, "")
        yield ".hidden.parquet.12345678.tmp", Stored(1, "")

    monkeypatch.setattr(part_files, "listing", listing)
    tracemalloc.start()
    files = part_files.PartFiles("memory://somewhere")
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 40 * n
    assert most < 100 * n
    for name, number in names.items():
        assert files._sizes[NEAR_SUFFIX].of(name) == number
        assert files._sizes[".parquet"].of(name) == (2 * number if number % 3 else None)
    assert files._sizes[".parquet"].of("f" * 64) is None


def test_an_empty_place_has_no_parts():
    assert part_files.PartFiles("memory://nothing-here")._sizes[".parquet"].of("0" * 64) is None


KEEP = """
import sys
from pathlib import Path
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.index import build_index, keep_index
index = build_index([from_file(Path(sys.argv[1]))], 8)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    kept = keep_index(index, Path(sys.argv[2]) / str(number))
    assert kept.fingerprint == index.fingerprint
"""


def test_processes_that_keep_the_same_index_do_not_break_each_others(corpus):
    """Whoever comes first writes it; nobody ever finds half of it, or writes it again."""
    n = 25
    arguments = [sys.executable, "-c", KEEP, str(corpus / "items.jsonl"), str(corpus / "kept"), str(n)]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("begin\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert sorted(path.name for path in (corpus / "kept").iterdir()) == sorted(map(str, range(n)))


def test_an_index_that_is_there_is_opened_while_others_keep_it(corpus):
    index, folder = build_index([from_file(corpus / "items.jsonl")], 8), corpus / "kept"
    keep_index(index, folder)
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    keep_index(index, folder)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["killed", "cut", "another"])
def test_a_kept_index_that_is_damaged_is_made_again(corpus, damage):
    index, folder = build_index([from_file(corpus / "items.jsonl")], 8), corpus / "kept"
    keep_index(index if damage != "another" else build_index([from_file(corpus / "items.jsonl")], 9), folder)
    if damage == "killed":
        (folder / "index.json").unlink()
    elif damage == "cut":
        (folder / "bitmap.npy").write_bytes((folder / "bitmap.npy").read_bytes()[:100])
    assert keep_index(index, folder).fingerprint == index.fingerprint
    assert load_index(folder).fingerprint == index.fingerprint


def test_a_worker_that_outlives_its_audit_does_not_bring_the_folder_back(corpus):
    index, work = build_index([from_file(corpus / "items.jsonl")], 8), corpus / "work"
    saved = SavedIndex(corpus / "index", index.fingerprint)
    keep_index(index, corpus / "index")
    [shard, *_] = find_shards([str(corpus / "corpus")])
    [task] = parts.Parts([shard], saved, index.fingerprint, work, "text", "id").of(0)
    with pytest.raises(InputError, match="folder of the parts is gone"):
        parts.scan_part(task)
    assert not work.exists()
    work.mkdir()
    parts.scan_part(task)
    assert task.path.exists()


@pytest.mark.parametrize("damage", ["version", "cut", "gone"])
def test_a_damaged_index_is_refused(corpus, damage):
    folder = corpus / "index"
    save_index(build_index([from_file(corpus / "items.jsonl")], 8), folder)
    if damage == "version":
        text = (folder / "index.json").read_text()
        (folder / "index.json").write_text(re.sub(r'"version": \d+', '"version": 99', text, count=1))
    elif damage == "cut":
        (folder / "bitmap.npy").write_bytes((folder / "bitmap.npy").read_bytes()[:100])
    else:
        (folder / "powers.npy").unlink()
    with pytest.raises(InputError, match="Delete"):
        load_index(folder)
