"""The gate: rules are read or refused, and met, broken or not shown by the interval that belongs to them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy.stats import t as t_distribution
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.errors import CompareError, SpecError
from evalkit.reports.comparison import compare
from evalkit.reports.gate import check_rules, parse_rule
from evalkit.stats.margins import parse_margin
from evalkit.stats.paired import paired_difference
from tests.reports.runs import write_audit, write_run

A, B = [1.0] * 700 + [0.0] * 300, [0.0] * 20 + [1.0] * 695 + [0.0] * 285


@pytest.fixture
def runs(tmp_path):
    """B is half a point worse than A on 1,000 items: 20 lost, 15 won."""
    return [
        write_run(tmp_path / name, {("gsm8k", f"{i}"): v for i, v in enumerate(of)}, name=name)
        for name, of in (("a", A), ("b", B))
    ]


@pytest.mark.parametrize(
    ("text", "kind", "margin", "task", "subset"),
    [
        ("not worse by 1pp on gsm8k", "not worse", 0.01, "gsm8k", "all"),
        ("not worse by 0.5 points on clean mmlu*", "not worse", 0.005, "mmlu*", "clean"),
        ("equivalent within 0.02", "equivalent", 0.02, "overall", "all"),
        ("better on overall", "better", 0.0, "overall", "all"),
        ("better by 2 pp on clean", "better", 0.02, "overall", "clean"),
        ("not worse by 1 point", "not worse", 0.01, "overall", "all"),
    ],
)
def test_rules_are_read(text, kind, margin, task, subset):
    rule = parse_rule(text)
    assert (rule.kind, rule.margin, rule.task, rule.subset) == (kind, pytest.approx(margin), task, subset)


@pytest.mark.parametrize(
    "text", ["", "worse", "not worse by much on t", "not worse by 1 on t", "not worse by 1% on t", "equivalent on t",
             "not worse by -1pp on t", "better by nanpp on t", "not worse", "not worse on t", "better within 1pp on t",
             "equivalent by 1pp on t", "not worse within 1pp on t", "not worse by 0.5 on t", "better by 99999pp on t",
             "better by 0pp on t", "better by 1e-400pp on t"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(SpecError, match="rule"):
        parse_rule(text)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.015, 0.02, 0.03])
def test_not_worse_is_the_lower_end_of_the_90_per_cent_interval(runs, margin):
    [check] = check_rules(compare(*runs), [parse_rule(f"not worse by {margin} on gsm8k")]).checks
    by_hand = paired_difference(A, B, confidence_level=0.9, method="auto")
    assert (check.low, check.high) == pytest.approx((by_hand.low, by_hand.high))
    assert (check.outcome == "met") == (by_hand.low > -margin)


def test_a_rule_is_broken_when_the_opposite_is_shown_and_otherwise_not_shown(runs):
    said = [
        check.outcome
        for check in check_rules(
            compare(*runs), [parse_rule(one) for one in ("better by 3pp", "better", "equivalent within 3pp")]
        ).checks
    ]
    assert said == ["broken", "not shown", "met"]


def test_where_lower_is_better_the_signs_turn(tmp_path):
    lower = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}
    runs = [
        write_run(tmp_path / name, {("toxic", f"{i}"): float(i < k) for i in range(200)}, tasks=lower)
        for name, k in (("a", 100), ("b", 40))
    ]
    assert check_rules(compare(*runs), [parse_rule("better by 10pp on toxic")]).outcome == "met"
    assert check_rules(compare(*reversed(runs)), [parse_rule("not worse by 10pp on toxic")]).outcome == "broken"


def test_a_task_that_is_not_there_and_clean_items_without_an_audit_are_refused(runs):
    with pytest.raises(CompareError, match="no task is called 'mmlu'"):
        check_rules(compare(*runs), [parse_rule("better on mmlu")])
    with pytest.raises(CompareError, match="no clean items"):
        check_rules(compare(*runs), [parse_rule("better on clean gsm8k")])


def test_exit_codes_junit_and_summary_say_the_same(runs, tmp_path):
    audit = write_audit(tmp_path / "audit", {f"{i}": "clean" if i % 2 else "dirty" for i in range(1000)})
    call = ["gate", *map(str, runs), "--audit", str(audit), "--junit", str(tmp_path / "j.xml"), "--summary"]
    call += [str(tmp_path / "s.md")]
    for rule, code in (("not worse by 2pp on gsm8k", 0), ("better by 3pp on clean gsm8k", 1), ("better", 3)):
        ran = CliRunner().invoke(app, [*call, "--rule", rule, "--json"])
        assert ran.exit_code == code, ran.output
        assert json.loads(ran.output)["exit_code"] == code
        suite = ET.parse(tmp_path / "j.xml").getroot()
        assert [int(suite.attrib[name]) for name in ("tests", "failures", "errors")] == [1, code == 1, code == 3]
        outcome = {0: "met", 1: "broken", 3: "not shown"}[code]
        assert (tmp_path / "s.md").read_text().startswith(f"### evalkit gate: {outcome}\n")


def test_hostile_names_stay_text_in_xml_and_markdown(tmp_path):
    name = "<x>|`\u0000]]>\ufffe\ud800\u202e @team https://e.org\r# 1"
    tasks = {"metrics": []}
    runs = [
        write_run(tmp_path / k, {("t\u202e\ufffe", f"{i}"): float(i % 2) for i in range(20)}, tasks=tasks,
                  record={"name": name})
        for k in "ab"
    ]  # fmt: skip
    call = ["gate", *map(str, runs), "--rule", "not worse by 50pp on t*", "--junit", str(tmp_path / "j.xml")]
    ran = CliRunner().invoke(app, [*call, "--summary", str(tmp_path / "s.md"), "--json"])
    assert ran.exit_code == 0, ran.output
    suite = ET.parse(tmp_path / "j.xml").getroot()
    assert "<x>" in suite.attrib["name"]
    summary = (tmp_path / "s.md").read_text()
    assert not [one for one in ("<x>", "@team", "https://", "\u202e", "\r", "\ufffe") if one in summary]
    assert "t<U+202E>" in suite[0].attrib["classname"]
    # No format of the others trips over the names either.
    ran = CliRunner().invoke(app, ["compare", *map(str, runs[:2]), "--json"])
    assert (ran.exit_code, json.loads(ran.output)["tasks"][0]["task"]) == (0, "t<U+202E><U+FFFE>")
    for ending in ("html", "md", "ipynb"):
        out = tmp_path / f"r.{ending}"
        assert CliRunner().invoke(app, ["report", *map(str, runs), "-o", str(out)]).exit_code == 0
        assert {"\u202e", "\ufffe"}.isdisjoint(out.read_text())


def with_failures(folder, n_lost, value=None):
    """B is as good as A on 1,000 items, and has no score for some that A has right."""
    scores = [float(i % 4 > 0) for i in range(1000)]
    lost = [i for i in range(1000) if scores[i]][:n_lost]
    b = [value if i in lost else of for i, of in enumerate(scores)]
    kept = {("t", f"{i}"): of for i, of in enumerate(b) if of is not None}
    return [
        write_run(folder / "a", {("t", f"{i}"): of for i, of in enumerate(scores)}, name="a"),
        write_run(folder / "b", kept, name="b"),
    ]


@pytest.mark.parametrize(("n_lost", "outcome"), [(0, "met"), (15, "met"), (25, "not shown")])
def test_items_without_a_score_count_at_their_worst_unless_they_are_allowed(tmp_path, n_lost, outcome):
    rules = [parse_rule("not worse by 2pp on t")]
    runs = with_failures(tmp_path, n_lost)
    result = check_rules(compare(*runs), rules)
    [check] = result.checks
    assert (result.outcome, check.n_missing) == (outcome, n_lost)
    # Nothing but the lost items differs, so the worst is that they are all wrong.
    assert check.worst_low == pytest.approx(check.low - n_lost / 1000)
    assert (f"{n_lost} only in A" in " ".join(result.notes)) == (n_lost > 0)
    assert check_rules(compare(*runs), rules, allow_dropped=True).outcome == "met"
    # If they are wrong indeed, it is not better than this.
    [truth] = check_rules(compare(*with_failures(tmp_path / "truth", n_lost, 0.0)), rules).checks
    assert check.worst_low <= truth.difference.estimate + 1e-12


def test_lost_answers_of_items_with_others_widen_the_interval_too(tmp_path):
    values = {("t", f"{i}"): [float((i + k) % 3 > 0) for k in range(4)] for i in range(200)}
    other = {("t", f"{i}"): [float((i * 5 + k) % 7 > 2) for k in range(4)] for i in range(200)}
    lost = {key: [*of[:3], None] if int(key[1]) < 10 else of for key, of in other.items()}
    runs = [write_run(tmp_path / k, of, over="seed") for k, of in (("a", values), ("b", lost))]
    [check] = check_rules(compare(*runs), [parse_rule("not worse by 5pp on t")]).checks
    # Ten of B's answers, and the ten of A that they were paired with, a fourth of an item each.
    assert (check.low - check.worst_low, check.worst_high - check.high) == pytest.approx((20 / 4 / 200,) * 2)


def test_what_is_dropped_from_the_clean_items_or_no_proportion_is_bounded_from_the_safe_side(tmp_path):
    runs = with_failures(tmp_path, 10)
    audit = write_audit(tmp_path / "audit", {f"{i}": "clean" if i % 2 else "dirty" for i in range(1000)})
    [check] = check_rules(compare(*runs, audit=audit), [parse_rule("not worse by 5pp on clean t")]).checks
    assert check.worst_low == pytest.approx(check.low - 10 / (check.n_items + 10))
    graded = [
        write_run(tmp_path / name, {("t", f"{i}"): 3.0 + i % 2 for i in range(n)}) for name, n in (("c", 60), ("d", 59))
    ]
    [check] = check_rules(compare(*graded), [parse_rule("not worse by 5pp on t")]).checks
    assert (check.outcome, check.worst_low) == ("not shown", float("-inf"))


def test_a_suspect_run_is_not_met_unless_it_is_allowed(tmp_path):
    finding = {"severity": "suspect", "message": "30 of 60 are empty", "advice": "Read some"}
    values = {("t", f"{i}"): float(i % 2) for i in range(100)}
    runs = [
        write_run(tmp_path / "a", values),
        write_run(tmp_path / "b", values, record={"health": {"suspect": True, "findings": [finding]}}),
    ]
    call = ["gate", *map(str, runs), "--rule", "not worse by 5pp on t", "--junit", str(tmp_path / "j.xml"), "--json"]
    ran = CliRunner().invoke(app, call)
    assert (ran.exit_code, json.loads(ran.output)["outcome"]) == (3, "not shown")
    assert "30 of 60" in json.loads(ran.output)["doubts"][0]
    assert ET.parse(tmp_path / "j.xml").getroot().attrib["errors"] == "1"
    ran = CliRunner().invoke(app, [*call, "--allow-suspect"])
    assert ran.exit_code == 0
    unsaid = write_run(tmp_path / "c", values, record={"health": {"suspect": True}})
    assert check_rules(compare(runs[0], unsaid), [parse_rule("not worse by 5pp on t")]).outcome == "not shown"
    assert any(one.startswith("allowed: ") and "30 of 60" in one for one in json.loads(ran.output)["notes"])


def test_a_task_that_a_rule_means_and_that_was_not_compared_is_not_passed_over(tmp_path):
    values = {(t, f"{t}{i}"): float(i % 2) for t in ("mmlu_a", "mmlu_b", "other") for i in range(50)}
    runs = [
        write_run(tmp_path / "a", values),
        write_run(tmp_path / "b", {key: of for key, of in values.items() if key[0] != "mmlu_b"}),
    ]
    for rule, outcome in (
        ("not worse by 10pp on mmlu*", "not shown"),
        ("not worse by 10pp on mmlu_b", "not shown"),
        ("not worse by 10pp", "not shown"),
        ("not worse by 10pp on other", "met"),
    ):
        result = check_rules(compare(*runs), [parse_rule(rule)])
        assert (result.outcome, len(result.doubts)) == (outcome, outcome != "met"), rule
        allowed = check_rules(compare(*runs), [parse_rule(rule)], allow_dropped=True)
        assert allowed.outcome == ("not shown" if rule.endswith("mmlu_b") else "met")


@pytest.mark.parametrize("lower", [False, True])
def test_overall_on_clean_items_of_one_task_only_is_by_that_task_s_items(tmp_path, lower):
    tasks = {
        t: {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": not (lower and t == "s")}]}
        for t in "st"
    }
    values = {(t, f"{t}{i}"): float(i % 3 > 0) for t in "st" for i in range(90)}
    other = {key: float(int(key[1][1:]) % 4 > 0) for key in values}
    audit = write_audit(
        tmp_path / "audit", {doc: "clean" if t == "s" and int(doc[1:]) % 2 else "dirty" for t, doc in values}
    )
    runs = [write_run(tmp_path / k, of, record={"tasks": tasks}) for k, of in (("a", values), ("b", other))]
    [check] = check_rules(compare(*runs, audit=audit), [parse_rule("not worse by 3pp on clean overall")]).checks
    of_s = [(values[key], other[key]) for key in values if key[0] == "s" and int(key[1][1:]) % 2]
    a, b = zip(*(pair[::-1] if lower else pair for pair in of_s), strict=True)
    by_hand = paired_difference(a, b, confidence_level=0.9, method="auto")
    assert (check.n_items, check.low, check.high) == (len(of_s), *map(pytest.approx, (by_hand.low, by_hand.high)))


def test_without_an_interval_nothing_is_shown(tmp_path):
    runs = [write_run(tmp_path / k, {("t", "1"): 1.0}, cluster="one") for k in "ab"]
    for rule in ("not worse by 1pp on t", "better on t", "equivalent within 1pp on t"):
        [check] = check_rules(compare(*runs), [parse_rule(rule)]).checks
        assert check.outcome == "not shown"


def test_a_mean_over_several_tasks_has_the_90_per_cent_interval_also_where_they_share_items(tmp_path):
    for shared in (False, True):
        values = {
            (t, f"{'' if shared else t}{i}"): float((i * 7 + (t == "t")) % 5 > 1) for t in "st" for i in range(60)
        }
        other = {key: 0.0 if key[1].endswith("3") else of for key, of in values.items()}
        folder = tmp_path / str(shared)
        comparison = compare(*(write_run(folder / k, of) for k, of in (("a", values), ("b", other))))
        [check] = check_rules(comparison, [parse_rule("not worse by 5pp")]).checks
        estimate = comparison.overall["all"].difference
        half = t_distribution.ppf(0.95, estimate.df or np.inf) * estimate.standard_error
        assert (check.low, check.high) == pytest.approx((estimate.estimate - half, estimate.estimate + half))


@pytest.mark.parametrize(
    ("text", "value"), [("1pp", 0.01), ("1 pp", 0.01), ("0.5 points", 0.005), ("0.01", 0.01), ("1e-3", 0.001), ("2", 2)]
)
def test_margins_are_read_alike_everywhere(text, value):
    assert parse_margin(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0", "-1pp", "1%", "inf", "nan", "101pp", "1e999", "pp", "١pp"])
def test_what_is_no_margin_is_refused(text):
    with pytest.raises(SpecError, match="margin"):
        parse_margin(text)


def test_commands_take_points(runs, tmp_path):
    for value in ("1pp", "0.01"):
        ran = CliRunner().invoke(app, ["compare", *map(str, runs), "--margin", value, "--json"])
        assert json.loads(ran.output)["decision_rule"]["margin"] == 0.01
    out = tmp_path / "r.json"
    assert CliRunner().invoke(app, ["report", *map(str, runs), "--margin", "1pp", "-o", str(out)]).exit_code == 0
    assert json.loads(out.read_text())["comparison"]["decision_rule"]["margin"] == 0.01
    asked = ["power", "--effect", "0.03", "--variance", "0.1", "--margin", "2pp", "--json"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert isinstance(CliRunner().invoke(app, ["compare", *map(str, runs), "--margin", "1%"]).exception, SpecError)
