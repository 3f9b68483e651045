"""What `evalkit audit` prints: nothing drops out unseen, and names are shown as they are."""

from __future__ import annotations

import json

import pytest

from tests.test_cli import evalkit, mistake

OWN = """\
task: gen_sentences
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{sentence}} Does this make sense?"
doc_to_choice: ["no", "yes"]
doc_to_target: label
"""
LONG = "Which of these rivers flows through the city of Vienna before it reaches the Black Sea?"


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, with a corpus that holds a long question and the words of a short one."""
    text = json.dumps({"text": f"They ask: {LONG} Neural networks know."})
    (tmp_path / "corpus.jsonl").write_text(text + "\n")
    questions = [LONG, "Neural networks:", "?!"]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": one}) + "\n" for one in questions))
    return tmp_path


def audit(folder, *words, corpus="corpus.jsonl", out="leaks"):
    return evalkit("audit", "--corpus", corpus, "--out", out, *words, cwd=folder)


def test_a_users_task_with_the_name_of_a_family_is_searched_for(folder):
    docs = [{"sentence": " ".join(f"word{n}of{k}" for k in range(12)), "label": n % 2} for n in range(3)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "own.yaml").write_text(OWN.replace("DATA", str(folder / "docs.jsonl")))
    texts = [json.dumps({"text": f"{doc['sentence']}. Does this make sense?"}) for doc in docs[:2]]
    (folder / "corpus.jsonl").write_text("\n".join(texts))
    done = audit(folder, "--tasks-dir", ".", "--benchmark", "gen_sentences", "--rule", "llama3", "--json")
    [summary] = json.loads(done.stdout)["summaries"]
    assert (summary["n_items"], summary["n_without_text"], summary["n_dirty"]) == (3, 0, 2)


def test_the_table_tells_short_questions_apart_and_says_what_drops_out(folder):
    printed = " ".join(audit(folder, "--benchmark", "items.jsonl").stdout.split())
    assert "items gpt3-clean 2 2 1 100.0% 1 items llama3 2 2 1 100.0% 1" in printed
    assert "questions shorter than n words (n = 13 for gpt3-clean, 8 for llama3)" in printed
    assert "items: 1 of 3 items have no text to look for (gpt3-clean, llama3); they are not counted" in printed


def test_nothing_is_said_of_short_questions_or_missing_texts_where_there_are_none(folder):
    (folder / "items.jsonl").write_text(json.dumps({"question": LONG}))
    printed = audit(folder, "--benchmark", "items.jsonl").stdout
    assert "shorter than" not in printed and "no text to look for" not in printed


def test_names_with_brackets_are_shown_as_they_are(folder):
    (folder / "items.jsonl").rename(folder / "it[red]ems.jsonl")
    printed = audit(folder, "--benchmark", "it[red]ems.jsonl", out="q[bold]").stdout
    assert "Audit: q[bold]" in printed
    assert "it[red]ems" in printed


def test_a_benchmark_file_of_another_kind_is_told_what_can_be_read(folder):
    (folder / "items.json").write_text("[]")
    message = mistake(audit(folder, "--benchmark", "items.json"))
    assert "items.json" in message and ".jsonl.zst" in message


def test_empty_names_are_refused(folder):
    assert "--corpus: an empty name" in mistake(audit(folder, "--benchmark", "items.jsonl", corpus=""))
    assert "--benchmark: an empty name" in mistake(audit(folder, "--benchmark", ""))


def test_a_rule_that_cannot_work_is_refused_before_the_scan_and_the_earlier_audit_stays(folder):
    assert audit(folder, "--benchmark", "items.jsonl").returncode == 0
    before = {path: path.read_bytes() for path in (folder / "leaks").iterdir()}
    (folder / "mine.yaml").write_text(
        "{name: 2024, summary: s, source: us, measure: any_ngram, n: 5, threshold: 1, document_action: drop}"
    )
    done = audit(folder, "--benchmark", "items.jsonl", "--rule", "mine.yaml", "--overwrite")
    assert "mine.yaml: 'name' must be a text, not 2024" in mistake(done)
    assert {path: path.read_bytes() for path in (folder / "leaks").iterdir()} == before


def test_an_audit_beside_its_corpus_is_not_scanned_the_next_time(folder):
    assert audit(folder, "--benchmark", "items.jsonl", corpus="corpus.jsonl").returncode == 0
    (folder / "items.jsonl").rename(folder.parent / "items.jsonl")
    done = audit(folder, "--benchmark", "../items.jsonl", "--json", corpus=".", out="again")
    assert json.loads(done.stdout)["n_files"] == 1
    assert "left out the results in" in done.stderr
