"""Comparisons: what joins, what is refused and why, and what the verdict says."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as scipy_stats

from evalkit import tables
from evalkit.errors import CompareError, EvalkitError, TableError
from evalkit.reports.comparison import compare
from evalkit.reports.terminal import notes, render
from evalkit.runs.health import Finding, Thresholds, combine
from evalkit.stats.permutation import sign_flip
from tests.reports.runs import write_audit, write_run


def scores(task, values):
    return {(task, f"{task}{n}"): float(value) for n, value in enumerate(values)}


@pytest.fixture
def pair(tmp_path):
    """Two runs of 60 items: B loses 20 of the 50 that A has right and wins 1."""
    a = [1] * 50 + [0] * 10
    b = [0] * 20 + [1] * 30 + [1] + [0] * 9
    return write_run(tmp_path / "a", scores("t", a), name="base"), write_run(tmp_path / "b", scores("t", b), name="q4")


def test_the_difference_of_right_and_wrong_has_bonett_and_prices_interval(pair):
    """By hand: of 60 items B alone has 1 and A alone 20."""
    found = compare(*pair).overall["all"]
    centre = (1 - 20) / 62
    half = scipy_stats.norm.ppf(0.975) * math.sqrt((23 / 62 - centre**2) / 62)
    assert (found.difference.low, found.difference.high) == pytest.approx((centre - half, centre + half))
    assert (found.score_a, found.score_b, found.n_items) == (50 / 60, 31 / 60, 60)
    assert (found.test.b, found.test.c) == (20, 1)
    assert found.verdict == "worse"


def test_the_headline_says_who_where_and_how_much(pair):
    assert compare(*pair).headline() == (
        "On all 60 items, q4 is worse than base: \u221231.7 points (95% interval \u221243.7 to \u221217.5)."
    )


def test_swapping_the_runs_turns_the_verdict(pair):
    assert compare(*reversed(pair)).overall["all"].verdict == "better"


def test_a_model_is_not_told_apart_from_itself(pair):
    found = compare(pair[0], pair[0])
    assert found.overall["all"].verdict == "inconclusive"
    assert found.overall["all"].difference.low < 0 < found.overall["all"].difference.high
    assert "A and B are the same run" in found.warnings


def test_a_lower_metric_may_be_better(tmp_path):
    lower = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}
    a = write_run(tmp_path / "a", scores("t", [1] * 30 + [0] * 10), tasks=lower)
    b = write_run(tmp_path / "b", scores("t", [0] * 35 + [1] * 5), tasks=lower)
    assert compare(a, b).tasks[0].subsets["all"].verdict == "better"


LOWER = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}
HIGHER = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": True}]}


def test_overall_a_task_that_is_better_when_lower_is_turned_and_nothing_is_shown_that_is_not(tmp_path):
    """B is better by 20 points on both; the scores' own mean, and the counts' sum, say that nothing has changed."""
    right, wrong = [1] * 5 + [0] * 95, [0] * 5 + [1] * 25 + [0] * 70
    record = {"tasks": {"s": HIGHER, "toxic": LOWER}}
    a = write_run(tmp_path / "a", {**scores("s", right), **scores("toxic", wrong)}, record=record)
    b = write_run(tmp_path / "b", {**scores("s", wrong), **scores("toxic", right)}, record=record)
    comparison = compare(a, b)
    found = comparison.overall["all"]
    assert found.verdict == "better"
    assert found.difference.estimate == pytest.approx(0.2)
    assert found.test.p_value < 0.001
    assert (found.score_a, found.score_b, found.test.b, found.test.c) == (None, None, None, None)
    assert any("opposite sign: toxic" in note for note in notes(comparison))


def test_tasks_that_are_all_better_when_lower_keep_their_sign(tmp_path):
    high, low = [1] * 25 + [0] * 75, [1] * 5 + [0] * 95
    a = write_run(tmp_path / "a", {**scores("s", high), **scores("t", high)}, tasks=LOWER)
    b = write_run(tmp_path / "b", {**scores("s", low), **scores("t", low)}, tasks=LOWER)
    found = compare(a, b).overall["all"]
    assert (found.score_a, found.score_b, found.verdict) == (0.25, 0.05, "better")
    assert found.difference.estimate == pytest.approx(-0.2)


def test_the_overall_p_value_and_interval_never_contradict_each_other(tmp_path):
    """Over both tasks A alone is right on 202 items and B on 122, but the mean of the two differences is for B."""
    big, small = ([1] * 200 + [0] * 1800, [0] * 200 + [1] * 100 + [0] * 1700), ([1] * 2 + [0] * 48, [0] * 2 + [1] * 48)
    runs = [
        write_run(tmp_path / side, {**scores("big", big[n]), **scores("small", small[n])})
        for n, side in enumerate("ab")
    ]
    found = compare(*runs).overall["all"]
    assert found.verdict == "better"
    t = found.difference.estimate / found.difference.standard_error
    assert found.test.p_value == pytest.approx(2 * scipy_stats.t.sf(t, found.difference.df))


def test_the_first_metric_with_scores_in_both_runs_is_compared(tmp_path):
    """lm-eval's matthews correlation has no number per item, and a second metric may."""
    metrics = {"metrics": [{"metric": "mcc", "filter": "none"}, {"metric": "acc", "filter": "none"}]}
    folders = []
    for side, values in (("a", [1, 0] * 10), ("b", [0, 1] * 10)):
        write_run(tmp_path / side, scores("t", values), tasks=metrics)
        rows = tables.read(tmp_path / side / "samples.parquet", tables.SAMPLES).to_pylist()
        rows += [{**row, "metric": "mcc", "score": None} for row in rows]
        tables.write(tmp_path / side / "samples.parquet", tables.from_rows(tables.SAMPLES, rows), tables.SAMPLES)
        folders.append(tmp_path / side)
    assert compare(*folders).tasks[0].metric == "acc"
    with pytest.raises(CompareError, match="mcc,none"):
        compare(*folders, metric="mcc")


def test_a_task_without_a_score_per_item_is_left_out_with_a_warning(tmp_path):
    a = write_run(tmp_path / "a", {**scores("t", [1, 0, 1]), **dict.fromkeys(scores("cola", "000"))})
    b = write_run(tmp_path / "b", {**scores("t", [0, 1, 1]), **scores("cola", [1, 1, 1])})
    found = compare(a, b)
    assert [task.task for task in found.tasks] == ["t"]
    assert "cola: not compared: no metric has scores per item in both runs (acc,none)" in found.warnings


def test_when_no_task_has_scores_the_refusal_says_so_and_not_that_the_items_differ(tmp_path):
    a = write_run(tmp_path / "a", dict.fromkeys(scores("cola", "000")))
    message = refusal(a, write_run(tmp_path / "b", scores("cola", [1, 1, 1])))
    assert "none of the common tasks can be compared (cola: not compared: no metric has scores per item" in message
    assert "share no item" not in message


def test_runs_that_scored_different_items_of_the_same_data_are_not_said_to_have_different_data(tmp_path):
    a = write_run(tmp_path / "a", {("t", "x"): 1.0, ("t", "y"): None})
    message = refusal(a, write_run(tmp_path / "b", {("t", "x"): None, ("t", "y"): 1.0}))
    assert "no item has a score of acc,none from both runs" in message


def test_metrics_under_different_filters_are_never_compared(tmp_path):
    a = write_run(tmp_path / "a", scores("t", [1, 0]), filter=lambda *_: "strict")
    b = write_run(tmp_path / "b", scores("t", [1, 0]), filter=lambda *_: "loose")
    assert "no metric in common (A: acc,strict; B: acc,loose)" in refusal(a, b)
    assert "no filter of 'acc' in common" in refusal(a, b, metric="acc")


def test_clean_and_flagged_items_are_told_apart_by_any_field(pair, tmp_path):
    labels = {f"t{n}": ["clean", "dirty"] if n < 20 else ["clean", "clean"] for n in range(60)}
    found = compare(*pair, audit=write_audit(tmp_path / "audit", labels, fields=("question", "answer")))
    assert found.rule == "llama3"
    assert {name: result.n_items for name, result in found.overall.items()} == {"all": 60, "clean": 40, "flagged": 20}
    assert found.overall["clean"].difference.estimate == pytest.approx(1 / 40)
    assert found.overall["clean"].verdict == "inconclusive"
    assert "The verdict changes when the flagged items are left out." in found.headline()


@pytest.fixture
def two_tasks(tmp_path):
    """A task on which B is worse, all of it leaked, and one on which it is not, all of it clean."""
    a = {**scores("s", [1] * 30 + [0] * 70), **scores("t", [1] * 10 + [0] * 90)}
    b = {**scores("s", [0] * 30 + [1] * 5 + [0] * 65), **scores("t", [0] * 10 + [1] * 11 + [0] * 79)}
    labels = {doc: "dirty" if task == "s" else "clean" for task, doc in a}
    return (
        (write_run(tmp_path / "a", a), write_run(tmp_path / "b", b)),
        write_audit(tmp_path / "audit", labels),
    )


def test_a_clean_mean_over_fewer_tasks_is_told_and_is_no_change_of_verdict(two_tasks):
    runs, audit = two_tasks
    found = compare(*runs, audit=audit)
    assert (found.overall["all"].verdict, found.overall["clean"].verdict) == ("worse", "inconclusive")
    assert "The verdict changes" not in found.headline()
    assert "On the 100 clean items (1 of 2 tasks)" in found.headline()
    expected = "overall, clean items: the mean is over 1 of 2 tasks; without a clean item: s"
    assert expected in found.warnings


def test_why_the_clean_items_have_no_interval_is_said(tmp_path):
    by_four = {"cluster": lambda task, doc_hash: f"{task} {int(doc_hash[1:]) // 4}"}
    values = {**scores("s", [0, 1] * 50), **scores("t", [0, 1] * 50)}
    other = {**scores("s", [0, 1, 1] * 33 + [0]), **scores("t", [0, 1, 1] * 33 + [0])}
    runs = write_run(tmp_path / "a", values, **by_four), write_run(tmp_path / "b", other, **by_four)
    labels = {doc: "clean" if task == "s" or int(doc[1:]) < 12 else "dirty" for task, doc in values}
    found = notes(compare(*runs, audit=write_audit(tmp_path / "audit", labels)))
    assert "t, clean items: 3 clusters are too few for an interval (at least 5)" in found
    assert "overall, clean items: no interval, because there is none for t" in found
    assert not any(note.startswith(("t: 3 clusters", "overall: no interval")) for note in found)


def test_rows_that_the_audit_could_not_read_are_told(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(60)}, n_bad_rows=1234)
    assert any("could not read 1,234 rows of its corpus" in note for note in notes(compare(*pair, audit=audit)))


def test_an_unfinished_audit_is_refused(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(60)})
    (audit / "audit.json").unlink()
    assert "the audit is not finished (no audit.json)" in refusal(*pair, audit=audit)


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
    a, b = rng.integers(0, 2, (140, 4)).astype(float), rng.integers(0, 2, (140, 4)).astype(float)
    run_a = write_run(tmp_path / "a", {("t", f"{n}"): row.tolist() for n, row in enumerate(a)})
    run_b = write_run(tmp_path / "b", {("t", f"{n}"): row.tolist() for n, row in enumerate(b)})
    found = compare(run_a, run_b).overall["all"]
    expected = scipy_stats.ttest_rel(b.mean(axis=1), a.mean(axis=1)).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.test.p_value == sign_flip(b.mean(axis=1) - a.mean(axis=1)).p_value


def test_an_item_is_averaged_over_the_seeds_that_both_runs_scored(tmp_path):
    """The failed seed is the hard one: B's mean over the other seeds would be higher for that alone."""
    a = {("t", f"{n}"): [1.0, 1.0, 0.0] for n in range(30)}
    b = {**a, ("t", "3"): [1.0, 1.0, None], ("t", "4"): [None, None, None]}
    found = compare(write_run(tmp_path / "a", a, over="seed"), write_run(tmp_path / "b", b, over="seed"))
    [task] = found.tasks
    assert task.subsets["all"].difference.estimate == 0
    assert (task.n_only_a, task.n_only_b, task.n_unscored, task.n_unpaired) == (1, 0, 4, 1)
    assert any("1 answers whose seed and repeat the other run has not scored" in note for note in notes(found))


def test_a_failed_request_is_no_different_prompt(tmp_path):
    a = {("t", f"{n}"): [1.0, 0.0] for n in range(30)}
    run_b = write_run(tmp_path / "b", {**a, ("t", "3"): [1.0, None]}, over="seed")
    found = compare(write_run(tmp_path / "a", a, over="seed"), run_b)
    assert found.overall["all"].n_items == 30
    assert not any("prompt_hash" in warning for warning in found.warnings)


def test_runs_of_other_seeds_are_compared_and_it_is_said(tmp_path):
    a = write_run(tmp_path / "a", scores("t", [1, 0, 1, 0]))
    b = write_run(tmp_path / "b", scores("t", [0, 0, 1, 0]), seed=lambda *_: 7)
    found = compare(a, b)
    assert found.overall["all"].difference.estimate == -0.25
    assert any("share no seed and repeat" in warning for warning in found.warnings)


def test_runs_without_seeds_are_paired_by_repeat(tmp_path):
    rows = {("t", f"{n}"): [1.0, 0.0] for n in range(5)}
    folders = [write_run(tmp_path / side, rows, seed=lambda *_: None) for side in "ab"]
    [task] = compare(*folders).tasks
    assert (task.subsets["all"].n_items, task.n_unpaired) == (5, 0)


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


def test_clusters_are_turned_as_wholes_for_the_p_value(tmp_path):
    values = {("t", f"{n}"): float(n % 2) for n in range(60)}
    other = {("t", f"{n}"): float(n % 3 > 0) for n in range(60)}
    by_table = {"cluster": lambda task, doc_hash: f"table {int(doc_hash) // 2}"}
    found = compare(write_run(tmp_path / "a", values, **by_table), write_run(tmp_path / "b", other, **by_table))
    assert (found.overall["all"].test.unit, found.overall["all"].test.n_units) == ("clusters", 30)


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
    with pytest.raises(EvalkitError) as error:
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


TEMPLATES = [{"model": {"chat_template_sha256": digest}} for digest in ("one", "two")]


def test_different_chat_templates_are_told_where_they_were_used(tmp_path):
    used = {"chat_template": True}
    values = scores("t", [1, 0, 1])
    a = write_run(tmp_path / "a", values, spec=used, record=TEMPLATES[0])
    b = write_run(tmp_path / "b", values, spec=used, record=TEMPLATES[1])
    assert any("chat templates of A and B differ" in warning for warning in compare(a, b).warnings)
    plain = [write_run(tmp_path / f"p{n}", values, record=record) for n, record in enumerate(TEMPLATES)]
    assert not any("template" in warning for warning in compare(*plain).warnings)


def test_prompts_that_differ_by_the_chat_template_are_refused_naming_it_beside_other_settings(tmp_path):
    values = scores("t", [1, 0, 1])
    a = write_run(tmp_path / "a", values, spec={"chat_template": True}, record=TEMPLATES[0])
    b = write_run(
        tmp_path / "b",
        values,
        spec={"chat_template": True, "seeds": [1]},
        record=TEMPLATES[1],
        prompt_hash=lambda task, doc_hash: f"<|user|>{doc_hash}",
    )
    message = refusal(a, b)
    assert "seeds is None in A and [1] in B" in message
    assert "the chat templates of A and B differ" in message


def suspect_record(n_errors=0):
    found = Finding("t", "truncated", 30, 60, 0.5, 0.05, "Raise [red]max_gen_toks[/red]")
    return {"health": combine([found], Thresholds()), "n_errors": n_errors}


def test_a_suspect_run_is_marked_with_its_findings_and_its_failed_requests_are_counted(pair, tmp_path):
    suspect = write_run(tmp_path / "c", scores("t", [1] * 60), name="cut", record=suspect_record(n_errors=7))
    found = compare(pair[0], suspect)
    [finding] = found.suspects()["B (cut)"]
    assert "30 of 60" in finding
    out = io.StringIO()
    render(found, Console(file=out, width=200, force_terminal=True))
    assert "\x1b[1;31msuspect: run B (cut)" in out.getvalue()
    assert finding in out.getvalue()
    assert "7 requests of run B failed for good" in " ".join(notes(found))
    assert json.loads(json.dumps(found.to_dict()))["suspect"] == {"B (cut)": [finding]}
    assert not compare(*pair).suspects()


def test_a_missing_metric_is_refused_naming_those_there_are(pair):
    assert "no metric 'f1' for this task (it has: acc,none)" in refusal(*pair, metric="f1")
    assert compare(*pair, metric="acc,none").tasks[0].metric == "acc"


def test_an_audit_of_other_items_is_refused(pair, tmp_path):
    audit = write_audit(tmp_path / "audit", {"another": "clean"})
    assert "none of the runs' items" in refusal(*pair, audit=audit)


def test_what_is_no_run_or_no_audit_is_refused(pair, tmp_path):
    assert "there is no such run" in refusal(tmp_path / "none", pair[0])
    (tmp_path / "half").mkdir()
    assert "no results of a known format" in refusal(tmp_path / "half", pair[0])
    (tmp_path / "half" / "run.json").write_text("{}")
    assert "not finished" in refusal(tmp_path / "half", pair[0])
    assert "there is no audit" in refusal(*pair, audit=tmp_path / "none")
    (pair[0] / "run.json").write_text("{")
    assert "run.json" in refusal(*pair)
    (pair[1] / "samples.parquet").write_bytes(b"x")
    (pair[0] / "run.json").unlink()
    with pytest.raises(TableError, match="not a readable Parquet file"):
        compare(*pair)


def test_an_infinite_score_is_refused_naming_its_item(pair, tmp_path):
    run = write_run(tmp_path / "c", {**scores("t", [1] * 60), ("t", "t7"): float("inf")})
    message = refusal(pair[0], run)
    assert "task t" in message
    assert "the score of item t7 is inf" in message


@pytest.mark.parametrize(
    "record",
    [
        {"tasks": None, "spec": None},
        {"spec": None},
        {"model": "x"},
        {"tasks": {"t": None}},
        {"tasks": {"t": {"metrics": {}}}},
        {"health": []},
        {"health": {"suspect": True, "findings": [{}]}},
    ],
)
def test_a_record_that_evalkit_never_wrote_is_refused(pair, tmp_path, record):
    assert "run.json" in refusal(pair[0], write_run(tmp_path / "c", scores("t", [1] * 60), record=record))


def test_a_table_of_several_models_is_refused_naming_them(pair, tmp_path):
    models = {"model": lambda task, doc_hash: "x" if doc_hash < "t3" else "y"}
    run = write_run(tmp_path / "c", scores("t", [1] * 60), **models)
    assert "the samples table holds 2 models: x, y" in refusal(pair[0], run)


def test_the_comparison_becomes_json_and_a_frame(pair, tmp_path):
    found = compare(*pair, audit=write_audit(tmp_path / "audit", {f"t{n}": "clean" for n in range(60)}))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["verdict"] == {"all": "worse", "clean": "worse"}
    assert values["tasks"][0]["subsets"]["all"]["difference"]["method"] == "Bonett-Price"
    frame = found.to_frame()
    assert frame.subset.tolist() == ["all", "clean"]
    assert "<table" in found._repr_html_()
