"""Ratings from pairwise comparisons, against published numbers, statsmodels, plain optimisation and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from scipy.stats import studentized_range

from evalkit.errors import InputError, SpecError
from evalkit.stats.ratings import Ratings, bradley_terry, critical_value

TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
WINS = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]


def battles(table, names):
    """Comparisons from a table of wins of rows over columns."""
    pairs = [(i, j) for i, j in itertools.product(range(len(names)), repeat=2) for _ in range(table[i][j])]
    return [names[i] for i, _ in pairs], [names[j] for _, j in pairs], np.ones(len(pairs))


def simulated(seed, strengths, n_prompts, *, tie=None, per_prompt=2, noise=0.0, length=0.0):
    """Comparisons of random pairs; those of one prompt share a random preference for either side's model."""
    rng = np.random.default_rng(seed)
    k = len(strengths)
    first, second, wins, prompt, x = [], [], [], [], []
    for p in range(n_prompts):
        own = rng.normal(0, noise, size=k)
        for _ in range(per_prompt):
            i, j = rng.choice(k, 2, replace=False)
            longer = rng.normal()
            eta = strengths[i] - strengths[j] + own[i] - own[j] + length * longer
            weights = np.exp([eta / 2, -eta / 2, -np.inf if tie is None else tie])
            wins.append(rng.choice([1.0, 0.0, 0.5], p=weights / weights.sum()))
            first.append(f"m{i}")
            second.append(f"m{j}")
            prompt.append(p)
            x.append(longer)
    return first, second, np.array(wins), prompt, np.array(x)


def by_name(found):
    return dict(zip(found.names, found.strengths, strict=True))


def test_the_american_league_of_1987_has_the_published_strengths():
    # Agresti, Categorical Data Analysis, 2nd ed., section 10.6.1.
    found = by_name(bradley_terry(*battles(WINS, TEAMS)))
    published = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0]
    assert [found[team] - found["Baltimore"] for team in TEAMS] == pytest.approx(published, abs=0.005)
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 30))
@settings(max_examples=30)
def test_of_two_models_it_is_the_logit_of_the_win_rate(wins, losses, ties):
    n = wins + losses + ties
    if n < 2 or (ties == n):
        return
    y = np.array([1.0] * wins + [0.0] * losses + [0.5] * ties)
    found = bradley_terry(["a"] * n, ["b"] * n, y).difference("a", "b")
    assert found.estimate == pytest.approx(special.logit(y.mean()), abs=1e-8)
    slope = y.mean() * (1 - y.mean())
    assert found.standard_error == pytest.approx(y.std() / np.sqrt(n - 1) / slope)


def design(first, second):
    names = sorted({*first, *second})
    D = np.zeros((len(first), len(names)))
    for row, (i, j) in enumerate(zip(first, second, strict=True)):
        D[row, names.index(i)], D[row, names.index(j)] = 1, -1
    return names, D


@pytest.mark.parametrize("clustered", [False, True])
def test_strengths_and_sandwich_are_those_of_statsmodels_logistic_regression(clustered):
    first, second, wins, prompt, x = simulated(1, [0, 0.5, 1.0, -0.5], 150, noise=0.5, length=0.4)
    found = bradley_terry(first, second, wins, covariates=x, cluster=prompt if clustered else None)
    names, D = design(first, second)
    X = np.column_stack([D[:, 1:], x])  # strengths against the first model
    groups = prompt if clustered else np.arange(len(wins))
    theirs = sm.GLM(wins, X, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups), "use_correction": False}, tol=1e-12
    )
    G = len(set(groups))
    for m, name in enumerate(names[1:]):
        ours = found.difference(name, names[0])
        assert ours.estimate == pytest.approx(theirs.params[m], abs=1e-7)
        assert ours.standard_error == pytest.approx(theirs.bse[m] * np.sqrt(G / (G - 1)), rel=1e-5)
    assert found.coefficients[0].estimate == pytest.approx(theirs.params[-1], abs=1e-7)
    assert found.coefficients[0].standard_error == pytest.approx(theirs.bse[-1] * np.sqrt(G / (G - 1)), rel=1e-5)


def test_davidsons_model_is_the_maximum_that_a_plain_optimiser_finds():
    first, second, wins, prompt, x = simulated(2, [0, 0.4, 1.0], 150, tie=-0.3, length=0.5)
    found = bradley_terry(first, second, wins, ties="davidson", covariates=x, cluster=prompt)
    names, D = design(first, second)

    def loss(beta):
        eta = D[:, 1:] @ beta[:2] + beta[2] * x
        s = special.logsumexp([eta / 2, -eta / 2, np.full(len(eta), beta[3])], axis=0)
        return -np.sum(np.where(wins == 0.5, beta[3], (wins - 0.5) * eta) - s)

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    for m, name in enumerate(names[1:]):
        assert found.difference(name, names[0]).estimate == pytest.approx(best[m], abs=1e-5)
    assert found.coefficients[0].estimate == pytest.approx(best[2], abs=1e-5)
    assert found.tie == pytest.approx(best[3], abs=1e-5)


def test_davidsons_errors_are_the_spread_of_repetitions_and_planted_values_are_recovered():
    truth = np.array([-0.5, 0.0, 0.5])
    fits = [
        bradley_terry(f, s, w, ties="davidson", covariates=x, cluster=p, n_draws=100)
        for f, s, w, p, x in (simulated(seed, truth, 150, tie=0.2, length=0.6) for seed in range(120))
    ]
    gaps = [fit.difference("m2", "m0") for fit in fits]
    assert np.mean([gap.estimate for gap in gaps]) == pytest.approx(1.0, abs=0.06)
    assert np.mean([gap.standard_error for gap in gaps]) == pytest.approx(
        np.std([gap.estimate for gap in gaps]), rel=0.25
    )
    assert np.mean([fit.coefficients[0].estimate for fit in fits]) == pytest.approx(0.6, abs=0.05)
    assert np.mean([fit.tie for fit in fits]) == pytest.approx(0.2, abs=0.05)
    covered = np.mean([gap.low <= 1.0 <= gap.high for gap in gaps])
    assert covered >= 0.95 - 3 * 0.02


def test_without_ties_davidsons_model_is_the_plain_one():
    table = battles(WINS, TEAMS)
    plain, davidson = bradley_terry(*table), bradley_terry(*table, ties="davidson")
    assert davidson.strengths == plain.strengths
    assert davidson.tie is None


def test_both_orders_of_one_prompt_are_one_piece_of_evidence():
    first, second, wins, prompt, _ = simulated(3, [0, 0.5, 1.0], 100, per_prompt=1)
    # The same judgement twice, the second time in the other order.
    again = ([*first, *second], [*second, *first], np.concatenate([wins, 1 - wins]))
    once = bradley_terry(first, second, wins, cluster=prompt)
    twice = bradley_terry(*again, cluster=[*prompt, *prompt])
    assert twice.difference("m2", "m0").standard_error == pytest.approx(once.difference("m2", "m0").standard_error)
    naive = bradley_terry(*again).difference("m2", "m0").standard_error
    assert naive == pytest.approx(once.difference("m2", "m0").standard_error / np.sqrt(2), rel=0.01)


def test_a_judge_that_likes_length_is_corrected_by_the_covariate():
    rng = np.random.default_rng(4)
    n = 4000
    longer = rng.normal(1.0, 1.0, size=n)  # the second model writes longer answers, and is no better
    wins = (rng.random(n) < special.expit(-0.8 * longer)).astype(float)
    first, second = ["short"] * n, ["long"] * n
    plain = bradley_terry(first, second, wins).difference("long", "short")
    fair = bradley_terry(first, second, wins, covariates=-longer, covariate_names=["length"])
    assert plain.low > 0.5
    assert fair.difference("long", "short").low < 0 < fair.difference("long", "short").high
    assert fair.coefficients[0].low < 0.8 < fair.coefficients[0].high
    assert "length" in fair.coefficients[0].quantity


def test_groups_that_never_met_are_refused_by_name():
    with pytest.raises(InputError, match=r"2 groups that never met: a, b \| c, d, e"):
        bradley_terry(list("abcde"), list("badec"), [1, 0, 1, 1, 0])


def test_a_model_that_won_all_gets_a_penalised_fit_and_a_warning_that_names_it():
    table = [[0, 5, 5], [0, 0, 3], [0, 2, 0]]
    found = bradley_terry(*battles(table, ["best", "b", "c"]))
    assert "no other model has won against best" in " ".join(found.warnings)
    assert "Firth" in found.method
    names, D = design(*battles(table, ["best", "b", "c"])[:2])

    def penalised(beta):
        eta = D[:, 1:] @ beta
        p = special.expit(eta)
        H = D[:, 1:].T @ (D[:, 1:] * (p * (1 - p))[:, None])
        return -(special.log_expit(eta).sum() + 0.5 * np.linalg.slogdet(H)[1])

    best = optimize.minimize(penalised, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    for m, name in enumerate(names[1:]):
        assert found.difference(name, names[0]).estimate == pytest.approx(best[m], abs=1e-5)


def test_the_penalty_for_two_models_is_half_a_win_for_each():
    found = bradley_terry(["a"] * 10, ["b"] * 10, np.ones(10)).difference("a", "b")
    assert found.estimate == pytest.approx(np.log(10.5 / 0.5), abs=1e-6)
    assert found.low < found.estimate < found.high


def test_a_covariate_that_separates_is_penalised_too():
    rng = np.random.default_rng(5)
    x = rng.normal(size=60)
    found = bradley_terry(["a", "b"] * 30, ["b", "a"] * 30, (x > 0).astype(float), covariates=x)
    assert "a covariate separates" in " ".join(found.warnings)
    assert 0 < found.coefficients[0].estimate < 100


def test_davidsons_model_with_an_unbeaten_model_says_what_to_do():
    with pytest.raises(InputError, match="ties='half'"):
        bradley_terry(list("aaabc"), list("bccca"), [1, 1, 1, 0.5, 0], ties="davidson")


def test_the_order_of_comparisons_and_of_the_two_models_changes_nothing():
    first, second, wins, prompt, x = simulated(6, [0, 0.4, 1.0], 60, tie=0.0)
    for ties in ("half", "davidson"):
        found = bradley_terry(first, second, wins, covariates=x, cluster=prompt, ties=ties)
        order = np.random.default_rng(0).permutation(len(wins))
        mixed = bradley_terry(
            [second[i] for i in order],
            [first[i] for i in order],
            1 - wins[order],
            covariates=-x[order],
            cluster=[prompt[i] for i in order],
            ties=ties,
        )
        for name in found.names:
            assert by_name(mixed)[name] == pytest.approx(by_name(found)[name], abs=1e-8)
        assert (mixed.names, mixed.rank_low, mixed.rank_high) == (found.names, found.rank_low, found.rank_high)
        assert mixed.difference("m2", "m0").standard_error == pytest.approx(found.difference("m2", "m0").standard_error)
        there, back = found.difference("m1", "m2"), found.difference("m2", "m1")
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_a_difference_is_not_judged_by_two_marginal_intervals():
    # With three models, those in front and behind are correlated through the sum of zero.
    found = bradley_terry(*simulated(7, [0, 0.3, 0.6], 300)[:3])
    V = np.array(found.covariance)
    gap = found.difference("m0", "m2")
    i, j = found.names.index("m0"), found.names.index("m2")
    assert gap.standard_error**2 == pytest.approx(V[i, i] + V[j, j] - 2 * V[i, j])
    chance = found.win_probability("m0", "m2")
    assert special.logit([chance.low, chance.estimate, chance.high]) == pytest.approx([gap.low, gap.estimate, gap.high])


def test_rank_sets_hold_all_true_ranks_at_once():
    truth = np.array([0.0, 0.0, 0.6, 1.2])  # two equal models share the ranks 3 and 4
    held, narrow = 0, 0
    for seed in range(150):
        first, second, wins, prompt, _ = simulated(seed, truth, 100, per_prompt=3)
        found = bradley_terry(first, second, wins, cluster=prompt, n_draws=2000)
        sets = {name: (a, b) for name, a, b in zip(found.names, found.rank_low, found.rank_high, strict=True)}
        held += all(
            sets[name][0] <= low and sets[name][1] >= high
            for name, low, high in (("m3", 1, 1), ("m2", 2, 2), ("m0", 3, 4), ("m1", 3, 4))
        )
        narrow += sets["m3"] == (1, 1)
    assert held / 150 >= 0.95 - 3 * 0.018
    assert narrow > 30


def test_the_critical_value_of_many_equal_models_is_that_of_the_studentised_range():
    # Every pair equally often and equally strong: the differences are those of independent means (Tukey).
    names = [f"m{i}" for i in range(6)]
    table = [[0 if i == j else 200 for j in range(6)] for i in range(6)]
    found = bradley_terry(*battles(table, names), n_draws=50_000)
    assert set(found.rank_low) == {1}
    critical = critical_value(np.array(found.covariance), found.n, 0.95, 50_000, 0)
    assert critical == pytest.approx(studentized_range.ppf(0.95, 6, np.inf) / np.sqrt(2), abs=0.03)


def test_ratings_go_through_json_and_print_best_first():
    found = bradley_terry(*battles(WINS, TEAMS))
    assert Ratings.from_json(found.to_json()) == found
    assert str(found).startswith("Milwaukee")
    assert found.to_frame().model.iloc[0] == "Milwaukee"
    assert "ranges shown at once" in found.explain()
    assert found == bradley_terry(*battles(WINS, TEAMS))
    assert sum(found.n_per_model) == 2 * found.n_comparisons


def test_bad_comparisons_are_refused_with_their_row():
    with pytest.raises(InputError, match="comparison 1: a meets itself"):
        bradley_terry(["a", "a"], ["b", "a"], [1, 0])
    with pytest.raises(InputError, match=r"comparison 0: outcome 0.7"):
        bradley_terry(["a"], ["b"], [0.7])
    with pytest.raises(InputError, match="2, 1 and 2"):
        bradley_terry(["a", "b"], ["b"], [1, 0])
    with pytest.raises(InputError, match="all comparisons are ties"):
        bradley_terry(["a"] * 3, ["b"] * 3, [0.5] * 3)
    with pytest.raises(InputError, match="cannot be told"):
        bradley_terry(["a", "a"] * 5, ["b", "b"] * 5, [1, 0] * 5, covariates=np.ones(10))
    with pytest.raises(InputError, match="2 clusters are too few"):
        bradley_terry(["a", "a"], ["b", "b"], [1, 0], cluster=["p", "q"])
    with pytest.raises(SpecError, match="ties"):
        bradley_terry(["a"], ["b"], [1], ties="rao-kupper")
