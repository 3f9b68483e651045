"""The plain tokens are those of the kernels and of the written rule, for text and for code."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit.text import kernels
from evalkit.text.normalise import code_table, fold_table
from evalkit.text.tokens import edit_distance, find_words, tokens, words_of
from tests.contamination import twin

TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB1_ ½ﬁßİ中กé\u0301\u00ad#/*\n\t")))
WORDS = st.lists(st.sampled_from("abc"), max_size=8)


def of_kernel(text, table):
    """(hash, start, end) of each token, in characters."""
    data = np.frombuffer(text.encode() or b" ", dtype=np.uint8)
    hashes, starts, ends = (np.empty(2 * len(data) + 1, dtype=kind) for kind in (np.uint64, np.int32, np.int32))
    n = kernels.tokenise(data, 0, len(text.encode()), table.arrays, hashes, starts, ends)
    characters = [len(text.encode()[:place].decode()) for place in (*starts[:n], *ends[:n])]
    return list(zip(hashes[:n].tolist(), characters[:n], characters[n:], strict=True))


@settings(max_examples=300)
@given(TEXT)
@example("a½b ½")
@example("office İstanbul straße 中文字 ภาษา")
def test_tokens_of_text_are_those_of_the_rule_and_of_the_kernel(text):
    found = tokens(text)
    same(found, of_kernel(text, fold_table()))
    if max(text, default="") < "\u2e80" or set(text) <= set("中กé"):  # the twin knows the common scripts only
        assert [tuple(token) for token in found] == twin.tokens(text)


@settings(max_examples=300)
@given(TEXT)
@example("T Ô")
@example("x_1 = y # z_2\nif x_1: // no\n  /* a\nb */ ok /*/ not\n")
@example("a/b /* never ends")
def test_tokens_of_code_are_those_of_the_kernel(text):
    same(tokens(text, is_code=True), of_kernel(text, code_table()))


def same(found, of_the_kernel):
    """The same places, and the same hash where and only where the word is the same."""
    assert [(token.start, token.end) for token in found] == [(start, end) for _, start, end in of_the_kernel]
    pairs = {(token.text, value) for token, (value, _, _) in zip(found, of_the_kernel, strict=True)}
    assert len({word for word, _ in pairs}) == len({value for _, value in pairs}) == len(pairs)


def test_code_keeps_identifiers_and_case_and_loses_comments():
    code = "def Add_One(x):  # adds 1\n    return x + 1 // what\n/* the\nend */ y"
    assert words_of(code, is_code=True) == ("def", "Add_One", "x", "return", "x", "1", "y")
    assert words_of("Add_One") == ("add", "one")


@given(WORDS, WORDS)
def test_the_edit_distance_is_that_of_its_definition(a, b):
    @functools.cache
    def least(i, j):
        if not i or not j:
            return i + j
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a, b) == least(len(a), len(b))


@pytest.mark.parametrize(
    ("wanted", "place"), [("bc", 1), ("abcabc", 0), ("cc", None), ("abcabca", None), ("", 0), ("c", 2)]
)
def test_words_are_found_where_they_first_stand(wanted, place):
    assert find_words(list(wanted), tuple("abcabc")) == place
