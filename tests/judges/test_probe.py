"""The examination: its pairs, and cards of judges with planted faults."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evalkit import tables
from evalkit.errors import InputError, SpecError
from evalkit.judges.probe import KINDS, Card, card, probe_pairs
from evalkit.judges.style import looks


def judged(verdict, n=60, repeats=(0,)):
    """A table of what `verdict(kind, first is the plain one, question number)` says: a, b or tie."""
    rows = []
    for number, pair in enumerate(probe_pairs(n).pairs):
        for order in ("ab", "ba"):
            for repeat in repeats:
                row = {"judge": "j", "pair_id": pair.pair_id, "order": order, "repeat": repeat}
                row |= {"model_a": "plain", "model_b": "changed", "task": pair.a.task, "doc_hash": pair.a.doc_hash}
                row |= {"winner": verdict(pair.a.task, order, number), **looks(pair.a.text, pair.b.text)}
                rows.append(row)
    return tables.from_rows(tables.VERDICTS, rows)


def signs(found):
    return {one.kind: one.sign for one in found.findings}


def good(kind, order, number):
    return "a" if kind in ("wrong fact", "injection") else "tie"


def test_pairs_have_known_answers_and_come_back_for_a_seed():
    pairs = probe_pairs(80, seed=3).pairs
    assert len(pairs) == 5 * 80 and pairs == probe_pairs(80, seed=3).pairs != probe_pairs(80, seed=4).pairs
    assert len({one.pair_id for one in pairs}) == len(pairs)
    for one in pairs:
        assert one.a.question == one.b.question
        assert (one.a.text == one.b.text) == (one.a.task == "identical")
        if one.a.task in ("padded", "flattery"):
            assert one.a.text in one.b.text
        if one.a.task == "injection":
            assert one.a.text not in one.b.text
        if found := re.fullmatch(r"What is (\d+) \+ (\d+)\?", one.a.question):
            right = str(int(found[1]) + int(found[2]))
            assert one.a.text.endswith(f"= {right}.")
            assert (f"= {right}." in one.b.text) == (one.a.task not in ("wrong fact", "injection"))


def test_a_good_judge_gets_a_clean_card():
    found = card(judged(good, n=100, repeats=(0, 1)))
    assert signs(found) == {
        "identical": "no sign, adequate power",
        "padded": "no sign, adequate power",
        "flattery": "no sign, adequate power",
        "wrong fact": "sees it",
        "injection": "no sign, adequate power",
    }
    assert found.n_failed == 0 and found.n_questions == 100
    assert Card.from_json(found.to_json()) == found


def test_few_questions_cannot_show_that_a_bias_is_absent():
    found = card(judged(good, n=12, repeats=(0, 1)))
    assert signs(found)["padded"] == "underpowered"
    found = card(judged(lambda kind, order, n: order[0], n=12, repeats=(0, 1)))
    assert signs(found)["wrong fact"] == "underpowered"
    assert any("give more --questions" in one for one in found.warnings)


@pytest.mark.parametrize("kind", ["padded", "flattery"])
def test_a_weakness_shows_on_its_own_line_only(kind):
    found = signs(card(judged(lambda k, order, n: "b" if k == kind else good(k, order, n), n=100)))
    assert [name for name, sign in found.items() if sign == "biased"] == [kind]


def test_a_judge_that_obeys_instructions_in_answers_is_found():
    found = card(judged(lambda k, order, n: "b" if k == "injection" else good(k, order, n), n=100))
    assert signs(found)["injection"] == "biased" and signs(found)["wrong fact"] == "sees it"
    effect = next(one.effect for one in found.findings if one.kind == "injection")
    assert effect.estimate == 1.0


def test_a_judge_that_always_says_the_first_knows_nothing_and_has_shown_nothing_else():
    found = card(judged(lambda kind, order, n: order[0], n=100, repeats=(0, 1)))
    assert signs(found) == {
        "identical": "biased",
        "padded": "underpowered",
        "flattery": "underpowered",
        "wrong fact": "no better than chance",
        "injection": "underpowered",
    }
    assert any("should judge nothing" in one for one in found.warnings)


def test_a_judge_by_chance_is_called_biased_rarely():
    wrong = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found = signs(card(judged(lambda *_: "ab"[rng.integers(2)], n=40, repeats=(0, 1))))  # noqa: B023
        wrong += any(sign == "biased" for sign in found.values())
    assert wrong <= 5


def test_verdicts_of_other_pairs_and_too_few_questions_are_refused():
    table = judged(good, n=20)
    frame = table.to_pandas()
    import pyarrow as pa

    some = pa.Table.from_pandas(frame[frame.task != "flattery"], schema=table.schema, preserve_index=False)
    with pytest.raises(InputError, match="kind 'flattery'"):
        card(some)
    with pytest.raises(SpecError, match="at least 10"):
        probe_pairs(3)
    assert set(frame.task) == set(KINDS)
