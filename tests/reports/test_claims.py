"""What the report's sentences say, in cases in which an easy sentence would be wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evalkit.reports import claims
from evalkit.reports.adaptors import from_frame
from evalkit.reports.comparison import compare
from evalkit.reports.document import Claim
from evalkit.reports.significance import report
from evalkit.reports.trend import trend
from tests.reports.runs import write_audit, write_run


def runs(tmp_path, *scores, task="t", **options):
    return [
        write_run(tmp_path / name, {(task, f"{i}"): value for i, value in enumerate(of)}, name=name, **options)
        for name, of in zip("abcd", scores, strict=False)
    ]


def text(claim):
    return " ".join(claim.sentences)


def checkpoints(tmp_path, rights):
    for step, right in rights.items():
        place = {"checkpoint": {"step": step, "series": None}}
        write_run(tmp_path / f"{step}", {("t", f"{i}"): float(i < right) for i in range(100)}, record=place)
    return claims.trend_claim(trend(tmp_path))


def test_a_difference_that_does_not_last_is_not_said_to_have_never_been(tmp_path):
    claim = checkpoints(tmp_path, {100: 20, 200: 70, 300: 21})
    assert text(claim) == "No difference from the first checkpoint is clear and lasts to the last step: 1 (t)."
    assert "gain" not in claim.figures["trend"]


def test_one_checkpoint_has_nothing_to_be_compared_with(tmp_path):
    assert text(checkpoints(tmp_path, {100: 20})).startswith("There is one checkpoint only")


def test_the_interval_for_other_seeds_is_no_prediction_and_unmatched_seeds_have_no_shares():
    rng = np.random.default_rng(0)
    item, seed = (of.ravel() for of in np.indices((40, 3)))
    for first, known in ((100, False), (0, True)):
        made = [
            from_frame(pd.DataFrame({"item": item, "seed": seed + begin, "score": rng.random(120).round()}), name=name)
            for begin, name in ((0, "a"), (first, "b"))
        ]
        said = text(claims.seeds_claim(compare(*made)))
        assert "would lie" not in said
        assert "it holds zero." in said
        assert ("Shares of the variance are not known for 1 (table)" in said) is not known


def test_the_worst_case_is_that_of_the_difference_itself(tmp_path):
    first, second = [0.0] * 40 + [1.0], [1.0] * 40
    said = text(claims.assumptions_claim(compare(*runs(tmp_path, first, second))))
    assert "the difference itself would keep its sign; its interval is not computed" in said
    whole = claims.assumptions_claim(compare(*runs(tmp_path, first[:40], second)))
    assert "No item of the compared tasks was dropped." in whole.sentences


def test_runs_over_different_items_have_no_partners_that_could_be_dropped(tmp_path):
    one = compare(*runs(tmp_path, [0.0, 1.0] * 20, [1.0, 1.0, 0.0] * 10), unpaired=True)
    assert "so none was dropped" in text(claims.assumptions_claim(one))


def test_the_columns_of_several_tasks_name_how_they_are_adjusted(tmp_path):
    rng = np.random.default_rng(1)
    for shared, how in ((True, "max-T"), (False, "Holm")):
        made = []
        for name in "ab":
            values = {
                (task, f"{i}" if shared else f"{task}{i}"): float(rng.random() < 0.5)
                for task in "tu"
                for i in range(60)
            }
            made.append(write_run(tmp_path / how / name, values, name=name))
        [table] = claims.tasks_claim(compare(*made)).tables
        assert {"interval (all tasks at once)", f"p ({how})"} <= set(table.columns)


def test_equal_names_of_sources_in_two_tasks_are_two_sources(tmp_path):
    rng = np.random.default_rng(2)
    made = []
    for name in "ab":
        values = {(task, f"{task}{i}"): float(rng.random() < 0.5) for task in "tu" for i in range(40)}
        made.append(write_run(tmp_path / name, values, name=name, cluster=lambda _, item: str(int(item[1:]) // 4)))
    assert dict(claims.strip_of(compare(*made)))["clusters"] == "20"


def test_what_is_smaller_on_flagged_items_is_not_said_to_be_larger_by_less_than_nothing(tmp_path):
    rng = np.random.default_rng(3)
    first = (rng.random(200) < 0.5).astype(float)
    leaked, noise = np.arange(200) < 60, rng.random(200) < 0.05
    second = np.where(leaked, first * (rng.random(200) < 0.5), np.where(noise, 1 - first, first))
    audit = write_audit(tmp_path / "audit", {f"{i}": "dirty" if i < 60 else "clean" for i in range(200)})
    made = report(*runs(tmp_path, first.tolist(), second.tolist()), audit=audit)
    assert "B − A is smaller than on clean ones" in text(made["contamination"])
    assert made.headline.startswith("The loss is explained by contamination")


def test_commands_can_be_copied_from_markdown():
    claim = Claim("repeat", "How", (), commands=("evalkit run --model my_model*",))
    assert "\n    evalkit run --model my_model*" in claim.to_markdown()
