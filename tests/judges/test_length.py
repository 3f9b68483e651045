"""Verbosity: the regression against statsmodels, planted effects, and style."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
from scipy import optimize, special, stats

from evalkit import tables
from evalkit.judges.length import difficulties, fit_logistic, length_controlled, verbosity
from evalkit.judges.pairs import pairs_of
from evalkit.judges.style import looks, marks
from tests.judges.simulated import judge_table, many

REPETITIONS = 120
FEWEST = int(np.floor(REPETITIONS * (0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS))))


def of(**planted):
    return verbosity(pairs_of(judge_table(300, **planted))["judge"])


def test_the_fit_and_its_sandwich_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(400), rng.normal(size=(400, 2))])
    cluster = rng.integers(0, 80, size=400)
    y = rng.beta(2 * special.expit(X @ [0.3, 0.5, -0.4]) + 0.1, 1.0)
    found = fit_logistic(X, y, cluster)
    theirs = sm.GLM(y, X, family=sm.families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    assert np.allclose(found.beta, theirs.params, atol=1e-6)
    # statsmodels multiplies by (N - 1) / (N - p), too.
    assert np.allclose(found.covariance, theirs.cov_params() * (400 - 3) / (400 - 1), rtol=1e-5)
    assert found.n_units == len(np.unique(cluster))


def test_separated_outcomes_and_equal_columns_have_no_fit():
    x = np.arange(20.0) - 9.5
    assert fit_logistic(np.column_stack([np.ones(20), x]), (x > 0).astype(float), np.arange(20)) is None
    assert fit_logistic(np.ones((20, 2)), np.tile([0.0, 1.0], 10), np.arange(20)) is None


def test_a_planted_preference_for_length_is_within_its_interval_in_95_percent_of_runs():
    rng = np.random.default_rng(1)
    gap = np.subtract(*rng.integers(200, 1200, size=(2, 200_000))) / 100
    merit = 0.3 + rng.normal(size=len(gap))
    p = special.expit(merit + 0.2 * gap)
    effect, longer = float((p * (1 - p)).mean() * 0.2), float(np.where(gap > 0, p, 1 - p)[gap != 0].mean())
    even = float(special.expit(merit).mean())
    human = special.expit(merit)
    beyond = float((np.where(gap > 0, p, 1 - p) - np.where(gap > 0, human, 1 - human))[gap != 0].mean())
    drawn = many(300, REPETITIONS, quality=0.3, per_100=0.2, position=0.5, labels=1.0)
    found = [verbosity(one) for one in drawn]

    def hits(pick, value):
        return sum(pick(one).low <= value <= pick(one).high for one in found)

    assert hits(lambda one: one.per_100_characters, effect) >= FEWEST
    assert hits(lambda one: one.prefers_longer, longer) >= FEWEST
    assert hits(lambda one: one.beyond_humans, beyond) >= FEWEST
    assert hits(lambda one: one.controlled[0].win_rate, even) >= FEWEST


def leaderboard(n_questions=40, n_models=8, *, seed=0, phi=1.0, spread=1.5, theta=None):
    """Models against one baseline on the same questions, some of them easier to win: the verdicts, and the true rates.

    Longer by 300 characters on average, all models gain by it.
    """
    rng = np.random.default_rng(seed)
    gamma = spread * rng.normal(size=n_questions)
    theta = np.linspace(-1.5, 1.5, n_models) if theta is None else np.array(theta)
    rows = []
    for m in range(n_models):
        gap = np.round(rng.normal(300, 400, size=n_questions))
        won = rng.random(n_questions) < special.expit(theta[m] + gamma + phi * np.tanh(gap / gap.std()))
        rows += [{"judge": "j", "pair_id": f"{m} {x}", "doc_hash": f"{x}", "order": None, "repeat": 0,
                  "model_a": "base", "model_b": f"m{m}", "winner": "ab"[int(won[x])], "length_a": 1000,
                  "length_b": 1000 + int(gap[x])} for x in range(n_questions)]  # fmt: skip
    # Over the questions that there could be.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    rates = special.expit(theta[:, None] + spread * nodes) @ weights / weights.sum()
    return pairs_of(tables.from_rows(tables.VERDICTS, rows))["j"], rates


def test_difficulties_are_the_joint_maximum_without_the_model_itself():
    pairs, _ = leaderboard()
    length = np.empty(len(pairs))
    model = np.unique(pairs.model_b.astype(str), return_inverse=True)[1]
    gap = pairs.lengths[:, 1] - pairs.lengths[:, 0]
    for m in range(8):
        length[model == m] = np.tanh(gap[model == m] / gap[model == m].std())

    def logit(z):
        return z[model] + z[8 + model] * length + z[16 + pairs.cluster]

    def loss(z):
        eta = logit(z)
        return np.sum(np.logaddexp(0, eta) - pairs.win * eta) + 0.005 * z[:16] @ z[:16] + 0.5 * z[16:] @ z[16:]

    best = optimize.minimize(loss, np.zeros(16 + 40), options={"gtol": 1e-8}).x
    p = special.expit(logit(best))
    w = p * (1 - p)
    others = np.bincount(pairs.cluster, w)[pairs.cluster] - w + 1
    assert difficulties(pairs) == pytest.approx(best[16 + pairs.cluster] - (pairs.win - p) / others, abs=0.01)


def test_few_models_have_no_difficulties():
    pairs, _ = leaderboard(n_models=5)
    assert np.isnan(difficulties(pairs)).all()
    assert all(one.difficulty is None for one in verbosity(pairs).controlled)


def test_the_rate_with_difficulties_and_its_error_are_those_of_statsmodels():
    pairs, _ = leaderboard(200)
    gamma = difficulties(pairs)
    mine = pairs.model_b == "m2"
    one, gamma = pairs.take(mine), gamma[mine]
    found = length_controlled(one, gamma)
    gap = one.lengths[:, 1] - one.lengths[:, 0]
    gamma = (gamma - gamma.mean()) / gamma.std()
    X = np.column_stack([np.ones(len(one)), np.tanh(gap / gap.std()), gamma])
    fit = sm.GLM(one.win, X, family=sm.families.Binomial()).fit(cov_type="HC0")

    def rate(beta, gamma):
        return special.expit(beta[0] + beta[2] * gamma).mean()

    # Without a question, its verdict and its difficulty are both gone.
    left = []
    for out in range(len(one)):
        kept = np.arange(len(one)) != out
        again = sm.GLM(one.win[kept], X[kept], family=sm.families.Binomial()).fit(start_params=fit.params)
        left.append(rate(again.params, gamma[kept]))
    jackknife = np.sqrt((len(left) - 1) * np.var(left))
    assert found.win_rate.estimate == pytest.approx(rate(fit.params, gamma), abs=1e-7)
    assert found.win_rate.standard_error == pytest.approx(jackknife, rel=0.05)
    assert found.difficulty.estimate == pytest.approx(fit.params[2], abs=1e-6)


def test_rates_at_equal_length_are_within_their_intervals_where_questions_differ():
    hits, errors = [], []
    for seed in range(25):
        pairs, rates = leaderboard(300, seed=seed)
        for one, rate in zip(verbosity(pairs).controlled, rates, strict=True):
            hits.append(one.win_rate.low <= rate <= one.win_rate.high)
            errors.append(one.win_rate.estimate - rate)
    assert len(hits) == 200
    assert sum(hits) >= stats.binom.ppf(0.001, 200, 0.95), sum(hits)
    assert abs(np.mean(errors)) < 0.01


def test_the_questions_are_a_sample_too_however_much_their_difficulty_matters():
    # Without their part, the interval would cover 82% here.
    hits, psi = 0, 3.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    truth = special.expit(0.5 + psi * nodes) @ weights / weights.sum()
    pairs, _ = leaderboard(150 * 300, 1, phi=0.5, spread=psi, theta=[0.5])
    # The difficulties that `leaderboard` drew.
    gamma = np.random.default_rng(0).normal(size=len(pairs))
    for some in np.split(np.arange(len(pairs)), 150):
        found = length_controlled(pairs.take(some), gamma[some]).win_rate
        hits += found.low <= truth <= found.high
    assert hits >= stats.binom.ppf(0.001, 150, 0.95), hits


@pytest.mark.parametrize("position", [0.0, 4.0])
def test_the_rate_at_equal_length_is_of_both_orders(position):
    errors, hits = [], 0
    truth = (special.expit(0.5 + position / 2) + special.expit(0.5 - position / 2)) / 2
    for pairs in many(300, 60, quality=0.5, spread=0.0, position=position, per_100=0.1, repeats=0):
        found = length_controlled(pairs).win_rate
        errors.append(found.estimate - truth)
        hits += found.low <= truth <= found.high
    assert hits >= stats.binom.ppf(0.001, 60, 0.95), hits
    # At position 4, sigma(theta) would be 8 points off.
    assert abs(np.mean(errors)) < 0.01


def test_why_length_has_no_effect_that_can_be_told():
    parts = [judge_table(60, seed=n, models=models, repeats=0) for n, models in enumerate([("a", "b"), ("c", "d")])]
    frames = [one.to_pandas().assign(pair_id=lambda f, n=n: f"{n} " + f.pair_id) for n, one in enumerate(parts)]
    both = pa.concat_tables(pa.Table.from_pandas(f, schema=parts[0].schema, preserve_index=False) for f in frames)
    found = verbosity(pairs_of(both)["judge"])
    assert found.per_100_characters is None and any("never met" in one for one in found.warnings)
    assert verbosity(pairs_of(judge_table(20, failures=1.0))["judge"]).warnings == ("no pair has a verdict",)
    few = verbosity(pairs_of(judge_table(20))["judge"])
    assert few.warnings == ("no win rate at equal length for 1 of 1 pairs of models: fewer than 30 questions",)


def test_the_same_text_twice_is_not_in_the_rate_at_equal_length():
    table = judge_table(100, seed=1)
    frame = table.to_pandas()
    frame["identical"] = frame.pair_id.isin([f"pair {n}" for n in range(20)])
    pairs = pairs_of(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))["judge"]
    assert verbosity(pairs).controlled[0].win_rate.n_items == 80


def test_the_position_is_told_apart_from_the_length():
    found = of(seed=0, position=1.0, spread=0.0, per_100=0.1).controlled[0]
    assert found.position.low < 1.0 < found.position.high
    assert found.length.low > 0


def test_unknown_and_equal_lengths_are_counted():
    table = judge_table(100, seed=1)
    frame = table.to_pandas()
    frame.loc[frame.pair_id == "pair 3", "length_a"] = None
    frame.loc[frame.pair_id == "pair 4", "length_b"] = frame.loc[frame.pair_id == "pair 4", "length_a"]
    found = verbosity(pairs_of(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))["judge"])
    assert found.n_known == 98
    assert found.warnings == ("1 pairs without a verdict or without lengths are left out",)
    bare = frame.assign(length_a=None)
    none = verbosity(pairs_of(pa.Table.from_pandas(bare, schema=table.schema, preserve_index=False))["judge"])
    assert none.prefers_longer is None and none.n_known == 0


def test_marks_of_style_are_counted_outside_of_code():
    text = "# Head\n\n- one\n* two\n1. three\n**bold** and __more__\n```\n- code\n# code\n```\nA 2. b"
    assert marks(text) == {"lists": 3, "headings": 1, "bold": 2}
    assert looks("a", "a")["identical"] and not looks("a", "b")["identical"]


def test_a_love_of_lists_shows_among_the_styles():
    rng = np.random.default_rng(0)
    rows = []
    for n in range(400):
        lists, lengths = rng.integers(0, 5, size=2), rng.integers(100, 900, size=2)
        lead = (lists[1] - lists[0]) / max(lists.sum(), 1)
        for order in ("ab", "ba"):
            won = "b" if rng.random() < special.expit(1.5 * lead) else "a"
            rows.append({"judge": "j", "pair_id": str(n), "order": order, "repeat": 0, "model_a": "x", "model_b": "y",
                         "winner": won, "length_a": lengths[0], "length_b": lengths[1], "lists_a": lists[0],
                         "lists_b": lists[1], "headings_a": 0, "headings_b": 0, "bold_a": 0, "bold_b": 0})  # fmt: skip
    styles = verbosity(pairs_of(tables.from_rows(tables.VERDICTS, rows))["j"]).controlled[0].styles
    assert len(styles) == 1, "marks that nobody uses are no covariates"
    assert styles[0].low < 1.5 < styles[0].high and styles[0].low > 0
