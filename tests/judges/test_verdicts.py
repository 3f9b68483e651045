"""Verdicts of others: every format, and every way in which rows can be bad."""

from __future__ import annotations

import gzip
import io
import json

import pandas as pd
import pytest
import zstandard

from evalkit import tables
from evalkit.errors import InputError, SpecError
from evalkit.judges.pairs import pairs_of
from evalkit.judges.verdicts import read_labels, read_verdicts


def lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(pair="p1", winner="a", order="ab", **more):
    return {"judge": "j", "pair_id": pair, "model_a": "x", "model_b": "y", "winner": winner, "order": order, **more}


def winners(collected):
    return [(one["pair_id"], one["order"], one["winner"]) for one in collected.table.to_pylist()]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_named_columns_are_read_from_every_kind_of_file(tmp_path, kind):
    rows = [row(), row(order="ba", winner="b"), row("p2", "tie")]
    path = tmp_path / f"verdicts.{kind}"
    if kind == "jsonl":
        lines(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    else:
        frame = pd.DataFrame(rows)
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    found = read_verdicts([path])
    assert winners(found) == [("p1", "ab", "a"), ("p1", "ba", "b"), ("p2", "ab", "tie")]
    assert not found.troubles


def test_columns_of_other_names_are_named(tmp_path):
    path = lines(tmp_path / "v.jsonl", [{"id": 7, "left": "x", "right": "y", "choice": "y", "shown_first": "y"}])
    names = {"pair_id": "id", "model_a": "left", "model_b": "right", "winner": "choice", "order": "shown_first"}
    found = read_verdicts([path], columns=names)
    assert winners(found) == [("7", "ba", "b")]
    assert found.table.column("judge")[0].as_py() == "v", "the file's name stands for the judge that it does not name"


def test_winners_may_be_letters_sides_or_the_models_own_names(tmp_path):
    said = ["A", "model_b", "Y", "x", "draw", "[[A]]", "2"]
    path = lines(tmp_path / "v.jsonl", [row(f"p{n}", one) for n, one in enumerate(said)])
    assert [winner for *_, winner in winners(read_verdicts([path]))] == ["a", "b", "b", "a", "tie", "a", "b"]


def test_unparseable_verdicts_are_kept_as_errors_with_file_row_and_text(tmp_path):
    rows = [row(f"p{n}", "I cannot say" if n % 10 < 3 else "a") for n in range(100)]
    path = lines(tmp_path / "v.jsonl", rows)
    found = read_verdicts([path])
    assert found.table.num_rows == 100
    assert found.counts() == {"error: the verdict cannot be read": 30}
    first = found.troubles[0]
    assert (first.file, first.row, first.column, first.kept_as) == (str(path), 1, "winner", "error")
    assert found.table.column("raw")[0].as_py() == "I cannot say"


def test_rows_without_what_names_them_are_dropped_and_listed(tmp_path):
    rows = [row(), row("", "b"), "not json", "[1]", row("p2", order="sideways"), row("p3", length_a="long")]
    found = read_verdicts([lines(tmp_path / "v.jsonl", rows)])
    assert winners(found) == [("p1", "ab", "a")]
    listed = {(one.row, one.column) for one in found.troubles}
    assert listed == {(2, "pair_id"), (3, "-"), (4, "-"), (5, "order"), (6, "length_a")}
    assert all(one.kept_as == "dropped" for one in found.troubles)


def test_a_call_that_stands_there_twice_is_counted_and_repeats_are_not(tmp_path):
    twice = read_verdicts([lines(tmp_path / "v.jsonl", [row(), row(), row(winner="b")])])
    assert winners(twice) == [("p1", "ab", "a")]
    reasons = [one.reason for one in twice.troubles]
    assert reasons[0].startswith("the same verdict") and reasons[1].startswith("another verdict")
    bad = read_verdicts([lines(tmp_path / "u.jsonl", [row(winner="?"), row(winner="?"), row("p2")])])
    assert bad.counts() == {
        "error: the verdict cannot be read": 1,
        "dropped: the same verdict stands there before": 1,
    }, "a row that is dropped is not kept as an error, too"
    repeated = read_verdicts([lines(tmp_path / "w.jsonl", [row(repeat=0), row(repeat=1, winner="b")])])
    assert len(winners(repeated)) == 2 and not repeated.troubles


def test_a_pair_that_is_named_the_other_way_round_is_turned(tmp_path):
    other = {"judge": "j", "pair_id": "p1", "model_a": "y", "model_b": "x", "winner": "a", "order": "ab", "length_a": 9}
    found = read_verdicts([lines(tmp_path / "v.jsonl", [row(length_a=5, length_b=9), other | {"preference": 0.2}])])
    second = found.table.to_pandas().iloc[1]
    assert (second.model_a, second.winner, second.order, second.length_b) == ("x", "b", "ba", 9)
    assert second.preference == pytest.approx(0.8)


def test_one_question_with_several_pairs_of_models_makes_several_pairs(tmp_path):
    found = read_verdicts([lines(tmp_path / "v.jsonl", [row(), row() | {"model_b": "z"}])])
    frame = found.table.to_pandas()
    assert frame.pair_id.nunique() == 2 and set(frame.doc_hash) == {"p1"}


def test_files_without_any_verdict_are_refused(tmp_path):
    with pytest.raises(InputError, match="not one of 2 rows"):
        read_verdicts([lines(tmp_path / "v.jsonl", [row(winner="?"), row("p2", winner=None)])])
    with pytest.raises(InputError, match="there is no row"):
        read_verdicts([lines(tmp_path / "w.jsonl", [])])
    with pytest.raises(InputError, match="no verdicts of a known format"):
        read_verdicts([lines(tmp_path / "x.jsonl", [{"a": 1}])])
    with pytest.raises(InputError, match="no column 'id'"):
        read_verdicts([lines(tmp_path / "y.jsonl", [row()])], columns={"pair_id": "id"})
    with pytest.raises(SpecError, match="no format"):
        read_verdicts([tmp_path / "v.jsonl"], kind="excel")


def test_alpaca_eval_annotations_are_read(tmp_path):
    base = {"instruction": "q", "generator_1": "base", "generator_2": "new", "annotator": "gpt", "output_1": "ab"}
    rows = [base | {"output_2": "# x\n- y", "preference": 1.9}, base | {"instruction": "r", "preference": 0}]
    rows.append(base | {"instruction": "s", "preference": None})
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    frame = read_verdicts([path]).table.to_pandas()
    assert list(frame.winner) == ["b", "tie", "error"]
    assert frame.preference[0] == pytest.approx(0.9) and frame.preference[1] == 0.5
    assert frame.order.isna().all(), "AlpacaEval does not record which answer was shown first"
    assert (frame.length_b[0], frame.headings_b[0], frame.lists_b[0]) == (7, 1, 1)


def test_mt_bench_judgements_are_two_calls_named_by_model(tmp_path):
    rows = [{"question_id": 81, "model_1": "x", "model_2": "y", "g1_winner": "model_1", "g2_winner": "error",
             "judge": ["gpt-4", "pair-v2"], "turn": 1}]  # fmt: skip
    found = read_verdicts([lines(tmp_path / "gpt-4_pair.jsonl", rows)])
    assert winners(found) == [("81, turn 1", "ab", "a"), ("81, turn 1", "ba", "error")]
    assert found.table.column("judge")[0].as_py() == "gpt-4 pair-v2"
    assert found.counts() == {"error: the judge failed": 1}


def test_votes_of_mt_bench_have_no_order(tmp_path):
    rows = [{"question_id": 1, "model_a": "x", "model_b": "y", "winner": "model_b", "judge": "expert_1", "turn": 1}]
    assert winners(read_verdicts([lines(tmp_path / "v.jsonl", rows)])) == [("1, turn 1", None, "b")]


def test_arena_hard_games_are_labelled_by_position(tmp_path):
    games = [{"score": "A>>B", "judgment": "..."}, {"score": "A>B"}]
    row = {"model": "new", "judge": "gpt-4"}
    rows = [row | {"question_id": "q", "games": games}]
    rows.append(row | {"question_id": "r", "games": [{"score": "A=B"}, {"score": None}]})
    found = read_verdicts([lines(tmp_path / "new.jsonl", rows)])
    assert winners(found) == [("q", "ab", "a"), ("q", "ba", "b"), ("r", "ab", "tie"), ("r", "ba", "error")]


def test_llmbar_results_are_read_in_both_orders(tmp_path):
    one = {"input": "q", "output_1": "a", "output_2": "bb", "label": 2,
           "results": [{"swap = False": {"completion": ["Output (a)", "stop"], "winner": "1"},
                        "swap = True": {"completion": ["Output (a)", "stop"], "winner": "2"}}]}  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps([one]))
    frame = read_verdicts([path]).table.to_pandas()
    assert list(frame.winner) == ["a", "b"] and list(frame.order) == ["ab", "ba"] and set(frame.label) == {"b"}


def test_our_own_table_comes_back_as_it_is(tmp_path):
    first = read_verdicts([lines(tmp_path / "v.jsonl", [row(), row(order="ba", winner="?")])])
    tables.write(tmp_path / "verdicts.parquet", first.table, tables.VERDICTS)
    again = read_verdicts([tmp_path])
    assert again.table.equals(first.table)
    assert again.counts() == {"error: the judge failed": 1}


def judging(folder, prompt, rows, reasons=False):
    made = [row(order="ab") | {"repeat": 0, "doc_hash": "p1"} | one for one in rows]
    tables.write(folder / "verdicts.parquet", tables.from_rows(tables.VERDICTS, made), tables.VERDICTS)
    settings = {"prompt": {"name": prompt}, "reasons": reasons}
    (folder / "judge.json").write_text(json.dumps({"settings": settings}))
    return folder


def test_judgings_of_one_judge_on_several_models_are_read_together(tmp_path):
    first = judging(tmp_path / "1", "pairwise", [{"model_b": "y"}])
    second = judging(tmp_path / "2", "pairwise", [{"model_b": "z", "winner": "b"}])
    found = read_verdicts([first, second])
    assert winners(found) == [("p1: x / y", "ab", "a"), ("p1: x / z", "ab", "b")] and not found.troubles
    assert set(found.table.column("doc_hash").to_pylist()) == {"p1"} and set(pairs_of(found.table)) == {"j"}
    assert winners(read_verdicts([first, first])) == winners(read_verdicts([first])), "one file is read once"


def test_judgings_that_face_other_ways_share_their_pairs(tmp_path):
    first = judging(tmp_path / "1", "pairwise", [{"judge": "j1"}])
    turned = {"judge": "j2", "model_a": "y", "model_b": "x", "winner": "b", "preference": 0.9, "length_a": 7}
    other = lines(tmp_path / "v.jsonl", [row() | {"judge": "j3", "model_a": "y", "model_b": "x"}])
    frame = read_verdicts([first, judging(tmp_path / "2", "pairwise", [turned]), other]).table.to_pandas()
    assert list(frame.model_a) == ["x"] * 3 and list(frame.pair_id) == ["p1"] * 3
    assert list(frame.winner) == ["a", "a", "b"] and list(frame.order) == ["ab", "ba", "ba"]
    assert frame.preference[1] == pytest.approx(0.1) and frame.length_b[1] == 7


def test_a_judge_that_was_asked_in_two_ways_is_two_judges(tmp_path):
    ways = [("pairwise", False), ("rating", False), ("pairwise", True)]
    folders = [judging(tmp_path / f"{n}", name, [{}], reasons) for n, (name, reasons) in enumerate(ways)]
    found = read_verdicts(folders)
    assert set(pairs_of(found.table)) == {"j (pairwise)", "j (rating)", "j (pairwise, with reasons)"}
    assert not found.troubles


@pytest.mark.parametrize(
    ("models", "said", "winner"),
    [
        (("c", "d"), "c", "a"),
        (("both", "same"), "same", "b"),
        (("a", "b"), "B", "b"),
        (("GPT", "gpt"), "gpt", "b"),
        (("1", "2"), 2.0, "b"),
        (("b", "a"), "b", "error"),
        (("2", "1"), "1", "error"),
        (("x", "y"), "c", "tie"),
        (("x", "y"), 1.5, "error"),
        (("x", "y"), float("inf"), "error"),
    ],
)
def test_a_models_name_goes_before_words_and_what_may_mean_either_side_is_no_verdict(tmp_path, models, said, winner):
    rows = [row("p0"), row() | {"model_a": models[0], "model_b": models[1], "winner": said}]
    assert winners(read_verdicts([lines(tmp_path / "v.jsonl", rows)]))[1][2] == winner


def test_labels_and_orders_are_read_as_carefully(tmp_path):
    rows = [row("p0", label=1.0), row("p1", label=1.5), row("p2", label="c"), row("p3", label=float("inf"))]
    rows += [
        row("p4", order="y") | {"model_b": "a", "model_a": "y", "winner": "y"},
        row("p5", order="a") | {"model_b": "a"},
    ]
    rows += [row("p6", order="none"), row("p7", order=1.0)]
    found = read_verdicts([lines(tmp_path / "v.jsonl", rows)])
    assert [tuple(one[name] for name in ("pair_id", "label", "order")) for one in found.table.to_pylist()] == [
        ("p0", "a", "ab"), ("p2", "tie", "ab"), ("p4", None, "ab"), ("p6", None, "none"), ("p7", None, "ba"),
    ]  # fmt: skip
    assert [(one.row, one.column) for one in found.troubles] == [(2, "label"), (4, "label"), (6, "order")]


def test_a_readers_own_finding_is_not_read_again_as_a_name(tmp_path):
    games = [{"score": "A>B"}, {"score": "A>B"}]
    rows = [{"model": "a", "baseline": "b", "judge": "j", "question_id": "q", "games": games}]
    assert [one[2] for one in winners(read_verdicts([lines(tmp_path / "v.jsonl", rows)]))] == ["a", "b"]


def test_what_a_run_of_verdicts_holds_beside_verdicts_is_listed(tmp_path):
    runs = [{"judge": "j", "verdicts": [row(), "none", row("p2")]}, {"judge": "k", "verdicts": 3}, {"judge": "l"}]
    for kind in ("jsonl", "json"):
        path = tmp_path / f"v.{kind}"
        path.write_text(json.dumps(runs) if kind == "json" else "\n".join(map(json.dumps, runs)))
        found = read_verdicts([path])
        assert [one[0] for one in winners(found)] == ["p1", "p2"]
        assert [(one.row, one.column) for one in found.troubles] == [(1, "-"), (2, "verdicts"), (3, "verdicts")]


def test_results_and_games_that_are_not_two_are_listed(tmp_path):
    llmbar = {"input": "q", "label": 1, "output_1": "a", "output_2": "b"}
    results = [[{"swap = False": {"winner": "1"}}], [], ["?"]]
    found = read_verdicts([lines(tmp_path / "r.jsonl", [llmbar | {"results": one} for one in results])])
    assert winners(found) == [("1", "ab", "a"), ("1", "ba", "error"), ("3", "ab", "error"), ("3", "ba", "error")]
    assert found.counts() == {"error: there is no verdict": 3, "dropped: there is no list of results": 1}
    arena = {"model": "new", "judge": "g"}
    games = [[{"score": "A>B"}] * n for n in (1, 2, 3, 0)]
    rows = [arena | {"question_id": str(n), "games": one} for n, one in enumerate(games)]
    found = read_verdicts([lines(tmp_path / "g.jsonl", rows)])
    assert len(winners(found)) == 3 and [one.row for one in found.troubles] == [3, 4]


def test_files_of_one_name_are_of_two_judges(tmp_path):
    one = {"input": "q", "label": 1, "results": [{"swap = False": {"winner": "1"}, "swap = True": {"winner": "1"}}]}
    paths = []
    for name in ("gpt", "llama"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "result.json")
        paths[-1].write_text(json.dumps([one]))
    found = read_verdicts(paths)
    assert not found.troubles and set(pairs_of(found.table)) == {str(path.with_suffix("")) for path in paths}


def test_reasons_are_counted_by_kind_and_not_by_value(tmp_path):
    rows = [
        row(),
        *(row(f"q{n}", length_a=f"long {n}") for n in range(5)),
        row("x", order="up"),
        row("y", order="down"),
    ]
    assert read_verdicts([lines(tmp_path / "v.jsonl", rows)]).counts() == {
        "dropped: this is no number": 5,
        "dropped: this does not say which answer was shown first, ab or ba": 2,
    }


def test_odd_but_valid_files_are_read(tmp_path):
    content = "".join(json.dumps(row(f"p{n}")) + "\n" for n in range(3)).encode()
    stream = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(stream, closefd=False) as writer:
        writer.write(content)
    (tmp_path / "s.jsonl.zst").write_bytes(stream.getvalue() * 2)
    assert len(winners(read_verdicts([tmp_path / "s.jsonl.zst"]))) == 3
    odd = [row("p\u2028q", raw=["a", 1]), row("p\x85q", raw=7), row("r", raw={"x": None}, length_a=12.0)]
    (tmp_path / "o.jsonl").write_text("\r\n".join(json.dumps(one, ensure_ascii=False) for one in odd))
    table = read_verdicts([tmp_path / "o.jsonl"]).table
    assert (
        table.column("raw").to_pylist() == ['["a", 1]', "7", '{"x": null}']
        and table.column("length_a")[2].as_py() == 12
    )
    (tmp_path / "h.jsonl").write_text(json.dumps(row(raw="cut \ud83d")) + "\n")
    assert read_verdicts([tmp_path / "h.jsonl"]).table.column("raw").to_pylist() == ["cut ?"]
    long = "x" * 200_000
    (tmp_path / "l.csv").write_text(f"pair_id,model_a,model_b,winner,raw\np,x,y,a,{long}\nq,x,y,a,b,c\n")
    found = read_verdicts([tmp_path / "l.csv"])
    assert found.table.column("raw").to_pylist() == [long]
    assert [(one.row, one.reason) for one in found.troubles] == [(2, "the row has more cells than the header")]
    alpaca = {"instruction": "q", "generator_1": "x", "generator_2": "y", "preference": 1, "len_output_1": 12.0}
    found = read_verdicts([lines(tmp_path / "a.jsonl", [alpaca | {"len_output_2": 3}, alpaca | {"len_output_2": 1.5}])])
    assert found.table.column("length_a").to_pylist() == [12] and found.troubles[0].column == "len_output_2"


def test_broken_files_are_refused(tmp_path):
    for name, content in (("a.jsonl.gz", gzip.compress(b"x" * 500)[:-20] + b"?" * 20), ("b.jsonl.zst", b"zstd")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_verdicts([tmp_path / name])
    (tmp_path / "u.csv").write_text("a,b\n1,2,3\n4,5\n")
    with pytest.raises(InputError, match="no verdicts of a known format"):
        read_verdicts([tmp_path / "u.csv"])


def test_a_label_that_fits_several_pairs_is_refused(tmp_path):
    table = read_verdicts([lines(tmp_path / "v.jsonl", [row(), row() | {"model_b": "z"}])]).table
    with pytest.raises(InputError, match="fits 2 pairs, such as 'p1: x / y' and 'p1: x / z'"):
        pairs_of(table, {"p1": "a"})
    assert pairs_of(table, {"p1: x / z": "b"})["j"].label.tolist()[1:] == [1.0]


def test_what_is_known_of_a_pair_may_stand_in_any_of_its_rows(tmp_path):
    rows = [row(), row(order="ba", label="b", length_a=3, length_b=4, identical=True)]
    pairs = pairs_of(read_verdicts([lines(tmp_path / "v.jsonl", rows)]).table)["j"]
    assert pairs.label.tolist() == [1.0] and pairs.lengths.tolist() == [[3, 4]] and pairs.identical.tolist() == [True]
    rows[0]["label"] = "a"
    with pytest.raises(InputError, match="the pair 'p1' has two labels"):
        pairs_of(read_verdicts([lines(tmp_path / "w.jsonl", rows)]).table)


def test_labels_of_several_raters_become_their_majority(tmp_path):
    rows = [{"pair_id": "p", "label": one, "rater": rater} for one, rater in (("a", "x"), ("a", "y"), ("b", "z"))]
    rows += [{"pair_id": "q", "label": "a", "rater": "x"}, {"pair_id": "q", "label": "b", "rater": "y"}]
    found = read_labels(lines(tmp_path / "labels.jsonl", rows))
    assert found.labels == {"p": "a", "q": "tie"}
    assert found.ratings["p"] == {"x": "a", "y": "a", "z": "b"}


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"pair_id": "p"}], "needs the columns"),
        ([{"pair_id": "p", "label": "left"}], "neither a, b nor tie"),
        ([{"pair_id": "p", "label": "a"}, {"pair_id": "p", "label": "b"}], "two labels"),
        ([], "no label"),
    ],
)
def test_bad_labels_are_refused_with_their_row(tmp_path, rows, what):
    with pytest.raises(InputError, match=what):
        read_labels(lines(tmp_path / "labels.jsonl", rows))
