"""An audit verifies against its own corpus, and what was changed since is named, with where."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from evalkit import tables
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.verify import verify
from evalkit.corpora import fingerprints, remote
from evalkit.errors import InputError, SpecError
from tests.contamination.audits import audited, benchmark, documents, write_lines
from tests.corpora.web import Site, serve
from tests.test_cli import evalkit

ITEMS = benchmark()
ROWS = documents(ITEMS)
EVERYTHING = 10**6


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "corpus.jsonl", ROWS)


@pytest.fixture
def leaks(corpus: Path) -> Path:
    return audited(corpus, corpus.parent / "leaks", ITEMS)


def what_is_wrong(leaks: Path, **options):
    result = verify(leaks, n=EVERYTHING, **options)
    assert not result.ok
    return [(problem.row, problem.what) for problem in result.problems]


def test_an_audit_verifies_against_its_corpus_edited_copies_too(leaks):
    result = verify(leaks, n=EVERYTHING)
    assert result.problems == ()
    assert result.n_right == result.n_sampled == result.n_matches > 15
    assert (result.n_files, result.n_hashed, result.n_without_hash) == (1, 1, 0)
    edited = tables.read(leaks / "matches.parquet", tables.MATCHES)["n_edits"].to_pylist()
    assert 2 in edited


def test_every_match_of_real_items_in_a_real_corpus_verifies(data_dir, tmp_path):
    items = from_file(data_dir / "benchmarks" / "mmlu_test.jsonl.gz")
    with (data_dir / "corpora" / "assistant_answers.jsonl.zst").open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(lines[::8]))
    result = verify(audited(tmp_path / "corpus.jsonl", tmp_path / "leaks", items), n=EVERYTHING)
    assert result.problems == ()
    assert result.n_right == result.n_matches > 200


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.parquet", "c.arrow"])
def test_other_formats_and_columns_verify_too(name, tmp_path):
    rows = [{"key": row["id"], "turns": [{"content": row["text"][:40]}, {"content": row["text"]}]} for row in ROWS]
    table = pa.Table.from_pylist(rows)
    if name == "c.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=7)
    elif name == "c.arrow":
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    else:
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    columns = {"text_column": ["turns[].content"], "id_column": "key"}
    result = verify(audited(tmp_path / name, tmp_path / "leaks", ITEMS, **columns), n=EVERYTHING)
    assert result.ok and result.n_right == result.n_matches > 15


def test_code_verifies_by_its_own_rule(tmp_path):
    corpus = write_lines(tmp_path / "corpus.jsonl", ROWS)
    result = verify(audited(corpus, tmp_path / "leaks", benchmark(code=True)), n=EVERYTHING)
    assert result.ok and result.n_matches > 15


def test_a_corpus_at_an_address_verifies_and_a_file_that_is_gone_from_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    data = {f"c/{name}.jsonl": write_lines(tmp_path / name, ROWS).read_bytes() for name in "ab"}
    with serve(Site(data)) as site:
        leaks = audited(f"{site.url}/c/", tmp_path / "leaks", ITEMS)
        result = verify(leaks, n=EVERYTHING)
        assert result.problems == () and result.n_right == result.n_matches > 30
        del site.files["c/a.jsonl"]
        result = verify(leaks, n=EVERYTHING)
    [problem] = result.problems
    assert problem.file == f"{site.url}/c/a.jsonl" and "missing or cannot be read" in problem.what
    assert result.n_right == result.n_matches / 2


def test_characters_that_are_several_tokens_verify_at_the_ends_of_a_match(tmp_path):
    text = "4 cups of sugar and 3 spoons of butter make 1"
    items = benchmark(1)
    items = type(items)("b", "test", (type(items.items[0])("aa" * 32, {"question": text}),), 0)
    corpus = write_lines(tmp_path / "c.jsonl", [{"text": f"Take ¼ {text[2:-1]}½"}, {"text": f"x {text} y"}])
    result = verify(audited(corpus, tmp_path / "leaks", items, rules=("llama3",)))
    assert result.problems == () and result.n_right == 2


def test_a_file_with_the_same_size_and_other_contents_is_named_with_the_match_that_is_gone(corpus, leaks):
    data = corpus.read_text(encoding="utf-8")
    word = ITEMS.items[0].fields["question"].split()[3]
    corpus.write_text(data.replace(word, "z" * len(word.encode()), 1), encoding="utf-8")
    found = what_is_wrong(leaks)
    assert (None, "the file has changed: its size is the same, its contents are not") in found
    assert any(row == 0 and "b 000000000000 question" in what and "not in the item" in what for row, what in found)
    assert all(row in (None, 0) for row, _ in found)
    assert not any("contents" in what for _, what in what_is_wrong(leaks, hashed="none"))


def test_rows_that_moved_are_found_where_they_are_now(corpus, leaks):
    write_lines(corpus, [{"id": "new", "text": "before all"}, {"id": "new2", "text": "and this"}, *ROWS])
    found = what_is_wrong(leaks)
    assert found[0][0] is None and "bytes, and had" in found[0][1]
    moved = [(row, what) for row, what in found[1:] if "stands in row" in what]
    assert len(moved) == 5  # no more are looked for
    assert all(f"it stands in row {row + 2} now" in what for row, what in moved)
    assert f"the row holds the document 'd{moved[0][0] - 2}', not 'd{moved[0][0]}'" in moved[0][1] or not moved[0][0]


def test_rows_that_were_lost_say_what_stands_there_now(corpus, leaks):
    write_lines(corpus, ROWS[:30])
    with corpus.open("a") as file:
        file.write("\n" * 3 + "broken\n" * 10)
    reasons = " ".join(what for _, what in what_is_wrong(leaks, hashed="all"))
    assert "not valid JSON" in reasons and "the file has only 43 rows" in reasons


def test_a_missing_file_is_named_and_the_others_are_checked(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", ROWS)
    leaks = audited(tmp_path / "*.jsonl", tmp_path / "leaks", ITEMS)
    (tmp_path / "a.jsonl").unlink()
    result = verify(leaks, n=EVERYTHING)
    [problem] = result.problems
    assert problem.file == str(tmp_path / "a.jsonl") and "missing" in problem.what
    assert result.n_right == result.n_sampled / 2 and result.n_wrong == 0


def test_a_file_that_broke_off_is_checked_as_far_as_it_goes(tmp_path):
    corpus = tmp_path / "c.jsonl.gz"
    lines = [json.dumps({**row, "more": os.urandom(2000).hex()}) + "\n" for row in ROWS]
    corpus.write_bytes(gzip.compress("".join(lines).encode()))
    leaks = audited(corpus, tmp_path / "leaks", ITEMS)
    corpus.write_bytes(corpus.read_bytes()[:-20_000])
    result = verify(leaks, n=EVERYTHING)
    assert 0 < result.n_right < result.n_sampled and result.n_wrong == 0
    assert "could not be checked: the file is cut short or corrupt" in result.problems[-1].what


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("start", 3, "tokens, not"),
        ("n_tokens", 19, "tokens, not 19"),
        ("end", 10**6, "the document has only"),
        ("doc_id", "d1", "not 'd1'"),
        ("doc_hash", "ff" * 32, "does not hold this item's text"),
        ("row", 10**6, "the file has only 60 rows"),
        ("file", "/elsewhere", "the record lists no such file"),
    ],
)
def test_a_table_that_says_something_else_is_noticed(leaks, column, value, message):
    matches = tables.read(leaks / "matches.parquet", tables.MATCHES).to_pylist()
    first = next(match for match in matches if match["n_tokens"] == 20 and not match["n_edits"])
    first[column] = value
    tables.write(leaks / "matches.parquet", tables.from_rows(tables.MATCHES, matches), tables.MATCHES)
    assert any(message in what for _, what in what_is_wrong(leaks))


def test_an_edited_copy_with_another_number_of_edits_is_noticed(leaks):
    matches = tables.read(leaks / "matches.parquet", tables.MATCHES).to_pylist()
    edited = next(match for match in matches if match["n_edits"] == 2)
    edited["n_edits"] = 3
    tables.write(leaks / "matches.parquet", tables.from_rows(tables.MATCHES, matches), tables.MATCHES)
    [(row, what)] = what_is_wrong(leaks)
    assert row == edited["row"] and "2 edits from the item's, not 3" in what


def test_the_seed_draws_the_sample(leaks):
    result = verify(leaks, n=3, seed=5)
    assert (result.n_sampled, result.n_right, result.seed) == (3, 3, 5)
    assert verify(leaks, n=0).n_sampled == 0


def test_only_files_with_a_match_are_hashed_unless_all_are_asked_for(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / "b.jsonl", [{"text": "nothing of interest"}])
    leaks = audited(tmp_path / "*.jsonl", tmp_path / "leaks", ITEMS)
    assert [verify(leaks, hashed=which).n_hashed for which in ("none", "sampled", "all")] == [0, 1, 2]
    with pytest.raises(SpecError, match="--hash: 'some' is no choice"):
        verify(leaks, hashed="some")


def test_a_fingerprint_that_was_not_recorded_is_counted(leaks):
    record = json.loads((leaks / "audit.json").read_text())
    record["corpus"][0]["fingerprint"] = None
    (leaks / "audit.json").write_text(json.dumps(record))
    result = verify(leaks)
    assert result.ok and (result.n_hashed, result.n_without_hash) == (0, 1)


def test_a_dataset_without_files_of_ours_verifies_until_it_changes(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_csv(folder / "train.csv")
    leaks = audited(f"hf:{folder}", tmp_path / "leaks", ITEMS)
    result = verify(leaks, n=EVERYTHING)
    assert result.problems == () and result.n_hashed == 1 and result.n_right == result.n_matches > 15
    datasets.Dataset.from_list(ROWS[1:]).to_csv(folder / "train.csv")
    fingerprints._identity.cache_clear()
    assert "the dataset has changed" in what_is_wrong(leaks)[0][1]


@pytest.mark.parametrize("what", ["no folder", "no audit", "no record", "another version"])
def test_what_is_no_complete_audit_is_refused(leaks, what):
    record = leaks / "audit.json"
    if what == "no audit":
        record.unlink()
    elif what == "no record":
        record.write_text("[1]")
    elif what == "another version":
        record.write_text(record.read_text().replace('"normalisation_version": ', '"normalisation_version": 99'))
    with pytest.raises(InputError, match=r"[Aa]udit again"):
        verify(leaks / "nowhere" if what == "no folder" else leaks)


def test_the_command_says_what_was_checked_and_ends_with_0_or_1(corpus, leaks):
    done = evalkit("audit", "verify", leaks, "--sample", 7)
    assert done.returncode == 0, done.stderr
    assert "7 of " in done.stdout and "7 right, 0 wrong" in done.stdout and "as it was audited" in done.stdout
    corpus.unlink()
    done = evalkit("audit", "verify", leaks)
    assert done.returncode == 1
    assert f"{corpus}: the file is missing" in done.stdout and "not as it was audited" in done.stdout
    done = evalkit("audit", "verify", leaks, "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 1 and not result["ok"] and result["problems"][0]["file"] == str(corpus)
