"""Results: plain values, strict JSON, frames, sentences."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

import evalkit.stats
from evalkit.stats.components import crossed
from evalkit.stats.decisions import DecisionRule, decide, tost
from evalkit.stats.macro import macro_mean
from evalkit.stats.multiple import holm, max_t
from evalkit.stats.paired import effect_sizes, paired_difference
from evalkit.stats.power import PairedDesign, required_items
from evalkit.stats.ppi import prediction_powered_mean
from evalkit.stats.ratings import bradley_terry
from evalkit.stats.repeats import repeated_mean
from evalkit.stats.results import Estimate, Result, TestResult
from evalkit.stats.sequential import bounded_sequence, sequential_comparison
from evalkit.stats.slices import slice_means
from evalkit.stats.split import choose_threshold, score_split
from evalkit.stats.standings import standings
from evalkit.stats.trend import late_change, rank_trend

ESTIMATE = Estimate(
    estimate=0.0432,
    low=0.015,
    high=0.0714,
    confidence_level=0.95,
    method="paired t",
    population="items like these",
    unit="items",
    n=1319,
    n_items=1319,
    monte_carlo_error=(0.001, 0.002),
    n_resamples=1000,
    resampling_seed=7,
    quantity="the difference B - A",
)
TEST = TestResult(0.002687, "McNemar mid-p", "both are right equally often", 1319, b=152, c=209)


@dataclass(frozen=True)
class Nested(Result):
    parts: dict[str, Estimate]
    rows: tuple[TestResult, ...]
    pair: tuple[float, str]
    maybe: Estimate | None
    name: str = "inf"


NESTED = Nested({"x": ESTIMATE}, (TEST, TEST), (1.5, "inf"), None)


@pytest.mark.parametrize("result", [ESTIMATE, replace(ESTIMATE, low=-math.inf), TEST, NESTED])
def test_every_result_survives_strict_json(result):
    text = result.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert type(result).from_json(text) == result


def test_results_of_an_older_version_are_read():
    old = {key: value for key, value in ESTIMATE.to_dict().items() if key not in ("quantity", "n_resamples")}
    assert Estimate.from_dict(old).quantity == "the estimate"


def test_an_explanation_is_two_sentences_with_the_numbers_and_their_meaning():
    for result in ESTIMATE, replace(ESTIMATE, low=None, high=None, warnings=("too few clusters",)), TEST:
        explained = result.explain()
        assert explained.endswith(".")
        assert explained.count(". ") == 1
        assert result.method in explained or getattr(result, "low", 0) is None
        assert result.population in explained
    assert "0.0432" in ESTIMATE.explain()
    assert "0.015 to 0.0714" in ESTIMATE.explain()
    assert "seed 7" in ESTIMATE.explain()


def test_an_explanation_counts_items_and_units():
    assert "On 1319 items," in ESTIMATE.explain()
    assert "On 1319 items in 25 clusters," in replace(ESTIMATE, unit="clusters", n=25).explain()
    assert "On 1319 items with 3 seeds," in replace(ESTIMATE, unit="seeds", n=3).explain()
    assert "On 361 of 1319 items," in replace(ESTIMATE, n=361).explain()


def test_levels_are_written_out():
    assert "97.5% interval" in str(replace(ESTIMATE, confidence_level=0.975))


def test_a_notebook_shows_the_line_and_the_explanation_escaped():
    shown = replace(ESTIMATE, method="<b>")._repr_html_()
    assert "<b>" not in shown
    assert "compatible" in shown


def test_a_frame_has_one_row():
    for result in ESTIMATE, TEST:
        assert result.to_frame().shape[0] == 1


def one_of_each():
    """A result of every kind, of made-up scores."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 60, 3))
    right_a, right_b = (of[:, 0] > 0.5 for of in (a, b))
    scores = crossed(a)
    difference = paired_difference(a[:, 0], b[:, 0])
    plan = required_items(0.1, PairedDesign(between=0.3))
    sliced = slice_means(b[:, 0], [f"s{n % 5}" for n in range(60)], baseline=a[:, 0])
    return [
        difference, tost(difference, 0.1), DecisionRule(margin=0.1), decide(difference, DecisionRule(margin=0.1)),
        scores, *scores.components, *scores.designs(("item", "seed")), macro_mean([difference, difference]),
        holm([0.01, 0.2]), max_t(b - a), effect_sizes(right_a, right_b), plan, plan.design, plan.errors,
        prediction_powered_mean(a[:, 0], a[:, 1], rng.random(200)), repeated_mean(a.ravel(), np.repeat(range(60), 3)),
        bradley_terry("xyz" * 9, "yzx" * 9, [1, 0, 1, 1, 1, 0, 0, 0, 1] * 3),
        bounded_sequence(a[:, 0]), sequential_comparison(right_a, right_b), sliced, *sliced.slices,
        score_split(right_a, right_b), choose_threshold(right_a, b[:, 0], n_resamples=200),
        rank_trend([1, 2, 3, 4], [0.1, 0.2, 0.15, 0.3]), late_change(np.sort(a, axis=1), [1, 2, 3]),
        standings([a], "xyz", n_draws=500),
    ]  # fmt: skip


def kinds_of(kind):
    return {one for child in kind.__subclasses__() for one in (child, *kinds_of(child))}


def test_every_kind_of_result_explains_itself_survives_json_and_is_shown_escaped():
    for module in pkgutil.iter_modules(evalkit.stats.__path__):
        importlib.import_module(f"evalkit.stats.{module.name}")
    seen = one_of_each()
    wanted = {one for one in kinds_of(Result) if one.__module__.startswith("evalkit.stats.")}
    assert {type(one) for one in seen} == wanted
    for one in seen:
        json.loads(one.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert type(one).from_json(one.to_json()) == one
        assert one.explain().endswith("."), one.explain()
        assert "=" not in str(one).split("(")[0] or not str(one).startswith(type(one).__name__)
        assert len(one.to_frame()) >= 1
        assert one._repr_html_().count("<pre>") == 1
