"""Spans are cut out as Brown et al. describe, and a piece that is left says nothing that the document did not say."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.contamination.cutting import Cutting, cut
from evalkit.errors import SpecError
from tests.contamination import twin

ALPHABET = ["a", "B", "7", " ", " ", ".", "\n", "é", "e\u0301", "\u0301", "中", "が", "ไ", "½", "ﬁ", "한", "🙂", "_"]


def slow_cut(texts, spans, cutting):
    """Mark every character that goes, then look at what is left: the same in plain words."""
    document = "\n".join(texts)
    gone = [False] * len(document)
    words = [(start, end) for _, start, end in twin.tokens(document.replace("_", "x"))]
    for first, last in spans:
        low, high = max(0, first - cutting.context), min(len(document), last + cutting.context)
        for start, end in words:
            if start < low < end:
                low = start
            if start < high < end:
                high = end
        gone[low:high] = [True] * (high - low)
    result, begin, n_pieces = [], 0, 0
    for text in texts:
        mine = gone[begin : begin + len(text)]
        if not any(mine) or not text.strip():
            pieces = [(begin, begin + len(text))]
        else:
            pieces, place = [], begin
            for is_gone, run in groupby(mine):
                size = len(list(run))
                pieces += [] if is_gone else [(place, place + size)]
                place += size
            n_pieces += len(pieces)
            pieces = [(a, b) for a, b in pieces if b - a >= cutting.min_piece and document[a:b].strip()]
        result.append(pieces)
        begin += len(text) + 1
    if n_pieces > cutting.max_pieces:
        return "too_many_pieces"
    return result if all(result) else "nothing_left"


@st.composite
def cases(draw, alphabet=ALPHABET):
    texts = draw(st.lists(st.lists(st.sampled_from(alphabet), max_size=60).map("".join), min_size=1, max_size=4))
    n = len("\n".join(texts))
    places = st.tuples(st.integers(0, max(0, n - 1)), st.integers(1, 8))
    spans = [(start, min(n, start + size)) for start, size in draw(st.lists(places, min_size=1, max_size=5)) if n]
    cutting = Cutting(draw(st.integers(0, 5)), draw(st.integers(0, 6)), draw(st.integers(1, 4)))
    return texts, spans, cutting


@given(cases())
def test_what_is_left_is_what_is_left_when_every_character_is_marked(case):
    texts, spans, cutting = case
    assert cut(texts, spans, cutting) == slow_cut(texts, spans, cutting)


@given(cases([*ALPHABET, "\u200d", "\u00ad"]))
def test_the_words_of_a_piece_are_words_of_the_document_in_a_row_and_no_span_survives(case):
    texts, spans, cutting = case
    document = "\n".join(texts)
    words = twin.words(document)
    kept = cut(texts, spans, cutting)
    for start, end in [piece for of_text in kept for piece in of_text] if isinstance(kept, list) else []:
        mine = twin.words(document[start:end])
        assert any(words[n : n + len(mine)] == mine for n in range(len(words) + 1))
        is_blank = not document[start:end].strip()  # a text without a word stays, whatever is said of it
        assert is_blank or all(end <= first or last <= start for first, last in spans if first < last)


def test_the_defaults_are_those_of_the_paper():
    text = "x " * 1000
    assert cut([text], [(1000, 1010)], Cutting()) == [[(0, 800), (1210, 2000)]]
    assert cut([text], [(300, 310)], Cutting()) == [[(510, 2000)]]  # the first piece has 100 characters
    assert cut([text[:700]], [(300, 310)], Cutting()) == "nothing_left"
    text = "x " * 10_000
    ten = [(1000 * n, 1000 * n + 10) for n in range(1, 10)]
    assert len(cut([text], ten, Cutting())[0]) == 10
    assert cut([text], [*ten, (10_000, 10_010)], Cutting()) == "too_many_pieces"


def test_no_word_is_cut_in_two_and_chinese_is_cut_between_letters():
    assert cut(["unbelievable leak unbelievable"], [(13, 17)], Cutting(4, 1)) == "nothing_left"
    assert cut(["一二三四五六七八九十"], [(4, 5)], Cutting(1, 1)) == [[(0, 3), (6, 10)]]


def test_a_text_of_which_nothing_goes_stays_however_short():
    assert cut(["Hi", "x " * 300 + "leak", "Bye"], [(603, 607)], Cutting()) == "nothing_left"  # the window takes Bye
    assert cut(["Hi", "leak " + "x " * 300, "Bye"], [(3, 7)], Cutting(0, 200)) == [[(0, 2)], [(7, 608)], [(609, 612)]]


@pytest.mark.parametrize("wrong", [{"context": -1}, {"min_piece": -1}, {"max_pieces": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SpecError, match="too small"):
        Cutting(**wrong)
