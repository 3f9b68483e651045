"""What speaks for a window of a document being an item rewritten, in four numbers, and how they are weighed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.index import tokenise
from evalkit.contamination.semantic.lexicon import NUMBER_WORDS, RATIO, Float64, Lexicon
from evalkit.contamination.semantic.windows import Int64

Float32 = npt.NDArray[np.float32]

SHORTLIST: Final = 0.6
"""Least similarity of a window and an item that is recorded."""

THRESHOLD: Final = 1.5
"""Least score of a rewritten item. It and the weights in `score` are a logistic regression's on half of the rewritten
GSM8K questions, rounded; `benchmarks/semantic_quality.py` measures them on the other half and on other benchmarks."""

SHORTLISTED: Final = 1.3
"""Least score of what is worth a judge's look."""

_STEEPNESS: Final = 14.0
_MARGIN_WEIGHT: Final = 2.5
_NUMBERS_WEIGHT: Final = 0.6
_WITHOUT_NUMBERS: Final = 0.5

_TWINS: Final = 0.85
"""Items of at least such similarity are about the same thing: one does not speak against the other."""

_CHUNK: Final = 128
_NUMBER: Final = re.compile(r"[0-9]+(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|[a-z]+")


@dataclass(frozen=True)
class Evidence:
    """Windows and the item that each is most like, as columns.

    Attributes
    ----------
    texts, items
        Numbers of the window and of the item.
    similarity
        Cosine of their embeddings.
    margin
        By how much that is more than the similarity of the window to any other item; items that are themselves nearly
        the same are not compared. A text on an item's subject is about as like to several items, a rewritten item to
        one.
    share
        Share of the weight of the item's words that the window has.
    numbers
        Share of the item's different numbers that the window has, in digits or words; NaN for an item without.
    """

    texts: Int64
    items: Int64
    similarity: Float64
    margin: Float64
    share: Float64
    numbers: Float64


def weigh(
    texts: Sequence[str], vectors: Float32, items: Sequence[str], item_vectors: Float32, lexicon: Lexicon
) -> Evidence:
    """Find the item that each text is most like, among those of about its length; too unlike pairs are left out."""
    sizes = np.diff(tokenise(texts)[2])
    found: list[tuple[int, int, float, float]] = []
    for begin in range(0, len(texts), _CHUNK):
        mine = sizes[begin : begin + _CHUNK, None]
        is_fit = (mine <= RATIO * lexicon.sizes) & (lexicon.sizes <= RATIO * mine) & lexicon.is_judged
        cosines = vectors[begin : begin + _CHUNK] @ item_vectors.T
        for k, cosine in enumerate(cosines):
            best = int(np.argmax(np.where(is_fit[k], cosine, -1.0)))
            if is_fit[k, best] and cosine[best] >= SHORTLIST:
                others = cosine[item_vectors @ item_vectors[best] < _TWINS]
                found.append((begin + k, best, float(cosine[best]), float(cosine[best] - others.max(initial=0.0))))
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    which, best_items = (np.array(column, dtype=np.int64) for column in columns[:2])
    similarity, margin = (np.array(column, dtype=np.float64) for column in columns[2:])
    chosen = [texts[k] for k in which]
    agreement = [_agreement(items[item], text) for item, text in zip(best_items, chosen, strict=True)]
    return Evidence(which, best_items, similarity, margin, lexicon.shares(chosen, best_items), np.array(agreement))


def score(similarity: Float64, margin: Float64, numbers: Float64) -> Float64:
    """Weigh the evidence into one number: similarity + 2.5 margin + 0.6 numbers."""
    return (
        similarity + _MARGIN_WEIGHT * margin + _NUMBERS_WEIGHT * np.where(np.isnan(numbers), _WITHOUT_NUMBERS, numbers)
    )


def chance(scores: Float64) -> Float64:
    """Turn scores into numbers from 0 to 1 by the regression's logistic curve: 0.5 at the threshold."""
    return np.asarray(1 / (1 + np.exp(-_STEEPNESS * (scores - THRESHOLD))))


def numbers_in(text: str) -> set[float]:
    """Return the different numbers of a text: 1,000.00 and 1000 and "thousand" are one."""
    words = _NUMBER.findall(text.lower())
    digits = [word if word[0].isdigit() else NUMBER_WORDS.get(word, "") for word in words]
    return {float(word.replace(",", "")) for word in digits if word}


def _agreement(item: str, text: str) -> float:
    wanted = numbers_in(item)
    return len(wanted & numbers_in(text)) / len(wanted) if wanted else np.nan
