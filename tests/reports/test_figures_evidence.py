"""The figures of the evidence: what they draw is what was computed, and each can be called alone."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from evalkit.errors import SpecError
from evalkit.reports.comparison import Comparison, compare
from evalkit.reports.figures import inline_svg, to_svg
from evalkit.reports.figures_evidence import discordance_bars, leak_strip, order_mosaic, power_curve, seed_strip
from evalkit.reports.trend import checkpoint_trend, trend
from evalkit.stats.power import PairedDesign, required_items
from tests.reports.runs import write_audit, write_run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    values = [
        {("t", f"{i}"): [float((i * (s + k)) % 7 > k) for s in (1, 2, 3)] for i in range(60)} for k in (2, 3)
    ]  # fmt: skip
    runs = [write_run(folder / n, of, name=n, over="seed") for n, of in zip("ab", values, strict=True)]
    audit = write_audit(folder / "audit", {f"{i}": "dirty" if i < 20 else "clean" for i in range(60)})
    return compare(*runs, audit=audit, margin=0.05)


def texts(figure):
    figure.draw_without_rendering()
    return [
        one.get_text()
        for axes in figure.axes
        for one in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    ]


def test_each_is_a_figure_that_shows_itself_and_is_the_same_every_time(comparison):
    for draw in (seed_strip, discordance_bars, power_curve, leak_strip):
        figure = draw(comparison)
        assert isinstance(figure, Figure)
        assert figure._repr_svg_().startswith("<svg")
        assert to_svg(draw(comparison)) == to_svg(draw(comparison))
        assert "style" not in inline_svg(figure, "x")


def test_every_seed_is_a_dot_and_matched_seeds_are_joined(comparison):
    [axes] = seed_strip(comparison).axes
    joined = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    noise = comparison.tasks[0].noise
    assert [list(line.get_ydata()) for line in joined] == [
        [100 * a, 100 * b] for a, b in zip(noise.seed_means_a, noise.seed_means_b, strict=True)
    ]
    assert len(joined) == 3
    assert np.mean(noise.seed_means_a) == pytest.approx(comparison.overall["all"].score_a)


def test_the_bars_are_the_discordant_counts(comparison):
    shown = texts(discordance_bars(comparison))
    for side, sign in (("a", 1), ("b", -1)):
        n = sum(sign * (item.score_a - item.score_b) > 0 for item in comparison.items)
        assert f"{n:,}" in shown, side


def test_the_power_curve_reaches_80_per_cent_at_the_required_number_of_items(comparison):
    figure = power_curve(comparison)
    line = next(one for one in figure.axes[0].lines if len(one.get_xdata()) > 10)
    n, power = line.get_xdata(), line.get_ydata()
    difference = comparison.overall["all"].difference
    design = PairedDesign(between=difference.standard_error**2 * difference.n_items)
    needed = required_items(0.05, design).n_items
    assert np.interp(80, power, n) == pytest.approx(needed, rel=0.06)


def test_the_strips_have_a_row_for_flagged_and_for_clean_items(comparison):
    shown = texts(leak_strip(comparison))
    assert {"t, flagged", "t, clean", "n = 20", "n = 40"} <= set(shown)


def test_the_mosaic_s_areas_are_the_counts():
    counts = np.array([[30, 5, 15], [2, 6, 2], [10, 5, 25]])
    [axes] = order_mosaic(counts, judge="j").axes
    areas = sorted(one.get_width() * one.get_height() / 100 for one in axes.patches)
    assert areas == pytest.approx(sorted(counts.ravel()))


def test_what_cannot_be_drawn_is_refused_with_what_to_do(comparison, tmp_path):
    run = write_run(tmp_path / "a", {("t", f"{i}"): float(i % 2) for i in range(10)})
    one = compare(run, run)
    for draw in (seed_strip, leak_strip):
        with pytest.raises(SpecError):
            draw(one)
    with pytest.raises(SpecError, match="no items"):
        discordance_bars(Comparison.from_json(comparison.to_json()))
    with pytest.raises(SpecError, match="3 x 3"):
        order_mosaic([[1, 2], [3, 4]])


def test_the_trend_marks_the_step_from_which_the_gain_is_clear(tmp_path):
    for step, right in ((100, 20), (200, 22), (300, 60), (400, 80)):
        place = {"checkpoint": {"step": step, "series": None}}
        write_run(tmp_path / f"{step}", {("t", f"{i}"): float(i < right) for i in range(100)}, record=place)
    found = trend(tmp_path)
    assert found.tasks[0].series[0].clear_from == 300
    [axes] = checkpoint_trend(found).axes
    assert any(list(line.get_xdata()) == [300, 300] for line in axes.lines)


def test_a_gain_that_does_not_last_is_not_clear(tmp_path):
    for step, right in ((100, 20), (200, 70), (300, 21)):
        place = {"checkpoint": {"step": step, "series": None}}
        write_run(tmp_path / f"{step}", {("t", f"{i}"): float(i < right) for i in range(100)}, record=place)
    assert trend(tmp_path).tasks[0].series[0].clear_from is None
