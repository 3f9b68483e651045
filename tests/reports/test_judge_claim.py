"""What the report says of judges: both orders, what goes beyond their noise, and rates corrected by human labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evalkit import tables
from evalkit.errors import SpecError
from evalkit.judges.audit import audit
from evalkit.judges.verdicts import read_labels
from evalkit.reports.explorer import pack
from evalkit.reports.page import render_page
from evalkit.reports.significance import order_counts, report, with_evidence, write_report
from tests.reports.runs import write_run
from tests.reports.test_page import unpacked

N = 200
WORDS = "because <script>alert(1)</script>"


def write_verdicts(path, rng, *, first=0.35, names=("base", "new")):
    """A judge that takes the first answer with a chance of `first`, else the better one, B on 60% of the pairs."""
    b_is_better = rng.random(N) < 0.6
    rows = [
        {
            "judge": "j", "pair_id": f"{pair}", "repeat": repeat, "order": order, "task": "t", "doc_hash": f"{pair}",
            "model_a": names[0], "model_b": names[1], "length_a": 100, "length_b": 120, "raw": WORDS,
            "winner": "ab"[int((order == "ba") if rng.random() < first else b_is_better[pair])],
        }
        for pair in range(N) for order in ("ab", "ba") for repeat in (0, 1)
    ]  # fmt: skip
    tables.write(path, tables.from_rows(tables.VERDICTS, rows), tables.VERDICTS)
    return b_is_better


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    truth = write_verdicts(folder / "verdicts.parquet", rng)
    labels = "".join(json.dumps({"pair_id": f"{n}", "label": "ab"[int(truth[n])]}) + "\n" for n in range(80))
    (folder / "labels.jsonl").write_text(labels)
    for name, chance in (("base", 0.5), ("new", 0.6)):
        write_run(folder / name, {("t", f"{n}"): float(rng.random() < chance) for n in range(N)}, name=name)
    return folder


def made(judged, **options):
    return report(judged / "base", judged / "new", judge=judged, **options)


def test_the_claim_holds_the_numbers_of_the_judges_audit(judged):
    claim = made(judged)["judge"]
    [one] = audit(tables.read(judged / "verdicts.parquet", tables.VERDICTS)).judges
    rates, orders = claim.tables
    [row] = orders.to_frame().to_dict("records")
    position = one.position
    assert [row[name] for name in ("pairs", "first twice", "second twice")] == [
        f"{count}" for count in (position.n_both, position.first_twice, position.second_twice)
    ]
    assert row["excess"] == f"{100 * position.excess.estimate:.1f}%"
    assert row["sign"] == position.sign == "biased"
    [rate] = rates.to_frame().to_dict("records")
    [result] = one.results
    assert rate["pair"] == "new against base"
    for name, estimate in (("wins when shown second", result.a_first), ("both orders", result.averaged)):
        assert rate[name].startswith(f"{100 * estimate.estimate:.1f}% (")
    assert result.sentence() in " ".join(claim.sentences)


def test_human_labels_correct_the_rate_and_tell_how_far_the_judge_agrees(judged):
    claim = made(judged, judge_labels=judged / "labels.jsonl")["judge"]
    table = tables.read(judged / "verdicts.parquet", tables.VERDICTS)
    [one] = audit(table, labels=read_labels(judged / "labels.jsonl")).judges
    best = one.results[0].with_labels.estimate
    assert claim.tables[0].rows[0][-1].startswith(f"{100 * best.estimate:.1f}% (")
    assert abs(best.estimate - 0.6) < 0.15
    assert "agrees with humans" in " ".join(claim.sentences)
    with pytest.raises(SpecError, match="no verdicts"):
        report(judged / "base", judged / "new", judge_labels=judged / "labels.jsonl")


def test_the_mosaic_counts_each_pair_once_by_both_orders(judged):
    table = tables.read(judged / "verdicts.parquet", tables.VERDICTS)
    counts = order_counts(table, "base", "new")["j"]
    [one] = audit(table).judges
    assert counts.sum() == one.position.n_both == N
    assert counts[0, 2] == one.position.first_twice
    assert counts[2, 0] == one.position.second_twice
    assert "orders" in made(judged).drawings
    assert made(judged).figure("orders").axes


def test_a_judge_of_other_models_is_said_to_be_one(judged, tmp_path):
    write_verdicts(tmp_path / "verdicts.parquet", np.random.default_rng(1), names=("x", "y"))
    claim = report(judged / "base", judged / "new", judge=tmp_path)["judge"]
    assert claim.sentences[0].startswith("No judge has compared the models of this report")
    assert not made(judged)["judge"].sentences[0].startswith("No judge")


def test_verdicts_that_have_the_models_the_other_way_round_say_the_same(judged):
    pair = judged / "base", judged / "new"
    there, turned = (report(*of, judge=judged)["judge"] for of in (pair, pair[::-1]))
    [row], [back] = (claim.tables[0].to_frame().to_dict("records") for claim in (there, turned))
    assert (row["pair"], back["pair"]) == ("new against base", "base against new")
    for name, other in (("both orders", "both orders"), ("shown first", "wins when shown second")):
        assert sum(float(text.split("%")[0]) for text in (row[name], back[other])) == pytest.approx(100)
    assert any(sentence.startswith(f"j: base wins {back['corrected']}") for sentence in turned.sentences)


def test_page_explorer_notebook_and_json_hold_the_judge(judged, tmp_path):
    report_, collect = with_evidence(judged / "base", judged / "new", judge=judged)
    page, known = render_page(report_, collect()), collect()
    assert "<script>alert" not in page
    assert '<figcaption id="told-orders">j: verdicts of the one order against those of the other.' in page
    _, part, *_ = map(unpacked, pack(report_.comparison, known))
    assert [words for _, words in part[0][5]] == [WORDS] * 4
    assert part[0][5][0][0].startswith("Judge j, first shown: base; winner: ")
    for name in ("r.json", "r.ipynb", "r.md"):
        write_report(report_, tmp_path / name)
    assert json.loads((tmp_path / "r.json").read_text())["judge"]["judges"][0]["judge"] == "j"
    assert 'report.figure("orders")' in (tmp_path / "r.ipynb").read_text().replace('\\"', '"')
    assert "new wins" in (tmp_path / "r.md").read_text()
