"""What the explorer shows beside an item is what stands in the corpus, word by word; what is missing is said."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest

from evalkit.corpora.remote import Address
from evalkit.reports.adaptors import from_frame
from evalkit.reports.comparison import compare
from evalkit.reports.explorer import evidence, is_inside
from evalkit.reports.inputs import load_run
from evalkit.runs.journal import Journal
from tests.contamination.audits import audited, benchmark, documents, write_lines
from tests.reports.runs import write_run

ITEMS = benchmark()
EDITED = ITEMS.items[2]
VERBATIM = ITEMS.items[0]


@pytest.fixture
def corpus(tmp_path):
    # Row 12 alone holds item 2, with a word replaced and one inserted; row 0, which has no id, holds item 0 as it is.
    rows = [{"text": "no item"} for _ in range(20)]
    planted = documents(ITEMS)
    rows[0], rows[12] = {"text": planted[0]["text"]}, planted[12]
    return write_lines(tmp_path / "corpus.jsonl", rows)


@pytest.fixture
def comparison(tmp_path, corpus):
    audited(corpus, tmp_path / "leaks", ITEMS)
    runs = [
        write_run(tmp_path / side, {("b", item.doc_hash): float((n + k) % 3 > 0) for n, item in enumerate(ITEMS.items)})
        for k, side in enumerate("ab")
    ]
    return compare(*runs, audit=tmp_path / "leaks", rule="fuzzy")


def known_of(comparison, tmp_path):
    return evidence(comparison, load_run(tmp_path / "a"), tmp_path / "leaks")


def of_kind(pieces, kind):
    return [" ".join(text.split()) for one, text in pieces if one == kind]


def test_an_edited_copy_is_aligned_with_the_item_word_by_word(comparison, tmp_path):
    leak = known_of(comparison, tmp_path).leaks[EDITED.doc_hash]
    words = EDITED.fields["question"].split()
    same = [" ".join(words[:6]), " ".join(words[7:13]), " ".join(words[13:]).rstrip(".")]
    assert of_kind(leak.text, "shared")[:3] == same
    assert {"REPLACED", "INSERTED"} <= set(" ".join(of_kind(leak.text, "edited")).split())
    question = dict(leak.item)["question"]
    assert of_kind(question, "shared")[:2] == [same[0], f"{same[1]} {same[2]}"]
    assert of_kind(question, "edited")[0] == words[6]
    assert leak.place.endswith("corpus.jsonl, row 12")


def test_a_verbatim_item_is_marked_whole_and_no_text_is_lost_but_what_is_counted(comparison, tmp_path):
    leak = known_of(comparison, tmp_path).leaks[VERBATIM.doc_hash]
    assert dict(leak.item)["question"][0] == ("shared", VERBATIM.fields["question"].rstrip("."))
    text = json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])["text"]
    assert all(piece in text for kind, piece in leak.text if kind != "gap")
    n_left_out = sum(int(piece.split()[1]) for kind, piece in leak.text if kind == "gap")
    assert sum(len(piece) for kind, piece in leak.text if kind != "gap") + n_left_out == len(text)


def test_a_corpus_that_has_changed_or_is_gone_is_said(comparison, tmp_path, corpus):
    rows = corpus.read_text().splitlines()
    row = json.loads(rows[0])
    rows[0] = json.dumps({**row, "text": row["text"][::-1]}, ensure_ascii=False)
    corpus.write_text("".join(one + "\n" for one in rows))
    known = known_of(comparison, tmp_path)
    gone = known.leaks[VERBATIM.doc_hash]
    assert gone.text == (("gap", "(not shown, because it is not as it was audited)"),)
    assert {kind for kind, _ in dict(gone.item)["question"]} == {"plain"}
    assert any("of 1 items is not as it was audited" in note for note in known.notes)
    corpus.unlink()
    known = known_of(comparison, tmp_path)
    assert known.leaks[EDITED.doc_hash].text == (("gap", "(the document could not be read again)"),)
    assert any("of 2 items is not as it was audited" in note for note in known.notes)


def test_fields_of_the_documents_stand_in_for_prompts_that_are_not_with_the_results():
    import pandas as pd

    frame = pd.DataFrame(
        {"item": range(30), "score": [1.0, 0.0, 1.0] * 10, "question": [f"why {n}?" for n in range(30)]}
    )
    run = from_frame(frame)
    known = evidence(compare(run, from_frame(frame.assign(score=1.0))), run)
    assert known.asked == "Item"
    assert known.prompts["table", "7"] == "question: why 7?"
    assert any("prompts are not with the run" in note for note in known.notes)


def with_journal(folder, journal):
    """A run whose record names a journal, which holds the prompts of its items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = {("t", f"doc{n}"): float(n % 2) for n in range(10)}
    run = write_run(folder, values, record={"journal": str(journal)})
    asked = [
        {"task": "t", "doc_id": n, "seed": 0, "repeat": 0, "place": 0, "key": f"key{n}", "request": ""}
        for n in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(asked), run / "requests.parquet")
    return run


def test_a_journal_is_read_and_neither_it_nor_its_folder_changes(tmp_path):
    (tmp_path / "kept").mkdir()
    path = tmp_path / "kept" / "j.sqlite"
    with Journal(path) as journal:
        journal.add("key1", "m", {"context": "What is 1?"}, {})
        journal.add("key2", "m", {"messages": json.dumps([{"role": "user", "content": "2?"}])}, {})
        journal.add("key3", "m", ["no", "request"], {})
    run = load_run(with_journal(tmp_path / "a", path))
    before = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    known = evidence(compare(run, run), run)
    assert known.prompts == {
        ("t", "doc1"): "What is 1?", ("t", "doc2"): "[user]\n2?", ("t", "doc3"): '["no", "request"]',
    }  # fmt: skip
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == before
    known = evidence(compare(run, run), run, inside=tmp_path / "a")
    assert known.prompts == {}
    assert "the run's journal is not in this folder, so the prompts are not shown" in known.notes


def test_a_journal_that_is_none_is_left_as_it_is_and_said(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "other.sqlite")) as other:
        other.execute("CREATE TABLE mine (x)")
    (tmp_path / "text.txt").write_text("no database " * 100)
    for name in ("other.sqlite", "text.txt"):
        before = (tmp_path / name).read_bytes()
        run = load_run(with_journal(tmp_path / "a", tmp_path / name))
        known = evidence(compare(run, run), run)
        assert any(note.startswith("the prompts cannot be shown: the journal cannot be read") for note in known.notes)
        assert (tmp_path / name).read_bytes() == before
    for name in ("x" * 5000, "nul\0", "none", 7):
        run = load_run(with_journal(tmp_path / "a", name))
        assert any("prompts" in note for note in evidence(compare(run, run), run).notes)


def test_with_a_folder_given_no_corpus_outside_and_no_address_is_read(comparison, tmp_path, corpus):
    run = load_run(tmp_path / "a")
    assert evidence(comparison, run, tmp_path / "leaks", inside=tmp_path).leaks == known_of(comparison, tmp_path).leaks
    known = evidence(comparison, run, tmp_path / "leaks", inside=tmp_path / "leaks")
    assert {leak.text for leak in known.leaks.values()} == {(("gap", "(the document could not be read again)"),)}
    assert any("1 files of the corpus are not in this folder" in note for note in known.notes)
    assert not is_inside(Address("https://example.org/part.jsonl"), tmp_path)
    (tmp_path / "leaks" / "link.jsonl").symlink_to(corpus)
    assert not is_inside(tmp_path / "leaks" / "link.jsonl", tmp_path / "leaks")
