"""Two models' answers to the same questions, from run directories or from files, brought together by `doc_hash`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evalkit import tables
from evalkit.errors import InputError, SpecError

_QUESTION: Final = ("question", "instruction", "prompt", "input")
_ANSWER: Final = ("answer", "response", "output")
_NAME: Final = ("model", "generator")
_REFERENCE: Final = ("reference", "target")


@dataclass(frozen=True)
class Answered:
    """One question and its answer; the reference is empty where there is none."""

    task: str
    doc_hash: str
    question: str
    text: str
    reference: str


@dataclass(frozen=True)
class Answers:
    """A model's answers by (task, doc_hash), and what was left out and why."""

    name: str
    rows: Mapping[tuple[str, str], Answered]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class AnswerPair:
    """A question with two answers."""

    pair_id: str
    a: Answered
    b: Answered


@dataclass(frozen=True)
class AnswerPairs:
    """Pairs of answers, the models' names, and what could not be paired and why."""

    name_a: str
    name_b: str
    pairs: tuple[AnswerPair, ...]
    left_out: Mapping[str, int]


def read_answers(path: Path) -> Answers:
    """Read a run directory, or a file of answers (JSON, JSON lines, CSV, Parquet).

    Of a run's seeds and repeats, the first is taken. A file has the columns `question` (or instruction), `answer` (or
    output), and if known `model` (or generator), `task`, `doc_hash`, `reference`; without `doc_hash`, the question
    names itself.

    Raises
    ------
    InputError
        There is no such run or file, or it holds no answers.
    """
    return _of_run(path) if path.is_dir() else _of_file(path)


def pair_answers(a: Answers, b: Answers, *, limit: int | None = None, seed: int = 0) -> AnswerPairs:
    """Bring the answers to the same question together; a seeded random part of them with `limit`.

    Raises
    ------
    InputError
        They have no question in common, or two tasks and hashes of a file make one name.
    SpecError
        The limit or the seed is no number of pairs or no seed.
    """
    if (limit is not None and limit < 1) or seed < 0:
        raise SpecError(f"{limit} pairs, seed {seed}", where="--limit, --seed", do="Give at least 1, and a seed from 0")
    shared = [key for key in a.rows if key in b.rows]
    if not shared:
        raise InputError(
            "the two have no question in common",
            where=f"{a.name} and {b.name}",
            do="Judge answers to the same questions",
        )
    left: dict[str, int] = {}
    for one, other in ((a, b), (b, a)):
        if missing := len(one.rows) - len(shared):
            why = f"only {one.name if one.name != other.name else 'one of them'} has an answer"
            left[why] = left.get(why, 0) + missing
        for why, count in one.left_out.items():
            left[f"{one.name}: {why}"] = left.get(f"{one.name}: {why}", 0) + count
    if limit is not None and limit < len(shared):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(shared))[:limit])
        shared = [shared[at] for at in chosen]
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (A)", f"{b.name} (B)")
    pairs = [AnswerPair(" ".join(filter(None, key)), a.rows[key], b.rows[key]) for key in shared]
    # A verdict, and the marks around the texts, belong to a pair by its name.
    name, count = Counter(one.pair_id for one in pairs).most_common(1)[0]
    if count > 1:
        raise InputError(f"{count} pairs are named '{name}'", where=f"{a.name} and {b.name}", do="Change doc_hash")
    return AnswerPairs(*names, tuple(pairs), left)


def _of_run(path: Path) -> Answers:
    samples = path / "samples.parquet"
    if not samples.is_file():
        raise InputError("this is no run directory (no samples.parquet)", where=str(path), do="Give a finished run")
    frame = tables.read(samples, tables.SAMPLES).to_pandas()
    n_all = len(frame.drop_duplicates(["task", "doc_id", "repeat", "seed"]))
    frame = frame.sort_values(["seed", "repeat"], kind="stable").drop_duplicates(["task", "doc_id"])
    left = {"further seeds and repeats": n_all - len(frame)} if n_all > len(frame) else {}
    failed = frame.response.isna()
    if failed.any():
        left["without an answer"] = int(failed.sum())
    frame = frame[~failed]
    questions = _questions(path)
    rows: dict[tuple[str, str], Answered] = {}
    lost = 0
    for row in frame.itertuples(index=False):
        question = questions.get((str(row.task), int(row.doc_id)))
        if question is None:
            lost += 1
            continue
        one = Answered(
            str(row.task), str(row.doc_hash), question, str(row.response), "" if row.target is None else str(row.target)
        )
        rows.setdefault((one.task, one.doc_hash), one)
    if lost:
        left["without their prompt in the journal"] = lost
    if not rows:
        raise InputError(
            "the run has no answers with their prompts", where=str(path), do="Keep requests.parquet and journal"
        )
    return Answers(str(frame.model.iloc[0]), rows, left)


def _questions(path: Path) -> dict[tuple[str, int], str]:
    """What was asked, by task and document, from the run's journal."""
    import pyarrow.parquet as pq

    from evalkit.runs.journal import Journal

    record = json.loads((path / "run.json").read_text(encoding="utf-8")) if (path / "run.json").is_file() else {}
    requests = path / "requests.parquet"
    journal = Path(record.get("journal") or path / "journal.sqlite")
    if not requests.is_file() or not journal.is_file():
        raise InputError(
            "the prompts of this run are gone (no requests.parquet or no journal)",
            where=str(path),
            do="Keep them with the run, or give a file with questions and answers",
        )
    asked = pq.read_table(requests).to_pandas()
    asked = asked.sort_values(["seed", "repeat", "place"], kind="stable").drop_duplicates(["task", "doc_id"])
    with Journal(journal) as stored:
        entries = stored.entries(asked["key"])
    found = {}
    for row in asked.itertuples(index=False):
        if row.key in entries:
            found[str(row.task), int(row.doc_id)] = _shown(entries[row.key][1])
    return found


def _shown(request: Mapping[str, Any]) -> str:
    """The text of a request: the conversation's messages, or the context."""
    if request.get("messages"):
        messages = json.loads(request["messages"])
        return "\n\n".join(str(one.get("content", "")) for one in messages)
    return str(request.get("context", "")).strip()


def _of_file(path: Path) -> Answers:
    from evalkit.judges.verdicts import Trouble, rows_of

    troubles: list[Trouble] = []
    listed = rows_of(path, troubles)
    rows: dict[tuple[str, str], Answered] = {}
    left: dict[str, int] = {"rows that cannot be read": len(troubles)} if troubles else {}
    names: set[str] = set()
    for _, row in listed:
        question, text = _first(row, _QUESTION), _first(row, _ANSWER)
        if not question or text is None:
            left["rows without question or answer"] = left.get("rows without question or answer", 0) + 1
            continue
        doc_hash = _first(row, ("doc_hash",)) or hashlib.sha256(question.encode()).hexdigest()
        key = _first(row, ("task",)) or "", doc_hash
        if key in rows:
            left["further answers to the same question"] = left.get("further answers to the same question", 0) + 1
            continue
        names.add(_first(row, _NAME) or path.stem)
        rows[key] = Answered(*key, question, text, _first(row, _REFERENCE) or "")
    if not rows:
        raise InputError(
            "there is no row with a question and an answer", where=str(path), do="Name the columns question and answer"
        )
    return Answers(names.pop() if len(names) == 1 else path.stem, rows, left)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first text or number that is there; an empty text only if there is no other."""
    texts = [
        str(row[name]) for name in names if isinstance(row.get(name), str | int | float) and row[name] == row[name]
    ]
    return next(filter(None, texts), texts[0] if texts else None)
