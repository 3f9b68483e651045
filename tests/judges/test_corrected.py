"""The corrected result: identities, carried bias, labels, and the sentence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import special

from evalkit.judges.corrected import PairResult, pair_result
from evalkit.judges.pairs import pairs_of
from evalkit.judges.position import position_bias
from tests.judges.simulated import judge_table, many

REPETITIONS = 120
FEWEST = int(np.floor(REPETITIONS * (0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS))))


def without(table, drop):
    frame = table.to_pandas()
    return pa.Table.from_pandas(frame[~drop(frame)], schema=table.schema, preserve_index=False)


def result(table):
    pairs = pairs_of(table)["judge"]
    return pair_result(pairs, position_bias(pairs))


def test_a_win_only_if_consistent_and_the_average_are_the_same_without_ties():
    found = result(judge_table(200, seed=0, position=1.0, repeats=0))
    assert found.if_consistent.estimate == pytest.approx(found.averaged.estimate)
    assert found.averaged.estimate == pytest.approx((found.a_first.estimate + found.b_first.estimate) / 2)
    assert found.corrected.estimate == found.averaged.estimate
    assert found.bounds[0] < found.averaged.estimate < found.bounds[1]


def test_with_ties_they_are_not_the_same():
    found = result(judge_table(200, seed=0, position=1.0, quality=1.0, ties=0.3, repeats=0))
    assert abs(found.if_consistent.estimate - 0.5) < abs(found.averaged.estimate - 0.5)


def test_swapping_the_models_turns_the_result():
    table = judge_table(100, seed=1, quality=0.5)
    frame = table.to_pandas()
    other = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}
    frame["winner"], frame["order"] = frame.winner.map(other), frame.order.map(other)
    turned = result(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))
    found = result(table)
    assert found.averaged.estimate == pytest.approx(1 - turned.averaged.estimate)
    assert found.test.p_value == pytest.approx(turned.test.p_value)


def test_bias_is_taken_out_of_single_orders_and_its_error_carried():
    merit = 0.4 + np.random.default_rng(0).normal(size=400_000)
    truth = float((special.expit(merit + 0.75) + special.expit(merit - 0.75)).mean() / 2)
    table = judge_table(400 * REPETITIONS, position=1.5, quality=0.4, repeats=0)
    # Half of the pairs were judged with A first only.
    half = without(table, lambda f: (f.order == "ba") & (f.pair_id.str[5:].astype(int) % 400 >= 200))
    pairs = pairs_of(half)["judge"]
    drawn = [pairs.take(some) for some in np.split(np.arange(len(pairs)), REPETITIONS)]
    found = [pair_result(one, position_bias(one)) for one in drawn]
    assert sum(one.corrected.low <= truth <= one.corrected.high for one in found) >= FEWEST
    assert sum(one.a_first.low <= truth <= one.a_first.high for one in found) < REPETITIONS / 10
    one = found[0]
    assert one.corrected.standard_error > one.averaged.standard_error / np.sqrt(2), "half of the evidence is corrected"


def test_labels_put_a_biased_judge_right():
    merit = np.random.default_rng(0).normal(size=400_000)
    truth = float(special.expit(merit).mean())
    drawn = many(400, REPETITIONS, own=0.8, labels=0.3)
    found = [pair_result(one, position_bias(one)) for one in drawn]
    assert sum(one.with_labels.estimate.low <= truth <= one.with_labels.estimate.high for one in found) >= FEWEST
    assert sum(one.averaged.low <= truth <= one.averaged.high for one in found) < REPETITIONS / 2
    assert found[0].best == found[0].with_labels.estimate


def test_the_sentence_says_what_one_order_cannot_tell():
    found = result(judge_table(300, seed=0, position=1.5))
    bias = position_bias(pairs_of(judge_table(300, seed=0, position=1.5))["judge"]).bias
    assert found.smallest_one_order == pytest.approx(bias.high)
    assert f"under {100 * bias.high:.1f} points cannot be told from position bias" in found.sentence()
    unknown = result(without(judge_table(50, seed=0), lambda f: f.order == "ba"))
    assert "is unknown" in unknown.sentence()
    assert any("as they are" in one for one in unknown.warnings)


def test_few_pairs_in_both_orders_are_not_called_none():
    table = judge_table(30, seed=0, repeats=0)
    found = result(without(table, lambda f: (f.order == "ba") & (f.pair_id.str[5:].astype(int) >= 1)))
    assert found.position_known_from == 1
    assert "as 1 pairs in both orders, or their questions, are too few" in found.sentence()


def test_answers_rated_apart_have_a_result_and_no_position():
    table = judge_table(200, seed=0, quality=1.0, repeats=0)
    frame = table.to_pandas()
    frame = frame[frame.order == "ab"].assign(order="none")
    found = result(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))
    assert found.averaged.low < found.corrected.estimate < found.averaged.high and found.test.p_value < 0.01
    assert found.warnings == () and "rated by itself" in found.sentence() and "On 200 pairs" in found.sentence()


def test_labels_of_all_pairs_are_the_result():
    table = judge_table(100, seed=0, own=2.0, labels=1.0, repeats=0, failures=0.1)
    found = result(table)
    human = pairs_of(table)["judge"].label
    assert found.best.estimate == pytest.approx(human.mean()) and found.best.n_items == 100
    assert found.with_labels.n_labelled == 100 and found.with_labels.n_unlabelled == 0
    assert found.with_labels.judge > found.best.high, "the judge favours B"


def test_identical_answers_and_failures_are_left_out_and_counted():
    table = judge_table(100, seed=0, repeats=0)
    frame = table.to_pandas()
    frame["identical"] = frame.pair_id.isin(["pair 1", "pair 2"])
    frame.loc[frame.pair_id == "pair 5", "winner"] = "error"
    found = result(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))
    assert (found.n_pairs, found.n_used, found.n_identical, found.n_failed) == (100, 97, 2, 1)
    assert len(found.warnings) == 2


def test_no_verdict_at_all_is_a_result_that_says_so():
    found = result(judge_table(20, seed=0, failures=1.0))
    assert found.n_used == 0 and found.best is None and found.warnings == ("no pair has a verdict",)


def test_results_come_back_from_json():
    found = result(judge_table(100, seed=0, labels=0.5))
    assert PairResult.from_json(found.to_json()) == found
