"""What a comparison makes of joined scores: verdicts, families, seeds, slices, looking early, and its JSON."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from evalkit import tables
from evalkit.errors import CompareError, SpecError
from evalkit.reports.comparison import Comparison, compare, points
from evalkit.reports.terminal import notes, render
from evalkit.stats.components import crossed, crossed_difference, crossed_tasks
from evalkit.stats.decisions import DecisionRule
from evalkit.stats.discordance import mcnemar, proportion_difference
from evalkit.stats.paired import unpaired_difference
from evalkit.stats.sequential import sequential_comparison
from tests.reports.runs import write_run

LOWER = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}


def answers(task, scores):
    """Scores by (task, document); a row of several is of several seeds or repeats."""
    return {(task, f"{task}{n:04d}"): one.tolist() for n, one in enumerate(np.asarray(scores, dtype=float))}


def two(tmp_path, a, b, **options):
    return write_run(tmp_path / "a", a, name="base", **options), write_run(tmp_path / "b", b, name="new", **options)


@pytest.fixture
def alike(tmp_path):
    """2,000 items, of which 30 change to the better and 30 to the worse."""
    a = np.arange(2000) % 2
    b = a.copy()
    b[:60] = 1 - b[:60]
    return answers("t", a), answers("t", b)


def test_with_a_margin_models_that_hardly_differ_are_equivalent(alike, tmp_path):
    runs = two(tmp_path, *alike)
    assert compare(*runs).overall["all"].verdict == "inconclusive"
    found = compare(*runs, margin=0.02)
    assert found.overall["all"].verdict == "equivalent"
    inner = proportion_difference(30, 30, 2000, confidence_level=0.9)
    assert found.overall["all"].decision.narrower.high == pytest.approx(inner.high)
    assert "new and base are equivalent within 2.0 points" in found.headline()


def test_a_margin_in_both_specs_is_the_rule_and_one_given_later_is_told(alike, tmp_path):
    declared = two(tmp_path / "declared", *alike, spec={"margin": 0.02})
    found = compare(*declared)
    assert found.decision_rule == DecisionRule(margin=0.02)
    assert not any("margin" in warning for warning in found.warnings)
    assert any("margin of 1.0 points was given" in warning for warning in compare(*declared, margin=0.01).warnings)
    bare = two(tmp_path / "bare", *alike)
    assert any("margin of 2.0 points was given" in warning for warning in compare(*bare, margin=0.02).warnings)
    other = write_run(tmp_path / "other", alike[1], spec={"margin": 0.05})
    with pytest.raises(CompareError, match=r"declares a margin of 0\.02, and B's 0\.05"):
        compare(declared[0], other)


def test_inconclusive_says_what_would_have_been_missed(tmp_path):
    a = np.arange(100) % 2
    b = a.copy()
    b[:3] = 1 - b[:3]
    found = compare(*two(tmp_path, answers("t", a), answers("t", b)))
    one = found.overall["all"].difference
    error = (one.high - one.low) / 2 / scipy_stats.norm.ppf(0.975)
    assert found.overall["all"].decision.smallest_detectable == pytest.approx(
        error * (scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8))
    )
    assert "a difference below 6.1 would be missed in more than 20% of runs like these" in found.headline()


@pytest.fixture
def family(tmp_path):
    """Five tasks of 200 items with growing differences."""
    rng = np.random.default_rng(0)
    a, b = {}, {}
    for k, gain in enumerate((0.0, 0.03, 0.06, 0.1, 0.25)):
        base = rng.random(200)
        a |= answers(f"task{k}", base < 0.5)
        b |= answers(f"task{k}", np.where(rng.random(200) < 0.9, base, rng.random(200)) < 0.5 + gain)
    return two(tmp_path, a, b)


def test_p_values_are_holms_and_verdicts_are_by_intervals_that_hold_for_all_tasks_at_once(family):
    found = compare(*family)
    parts = [task.subsets["all"] for task in found.tasks]
    expected = multipletests([one.test.p_value for one in parts], method="holm")[1]
    assert [one.p_adjusted for one in parts] == pytest.approx(expected.tolist())
    for one in parts:
        wide = proportion_difference(one.test.b, one.test.c, 200, confidence_level=1 - 0.05 / 5)
        assert (one.decision.estimate.low, one.decision.estimate.high) == (wide.low, wide.high)
        assert one.verdict == ("better" if wide.low > 0 else "inconclusive")
        assert one.difference.confidence_level == 0.95
    assert {one.verdict for one in parts} == {"better", "inconclusive"}
    assert found.overall["all"].p_adjusted is None
    assert any("the 5 tasks are one family: single tasks have 99% intervals" in note for note in notes(found))


def test_the_table_shows_the_interval_that_decides(family):
    found, out = compare(*family), io.StringIO()
    render(found, Console(file=out, width=200))
    for task in found.tasks:
        decides = task.subsets["all"].decision.estimate
        assert f"[{points(decides.low)}, {points(decides.high)}]" in out.getvalue()


def test_the_mean_over_tasks_has_an_interval_for_other_tasks_too(family):
    found = compare(*family).overall["all"]
    differences = [task.subsets["all"].difference.estimate for task in compare(*family).tasks]
    expected = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    others = found.tasks_like_these
    assert (others.low, others.high) == pytest.approx((expected.low, expected.high))
    assert found.difference.low > others.low
    assert "tasks like these" in found.explain()


def test_tasks_that_share_items_are_not_taken_as_independent(tmp_path):
    """The same items in two formats, with equal scores: two tasks tell no more than one."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 150))
    doubled = [{(task, f"doc{n}"): float(one) for task in "st" for n, one in enumerate(of)} for of in (a, b)]
    found = compare(*two(tmp_path / "both", *doubled))
    single = compare(*two(tmp_path / "one", *[{k: v for k, v in one.items() if k[0] == "s"} for one in doubled]))
    both = found.overall["all"].difference
    assert both.standard_error == pytest.approx(single.overall["all"].difference.standard_error)
    assert found.tasks[0].subsets["all"].p_adjusted < 2 * found.tasks[0].subsets["all"].test.p_value
    assert any("max-T, because tasks share items" in warning for warning in found.warnings)


def seeded(rng, n, n_seeds, seed_sd, gain=0.0):
    """Graded scores of both models, items by seeds, the difference moved by each seed."""
    a = rng.random((n, 1)) + 0.1 * rng.normal(size=(n, n_seeds))
    b = a + gain + seed_sd * rng.normal(size=n_seeds) + 0.1 * rng.normal(size=(n, n_seeds))
    return a, b


def test_matched_seeds_are_crossed_with_items(tmp_path):
    a, b = seeded(np.random.default_rng(2), 60, 4, 0.05)
    found = compare(*two(tmp_path, answers("t", a), answers("t", b), over="seed")).tasks[0].noise
    expected = crossed(b - a)
    assert (found.n_seeds_a, found.n_seeds_b, found.n_answers, found.matched) == (4, 4, 1, True)
    for new in ("seed", "item + seed"):
        assert found.intervals[new].low == pytest.approx(expected.intervals[new].low)
    assert [one.variance for one in found.components] == pytest.approx([one.variance for one in expected.components])
    assert found.seed_sd_b.standard_deviation == pytest.approx(b.mean(axis=0).std(ddof=1))


def test_seeds_that_have_nothing_to_do_with_each_other_are_not_paired(tmp_path):
    a, b = seeded(np.random.default_rng(3), 60, 3, 0.05)
    run_a = write_run(tmp_path / "a", answers("t", a), over="seed")
    run_b = write_run(tmp_path / "b", answers("t", b), over="seed", seed=lambda *_: None)
    data = tables.read(run_b / "samples.parquet", tables.SAMPLES).to_pandas()
    data["seed"] = 10 + data.groupby("doc_hash").cumcount()
    tables.write(run_b / "samples.parquet", tables.from_columns(tables.SAMPLES, dict(data.items())), tables.SAMPLES)
    found = compare(run_a, run_b).tasks[0].noise
    expected = crossed_difference(a, b)
    assert not found.matched
    assert found.intervals["item + seed"].low == pytest.approx(expected["item + seed"].low)


def test_of_repeats_under_one_seed_the_answers_part_is_known_and_the_seeds_is_not(tmp_path):
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2, (2, 40, 5)).astype(float)
    found = compare(*two(tmp_path, answers("t", a), answers("t", b)))
    noise = found.tasks[0].noise
    assert (noise.n_seeds_a, noise.n_answers) == (1, 5)
    assert noise.intervals["seed"].low is None
    [answer] = [one for one in noise.components if one.facets == ("answer",)]
    assert answer.variance == pytest.approx((b - a).var(axis=1, ddof=1).mean())
    assert "one seed only: how much other seeds would change the scores is unknown" in found.warnings


def test_with_one_answer_each_seed_variance_is_stated_as_unknown(alike, tmp_path):
    found = compare(*two(tmp_path, *alike))
    assert found.noise is None
    assert "one seed only: how much other seeds would change the scores is unknown" in found.warnings


def test_seeds_that_move_all_tasks_together_widen_the_mean_and_qualify_the_verdict(tmp_path):
    rng = np.random.default_rng(5)
    shift = 0.1 * rng.normal(size=5)
    shift += 0.06 - shift.mean()  # better under these seeds, by less than other seeds may take away
    a, b = {}, {}
    for task in ("s", "t", "u"):
        base = rng.random((80, 1)) + 0.05 * rng.normal(size=(80, 5))
        a |= answers(task, base)
        b |= answers(task, base + shift + 0.05 * rng.normal(size=(80, 5)))
    found = compare(*two(tmp_path, a, b, over="seed"))
    of_tasks = [
        np.array([v for k, v in b.items() if k[0] == task]) - [v for k, v in a.items() if k[0] == task]
        for task in ("s", "t", "u")
    ]
    expected = crossed_tasks(of_tasks)["item + seed"]
    assert (found.noise.intervals["item + seed"].low, found.noise.intervals["item + seed"].high) == pytest.approx(
        (expected.low, expected.high)
    )
    assert found.overall["all"].verdict == "better"
    assert "That is so for these seeds; with other seeds it may not be" in found.headline()


def test_slices_are_by_a_column_of_the_documents(tmp_path):
    """Targets are a column of every run; B is better where the target is hard, and nowhere else."""
    n = 160
    a = np.zeros(n)
    b = (np.arange(n) % 4 == 0).astype(float)
    kind = {f"t{i:04d}": "hard" if i % 4 == 0 else "easy" for i in range(n)}
    runs = two(tmp_path, answers("t", a), answers("t", b), target=lambda _, document: kind[document])
    found = compare(*runs, slices="target")
    assert found.slices.found == ("hard",)
    hard, easy = found.slices.slices
    assert (hard.name, hard.estimate.estimate, easy.estimate.estimate) == ("hard", 1.0, 0.0)
    assert hard.p_value == mcnemar(np.zeros(40), np.ones(40)).p_value


def test_documents_of_a_run_are_loaded_again_for_its_slices(tmp_path):
    from evalkit.tasks import doc_hash, load_tasks

    documents = load_tasks(["gen_calendar"], n_items=None).tasks["gen_calendar"].eval_docs
    column = next(name for name in documents[0] if 1 < len({str(one[name]) for one in documents}) < 20)
    hashes = [doc_hash(one) for one in list(documents)[:200]]
    rng = np.random.default_rng(6)
    runs = two(tmp_path, *({("gen_calendar", h): float(rng.integers(2)) for h in hashes} for _ in "ab"))
    found = compare(*runs, slices=column)
    counted = {one.name: one.estimate.n_items for one in found.slices.slices} | dict(found.slices.left_out)
    assert sum(counted.values()) == 200
    assert set(counted) <= {str(one[column]) for one in documents}
    with pytest.raises(CompareError, match=rf"no document has a column 'topic' \(they have: .*{column}"):
        compare(*runs, slices="topic")


def test_looking_early_goes_in_the_order_of_the_runs_own_limit(tmp_path):
    rng = np.random.default_rng(7)
    a = rng.integers(0, 2, 300).astype(float)
    b = np.maximum(a, rng.random(300) < 0.3)
    record = {"tasks": {"t": {"n_docs": 300, "metrics": []}}, "spec": {"subset_seed": 0}}
    found = compare(*two(tmp_path, answers("t", a), answers("t", b), record=record), sequential=True)
    order = list(range(300))
    random.Random("t:300:0").shuffle(order)
    assert found.tasks[0].sequential.stopped_at == sequential_comparison(a[order], b[order]).stopped_at
    assert found.tasks[0].sequential.verdict == "better"


def test_looking_early_at_a_part_is_the_beginning_of_looking_at_all(tmp_path):
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 2, (2, 400)).astype(float)
    record = {"tasks": {"t": {"n_docs": 400, "metrics": []}}, "spec": {"subset_seed": 3}}
    order = list(range(400))
    random.Random("t:400:3").shuffle(order)
    head = sorted(order[:150])
    sequences = []
    for kept in (head, range(400)):
        rows = [{("t", f"{n:04d}"): float(of[n]) for n in kept} for of in (a, b)]
        number = {f"{n:04d}": n for n in kept}
        runs = two(tmp_path / str(len(kept)), *rows, record=record, doc_id=lambda _, one, number=number: number[one])
        sequences.append(compare(*runs, sequential=True).tasks[0].sequential)
    assert sequences[0].e_value <= sequences[1].e_value
    assert sequences[0].difference.estimate == pytest.approx((b[head] - a[head]).mean())


def test_looking_early_takes_clusters_as_units_and_turns_lower_metrics(tmp_path):
    rng = np.random.default_rng(9)
    a = (rng.random(400) < 0.8).astype(float)
    b = a * (rng.random(400) < 0.5)
    by_table = {"cluster": lambda _, document: document[:-1], "tasks": LOWER}
    found = compare(*two(tmp_path, answers("t", a), answers("t", b), **by_table), sequential=True).tasks[0].sequential
    assert (found.verdict, found.difference.unit, found.difference.n, found.difference.n_items) == (
        "better", "clusters", 40, 400,
    )  # fmt: skip


def test_scores_without_bounds_are_not_looked_at_early_and_it_is_said(tmp_path):
    runs = two(tmp_path, answers("t", np.arange(30.0)), answers("t", np.arange(1.0, 31)))
    found = compare(*runs, sequential=True)
    assert found.tasks[0].sequential is None
    assert any("not compared item by item" in warning for warning in found.warnings)


def test_unpaired_is_only_done_when_asked_and_warns(tmp_path):
    rng = np.random.default_rng(10)
    a, b = rng.random(50), rng.random(60)
    runs = two(tmp_path, answers("t", a), {("t", f"other{n}"): float(one) for n, one in enumerate(b)})
    with pytest.raises(CompareError, match=r"share no item .*--unpaired"):
        compare(*runs)
    found = compare(*runs, unpaired=True)
    expected = unpaired_difference(a, b)
    assert (found.overall["all"].difference.low, found.overall["all"].n_items) == (expected.low, 110)
    assert found.overall["all"].test.p_value == pytest.approx(scipy_stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert any("taken as unpaired" in note for note in notes(found))
    with pytest.raises(SpecError, match="items that both answered"):
        compare(*runs, unpaired=True, sequential=True)


def test_the_comparison_survives_json(family, tmp_path):
    a, b = seeded(np.random.default_rng(11), 60, 3, 0.05)
    found = compare(*two(tmp_path / "seeds", answers("t", a), answers("t", b), over="seed"), margin=0.1)
    for one in (found, compare(*family, margin=0.02, sequential=True, slices="target")):
        again = Comparison.from_json(one.to_json())
        assert again == replace(one, items=())
        assert again.headline() == one.headline()
        assert again.explain() == one.explain()


def test_a_margin_changed_afterwards_is_seen(alike, tmp_path):
    values = json.loads(compare(*two(tmp_path, *alike), margin=0.02).to_json())
    values["decision_rule"]["margin"] = 0.05
    with pytest.raises(CompareError, match="not the one that was hashed"):
        Comparison.from_dict(values)
