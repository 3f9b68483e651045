"""Position bias: counts by hand, simulated judges, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from evalkit import tables
from evalkit.judges.pairs import pairs_of
from evalkit.judges.position import PositionBias, position_bias
from tests.judges.simulated import judge_table, many, true_excess, true_lead

REPETITIONS = 150
# 95% of 150, less three standard errors of such a share.
FEWEST = int(np.floor(REPETITIONS * (0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS))))


def verdicts(*rows):
    made = [
        {"judge": "j", "pair_id": pair, "order": order, "repeat": number, "model_a": "x", "model_b": "y", "winner": won}
        for pair, order, number, won in rows
    ]
    return pairs_of(tables.from_rows(tables.VERDICTS, made))["j"]


def inside(estimate, value):
    return estimate is not None and estimate.low is not None and estimate.low <= value <= estimate.high


def test_counts_by_hand():
    kinds = {"same": "aa", "first": "ab", "second": "ba", "tie once": "at", "tie twice": "tt", "late tie": "ta"}
    won = {"a": "a", "b": "b", "t": "tie"}
    rows = [(name, order, 0, won[one]) for name, pair in kinds.items() for order, one in zip(("ab", "ba"), pair)]  # noqa: B905
    found = position_bias(verdicts(*rows))
    assert (found.n_both, found.consistent, found.first_twice, found.second_twice, found.tie_once) == (6, 2, 1, 1, 2)
    assert found.conflict.estimate == pytest.approx(2 / 6)
    # Of picks other than ties: same 1 of 2, first 2 of 2, second 0 of 2, `at` 1 of 1, `ta` 0 of 1.
    assert found.first_pick.estimate == pytest.approx(4 / 8)
    # Leads: 0, 1, -1, 1/2, 0, -1/2.
    assert found.bias.estimate == pytest.approx(0.0)
    assert (found.shi.primacy, found.shi.recency) == (2, 2)
    assert found.shi.preference_fairness == pytest.approx(0.0)


def test_all_primacy_is_fairness_of_minus_one():
    pairs = verdicts(*((str(n), order, 0, won) for n in range(8) for order, won in (("ab", "a"), ("ba", "b"))))
    found = position_bias(pairs)
    assert found.shi.preference_fairness == -1 and found.shi.position_consistency == 0
    assert found.bias.estimate == 1 and found.bias.low > 0.2, "equal pairs still leave room for others"
    assert found.sign == "biased"


def test_repetition_stability_is_the_share_of_the_commonest_verdict():
    rows = [("p", "ab", n, won) for n, won in enumerate(["a", "a", "b", "a"])]
    rows += [("p", "ba", n, won) for n, won in enumerate(["tie", "b"])] + [("q", "ab", 0, "a"), ("q", "ba", 0, "a")]
    assert position_bias(verdicts(*rows)).shi.repetition_stability == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_direction_is_mcnemars_mid_p():
    pairs = pairs_of(judge_table(80, seed=3, position=1.0, repeats=0))["judge"]
    found = position_bias(pairs)
    small, both = min(found.first_twice, found.second_twice), found.first_twice + found.second_twice
    expected = 2 * stats.binom.cdf(small, both, 0.5) - stats.binom.pmf(small, both, 0.5)
    assert found.direction_test.p_value == pytest.approx(expected)


def test_swapping_the_names_of_the_models_changes_nothing():
    table = judge_table(100, seed=1, position=1.0, ties=0.1)
    frame = table.to_pandas()
    other = {"a": "b", "b": "a", "ab": "ba", "ba": "ab", "tie": "tie", "error": "error"}
    frame["winner"], frame["order"] = frame.winner.map(other), frame.order.map(other)
    turned = pairs_of(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))["judge"]
    one, two = position_bias(pairs_of(table)["judge"]), position_bias(turned)
    assert one.direction == two.direction and one.bias.estimate == pytest.approx(two.bias.estimate)
    assert one.excess.estimate == pytest.approx(two.excess.estimate)


def test_swapping_the_positions_turns_the_sign():
    table = judge_table(100, seed=1, position=1.0)
    frame = table.to_pandas()
    frame["order"] = frame.order.map({"ab": "ba", "ba": "ab"})
    turned = pairs_of(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))["judge"]
    one, two = position_bias(pairs_of(table)["judge"]), position_bias(turned)
    assert one.bias.estimate == pytest.approx(-two.bias.estimate)
    assert one.shi.preference_fairness == pytest.approx(-two.shi.preference_fairness)


@pytest.mark.parametrize(
    ("n", "planted"),
    [
        (300, {"position": 1.0}),
        (300, {"position": 3.0, "spread": 2.0}),
        (300, {"position": -1.0, "quality": 0.5}),
        (150, {"position": 0.0, "noise": 3.0}),
    ],
    ids=["first", "strong", "second", "noisy"],
)
def test_planted_bias_is_within_its_interval_in_95_percent_of_runs(n, planted):
    lead, excess = true_lead(**planted), true_excess(**planted)
    found = [position_bias(one) for one in many(n, REPETITIONS, **planted)]
    assert sum(inside(one.bias, lead) for one in found) >= FEWEST
    assert sum(inside(one.excess, excess) for one in found) >= FEWEST


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0])
def test_a_fair_judge_however_noisy_is_called_biased_in_at_most_5_percent(noise):
    found = [position_bias(one) for one in many(150, REPETITIONS, noise=noise)]
    most = REPETITIONS * (0.05 + 3 * np.sqrt(0.05 * 0.95 / REPETITIONS))
    assert sum(one.sign == "biased" for one in found) <= most
    assert not any(one.excess is None for one in found)


def test_position_that_pulls_both_ways_shows_as_excess_without_direction():
    # Half of the pairs always go to the first, half to the second position.
    rows = [(str(n), order, r, won) for n in range(60) for r in range(2)
            for order, won in (("ab", "ab"[n % 2]), ("ba", "ba"[n % 2]))]  # fmt: skip
    found = position_bias(verdicts(*rows))
    assert found.direction_test.p_value > 0.5 and found.bias.estimate == 0
    assert found.excess.estimate == 1 and found.sign == "biased"


@pytest.mark.parametrize(("repeated", "sign"), [(0, "underpowered"), (100, "biased")])
def test_a_judge_that_always_contradicts_itself_is_never_called_fair(repeated, sign):
    # As above, with few repeats or none: its lead is zero, and known to be small.
    rows = [(str(n), order, r, order[n % 2]) for n in range(1000) for r in range(1 + (n < repeated))
            for order in ("ab", "ba")]  # fmt: skip
    found = position_bias(verdicts(*rows))
    assert found.consistent == 0 and abs(found.bias.high) < found.smallest_bias
    assert found.sign == sign
    assert found.most_decided > 0.9


@pytest.mark.parametrize("repeats", [0.0, 0.1])
def test_a_pull_in_both_directions_is_hardly_ever_called_no_sign(repeats):
    # On half of the pairs the first gains 3 in log odds, 56 points, on the others the second.
    found = [position_bias(one) for one in many(600, 60, both_ways=3.0, repeats=repeats)]
    assert sum(one.sign == "no sign, adequate power" for one in found) == 0
    assert not repeats or sum(one.sign == "biased" for one in found) >= 57


@pytest.mark.parametrize(("n", "repeats"), [(400, 0.0), (1000, 0.5)])
def test_a_fair_judge_is_called_so_where_it_hardly_contradicts_itself_or_has_many_repeats(n, repeats):
    # Without repeats, only consistency shows it; with them, noise is told from a pull in both directions.
    noise = 1.0 if repeats else 0.05
    found = position_bias(pairs_of(judge_table(n, seed=1, spread=3.0, noise=noise, repeats=repeats))["judge"])
    assert found.sign == "no sign, adequate power" and found.most_decided < found.smallest_bias


def test_repeats_of_one_question_only_give_no_excess_and_stop_nothing():
    table = judge_table(60, seed=0, repeats=0.1)
    frame = table.to_pandas()
    repeated = set(frame.pair_id[frame["repeat"] == 1])
    frame["doc_hash"] = ["one" if pair in repeated else pair for pair in frame.pair_id]
    found = position_bias(pairs_of(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))["judge"])
    assert found.noise is not None and found.excess is None and found.excess_p is None
    assert any("too few pairs are repeated" in one for one in found.warnings)


def test_repeats_of_the_hard_pairs_only_are_told():
    def warned(hard):
        # The first 40 pairs are answered by chance, the others always by the same model; 40 pairs are repeated.
        rng = np.random.default_rng(0)
        rows = [(str(n), order, r, "ab"[rng.integers(2)] if n < 40 else "a") for n in range(200)
                for r in range(1 + (n < 40 if hard else n % 5 == 0)) for order in ("ab", "ba")]  # fmt: skip
        return any("no random part" in one for one in position_bias(verdicts(*rows)).warnings)

    assert warned(hard=True) and not warned(hard=False)


def test_answers_rated_apart_have_no_position_to_speak_of():
    found = position_bias(verdicts(*((str(n), "none", 0, "ab"[n % 2]) for n in range(10))))
    assert found.sign == "no order" and found.n_order_free == 10 and found.n_unknown_order == 0
    assert found.warnings == () and "rated apart" in str(found)


def test_pairs_of_one_question_are_one_cluster():
    table = judge_table(60, seed=2, position=0.7, repeats=0)
    frame = table.to_pandas()
    copies = pa.concat_tables(
        pa.Table.from_pandas(
            frame.assign(doc_hash=frame.pair_id, pair_id=frame.pair_id + f" copy {n}"),
            schema=table.schema,
            preserve_index=False,
        )
        for n in range(10)
    )
    one, ten = position_bias(pairs_of(table)["judge"]), position_bias(pairs_of(copies)["judge"])
    assert ten.bias.high - ten.bias.low == pytest.approx(one.bias.high - one.bias.low, rel=0.05)
    # The sign-flip test of equal clusters is the exact McNemar test of the clusters.
    exact = stats.binomtest(one.first_twice, one.first_twice + one.second_twice).pvalue
    assert ten.direction_test.p_value == pytest.approx(exact, rel=1e-9)


def test_no_interval_of_few_pairs_leaves_what_is_possible():
    rows = [("p", "ab", 0, "a"), ("p", "ba", 0, "b"), ("q", "ab", 0, "a"), ("q", "ba", 0, "a"), ("r", "ab", 0, "b"),
            ("r", "ba", 0, "b")]  # fmt: skip
    found = position_bias(verdicts(*rows))
    assert -1 <= found.bias.low <= found.bias.estimate <= found.bias.high <= 1
    all_first = [(str(n), order, r, order[0]) for n in range(10) for order in ("ab", "ba") for r in (0, 1)]
    found = position_bias(verdicts(*all_first))
    assert found.excess.low <= found.excess.estimate == 1 <= found.excess.high


def test_pairs_in_one_order_say_nothing_and_are_counted():
    pairs = verdicts(("p", "ab", 0, "a"), ("q", "ab", 0, "a"), ("q", "ba", 0, "error"), ("r", None, 0, "b"))
    found = position_bias(pairs)
    assert (found.n_both, found.n_one_order, found.n_unknown_order, found.n_failed_calls) == (0, 2, 1, 1)
    assert found.sign == "underpowered" and found.bias is None
    assert any("one order only" in one for one in found.warnings)


def test_repeats_in_one_order_only_are_not_taken_for_noise():
    rows = [(str(n), order, r, "a") for n in range(20) for order, r in (("ab", 0), ("ab", 1), ("ba", 0))]
    found = position_bias(verdicts(*rows))
    assert found.noise is not None and found.excess is None
    assert any("one order only, which does not tell" in one for one in found.warnings)


def test_results_come_back_from_json():
    found = position_bias(pairs_of(judge_table(50, seed=4))["judge"])
    assert PositionBias.from_json(found.to_json()) == found
