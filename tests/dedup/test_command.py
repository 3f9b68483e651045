"""`evalkit dedup` as a user types it, and its findings as one more rule of `evalkit compare`."""

from __future__ import annotations

import json
import random
import re

import pytest
from datasketch import MinHashLSH
from typer.testing import CliRunner

from evalkit import tables
from evalkit.cli import app
from evalkit.contamination.benchmarks import from_file
from evalkit.corpora.shards import find_shards
from evalkit.dedup.dedup import CLUSTERS, RECORD
from evalkit.errors import EvalkitError
from tests.dedup import corpora
from tests.reports.runs import write_run

RNG = random.Random(3)
QUESTIONS = [" ".join(RNG.choices(corpora.WORDS, k=30)) for _ in range(40)]
LEAKED = range(0, 40, 4)


def dedup(*words):
    done = CliRunner().invoke(app, ["dedup", *map(str, words), "--workers", "1"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with two corpora."""
    monkeypatch.chdir(tmp_path)
    corpora.write(tmp_path / "web", corpora.documents(80), 2)
    corpora.write(tmp_path / "books", [*corpora.documents(80)[:20], "one word, and others"], 1)
    return tmp_path


def test_the_summary_says_what_was_found_and_how(folder):
    done = dedup("--corpus", "web", "--corpus", "books", "--out", "dups", "--write", "kept", "--figure", "dups.svg")
    assert done.exit_code == 1  # rows that cannot be read
    printed = " ".join(done.stdout.split())
    record = json.loads((folder / "dups" / RECORD).read_bytes())
    for said in (
        f"web 80 {record['removed_by_corpus']['web']}",
        f"books 21 {record['removed_by_corpus']['books']}",
        f"exact: {record['n_same_normalised']} documents repeat an earlier one",
        f"near: {record['n_pairs']} pairs",
        "bands: 18 of 7 values",
        "0.90 99.9992%",
        "0.80 < threshold 98.6%",
        "largest clusters",
        "chains:",
        "3 rows could not be read",
        f"written: {101 - record['n_removed']} documents in 3 files to kept",
    ):
        assert said in printed, said
    assert (folder / "dups.svg").read_text().startswith("<svg")
    lines = [line for path in (folder / "kept").rglob("*.jsonl") for line in path.read_text().split("\n") if line]
    assert len(lines) == 101 - record["n_removed"] + 3
    # A result below the corpus is no part of it.
    assert len(find_shards(["."])) == 6


def test_json_has_it_all_and_a_second_call_with_passages_goes_on_from_the_first(folder):
    first = dedup("--corpus", "web", "--out", "dups", "--json", "--allow-bad-rows", 2)
    assert first.exit_code == 0
    options = ("--substrings", "20", "--allow-bad-rows", 2)
    second = dedup("--corpus", "web", "--out", "dups", "--json", *options)
    plain = json.loads(second.stdout[second.stdout.index("{") :])
    passages = plain.pop("substrings")
    assert plain == json.loads(first.stdout[first.stdout.index("{") :])
    assert plain["bands"] == {"n_bands": 18, "n_rows": 7}
    assert dict(plain["curve"])[0.8] == pytest.approx(1 - (1 - 0.8**7) ** 18)
    assert passages["n_passages"] > 0
    assert "passages of 20 words or more" in dedup("--corpus", "web", "--out", "dups", *options).stdout


def test_options_reach_the_work(folder):
    how = ["--bands", "datasketch", "--shingle", "characters:7", "--hash", "xxh32", "--num-perm", 64]
    what = ["--threshold", 0.7, "--keep", "longest", "--no-verify", "--no-split", "--json"]
    done = dedup("--corpus", "web", "--out", "dups", *how, *what)
    spec = json.loads(done.stdout)["spec"]
    theirs = MinHashLSH(threshold=0.7, num_perm=64)
    assert spec["how"] == {
        "shingling": {"unit": "characters", "size": 7},
        "num_perm": 64,
        "seed": 1,
        "hash_name": "xxh32",
    }
    assert (spec["verify"], spec["split"], spec["keep"], spec["threshold"]) == (False, False, "longest", 0.7)
    assert spec["bands"] == dict(zip(("n_bands", "n_rows"), (theirs.b, theirs.r), strict=True))


def test_more_files_are_compared_with_all_when_the_result_is_overwritten(folder):
    dedup("--corpus", "web/00.jsonl", "--out", "dups")
    dedup("--corpus", "web", "--out", "dups", "--overwrite")
    dedup("--corpus", "web", "--out", "whole")
    two = (tables.read(folder / name / CLUSTERS, tables.CLUSTERS).drop(["corpus"]) for name in ("dups", "whole"))
    assert next(two).equals(next(two))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shingle", "lines:3"), "--shingle"),
        (("--shingle", "5"), "words:N or characters:N"),
        (("--bands", "16"), "--bands"),
        (("--bands", "100x2"), "--bands"),
        (("--hash", "md5"), "--hash"),
        (("--keep", "best"), "--keep"),
        (("--threshold", "2"), "--threshold"),
        (("--substrings", "1"), "--substrings"),
        (("--figure", "a.pdf"), "--figure"),
        (("--write", "web/kept"), "web"),
        (("--against", "items.jsonl", "--substrings", "50"), "--against"),
    ],
)
def test_a_mistake_is_told_in_a_line(folder, words, said):
    with pytest.raises(EvalkitError, match=re.escape(said)):
        dedup("--corpus", "web", "--out", "dups", *words)


def test_near_duplicates_of_items_are_one_more_rule_of_compare(folder):
    items = [{"question": text, "answer": f"answer {k}"} for k, text in enumerate(QUESTIONS)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    texts = [f"{QUESTIONS[k]} answer {k}".upper() if k % 8 else QUESTIONS[k] for k in LEAKED]
    corpora.write(folder / "leaky", [*corpora.documents(30, seed=4), *texts], 2)
    done = dedup("--corpus", "leaky", "--against", "items.jsonl", "--out", "leaks", "--allow-bad-rows", 2)
    assert done.exit_code == 0
    assert "items 40 10 25.0%" in " ".join(done.stdout.split())
    found = tables.read(folder / "leaks" / "items.parquet", tables.ITEMS).to_pylist()
    hashes = [item.doc_hash for item in from_file(folder / "items.jsonl").items]
    assert {row["doc_hash"] for row in found if row["label"] == "dirty"} == {hashes[k] for k in LEAKED}
    assert {row["field"] for row in found} == {"question", "whole"}
    # Of the leaked items, and of them alone, B knows all answers.
    for name, right in (("a", lambda k: k % 3 == 0), ("b", lambda k: k % 3 == 0 or k in LEAKED)):
        scores = {("items", doc_hash): float(right(k)) for k, doc_hash in enumerate(hashes)}
        write_run(folder / name, scores, name=name)
    done = CliRunner().invoke(app, ["compare", "a", "b", "--audit", "leaks", "--rule", "minhash", "--json"])
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)
    assert compared["rule"] == "minhash"
    subsets = compared["overall"]
    assert (subsets["all"]["n_items"], subsets["clean"]["n_items"], subsets["flagged"]["n_items"]) == (40, 30, 10)
    assert subsets["clean"]["difference"]["estimate"] == 0 < subsets["all"]["difference"]["estimate"]
    assert "minhash" in json.dumps(compared["score_split"])
    printed = CliRunner().invoke(app, ["compare", "a", "b", "--audit", "leaks"]).stdout
    assert "rule minhash" in " ".join(printed.split())
