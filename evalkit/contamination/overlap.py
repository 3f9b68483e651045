"""What stands around near matches: decon's score of question, answer and passage, and the support of a question.

The score is that of decon (https://github.com/allenai/decon), the tool behind OLMo 3's data: how much of question,
answer and passage stands there, weighted by how rare it is. What differs is how places are found (the near matches of
our scan) and how words are cut (our normalisation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalkit.contamination import kernels
from evalkit.contamination.benchmarks import ANSWER, CHOICES, PASSAGE, QUESTION, Benchmark, kind_of_field
from evalkit.contamination.evaluate import Int64, Runs
from evalkit.contamination.index import Index, distinct_of, tokenise
from evalkit.contamination.overlap_kernels import question_shares, text_shares
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
_TIE: Final = 1e-9

Float64 = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Ngrams:
    """The different n-grams of some of many texts.

    Attributes
    ----------
    words, text_bounds, n
        The hashes of the words of all texts, the n_texts + 1 bounds of the texts in them, and the words of an n-gram.
    keys, bounds
        Hashes of the n-grams, and the n_texts + 1 bounds of the texts in them; the texts not asked for have none.
    """

    words: UInt64
    text_bounds: Int64
    n: int
    keys: UInt64
    bounds: Int64

    def rarity(self, counted: npt.NDArray[np.bool_]) -> Float64:
        """Inverse document frequency of each n-gram among the marked texts; of those that are in none, 0."""
        known = distinct_of(self.keys)
        if not len(known):
            return np.zeros(0)
        keys, texts, _ = kernels.window_hashes(self.words, self.text_bounds, self.n, np.flatnonzero(counted))
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        is_known = known[place] == keys
        pairs = distinct_of(place[is_known] * len(counted) + texts[is_known])
        counts = np.bincount(pairs // len(counted), minlength=len(known))
        rarity = np.where(counts > 0, np.log(max(counted.sum(), 1) / np.maximum(counts, 1)), 0.0)
        return np.asarray(rarity[np.searchsorted(known, self.keys)])


def ngrams_of(words: UInt64, bounds: Int64, n: int, which: Int64) -> Ngrams:
    """Return the different n-grams of each of the texts `which`."""
    keys, texts, _ = kernels.window_hashes(words, bounds, n, distinct_of(which))
    order = np.lexsort((keys, texts))
    keys, texts = keys[order], texts[order]
    is_new = np.append(True, (np.diff(keys) != 0) | (np.diff(texts) != 0))[: len(keys)]
    return Ngrams(words, bounds, n, keys[is_new], np.searchsorted(texts[is_new], np.arange(len(bounds))))


class NearTexts:
    """The near matches of questions with the text around them, and the answers, choices and passages of their items.

    Parameters
    ----------
    texts
        The text of each near match, in the order in which they stand at the end of `runs`.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], index: Index, texts: pa.Array, runs: Runs) -> None:
        self._index, self._runs, self._n_runs = index, runs, len(runs) - len(texts)
        self.near = np.flatnonzero(index.is_question[runs.fields[self._n_runs :]])
        """Numbers of the near matches of questions."""
        self.fields = runs.fields[self._n_runs :][self.near]
        self.words, _, self.bounds = tokenise(
            texts.take(pa.array(self.near)).to_pylist(), index.is_code[self.fields].tolist()
        )
        offsets = np.cumsum([0, *(len(one.items) for one in benchmarks)])
        self._items = offsets[index.benchmarks] + index.items
        self._read_answers(benchmarks, offsets)
        texts = self.answers()[1]
        self.grams = ngrams_of(self.answer_words, self.answer_bounds, _ANSWER_N, texts[texts >= 0])

    def _read_answers(self, benchmarks: Sequence[Benchmark], offsets: Int64) -> None:
        """Read the answers, choices and passages of all items, also those too short to be looked for by themselves."""
        texts, items, kinds, is_code = [], [], [], []
        for offset, benchmark in zip(offsets.tolist(), benchmarks, strict=False):
            # What follows a question is read as the question is.
            code = benchmark.is_code(QUESTION)
            kind_of = cache(lambda name: _KINDS.get(kind_of_field(name)))
            for number, item in enumerate(benchmark.items, start=offset):
                for name, text in item.fields.items():
                    if (kind := kind_of(name)) is not None:
                        texts.append(text)
                        items.append(number)
                        kinds.append(kind)
                        is_code.append(code)
        self.answer_words, _, self.answer_bounds = tokenise(texts, is_code)
        of_item = np.array(items, dtype=np.int64)
        # What has the number -1, the last one, is no text.
        self._kinds, self._sizes = np.array([*kinds, -1]), np.append(np.diff(self.answer_bounds), 0)
        self._answer_items = np.searchsorted(of_item, np.arange(offsets[-1] + 1))
        self._n_passage = np.zeros(offsets[-1], dtype=np.int64)
        is_passage = np.flatnonzero(self._kinds == _PASSAGE)
        self._n_passage[of_item[is_passage]] = self._sizes[is_passage]

    def answers(self) -> tuple[Int64, Int64]:
        """Return (near match, text) for each answer and choice with a word that its item has, -1 for none."""
        items = self._items[self.fields]
        begin, end = self._answer_items[items], self._answer_items[items + 1]
        near = np.repeat(np.arange(len(items)), end - begin)
        text = np.arange(len(near)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
        text += np.repeat(begin, end - begin)
        is_wanted = (self._kinds[text] != _PASSAGE) & (self._sizes[text] > 0)
        near, text = near[is_wanted], text[is_wanted]
        alone = np.setdiff1d(np.arange(len(items)), near)
        return np.append(near, alone), np.append(text, np.full(len(alone), -1))

    def support(self) -> Float64:
        """Return how much of its choices, or of its answer, stands around each near match; 1 for all but questions.

        Of a text of up to two words it is 1 or 0, of a longer one the share of its 3-grams; choices count alike.
        """
        found = np.ones(len(self._runs) - self._n_runs)
        near, text = self.answers()
        has_choices = np.bincount(near[self._kinds[text] == _CHOICE], minlength=len(self.near)) > 0
        is_meant = (text >= 0) & ((self._kinds[text] == _CHOICE) | ~has_choices[near])
        near, text = near[is_meant], text[is_meant]
        shares = self._shares(near, self.bounds[near], self.bounds[near + 1], text, np.zeros(len(self.grams.keys)))
        n = np.bincount(near, minlength=len(self.near))
        sums = np.bincount(near, weights=shares, minlength=len(self.near))
        found[self.near] = np.where(n > 0, sums / np.maximum(n, 1), 1.0)
        return found

    def weighted_overlap(self, rule: Rule) -> Float64:
        """Return the score of every run and near match: 0 for all but near matches of questions.

        Scaled such that the rule's threshold, that of long records, is where a record becomes dirty.
        """
        index, questions = self._index, np.flatnonzero(self._index.is_question)
        sizes = index.field_sizes
        words = index.field_hashes[np.repeat(index.is_question, sizes)]
        number_of = np.full(len(sizes), -1, dtype=np.int64)
        number_of[questions] = np.arange(len(questions))
        number = number_of[self.fields]
        grams = ngrams_of(words, np.cumsum(np.append(0, sizes[questions])), _QUESTION_N, number)
        of_question, ends = np.empty(len(self.near)), np.empty(len(self.near), dtype=np.int64)
        rarity = grams.rarity(np.ones(len(questions), dtype=bool))
        question_shares(
            self.words, self.bounds, number, grams.bounds, grams.keys, rarity, _QUESTION_N, of_question, ends
        )
        near, text = self.answers()
        n_answer = self._sizes[text]
        window = np.where(n_answer <= _SHORT_ANSWER, _SHORT_ANSWER_WINDOW, np.maximum(2 * n_answer, _ANSWER_WINDOW))
        stop = np.minimum(ends[near] + window, self.bounds[near + 1])
        is_answer = (self._kinds != _PASSAGE) & (self._sizes > _SHORT_ANSWER)
        of_answer = self._shares(near, ends[near], stop, text, self.grams.rarity(is_answer[:-1]))
        n_passage = self._n_passage[self._items[self.fields]][near]
        n_words = sizes[self.fields][near] + n_answer + n_passage
        progress = np.clip((n_words - _SHORT_RECORD) / (_LONG_RECORD - _SHORT_RECORD), 0.0, 1.0)
        required = 1.0 - progress * (1.0 - rule.threshold)
        weights = _weights(np.diff(grams.bounds)[number][near], n_answer, n_passage)
        total = weights[0] * of_question[near] + weights[1] * of_answer + weights[2] * self._passages()[near]
        scaled = np.where(total < 1.0 - _TIE, np.minimum(total * rule.threshold / required, 1.0), 1.0)
        is_there = (of_question > 0) | (ends > self.bounds[:-1])
        is_enough = is_there[near] & (of_question[near] >= (required - 0.3) / 0.7 - _TIE)
        scores = np.zeros(len(self._runs))
        np.maximum.at(scores, self._n_runs + self.near[near], np.where(is_enough, scaled, 0.0))
        return scores

    def _shares(self, near: Int64, begins: Int64, ends: Int64, text: Int64, rarity: Float64) -> Float64:
        """How much of each text stands in the words [begin, end); 0 for no text."""
        shares = np.zeros(len(near))
        some = np.flatnonzero(text >= 0)
        found = np.empty(len(some))
        text_shares(
            self.words, begins[some], ends[some], text[some], self.answer_bounds, self.answer_words,
            self.grams.bounds, self.grams.keys, rarity, _ANSWER_N, found,
        )  # fmt: skip
        shares[some] = found
        return shares

    def _passages(self) -> Float64:
        """Largest share of the weight of the item's passage that the document of each near match holds."""
        is_passage = self._index.kinds == PASSAGE
        shares: dict[tuple[int, int], float] = defaultdict(float)
        for row in np.flatnonzero(is_passage[self._runs.fields]).tolist():
            key = int(self._runs.documents[row]), int(self._items[self._runs.fields[row]])
            shares[key] = max(shares[key], float(self._runs.similarities[row]))
        documents = self._runs.documents[self._n_runs :][self.near].tolist()
        return np.array(
            [shares.get(key, 0.0) for key in zip(documents, self._items[self.fields].tolist(), strict=True)]
        )


_ANSWER, _CHOICE, _PASSAGE = range(3)
_KINDS: Final = {ANSWER: _ANSWER, CHOICES: _CHOICE, PASSAGE: _PASSAGE}


def _weights(n_ngrams: Int64, n_answer: Int64, n_passage: Int64) -> tuple[Float64, Float64, Float64]:
    """Weights of question, answer and passage; what a short one is not trusted with goes to the others."""
    has_answer, has_passage = n_answer > 0, n_passage > 0
    both = has_answer & has_passage
    question = np.where(both, 0.7, np.where(has_answer, 0.75, np.where(has_passage, 0.85, 1.0)))
    answer = np.where(both, 0.2, np.where(has_answer, 0.25, 0.0))
    passage = np.where(both, 0.1, np.where(has_passage, 0.15, 0.0))
    n_others = has_answer.astype(float) + has_passage
    lost = np.where(n_others > 0, question * (0.5 - 0.5 * np.minimum(n_ngrams / _SURE_NGRAMS, 1.0)), 0.0)
    share = lost / np.maximum(n_others, 1.0)
    question, answer, passage = question - lost, answer + share * has_answer, passage + share * has_passage
    unsure = answer * (0.5 - 0.5 * np.minimum(n_answer / _SURE_ANSWER, 1.0))
    return question + unsure, answer - unsure, passage
