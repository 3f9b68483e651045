"""Answers from files and runs, and how they become pairs."""

from __future__ import annotations

import json

import pytest

from evalkit.errors import InputError
from evalkit.judges.answers import pair_answers, read_answers


def answers(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_answers(path)


def test_files_are_paired_by_question_and_the_rest_is_counted(tmp_path):
    a = answers(tmp_path / "a.jsonl", [{"question": f"q{n}", "answer": f"a{n}", "model": "m1"} for n in range(5)])
    b = answers(
        tmp_path / "b.jsonl",
        [{"instruction": f"q{n}", "output": f"b{n}", "generator": "m2"} for n in (3, 4, 5, 5)] + [{"question": "q9"}],
    )
    pairs = pair_answers(a, b)
    assert (pairs.name_a, pairs.name_b) == ("m1", "m2")
    assert [(one.a.text, one.b.text) for one in pairs.pairs] == [("a3", "b3"), ("a4", "b4")]
    assert pairs.left_out == {
        "only m1 has an answer": 3,
        "only m2 has an answer": 1,
        "m2: further answers to the same question": 1,
        "m2: rows without question or answer": 1,
    }


def test_a_limit_is_a_seeded_random_part(tmp_path):
    rows = [{"question": f"q{n}", "answer": "x"} for n in range(50)]
    a, b = answers(tmp_path / "a.jsonl", rows), answers(tmp_path / "b.jsonl", rows)
    chosen = [one.pair_id for one in pair_answers(a, b, limit=10, seed=1).pairs]
    assert chosen == [one.pair_id for one in pair_answers(a, b, limit=10, seed=1).pairs]
    assert len(chosen) == 10 and chosen != [one.pair_id for one in pair_answers(a, b, limit=10, seed=2).pairs]


def test_models_of_one_name_are_told_apart(tmp_path):
    rows = [{"question": "q", "answer": "x", "model": "same"}]
    a, b = answers(tmp_path / "a.jsonl", rows), answers(tmp_path / "b.jsonl", rows)
    assert (pair_answers(a, b).name_a, pair_answers(a, b).name_b) == ("same (A)", "same (B)")


def test_nothing_in_common_and_nothing_at_all_are_refused(tmp_path):
    a = answers(tmp_path / "a.jsonl", [{"question": "q", "answer": "x"}])
    b = answers(tmp_path / "b.jsonl", [{"question": "r", "answer": "x"}])
    with pytest.raises(InputError, match="no question in common"):
        pair_answers(a, b)
    with pytest.raises(InputError, match="no row with a question and an answer"):
        answers(tmp_path / "c.jsonl", [{"text": "q"}])
    with pytest.raises(InputError, match="no run directory"):
        read_answers(tmp_path)
