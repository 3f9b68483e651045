"""The audit end to end: planted items are found where they lie, and nothing is reported that brute force does not."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit import tables
from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import Benchmark, Item, from_file, is_file_benchmark
from evalkit.contamination.rules import load_rules, rule_names
from evalkit.corpora.shards import find_shards
from evalkit.errors import InputError, SpecError
from evalkit.resources import resource_dir
from evalkit.text.normalise import VERSION
from tests.contamination import twin

RULES = {"gpt3-clean": 13, "llama3": 8}


def lm_eval_hash(row):
    """lm-eval's doc_hash, written out."""
    return hashlib.sha256(json.dumps(row, indent=2, ensure_ascii=False).encode()).hexdigest()


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def benchmark_of(texts, **more):
    """A benchmark whose items have the given questions, hashed by their number."""
    return Benchmark("b", "test", tuple(Item(f"h{n}", {"question": text, **more}) for n, text in enumerate(texts)), 0)


def run_audit(tmp_path, texts, benchmark, rules=tuple(RULES), **options):
    shard = write_jsonl(tmp_path / "corpus.jsonl", texts)
    return audit(
        find_shards([str(shard)]), [benchmark], load_rules(rules), tmp_path / "audit", overwrite=True, **options
    )


def files_of(folder):
    """The files of an audit; what an unfinished one has scanned lies in a folder beside them."""
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read(result, table):
    return tables.read(result.directory / f"{table.name}.parquet", table).to_pylist()


@pytest.fixture(scope="module")
def planted(data_dir, tmp_path_factory):
    """The real corpus with 200 MMLU items inserted verbatim into random documents, and where they lie."""
    folder = tmp_path_factory.mktemp("planted")
    rng = random.Random("planted MMLU")
    with gzip.open(data_dir / "benchmarks" / "mmlu_test.jsonl.gz", "rt") as file:
        items = [json.loads(line) for line in file]
    with (data_dir / "corpora" / "assistant_answers.jsonl.zst").open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    places = {}
    for item, number in zip(rng.sample(items, 200), rng.sample(range(len(texts)), 200), strict=True):
        cut = rng.choice([0, len(texts[number]), rng.randrange(len(texts[number]) + 1)])
        before = texts[number][:cut] + "\n"
        texts[number] = before + "\n".join([item["question"], *item["choices"]]) + "\n" + texts[number][cut:]
        places[item["id"]] = (number, len(before))
    corpus = folder / "corpus.jsonl.zst"
    corpus.write_bytes(
        zstandard.ZstdCompressor(level=1).compress(
            "".join(
                json.dumps({"id": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts)
            ).encode()
        )
    )
    benchmark = from_file(data_dir / "benchmarks" / "mmlu_test.jsonl.gz")
    result = audit(find_shards([str(corpus)]), [benchmark], load_rules(list(RULES)), folder / "audit")
    return items, texts, places, benchmark, result


def test_all_200_planted_mmlu_items_are_found_at_their_exact_place(planted):
    items, texts, places, _, result = planted
    matches = {}
    for match in read(result, tables.MATCHES):
        key = (match["doc_hash"], match["field"], match["row"])
        matches.setdefault(key, []).append((match["start"], match["end"], match["coverage"]))
    labels = {(row["doc_hash"], row["field"], row["rule"]): row["label"] for row in read(result, tables.ITEMS)}
    for number, (row, offset) in places.items():
        doc_hash = lm_eval_hash(items[number])
        expected = twin.tokens(items[number]["question"])
        start, end = offset + expected[0][1], offset + expected[-1][2]
        assert (start, end, 1.0) in matches[doc_hash, "question", row], items[number]
        assert texts[row][start:end] in items[number]["question"]
        for rule in RULES:
            assert labels[doc_hash, "question", rule] == "dirty"


def test_every_match_in_the_whole_corpus_is_text_of_the_item_that_it_names(planted):
    _, texts, _, benchmark, result = planted
    fields = {(item.doc_hash, name): text for item in benchmark.items for name, text in item.fields.items()}
    matches = [match for match in read(result, tables.MATCHES) if not match["n_edits"]]
    assert len(matches) > 1000
    for match in matches:
        found = twin.words(texts[match["row"]][match["start"] : match["end"]])
        wanted = twin.words(fields[match["doc_hash"], match["field"]])
        assert len(found) == match["n_tokens"] >= min(8, len(wanted))
        assert any(wanted[i : i + len(found)] == found for i in range(len(wanted) - len(found) + 1))


def test_on_real_text_every_rule_reports_exactly_what_brute_force_reports(planted, tmp_path):
    _, texts, places, benchmark, _ = planted
    rows = sorted({row for row, _ in places.values()} | set(range(0, len(texts), 22)))
    assert len(rows) >= 2000
    sample = [texts[row] for row in rows]
    result = run_audit(tmp_path, sample, benchmark, rules=rule_names(), keep_boilerplate=True)
    reported = {(row["rule"], row["doc_hash"], row["field"]): row for row in read(result, tables.ITEMS)}
    fields = {(item.doc_hash, name): text for item in benchmark.items for name, text in item.fields.items()}
    for name in rule_names():
        rule = yaml.safe_load((resource_dir("audits") / "rules" / f"{name}.yaml").read_text())
        expected = twin.assess(sample, fields, rule)
        found = {key[1:]: row for key, row in reported.items() if key[0] == name}
        assert found.keys() == expected.keys(), name
        for key, (contamination, dirty, n_documents) in expected.items():
            row = found[key]
            assert row["contamination"] == pytest.approx(contamination, abs=1e-12), (name, fields[key])
            assert (row["label"], row["n_documents"]) == ("dirty" if dirty else "clean", n_documents), (name, key)
        assert sum(row["label"] == "dirty" for row in found.values()) >= 150, name


WORDS = st.lists(st.sampled_from(["a", "b", "c", "é", "中"]), max_size=30).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(
    documents=st.lists(WORDS, min_size=1, max_size=5),
    questions=st.lists(WORDS, min_size=1, max_size=5),
    n=st.integers(1, 9),
)
@example(documents=["a a a a a a a a"], questions=["a a a a a a a a"], n=9)
def test_on_repetitive_text_every_run_is_what_brute_force_finds(documents, questions, n, tmp_path_factory):
    import pyarrow as pa

    from evalkit.contamination.index import build_index
    from evalkit.contamination.scan import scan_texts

    index = build_index([benchmark_of(questions, answer=ANSWER)], n)
    found, _, _, n_tokens = scan_texts(pa.array(documents, type=pa.large_string()), index)
    runs = found[:, :6]
    assert n_tokens == sum(len(twin.words(document)) for document in documents)
    expected = all_runs(documents, questions, index, n)
    assert {tuple(run) for run in runs.tolist()} == expected
    assert len(runs) == len(expected)


ANSWER = "a b c " * 4


def all_runs(documents, questions, index, n, **options):
    """(document, field, place, tokens, start, end) of every run that the twin finds."""
    return {
        (d, f, *run)
        for d, document in enumerate(documents)
        for f, field in enumerate(index.fields)
        for run in twin.runs(document, questions[field.item] if field.name == "question" else ANSWER, n, **options)
    }


FEW_WORDS = st.lists(st.sampled_from(["a", "b"]), max_size=24).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(
    documents=st.lists(FEW_WORDS, min_size=1, max_size=4),
    questions=st.lists(FEW_WORDS, min_size=1, max_size=3),
    n=st.integers(1, 6),
    more=st.integers(0, 4),
)
def test_runs_that_are_not_recorded_change_no_verdict(documents, questions, n, more):
    import numpy as np

    from evalkit.contamination.evaluate import Runs, evaluate
    from evalkit.contamination.index import build_index

    index = build_index([benchmark_of(questions, answer=ANSWER)], n)

    def scores(**options):
        found = sorted(all_runs(documents, questions, index, n, **options), key=lambda run: (run[0], run[4], run[1:3]))
        numbers, fields, places, n_tokens, starts, ends = np.array(found, dtype=np.int64).reshape(-1, 6).T
        nothing = np.zeros_like(fields)
        runs = Runs(
            documents=numbers,
            fields=fields,
            places=places,
            n_tokens=n_tokens,
            n_skipping=nothing,
            n_in_order=nothing,
            n_document_tokens=nothing,
            n_supports=nothing,
            n_edits=nothing - 1,
            similarities=nothing / 1.0,
            starts=starts,
            ends=ends,
        )
        for rule in load_rules(list(RULES)):
            score = evaluate(replace(rule, n=n + more), index, runs)
            best = [found[run][:1] + found[run][3:] if run >= 0 else None for run in score.best_run]
            yield score.contamination.tolist(), score.n_documents.tolist(), score.longest.tolist(), best

    assert list(scores()) == list(scores(every=True))


def test_a_document_of_one_repeated_word_gives_one_match_for_each_copy_that_fits(tmp_path):
    zeros = " ".join(["0"] * 20)
    result = run_audit(
        tmp_path, ["0 " * 30_000], benchmark_of([f"What is the sum of {n} {zeros}" for n in range(1, 10)])
    )
    # At the very beginning a match can also begin later in the field: with 19, 18, ... 8 zeros.
    assert result.n_matches == 9 * (1500 + 12)
    assert {row["longest_match"] for row in read(result, tables.ITEMS)} == {20}


def test_form_does_not_hide_an_item_and_offsets_point_into_the_original(tmp_path):
    question = "Which of the following rivers flows through the city of Vienna before it reaches the Black Sea?"
    disguised = (
        "WHICH of the\nfollowing “rivers” flows — through the city of Vienna\n\n before it reaches the Black Sea"
    )
    text = "Ünïcode ✓ first. " + disguised + "! And more."
    result = run_audit(tmp_path, ["nothing here", text], benchmark_of([question]))
    [match] = read(result, tables.MATCHES)
    assert (match["row"], match["doc_id"], match["coverage"]) == (1, "d1", 1.0)
    assert text[match["start"] : match["end"]] == disguised
    [document] = read(result, tables.DOCUMENTS)
    assert (document["row"], document["action"]) == (1, "cut")
    assert sorted(document["reasons"]) == ["gpt3-clean: b", "llama3: b"]


def test_a_question_shorter_than_the_n_gram_is_found_as_a_whole_and_only_as_a_whole(tmp_path):
    result = run_audit(tmp_path, ["Say: what is love?", "what is", "is love what"], benchmark_of(["What is love?"]))
    assert {row["label"] for row in read(result, tables.ITEMS)} == {"dirty"}
    assert [match["row"] for match in read(result, tables.MATCHES)] == [0]


def test_clean_items_stand_in_the_table_and_items_without_words_do_not(tmp_path):
    result = run_audit(tmp_path, ["some text"], benchmark_of(["Where did the dog go?", "?!"]))
    rows = read(result, tables.ITEMS)
    assert {row["doc_hash"] for row in rows} == {"h0"}
    assert {(row["contamination"], row["label"], row["n_documents"], row["best_document"]) for row in rows} == {
        (0.0, "clean", 0, None)
    }


def test_half_an_item_counts_half_under_llama3(tmp_path):
    question = " ".join(f"word{n}" for n in range(40))
    result = run_audit(tmp_path, [" ".join(f"word{n}" for n in range(10, 30))], benchmark_of([question]))
    scores = {row["rule"]: row for row in read(result, tables.ITEMS)}
    assert scores["llama3"]["contamination"] == 0.5
    assert scores["gpt3-clean"]["contamination"] == 1.0
    assert scores["gpt3-clean"]["longest_match"] == 20


def test_what_several_documents_cover_adds_up(tmp_path):
    question = " ".join(f"word{n}" for n in range(20))
    halves = [" ".join(f"word{n}" for n in range(10)), " ".join(f"word{n}" for n in range(10, 20))]
    result = run_audit(tmp_path, halves, benchmark_of([question]), rules=["llama3"])
    [row] = read(result, tables.ITEMS)
    assert (row["contamination"], row["n_documents"], row["longest_match"]) == (1.0, 2, 10)


def test_more_runs_than_fit_the_buffer_are_all_kept(tmp_path):
    result = run_audit(tmp_path, ["yes " * 50_000], benchmark_of(["yes"]), rules=["llama3"])
    assert result.n_matches == 50_000


def test_formats_give_the_same_audit(tmp_path):
    texts = ["what is love, baby", "nothing", "Is it? What is love!"]
    plain = write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["d0", "d1", "d2"], "text": texts}), tmp_path / "d.parquet")
    seen = set()
    for number, name in enumerate(["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"]):
        shards = find_shards([str(tmp_path / name)])
        result = audit(shards, [benchmark_of(["What is love"])], load_rules(["llama3"]), tmp_path / f"audit{number}")
        matches = read(result, tables.MATCHES)
        seen.add(json.dumps([[m[c] for c in ("row", "doc_id", "start", "end", "n_tokens")] for m in matches]))
    assert seen == {json.dumps([[0, "d0", 0, 12, 3], [2, "d2", 7, 19, 3]])}


def test_bad_rows_are_counted_and_listed_and_the_rest_is_scanned(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "what is love"}\n{"text": broken\n{"body": "x"}\n{"text": 5}\n{"text": " "}\n')
    result = audit(
        find_shards([str(path)]), [benchmark_of(["What is love"])], load_rules(["llama3"]), tmp_path / "audit"
    )
    assert (result.n_documents, result.n_empty, result.n_bad_rows, result.n_matches) == (1, 1, 3, 1)
    listed = [json.loads(line) for line in (tmp_path / "audit" / "bad_rows.jsonl").read_text().splitlines()]
    assert {row["file"] for row in listed} == {str(path)}
    assert [(row["row"], row["kind"] == "empty") for row in listed] == [(1, False), (2, False), (3, False), (4, True)]


def test_a_corpus_file_that_ends_too_early_leaves_the_earlier_audit_intact(tmp_path):
    run_audit(tmp_path, ["what is love"], benchmark_of(["What is love"]))
    before = files_of(tmp_path / "audit")
    whole = zstandard.compress(b'{"text": "what is love"}\n' * 1000)
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"cut\.jsonl\.zst: .*cut short or corrupt"):
        audit(
            find_shards([str(tmp_path / "cut.jsonl.zst")]),
            [benchmark_of(["What is love"])],
            load_rules(["llama3"]),
            tmp_path / "audit",
            overwrite=True,
        )
    assert files_of(tmp_path / "audit") == before


@pytest.mark.parametrize("fails", ["_documents", "_record", "to_json"])
def test_an_audit_that_fails_late_leaves_the_earlier_one_as_it_was(tmp_path, monkeypatch, fails):
    run_audit(tmp_path, ["what is love"], benchmark_of(["What is love"]))
    before = files_of(tmp_path / "audit")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"evalkit.contamination.outputs.{fails}", fail)
    with pytest.raises(OSError, match="No space"):
        run_audit(tmp_path, ["another text"], benchmark_of(["Another text"]))
    assert files_of(tmp_path / "audit") == before


def test_an_audit_killed_while_its_files_take_their_places_is_no_audit(tmp_path, monkeypatch):
    run_audit(tmp_path, ["what is love"], benchmark_of(["What is love"]))
    move = Path.replace

    def stop(source, target):
        if target == tmp_path / "audit" / "items.parquet":
            raise KeyboardInterrupt
        return move(source, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run_audit(tmp_path, ["another text"], benchmark_of(["Another text"]))
    assert not (tmp_path / "audit" / "audit.json").exists()


def test_bad_rows_of_an_earlier_audit_do_not_stay(tmp_path):
    path = tmp_path / "corpus.jsonl"
    for text, listed in (("{", True), ('{"text": "a"}', False)):
        path.write_text(text)
        shards, rules = find_shards([str(path)]), load_rules(["llama3"])
        audit(shards, [benchmark_of(["What is love"])], rules, tmp_path / "audit", overwrite=True)
        assert (tmp_path / "audit" / "bad_rows.jsonl").exists() == listed


def test_items_without_a_text_to_look_for_are_counted_and_short_questions_told_apart(tmp_path):
    long = " ".join(f"word{n}" for n in range(20))
    mixed = Item("both", {"question": "Neural networks:", "answer": long})
    benchmark = Benchmark("b", "test", (*benchmark_of(["?!", "Neural networks", long]).items, mixed), 0)
    result = run_audit(tmp_path, [f"On neural networks. {long}"], benchmark)
    for one in result.summaries:
        assert (one.n, one.n_items, one.n_without_text, one.n_dirty, one.n_dirty_short) == (RULES[one.rule], 3, 1, 3, 1)


@pytest.mark.parametrize(("benchmarks", "rules"), [([], ["llama3"]), ([benchmark_of(["a"])], [])])
def test_nothing_to_look_for_is_refused(tmp_path, benchmarks, rules):
    with pytest.raises(SpecError, match="nothing was given"):
        audit([], benchmarks, load_rules(rules) if rules else [], tmp_path / "audit")


def test_an_audit_is_not_overwritten_unasked(tmp_path):
    run_audit(tmp_path, ["x"], benchmark_of(["What is love"]))
    with pytest.raises(SpecError, match="already holds an audit"):
        audit(
            find_shards([str(tmp_path / "corpus.jsonl")]),
            [benchmark_of(["y"])],
            load_rules(["llama3"]),
            tmp_path / "audit",
        )


def test_the_record_says_what_is_needed_to_repeat_the_audit(tmp_path):
    result = run_audit(tmp_path, ["what is love"], benchmark_of(["What is love"]))
    record = json.loads((result.directory / "audit.json").read_text())
    assert record["rules"] == list(RULES)
    assert record["rule_definitions"][1]["source"].startswith("Llama Team 2024")
    assert record["totals"]["n_documents"] == 1
    assert record["normalisation_version"] == VERSION
    assert len(record["index"]["fingerprint"]) == 64


def test_a_file_benchmark_has_lm_evals_hashes_and_its_fields(tmp_path):
    rows = [
        {"id": 1, "question": "Q ü?", "choices": ["one", "two"], "answer": 1, "passage": "P"},
        {"id": 2, "question": "R?", "answer": "free"},
        {"id": 2, "question": "R?", "answer": "free"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = from_file(path)
    assert (benchmark.name, benchmark.n_duplicates) == ("mine", 1)
    assert [item.doc_hash for item in benchmark.items] == [lm_eval_hash(row) for row in rows[:2]]
    assert dict(benchmark.items[0].fields) == {
        "question": "Q ü?",
        "passage": "P",
        "choice_0": "one",
        "choice_1": "two",
    } | {"answer": "two"}
    assert dict(benchmark.items[1].fields) == {"question": "R?", "answer": "free"}


def test_choices_may_be_written_as_arc_writes_them(tmp_path):
    path = tmp_path / "arc.jsonl"
    path.write_text('{"question": "Q?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answer": "B"}\n')
    assert dict(from_file(path).items[0].fields) == {
        "question": "Q?",
        "answer": "B",
        "choice_0": "one",
        "choice_1": "two",
    }


def test_an_empty_corpus_file_is_a_corpus_without_documents(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    shards = find_shards([str(tmp_path / "empty.jsonl")])
    result = audit(shards, [benchmark_of(["What is love"])], load_rules(["llama3"]), tmp_path / "audit")
    assert (result.n_documents, result.n_matches, result.n_bad_rows) == (0, 0, 0)
    assert {row["label"] for row in read(result, tables.ITEMS)} == {"clean"}


def test_a_place_that_cannot_be_written_is_refused_before_the_scan(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpecError, match="the directory cannot be made"):
        audit([], [benchmark_of(["What is love"])], load_rules(["llama3"]), tmp_path / "file" / "audit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1}\n', "mine.jsonl, row 0: the item has no text in 'question'"),
        ('{"question": "a"}\n{"question": \n', "mine.jsonl, line 2: broken JSON"),
        ("[1]\n", "mine.jsonl, line 1: the line is not a JSON object"),
        ("\n", "the benchmark has no items"),
    ],
)
def test_a_faulty_benchmark_file_is_refused_whole(tmp_path, content, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        from_file(path)
    assert message in str(error.value)


def test_a_file_of_another_kind_is_told_what_can_be_read(tmp_path):
    path = tmp_path / "items.json"
    assert not is_file_benchmark(str(path))
    path.write_text("[]")
    assert is_file_benchmark(str(path))
    with pytest.raises(InputError, match=r"items\.json: .*Rename it.*\.jsonl, \.jsonl\.gz.*\.parquet"):
        from_file(path)


def test_a_missing_benchmark_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: the benchmark cannot be read"):
        from_file(tmp_path / "none.jsonl")
