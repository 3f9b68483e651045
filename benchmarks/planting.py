"""Plants benchmark items in real documents at known places: as they are, or changed in the ways in which leaks are.

Every draw comes from a `random.Random` that the caller seeds, so that a corpus can be made again.
"""

from __future__ import annotations

import ast
import builtins
import csv
import gzip
import io
import json
import keyword
import random
import re
import tokenize
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

SHORT = 8
"""A question of fewer words is short, and an answer of fewer words is no evidence when it stands alone."""

LONG_DOCUMENT = 30_000
"""Characters of the documents in whose middle items are embedded, at least."""


@dataclass(frozen=True)
class Item:
    """A benchmark item: the benchmark's name, the item's row in its file, and its texts."""

    benchmark: str
    number: int
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    is_code: bool = False

    @property
    def text(self) -> str:
        """The whole item as it would stand in a document."""
        if self.is_code:
            return self.question + self.answer
        if not self.choices:
            return f"{self.question}\n{self.answer}"
        letters = [f"{chr(ord('A') + n)}. {choice}" for n, choice in enumerate(self.choices)]
        return "\n".join([self.question, *letters, f"Answer: {letters[self.choices.index(self.answer)]}"])


@dataclass(frozen=True)
class ItemFile:
    """A benchmark: its name, the file of its items, what `--fields` says of the file, and the items in their order."""

    name: str
    path: Path
    fields: str | None
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plant:
    """A document with an item in it, whose text, changed or not, is `document[start:end]`."""

    item: Item
    document: str
    start: int
    end: int


def words(text: str) -> list[str]:
    """The words of a text in plain Python, so that the benchmark does not measure evalkit by its own normalisation."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def read_lines(path: Path) -> Iterator[Any]:
    """Read a file of JSON lines, plain, .gz or .zst."""
    opener: Callable[..., Any] = {".gz": gzip.open, ".zst": zstandard.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write a file of JSON lines."""
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def read_benchmarks(data: Path, folder: Path) -> list[ItemFile]:
    """Read MMLU, GSM8K, HumanEval and BIG-Bench Hard; the tasks of the last go into one file in `folder`."""
    mmlu, gsm8k = data / "benchmarks" / "mmlu_test.jsonl.gz", data / "benchmarks" / "gsm8k_test.jsonl.gz"
    humaneval, bbh = data / "benchmarks" / "humaneval.jsonl.gz", folder / "bbh.jsonl"
    with bbh.open("w", encoding="utf-8") as out:
        for path in sorted((data / "benchmarks" / "bbh").glob("*.jsonl.gz")):
            for row in read_lines(path):
                line = {"id": f"{path.name.split('.')[0]}/{row['id']}", "input": row["input"], "target": row["target"]}
                out.write(json.dumps(line) + "\n")

    def items(name: str, path: Path, make: Callable[[Any], dict[str, Any]]) -> tuple[Item, ...]:
        return tuple(Item(name, number, **make(row)) for number, row in enumerate(read_lines(path)))

    def of_mmlu(row: Any) -> dict[str, Any]:
        return {
            "question": row["question"],
            "answer": row["choices"][row["answer"]],
            "choices": tuple(row["choices"]),
        }

    return [
        ItemFile("mmlu_test", mmlu, None, items("mmlu_test", mmlu, of_mmlu)),
        ItemFile(
            "gsm8k_test",
            gsm8k,
            None,
            items("gsm8k_test", gsm8k, lambda row: {"question": row["question"], "answer": row["answer"]}),
        ),
        ItemFile(
            "humaneval",
            humaneval,
            "humaneval",
            items(
                "humaneval",
                humaneval,
                lambda row: {"question": row["prompt"], "answer": row["canonical_solution"], "is_code": True},
            ),
        ),
        ItemFile("bbh", bbh, "bbh", items("bbh", bbh, lambda row: {"question": row["input"], "answer": row["target"]})),
    ]


def read_documents(data: Path) -> list[str]:
    """Read the texts of the real corpus."""
    return [row["text"] for row in read_lines(data / "corpora" / "assistant_answers.jsonl.zst")]


Way = Callable[[Item, random.Random], str | None]
"""Makes the text of an item that is planted; None: the item cannot be planted in this way."""


def _unless_short(change: Way) -> Way:
    """The way for items whose question is not short; short ones have a way of their own."""
    return lambda item, rng: None if len(words(item.question)) < SHORT else change(item, rng)


def ways(vocabulary: Sequence[str], rewritten: Mapping[str, Mapping[tuple[str, int], str]]) -> dict[str, Way]:
    """Return every way of planting by its name.

    Parameters
    ----------
    vocabulary
        Words that edits insert.
    rewritten
        From `read_rewritten`.
    """

    def edited(share: float) -> Way:
        return _unless_short(lambda item, rng: edit_words(item.text, share, vocabulary, rng))

    def rewritten_as(name: str) -> Way:
        return lambda item, rng: rewritten[name].get((item.benchmark, item.number))

    return {
        "verbatim": _unless_short(lambda item, rng: item.text),
        "case_punctuation": _unless_short(change_case_and_punctuation),
        "rewrapped": _unless_short(rewrap),
        "embedded": _unless_short(lambda item, rng: item.text),
        "short": lambda item, rng: item.text if 0 < len(words(item.question)) < SHORT else None,
        "truncated": _unless_short(lambda item, rng: first_half(item.text)),
        "question_only": _unless_short(lambda item, rng: item.question),
        "answer_only": lambda item, rng: item.answer if len(words(item.answer)) >= SHORT else None,
        "edited_5": edited(0.05),
        "edited_10": edited(0.10),
        "edited_20": edited(0.20),
        "reordered": _unless_short(reorder_sentences),
        "renamed": lambda item, rng: rename_identifiers(item.text, rng) if item.is_code else None,
        **{name: rewritten_as(name) for name in rewritten},
    }


def change_case_and_punctuation(item: Item, rng: random.Random) -> str | None:
    """Change the case of all letters, and every punctuation mark into another one; operators stay.

    None for code, which would be another program, or none.
    """
    if item.is_code:
        return None
    text = rng.choice((str.upper, str.lower, str.title))(item.text)
    text = re.sub(r"(?<=\w)['’](?=\w)", lambda mark: "’" if mark[0] == "'" else "'", text)
    marks = (",", ";", ":", " – ", " … ", "! ", " “", "” ")

    def other(found: re.Match[str]) -> str:
        return rng.choice([mark for mark in marks if mark.strip() not in found[0]])

    return re.sub(r"[.,;:!?\"“”…–—-]+|(?<!\w)['‘’]|['‘’](?!\w)", other, text)


def rewrap(item: Item, rng: random.Random) -> str:
    """Break the lines at other places, and indent or quote them; of code, indent otherwise and move the blank lines."""
    end = rng.choice(("\n", "\r\n"))
    if item.is_code:
        return end.join(_reindented(item.text, rng.choice(("  ", "\t", "        ")), rng))
    width, begin = rng.randint(20, 60), rng.choice(("", "    ", "\t", "> "))
    lines, line = [], ""
    for word in item.text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return end.join(begin + one for one in [*lines, line])


def _reindented(source: str, step: str, rng: random.Random) -> Iterator[str]:
    for line in filter(str.strip, source.splitlines()):
        bare = line.lstrip()
        n_steps, rest = divmod(len(line) - len(bare), 4)
        yield step * n_steps + " " * rest + bare
        if rng.random() < 0.1:
            yield ""


def first_half(text: str) -> str:
    """The first half of the words, and the odd one."""
    places = [found.end() for found in re.finditer(r"\S+", text)]
    return text[: places[(len(places) - 1) // 2]]


def edit_words(text: str, share: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """Delete, replace, or insert a word before, this share of the words, each as likely; at least one."""
    pieces = re.split(r"(\s+)", text)
    places = [place for place, piece in enumerate(pieces) if words(piece)]
    for place in rng.sample(places, max(1, round(share * len(places)))):
        word = rng.choice(vocabulary)
        pieces[place] = rng.choice(("", word, f"{word} {pieces[place]}"))
    return "".join(pieces)


def reorder_sentences(item: Item, rng: random.Random) -> str | None:
    """Put the sentences of the question into another order; None when it has fewer than three, or is code."""
    sentences = re.split(r"(?<=[.!?])\s+", item.question.strip())
    if item.is_code or len(sentences) < 3 or len(set(sentences)) == 1:
        return None
    shuffled = list(sentences)
    while shuffled == sentences:
        rng.shuffle(shuffled)
    return item.text.replace(item.question, " ".join(shuffled), 1)


_NEW_NAMES = (
    *("amount", "area", "basis", "batch", "block", "bucket", "cargo", "cell", "chunk", "code", "cursor", "delta"),
    *("entry", "factor", "figure", "flag", "frame", "gap", "goal", "grid", "group", "head", "holder", "kind", "label"),
    *("left_part", "level", "limit", "main_value", "marker", "memo", "mode", "new_entry", "node", "offset", "output"),
    *("part", "phase", "pick", "piece", "pool", "probe", "quota", "range_end", "record", "right_part", "row", "sample"),
    *("scan", "seed", "shape", "signal", "size_of_it", "slot", "stage", "state", "step", "store", "table", "tail"),
    *("target", "temp_value", "token", "trace", "tracker", "unit", "view", "work_item"),
)


def rename_identifiers(source: str, rng: random.Random) -> str:
    """Give every function, parameter and variable of a Python program another name; what it does stays the same.

    Names in docstrings and comments are changed where they are those of functions: other names are words there too.
    """
    tree = ast.parse(source)
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    bound = functions | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    taken = set(re.findall(r"\w+", source)) | set(dir(builtins)) | set(keyword.kwlist)
    fresh = rng.sample([name for name in _NEW_NAMES if name not in taken], len(bound))
    new_names = dict(zip(sorted(bound), fresh, strict=True))
    lines = source.splitlines(keepends=True)
    places = {
        (node.lineno, len(lines[node.lineno - 1].encode()[: node.col_offset].decode()))
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.arg)
    }
    in_prose = re.compile(rf"\b({'|'.join(map(re.escape, sorted(functions)))})\b")
    last = ""
    edits = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in new_names and (token.start in places or last == "def"):
            edits.append((token, new_names[token.string]))
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            edits.append((token, in_prose.sub(lambda found: new_names[found[0]], token.string)))
        last = token.string
    return _with_tokens(lines, edits)


def _with_tokens(lines: Sequence[str], edits: Sequence[tuple[tokenize.TokenInfo, str]]) -> str:
    """The source with some of its tokens replaced."""
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    source = "".join(lines)
    for token, text in reversed(edits):  # from the end, so that the places before stay right
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        source = source[:begin] + text + source[end:]
    return source


def read_rewritten(data: Path) -> dict[str, dict[tuple[str, int], str]]:
    """Read rewritten and translated items: way, then (benchmark, number), then the text.

    GSM8K and MMLU have the question without an answer, HumanEval the whole program. Rows without a text are left out.
    """
    folder = data / "rephrase"

    def texts(name: str) -> list[str]:
        return [row["text"] for row in read_lines(folder / f"{name}.jsonl.gz")]

    with gzip.open(folder / "abstract_algebra_test.csv.gz", "rt", encoding="utf-8", newline="") as file:
        algebra = [row[0] for row in csv.reader(file)]
    rows = read_lines(data / "benchmarks" / "mmlu_test.jsonl.gz")
    if [row["question"] for row, _ in zip(rows, algebra, strict=False)] != algebra:
        raise SystemExit(f"{folder}: abstract_algebra_test.csv.gz does not hold the first items of MMLU")
    gsm8k = [text.removeprefix("Question: ").split("\nAnswer:")[0] for text in texts("rephrase_gsm8k")]
    rewritten = {
        "rewritten_gsm8k": ("gsm8k_test", gsm8k),
        "rewritten_mmlu": ("mmlu_test", texts("abstract_algebra_test_rephrase_english_filtered_question")),
        "chinese_mmlu": ("mmlu_test", texts("abstract_algebra_test_chinese_filtered_question")),
        "rewritten_humaneval": ("humaneval", texts("humaneval_python")),
    }
    return {
        way: {(name, number): text for number, text in enumerate(some) if text.strip()}
        for way, (name, some) in rewritten.items()
    }


def vocabulary_of(documents: Sequence[str], rng: random.Random) -> list[str]:
    """Words as frequent as they are in some of the documents."""
    return [
        word for text in rng.sample(documents, min(200, len(documents))) for word in re.findall(r"\b[a-z]+\b", text)
    ]


def plant(item: Item, text: str, host: str, rng: random.Random) -> Plant:
    """Put a text between two lines of a document, or at its end."""
    at = rng.choice([*(found.end() for found in re.finditer(r"\n+", host)), len(host)])
    before, after = host[:at].rstrip("\n") + "\n\n", "\n\n" + host[at:]
    return Plant(item, before + text + after, len(before), len(before) + len(text))


def embed(item: Item, text: str, hosts: Sequence[str]) -> Plant:
    """Put a text between two sentences in the middle of a long document, which the hosts make together."""
    host = "\n\n".join(hosts)
    found = re.compile(r"(?<=[.!?])\s").search(host, len(host) // 2)
    at = found.start() if found else len(host) // 2
    return Plant(item, f"{host[:at]} {text} {host[at:].lstrip()}", at + 1, at + 1 + len(text))


def plant_all(
    way: str, change: Way, items: Sequence[Item], hosts: Sequence[str], n_items: int, rng: random.Random
) -> list[Plant]:
    """Plant up to `n_items` items of each benchmark in one way, each in a document of its own."""
    chosen: list[tuple[Item, str]] = []
    counts: dict[str, int] = {}
    for item in rng.sample(items, len(items)):
        if counts.get(item.benchmark, 0) < n_items and (text := change(item, rng)) is not None:
            counts[item.benchmark] = counts.get(item.benchmark, 0) + 1
            chosen.append((item, text))
    if len(chosen) > len(hosts):
        raise ValueError(f"{len(chosen)} items need as many documents, and there are {len(hosts)}")
    if way != "embedded":
        return [plant(item, text, host, rng) for (item, text), host in zip(chosen, hosts, strict=False)]
    return [embed(item, text, _long_document(hosts, rng)) for item, text in chosen]


def _long_document(hosts: Sequence[str], rng: random.Random) -> list[str]:
    texts: list[str] = []
    while sum(map(len, texts)) < LONG_DOCUMENT:
        texts.append(rng.choice(hosts))
    return texts
