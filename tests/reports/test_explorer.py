"""What the explorer shows beside an item is what stands in the corpus, word by word; what is missing is said."""

from __future__ import annotations

import json

import pytest

from evalkit.reports.adaptors import from_frame
from evalkit.reports.comparison import compare
from evalkit.reports.explorer import evidence
from evalkit.reports.inputs import load_run
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
    assert of_kind(known.leaks[VERBATIM.doc_hash].text, "shared") == []
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
