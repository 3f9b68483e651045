"""What overturns a verdict: leaks that were found, leaks that were not, dropped items; against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from evalkit.reports.comparison import compare
from evalkit.reports.sensitivity import EXPLAINED, HOLDS, NO_FLAGGED, contamination, tipping_point, worst_cases
from evalkit.stats.paired import paired_difference
from tests.reports.runs import write_audit, write_run


def planted(tmp_path, *, n_leaked=60, n=300, gain=0.9, seed=0):
    """B is as good as A, but right on `gain` of the first items, which the audit flags."""
    rng = np.random.default_rng(seed)
    a = (rng.random(n) < 0.4).astype(float)
    b = np.where(rng.random(n) < 0.9, a, 1 - a)
    b[:n_leaked] = rng.random(n_leaked) < gain
    runs = [
        write_run(tmp_path / name, {("t", f"{i}"): float(of[i]) for i in range(n)}, name=name)
        for name, of in (("base", a), ("leaked", b))
    ]
    audit = write_audit(tmp_path / "audit", {f"{i}": "dirty" if i < n_leaked else "clean" for i in range(n)})
    return a, b, compare(*runs, audit=audit)


def test_a_gain_on_flagged_items_only_is_explained_by_contamination(tmp_path):
    a, b, comparison = planted(tmp_path)
    found = contamination(comparison)
    assert comparison.overall["all"].verdict == "better"
    assert comparison.overall["clean"].verdict == "inconclusive"
    assert found.finding == EXPLAINED
    d = b - a
    assert found.interaction.estimate == pytest.approx(d[:60].mean() - d[60:].mean())
    by_hand = np.sqrt(d[:60].var(ddof=1) / 60 + d[60:].var(ddof=1) / 240)
    assert found.interaction.standard_error == pytest.approx(by_hand, rel=0.02)
    assert found.interaction.low > 0


def test_a_gain_everywhere_holds_and_without_flagged_items_there_is_nothing_to_say(tmp_path):
    n = 200
    a = write_run(tmp_path / "a", {("t", f"{i}"): float(i % 4 == 0) for i in range(n)})
    b = write_run(tmp_path / "b", {("t", f"{i}"): float(i % 2 == 0) for i in range(n)})
    audit = write_audit(tmp_path / "audit", {f"{i}": "dirty" if i < 60 else "clean" for i in range(n)})
    assert contamination(compare(a, b, audit=audit)).finding == HOLDS
    clean = write_audit(tmp_path / "clean", {f"{i}": "clean" for i in range(n)})
    assert contamination(compare(a, b, audit=clean)).finding == NO_FLAGGED
    assert contamination(compare(a, b)) is None


def test_the_tipping_point_is_the_smallest_number_of_wins_whose_loss_takes_the_verdict_away(tmp_path):
    n, wins, losses = 120, 25, 5
    a = [0.0] * wins + [1.0] * losses + [1.0] * (n - wins - losses)
    b = [1.0] * wins + [0.0] * losses + [1.0] * (n - wins - losses)
    runs = [write_run(tmp_path / k, {("t", f"{i}"): v for i, v in enumerate(of)}) for k, of in (("a", a), ("b", b))]
    found = tipping_point(compare(*runs))
    by_hand = next(k for k in range(wins + 1) if paired_difference(a[k:], b[k:], method="auto").low <= 0)
    assert (found.n_leaked, found.n_favourable, found.verdict) == (by_hand, wins, "better")
    turned = tipping_point(compare(*reversed(runs)))
    assert (turned.n_leaked, turned.verdict) == (by_hand, "worse")


def test_the_worst_case_gives_dropped_items_the_scores_that_hurt_most(tmp_path):
    """A lacks item 8 (B has 1), B lacks items 9 and 10 (A has 1 and 0), 11 has no score in either."""
    scores_a = {0: 1, 1: 0, 2: 1, 3: 1, 9: 1, 10: 0, 11: None}
    scores_b = {0: 1, 1: 1, 2: 0, 3: 1, 8: 1, 11: None}
    runs = [
        write_run(tmp_path / name, {("t", f"{i}"): None if v is None else float(v) for i, v in of.items()})
        for name, of in (("a", scores_a), ("b", scores_b))
    ]
    [found] = worst_cases(compare(*runs))
    assert (found.n_items, found.n_missing) == (4, 4)
    choices = [
        sum([0, 1, -1, 0, 1 - x, y - 1, z - 0, u - v]) / 8
        for x in (0, 1) for y in (0, 1) for z in (0, 1) for u in (0, 1) for v in (0, 1)
    ]  # fmt: skip
    assert (found.low, found.high) == pytest.approx((min(choices), max(choices)))


def test_nothing_dropped_is_no_case(tmp_path):
    run = write_run(tmp_path / "a", {("t", f"{i}"): float(i % 2) for i in range(10)})
    assert worst_cases(compare(run, run)) == []
