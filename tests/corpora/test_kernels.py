"""The compiled loop takes all plain JSON and nothing else, and reads it as complete parsers do."""

import itertools
import json
import random
import re
from collections.abc import Callable

import numpy as np
import orjson
import pytest
import zstandard

from evalkit.corpora import ShardCounts, jsonl, kernels, streams
from evalkit.corpora.fields import TextFields, text_fields
from tests.corpora.formats import Row, rows_of

# The object with its fields `text` and `id`.
TREE = (
    np.array([kernels.OBJECT, kernels.TEXT, kernels.ID]),
    np.array([1, 3, 3, 3]),
    np.frombuffer(b"textid", dtype=np.uint8),
    np.array([0, 0, 4, 6]),
    np.array([0, 0, 1]),
)


def read(lines: list[bytes]) -> dict[int, tuple[str, str | None]]:
    """The text and the id of each line that the loop takes; the bytes after the last line are out of bounds."""
    ends = np.cumsum([len(line) + 1 for line in lines]) - 1
    starts = np.append(0, ends[:-1] + 1)
    data = np.frombuffer(b"\n".join(lines) + b'\n"}', dtype=np.uint8)
    texts, ids = np.empty((2, len(data)), dtype=np.uint8)
    taken, text_offsets, id_offsets, has_id, others, n_texts = kernels.read_lines(
        data, starts, ends, TREE, 1, texts, ids
    )
    assert sorted([*taken, *others]) == [number for number, line in enumerate(lines) if line.strip(b" \t\r")]
    assert n_texts.tolist() == [len(taken)]
    assert text_offsets[0] == id_offsets[0] == 0
    bounds = itertools.pairwise(text_offsets.tolist()), itertools.pairwise(id_offsets.tolist())
    return {
        line: (texts[a:b].tobytes().decode(), ids[c:d].tobytes().decode() if has else None)
        for line, (a, b), (c, d), has in zip(taken.tolist(), *bounds, has_id.tolist(), strict=True)
    }


def is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def all_of(alphabet: bytes, longest: int) -> list[bytes]:
    return [bytes(some) for n in range(longest + 1) for some in itertools.product(alphabet, repeat=n)]


def test_of_all_short_strings_of_json_the_valid_ones_are_taken():
    tokens = [b"{", b"}", b"[", b"]", b'""', b":", b","]
    values = [b"".join(some) for n in range(7) for some in itertools.product(tokens, repeat=n)]
    values += all_of(b'{}[]",:1 \\/', 4)
    lines = [b'{"text":"a","x":%b}' % value for value in values]
    taken = read(lines)
    valid = {number for number, line in enumerate(lines) if is_json(line)}
    assert len(valid) > 100
    # Nothing but a second field `text` or `id` is left to the other parser, and there is none.
    assert taken.keys() == valid
    assert set(taken.values()) == {("a", None)}


def test_of_all_short_lines_only_valid_ones_are_taken():
    pieces = [b'{"text":"a"', b'"text"', b"{", b"}", b":", b",", b'""', b"[", b"]", b" ", b"1", b'"id":"b"']
    lines = [b"".join(some) for n in range(1, 5) for some in itertools.product(pieces, repeat=n)]
    taken = read(lines)
    assert taken
    for number, (text, doc_id) in taken.items():
        record = orjson.loads(lines[number])
        assert (record["text"], record.get("id")) == (text, doc_id)


def test_numbers_are_taken_as_the_standard_writes_them_unless_they_could_be_out_of_range():
    numbers = [*all_of(b"-+.01eE", 5), b"9" * 100, b"9" * 101, b"1e99", b"1e100", b"1.5E-07", b"-0.0001"]
    taken = read([b'{"text":"a","x":%b}' % number for number in numbers])
    plain = re.compile(rb"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d{1,2})?")
    expected = {k for k, number in enumerate(numbers) if plain.fullmatch(number) and len(number) <= 100}
    assert taken.keys() == expected
    assert all(is_json(numbers[k]) for k in expected)


@pytest.mark.parametrize("value", [b"true", b"false", b"null", b"[true,null]", b'{"a":false}'])
def test_names_of_values_are_taken_whole(value):
    line = b'{"text":"a","x":%b}' % value
    assert read([line]) == {0: ("a", None)}
    for place in range(len(value)):
        for other in b"x}0 ":
            changed = value[:place] + bytes([other]) + value[place + 1 :]
            line = b'{"text":"a","x":%b}' % changed
            assert (0 in read([line])) == is_json(line), changed


def test_utf8_is_taken_exactly_when_it_is_valid():
    limits = b"\x41\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xed\xf0\xf4\xf5\xff"
    texts = [bytes(some) for n in (0, 1, 2) for some in itertools.product(range(0x80, 0x100), *[limits] * n)]
    texts += [bytes(some) for some in itertools.product(range(0xEF, 0xF8), limits, limits, limits)]
    taken = read([b'{"text":"%b"}' % text for text in texts])
    expected = {}
    for number, text in enumerate(texts):
        try:
            expected[number] = (text.decode(), None)
        except UnicodeDecodeError:
            continue
    assert len(expected) > 2000
    assert taken == expected
    # The same in strings that nobody wants.
    assert read([b'{"text":"a","%b":0}' % text for text in texts]).keys() == expected.keys()
    assert read([b'{"text":"a","x":["%b"]}' % text for text in texts]).keys() == expected.keys()


def test_an_escape_stands_for_what_other_parsers_say():
    escapes = [b"\\" + bytes([byte]) for byte in range(256)]
    escapes += [b"\\u%04x" % unit for unit in range(0x10000)] + [b"\\u%04X" % unit for unit in range(0, 0x10000, 99)]
    units = [0x0, 0x41, 0xD7FF, 0xD800, 0xD801, 0xDABC, 0xDBFF, 0xDC00, 0xDC01, 0xDDEF, 0xDFFF, 0xE000, 0xFFFF]
    escapes += [b"\\u%04x\\u%04x" % pair for pair in itertools.product(units, repeat=2)]
    escapes += [
        b"\\u",
        b"\\u1",
        b"\\u12",
        b"\\u123",
        b"\\u12G4",
        b"\\u 123",
        b"\\ud83d",
        b"\\ud83d\\",
        b"\\ud83d\\ude0",
    ]
    lines = [b'{"text":"<%b>"}' % escape for escape in escapes if escape != b"\\\n"]
    taken = read(lines)
    for number, line in enumerate(lines):
        assert (number in taken) == is_json(line), line
    assert taken == {number: (json.loads(lines[number])["text"], None) for number in taken}


def test_an_escape_at_the_end_of_the_line_does_not_reach_into_the_next():
    # The bytes that follow would complete each of them.
    for cut in (b'{"text":"\\', b'{"text":"\\u12', b'{"text":"\xe3\x80', b'{"text":"a', b'{"text":tru', b'{"text'):
        assert read([cut]) == {}


@pytest.mark.parametrize("control", range(0x20))
def test_raw_control_characters_are_left_to_the_other_parser(control):
    if control != ord("\n"):
        assert read([b'{"text":"%c"}' % control]) == {}
    assert read([b'{"text":"%c"}' % 0x7F]) == {0: ("\x7f", None)}


@pytest.mark.parametrize(
    ("value", "doc_id"),
    [
        (b'"x"', "x"),
        (b'""', ""),
        (b'"\\u00e9\\n"', "é\n"),
        (b"null", None),
        (b"0", "0"),
        (b"12", "12"),
        (b"-7", "-7"),
        (b"9" * 18, "9" * 18),
    ],
)
def test_ids_are_strings_and_whole_numbers(value, doc_id):
    assert read([b'{"id":%b,"text":"a"}' % value]) == {0: ("a", doc_id)}


@pytest.mark.parametrize("value", [b"-0", b"1.0", b"1e2", b"9" * 19, b"true", b"false", b"[1]", b"{}", b"01", b"-01"])
def test_ids_with_more_than_one_spelling_are_left_to_the_other_parser(value):
    assert read([b'{"id":%b,"text":"a"}' % value]) == {}


def test_a_name_counts_as_what_its_escapes_stand_for():
    assert read([b'{"\\u0074ext":"a","t":1}', b'{"te\\/t":"a"}']) == {0: ("a", None)}


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":"a","text":"b"}',
        b'{"text":null,"text":"b"}',
        b'{"text":"a","id":1,"id":2}',
        b'{"text":"a","\\u0069d":1,"id":2}',
        b'{"text":1}',
        b'{"text":null}',
        b'{"id":1}',
        b"{}",
        b'["text"]',
        b'"text"',
        b"null",
        b'{"text":"a"}x',
        b'{"text":"a"}\x00',
        b'{"text":"a","x":%b}' % (b"[" * 40 + b"]" * 40),
    ],
)
def test_lines_that_need_a_decision_are_left_to_the_other_parser(line):
    assert read([line]) == {}


def test_white_space_is_that_of_json():
    spaced = b' {\t"text" \r:\t "a" , "x" : [ 1 , { } , [ ] ] }\r'
    assert read([spaced, b"", b" \t\r", spaced, b"\x0b", b"\xa0"]) == {0: ("a", None), 3: ("a", None)}


def test_all_lines_of_a_real_corpus_are_taken(data_dir):
    with (data_dir / "corpora" / "assistant_answers.jsonl.zst").open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().split(b"\n")[:-1]
    assert len(read(lines)) == len(lines) > 40_000


# Bytes that mean something in a line, or that no line should have.
PIECES = [
    *(bytes([byte]) for byte in b'{}[]",:\\ \t\r\n0-.eE/utfn\x00\x0b\x1f\x7f\x80\xa0\xc0\xe3\xed\xf0\xff'),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-0", b"1.0", b"01", b"18446744073709551616", b"9" * 400),
    *(b"\\u0041", b"\\ud83d\\ude00", b"\\ud83d", b"\\ude00", b"\\u00", b"\\n", b"\\x", b"\\u0000"),
    *("é日🙂\u2028".encode(), b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xef\xbb\xbf"),
    *(b'"text":', b'"id":', b'"\\u0074ext":', b'"meta":', b'"meta.body":', b'"content":', b'"text": "twice",'),
    *(b"[" * 40, b"{" * 2000, b"]" * 40, b'{"a":' * 1100, b"\r\n", b"\n\n"),
]
COLUMNS = [
    "text",
    "id",
    ["text"],
    ["text", "other"],
    ["other", "text", "nowhere"],
    "meta.body",
    ["meta.body", "meta.tags[]", "text"],
    "messages[].content",
    ["messages[].role", "messages[].content"],
    "turns[][]",
    ["meta", "meta.body"],
    ["turns[]", "turns.x"],
    "日本",
    "\udc80",
    [f"c{n}" for n in range(70)],
]


def any_text(seeded: random.Random) -> str:
    pieces = ["word ", "word ", "é", "日", "🙂", '"', "\\", "\n", "\x00", "/", " "]
    return "".join(seeded.choice(pieces) for _ in range(seeded.randrange(6)))


def any_value(seeded: random.Random, depth: int = 0) -> object:
    kind = seeded.random()
    if kind < 0.4 or depth == 3:
        return any_text(seeded)
    if kind < 0.7:
        return seeded.choice([None, True, False, 0, -1, 7, 2**63, -(2**63), 2**64, 1.5, 1e-7, 123456789.123456789])
    if kind < 0.85:
        return [any_value(seeded, depth + 1) for _ in range(seeded.randrange(4))]
    return {any_text(seeded): any_value(seeded, depth + 1) for _ in range(seeded.randrange(4))}


def any_record(seeded: random.Random) -> object:
    """An object with fields of all of `COLUMNS`, and most of them as they should be."""

    def text() -> object:
        return any_text(seeded) if seeded.random() < 0.97 else any_value(seeded)

    def some(of: Callable[[], object]) -> list[object]:
        return [of() for _ in range(seeded.randrange(4))]

    record = {
        "text": text(),
        "id": seeded.choice([1, -5, 0, 10**17, "x", None, any_text(seeded), any_value(seeded)]),
        "other": text(),
        "meta": {"body": text(), "tags": some(text), "x": any_value(seeded)},
        "messages": some(lambda: {"role": text(), "content": text(), "x": any_value(seeded)}),
        "turns": some(lambda: some(text)),
        "日本": text(),
        "x": any_value(seeded),
        "c3": text(),
        "c69": text(),
    }
    if seeded.random() < 0.1:
        record["meta.body"] = text()
    n_kept = seeded.choice([len(record), len(record), seeded.randrange(len(record) + 1)])
    return {name: record[name] for name in seeded.sample(sorted(record), n_kept)}


def any_line(seeded: random.Random) -> bytes:
    """A line of JSON, in half of the cases a damaged one."""
    separators = seeded.choice([(",", ":"), (", ", ": "), (" ,\t", " :\r ")])
    line = json.dumps(any_record(seeded), ensure_ascii=seeded.random() < 0.5, separators=separators).encode()
    if seeded.random() < 0.1:
        line = seeded.choice([b"", b" ", b"\x0b", b"\r", b"\t ", b"[]", b"null", b"7", b'"text"'])
    for _ in range(seeded.choice([0, 0, 0, 1, 1, 2])):
        start = seeded.randrange(len(line) + 1)
        stop = start + seeded.choice([0, 0, 0, 1, 1, 3, 10])
        line = line[:start] + seeded.choice([*PIECES, line[start:stop] * 2, b""]) + line[stop:]
    return line


def read_rows(chunks: list[bytes], fields: TextFields) -> tuple[list[Row], dict[str, object]]:
    counts = ShardCounts()
    batches = jsonl.read_jsonl(iter(chunks), "f", fields, 60, counts)
    rows = [row for batch in batches for row in rows_of(batch)]
    return rows, {name: dict(value) if isinstance(value, dict) else value for name, value in vars(counts).items()}


@pytest.mark.parametrize("id_column", ["id", "text", "meta", "meta.body", "", None])
@pytest.mark.parametrize("columns", COLUMNS, ids=lambda columns: str(columns)[:40])
def test_the_compiled_loop_and_the_parser_give_the_same_of_any_lines(columns, id_column, monkeypatch):
    seeded = random.Random(ascii([columns, id_column]))
    fields = text_fields(columns, id_column)
    for mark in (b"", b"\xef\xbb\xbf"):
        data = mark + b"\n".join(any_line(seeded) for _ in range(150))
        chunks = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        monkeypatch.setattr(streams, "BLOCK_BYTES", seeded.choice([1, 3000, 1 << 20]))
        monkeypatch.setattr(jsonl, "_FEW_BYTES", 0)
        rows, counts = read_rows(chunks, fields)
        monkeypatch.setattr(jsonl, "_FEW_BYTES", len(data) + 1)
        assert (rows, counts) == read_rows(chunks, fields)
        assert counts["n_lines"] == data.count(b"\n") + (not data.endswith(b"\n"))
