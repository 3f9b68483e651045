"""Foreign text can be read on a terminal, and nothing in it is obeyed."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from evalkit.terminal import safe


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = safe(text)
    for character in shown.replace("\n", "").replace("\t", ""):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff\u00ad"
    if text.isprintable():
        assert shown == text or unicodedata.normalize("NFC", text) != text or "<U+" in shown


def test_escape_sequences_are_written_out():
    assert safe("a\x1b[31mb\x9b2J\r\nc\td\x07\u202ee") == "a<U+001B>[31mb<U+009B>2J\nc\td<U+0007><U+202E>e"
    assert safe("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 👩\u200d🔬 [red]") == (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 👩\u200d🔬 [red]"
    )
