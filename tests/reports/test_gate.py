"""The gate: rules are read or refused, and met, broken or not shown by the interval that belongs to them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.errors import CompareError, SpecError
from evalkit.reports.comparison import compare
from evalkit.reports.gate import check_rules, parse_rule
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
        ("not worse", "not worse", 0.0, "overall", "all"),
    ],
)
def test_rules_are_read(text, kind, margin, task, subset):
    rule = parse_rule(text)
    assert (rule.kind, rule.margin, rule.task, rule.subset) == (kind, pytest.approx(margin), task, subset)


@pytest.mark.parametrize(
    "text", ["", "worse", "not worse by much on t", "not worse by 1 on t", "not worse by 1% on t", "equivalent on t",
             "not worse by -1pp on t", "better by nanpp on t"],
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
    name = "<x>|`\u0000]]>"
    runs = [write_run(tmp_path / k, {("t", f"{i}"): float(i % 2) for i in range(20)}, name=name) for k in "ab"]
    call = ["gate", *map(str, runs), "--rule", "not worse by 50pp", "--junit", str(tmp_path / "j.xml"), "--summary"]
    assert CliRunner().invoke(app, [*call, str(tmp_path / "s.md")]).exit_code == 0
    assert "<x>" in ET.parse(tmp_path / "j.xml").getroot().attrib["name"]
    assert "<x>" not in (tmp_path / "s.md").read_text()
