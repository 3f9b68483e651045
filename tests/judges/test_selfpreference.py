"""Self-preference: planted, absent, and what cannot be said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from evalkit.judges.pairs import pairs_of
from evalkit.judges.selfpreference import self_preference
from tests.judges.simulated import judge_table

REPETITIONS = 120
FEWEST = int(np.floor(REPETITIONS * (0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS))))


def pairs(judge="b-model", **planted):
    return pairs_of(judge_table(300, judge=judge, **planted))[judge]


@pytest.mark.parametrize("own", [0.0, 0.8])
def test_planted_self_preference_is_within_its_intervals_in_95_percent_of_runs(own):
    merit = np.random.default_rng(0).normal(size=400_000)
    p, human = special.expit(merit + own), special.expit(merit)
    gap = float(p.mean() - human.mean())
    bias = float((p * human).mean() / human.mean() - ((1 - p) * (1 - human)).mean() / (1 - human).mean())
    found = [
        self_preference(pairs(seed=s, own=own, labels=1.0), ["b-model"], {"x": pairs("x", seed=s)})
        for s in range(REPETITIONS)
    ]

    def hits(pick, value):
        return sum(pick(one).low <= value <= pick(one).high for one in found)

    assert hits(lambda one: one.beyond_humans, gap) >= FEWEST
    assert hits(lambda one: one.bias, bias) >= FEWEST
    # Judges of the same pairs share the pairs' merits, so the difference is of verdicts only.
    assert hits(lambda one: one.beyond_judges, gap) >= FEWEST


def test_own_answers_on_the_other_side_count_the_same():
    one = self_preference(pairs(judge="b-model", seed=1), ["b-model"], {})
    other = self_preference(pairs(judge="b-model", seed=1, models=("b-model", "z")), ["b-model"], {})
    assert one.own_wins.estimate == pytest.approx(1 - other.own_wins.estimate)


def test_without_labels_and_other_judges_merit_cannot_be_told_from_preference():
    found = self_preference(pairs(seed=1), ["b-model"], {})
    assert found.beyond_humans is None and found.beyond_judges is None and found.bias is None
    assert "may be merit" in found.warnings[0]


def test_a_judge_without_answers_of_its_own_has_no_self_preference():
    assert self_preference(pairs(seed=1), ["somebody"], {}) is None
