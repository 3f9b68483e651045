"""The journal: keys that differ in everything that matters, and answers that survive."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from evalkit.errors import InputError
from evalkit.runs.journal import Journal, request_key

BASE = {"model_key": "m", "method": "generate_until", "arguments": ["p", {"until": ["x"]}], "seed": 1, "repeat": 0}


def key(**change):
    return request_key(**{**BASE, "occurrence": 0, **change})


def test_a_key_differs_in_every_component():
    others = [
        key(model_key="n"),
        key(method="loglikelihood"),
        key(arguments=["q", {"until": ["x"]}]),
        key(arguments=["p", {"until": ["y"]}]),
        key(seed=2),
        key(seed=None),
        key(repeat=1),
        key(occurrence=1),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key()


def test_answers_come_back_exactly(tmp_path):
    answers = {"a": [-0.1 + 0.2, True], "b": "text \u2028 \ud800", "c": 1e-300}
    with Journal(tmp_path / "j.sqlite") as journal:
        for name, answer in answers.items():
            journal.add(name, "m", ["request"], answer)
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.find([*answers, "none"]) == answers
        assert journal.find([]) == {}


def test_what_was_committed_survives_kill_9(tmp_path):
    code = textwrap.dedent(f"""
        import os, pathlib, signal
        from evalkit.runs.journal import Journal
        journal = Journal(pathlib.Path({str(tmp_path / "j.sqlite")!r}))
        for number in range(100):
            journal.add(str(number), "m", [], number)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Journal(tmp_path / "j.sqlite") as journal:
        found = journal.find(map(str, range(100)))
    assert len(found) >= 64
    assert all(found[name] == int(name) for name in found)


def test_many_keys_are_found_at_once(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        for number in range(2000):
            journal.add(str(number), "m", [], number)
        assert len(journal.find(map(str, range(3000)))) == 2000


def test_a_file_that_is_no_journal_is_one_clear_line(tmp_path):
    (tmp_path / "j.sqlite").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(InputError, match=r"j\.sqlite: the journal cannot be read"):
        Journal(tmp_path / "j.sqlite")
