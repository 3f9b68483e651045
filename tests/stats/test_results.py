"""Results: plain values, strict JSON, frames, sentences."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest

from evalkit.stats.results import Estimate, Result, TestResult

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
