"""Tables and data frames of anybody, compared as runs are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.errors import InputError
from evalkit.reports.adaptors import from_frame
from evalkit.reports.comparison import compare
from evalkit.reports.inputs import load_run
from evalkit.stats.discordance import discordant_counts, proportion_difference


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "item": [f"{n:03d}" for n in range(120)] * 2,
        "model": ["base"] * 120 + ["new"] * 120,
        "score": rng.integers(0, 2, 240),
        "topic": ["x", "y", "z"] * 80,
    })  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl", "feather"])
def test_a_table_of_two_models_is_compared_by_naming_each(frame, tmp_path, suffix):
    path = tmp_path / f"scores.{suffix}"
    if suffix in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        getattr(frame, f"to_{suffix}")(path)
    found = compare(tmp_path / f"scores.{suffix}@base", tmp_path / f"scores.{suffix}@new", slices="topic")
    a, b = (frame.score[frame.model == one].to_numpy() for one in ("base", "new"))
    expected = proportion_difference(*discordant_counts(a, b))
    difference = found.overall["all"].difference
    assert (difference.low, difference.high) == (expected.low, expected.high)
    assert [one.estimate.n_items for one in found.slices.slices] == [40, 40, 40]
    assert load_run(tmp_path / f"scores.{suffix}@base").samples.doc_hash.tolist()[7] == "007"


def test_data_frames_are_compared_without_files(frame):
    a, b = (from_frame(frame[frame.model == one]) for one in ("base", "new"))
    found = compare(a, b)
    assert (found.name_a, found.name_b, found.overall["all"].n_items) == ("base", "new", 120)


def test_columns_may_have_other_names_on_the_command_line(frame, tmp_path):
    renamed = frame.rename(columns={"item": "question_id", "score": "correct"})
    for name in ("base", "new"):
        renamed[renamed.model == name].to_csv(tmp_path / f"{name}.csv", index=False)
    given = [str(tmp_path / "base.csv"), str(tmp_path / "new.csv"), "--columns", "item=question_id,score=correct"]
    found = CliRunner().invoke(app, ["compare", *given], catch_exceptions=False)
    assert found.exit_code == 0
    assert "On all 120 items" in found.stdout


def test_true_and_false_are_scores_missing_ones_are_unscored_and_numbers_are_identifiers():
    frame = pd.DataFrame({"item": [1, 2, 3], "score": [True, False, None], "seed": [0, 0, 0], "cluster": [1, None, 1]})
    run = from_frame(frame)
    assert run.samples.score.tolist()[:2] == [1.0, 0.0]
    assert run.samples.score.isna().tolist() == [False, False, True]
    assert run.samples.doc_hash.tolist() == ["1", "2", "3"]
    missing = pd.DataFrame({"item": [1.0, 2.0], "score": [0.5, 1]})
    assert from_frame(missing).samples.doc_hash.tolist() == ["1", "2"]


def test_repeats_and_seeds_are_told_apart_by_their_columns():
    rows = [(item, seed, repeat) for item in "pqr" for seed in (0, 1) for repeat in (0, 1)]
    frame = pd.DataFrame(rows, columns=["item", "seed", "repeat"]).assign(score=0.5, cluster="c")
    run = from_frame(frame)
    assert len(run.samples) == 12
    assert run.samples.cluster.tolist() == ["c"] * 12


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["x"], "score": [1]}, r"no column 'item' \(it has: id, score\)"),
        ({"item": ["x"], "score": ["good"]}, r"row 1, column score: 'good' is no score"),
        ({"item": ["x", "y"], "score": [1, float("inf")]}, r"row 2, column score: 'inf' is no score"),
        ({"item": ["x", None], "score": [1, 1]}, r"row 2, column item: there is no value"),
        ({"item": ["x", "x"], "score": [1, 0]}, r"item 'x' of task '.*' stands in rows 1 and 2"),
        ({"item": ["x"], "score": [1], "seed": ["one"]}, r"row 1, column seed: 'one' is no whole number"),
        ({"item": ["x"], "score": [1], "repeat": [0.5]}, r"row 1, column repeat: 0.5 is no whole number"),
        ({"item": ["x", "x"], "score": [1, 0], "model": ["a", "b"]}, r"several models: a, b\. Give one .*@a"),
        ({"item": [], "score": []}, r"the table has no rows"),
    ],
)
def test_a_faulty_table_is_refused_with_row_and_column(columns, message):
    with pytest.raises(InputError, match=message):
        from_frame(pd.DataFrame(columns))


def test_unknown_columns_models_and_formats_are_refused(frame, tmp_path):
    path = tmp_path / "scores.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"has no model 'other' \(base, new\)"):
        load_run(tmp_path / "scores.csv@other")
    with pytest.raises(InputError, match="there is no column 'right'"):
        load_run(path, {"score": "right"})
    with pytest.raises(InputError, match="'points' means nothing"):
        load_run(path, {"points": "score"})
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"no results of a known format.*Give a run directory"):
        load_run(tmp_path / "notes.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1x")
    with pytest.raises(InputError, match=r"broken\.parquet: the table cannot be read"):
        load_run(tmp_path / "broken.parquet")


def test_foreign_names_are_text_in_the_terminal():
    frame = pd.DataFrame({"item": ["x", "y"], "score": [0, 1], "task": ["\x1b[31m[red]t[/red]"] * 2})
    from io import StringIO

    from rich.console import Console

    from evalkit.reports.terminal import render

    out = StringIO()
    render(compare(from_frame(frame, name="\x1b]0;me\x07"), from_frame(frame)), Console(file=out, width=200))
    assert "\x1b" not in out.getvalue()
    assert "[red]t[/red]" in out.getvalue()
