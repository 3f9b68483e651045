"""Verbosity: the regression against statsmodels, planted effects, and style."""

from __future__ import annotations

import numpy as np
import statsmodels.api as sm
from scipy import special

from evalkit import tables
from evalkit.judges.length import fit_logistic, verbosity
from evalkit.judges.pairs import pairs_of
from evalkit.judges.style import looks, marks
from tests.judges.simulated import judge_table

REPETITIONS = 120
FEWEST = int(np.floor(REPETITIONS * (0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS))))


def of(**planted):
    return verbosity(pairs_of(judge_table(300, **planted))["judge"])


def test_the_fit_and_its_sandwich_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(400), rng.normal(size=(400, 2))])
    cluster = rng.integers(0, 80, size=400)
    y = rng.beta(2 * special.expit(X @ [0.3, 0.5, -0.4]) + 0.1, 1.0)
    beta, V, n = fit_logistic(X, y, cluster)
    theirs = sm.GLM(y, X, family=sm.families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    assert np.allclose(beta, theirs.params, atol=1e-6)
    # statsmodels multiplies by (N - 1) / (N - p), too.
    assert np.allclose(V, theirs.cov_params() * (400 - 3) / (400 - 1), rtol=1e-5)
    assert n == len(np.unique(cluster))


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
    found = [of(seed=s, quality=0.3, per_100=0.2, position=0.5, labels=1.0) for s in range(REPETITIONS)]

    def hits(pick, value):
        return sum(pick(one).low <= value <= pick(one).high for one in found)

    assert hits(lambda one: one.per_100_characters, effect) >= FEWEST
    assert hits(lambda one: one.prefers_longer, longer) >= FEWEST
    assert hits(lambda one: one.beyond_humans, beyond) >= FEWEST
    assert hits(lambda one: one.controlled[0].win_rate, even) >= FEWEST


def test_the_position_is_told_apart_from_the_length():
    found = of(seed=0, position=1.0, spread=0.0, per_100=0.1).controlled[0]
    assert found.position.low < 1.0 < found.position.high
    assert found.length.low > 0


def test_unknown_and_equal_lengths_are_counted():
    table = judge_table(100, seed=1)
    frame = table.to_pandas()
    frame.loc[frame.pair_id == "pair 3", "length_a"] = None
    frame.loc[frame.pair_id == "pair 4", "length_b"] = frame.loc[frame.pair_id == "pair 4", "length_a"]
    import pyarrow as pa

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
