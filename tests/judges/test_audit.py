"""The whole audit: slices, panels, ratings, humans, and what is wrong with a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from evalkit import tables
from evalkit.errors import InputError
from evalkit.judges.audit import Audit, audit
from evalkit.judges.verdicts import HumanLabels
from tests.judges.simulated import judge_table


def joined(*parts):
    return pa.concat_tables(parts)


def with_columns(table, **values):
    frame = table.to_pandas().assign(**values)
    return pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)


def test_judges_of_the_same_pairs_make_a_panel_whose_disagreement_is_listed():
    found = audit(joined(*(judge_table(100, seed=s, judge=name) for s, name in enumerate("xyz"))))
    panel = found.panel
    assert panel.judges == ("x", "y", "z") and panel.n_pairs == 100
    assert panel.n_disagreements >= len(panel.disagreements) > 0
    first = dict(panel.disagreements[0].verdicts)
    assert min(first.values()) < 0.5 < max(first.values())
    averages = [one.results[0].averaged.estimate for one in found.judges]
    assert panel.average[0].estimate == pytest.approx(np.mean(averages))
    assert Audit.from_json(found.to_json()) == found


def test_one_judge_is_no_panel():
    assert audit(judge_table(30)).panel is None


def test_three_models_are_rated_with_rank_sets():
    parts = [
        with_columns(judge_table(60, seed=s, quality=q, models=models), pair_id=[f"{s} {i}" for i in range(132)])
        for s, (q, models) in enumerate([(1.5, ("x", "y")), (1.5, ("y", "z")), (3.0, ("x", "z"))])
    ]
    # Each call gets a pair of its own name above; what matters here is who beats whom.
    ((name, ratings),) = audit(joined(*parts)).ratings
    order = sorted(ratings.names, key=lambda one: -ratings.strengths[ratings.names.index(one)])
    assert name == "judge" and order == ["z", "y", "x"]
    best = ratings.names.index("z")
    assert (ratings.rank_low[best], ratings.rank_high[best]) == (1, 1)


def test_tasks_and_pairs_of_models_have_lines_of_their_own_with_the_quality_gap():
    one = with_columns(judge_table(50, seed=0, quality=2.0), task="easy")
    two = judge_table(50, seed=1, position=2.0, models=("a-model", "c-model"))
    two = with_columns(two, task="hard", pair_id=["c " + p for p in two.column("pair_id").to_pylist()])
    found = audit(joined(one, two)).judges[0]
    assert [part.name for part in found.by_task] == ["easy", "hard"]
    gaps = {part.name: part.gap for part in found.by_models}
    assert gaps["a-model / b-model"] > gaps["a-model / c-model"]
    assert found.by_models[1].position.conflict.estimate > found.by_models[0].position.conflict.estimate


def test_human_raters_among_each_other_are_the_ceiling():
    table = judge_table(40, seed=0)
    names = [f"pair {n}" for n in range(40)]
    ratings = {name: {"ann": "a", "ben": "a" if n % 4 else "b"} for n, name in enumerate(names)}
    labels = HumanLabels(dict.fromkeys(names, "a"), ratings)
    found = audit(table, labels=labels)
    assert found.humans.raw.estimate == pytest.approx(0.75)
    assert found.judges[0].with_humans.n == 80, "single verdicts: two for each pair"
    assert found.judges[0].with_humans_both.n == 40


def test_labels_that_fit_no_pair_are_refused_and_some_that_do_not_are_told():
    with pytest.raises(InputError, match="not one label"):
        audit(judge_table(20), labels=HumanLabels({"nothing": "a"}, {"nothing": {"": "a"}}))
    labels = {"nothing": "a", "pair 1": "a", "pair 2": "b"}
    found = audit(judge_table(20), labels=HumanLabels(labels, {name: {"": one} for name, one in labels.items()}))
    assert found.warnings == ("1 of 3 labels belong to no pair",)


def test_many_failures_are_told():
    found = audit(judge_table(200, failures=0.3)).judges[0]
    assert 0.2 < found.n_failed / found.n_calls < 0.4
    assert "have no verdict" in found.warnings[0]


def test_one_order_missing_is_told_and_not_hidden():
    table = judge_table(50, repeats=0)
    frame = table.to_pandas()
    found = audit(pa.Table.from_pandas(frame[frame.order == "ab"], schema=table.schema, preserve_index=False)).judges[0]
    assert found.position.n_one_order == 50 and found.position.sign == "underpowered"
    assert "is unknown" in found.results[0].sentence()


def test_an_empty_table_and_an_unknown_family_are_refused():
    with pytest.raises(InputError, match="no verdict"):
        audit(tables.from_rows(tables.VERDICTS, []))
    with pytest.raises(InputError, match="no judge 'nobody'"):
        audit(judge_table(20), families={"nobody": ["x"]})


def test_the_family_of_a_judge_counts_as_itself():
    found = audit(judge_table(50), families={"judge": ["b-model"]}).judges[0]
    assert found.self_preference.n == 50


def test_close_answers_by_other_judges_have_a_line_of_their_own():
    def judged(**planted):
        parts = (judge_table(600, seed=0, repeats=0, judge=name, **planted) for name in ("j", "x", "y", "z"))
        return audit(joined(*parts)).judges[0].by_gap

    found = judged(position=1.0, spread=3.0)
    assert [one.name for one in found] == ["close", "between", "far apart"]
    assert sum(one.position.n_both for one in found) == 600
    assert found[0].gap < found[1].gap < found[2].gap
    assert found[0].position.conflict.estimate > found[2].position.conflict.estimate + 0.2
    # Where all pairs are alike, so are the parts: nothing is close because the judge contradicted itself on it.
    leads = [one.position.bias for one in judged(position=1.5, spread=0.0)]
    assert max(one.low for one in leads) < min(one.high for one in leads)
    assert audit(judge_table(100)).judges[0].by_gap == ()


def test_verdicts_after_both_orders_are_of_pairs_in_both_orders():
    one, two = judge_table(60, judge="x", labels=1.0, repeats=0), judge_table(60, judge="y", repeats=0)
    frame = one.to_pandas()
    frame = frame[(frame.order == "ab") | (frame.pair_id.str[5:].astype(int) < 40)]
    cut = pa.Table.from_pandas(frame, schema=one.schema, preserve_index=False)
    found = audit(joined(cut, two))
    assert found.judges[0].with_humans.n == 100 and found.judges[0].with_humans_both.n == 40
    assert found.panel.n_pairs == 40
    assert found.panel.warnings == ("x: 20 pairs without verdicts in both orders are left out",)


def test_questions_are_the_units_of_the_human_ceiling():
    table = with_columns(judge_table(40, repeats=0), doc_hash=[f"q{n % 8}" for n in [*range(40)] * 2])
    ratings = {f"pair {n}": {"ann": "a", "ben": "a" if n % 3 else "b"} for n in range(40)}
    found = audit(table, labels=HumanLabels(dict.fromkeys(ratings, "a"), ratings)).humans
    assert found.n == 40 and found.raw.n == 8 and found.raw.unit == "clusters"


def test_ratings_are_at_equal_position_and_say_where_they_cannot_be():
    def rated(met, orders):
        parts = []
        for seed, models in enumerate(met):
            frame = judge_table(300, seed=seed, position=2.0, spread=0.0, models=models, repeats=0).to_pandas()
            frame = frame[frame.order.isin(orders)]
            frame["pair_id"] = [f"{seed} {one}" for one in frame.pair_id]
            parts.append(pa.Table.from_pandas(frame, schema=tables.VERDICTS.schema, preserve_index=False))
        found = audit(joined(*parts))
        return found.ratings[0][1], found.warnings

    # All models are equally good; the one named first is shown first where there is one order.
    for met, orders in (("xy", "yz", "zx"), ["ab", "ba"]), (("xy", "yz", "zx"), ["ab"]):
        found, warnings = rated([tuple(one) for one in met], orders)
        assert found.coefficients[0].low < 2.0 < found.coefficients[0].high and not warnings
        assert max(map(abs, found.strengths)) < 0.3
    # Where x is always first, it is better or favoured.
    found, warnings = rated([("x", "y"), ("x", "z")], ["ab"])
    assert found.strengths[0] > 0.5 and "position bias, if it has one, is in the ratings" in warnings[0]


def test_parts_of_a_fair_judge_are_called_biased_no_more_often_than_the_whole():
    found = 0
    for seed in range(30):
        table = judge_table(300, seed=seed, repeats=0)
        tasks = [f"task {int(name[5:]) % 10}" for name in table.column("pair_id").to_pylist()]
        found += any(one.position.sign == "biased" for one in audit(with_columns(table, task=tasks)).judges[0].by_task)
    assert found <= 5
