"""Beyond runs: edited copies, boilerplate, canaries, code, and rules that are applied later."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from evalkit import tables
from evalkit.contamination.audit import audit, judge
from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.canaries import canaries
from evalkit.contamination.outputs import SCAN
from evalkit.contamination.recorded import FILES_SUFFIX, NEAR_SUFFIX
from evalkit.contamination.rules import load_rules, rule_names
from evalkit.corpora import find_shards
from evalkit.errors import InputError, SpecError
from evalkit.resources import resource_dir
from tests.contamination import twin

VOCABULARY = [f"w{n}" for n in range(400)]


def definition(name):
    return yaml.safe_load((resource_dir("audits") / "rules" / f"{name}.yaml").read_text())


def benchmark_of(items, name="b", **options):
    return Benchmark(name, "test", tuple(Item(f"h{n}", fields) for n, fields in enumerate(items)), 0, **options)


def write_corpus(folder, texts, name="corpus.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    return find_shards([str(path)])


def run_audit(folder, texts, benchmark, rules, **options):
    return audit(write_corpus(folder, texts), [benchmark], load_rules(rules), folder / "audit", **options)


def items_of(result):
    rows = tables.read(result.directory / "items.parquet", tables.ITEMS).to_pylist()
    return {
        (row["rule"], row["doc_hash"], row["field"]): (
            row["contamination"],
            row["label"] == "dirty",
            row["n_documents"],
        )
        for row in rows
    }


def edit(words, share, rng):
    """Insert, delete or replace a share of the words."""
    edited = list(words)
    for _ in range(round(share * len(words))):
        place, how = rng.randrange(len(edited)), rng.randrange(3)
        edited[place : place + (how != 0)] = [] if how == 1 else [rng.choice(VOCABULARY)]
    return edited


@pytest.fixture(scope="module")
def edited():
    """Items of 8 to 120 words with passages, and documents that hold edited copies of them."""
    rng = random.Random("edited")
    phrases = [" ".join(rng.choices(VOCABULARY, k=12)) for _ in range(3)]

    def text(low, high):
        words = rng.choices(VOCABULARY, k=rng.randrange(low, high))
        return " ".join([rng.choice(phrases), *words] if rng.random() < 0.5 else words)

    items = []
    for _ in range(120):
        item = {"question": text(8, 100), "answer": text(1, 12)}
        if rng.random() < 0.5:
            item["passage"] = text(20, 120)
        if rng.random() < 0.5:
            item |= {f"choice_{k}": text(1, 8) for k in range(3)}
        items.append(item)
    documents = []
    for number in range(400):
        parts = [" ".join(rng.choices(VOCABULARY, k=rng.randrange(60)))]
        for item in rng.sample(items, rng.randrange(3)):
            share = rng.choice([0.0, 0.05, 0.1, 0.2, 0.4])
            for name in ("passage", "question", "answer"):
                if name in item and rng.random() < 0.8:
                    parts.append(" ".join(edit(item[name].split(), share, rng)))
            if rng.random() < 0.3:
                parts.append(rng.choice(phrases))
        if number % 4 == 0:
            parts.append(rng.choice(phrases) + " " + rng.choice(VOCABULARY))
        parts.append(" ".join(rng.choices(VOCABULARY, k=rng.randrange(40))))
        documents.append(" ".join(parts))
    return items, documents


@pytest.mark.parametrize("keep", [True, False], ids=["with boilerplate", "without"])
def test_every_rule_says_of_edited_copies_what_brute_force_says(edited, keep, tmp_path):
    items, documents = edited
    result = run_audit(tmp_path, documents, benchmark_of(items), rule_names(), keep_boilerplate=keep)
    fields = {(f"h{n}", name): text for n, item in enumerate(items) for name, text in item.items()}
    ignored = frozenset() if keep else twin.boilerplate(documents, fields, 8)
    assert keep or result.n_boilerplate >= len(ignored) > 100
    reported = items_of(result)
    for name in rule_names():
        expected = twin.assess(documents, fields, definition(name), ignored)
        found = {key[1:]: value for key, value in reported.items() if key[0] == name}
        assert found.keys() == expected.keys(), name
        for key, (contamination, dirty, n_documents) in expected.items():
            assert found[key] == (pytest.approx(contamination, abs=1e-9), dirty, n_documents), (name, key)
        assert 10 < sum(dirty for _, dirty, _ in found.values()) < len(found), name


def test_an_edited_copy_is_a_match_with_its_edits_and_its_place(tmp_path):
    rng = random.Random(1)
    question = rng.sample(VOCABULARY, 30)
    copy = [*question[:10], "inserted", *question[10:20], *question[21:]]
    before = "Some text before. "
    result = run_audit(
        tmp_path, [before + " ".join(copy) + ". After."], benchmark_of([{"question": " ".join(question)}]), ["fuzzy"]
    )
    matches = tables.read(result.directory / "matches.parquet", tables.MATCHES).to_pylist()
    (near,) = [row for row in matches if row["n_edits"]]
    assert near["n_edits"] == 2
    assert (near["start"], near["end"]) == (len(before), len(before) + len(" ".join(copy)))
    assert near["coverage"] == pytest.approx(28 / 30)
    # Aligned, two words of thirty are edited; in pieces of five words and more, one is not there.
    assert items_of(result)["fuzzy", "h0", "question"] == (pytest.approx(29 / 30), True, 1)
    documents = tables.read(result.directory / "documents.parquet", tables.DOCUMENTS).to_pylist()
    assert [(row["row"], row["action"]) for row in documents] == [(0, "drop")]


def test_a_phrase_of_many_items_is_no_evidence_and_its_effect_is_counted(tmp_path):
    phrase = "Answer the following question by choosing the best of the four options given below"
    rng = random.Random(2)
    items = [{"question": f"{phrase}: {' '.join(rng.sample(VOCABULARY, 12))}"} for _ in range(12)]
    texts = [phrase + ".", items[3]["question"]]
    result = run_audit(tmp_path, texts, benchmark_of(items), ["gpt3-clean"])
    (summary,) = result.summaries
    assert (summary.n_dirty, summary.n_boilerplate) == (1, 11)
    assert result.n_boilerplate == 12 + 11  # in the first document for every item, in the second for all but its own
    kept = audit(
        find_shards([str(tmp_path / "corpus.jsonl")]),
        [benchmark_of(items)],
        load_rules(["gpt3-clean"]),
        tmp_path / "kept",
        keep_boilerplate=True,
    )
    assert (kept.summaries[0].n_dirty, kept.summaries[0].n_boilerplate, kept.n_boilerplate) == (12, 0, 0)


def test_an_item_that_is_in_the_corpus_a_hundred_times_is_no_boilerplate(tmp_path):
    rng = random.Random(3)
    question = " ".join(rng.sample(VOCABULARY, 20))
    phrase = " ".join(rng.sample(VOCABULARY, 9))
    items = [{"question": question}, {"question": f"{phrase} {' '.join(rng.sample(VOCABULARY, 30))}"}]
    result = run_audit(tmp_path, [question] * 100 + [f"And {phrase} so on."] * 20, benchmark_of(items), ["s1-8gram"])
    assert items_of(result)["s1-8gram", "h0", "question"] == (1.0, True, 100)
    assert items_of(result)["s1-8gram", "h1", "question"] == (0.0, False, 0)


def test_canary_strings_are_reported_and_their_documents_flagged(tmp_path):
    bigbench = next(one for one in canaries() if one.name == "BIG-bench")
    texts = ["nothing", f"# canary GUID {bigbench.text}", f"{bigbench.text.upper()} again"]
    result = run_audit(tmp_path, texts, benchmark_of([{"question": "a question that is nowhere"}]), ["gpt3-clean"])
    assert result.canaries == {"BIG-bench": 2}
    documents = tables.read(result.directory / "documents.parquet", tables.DOCUMENTS).to_pylist()
    assert [(row["row"], row["action"], row["reasons"]) for row in documents] == [
        (1, "drop", ["canary: BIG-bench"]),
        (2, "drop", ["canary: BIG-bench"]),
    ]
    assert {key[1] for key in items_of(result)} == {"h0"}
    assert json.loads((result.directory / "audit.json").read_text())["canaries"] == {"BIG-bench": 2}


CODE = """def has_close_elements(numbers, threshold):
    for idx, elem in enumerate(numbers):
        for idx2, elem2 in enumerate(numbers):
            if idx != idx2 and abs(elem - elem2) < threshold:
                return True
    return False
"""


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (CODE, True),
        (CODE.replace("    ", "\t").replace(":\n", ":  # a comment that says what is done here\n"), True),
        (CODE.replace("elem2", "e2").replace("idx2", "j"), False),
        (CODE.replace("_", " "), False),
        (CODE.upper(), False),
    ],
    ids=["as it is", "comments and tabs", "identifiers renamed", "words of an identifier", "other case"],
)
def test_code_is_compared_by_its_identifiers_without_comments(text, is_found, tmp_path):
    benchmark = benchmark_of([{"question": "Write a function.", "answer": CODE}], code_fields=frozenset({"answer"}))
    result = run_audit(tmp_path, [f"Here it is:\n{text}"], benchmark, ["exact"])
    assert items_of(result)["exact", "h0", "answer"][1] is is_found


def test_other_rules_are_applied_later_without_the_corpus(edited, tmp_path):
    items, documents = edited
    first = run_audit(tmp_path, documents, benchmark_of(items), ["gpt3-clean"])
    rules = load_rules(rule_names())
    at_once = audit(find_shards([str(tmp_path / "corpus.jsonl")]), [benchmark_of(items)], rules, tmp_path / "at_once")
    Path(tmp_path / "corpus.jsonl").unlink()
    later = judge(first.directory, rules, tmp_path / "later")
    for name in ("items", "matches", "documents", "texts"):
        one, other = ((each.directory / f"{name}.parquet").read_bytes() for each in (at_once, later))
        assert one == other, name
    assert later.summaries == at_once.summaries
    assert items_of(judge(first.directory, load_rules(["palm"]))).keys() == {
        key for key in items_of(at_once) if key[0] == "palm"
    }


@pytest.mark.parametrize("suffix", [".parquet", NEAR_SUFFIX, FILES_SUFFIX])
def test_what_a_scan_has_recorded_is_read_whole_or_refused(tmp_path, suffix):
    result = run_audit(tmp_path, ["one two"], benchmark_of([{"question": "one two three"}]), ["llama3"])
    path = (result.directory / SCAN).with_suffix(suffix)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-20], b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="what the scan has recorded cannot be read"):
            judge(result.directory, load_rules(["llama3"]))
    path.unlink()
    with pytest.raises(InputError, match="what the scan has recorded cannot be read"):
        judge(result.directory, load_rules(["llama3"]))


def test_a_rule_with_shorter_n_grams_than_were_recorded_is_refused(tmp_path):
    result = run_audit(tmp_path, ["one"], benchmark_of([{"question": "one two three"}]), ["llama3"])
    rule = tmp_path / "short.yaml"
    rule.write_text(yaml.safe_dump({**definition("llama3"), "name": "short", "n": 5}))
    with pytest.raises(SpecError, match="recorded 8 or more"):
        judge(result.directory, load_rules([str(rule)]))
    with pytest.raises(InputError, match="no complete audit"):
        judge(tmp_path, load_rules(["llama3"]))


def test_the_record_has_the_hash_of_each_file_and_names_columns_without_text(tmp_path):
    shards = write_corpus(tmp_path, ["a text", "", "  "])
    benchmark = benchmark_of([{"question": "a question that is nowhere"}])
    result = audit(shards, [benchmark], load_rules(["llama3"]), tmp_path / "audit", text_column=["text", "txet"])
    assert result.columns_without_text == ("txet",)
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    (file,) = record["corpus"]
    assert len(file["fingerprint"]) == 64
    assert record["text_column"] == ["text", "txet"]
    assert result.n_by_kind == {"empty": 2}
    listed = [json.loads(line) for line in (tmp_path / "audit" / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["row"], row["kind"]) for row in listed] == [(1, "empty"), (2, "empty")]


def test_code_elsewhere_does_not_change_what_is_found_in_any_script(tmp_path):
    """Both readings of a document leave Cyrillic words as they are; only one of them is that of a text."""
    question = "почему летом дни становятся длиннее чем зимой если земля ближе к солнцу именно зимой"
    broken = question.replace(" чем ", " чем\n# тут комментарий\n")
    texts = [f"до {question} после", f"до {broken} после"]
    text = Benchmark("b", "test", (Item("h0", {"question": question}),), 0)
    code = Benchmark("c", "test", (Item("h1", {"answer": "def f(value):\n    return value"}),), 0,
                     code_fields=frozenset({"answer"}))  # fmt: skip
    found = []
    for name, benchmarks in (("alone", [text]), ("both", [text, code])):
        (tmp_path / name).mkdir()
        shards = write_corpus(tmp_path / name, texts)
        result = audit(shards, benchmarks, load_rules(["exact", "gpt3-clean"]), tmp_path / name / "audit")
        matches = tables.read(result.directory / "matches.parquet", tables.MATCHES).drop_columns(["file", "corpus"])
        mine = {key: value for key, value in items_of(result).items() if key[1] == "h0"}
        found.append((mine, [row for row in matches.to_pylist() if row["benchmark"] == "b"]))
    assert found[0] == found[1]
    assert found[0][0]["exact", "h0", "question"] == (1.0, True, 1)


def test_decons_score_finds_code_too(tmp_path):
    rng = random.Random("code")
    names = rng.sample(VOCABULARY, 60)
    prompt = "def solve(values):\n" + "".join(
        f"    {a} = {b} + {c}  # note\n" for a, b, c in zip(*[iter(names)] * 3, strict=True)
    )
    answer = "    return sorted(values, key=lambda one: one.weight)\n"
    item = {"question": prompt, "answer": answer}
    one = benchmark_of([item], code_fields=frozenset({"question", "answer"}))
    result = run_audit(tmp_path, ["before\n" + prompt + answer + "\nafter", "nothing"], one, ["olmo3"])
    assert items_of(result)["olmo3", "h0", "question"] == (1.0, True, 1)


def test_a_copy_in_text_that_repeats_itself_is_followed_as_far_as_any(tmp_path):
    """The run that begins last goes on over four differing words; those before it are as long, and do not."""
    rng = random.Random("repeats")
    field = ["0"] * 13 + rng.sample(VOCABULARY, 24)
    edited = list(field)
    for place in (15, 20, 25, 30):
        edited[place] = "other"
    text = " ".join(["0"] * 7 + edited)
    result = run_audit(tmp_path, [text], benchmark_of([{"question": " ".join(field)}]), ["llama2"])
    assert items_of(result)["llama2", "h0", "question"] == (1.0, True, 1)


def least_edits(one, other):
    before = list(range(len(other) + 1))
    for number, word in enumerate(one, start=1):
        now = [number]
        for k, its in enumerate(other):
            now.append(min(before[k] + (word != its), before[k + 1] + 1, now[k] + 1))
        before = now
    return before[-1]


def test_the_number_of_edits_is_the_least_of_the_whole_field_and_the_place(edited, tmp_path):
    """Weights decide where a copy lies; what is counted there are words."""
    items, texts = edited
    result = run_audit(tmp_path, texts, benchmark_of(items), ["fuzzy"])
    rows = tables.read(result.directory / "matches.parquet", tables.MATCHES).to_pylist()
    near = [row for row in rows if row["n_edits"]]
    assert len(near) > 20
    for row in near:
        field = twin.words(items[int(row["doc_hash"][1:])][row["field"]])
        place = twin.words(texts[row["row"]][row["start"] : row["end"]])
        least = least_edits(field, place)
        assert (row["n_edits"], row["n_tokens"]) == (least, max(len(field) - least, 0))
