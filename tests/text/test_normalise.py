"""Normalisation: what must not hide a match does not, and the kernel says what the written rule says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.text import kernels
from evalkit.text.normalise import fold_table
from tests.contamination import twin


def kernel_tokens(text):
    """(hash, start, end) of each token of `text` in characters, from the kernel, which counts bytes."""
    table = fold_table()
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    size = 2 * len(data) + 1
    hashes, starts, ends = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(size, np.int32)
    n = kernels.tokenise(data, 0, len(data), table.arrays, hashes, starts, ends)
    character = np.append(np.cumsum((data & 0xC0) != 0x80), len(text) + 1) - 1
    # The end of a token is the beginning of a character, or the end of the text.
    return list(zip(hashes[:n].tolist(), character[starts[:n]].tolist(), character[ends[:n]].tolist(), strict=True))


def hashes(text):
    return [token for token, _, _ in kernel_tokens(text)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the CAPITAL of France?", "what is\nthe   capital -- of «France»"),
        ("It’s “quoted”", 'It\'s "quoted"'),
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("ﬁne ２０２４ Ⅳ", "fine 2024 iv"),
        ("co\u00adop\u200berate", "cooperate"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("\u212bngstr\u00f6m", "\u00e5NGSTRO\u0308M"),
        ("snake_case", "snake case"),
    ],
)
def test_form_does_not_hide_a_match(one, other):
    assert hashes(one) == hashes(other)


@pytest.mark.parametrize(("one", "other"), [("resume", "résumé"), ("x1", "x2"), ("ab c", "a bc"), ("か", "が")])
def test_what_differs_in_letters_differs(one, other):
    assert hashes(one) != hashes(other)


def test_scripts_without_spaces_give_one_token_a_letter_and_korean_gives_words():
    assert len(hashes("北京是首都")) == 5
    assert len(hashes("ภาษาไทย")) == 7
    assert len(hashes("한국어 문장")) == 2
    assert len(hashes("がぎぐ")) == 3


# The twin knows the common scripts without spaces only, so beyond the radicals a few letters stand for their scripts.
LETTERS = st.one_of(
    st.characters(max_codepoint=0x2E7F), st.sampled_from("あがか\u3099カ中文字한국ﬁ２Å\U0001d400\U0001f600")
)


@given(st.text(LETTERS, max_size=60))
def test_the_kernel_agrees_with_the_brute_force_twin_on_any_text(text):
    expected = twin.tokens(text)
    found = kernel_tokens(text)
    assert [(start, end) for _, start, end in found] == [(start, end) for _, start, end in expected]
    by_token: dict[str, int] = {}
    for (token, _, _), (value, _, _) in zip(expected, found, strict=True):
        assert by_token.setdefault(token, value) == value
    assert len(set(by_token.values())) == len(by_token)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_offsets_lie_in_the_text_in_order(text):
    places = [(start, end) for _, start, end in kernel_tokens(text)]
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert places == sorted(places)
