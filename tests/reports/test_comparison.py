"""Comparisons: what joins, what is refused and why, and what the verdict says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evalkit.errors import CompareError, TableError
from evalkit.reports.comparison import compare
from evalkit.reports.terminal import notes
from tests.reports.runs import write_audit, write_run


def scores(task, values):
    return {(task, f"{task}{n}"): float(value) for n, value in enumerate(values)}


@pytest.fixture
def pair(tmp_path):
    """Two runs of 60 items: B loses 20 of the 50 that A has right and wins 1."""
    a = [1] * 50 + [0] * 10
    b = [0] * 20 + [1] * 30 + [1] + [0] * 9
    return write_run(tmp_path / "a", scores("t", a), name="base"), write_run(tmp_path / "b", scores("t", b), name="q4")


def test_the_difference_is_the_paired_t_of_the_common_items(pair):
    found = compare(*pair).overall["all"]
    a, b = [1] * 50 + [0] * 10, [0] * 20 + [1] * 31 + [0] * 9
    expected = scipy_stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert (found.score_a, found.score_b, found.n_items) == (50 / 60, 31 / 60, 60)
    assert (found.test.b, found.test.c) == (20, 1)
    assert found.verdict == "worse"


def test_the_headline_says_who_where_and_how_much(pair):
    assert compare(*pair).headline() == (
        "On all 60 items, q4 is worse than base: \u221231.7 points (95% interval \u221244.7 to \u221218.6)."
    )


def test_swapping_the_runs_turns_the_verdict(pair):
    assert compare(*reversed(pair)).overall["all"].verdict == "better"


def test_a_model_is_not_told_apart_from_itself(pair):
    found = compare(pair[0], pair[0])
    assert found.overall["all"].verdict == "not resolved"
    assert found.overall["all"].difference.low is None
    assert "A and B are the same run" in found.warnings


def test_a_lower_metric_may_be_better(tmp_path):
    lower = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}
    a = write_run(tmp_path / "a", scores("t", [1] * 30 + [0] * 10), tasks=lower)
    b = write_run(tmp_path / "b", scores("t", [0] * 35 + [1] * 5), tasks=lower)
    assert compare(a, b).tasks[0].subsets["all"].verdict == "better"


def test_clean_and_flagged_items_are_told_apart_by_any_field(pair, tmp_path):
    labels = {f"t{n}": ["clean", "dirty"] if n < 20 else ["clean", "clean"] for n in range(60)}
    found = compare(*pair, audit=write_audit(tmp_path / "audit", labels, fields=("question", "answer")))
    assert found.rule == "llama3"
    assert {name: result.n_items for name, result in found.overall.items()} == {"all": 60, "clean": 40, "flagged": 20}
    assert found.overall["clean"].difference.estimate == pytest.approx(1 / 40)
    assert found.overall["clean"].verdict == "not resolved"
    assert "The verdict changes when the flagged items are left out." in found.headline()


def test_items_that_the_audit_lacks_are_neither_clean_nor_flagged(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(50)})
    found = compare(*pair, audit=audit)
    assert found.overall["clean"].n_items == 50
    assert "flagged" not in found.overall
    assert found.tasks[0].n_not_audited == 10
    assert any("10 of 60 items are not in the audit" in warning for warning in found.warnings)


def test_the_rule_can_be_chosen(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(60)}, rules=("gpt3-clean", "llama3"))
    assert compare(*pair, audit=audit).rule == "gpt3-clean"
    assert compare(*pair, audit=audit, rule="llama3").rule == "llama3"
    with pytest.raises(CompareError, match="no rule 'palm'"):
        compare(*pair, audit=audit, rule="palm")


def test_repeats_count_an_item_once(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (40, 4)).astype(float), rng.integers(0, 2, (40, 4)).astype(float)
    run_a = write_run(tmp_path / "a", {("t", f"{n}"): row.tolist() for n, row in enumerate(a)})
    run_b = write_run(tmp_path / "b", {("t", f"{n}"): row.tolist() for n, row in enumerate(b)})
    found = compare(run_a, run_b).overall["all"]
    expected = scipy_stats.ttest_rel(b.mean(axis=1), a.mean(axis=1)).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.test is None


def test_clusters_are_the_unit(tmp_path):
    rng = np.random.default_rng(1)
    values = {("t", f"{n}"): float(score) for n, score in enumerate(rng.integers(0, 2, 60))}
    other = {("t", f"{n}"): float(score) for n, score in enumerate(rng.integers(0, 2, 60))}
    by_table = {"cluster": lambda task, doc_hash: f"table {int(doc_hash) // 2}"}
    found = compare(write_run(tmp_path / "a", values, **by_table), write_run(tmp_path / "b", other, **by_table))
    assert (found.overall["all"].difference.n, found.overall["all"].difference.unit) == (30, "clusters")


def test_tasks_have_equal_weight_in_the_overall_difference(tmp_path):
    a = write_run(tmp_path / "a", {**scores("s", [0] * 10), **scores("t", [0, 1] * 50)})
    b = write_run(tmp_path / "b", {**scores("s", [1] * 9 + [0]), **scores("t", [0, 1] * 50)})
    found = compare(a, b)
    assert found.overall["all"].difference.estimate == pytest.approx(0.45)
    assert found.overall["all"].n_items == 110
    assert [name for name, _ in found.results()] == ["s", "t", "overall"]


def test_clusters_are_told_beside_a_p_value_that_does_not_know_them(tmp_path):
    values = {("t", f"{n}"): float(n % 2) for n in range(60)}
    other = {("t", f"{n}"): float(n % 3 > 0) for n in range(60)}
    by_table = {"cluster": lambda task, doc_hash: f"table {int(doc_hash) // 2}"}
    found = compare(write_run(tmp_path / "a", values, **by_table), write_run(tmp_path / "b", other, **by_table))
    assert "t: items of one cluster are not independent, so p is too small" in notes(found)


def test_scores_that_are_no_proportions_are_told(tmp_path):
    a, b = write_run(tmp_path / "a", scores("t", range(9))), write_run(tmp_path / "b", scores("t", range(1, 10)))
    assert any("the scores are no proportions" in warning for warning in compare(a, b).warnings)


def test_what_is_missing_is_counted(tmp_path):
    a = {**scores("t", [1, 0, 1, 0, 1, 1]), ("u", "x"): 1.0}
    b = {key: value for key, value in scores("t", [1, 1, 1, 0, 0, 1]).items() if key[1] != "t5"}
    run_a = write_run(tmp_path / "a", a)
    failed = {"error": lambda task, doc_hash: "timed out" if doc_hash == "t0" else None}
    found = compare(run_a, write_run(tmp_path / "b", b, **failed))
    [task] = found.tasks
    assert (task.n_only_a, task.n_only_b, task.n_unscored) == (2, 0, 1)
    assert found.overall["all"].n_items == 4
    assert any("only in A, so not compared: u" in warning for warning in found.warnings)


def refusal(*arguments, **options):
    with pytest.raises(CompareError) as error:
        compare(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_runs_of_other_tasks_are_refused_naming_both_sets(pair, tmp_path):
    other = write_run(tmp_path / "c", scores("other", [1, 0]))
    assert "A has t; B has other" in refusal(pair[0], other)


def test_runs_of_other_items_are_refused(pair, tmp_path):
    other = write_run(tmp_path / "c", {("t", "another"): 1.0})
    assert "share no item of the task (60 in A, 1 in B)" in refusal(pair[0], other)


def test_different_prompts_are_refused_naming_the_field_and_the_setting(pair, tmp_path):
    examples = write_run(
        tmp_path / "c",
        scores("t", [1] * 60),
        spec={"num_fewshot": 5},
        prompt_hash=lambda task, doc_hash: f"prompt of {doc_hash}, 5 shots",
    )
    message = refusal(pair[0], examples)
    assert "task t: prompt_hash differs for 60 of 60 items: num_fewshot is 0 in A and 5 in B" in message
    assert any(
        "num_fewshot" in warning for warning in compare(pair[0], examples, allow_different_prompts=True).warnings
    )


def test_a_missing_metric_is_refused_naming_those_there_are(pair):
    assert "no metric 'f1' for this task (it has: acc,none)" in refusal(*pair, metric="f1")
    assert compare(*pair, metric="acc,none").tasks[0].metric == "acc"


def test_an_audit_of_other_items_is_refused(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {"another": "clean"})
    assert "none of the runs' items" in refusal(*pair, audit=audit)


def test_what_is_no_run_or_no_audit_is_refused(pair, tmp_path):
    assert "there is no such run" in refusal(tmp_path / "none", pair[0])
    (tmp_path / "half").mkdir()
    assert "not finished" in refusal(tmp_path / "half", pair[0])
    assert "there is no audit" in refusal(*pair, audit=tmp_path / "none")
    (pair[0] / "run.json").write_text("{")
    assert "run.json" in refusal(*pair)
    (pair[1] / "samples.parquet").write_bytes(b"x")
    (pair[0] / "run.json").unlink()
    with pytest.raises(TableError, match="not a readable Parquet file"):
        compare(*pair)


def test_the_comparison_becomes_json_and_a_frame(pair, tmp_path):
    found = compare(*pair, audit=write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(60)}))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["verdict"] == {"all": "worse", "clean": "worse"}
    assert values["tasks"][0]["subsets"]["all"]["difference"]["method"] == "paired t"
    frame = found.to_frame()
    assert frame.subset.tolist() == ["all", "clean"]
    assert "<table" in found._repr_html_()
