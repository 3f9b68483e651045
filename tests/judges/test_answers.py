"""Answers from files and runs, and how they become pairs."""

from __future__ import annotations

import json

import pytest

from evalkit.errors import InputError, SpecError
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


def test_models_of_one_name_are_told_apart_and_what_either_lacks_is_added_up(tmp_path):
    rows = [{"question": f"q{n}", "answer": "x", "model": "same"} for n in range(6)]
    a, b = answers(tmp_path / "a.jsonl", rows[:4]), answers(tmp_path / "b.jsonl", [*rows[3:], {"question": "z"}])
    pairs = pair_answers(a, b)
    assert (pairs.name_a, pairs.name_b) == ("same (A)", "same (B)")
    assert pairs.left_out == {"only one of them has an answer": 5, "same: rows without question or answer": 1}


def test_hashes_of_a_users_own_name_pairs_as_a_whole(tmp_path):
    rows = [{"question": f"q{n}", "answer": "x", "doc_hash": f"mt_bench_question_{n}"} for n in range(3)]
    a, b = answers(tmp_path / "a.jsonl", rows), answers(tmp_path / "b.jsonl", rows)
    assert [one.pair_id for one in pair_answers(a, b).pairs] == [row["doc_hash"] for row in rows]
    odd = [
        {"question": "q", "answer": "x", "task": task, "doc_hash": name} for task, name in (("a", "b c"), ("a b", "c"))
    ]
    a, b = answers(tmp_path / "c.jsonl", odd), answers(tmp_path / "d.jsonl", odd)
    with pytest.raises(InputError, match="2 pairs are named 'a b c'"):
        pair_answers(a, b)


def test_an_empty_answer_and_a_number_are_answers(tmp_path):
    a = answers(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}, {"question": "r", "answer": None}])
    b = answers(tmp_path / "b.jsonl", [{"question": "q", "answer": 4}, {"question": "r", "answer": 0.5}])
    pairs = pair_answers(a, b)
    assert [(one.a.text, one.b.text) for one in pairs.pairs] == [("", "4")]
    assert pairs.left_out == {"only b has an answer": 1, "a: rows without question or answer": 1}


def test_a_task_that_is_called_as_the_file_stays_a_task(tmp_path):
    rows = [{"question": "q", "answer": "x", "task": "gsm8k"}]
    a, b = answers(tmp_path / "gsm8k.jsonl", rows), answers(tmp_path / "gsm8k-b.jsonl", rows)
    assert pair_answers(a, b).pairs[0].a.task == "gsm8k"


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"seed": -1}])
def test_no_pairs_and_no_seed_are_refused(tmp_path, wrong):
    a = answers(tmp_path / "a.jsonl", [{"question": "q", "answer": "x"}])
    with pytest.raises(SpecError):
        pair_answers(a, a, **wrong)


def test_nothing_in_common_and_nothing_at_all_are_refused(tmp_path):
    a = answers(tmp_path / "a.jsonl", [{"question": "q", "answer": "x"}])
    b = answers(tmp_path / "b.jsonl", [{"question": "r", "answer": "x"}])
    with pytest.raises(InputError, match="no question in common"):
        pair_answers(a, b)
    with pytest.raises(InputError, match="no row with a question and an answer"):
        answers(tmp_path / "c.jsonl", [{"text": "q"}])
    with pytest.raises(InputError, match="no run directory"):
        read_answers(tmp_path)
