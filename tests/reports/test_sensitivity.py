"""What overturns a verdict: leaks that were found, leaks that were not, dropped items; against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from evalkit.reports.claims import verdict_of
from evalkit.reports.comparison import compare
from evalkit.reports.sensitivity import (
    EXPLAINED,
    HOLDS,
    LOSS_EXPLAINED,
    NO_FLAGGED,
    NOT_COMPARABLE,
    PARTLY,
    contamination,
    tipping_point,
    worst_cases,
)
from evalkit.stats.macro import macro_of_shared_items
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


def graded(tmp_path, *parts, n_audited=None):
    """B less A is normal with each (size, mean) of `parts` and SD 0.36; the last is clean, the others are flagged."""
    rng = np.random.default_rng(1)
    means = np.concatenate([np.full(size, mean) for size, mean in parts])
    noise = np.concatenate([one - one.mean() for one in (rng.normal(0, 0.36, size) for size, _ in parts)])
    a = rng.random(len(means))
    values = [{("t", f"{i}"): float(one) for i, one in enumerate(of)} for of in (a, a + means + noise)]
    runs = [write_run(tmp_path / name, of, name=name) for name, of in zip("ab", values, strict=True)]
    n_leaked = len(means) - parts[-1][0]
    labels = {f"{i}": "dirty" if i < n_leaked else "clean" for i in range(n_audited or len(means))}
    return runs, write_audit(tmp_path / "audit", labels)


def test_a_gain_of_which_much_is_left_on_clean_items_is_explained_in_part_only(tmp_path):
    """On all items +9.0 points, on the 160 clean ones +4.5 with an interval that holds zero, on 40 flagged ones +27."""
    runs, audit = graded(tmp_path, (40, 0.27), (160, 0.045))
    comparison = compare(*runs, audit=audit)
    assert comparison.overall["all"].verdict == "better"
    assert comparison.overall["clean"].verdict == "inconclusive"
    found = contamination(comparison)
    assert found.finding == PARTLY
    assert (found.whole, found.left) == pytest.approx((0.09, 0.045))
    assert "4.5 of its 9.0 points come from flagged items" in verdict_of(comparison)[1]


def test_a_loss_is_called_a_loss(tmp_path):
    runs, audit = graded(tmp_path, (60, 0.4), (160, 0.0))
    comparison = compare(*reversed(runs), audit=audit)
    assert contamination(comparison).finding == LOSS_EXPLAINED
    assert verdict_of(comparison)[1].startswith("The loss is explained by contamination")


def test_a_verdict_that_goes_with_the_items_that_were_not_audited_is_no_finding_about_leaks(tmp_path):
    runs, _ = graded(tmp_path, (20, 0.2), (200, 0.0), (200, 0.4))
    audit = write_audit(tmp_path / "part", {f"{i}": "dirty" if i < 20 else "clean" for i in range(220)})
    comparison = compare(*runs, audit=audit)
    assert comparison.overall["all"].verdict == "better"
    assert comparison.overall["clean"].verdict == "inconclusive"
    assert contamination(comparison).finding == NOT_COMPARABLE


def test_a_verdict_that_goes_with_tasks_that_have_no_clean_item_is_no_finding_about_leaks(tmp_path):
    rng = np.random.default_rng(2)
    first = {(task, f"{task}{i}"): float(rng.random() < 0.3) for task in "tu" for i in range(150)}
    second = {(task, i): float(rng.random() < (0.9 if task == "u" else 0.3)) for task, i in first}
    runs = [write_run(tmp_path / name, of, name=name) for name, of in (("a", first), ("b", second))]
    labels = {i: "dirty" if task == "u" or int(i[1:]) < 30 else "clean" for task, i in first}
    comparison = compare(*runs, audit=write_audit(tmp_path / "audit", labels))
    assert comparison.overall["all"].verdict == "better"
    assert contamination(comparison).finding == NOT_COMPARABLE


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


def test_the_first_number_that_takes_the_verdict_away_is_found_also_where_more_would_give_it_back(tmp_path):
    """Without the six large gains the mean is smaller, but so is its error: the interval leaves out zero again."""
    d = np.concatenate([np.ones(6), np.linspace(0.003, 0.001, 194)])
    a = [0.0] * len(d)
    runs = [
        write_run(tmp_path / k, {("t", f"{i}"): float(v) for i, v in enumerate(of)}) for k, of in (("a", a), ("b", d))
    ]
    clear = [paired_difference(a[k:], d[k:], method="auto").low > 0 for k in range(190)]
    first = clear.index(False)
    assert 0 < first < 6
    assert any(clear[first:])
    assert tipping_point(compare(*runs)).n_leaked == first


def test_leaks_of_tasks_that_share_items_are_counted_by_the_verdict_s_own_interval(tmp_path):
    """Two tasks with the same items and the same scores: as one task twice, not as twice the evidence."""
    rng = np.random.default_rng(3)
    a = (rng.random(100) < 0.4).astype(float)
    b = np.where(rng.random(100) < 0.3, 1.0, a)
    values = [{(task, f"{i}"): float(v) for task in "tu" for i, v in enumerate(of)} for of in (a, b)]
    runs = [write_run(tmp_path / name, of, name=name) for name, of in zip("ab", values, strict=True)]
    comparison = compare(*runs)
    found = tipping_point(comparison)
    order = np.argsort(a - b, kind="stable")

    def clear(k):
        """Leaks alternate between the tasks, whose tables begin with the items that speak most for B."""
        d = np.column_stack([(b - a)[order]] * 2)
        d[: found.n_favourable // 2][: min(k, found.n_favourable // 2), 0] = np.nan
        d[: max(k - found.n_favourable // 2, 0), 1] = np.nan
        return macro_of_shared_items(d[~np.isnan(d).all(axis=1)]).this_suite.low > 0

    by_hand = next(k for k in range(found.n_favourable + 1) if not clear(k))
    assert found.n_leaked == by_hand


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
