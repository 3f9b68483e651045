"""A clean corpus: what was flagged is gone, what was not is as it was, and the counts add up."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evalkit import tables
from evalkit.contamination import clean_file
from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import QUESTION, Benchmark, Item
from evalkit.contamination.canaries import canaries
from evalkit.contamination.clean import CLEAN_RECORD, actions_of, clean
from evalkit.contamination.cutting import Cutting
from evalkit.contamination.rules import load_rules, rule_names
from evalkit.contamination.semantic.audit import SEMANTIC, apply_semantic
from evalkit.corpora import find_shards
from evalkit.corpora.shards import format_of_name
from evalkit.corpora.streams import read_chunks
from evalkit.engines import LocalEngine
from evalkit.errors import InputError, SpecError
from tests.contamination import twin
from tests.contamination.audits import benchmark, sentence
from tests.contamination.test_cutting import slow_cut
from tests.corpora.formats import LINE_FORMATS
from tests.test_cli import evalkit, mistake

ITEMS = benchmark(10)
FORMATS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet", "a.arrow", "footer.arrow"]
BAD = [b"", b"not JSON", b'{"text": null}', b'{"text": " "}', b'{"id": 1}', b"\xff"]


def planted(seed, n=60):
    """Documents of many lengths, a third of them with an item, of which one has no other text."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        parts = [sentence(rng, rng.choice([3, 40, 150])) for _ in range(rng.randint(1, 6))]
        if number % 3 == 0:
            fields = rng.choice(ITEMS.items).fields
            for _ in range(rng.choice([1, 1, 1, 2, 12])):
                text = fields["question"] if rng.random() < 0.7 else f"{fields['question']} {fields['answer']}"
                words = text.split()
                text = " ".join(words[: rng.choice([14, 99])])
                parts.insert(rng.randint(0, len(parts)), rng.choice([text, text.upper(), text.replace(" ", "\n")]))
        rows.append({"id": number, "text": " ".join(parts), "url": f"https://h/{number}", "n": [number]})
    rows[0]["text"] = ITEMS.items[0].fields["question"]
    return rows


def write(path, rows):
    """Write rows in the format that the name tells; JSON lines get some that are no documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.name:
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        for place, bad in enumerate(BAD):
            lines.insert(7 * place, bad)
        data = b"\n".join([*lines, b""])
        suffixes = "".join(path.suffixes)
        path.write_bytes(LINE_FORMATS["plain.jsonl" if suffixes == ".jsonl" else f"one{suffixes}"](data))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=17)
    else:
        new = pa.ipc.new_file if path.name.startswith("footer") else pa.ipc.new_stream
        table = pa.Table.from_pylist(rows)
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=17)
    return path


def read(path):
    """The rows of a file: lines as they are, or mappings."""
    if ".jsonl" in path.name:
        data = b"".join(read_chunks(path, format_of_name(path.name).compression, lambda n: None))
        return data.split(b"\n")
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = path.read_bytes()
    return (pa.ipc.open_file(data) if data.startswith(b"ARROW1") else pa.ipc.open_stream(data)).read_all().to_pylist()


def parsed(row):
    """A row as a mapping; None when it is no document."""
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
    except ValueError:
        return None
    return row if isinstance(row, dict) and (row.get("text") or "").strip() else None


ONE = LocalEngine(1)


def run_audit(folder, rules=("gpt3-clean",), corpus="corpus", out="audit", items=ITEMS, **options):
    audit(find_shards([str(folder / corpus)]), [items], load_rules(rules), folder / out, **options)
    return folder / out


def run_clean(folder, **options):
    return clean(folder / "audit", folder / "new", engine=ONE, **options)


def windows(text, n):
    words = twin.words(text)
    return {words[place : place + n] for place in range(len(words) - n + 1)}


@functools.cache
def evidence(text, n):
    """Where a text holds n words in a row of an item, or a whole shorter question: by brute force."""
    spans = []
    for item in ITEMS.items:
        for name, field in item.fields.items():
            size = min(n, len(twin.words(field)))
            if (size == n or name == "question") and windows(text, size) & windows(field, size):
                spans += [(start, end) for _, _, start, end in twin.runs(text, field, size)]
    return spans


def expected_rows(rows, action, cutting=None, *, join=False, n=13):
    """What is to come out, row by row, and the numbers of documents kept, cut and dropped."""
    cutting = cutting or Cutting()
    result, counts = [], {"n_kept": 0, "n_cut": 0, "n_dropped": 0}
    for row in rows:
        document = parsed(row)
        spans = evidence(document["text"], n) if document else []
        if not spans:
            result.append(row)
            counts["n_kept"] += document is not None
            continue
        pieces = "dropped" if action == "drop" else slow_cut([document["text"]], spans, cutting)
        if isinstance(pieces, str):
            counts["n_dropped"] += 1
            continue
        counts["n_cut"] += 1
        texts = [document["text"][start:end] for start, end in pieces[0]]
        for text in ["\n\n".join(texts)] if join else texts:
            new = {**document, "text": text}
            result.append(json.dumps(new, ensure_ascii=False).encode() if isinstance(row, bytes) else new)
    return result, counts


@pytest.mark.parametrize("action", ["drop", "cut"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_cleaned_file_holds_what_brute_force_leaves_and_a_second_audit_finds_nothing(tmp_path, name, action):
    path = write(tmp_path / "corpus" / name, planted(name))
    run_audit(tmp_path)
    result = run_clean(tmp_path, action=action)
    rows, counts = expected_rows(read(path), action)
    assert read(tmp_path / "new" / name) == rows
    [file] = result.files
    n_bad = len(BAD) - 2 if ".jsonl" in name else 0
    assert {key: getattr(file, key) for key in counts} == counts
    assert file.n_documents == 60 == file.n_kept + file.n_cut + file.n_dropped
    assert file.n_documents_out == file.n_kept + file.n_pieces == sum(parsed(row) is not None for row in rows)
    assert (file.n_empty, file.n_bad_rows) == ((1, n_bad) if n_bad else (0, 0))
    removed = [sum(len(parsed(row)["text"]) for row in some if parsed(row)) for some in (read(path), rows)]
    assert file.n_characters_removed == removed[0] - removed[1]
    again = run_audit(tmp_path, corpus="new", out="again")
    assert {row["label"] for row in tables.read(again / "items.parquet", tables.ITEMS).to_pylist()} == {"clean"}


def test_all_ways_to_cut_are_those_of_the_options(tmp_path):
    path = write(tmp_path / "corpus" / "a.jsonl", planted(3))
    run_audit(tmp_path)
    seen = set()
    for context, min_piece, max_pieces, pieces in [
        (0, 0, 99, "rows"), (0, 50, 2, "rows"), (30, 0, 99, "join"), (500, 1, 1, "join"), (200, 200, 10, None)
    ]:  # fmt: skip
        cutting = Cutting(context, min_piece, max_pieces)
        result = run_clean(tmp_path, action="cut", cutting=cutting, pieces=pieces, overwrite=True)
        rows, counts = expected_rows(read(path), "cut", cutting, join=pieces == "join")
        assert read(tmp_path / "new" / "a.jsonl") == rows
        assert {key: result.totals[key] for key in counts} == counts
        seen |= result.why_dropped.keys()
    assert seen == {"nothing_left", "too_many_pieces"}


@pytest.mark.parametrize("rule", rule_names())
def test_whatever_the_rule_a_second_audit_with_it_finds_nothing(tmp_path, rule):
    write(tmp_path / "corpus" / "a.jsonl", planted(rule, 90))
    run_audit(tmp_path, [rule])
    for action in ("cut", "drop"):
        result = run_clean(tmp_path, action=action, overwrite=True)
        assert result.totals["n_cut" if action == "cut" else "n_dropped"]
        again = run_audit(tmp_path, [rule], corpus="new", out=f"again-{action}")
        assert {row["label"] for row in tables.read(again / "items.parquet", tables.ITEMS).to_pylist()} == {"clean"}


def test_several_rules_take_the_strictest_action_and_each_is_counted(tmp_path):
    write(tmp_path / "corpus" / "a.jsonl", planted(1))
    found = run_audit(tmp_path, ["gpt3-clean", "s1-8gram", "llama3"])
    documents = tables.read(found / "documents.parquet", tables.DOCUMENTS).to_pylist()
    n_of = Counter(reason.removesuffix(": b") for one in documents for reason in one["reasons"])
    result = run_clean(tmp_path)
    assert result.actions == {"gpt3-clean": "cut", "s1-8gram": "drop", "llama3": "keep"}
    assert result.totals["n_dropped"] == n_of["s1-8gram"]
    assert result.reasons["s1-8gram: b"] == {"dropped": n_of["s1-8gram"], "cut": 0}
    assert "llama3: b" not in result.reasons
    n_kept = sum(one["reasons"] == ["llama3: b"] for one in documents)
    assert result.n_flagged_kept == n_kept
    only = run_clean(tmp_path, rules=["gpt3-clean"], overwrite=True)
    assert only.totals["n_dropped"] + only.totals["n_cut"] == n_of["gpt3-clean"]
    assert sum(only.reasons["gpt3-clean: b"].values()) == n_of["gpt3-clean"]


def test_a_document_with_a_canary_is_dropped_whatever_the_rules(tmp_path):
    rows = planted(2, 9)
    rows[4]["text"] += " " + canaries()[0].text
    write(tmp_path / "corpus" / "a.parquet", rows)
    run_audit(tmp_path)
    result = run_clean(tmp_path, action="cut", rules=["gpt3-clean"])
    assert 4 not in {row["id"] for row in read(tmp_path / "new" / "a.parquet")}
    assert result.reasons[f"canary: {canaries()[0].name}"] == {"dropped": 1, "cut": 0}


def long_text(seed, n=300):
    return sentence(random.Random(seed), n)


def test_rare_words_that_alone_make_a_document_dirty_are_cut_though_they_are_the_smaller_part_of_the_item(tmp_path):
    template, rare = long_text("template", 20), [long_text(f"rare {n}", 16) for n in range(12)]
    items = [Item(f"{n:02x}{'0' * 62}", {QUESTION: f"{template} {one}"}, f"i{n}") for n, one in enumerate(rare)]
    parts = [long_text(1), items[1].fields[QUESTION], long_text(2), rare[0], long_text(3)]
    write(tmp_path / "corpus" / "a.jsonl", [{"id": 0, "text": " ".join(parts)}])
    items = Benchmark("b", "test", tuple(items), 0)
    found = run_audit(tmp_path, ["fuzzy"], items=items)
    labels = {
        one["doc_hash"][:2]: one["label"] for one in tables.read(found / "items.parquet", tables.ITEMS).to_pylist()
    }
    assert labels["00"] == labels["01"] == "dirty"
    result = run_clean(tmp_path, action="cut")
    assert result.totals["n_cut"] == 1
    new = b" ".join(read(tmp_path / "new" / "a.jsonl")).decode(errors="replace")
    assert rare[0] not in new and rare[1] not in new
    again = run_audit(tmp_path, ["fuzzy"], corpus="new", out="again", items=items)
    assert not len(tables.read(again / "documents.parquet", tables.DOCUMENTS))


def with_rewritten(found, places):
    """Let a search for rewritten items have found the last item in documents: by row, at [start, end)."""
    item = {"benchmark": "b", "doc_hash": ITEMS.items[9].doc_hash, "field": QUESTION}
    scores = dict.fromkeys(("similarity", "margin", "share", "contamination"), 0.9)
    [file] = json.loads((found / "audit.json").read_text())["corpus"]
    place = {"corpus": file["corpus"], "file": file["file"], "doc_id": None, "label": "dirty"}
    rows = [{**item, **scores, **place, "row": row, "start": a, "end": b} for row, (a, b) in places.items()]
    rows.append({**rows[0], "row": 2, "start": 0, "end": 100, "label": "clean"})
    tables.write(found / "semantic.parquet", tables.from_rows(SEMANTIC, rows), SEMANTIC)
    names = ("n_documents", "n_searched", "n_windows", "n_kept", "n_embedded", "n_judged", "n_unclear")
    details = {**dict.fromkeys(names, 0), "sample": 1.0, "seconds": 0.0, "too_short": []}
    (found / "semantic.json").write_text(json.dumps(details))
    apply_semantic(found)


def test_a_rewritten_item_is_cut_where_the_search_found_it_also_beside_an_item_that_stands_there_verbatim(tmp_path):
    rewritten, leak = long_text("in other words", 25), ITEMS.items[3].fields[QUESTION]
    texts = [
        " ".join([long_text(1), leak, long_text(2), rewritten, long_text(3)]),
        " ".join([long_text(4), rewritten, long_text(5)]),
        long_text(6),
    ]
    path = tmp_path / "corpus" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"text": texts}), path)
    found = run_audit(tmp_path)
    places = {row: (texts[row].index(rewritten), texts[row].index(rewritten) + len(rewritten)) for row in (0, 1)}
    with_rewritten(found, places)
    result = run_clean(tmp_path, action="cut")
    assert (result.totals["n_cut"], result.totals["n_dropped"], result.totals["n_kept"]) == (2, 0, 1)
    new = [row["text"] for row in read(tmp_path / "new" / "a.parquet")]
    assert len(new) == 6 and texts[2] in new
    assert not any(rewritten in text or leak in text for text in new)
    assert result.reasons["semantic: b"] == {"dropped": 0, "cut": 2}
    assert run_clean(tmp_path, overwrite=True).reasons["semantic: b"] == {"dropped": 2, "cut": 0}


def test_a_document_is_dropped_when_one_of_its_reasons_has_no_place_though_another_has(tmp_path):
    other = benchmark(20)
    other = Benchmark("other", "test", other.items[10:], 0)
    leaks = [ITEMS.items[0].fields[QUESTION], other.items[0].fields[QUESTION]]
    rows = [
        {"id": n, "text": f"{long_text(n)} {' '.join(some)} {long_text(-n)}"}
        for n, some in enumerate([leaks, leaks[:1]])
    ]
    write(tmp_path / "corpus" / "a.jsonl", rows)
    found = tmp_path / "audit"
    audit(find_shards([str(tmp_path / "corpus")]), [ITEMS, other], load_rules(["gpt3-clean"]), found, engine=ONE)
    matches = tables.read(found / "matches.parquet", tables.MATCHES)
    left = matches.filter(pc.equal(matches.column("benchmark"), "b"))
    assert 0 < len(left) < len(matches)
    tables.write(found / "matches.parquet", left, tables.MATCHES)
    result = run_clean(tmp_path, action="cut")
    assert (result.totals["n_cut"], result.why_dropped) == (1, {"no_span": 1})
    assert result.reasons["gpt3-clean: other"] == {"dropped": 1, "cut": 0}
    new = b" ".join(read(tmp_path / "new" / "a.jsonl")).decode(errors="replace")
    assert not any(leak in new for leak in leaks)


def chat(question, answer):
    return [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": question},
        {"role": "tool", "content": None},
        {"role": "assistant", "content": answer},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_spans_are_cut_out_of_the_message_that_they_lie_in(tmp_path, name):
    rng = random.Random(5)
    leak, before, after, answer = ITEMS.items[3].fields["question"], *(sentence(rng, 200) for _ in range(3))
    rows = [
        {"id": "clean", "messages": chat(before, answer), "title": "t"},
        {"id": "cut", "messages": chat(f"{before} {leak} {after}", answer), "title": "t"},
        {"id": "gone", "messages": chat(leak, answer), "title": "t"},
        {"id": "in the title", "messages": chat(before, answer), "title": f"{leak} {after}"},
    ]
    write(tmp_path / "corpus" / name, rows)
    columns = ["messages[].content", "title"]
    run_audit(tmp_path, text_column=columns)
    with pytest.raises(SpecError, match="--pieces join"):
        run_clean(tmp_path, pieces="rows")
    result = run_clean(tmp_path, cutting=Cutting(context=20, min_piece=20))
    lines = [
        json.loads(row) if isinstance(row, bytes) else row for row in read(tmp_path / "new" / name) if row not in BAD
    ]
    new = {row["id"]: row for row in lines}
    assert result.totals["n_dropped"] == 1 and result.why_dropped == {"nothing_left": 1}
    assert new["clean"] == rows[0]
    messages = new["cut"]["messages"]
    [first, last] = messages[1]["content"].split("\n\n")
    assert before.startswith(first) and after.endswith(last)
    assert messages[0] == rows[1]["messages"][0] and messages[2:] == rows[1]["messages"][2:]
    assert new["in the title"]["messages"][:-1] == rows[3]["messages"][:-1]
    assert answer.startswith(new["in the title"]["messages"][3]["content"])  # the window reaches back into it
    assert after.endswith(new["in the title"]["title"])
    again = run_audit(tmp_path, corpus="new", out="again", text_column=columns)
    assert not len(tables.read(again / "documents.parquet", tables.DOCUMENTS))


# Files


@pytest.fixture
def corpus(tmp_path):
    """Files of the same name in several folders and formats; one has nothing to be cleaned."""
    for number, name in enumerate(["web/a.jsonl.zst", "books/a.jsonl.zst", "books/old/a.parquet", "a.jsonl"]):
        write(tmp_path / "corpus" / name, planted(number, 30))
    write(tmp_path / "corpus" / "none" / "a.jsonl.gz", [{"text": sentence(random.Random(n), 50)} for n in range(20)])
    return tmp_path


def contents(folder):
    """All files below a folder that are no record of what was done, with their bytes."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((".", "clean.json"))}


def test_every_file_keeps_its_place_and_the_record_tells_what_became_of_it(corpus):
    run_audit(corpus)
    result = run_clean(corpus, action="cut")
    assert contents(corpus / "new").keys() == contents(corpus / "corpus").keys()
    assert contents(corpus / "new")["none/a.jsonl.gz"] == contents(corpus / "corpus")["none/a.jsonl.gz"]
    record = orjson.loads((corpus / "new" / CLEAN_RECORD).read_bytes())
    assert record["totals"] == result.totals
    assert [file["output"] for file in record["files"] if file["is_copy"]] == ["none/a.jsonl.gz"]
    for name, total in record["totals"].items():
        assert total == sum(file[name] for file in record["files"])
    n_out = sum(parsed(row) is not None for name in contents(corpus / "new") for row in read(corpus / "new" / name))
    totals = record["totals"]
    n_gone = totals["n_dropped"] + totals["n_cut"] - totals["n_pieces"]
    assert n_out == totals["n_documents_out"] == totals["n_documents"] - n_gone


def test_the_changed_rows_are_listed_with_their_places_before_and_after(corpus):
    run_audit(corpus)
    result = run_clean(corpus, action="cut")
    changes = pq.read_table(corpus / "new" / ".clean" / "changes.parquet").to_pylist()
    assert len(changes) == result.totals["n_cut"] + result.totals["n_dropped"]
    assert sum(one["n_characters_removed"] for one in changes) == result.totals["n_characters_removed"]
    assert {one["action"] for one in changes} == {"cut", "drop"}
    for one in changes:
        old, new = read(Path(one["file"])), read(corpus / "new" / one["output"])
        text = parsed(old[one["row"]])["text"]
        for number, piece in enumerate(one["pieces"]):
            row = parsed(new[one["output_row"] + number])
            assert row["text"] == text[piece["start"] : piece["end"]]
            assert str(row["id"]) == one["doc_id"]
        assert (one["output_row"] is None) == (one["action"] == "drop") == (one["why"] is not None)


def test_the_result_does_not_depend_on_the_workers(corpus):
    run_audit(corpus)
    run_clean(corpus, action="cut")
    one = contents(corpus / "new")
    clean(corpus / "audit", corpus / "two", action="cut", engine=LocalEngine(2))
    assert contents(corpus / "two") == one


SLOW = """
import sys, time
from pathlib import Path
from evalkit.contamination import clean, clean_file
from evalkit.engines import LocalEngine
original = clean_file.rewrite_shard
def slowly(*arguments, **options):
    original(*arguments, **options)
    time.sleep(0.5)
clean_file.rewrite_shard = slowly
clean.clean(Path("audit"), Path("new"), action="cut", engine=LocalEngine(1))
"""


def test_a_killed_run_goes_on_and_keeps_the_files_that_are_as_they_were_left(corpus):
    run_audit(corpus)
    clean(corpus / "audit", corpus / "whole", action="cut")
    with subprocess.Popen([sys.executable, "-c", SLOW], cwd=corpus, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(list((corpus / "new" / ".clean").glob("*-*.parquet"))) < 6:
            time.sleep(0.01)  # four plans, two records
        os.kill(process.pid, signal.SIGKILL)
    done = contents(corpus / "new")
    assert 2 <= len(done) < 5 and not (corpus / "new" / CLEAN_RECORD).exists()
    damaged, kept = [corpus / "new" / name for name in list(done)[:2]]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    before = kept.stat().st_mtime_ns
    again = subprocess.run([sys.executable, "-c", SLOW], cwd=corpus, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done) - 1} of 5 files were written before" in again.stderr
    assert kept.stat().st_mtime_ns == before
    assert contents(corpus / "new") == contents(corpus / "whole")
    left = [path.name for path in (corpus / "new" / ".clean").rglob("*")]
    assert sorted(left) == ["changes.parquet", "plan.json"]


def test_an_unfinished_run_is_not_mixed_with_another(corpus, monkeypatch):
    run_audit(corpus)

    def fail(*_):
        raise OSError(28, "No space left on device", "new")

    with monkeypatch.context() as patch:
        patch.setattr(clean_file, "_check_counts", fail)
        with pytest.raises(OSError, match="No space left"):
            run_clean(corpus, action="cut")
    assert contents(corpus / "new") == {}
    with pytest.raises(SpecError, match="with other options"):
        run_clean(corpus, action="drop")
    run_clean(corpus, action="drop", overwrite=True)


def test_only_a_clean_corpus_is_replaced_and_only_when_that_is_said(corpus):
    run_audit(corpus)
    run_clean(corpus, action="cut")
    with pytest.raises(SpecError, match="--overwrite"):
        run_clean(corpus, action="drop")
    (corpus / "new" / "mine.txt").write_text("mine")
    (corpus / "new" / "web" / "mine.txt").write_text("mine")
    (corpus / "corpus" / "web" / "a.jsonl.zst").rename(corpus / "corpus" / "web" / "b.jsonl.zst")
    audit(find_shards([str(corpus / "corpus")]), [ITEMS], load_rules(["gpt3-clean"]), corpus / "audit", overwrite=True)
    run_clean(corpus, action="drop", overwrite=True)
    expected = {*contents(corpus / "corpus"), "mine.txt", "web/mine.txt"}
    assert contents(corpus / "new").keys() == expected
    (corpus / "other").mkdir()
    (corpus / "other" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(SpecError, match="holds other files"):
            clean(corpus / "audit", corpus / "other", action="drop", overwrite=overwrite)
    assert (corpus / "other" / "mine.txt").read_text() == "mine"


def test_names_in_a_foreign_audit_do_not_lead_out_of_the_new_folder(corpus):
    found = run_audit(corpus)
    (corpus / "victim").mkdir()
    for name in ("audit.json", "matches.parquet", "documents.parquet"):
        before = (found / name).read_bytes()
        (found / name).unlink()
        if name == "audit.json":
            (found / name).write_bytes(before.replace(b"/corpus/web/", b"/corpus/../victim/"))
        else:
            table = pq.read_table(pa.BufferReader(before))
            files = pc.replace_substring(table.column("file"), "/corpus/web/", "/corpus/../victim/")
            pq.write_table(
                table.set_column(table.schema.names.index("file"), table.schema.field("file"), files), found / name
            )
    (corpus / "corpus" / "web" / "a.jsonl.zst").rename(corpus / "victim" / "a.jsonl.zst")
    before = contents(corpus)
    with pytest.raises(InputError, match=r"audit.json|corpus/\.\./victim"):
        run_clean(corpus, action="cut")
    assert contents(corpus) == before


@pytest.mark.parametrize(
    "name", ["../precious.txt", "{corpus}/precious.txt", "web/../../precious.txt", "link/precious.txt"]
)
@pytest.mark.parametrize("place", ["plan.json", "clean.json"])
def test_a_foreign_clean_corpus_does_not_make_overwriting_it_delete_what_lies_elsewhere(corpus, place, name):
    run_audit(corpus)
    run_clean(corpus, action="cut")
    (corpus / "new" / "link").symlink_to(corpus)
    (corpus / "precious.txt").write_text("precious")
    path, key = (corpus / "new" / "clean.json", "descriptions")
    if place == "plan.json":
        path, key = corpus / "new" / ".clean" / "plan.json", "outputs"
    record = json.loads(path.read_text())
    record[key].append(name.format(corpus=corpus))
    path.write_text(json.dumps(record))
    before = contents(corpus)
    with pytest.raises(InputError, match=rf"{place}.*precious.*outside"):
        run_clean(corpus, action="drop", overwrite=True)
    assert contents(corpus) == before


def test_a_damaged_plan_is_an_error_that_names_it(corpus):
    run_audit(corpus)
    run_clean(corpus, action="cut")
    for damaged in ("{", "[]", '{"key": 1}', '{"key": "1", "outputs": [1]}'):
        (corpus / "new" / ".clean" / "plan.json").write_text(damaged)
        with pytest.raises(InputError, match=r"plan\.json"):
            run_clean(corpus, action="drop", overwrite=True)


def test_a_linked_folder_in_the_new_one_is_not_followed(corpus):
    run_audit(corpus)
    run_clean(corpus, action="cut")
    before = contents(corpus / "corpus")
    for path in (corpus / "new" / "web").iterdir():
        path.unlink()
    (corpus / "new" / "web").rmdir()
    (corpus / "new" / "web").symlink_to(corpus / "corpus" / "web")
    (corpus / "new" / CLEAN_RECORD).unlink()
    with pytest.raises(InputError, match="outside"):
        run_clean(corpus, action="cut")
    assert contents(corpus / "corpus") == before


def test_a_run_that_was_killed_before_it_had_a_plan_can_be_given_again(corpus):
    run_audit(corpus)
    (corpus / "new" / ".clean").mkdir(parents=True)
    (corpus / "new" / ".clean" / ".plan.json.0123abcd.tmp").write_bytes(b"{")
    result = run_clean(corpus, action="cut")
    assert result.totals["n_cut"]
    assert [path.name for path in (corpus / "new" / ".clean").iterdir() if path.name.startswith(".")] == []
    (corpus / "other" / ".clean").mkdir(parents=True)
    (corpus / "other" / ".clean" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(SpecError, match="holds other files"):
        clean(corpus / "audit", corpus / "other", action="drop")


def test_a_kill_while_a_clean_corpus_is_removed_leaves_a_folder_that_is_known_again(tmp_path, monkeypatch):
    write(tmp_path / "corpus" / "a.jsonl", planted(1, 12))
    run_audit(tmp_path)
    unlink, n_left = os.unlink, 0

    def unlink_or_die(*path, **options):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise KeyboardInterrupt
        unlink(*path, **options)

    for n in range(4):  # the record, the file, the changes, the plan
        run_clean(tmp_path, action="cut", overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink_or_die)
            n_left = n
            with pytest.raises(KeyboardInterrupt):
                run_clean(tmp_path, action="drop", overwrite=True)
        run_clean(tmp_path, action="drop", overwrite=True)


def test_a_file_that_another_worker_is_writing_is_left_alone(corpus):
    write(corpus / "corpus" / "web" / "a.jsonl", planted(9, 9))
    run_audit(corpus)
    run_clean(corpus, action="cut")
    (corpus / "new" / CLEAN_RECORD).unlink()
    (corpus / "new" / "web" / "a.jsonl").unlink()
    left, live = (corpus / "new" / "web" / f".{name}.0123abcd.tmp" for name in ("a.jsonl", "a.jsonl.gz"))
    for path in (left, live):
        path.write_bytes(b"")
    run_clean(corpus, action="cut")
    assert live.exists() and not left.exists()


def test_a_foreign_state_json_in_the_corpus_changes_nothing(corpus):
    for place, text in (("", "{}"), ("web", '{"step": 7}'), ("books", "[1]"), ("none", "{broken")):
        (corpus / "corpus" / place / "state.json").write_text(text)
    run_audit(corpus)
    result = run_clean(corpus, action="cut")
    assert result.totals["n_cut"] and (corpus / "new" / CLEAN_RECORD).exists()
    assert not list((corpus / "new").rglob("state.json"))


def test_the_new_folder_must_not_overlap_the_corpus(corpus):
    run_audit(corpus)
    for inside in ("corpus", "corpus/web", "corpus/new", "."):
        with pytest.raises(SpecError, match="lies"):
            clean(corpus / "audit", corpus / inside, action="drop")


def test_a_corpus_that_is_not_the_audited_one_is_refused(corpus):
    run_audit(corpus)
    path = corpus / "corpus" / "a.jsonl"
    data = path.read_bytes()
    path.write_bytes(data + b"\n")
    with pytest.raises(InputError, match=r"a.jsonl: .*bytes now"):
        run_clean(corpus, action="drop")
    path.write_bytes(data.replace(b"https://h/3", b"https://g/3"))
    with pytest.raises(InputError, match=r"a.jsonl: the contents are others"):
        run_clean(corpus, action="drop")
    path.unlink()
    with pytest.raises(InputError, match=r"a.jsonl: .*No such file"):
        run_clean(corpus, action="drop")
    assert not list((corpus / "new").glob("a.jsonl"))


def without_fingerprints(folder):
    record = json.loads((folder / "audit.json").read_text())
    for one in record["corpus"]:
        one["fingerprint"] = None
    (folder / "audit.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"id": 3, ', b'{"id": 4, ', "another document"),
        (b'{"id": 1, ', b"[           ", "no document|are left where"),
        (b'{"id": 1, "text": "', b'{"id": 1, "text": 7 ', "are left where"),
    ],
)
def test_without_fingerprints_ids_and_counts_tell_another_corpus(corpus, old, new, message):
    without_fingerprints(run_audit(corpus))
    path = corpus / "corpus" / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(old, new[: len(old)].ljust(len(old))))
    with pytest.raises(InputError, match=message):
        run_clean(corpus, action="drop")
    assert not (corpus / "new" / "a.jsonl").exists()


def test_the_tables_must_belong_together(corpus):
    run_audit(corpus)
    record = json.loads((corpus / "audit" / "audit.json").read_text())
    record["corpus"] = [one for one in record["corpus"] if "web" not in one["file"]]
    (corpus / "audit" / "audit.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="two audits"):
        run_clean(corpus, action="drop")
    with pytest.raises(InputError, match="no complete audit"):
        clean(corpus, corpus / "new")


def test_rules_that_only_measure_need_an_action():
    rules = [{"name": "a", "document_action": "keep"}, {"name": "b", "document_action": "cut"}]
    assert actions_of(rules, None, "rule") == {"a": "keep", "b": "cut"}
    assert actions_of(rules, ["a"], "drop") == {"a": "drop"}
    with pytest.raises(SpecError, match="--action drop"):
        actions_of(rules, ["a"], "rule")
    with pytest.raises(SpecError, match="It applied: a, b"):
        actions_of(rules, ["c"], "drop")
    with pytest.raises(SpecError, match="Give rule, drop, cut"):
        actions_of(rules, ["a"], "burn")


def test_a_flagged_document_without_a_place_is_dropped(corpus):
    found = run_audit(corpus)
    matches = tables.read(found / "matches.parquet", tables.MATCHES)
    tables.write(found / "matches.parquet", matches.slice(0, 0), tables.MATCHES)
    result = run_clean(corpus, action="cut")
    assert result.totals["n_cut"] == 0
    assert result.why_dropped == {"no_span": result.totals["n_dropped"]}


def test_a_corpus_at_an_address_is_written_here(tmp_path):
    local = write(tmp_path / "corpus" / "a.jsonl.gz", planted(1))
    memory = fsspec.filesystem("memory")
    memory.pipe("/clean/part/a.jsonl.gz", local.read_bytes())
    memory.pipe("/clean/b.jsonl", b'{"text": "nothing here"}\n')
    audit(find_shards(["memory://clean"]), [ITEMS], load_rules(["gpt3-clean"]), tmp_path / "audit", engine=ONE)
    run_clean(tmp_path, action="cut")
    assert read(tmp_path / "new" / "part" / "a.jsonl.gz") == expected_rows(read(local), "cut")[0]
    assert (tmp_path / "new" / "b.jsonl").read_bytes() == b'{"text": "nothing here"}\n'


def test_a_dataset_that_is_no_file_becomes_parquet_and_a_saved_one_can_be_loaded(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = planted(1, 30)
    (tmp_path / "csv").mkdir()
    plain = [{"id": row["id"], "text": row["text"]} for row in rows]
    datasets.Dataset.from_list(plain).to_csv(tmp_path / "csv" / "a.csv")
    shards = find_shards([f"hf:{tmp_path / 'csv'}"])
    audit(shards, [ITEMS], load_rules(["gpt3-clean"]), tmp_path / "audit", engine=ONE)
    run_clean(tmp_path, action="drop")
    kept = [row["id"] for row in expected_rows(rows, "drop")[0]]
    [part] = (tmp_path / "new").glob("*.parquet")
    assert [row["id"] for row in pq.read_table(part).to_pylist()] == kept
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "corpus"))
    run_audit(tmp_path, overwrite=True)
    run_clean(tmp_path, action="drop", overwrite=True)
    assert datasets.load_from_disk(str(tmp_path / "new"))["id"] == kept
    run_clean(tmp_path, action="cut", overwrite=True)
    assert len(datasets.load_from_disk(str(tmp_path / "new"))) > len(kept)


def test_an_audit_that_found_nothing_gives_the_same_corpus(tmp_path):
    write(tmp_path / "corpus" / "a.jsonl.xz", [{"text": "nothing"}])
    run_audit(tmp_path)
    result = run_clean(tmp_path, action="cut")
    assert contents(tmp_path / "new") == contents(tmp_path / "corpus")
    assert result.totals["n_dropped"] == result.totals["n_cut"] == 0
    assert pq.read_table(tmp_path / "new" / ".clean" / "changes.parquet").num_rows == 0


# The command


@pytest.fixture
def command(corpus):
    lines = [json.dumps({"id": item.doc_hash, **item.fields}) + "\n" for item in ITEMS.items]
    (corpus / "items.jsonl").write_text("".join(lines))
    words = ["--corpus", "corpus", "--benchmark", "items.jsonl", "--out", "audit", "--allow-bad-rows", "99"]
    return ["audit", *words, "--workers", "1"]


def test_the_command_cleans_with_the_audit_or_after_it_and_prints_what_it_did(corpus, command):
    done = evalkit(*command, "--clean", "new", cwd=corpus)
    assert done.returncode == 0, done.stderr
    totals = orjson.loads((corpus / "new" / CLEAN_RECORD).read_bytes())["totals"]
    printed = " ".join(done.stdout.split())
    assert f"{totals['n_documents']:,} documents = {totals['n_kept']:,} kept + {totals['n_cut']:,} cut" in printed
    after = evalkit("audit", "clean", "audit", "--to", "again", "--workers", "1", "--json", cwd=corpus)
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["totals"] == totals
    assert contents(corpus / "again") == contents(corpus / "new")
    words = ["--rule", "llama3", "--action", "cut", "--context", "0", "--min-piece", "1", "--pieces", "join"]
    words.append("--overwrite")
    assert evalkit("audit", "clean", "audit", "--to", "again", *words, cwd=corpus).returncode == 0
    assert contents(corpus / "again") != contents(corpus / "new")


def test_mistakes_are_told_before_the_corpus_is_scanned(corpus, command):
    assert "--action drop" in mistake(evalkit(*command, "--rule", "llama3", "--clean", "new", cwd=corpus))
    assert "lies" in mistake(evalkit(*command, "--clean", "corpus/new", cwd=corpus))
    assert not (corpus / "audit").exists()
