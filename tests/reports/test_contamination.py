"""The score split: runs and an audit joined by doc_hash, on tables whose truth is known."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from evalkit import tables
from evalkit.cli import app
from evalkit.contamination.benchmarks import from_file
from evalkit.errors import CompareError, InputError, SpecError
from evalkit.reports.contamination import (
    CONTROL,
    POPULATION,
    notes,
    render_splits,
    score_splits,
    write_split_figure,
    write_splits,
)
from evalkit.stats.split import score_split
from tests.reports.runs import write_run


def write_audit(folder, contamination, *, rule="llama3", threshold=0.5, fields=("question",), more=(), bad_rows=0):
    """Write an audit; `contamination` maps doc_hash to that of its fields. `more` are rows of other rules."""
    rows = [
        {
            "benchmark": "t",
            "doc_hash": doc_hash,
            "field": field,
            "rule": rule,
            "contamination": value,
            "label": "dirty" if value >= threshold else "clean",
            "n_documents": 0,
        }
        for doc_hash, values in contamination.items()
        for field, value in zip(fields, values if isinstance(values, list) else [values], strict=False)
    ]
    rows += [{"benchmark": "t", "field": "question", "label": "clean", "n_documents": 0, **one} for one in more]
    tables.write(folder / "items.parquet", tables.from_rows(tables.ITEMS, rows), tables.ITEMS)
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    record = {
        "rules": rules,
        "rule_definitions": [{"name": rule, "threshold": threshold, "is_strict": False}],
        "totals": {"n_bad_rows": bad_rows},
    }
    (folder / "audit.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def leaky(tmp_path):
    """400 items; of the 160 with a contamination from 0.6 on, 90% are right, of the others half."""
    rng = np.random.default_rng(1)
    contamination = {f"d{n}": float(value) for n, value in enumerate(rng.random(400).round(2))}
    right = {one: float(rng.random() < (0.9 if value >= 0.6 else 0.5)) for one, value in contamination.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "leaks").mkdir()
    run = write_run(tmp_path / "a", {("t", one): score for one, score in right.items()}, name="leaky")
    return run, write_audit(tmp_path / "leaks", contamination), contamination, right


def test_items_meet_their_contamination_by_doc_hash(leaky):
    run, audit, contamination, right = leaky
    (entry,) = score_splits([run], audit, n_resamples=200).entries
    flagged = np.array([contamination[one] >= 0.5 for one in right])
    assert entry.split == score_split(list(right.values()), flagged, cluster=list(right))
    assert (entry.run, entry.task, entry.metric, entry.rule, entry.rule_threshold) == (
        "leaky", "t", "acc", "llama3", "\u2265 0.50",
    )  # fmt: skip
    chosen = entry.choice.chosen
    assert 0.3 < chosen.threshold < 0.7 and chosen.p_value < 0.01
    assert chosen.gain == pytest.approx(
        np.mean(list(right.values()))
        - np.mean([score for one, score in right.items() if contamination[one] < chosen.threshold])
    )
    assert entry.warnings == ()


def test_an_item_is_as_contaminated_as_its_most_contaminated_field(tmp_path):
    scores = {("t", f"d{n}"): float(n % 2) for n in range(40)}
    marks = {f"d{n}": [0.0, 0.8] if n % 2 else [0.3, 0.1] for n in range(40)}
    audit = write_audit(tmp_path, marks, fields=("question", "answer"))
    (entry,) = score_splits([write_run(tmp_path, scores)], audit, n_resamples=100).entries
    assert (entry.split.clean.n_items, entry.split.flagged.n_items) == (20, 20)
    assert [(one.threshold, one.n_flagged) for one in entry.choice.curve] == [(0.8, 20)]
    assert entry.choice.chosen.gain == pytest.approx(0.5)


def test_repeats_are_averaged_and_failed_answers_counted(tmp_path):
    scores = {("t", f"d{n}"): [1.0, 0.0, None] if n < 20 else [1.0, 1.0, 1.0] for n in range(50)}
    marks = {f"d{n}": 1.0 if n >= 20 else 0.0 for n in range(50)}
    run = write_run(tmp_path, scores, over="seed")
    (entry,) = score_splits([run], write_audit(tmp_path, marks), n_resamples=100).entries
    assert (entry.split.clean.estimate, entry.split.flagged.estimate) == (0.5, 1.0)
    assert entry.n_unscored == 20 and "20 answers" in entry.warnings[0]


def test_items_that_the_audit_lacks_or_the_rule_cannot_judge_are_counted_and_on_no_side(tmp_path):
    scores = {("t", f"d{n}"): 1.0 if n < 35 else 0.0 for n in range(40)}
    more = [{"doc_hash": f"d{n}", "rule": "exact", "contamination": 0.0} for n in range(30, 38)]
    audit = write_audit(tmp_path, {f"d{n}": float(n % 2) for n in range(30)}, more=more)
    (entry, other) = score_splits([write_run(tmp_path, scores)], audit, n_resamples=100).entries
    assert (entry.split.everything.n_items, entry.n_not_judged, entry.n_not_audited) == (30, 8, 2)
    assert [warning.split(" of ")[0] for warning in entry.warnings[:2]] == ["2", "8"]
    assert (other.rule, other.split.everything.n_items, other.n_not_judged, other.n_not_audited) == ("exact", 8, 30, 2)
    assert any("nothing to set the clean ones against" in one for one in other.warnings)


def test_a_task_or_a_rule_without_a_common_item_is_named(tmp_path):
    scores = {("t", f"d{n}"): 1.0 for n in range(3)} | {("u", f"e{n}"): 1.0 for n in range(3)}
    audit = write_audit(tmp_path, {f"d{n}": 0.0 for n in range(3)})
    found = score_splits([write_run(tmp_path, scores)], audit, n_resamples=100)
    assert [entry.task for entry in found.entries] == ["t"]
    assert found.warnings == ("u: rule llama3 of the audit has judged none of the scored items",)


def test_where_lower_is_better_a_lower_score_on_flagged_items_is_a_gain(tmp_path):
    rng = np.random.default_rng(2)
    scores = {("t", f"d{n}"): float(rng.normal(2 - (n < 40), 0.3)) for n in range(100)}
    marks = {f"d{n}": 1.0 if n < 40 else 0.0 for n in range(100)}
    tasks = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}
    run = write_run(tmp_path, scores, tasks=tasks)
    (entry,) = score_splits([run], write_audit(tmp_path, marks), n_resamples=100).entries
    assert entry.split.gain.estimate == pytest.approx(entry.split.clean.estimate - entry.split.everything.estimate)
    assert entry.split.gain.low > 0.2 and entry.choice.chosen.gain == pytest.approx(entry.split.gain.estimate)
    assert any("no proportions" in warning for warning in entry.warnings)


def test_runs_are_split_by_a_metric_that_all_of_them_have(tmp_path):
    scores = {("t", f"d{n}"): float(n % 3 == 0) for n in range(60)}
    both = [{"metric": name, "filter": "none", "higher_is_better": True} for name in ("acc", "em")]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a = write_run(tmp_path / "a", scores, name="a", tasks={"metrics": both})
    acc = tables.read(a / "samples.parquet", tables.SAMPLES)
    em = acc.set_column(acc.column_names.index("metric"), acc.schema.field("metric"), pa.array(["em"] * len(acc)))
    tables.write(a / "samples.parquet", pa.concat_tables([acc, em]), tables.SAMPLES)
    b = write_run(tmp_path / "b", scores, name="b", tasks={"metrics": both[1:]}, metric="em")
    audit = write_audit(tmp_path, {f"d{n}": n / 60 for n in range(60)})
    found = score_splits([a, b], audit, n_resamples=100)
    assert [entry.metric for entry in found.entries] == ["em", "em"] and not found.warnings
    assert [entry.metric for entry in score_splits([a], audit, n_resamples=100).entries] == ["acc"]
    console = Console(file=io.StringIO(), width=120)
    render_splits(found, console)
    assert "t, em: " in console.file.getvalue()
    c = write_run(tmp_path / "b", scores, name="c", tasks={"metrics": []}, metric="f1")
    other = score_splits([a, c], audit, n_resamples=100)
    assert [entry.metric for entry in other.entries] == ["acc", "f1"]
    assert "no metric has scores in all runs" in other.warnings[0]
    split = CliRunner().invoke(app, ["compare", str(a), str(tmp_path / "a"), "--audit", str(audit), "--json"])
    assert POPULATION in json.loads(split.stdout)["score_split"]["notes"]


def test_a_suspect_control_is_named(tmp_path):
    scores = {("t", f"d{n}"): float(n % 3 == 0) for n in range(60)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    run = write_run(tmp_path / "a", scores, name="a")
    control = write_run(tmp_path / "b", scores, name="b", record={"health": {"suspect": True}})
    audit = write_audit(tmp_path, {f"d{n}": n / 60 for n in range(60)})
    found = score_splits([run], audit, control=control, n_resamples=100)
    assert found.warnings[0].startswith("b is suspect")


def test_a_control_takes_out_that_flagged_items_are_easier(tmp_path):
    """Flagged items are easier for both; neither has seen them. Without a control that looks like a gain."""
    rng = np.random.default_rng(3)
    easy = {f"d{n}": n < 200 for n in range(400)}
    runs = []
    for name in ("tested", "control"):
        (tmp_path / name).mkdir()
        right = {("t", one): float(rng.random() < (0.8 if is_easy else 0.5)) for one, is_easy in easy.items()}
        if name == "control":
            del right["t", "d0"]
        runs.append(write_run(tmp_path / name, right, name=name))
    audit = write_audit(tmp_path, {one: float(is_easy) for one, is_easy in easy.items()})
    own, controlled = score_splits(runs[:1], audit, control=runs[1], n_resamples=200).entries
    assert own.split.gain.low > 0 and own.choice.chosen is not None
    assert controlled.split.gain.low < 0 < controlled.split.gain.high and controlled.choice.chosen is None
    assert (controlled.control, controlled.n_uncontrolled) == ("control", 1)
    assert controlled.name == "tested \u2212 control"
    assert CONTROL not in notes(score_splits(runs[:1], audit, control=runs[1], n_resamples=60))


def test_clean_items_are_said_to_be_another_population(leaky):
    found = score_splits([leaky[0]], leaky[1], n_resamples=60)
    assert notes(found)[-2:] == [POPULATION, CONTROL]


def test_the_table_names_runs_and_tasks_as_they_are_and_forges_nothing(tmp_path):
    scores = {("t[red]", f"d{n}"): float(n % 3 > 0) for n in range(60)}
    audit = write_audit(tmp_path, {f"d{n}": n / 60 for n in range(60)}, bad_rows=3)
    found = score_splits([write_run(tmp_path, scores, name="[bold]m\nnote: fine")], audit, n_resamples=60)
    stream = io.StringIO()
    render_splits(found, Console(file=stream, width=120))
    shown = stream.getvalue()
    assert "[bold]m<U+000A>note: fine: rule llama3" in shown and "t[red]" in shown
    assert "30 (50%)" in shown and "could not read 3 rows" in shown
    assert "<script>" not in found._repr_html_()
    assert found.to_frame().n_flagged.tolist()[0] == 30


def test_the_result_lies_in_the_audit_directory(leaky):
    found = score_splits([leaky[0]], leaky[1], n_resamples=60)
    path = write_splits(found, leaky[1])
    assert path.name == "score_split.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.to_dict()))


def test_the_curve_is_drawn(leaky, tmp_path):
    found = score_splits([leaky[0]], leaky[1], n_resamples=60)
    write_split_figure(found, tmp_path / "curve.svg")
    assert "gain (points)" in (tmp_path / "curve.svg").read_text()
    with pytest.raises(SpecError, match="neither SVG nor PNG"):
        write_split_figure(found, tmp_path / "curve.pdf")


def test_what_does_not_belong_together_is_refused(leaky, tmp_path):
    run, audit, *_ = leaky
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other", {("t", "x"): 1.0})
    with pytest.raises(CompareError, match="none of the runs' scored items"):
        score_splits([other], audit)
    with pytest.raises(CompareError, match="no rule 'gpt3'"):
        score_splits([run], audit, rules=["llama3", "gpt3"])
    with pytest.raises(SpecError, match="no level"):
        score_splits([run], audit, confidence_level=1.5)
    (audit / "audit.json").unlink()
    with pytest.raises(CompareError, match="not finished"):
        score_splits([run], audit)


def test_the_command_scores_an_audit_that_is_there(leaky, tmp_path):
    run, audit, *_ = leaky
    options = ["--run", str(run), "--figure", str(tmp_path / "curve.png")]
    result = CliRunner().invoke(app, ["audit", "score", str(audit), *options])
    assert result.exit_code == 0, result.output
    assert "leaky: rule llama3" in result.output and "another population" in result.output
    assert (audit / "score_split.json").exists() and (tmp_path / "curve.png").stat().st_size > 1000
    printed = CliRunner().invoke(app, ["audit", "score", str(audit), "--run", str(run), "--json"])
    assert json.loads(printed.stdout)["entries"][0]["task"] == "t"


def test_an_audit_is_scored_right_away_and_its_runs_are_looked_at_before_the_scan(tmp_path, leaky):
    words = [f"w{n}" for n in range(400)]
    questions = [" ".join(words[n : n + 20]) for n in range(0, 300, 10)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": one}) + "\n" for one in questions))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in questions[:12:2]))
    items = from_file(tmp_path / "items.jsonl").items
    (tmp_path / "run").mkdir()
    run = write_run(tmp_path / "run", {("items", item.doc_hash): float(n < 15) for n, item in enumerate(items)})
    out = tmp_path / "found"
    command = ["audit", "--corpus", str(tmp_path / "c.jsonl"), "--benchmark", str(tmp_path / "items.jsonl")]
    command += ["--rule", "longest-match", "--out", str(out), "--workers", "1", "--json", "--run", str(run)]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "none")])
    assert isinstance(refused.exception, InputError) and not out.exists()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    split = printed["score_split"]["entries"][0]["split"]
    assert split["flagged"]["n_items"] == printed["summaries"][0]["n_dirty"]
    assert json.loads((out / "score_split.json").read_text()) == printed["score_split"]


def test_a_comparison_with_an_audit_shows_what_flagged_items_do_to_either_run(leaky, tmp_path):
    run, audit, _, right = leaky
    (tmp_path / "b").mkdir()
    other = write_run(tmp_path / "b", {("t", one): 1.0 - score for one, score in right.items()}, name="other")
    command = ["compare", str(run), str(other), "--audit", str(audit)]
    shown = CliRunner().invoke(app, command)
    assert "leaky: rule llama3" in shown.output and "other: rule llama3" in shown.output
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [entry["run"] for entry in printed["score_split"]["entries"]] == ["leaky", "other"]
    assert "score_split" not in json.loads(CliRunner().invoke(app, [*command[:3], "--json"]).stdout)
