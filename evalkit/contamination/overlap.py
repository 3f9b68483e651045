"""decon's score of a near match: how much of question, answer and passage stands there, weighted by how rare it is.

The method is that of decon (https://github.com/allenai/decon), the tool behind OLMo 3's data. What differs is how
places are found (the near matches of our scan) and how words are cut (our normalisation).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalkit.contamination.benchmarks import ANSWER, CHOICES, PASSAGE, QUESTION, Benchmark, kind_of_field
from evalkit.contamination.evaluate import Runs
from evalkit.contamination.index import Index, tokenise
from evalkit.contamination.rules import Rule

# decon counts tokens of a language model, of which a word of a benchmark has about 1.2: five of them are four words.
_QUESTION_N: Final = 4
_ANSWER_N: Final = 3
_SHORT_ANSWER: Final = 3
_SHORT_ANSWER_WINDOW: Final = 50
_ANSWER_WINDOW: Final = 100
_SURE_NGRAMS: Final = 17
_SURE_ANSWER: Final = 4
_SHORT_RECORD, _LONG_RECORD = 17, 42
"""Words of question, answer and passage together: up to the first all must match, from the second the threshold."""

Words = tuple[int, ...]
Ngrams = set[Words]


@dataclass(frozen=True)
class Record:
    """One question with one answer: of a choice question there is one record a choice."""

    question: Words
    answer: Words
    n_passage: int


def weighted_overlap(
    rule: Rule, benchmarks: Sequence[Benchmark], index: Index, texts: pa.Array, runs: Runs
) -> npt.NDArray[np.float64]:
    """Return the score of every run and near match: 0 for all but near matches of questions.

    Parameters
    ----------
    rule
        Its threshold is that of long records.
    texts
        The text of each near match, in the order in which they stand at the end of `runs`.
    """
    scores = np.zeros(len(runs))
    first = len(runs) - len(texts)
    hashes, _, bounds = tokenise(texts.to_pylist(), index.is_code[runs.fields[first:]].tolist())
    questions = [f for f, field in enumerate(index.fields) if field.name == QUESTION]
    rarity = _inverse_document_frequencies([_field(index, f) for f in questions], _QUESTION_N)
    passages = _passages(index, runs)
    records: dict[int, list[Record]] = {}
    answers = _Answers(benchmarks)
    for near in range(len(texts)):
        number = int(runs.fields[first + near])
        field = index.fields[number]
        if field.name != QUESTION:
            continue
        if number not in records:
            records[number] = answers.records(field.benchmark, field.item, _field(index, number))
        document = int(runs.documents[first + near])
        passage = passages.get((document, field.benchmark, field.item), 0.0)
        text = tuple(hashes[bounds[near] : bounds[near + 1]].tolist())
        scores[first + near] = max(
            score(one, text, passage, rarity, answers.rarity, rule.threshold) for one in records[number]
        )
    return scores


def support(benchmarks: Sequence[Benchmark], index: Index, texts: pa.Array, runs: Runs) -> npt.NDArray[np.float64]:
    """Return how much of its choices, or of its answer, stands around each near match of a question; else 1.

    Of a text of up to three words it is 1 or 0, of a longer one the share of its 3-grams; choices count alike.
    """
    first = len(runs) - len(texts)
    fields = [index.fields[number] for number in runs.fields[first:].tolist()]
    hashes, _, bounds = tokenise(texts.to_pylist(), [field.is_code for field in fields])
    answers = _Answers(benchmarks)
    found = np.ones(len(texts))
    for near, field in enumerate(fields):
        mine = answers.supports(field.benchmark, field.item) if field.name == QUESTION else []
        if mine:
            text = tuple(hashes[bounds[near] : bounds[near + 1]].tolist())
            there = {n: ngrams(text, n) for n in range(1, _ANSWER_N + 1)}
            found[near] = sum(_share_there(one, there) for one in mine) / len(mine)
    return found


def _share_there(words: Words, there: dict[int, Ngrams]) -> float:
    wanted = ngrams(words, min(len(words), _ANSWER_N))
    return len(wanted & there[min(len(words), _ANSWER_N)]) / len(wanted)


def score(
    record: Record,
    text: Words,
    passage: float,
    question_rarity: dict[Words, float],
    answer_rarity: dict[Words, float],
    threshold: float,
) -> float:
    """Score of one record at one place, scaled such that `threshold` is where it becomes dirty.

    Parameters
    ----------
    text
        The words there.
    passage
        Share of the record's passage in the same document.
    question_rarity, answer_rarity
        Inverse document frequency of each n-gram.
    """
    wanted = ngrams(record.question, _QUESTION_N)
    places = {text[k : k + _QUESTION_N]: k for k in range(len(text) - _QUESTION_N + 1)}
    of_question = _share({one for one in wanted if one in places}, wanted, question_rarity)
    n_words = len(record.question) + len(record.answer) + record.n_passage
    progress = min(max((n_words - _SHORT_RECORD) / (_LONG_RECORD - _SHORT_RECORD), 0.0), 1.0)
    required = 1.0 - progress * (1.0 - threshold)
    found = [places[one] for one in wanted if one in places]
    if not found or of_question < (required - 0.3) / 0.7 - 1e-9:
        return 0.0
    end = max(found) + _QUESTION_N
    of_answer = _answer_share(record.answer, text[end:], answer_rarity)
    weights = _weights(len(wanted), len(record.answer), record.n_passage)
    total = weights[0] * of_question + weights[1] * of_answer + weights[2] * passage
    return min(total * threshold / required, 1.0) if total < 1.0 - 1e-9 else 1.0


def ngrams(words: Words, n: int) -> Ngrams:
    """The different n-grams of some words."""
    return {words[k : k + n] for k in range(len(words) - n + 1)}


def _share(found: Ngrams, wanted: Ngrams, rarity: dict[Words, float]) -> float:
    """Share of the n-grams found, weighted; where all are in every text, each weighs the same."""
    whole = math.fsum(rarity[one] for one in wanted)
    return math.fsum(rarity[one] for one in found) / whole if whole > 0 else len(found) / max(len(wanted), 1)


def _answer_share(answer: Words, after: Words, rarity: dict[Words, float]) -> float:
    if not answer:
        return 0.0
    if len(answer) <= _SHORT_ANSWER:
        return float(answer in ngrams(after[:_SHORT_ANSWER_WINDOW], len(answer)))
    wanted = ngrams(answer, _ANSWER_N)
    return _share(wanted & ngrams(after[: max(2 * len(answer), _ANSWER_WINDOW)], _ANSWER_N), wanted, rarity)


def _weights(n_ngrams: int, n_answer: int, n_passage: int) -> tuple[float, float, float]:
    """Weights of question, answer and passage; what a short one is not trusted with goes to the others."""
    if n_answer and n_passage:
        question, answer, passage = 0.7, 0.2, 0.1
    elif n_answer:
        question, answer, passage = 0.75, 0.25, 0.0
    elif n_passage:
        question, answer, passage = 0.85, 0.0, 0.15
    else:
        return 1.0, 0.0, 0.0
    lost = question * (0.5 - 0.5 * min(n_ngrams / _SURE_NGRAMS, 1.0))
    question -= lost
    n_others = bool(n_answer) + bool(n_passage)
    answer += lost / n_others if n_answer else 0.0
    passage += lost / n_others if n_passage else 0.0
    if n_answer:
        unsure = answer * (0.5 - 0.5 * min(n_answer / _SURE_ANSWER, 1.0))
        question, answer = question + unsure, answer - unsure
    return question, answer, passage


class _Answers:
    """The answers and choices of all items, also those too short to be looked for by themselves."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self._benchmarks = benchmarks
        places, texts, is_code = [], [], []
        for b, benchmark in enumerate(benchmarks):
            for i, item in enumerate(benchmark.items):
                for name, text in item.fields.items():
                    if kind_of_field(name) in (ANSWER, CHOICES, PASSAGE):
                        places.append((b, i, name))
                        texts.append(text)
                        # What follows a question is read as the question is.
                        is_code.append(benchmark.is_code(QUESTION))
        hashes, _, bounds = tokenise(texts, is_code)
        self._answers: dict[tuple[int, int], list[Words]] = defaultdict(list)
        self._choices: dict[tuple[int, int], list[Words]] = defaultdict(list)
        self._n_passage: Counter[tuple[int, int]] = Counter()
        for number, (b, i, name) in enumerate(places):
            if name == PASSAGE:
                self._n_passage[b, i] = int(bounds[number + 1] - bounds[number])
                continue
            words = tuple(hashes[bounds[number] : bounds[number + 1]].tolist())
            self._answers[b, i].append(words)
            if kind_of_field(name) == CHOICES and words:
                self._choices[b, i].append(words)
        self.rarity = _inverse_document_frequencies(
            [one for some in self._answers.values() for one in some if len(one) > _SHORT_ANSWER], _ANSWER_N
        )

    def supports(self, benchmark: int, item: int) -> list[Words]:
        """What should stand near a question: its choices, or else its answer."""
        key = benchmark, item
        return self._choices.get(key) or [one for one in self._answers.get(key, ()) if one][:1]

    def records(self, benchmark: int, item: int, question: Words) -> list[Record]:
        n_passage = self._n_passage[benchmark, item]
        answers = [one for one in self._answers.get((benchmark, item), ()) if one]
        return [Record(question, answer, n_passage) for answer in answers or [()]]


def _field(index: Index, number: int) -> Words:
    return tuple(index.field_hashes[index.field_bounds[number] : index.field_bounds[number + 1]].tolist())


def _inverse_document_frequencies(texts: Sequence[Words], n: int) -> dict[Words, float]:
    counts = Counter(one for text in texts for one in ngrams(text, n))
    return {one: math.log(len(texts) / count) for one, count in counts.items()}


def _passages(index: Index, runs: Runs) -> dict[tuple[int, int, int], float]:
    """Largest share of the weight of each item's passage that a document holds in one run or near match."""
    is_passage = np.array([field.name == PASSAGE for field in index.fields], dtype=bool)
    shares: dict[tuple[int, int, int], float] = defaultdict(float)
    for row in np.flatnonzero(is_passage[runs.fields]).tolist():
        field = index.fields[runs.fields[row]]
        key = int(runs.documents[row]), field.benchmark, field.item
        shares[key] = max(shares[key], float(runs.similarities[row]))
    return shares
