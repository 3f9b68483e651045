"""Self-preference: planted, absent, and what cannot be said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from evalkit.judges.pairs import pairs_of
from evalkit.judges.selfpreference import self_preference
from tests.judges.simulated import judge_table, many

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
    mine = many(300, REPETITIONS, judge="b-model", own=own, labels=1.0)
    theirs = many(300, REPETITIONS, judge="x")
    found = [self_preference(one, ["b-model"], {"x": other}) for one, other in zip(mine, theirs, strict=True)]

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


def test_judges_that_are_not_neutral_are_no_yardstick():
    mine = pairs(seed=1, own=2.0)
    fair = {"x": pairs("x", seed=1)}
    alone = self_preference(mine, ["b-model"], fair)
    # Another version of itself favours the same answers, and the judge that is the other model favours its own.
    family = {"b-new": pairs("b-new", seed=1, own=2.0), "a-model": pairs("a-model", seed=1, own=-2.0)}
    found = self_preference(mine, ["b-model", "b-new"], fair | family)
    assert found.beyond_judges.estimate == alone.beyond_judges.estimate > 0.2
    assert found.warnings == (
        "1 of 3 other judges are of its own family and not compared with",
        "300 verdicts of other judges on answers of their own are not compared with",
    )
    kin = self_preference(mine, ["b-model"], fair | {"z": family["a-model"]}, {"z": ["a-model"]})
    assert kin.beyond_judges.estimate == alone.beyond_judges.estimate


def test_without_labels_and_other_judges_merit_cannot_be_told_from_preference():
    found = self_preference(pairs(seed=1), ["b-model"], {})
    assert found.beyond_humans is None and found.beyond_judges is None and found.bias is None
    assert "may be merit" in found.warnings[0]


def test_a_judge_without_answers_of_its_own_has_no_self_preference():
    assert self_preference(pairs(seed=1), ["somebody"], {}) is None
