"""How the report is put together: whose verdicts they are, what several models have in common, how it is made again."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex

import numpy as np
import pytest
import typer
from markupsafe import escape

from evalkit import tables
from evalkit.cli import app
from evalkit.reports import claims
from evalkit.reports.inputs import load_run
from evalkit.reports.page import render_page
from evalkit.reports.significance import made_from, order_counts, report, standings_of
from evalkit.reports.trend import trend
from evalkit.runs.spec import RunSpec
from tests.reports.runs import write_audit, write_run

PAIRS = [("ab", "a", 0), ("ab", "b", 1), ("ab", "a", 2), ("ab", "a", 3), ("ab", "tie", 4)]
BACK = [("ba", "a", 0), ("ba", "b", 1), ("ba", "b", 2), ("ba", "a", 3), ("ba", "b", 4)]


def verdicts(*judged):
    """A verdict for each of the pairs, by judge and the models that it calls A and B."""
    rows = [
        {
            "judge": judge, "pair_id": f"{names} {pair}", "repeat": 0, "order": order, "task": "t",
            "doc_hash": f"{pair}", "model_a": names[0], "model_b": names[1], "length_a": 1, "length_b": 1, "raw": "",
            "winner": winner,
        }
        for judge, names in judged for order, winner, pair in PAIRS + BACK
    ]  # fmt: skip
    return tables.from_rows(tables.VERDICTS, rows)


def test_a_judge_s_a_is_turned_to_the_report_s_and_other_pairs_and_judges_are_kept_apart():
    table = verdicts(("one", ("base", "new")), ("other", ("new", "base")), ("one", ("x", "new")), ("third", ("x", "y")))
    counts = order_counts(table, "base", "new")
    assert list(counts) == ["one", "other"]
    by_hand = np.zeros((3, 3), dtype=int)
    for (_, first, _), (_, second, _) in zip(PAIRS, BACK, strict=True):
        by_hand[["a", "tie", "b"].index(first), ["a", "tie", "b"].index(second)] += 1
    assert counts["one"].tolist() == by_hand.tolist()
    # What the other calls "A wins, shown first" is here "B wins, when B is shown first".
    assert counts["other"].tolist() == by_hand.T[::-1, ::-1].tolist()


def several(tmp_path, scores, *, record=None, **columns):
    return [
        load_run(write_run(tmp_path / name, of, name=name, record=record, **columns)) for name, of in scores.items()
    ]


def test_several_models_go_by_the_same_level_and_sources_and_what_is_left_out_is_counted(tmp_path):
    rng = np.random.default_rng(0)
    scores = {name: {("t", f"{i}"): float(rng.random() < 0.5) for i in range(60)} for name in "abc"}
    del scores["c"]["t", "7"]
    scores["a"] |= {("only", f"o{i}"): 1.0 for i in range(9)}
    runs = several(tmp_path, scores, cluster=lambda _, item: str(int(item) // 4) if item.isdigit() else None)
    found = standings_of(runs, confidence_level=0.8)
    assert (found.confidence_level, found.n_items, found.n_units) == (0.8, 59, 15)
    text = " ".join(found.warnings)
    assert "1 task(s) that not all models have: only" in text
    assert "t: left out 1 item(s) that not all models have scored" in text
    made = report(*(tmp_path / name for name in "abc"), confidence_level=0.8)
    assert made.standings.confidence_level == 0.8


def test_a_column_of_the_documents_gives_the_sources_of_several_models_and_of_checkpoints(tmp_path):
    rng = np.random.default_rng(1)
    scores = {name: {("t", f"{i}"): float(rng.random() < 0.5) for i in range(60)} for name in "abc"}
    runs = several(tmp_path, scores, target=lambda _, item: f"answer {int(item) % 12}")
    assert standings_of(runs).n_units == 60
    assert standings_of(runs, cluster="target").n_units == 12
    for step, of in zip((1, 2, 3), scores.values(), strict=True):
        place = {"checkpoint": {"step": step, "series": None}}
        write_run(tmp_path / "steps" / f"{step}", of, record=place, target=lambda _, item: f"answer {int(item) % 12}")
    lines = [trend(tmp_path / "steps", **options).tasks[0].series[0] for options in ({}, {"cluster": "target"})]
    assert [line.steps[0].score.n for line in lines] == [60, 12]


def test_where_lower_is_better_the_mean_is_shown_as_it_is_and_models_that_agree_have_no_interval(tmp_path):
    rng = np.random.default_rng(2)
    metrics = {"tasks": {"t": {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": False}]}}}
    loss = rng.random(60) + 1
    values = {"a": loss, "b": loss, "c": loss - rng.random(60)}
    scores = {name: {("t", f"{i}"): float(v) for i, v in enumerate(of)} for name, of in values.items()}
    claim = claims.standings_claim(standings_of(several(tmp_path, scores, record=metrics)))
    ranks, pairs = (table.to_frame() for table in claim.tables)
    assert ranks["model"][0] == "c"
    assert ranks["mean score"].tolist()[1:] == [f"{100 * loss.mean():.1f}"] * 2
    assert "+0.0 [no interval]" in pairs.to_string()
    assert "better when lower" in " ".join(claim.notes)


def test_a_further_model_s_health_is_told(tmp_path):
    finding = {"severity": "suspect", "message": "30 of 60 are cut off", "advice": "Read some"}
    values = {("t", f"{i}"): float(i % 2) for i in range(20)}
    for name in "ab":
        write_run(tmp_path / name, values, name=name)
    write_run(tmp_path / "c", values, name="c", record={"health": {"suspect": True, "findings": [finding]}})
    made = report(*(tmp_path / name for name in "abc"))
    assert any(alarm.startswith("c: ") and "cut off" in alarm for alarm in made.alarms)
    assert "30 of 60" in made["health"].tables[0].rows[0][2]


def test_a_run_s_command_has_every_setting_that_is_not_the_default():
    given = {
        "model": "m x", "tasks": ["s", "t"], "out": "o", "tasks_dir": "own", "data": "d", "limit": 5, "num_fewshot": 0,
        "seeds": [1, 2], "chat_template": True, "system_instruction": "Be brief.", "gen_kwargs": {"temperature": 1},
        "batch_size": 4, "device": "cpu", "dtype": "bfloat16", "backend": "openai", "base_url": "http://localhost:1/v1",
        "served_model": "s", "endpoint": "chat", "margin": 0.01, "trust_remote_code": True,
    }  # fmt: skip
    spec = json.loads(RunSpec(**given).model_dump_json())
    words = shlex.split(claims.run_command({"spec": spec}, "o"))
    known = {word for one in typer.main.get_command(app).commands["run"].params for word in one.opts}
    options = [word for word in words if word.startswith("--")]
    assert set(options) <= known
    assert set(options) == {f"--{name.replace('_', '-')}" for name in given}
    pairs = dict(itertools.pairwise(words))
    assert (pairs["--seeds"], pairs["--num-fewshot"], pairs["--gen-kwargs"]) == ("1,2", "0", "temperature=1")
    plain = json.loads(RunSpec(model="m", tasks=("t",), out="o").model_dump_json())
    assert claims.run_command({"spec": plain}, "o") == "evalkit run --model m --tasks t --out o"


def test_the_report_names_what_it_was_made_from_with_hashes(tmp_path):
    audit = write_audit(tmp_path / "audit", {f"{i}": "clean" for i in range(20)})
    record = json.loads((audit / "audit.json").read_text())
    corpus = [{"file": "part.jsonl", "fingerprint": "abc"}]
    (audit / "audit.json").write_text(json.dumps({**record, "evalkit": "0.1.0", "corpus": corpus}))
    tables.write(tmp_path / "verdicts.parquet", verdicts(("one", ("base", "new"))), tables.VERDICTS)
    rows = made_from(audit, tmp_path)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in
               (audit / "items.parquet", tmp_path / "verdicts.parquet")}  # fmt: skip
    assert ("corpus", "part.jsonl", "abc") in rows
    assert ("audit", "items.parquet, sha256", digests["items.parquet"]) in rows
    assert ("judge", "verdicts.parquet, sha256", digests["verdicts.parquet"]) in rows
    values = {("t", f"{i}"): float(i % 2) for i in range(20)}
    runs = [write_run(tmp_path / name, values, name=name) for name in "ab"]
    assert ("audit", "evalkit", "0.1.0") in report(*runs, audit=audit)["repeat"].tables[0].rows


@pytest.mark.parametrize("name", ["evil\u202etxt", "line\nbreak"])
def test_names_in_figures_are_shown_as_they_are(tmp_path, name):
    values = {(name, f"{i}"): float(i % 3 > 0) for i in range(30)}
    runs = [write_run(tmp_path / side, values, name=name) for side in "ab"]
    made = report(*runs)
    for drawing in ("forest", "discordance"):
        figure = made.figure(drawing)
        figure.draw_without_rendering()
        labels = [one.get_text() for axes in figure.axes for one in [*axes.get_yticklabels(), axes.xaxis.label]]
        assert not any(character in label.split("\npercentage")[0] for label in labels for character in "\u202e\n")


def test_every_figure_on_the_page_is_explained_to_all_readers(tmp_path):
    values = {("t", f"{i}"): float(i % 3 > 0) for i in range(30)}
    audit = write_audit(tmp_path / "audit", {f"{i}": "dirty" if i < 9 else "clean" for i in range(30)})
    made = report(*(write_run(tmp_path / side, values, name=side) for side in "ab"), audit=audit)
    page = render_page(made)
    told = {name: text for claim in made for name, text in claim.figures.items() if name in made.drawings}
    assert {"forest", "leaks"} <= told.keys()
    for name, text in told.items():
        assert f'aria-labelledby="told-{name}"' in page
        assert f'<figcaption id="told-{name}">{escape(text)}</figcaption>' in page
