"""Planning a comparison on the command line: published numbers, pilots, figures and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.errors import CompareError, SpecError
from evalkit.reports.power import answer, design_of, pilot_designs, write_power_figure
from evalkit.stats.power import PairedDesign, design_from_scores, mcnemar_errors
from evalkit.stats.results import Result
from tests.reports.runs import write_run


def power(*arguments):
    found = CliRunner().invoke(app, ["power", *map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0
    return json.loads(found.stdout)


def test_millers_example_needs_969_items():
    """arXiv:2411.00640, section 5: omega^2 = 1/9, no answers' variance, 3 points."""
    [found] = power("--effect", 0.03, "--variance", 1 / 9)
    assert found["needed"]["n_items"] == 969


@pytest.mark.parametrize(("repeats", "percent"), [(1, 13.27), (10, 7.57)])
def test_millers_smallest_detectable_effects_of_198_items(repeats, percent):
    design, _ = design_of(0.1, variance=1 / 9, within_a=1 / 6, within_b=1 / 6, repeats_a=repeats, repeats_b=repeats)
    [given] = answer(0.1, design, items=[198]).given
    assert 100 * given.smallest_detectable == pytest.approx(percent, abs=0.005)


def test_few_items_are_planned_by_t():
    found = answer(0.5, PairedDesign(between=1.0)).needed
    assert found.reference == "t"
    expected = TTestPower().solve_power(effect_size=0.5, power=0.8, alpha=0.05)
    assert found.n_items == int(np.ceil(expected))


def test_right_or_wrong_has_mcnemars_exact_power_too():
    design, share = design_of(0.02, discordant=0.12)
    found = answer(0.02, design, discordant=share, items=[1000])
    assert found.mcnemar[0].power == pytest.approx(mcnemar_errors(1000, 0.05, 0.07).power)
    assert found.given[0].errors.power == pytest.approx(found.mcnemar[0].power, abs=0.01)


def test_a_score_and_a_correlation_say_how_many_items_are_discordant():
    """Of scores .7 and .75 with correlation 0, .7 x .25 + .3 x .75 differ."""
    design, share = design_of(0.05, score=0.7, correlation=0.0)
    assert share == pytest.approx(0.7 * 0.25 + 0.3 * 0.75)
    assert design.between == pytest.approx(share - 0.05**2)


def test_a_pilot_gives_the_variances_of_its_scores(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 60, 3)).astype(float)
    runs = [
        write_run(tmp_path / side, {("t", f"{n}"): row.tolist() for n, row in enumerate(of)})
        for side, of in (("a", a), ("b", b))
    ]
    [(task, design, warnings)] = pilot_designs(*runs)
    assert (task, design) == ("t", design_from_scores(a, b))
    assert "60 items of a pilot" in warnings[0]
    [found] = power("--effect", 0.1, "--pilot", *runs)
    assert [k for k, _ in found["repeats"]] == [1, 2, 4, 10]
    same = write_run(tmp_path / "same", {("t", f"{n}"): 1.0 for n in range(60)})
    with pytest.raises(CompareError, match="no task of the pilot can be used"):
        pilot_designs(same, same)


def test_clusters_enlarge_the_plan_by_the_design_effect():
    plain, clustered = (
        answer(0.02, design_of(0.02, variance=0.1, cluster_size=m, icc=0.3)[0]).needed.n_items for m in (1.0, 5.0)
    )
    assert clustered / plain == pytest.approx(1 + 4 * 0.3, rel=0.01)


def test_the_curve_is_drawn_and_the_answer_survives_json(tmp_path):
    design, _ = design_of(0.05, variance=0.1, within_a=0.1, within_b=0.1)
    found = answer(0.05, design, items=[200], margin=0.1)
    write_power_figure([found], tmp_path / "power.svg")
    assert "power for a difference of 5 points" in (tmp_path / "power.svg").read_text()
    assert isinstance(found, Result)
    assert type(found).from_json(found.to_json()) == found
    assert "within 0.1 of each other" in found.explain()
    assert list(found.to_frame()["items"]) == [found.needed.n_items, 200]
    with pytest.raises(SpecError, match="neither SVG nor PNG"):
        write_power_figure([found], tmp_path / "power.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how much the items vary is not said"),
        ({"discordant": 0.1, "variance": 0.1}, "in several ways"),
        ({"score": 0.7}, "is not said"),
        ({"discordant": 0.01}, "needs at least as many discordant items"),
        ({"score": 0.99, "correlation": 0.5}, "cannot be"),
        ({"score": 0.9, "correlation": -0.9}, "cannot correlate"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        design_of(0.03, **options)
