"""Where a document and a benchmark item have text in common, word by word, and what of both texts to show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Final, Literal

from evalkit.contamination.verify import Match, readings
from evalkit.text.tokens import find_words, tokens

CONTEXT: Final = 300
"""Characters shown on each side of a shared stretch, and at least so many of its own beginning and end."""

_SHORT_GAP: Final = 40
"""What would be left out is shown when it has at most so many characters."""

_MOST_SHOWN: Final = 6000
"""Characters of one text that are shown unless the context is larger; a document can hold an item a thousand times."""

Interval = tuple[int, int]
Kind = Literal["plain", "shared", "edited", "gap"]
Piece = tuple[Kind, str]
"""A stretch of a text and what it is; of a gap, how much is left out."""


@dataclass
class Spans:
    """Where a document and the fields of an item have tokens in common, and where an edited copy stands."""

    shared: list[Interval] = field(default_factory=list)
    edited: list[Interval] = field(default_factory=list)
    _fields: dict[str, tuple[list[Interval], list[Interval]]] = field(default_factory=dict)

    def of_field(self, name: str) -> tuple[list[Interval], list[Interval]]:
        """The shared stretches of a field, and the edited ones."""
        return self._fields.setdefault(name, ([], []))

    def add(self, match: Match, document: str, text: str, *, is_code: bool) -> None:
        """Add a match that stands in the document as it should; the words of an edited copy are aligned."""
        start, end = match["start"], match["end"]
        here, there = tokens(document[start:end], is_code=is_code), tokens(text, is_code=is_code)
        words, wanted = [token.text for token in here], [token.text for token in there]
        shared, edited = self.of_field(match["field"])
        if match["n_edits"]:
            self.edited.append((start, end))
            edited.append((there[0].start, there[-1].end))
            blocks = SequenceMatcher(None, words, wanted, autojunk=False).get_matching_blocks()
            for first, last in merged((a, a + n) for a, _, n in blocks if n):
                self.shared.append((start + here[first].start, start + here[last - 1].end))
            for first, last in merged((b, b + n) for _, b, n in blocks if n):
                shared.append((there[first].start, there[last - 1].end))
            return
        self.shared.append((start, end))
        n = match["n_tokens"]
        places = (find_words(one, wanted) for one in readings(here, end - start) if len(one) == n)
        place = next(place for place in places if place is not None)
        shared.append((there[place].start, there[place + n - 1].end))


def excerpt(
    text: str, shared: Sequence[Interval], edited: Sequence[Interval], context: int = CONTEXT, most: int = _MOST_SHOWN
) -> Iterator[Piece]:
    """Yield the text around the stretches in pieces; its beginning, where there is none.

    Parameters
    ----------
    text
        A document, or a field of an item.
    shared, edited
        Stretches of it, as (start, end) in characters.
    context
        Characters shown on each side of a stretch.
    most
        Characters shown in all, or four contexts if that is more.
    """
    shared, edited = merged(shared), merged(edited)
    inside = max(context, CONTEXT)
    windows = [(0, 2 * inside)]
    if stretches := merged([*shared, *edited]):
        begun = [(start - context, min(end, start + inside)) for start, end in stretches]
        windows = begun + [(max(start, end - inside), end + context) for start, end in stretches]
    windows = merged((_to_words(text, window) for window in windows), at_most=_SHORT_GAP)
    if len(text) - windows[-1][1] <= _SHORT_GAP:
        windows[-1] = windows[-1][0], len(text)
    reached, left = 0, max(most, 4 * context)
    for start, end in windows:
        stop = min(end, start + left)
        left -= stop - start
        if stop <= start:
            break
        yield from _gap(start - reached)
        cuts = sorted({start, stop, *(cut for pair in (*shared, *edited) for cut in pair if start < cut < stop)})
        for low, high in itertools.pairwise(cuts):
            is_shared = any(begin <= low < end for begin, end in shared)
            is_edited = any(begin <= low < end for begin, end in edited)
            yield "shared" if is_shared else "edited" if is_edited else "plain", text[low:high]
        reached = stop
    yield from _gap(len(text) - reached)


def merged(intervals: Iterable[Interval], at_most: int = 0) -> list[Interval]:
    """The same stretches in order, those joined that overlap, touch, or have at most so much between them."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1] + at_most:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _to_words(text: str, window: Interval, most: int = 20) -> Interval:
    """Widen a window to the ends of the words in which it begins and ends, if they are near, within the text."""
    start, stop = (0 if window[0] <= _SHORT_GAP else window[0]), min(len(text), window[1])
    before = re.search(r"\S*\Z", text[max(0, start - most) : start])
    after = re.match(r"\S*", text[stop : stop + most])
    return start - len(before[0] if before else ""), stop + len(after[0] if after else "")


def _gap(n_characters: int) -> Iterator[Piece]:
    if n_characters > 0:
        yield "gap", f"\u22ef {n_characters:,} characters \u22ef"
