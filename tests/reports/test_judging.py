"""What `evalkit judge` prints, and its JSON."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from evalkit import tables
from evalkit.cli import app
from evalkit.judges.audit import audit
from evalkit.reports.judging import render_audit
from tests.judges.simulated import judge_table


def printed(render, found):
    console = Console(width=200, file=io.StringIO())
    render(found, console)
    return console.file.getvalue()


def invoke(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "verdicts.parquet"
    tables.write(path, judge_table(200, seed=0, position=1.5, quality=0.5, failures=0.02, labels=0.3), tables.VERDICTS)
    return path


def test_an_audit_prints_bias_noise_result_and_the_sentence(table):
    found = invoke("--verdicts", table)
    assert found.exit_code == 0, found.output
    for part in (
        "\u2717 Position: biased",
        "noise: two calls of the same order differ",
        "inconsistency beyond that noise",
        "McNemar mid-p",
        "100 characters more",
        "with human labels",
        "cannot be told from position bias when it is asked in one order",
        "kept as errors",
    ):
        assert part in " ".join(found.output.split()), part


def test_json_has_everything_and_is_the_audit(table):
    found = json.loads(invoke("--verdicts", table, "--json").stdout)
    judge = found["audit"]["judges"][0]
    assert judge["position"]["sign"] == "biased"
    assert found["read"]["counts"] == {"error: the judge failed": judge["n_failed"]}


def test_bad_rows_are_shown_with_file_and_row(tmp_path):
    path = tmp_path / "v.jsonl"
    row = {"judge": "j", "model_a": "x", "model_b": "y", "order": "ab"}
    rows = [row | {"pair_id": str(n), "winner": "a" if n % 3 else "maybe"} for n in range(30)]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, row | {"winner": "a"}]))
    text = " ".join(invoke("--verdicts", path).output.split())
    assert "31 rows, 30 verdicts; 1 dropped, 10 kept as errors" in text
    assert "row 1, column winner: the verdict cannot be read ('maybe')" in text
    assert "row 31, column pair_id: it is empty (dropped)" in text, "the first of each kind is shown"
    assert "9 more" in text


def test_foreign_text_is_not_obeyed(tmp_path):
    path = tmp_path / "v.jsonl"
    row = {"judge": "\x1b[31mred", "model_a": "[bold]x", "model_b": "y", "pair_id": "p", "winner": "a", "order": "ab"}
    path.write_text(json.dumps(row) + "\n")
    text = invoke("--verdicts", path).output
    assert "\x1b" not in text and "<U+001B>" in text and "[bold]x" in text


def test_names_of_judges_in_headings_of_tables_are_not_obeyed():
    # A closing tag without an opening one would end the program, were it read as markup.
    frame = judge_table(90, judge="[/x] j").to_pandas()
    frame["model_a"], frame["model_b"] = "[/red]", [f"m{n % 3}" for n in range(len(frame))]
    frame["pair_id"] += frame.model_b
    found = audit(pa.Table.from_pandas(frame, schema=tables.VERDICTS.schema, preserve_index=False))
    text = printed(render_audit, found)
    assert "ratings by [/x] j" in text and "[/red]" in text


def test_undefined_agreement_is_not_printed_as_a_number():
    table = judge_table(30, spread=0.0, quality=40.0, labels=1.0)
    text = printed(render_audit, audit(table))
    assert "agree on 100.0% of 60" in text and "Cohen undefined, Fleiss undefined, Krippendorff undefined" in text
    assert "note: all ratings are of one category" in text and "prevalence: b 100.0%" in text


def test_ratings_apart_are_printed_without_a_word_on_order():
    frame = judge_table(100, repeats=0).to_pandas()
    frame = frame[frame.order == "ab"].assign(order="none")
    text = printed(
        render_audit, audit(pa.Table.from_pandas(frame, schema=tables.VERDICTS.schema, preserve_index=False))
    )
    assert "- Position: none to favour, as answers were rated apart" in text
    for wrong in ("nobody knows", "unknown", "both orders", "underpowered"):
        assert wrong not in text, wrong


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "two runs, a judge and a directory"),
        (["a", "b", "--judge", "m"], "two runs, a judge and a directory"),
        (["a", "--verdicts", "v.jsonl"], "so nothing is judged"),
        (["--verdicts", "no-such.jsonl"], "cannot be read"),
        (["--verdicts", "v.jsonl", "--limit", "5"], "so nothing is judged"),
        (["--verdicts", "v.jsonl", "--out", "o"], "so nothing is judged"),
        (["--verdicts", "v.jsonl", "--prompt", "pairwise"], "so nothing is judged"),
        (["a", "b", "--judge", "m", "--out", "o", "--columns", "winner=x"], "no verdicts to read"),
        (["a", "b", "--judge", "m", "--out", "o", "--format", "named"], "no verdicts to read"),
    ],
)
def test_mistakes_end_with_a_message(arguments, what):
    found = invoke(*arguments)
    assert found.exit_code and what in str(found.exception)


def test_the_examination_is_a_subcommand_of_its_own():
    assert "Questions; each makes five pairs" in " ".join(invoke("probe", "--help").output.split())


def test_several_judgings_are_a_panel(tmp_path):
    for seed, name in enumerate(("x", "y")):
        tables.write(tmp_path / name / "verdicts.parquet", judge_table(50, seed=seed, judge=name), tables.VERDICTS)
    text = " ".join(invoke("--verdicts", tmp_path / "x", tmp_path / "y").output.split())
    assert "Panel of 2 judges on 50 pairs" in text and "one judge says A and another B" in text


def test_labels_of_raters_and_a_judges_own_family_are_options(tmp_path, table):
    labels = tmp_path / "labels.csv"
    rows = [f"pair {n},{'a' if n % 3 else 'b'},{rater}" for n in range(40) for rater in ("ann", "ben")]
    labels.write_text("pair_id,label,rater\n" + "\n".join(rows) + "\n")
    found = invoke("--verdicts", table, "--labels", labels, "--own", "judge=b-model")
    text = " ".join(found.output.split())
    assert "The ceiling, humans among each other" in text
    assert "self-preference: judge, b-model wins" in text
    assert "no JUDGE=MODEL" in str(invoke("--verdicts", table, "--own", "judge").exception)


def test_a_leaderboard_prints_what_is_known_and_each_note_once(data_dir):
    text = invoke("--verdicts", data_dir / "judges" / "alpaca_eval_verdicts.jsonl.gz").output
    assert "first twice" not in text, "no order is known, so there is no table of them"
    assert "if consistent" not in text and "by probabilities" in text and "at equal length" in text
    assert text.count("nobody knows which answer was shown first: nothing is corrected") == 2, "once for each judge"
    assert "alike for 14 more pairs of models" in text
