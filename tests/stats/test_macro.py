"""Several benchmarks as one number, for this suite and for tasks like these."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.macro import (
    MacroMean,
    chance_corrected,
    interquartile_mean,
    macro_mean,
    macro_of_shared_items,
    micro_mean,
)
from evalkit.stats.means import mean_score
from evalkit.stats.paired import paired_difference


def estimate(values, **options):
    return paired_difference(np.zeros(len(values)), values, **options)


def tasks(seed, sizes=(20, 40, 80)):
    rng = np.random.default_rng(seed)
    return [rng.normal(k / 10, 1 + k, size=n) for k, n in enumerate(sizes)]


def test_the_two_intervals_answer_two_questions():
    parts = tasks(1)
    found = macro_mean([estimate(part) for part in parts])
    means = [part.mean() for part in parts]
    assert found.this_suite.standard_error == pytest.approx(
        np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / 3
    )
    theirs = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (found.tasks_like_these.low, found.tasks_like_these.high) == pytest.approx((theirs.low, theirs.high))
    assert found.this_suite.estimate == found.tasks_like_these.estimate == pytest.approx(np.mean(means))
    assert found.tasks_like_these.unit == "tasks"
    assert "only 3 tasks" in found.tasks_like_these.warnings[0]
    assert MacroMean.from_json(found.to_json()) == found
    assert list(found.to_frame().unit) == ["units", "tasks"]
    assert "tasks like these" in found.explain()


def test_each_interval_covers_what_it_is_for():
    rng = np.random.default_rng(2)
    suite = like = wrong = 0
    for _ in range(1000):
        truths = rng.normal(0, 0.5, size=8)  # this suite's tasks, of a population with mean zero
        found = macro_mean([estimate(rng.normal(truth, 1, size=25)) for truth in truths])
        suite += found.this_suite.low <= truths.mean() <= found.this_suite.high
        like += found.tasks_like_these.low <= 0 <= found.tasks_like_these.high
        wrong += found.this_suite.low <= 0 <= found.this_suite.high
    assert suite / 1000 == pytest.approx(0.95, abs=0.021)
    assert like / 1000 == pytest.approx(0.95, abs=0.021)
    assert wrong / 1000 < 0.7  # this suite's interval says nothing about other tasks


@pytest.mark.parametrize("rate", [0.6, 0.97])
def test_tasks_of_right_and_wrong_count_by_their_own_intervals_and_the_mean_covers(rate):
    rng = np.random.default_rng(13)
    covered = micro = 0
    sizes = (10, 20, 40, 80)
    for _ in range(600):
        parts = [mean_score((rng.random(n) < rate).astype(float)) for n in sizes]
        suite, whole = macro_mean(parts).this_suite, micro_mean(parts)
        covered += suite.low <= rate <= suite.high
        micro += whole.low <= rate <= whole.high
    assert covered / 600 >= 0.95 - 3 * 0.009
    assert micro / 600 >= 0.95 - 3 * 0.009
    perfect = macro_mean([mean_score(np.ones(30)), mean_score(np.ones(30))]).this_suite
    assert perfect.low < 0.97


def test_one_task_says_nothing_about_other_tasks():
    found = macro_mean([estimate(tasks(3)[0])])
    assert found.this_suite.low is not None
    assert found.tasks_like_these.low is None


def test_equal_tasks_give_no_interval_of_zero_width():
    one = estimate(tasks(3)[0])
    assert macro_mean([one, one]).tasks_like_these.low is None


@given(st.integers(0, 1000))
def test_micro_weighs_tasks_by_their_items_and_macro_does_not(seed):
    parts = tasks(seed)
    found = micro_mean([estimate(part) for part in parts])
    n = sum(map(len, parts))
    assert found.estimate == pytest.approx(np.concatenate(parts).mean())
    assert found.standard_error == pytest.approx(np.sqrt(sum(part.var(ddof=1) * len(part) for part in parts)) / n)
    turned = micro_mean([estimate(-part) for part in parts[::-1]])
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_of_mmlu_gsm8k_and_humaneval_together_the_pooled_error_is_a_third_of_the_macro_one():
    sizes, accuracies = (14042, 1319, 164), (0.65, 0.5, 0.3)
    parts = [estimate(np.arange(n) < round(p * n)) for n, p in zip(sizes, accuracies, strict=True)]
    errors = np.sqrt([p * (1 - p) / n for n, p in zip(sizes, accuracies, strict=True)])
    macro, micro = macro_mean(parts).this_suite.standard_error, micro_mean(parts).standard_error
    assert macro == pytest.approx(np.sqrt((errors**2).sum()) / 3, rel=0.01)
    assert micro == pytest.approx(np.sqrt((np.multiply(sizes, errors) ** 2).sum()) / sum(sizes), rel=0.01)
    assert macro / micro == pytest.approx(3.3, abs=0.1)


def test_chance_is_zero_and_perfect_is_one_and_below_chance_stays_below_zero():
    rng = np.random.default_rng(4)
    one = estimate((rng.random(200) < 0.2).astype(float))
    found = chance_corrected(one, 0.25)
    assert found.estimate == pytest.approx((one.estimate - 0.25) / 0.75)
    assert found.estimate < 0
    assert (found.low - found.estimate) / (one.low - one.estimate) == pytest.approx(1 / 0.75)
    difference = chance_corrected(one, 0.25, difference=True)
    assert difference.estimate == pytest.approx(one.estimate / 0.75)
    assert difference.standard_error == pytest.approx(one.standard_error / 0.75)
    with pytest.raises(SpecError, match="chance"):
        chance_corrected(one, 1.0)


@pytest.mark.parametrize("clustered", [False, True])
def test_tasks_that_share_nothing_give_the_macro_mean(clustered):
    rng = np.random.default_rng(5)
    sizes = (20, 30)
    values = np.full((50, 2), np.nan)
    values[:20, 0], values[20:, 1] = rng.normal(size=20), rng.normal(1, 2, size=30)
    cluster = [f"s{i // 3}" if i < 20 else f"t{i // 2}" for i in range(50)] if clustered else None
    found = macro_of_shared_items(values, cluster=cluster)
    parts = []
    for k, begin in enumerate((0, 20)):
        inside = slice(begin, begin + sizes[k])
        parts.append(estimate(values[inside, k], cluster=cluster and cluster[inside]))
    expected = macro_mean(parts)
    assert found.this_suite.estimate == pytest.approx(expected.this_suite.estimate)
    assert found.this_suite.standard_error == pytest.approx(expected.this_suite.standard_error)
    assert found.tasks_like_these.high == pytest.approx(expected.tasks_like_these.high)
    if not clustered:  # with clusters of uneven size the degrees of one task are fewer
        assert found.this_suite.df == pytest.approx(expected.this_suite.df)


def test_tasks_that_share_all_items_are_one_paired_mean_of_their_items():
    values = np.random.default_rng(6).normal(size=(40, 3)) + np.random.default_rng(7).normal(size=(40, 1))
    found = macro_of_shared_items(values).this_suite
    expected = estimate(values.mean(axis=1))
    assert (found.low, found.high, found.df) == pytest.approx((expected.low, expected.high, 39))
    apart = macro_mean([estimate(values[:, k]) for k in range(3)]).this_suite
    assert apart.standard_error < 0.85 * found.standard_error  # as if independent: too narrow


def test_two_clusters_give_no_macro_interval():
    values = np.random.default_rng(8).normal(size=(10, 2))
    found = macro_of_shared_items(values, cluster=list("ababababab")).this_suite
    assert found.low is None
    assert "2 clusters are too few" in found.warnings[0]


def test_the_interquartile_mean_is_scipys_trimmed_mean_and_its_resamples_are_stratified():
    rng = np.random.default_rng(9)
    scores = [rng.normal(k, 1, size=12) for k in range(5)]
    found = interquartile_mean(scores, n_resamples=4000, seed=3)
    assert found.estimate == pytest.approx(scipy_stats.trim_mean(np.concatenate(scores), 0.25))
    twin = []
    for _ in range(4000):
        drawn = np.sort(np.concatenate([rng.choice(one, len(one)) for one in scores]))
        twin.append(drawn[15:-15].mean())
    assert found.low == pytest.approx(np.quantile(twin, 0.025), abs=4 * np.hypot(*[found.monte_carlo_error[0]] * 2))
    assert found.high == pytest.approx(np.quantile(twin, 0.975), abs=4 * np.hypot(*[found.monte_carlo_error[1]] * 2))
    assert found.resampling_seed == 3
    assert interquartile_mean(scores, n_resamples=4000, seed=3) == found


def test_the_interquartile_mean_of_tasks_ignores_the_extreme_tasks():
    rng = np.random.default_rng(10)
    scores = [rng.normal(mean, 0.1, size=30) for mean in (-100, 1, 2, 100)]
    found = interquartile_mean(scores, of="tasks", n_resamples=500)
    assert found.estimate == pytest.approx((scores[1].mean() + scores[2].mean()) / 2)
    assert found.standard_error == pytest.approx(0.1 / np.sqrt(60), rel=0.2)


def test_a_difference_of_interquartile_means_keeps_pairs_together_and_turns_its_sign():
    rng = np.random.default_rng(11)
    base = [rng.normal(k, 1, size=30) for k in range(4)]
    better = [one + 0.3 for one in base]
    found = interquartile_mean(better, base, n_resamples=500)
    assert found.estimate == pytest.approx(0.3)
    noisy = [one + rng.normal(0.3, 0.1, size=30) for one in base]
    there, back = interquartile_mean(noisy, base, n_resamples=500), interquartile_mean(base, noisy, n_resamples=500)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_the_interquartile_interval_of_enough_runs_covers():
    rng = np.random.default_rng(12)
    covered = 0
    for i in range(300):
        scores = [rng.normal(0, 1, size=20) for _ in range(6)]
        found = interquartile_mean(scores, n_resamples=300, seed=i)
        covered += found.low <= 0 <= found.high
    assert covered / 300 >= 0.95 - 0.045


def test_few_runs_and_equal_runs_are_said():
    assert "only 3 runs" in interquartile_mean([[0.1, 0.2, 0.3]] * 4, n_resamples=99).warnings[0]
    assert interquartile_mean([[0.5, 0.5]] * 4, n_resamples=99).low is None


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(InputError, match="no task"):
        macro_mean([])
    with pytest.raises(InputError, match="mixed"):
        micro_mean([estimate([0, 1, 1]), estimate([0, 1, 1], confidence_level=0.9)])
    with pytest.raises(InputError, match="task 1: row 0 is nan"):
        interquartile_mean([[1.0, 2.0], [float("nan")]])
    with pytest.raises(InputError, match="task 0 of the baseline"):
        interquartile_mean([[1.0, 2.0]], [[1.0]])
    with pytest.raises(SpecError, match="items"):
        interquartile_mean([[1.0, 2.0]], of="items")
    with pytest.raises(InputError, match="task 1: 1 units"):
        macro_of_shared_items([[1.0, 2.0], [2.0, np.nan]])
