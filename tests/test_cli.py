"""The command line: help with examples, JSON on stdout, one line for a mistake, and exit codes that mean something."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reports.runs import write_run

COMMANDS = ["run", "tasks", "audit", "dedup", "compare", "report", "diff", "trend", "rescore", "quickstart"]


def evalkit(*arguments, cwd=None):
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "evalkit.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"},
        check=False,
    )


@pytest.fixture
def corpus(tmp_path):
    """A folder with one corpus file, one of whose rows is broken, and one benchmark file."""
    (tmp_path / "corpus.jsonl").write_text('{"text": "they ask what is love"}\n{"text": "nothing"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "they ask what is love"}\n{"text": \n')
    (tmp_path / "items.jsonl").write_text('{"id": 1, "question": "What is love?"}\n')
    return tmp_path


def mistake(done):
    """The message of a user's mistake: exit code 2, one line, no traceback."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_names_every_command_and_each_command_shows_an_example():
    assert all(command in evalkit("--help").stdout for command in COMMANDS)
    for command in COMMANDS:
        done = evalkit(command, "--help")
        assert done.returncode == 0
        assert f"evalkit {command}" in done.stdout.split("Example:")[1], command


def test_the_version_is_printed():
    assert evalkit("--version").stdout.startswith("evalkit 0.")


def test_an_audit_prints_json_and_ends_with_0(corpus):
    done = evalkit(
        "audit", "--corpus", "corpus.jsonl", "--benchmark", "items.jsonl", "--out", "a", "--json", cwd=corpus
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(one["rule"], one["n_dirty"]) for one in result["summaries"]] == [("gpt3-clean", 1), ("llama3", 1)]


def test_words_that_a_shell_made_of_a_glob_all_count(corpus):
    words = ["--corpus", "corpus.jsonl", "broken.jsonl", "--benchmark", "items.jsonl", "--rule", "llama3", "gpt3-clean"]
    done = evalkit("audit", *words, "--out", "a", "--allow-bad-rows", 1, "--json", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_files"] == 2


def test_a_broken_row_is_reported_and_told_by_the_exit_code_unless_allowed(corpus):
    command = ["audit", "--corpus", "broken.jsonl", "--benchmark", "items.jsonl", "--out"]
    done = evalkit(*command, "a", cwd=corpus)
    assert done.returncode == 1
    assert "1 rows could not be read" in done.stdout
    assert "broken.jsonl, row 1: " in done.stdout
    assert (corpus / "a" / "items.parquet").exists()
    assert evalkit(*command, "b", "--allow-bad-rows", 1, cwd=corpus).returncode == 0


EVIL = "x\u001bcFAKE\u001b[2J\u202e"


def test_no_name_in_a_corpus_is_obeyed_by_the_terminal(corpus):
    pq.write_table(pa.table({EVIL: ["t"]}), corpus / "a.parquet")
    done = evalkit("audit", "--corpus", "a.parquet", "--benchmark", "items.jsonl", "--out", "a", cwd=corpus)
    assert "the columns are: x<U+001B>cFAKE<U+001B>[2J<U+202E>" in mistake(done)
    (corpus / f"{EVIL}.jsonl").write_text(json.dumps({EVIL: "t"}) + "\n" + json.dumps({"text": "what is love"}) + "\n")
    (corpus / f"{EVIL} items.jsonl").write_text('{"question": "What is love?"}\n')
    names = ["--corpus", f"{EVIL}.jsonl", "--benchmark", f"{EVIL} items.jsonl", "--rule", "gpt3-clean"]
    done = evalkit("audit", *names, "--out", "a", "--clean", "new", cwd=corpus)
    assert done.returncode == 1, done.stderr
    assert "x<U+001B>cFAKE<U+001B>[2J<U+202E>.jsonl, row 0: no field 'text'" in done.stdout.replace("\n", "")
    assert "gpt3-clean: x<U+001B>cFAKE" in done.stdout
    assert evalkit("audit", "clean", "a", "--to", "new", cwd=corpus).returncode == 2
    (corpus / f"{EVIL}.jsonl").unlink()
    gone = evalkit("audit", "clean", "a", "--to", "new", "--overwrite", cwd=corpus)
    for text in (done.stdout, done.stderr, mistake(gone)):
        assert "\u001b" not in text and "\u202e" not in text


def test_mistakes_are_one_line_that_says_what_where_and_what_to_do(corpus):
    def audit(*words):
        return mistake(evalkit("audit", *words, "--out", "a", cwd=corpus))

    assert "no-such-*.jsonl" in audit("--corpus", "no-such-*.jsonl", "--benchmark", "items.jsonl")
    assert "none.jsonl" in audit("--corpus", "corpus.jsonl", "--benchmark", "none.jsonl")
    assert "no rule 'llama4'" in audit("--corpus", "corpus.jsonl", "--benchmark", "items.jsonl", "--rule", "llama4")
    assert "gen_tabels" in audit("--corpus", "corpus.jsonl", "--benchmark", "gen_tabels")
    assert not (corpus / "a").exists()
    missing = evalkit("run", "--model", "./no-such-model", "--tasks", "gen_tables", "--out", "r", cwd=corpus)
    assert "no-such-model" in mistake(missing)
    assert "not-a-run" in mistake(evalkit("compare", "not-a-run", "not-a-run", cwd=corpus))
    assert "not-a-run" in mistake(evalkit("report", "not-a-run", "not-a-run", cwd=corpus))


def test_a_comparison_prints_json_or_a_table_and_the_report_is_a_page(tmp_path):
    a = write_run(tmp_path / "a", {("t", f"{n}"): 1.0 for n in range(30)}, name="base")
    b = write_run(tmp_path / "b", {("t", f"{n}"): float(n % 2) for n in range(30)}, name="q4")
    assert json.loads(evalkit("compare", a, b, "--json").stdout)["verdict"] == {"all": "worse"}
    assert "On all 30 items, q4 is worse than base" in evalkit("compare", a, b).stdout
    done = evalkit("report", a, b, "-o", tmp_path / "page" / "report.html")
    assert done.stdout.strip() == (tmp_path / "page" / "report.html").as_uri()
    assert (tmp_path / "page" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_tasks_are_listed_by_pattern():
    listed = json.loads(evalkit("tasks", "gen_*", "--json").stdout)
    assert len(listed) >= 6
    assert all(task["name"].startswith("gen_") for task in listed)
