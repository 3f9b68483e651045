"""The inner loop of the JSON lines reader, compiled by numba: bytes of lines to texts and ids in Arrow buffers.

It reads the lines that are as they should be, which are nearly all, and leaves every other one to a complete parser.
What it accepts is valid JSON (RFC 8259) in valid UTF-8, in which that parser would find the same texts and the same id.

No Python object is made per line, and the functions release the GIL. Compiled code is cached beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

# What a value must be, by its place in the object: see `read_lines`.
OBJECT, ARRAY, TEXT, ID, REFUSED = 0, 1, 2, 3, 4

MAX_CHILDREN: Final = 63
"""The most children of a node: which of them were seen is kept in the bits of one number."""

_UNWANTED: Final = -1  # in place of a node
_OTHER: Final = 0  # strings found in a line that is left to the other parser, as are those in which none is wanted

_MAX_DEPTH: Final = 32
_MAX_STRINGS: Final = 4096
_MAX_NUMBER_BYTES: Final = 100
_MAX_ID_BYTES: Final = 18  # any whole number of as many bytes fits in 64 bits

_QUOTE, _BACKSLASH, _COMMA, _COLON, _SEPARATOR = (np.uint8(ord(one)) for one in '"\\,:\n')
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_ARRAY, _CLOSE_ARRAY = (np.uint8(ord(one)) for one in "{}[]")
_ZERO, _NINE, _PLUS, _MINUS, _POINT, _SMALL_E, _LARGE_E, _SMALL_U = (np.uint8(ord(one)) for one in "09+-.eEu")

# Eight marks, each a byte, are a word, whose lowest byte is the first (as on all processors that numba supports).
_NO_MARKS, _ALL_MARKS, _ONE = np.uint64(0), np.uint64(0x0101010101010101), np.uint64(1)
_EIGHTH, _REST_OF_EIGHT, _TOP_BYTE = np.uint64(3), np.uint64(7), np.uint64(56)

_TRUE, _FALSE, _NULL = (np.frombuffer(word, dtype=np.uint8) for word in (b"true", b"false", b"null"))

# What a hexadecimal digit stands for; -1 for nothing.
_HEX: Final = np.full(256, -1, dtype=np.int64)
_HEX[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]

# What a backslash and another character stand for; 0 for nothing.
_ESCAPED: Final = np.zeros(256, dtype=np.uint8)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')

# For functions that make no arrays, but only borrow them. At each call numba would count the references to them, by
# atomic operations that take longer than all the rest.
_OPTIONS: Final[dict[str, Any]] = {"cache": True, "nogil": True, "_nrt": False}
_Function = TypeVar("_Function", bound=Callable[..., object])
_borrowing: Callable[[_Function], _Function] = njit(**_OPTIONS)

Int64 = npt.NDArray[np.int64]


@_borrowing
def _after_space(line: Any, i: int) -> int:
    while i < len(line) and (line[i] == 0x20 or line[i] == 0x09 or line[i] == 0x0D):
        i += 1
    return i


@_borrowing
def _after_digits(line: Any, i: int) -> int:
    while i < len(line) and _ZERO <= line[i] <= _NINE:
        i += 1
    return i


@_borrowing
def _copy(data: Any, begin: int, end: int, out: Any, n: int) -> int:
    """Copy `data[begin:end]` to `out[n:]`, and return the place after it.

    The places are unsigned: negative ones would count from the end, and to look for them takes longer than the copying.
    """
    source, target = np.uint64(begin), np.uint64(n)
    for k in range(np.uint64(end - begin)):
        out[target + k] = data[source + k]
    return n + end - begin


@_borrowing
def _is_at(line: Any, i: int, word: Any) -> bool:
    """Whether `word` is at `i`."""
    if len(line) - i < len(word):
        return False
    for k in range(len(word)):
        if line[i + k] != word[k]:
            return False
    return True


@_borrowing
def _after_scalar(line: Any, i: int) -> int:
    """The place after true, false, null or a number, or -1. Numbers that could be out of range are none."""
    if _is_at(line, i, _TRUE) or _is_at(line, i, _NULL):
        return i + 4
    if _is_at(line, i, _FALSE):
        return i + 5
    begin = i
    if line[i] == _MINUS:
        i += 1
    first = i
    i = _after_digits(line, first)
    if i == first or (line[first] == _ZERO and i > first + 1):
        return -1
    if i < len(line) and line[i] == _POINT:
        first = i + 1
        i = _after_digits(line, first)
        if i == first:
            return -1
    if i < len(line) and (line[i] == _SMALL_E or line[i] == _LARGE_E):
        i += 1
        if i < len(line) and (line[i] == _PLUS or line[i] == _MINUS):
            i += 1
        first = i
        i = _after_digits(line, first)
        if i == first or i > first + 2:
            return -1
    return i if i - begin <= _MAX_NUMBER_BYTES else -1


@_borrowing
def _is_id(line: Any, begin: int, end: int) -> bool:
    """Whether a number is written as it would be written again."""
    first = begin + 1 if line[begin] == _MINUS else begin
    if end - begin > _MAX_ID_BYTES or (first > begin and line[first] == _ZERO):
        return False
    return first < end and _after_digits(line, first) == end


@_borrowing
def _character_bytes(line: Any, i: int) -> int:
    """Bytes of the character at `i`, which is not ASCII; 0 where there is no valid UTF-8 (Unicode 16, table 3-7)."""
    lead = line[i]
    if lead < 0xC2 or lead > 0xF4:
        return 0
    n = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if i + n > len(line):
        return 0
    low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
    high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
    if line[i + 1] < low or line[i + 1] > high:
        return 0
    for k in range(i + 2, i + n):
        if line[k] & 0xC0 != 0x80:
            return 0
    return n


@_borrowing
def _code_unit(line: Any, i: int) -> int:
    r"""The number that the `\uXXXX` at `i` gives, or a negative one."""
    if len(line) - i < 6 or line[i] != _BACKSLASH or line[i + 1] != _SMALL_U:
        return -1
    return int(_HEX[line[i + 2]] << 12 | _HEX[line[i + 3]] << 8 | _HEX[line[i + 4]] << 4 | _HEX[line[i + 5]])


@_borrowing
def _read_code(line: Any, i: int, out: Any, n: int) -> tuple[int, int]:
    r"""Write the character of the `\uXXXX`, or of the pair of them, at `i` to `out[n:]`.

    Returns the places after both, the first of them -1 if there is no such character.
    """
    point = _code_unit(line, i)
    i += 6
    if 0xD800 <= point < 0xDC00:
        low = _code_unit(line, i)
        if low < 0xDC00 or low >= 0xE000:
            return -1, n
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        i += 6
    elif point < 0 or 0xDC00 <= point < 0xE000:
        return -1, n
    if point < 0x80:
        out[n] = point
        return i, n + 1
    n_bytes = 2 if point < 0x800 else 3 if point < 0x10000 else 4
    out[n] = ((0xF00 >> n_bytes) & 0xFF) | (point >> (6 * (n_bytes - 1)))
    for k in range(1, n_bytes):
        out[n + k] = 0x80 | ((point >> (6 * (n_bytes - 1 - k))) & 0x3F)
    return i, n + n_bytes


@_borrowing
def _mark_special(line: Any, marks: Any) -> None:
    """Mark with 1 the bytes that do not stand for themselves in a string, and the place after the last.

    That is all but ASCII without control characters, quotes and backslashes.
    """
    for i in range(len(line)):
        byte = line[i]
        marks[i] = (byte < 0x20) | (byte >= 0x80) | (byte == _QUOTE) | (byte == _BACKSLASH)
    marks[len(line)] = 1


@_borrowing
def _next_special(words: Any, i: int) -> int:
    """The first place from `i` on that is marked, found in eight marks at a time."""
    w = np.uint64(i) >> _EIGHTH
    word = words[w] >> ((np.uint64(i) & _REST_OF_EIGHT) << _EIGHTH)
    if word != _NO_MARKS:
        return i + int(_first_mark(word))
    w += _ONE
    while words[w] == _NO_MARKS:
        w += _ONE
    return int(np.int64(w << _EIGHTH) + _first_mark(words[w]))


@_borrowing
def _first_mark(word: Any) -> int:
    """The place of the first mark in a word that has one."""
    # All bits below the lowest that is set; then one of each byte of them, which are summed up in the top byte.
    below = (word & (~word + _ONE)) - _ONE
    return int(np.int64(((below & _ALL_MARKS) * _ALL_MARKS) >> _TOP_BYTE))


@_borrowing
def _read_string(line: Any, i: int, words: Any, out: Any, n: int) -> tuple[int, int]:
    """Write the string whose first character is at `i` to `out[n:]`.

    Returns the places after both, the first of them -1 if the string has no end or is no valid one.
    """
    while True:
        begin = i
        i = _next_special(words, begin)
        while i < len(line) and line[i] >= 0x80:
            while i < len(line) and line[i] >= 0x80:
                n_bytes = _character_bytes(line, i)
                if n_bytes == 0:
                    return -1, n
                i += n_bytes
            i = _next_special(words, i)
        n = _copy(line, begin, i, out, n)
        if i == len(line) or line[i] < 0x20:
            return -1, n
        if line[i] == _QUOTE:
            return i + 1, n
        while i < len(line) and line[i] == _BACKSLASH:
            if i + 1 < len(line) and _ESCAPED[line[i + 1]] != 0:
                out[n] = _ESCAPED[line[i + 1]]
                i += 2
                n += 1
            else:
                i, n = _read_code(line, i, out, n)
                if i < 0:
                    return -1, n


@_borrowing
def _child(node: int, name: Any, tree: Any) -> int:
    """The child of an object's node with this name, or `_UNWANTED`."""
    _, first_child, names, name_bounds, _ = tree
    for child in range(first_child[node], first_child[node + 1]):
        begin, end = name_bounds[child], name_bounds[child + 1]
        if end - begin == len(name) and _is_at(names, begin, name):
            return child
    return _UNWANTED


@_borrowing
def _read_line(line: Any, words: Any, tree: Any, strings: Any, spans: Any, stack: Any) -> int:
    """Read a line: write the wanted strings to `strings`, and to `spans` the column, begin and end of each.

    Returns their number.
    """
    kinds, first_child, _, _, columns = tree
    closers, nodes, seen = stack  # of the objects and arrays around: how they end, their nodes, which children came
    depth, node, n, n_spans = 0, 0, 0, 0
    i = _after_space(line, 0)
    while True:
        # Here a value begins.
        if i >= len(line):
            return _OTHER
        byte = line[i]
        is_found, is_new, after = False, False, n
        if byte == _QUOTE:
            is_found = node != _UNWANTED
            if is_found and kinds[node] != TEXT and kinds[node] != ID:
                return _OTHER
            i, after = _read_string(line, i + 1, words, strings, n)
            if i < 0:
                return _OTHER
        elif byte == _OPEN_OBJECT or byte == _OPEN_ARRAY:
            is_object = byte == _OPEN_OBJECT
            if depth == _MAX_DEPTH or (node != _UNWANTED and kinds[node] != (OBJECT if is_object else ARRAY)):
                return _OTHER
            closers[depth], nodes[depth], seen[depth] = _CLOSE_OBJECT if is_object else _CLOSE_ARRAY, node, 0
            depth += 1
            i += 1
            is_new = True
        else:
            begin = i
            i = _after_scalar(line, begin)
            is_found = node != _UNWANTED and byte != _NULL[0]
            if i < 0 or (is_found and (kinds[node] != ID or not _is_id(line, begin, i))):
                return _OTHER
            if is_found:
                after = _copy(line, begin, i, strings, n)
        if is_found:
            if n_spans == len(spans):
                return _OTHER
            spans[n_spans, 0], spans[n_spans, 1], spans[n_spans, 2] = columns[node], n, after
            n_spans += 1
            n = after
        # After a value, or in a new object or array: to the next value.
        while True:
            i = _after_space(line, i)
            if depth == 0:
                return n_spans if i == len(line) else _OTHER
            if i >= len(line):
                return _OTHER
            if line[i] != closers[depth - 1]:
                break
            i += 1
            depth -= 1
            is_new = False
        if not is_new:
            if line[i] != _COMMA:
                return _OTHER
            i = _after_space(line, i + 1)
        node = nodes[depth - 1]
        if closers[depth - 1] == _CLOSE_ARRAY:
            if node != _UNWANTED:
                node = first_child[node]
            continue
        if i >= len(line) or line[i] != _QUOTE:
            return _OTHER
        i, after = _read_string(line, i + 1, words, strings, n)
        if i < 0:
            return _OTHER
        if node != _UNWANTED:
            child = _child(node, strings[n:after], tree)
            if child != _UNWANTED:
                bit = 1 << (child - first_child[node])
                # Of a field that comes twice, the last would count.
                if kinds[child] == REFUSED or seen[depth - 1] & bit:
                    return _OTHER
                seen[depth - 1] |= bit
            node = child
        i = _after_space(line, i)
        if i >= len(line) or line[i] != _COLON:
            return _OTHER
        i = _after_space(line, i + 1)


@_borrowing
def _gather(column: int, strings: Any, spans: Any, n_spans: int, is_first: bool, out: Any, n: int) -> tuple[int, int]:
    """Write the strings of a column to `out[n:]`, a separator before each but the very first.

    Returns how many there were, and the place after them.
    """
    n_strings = 0
    for span in range(n_spans):
        if spans[span, 0] != column:
            continue
        if not is_first or n_strings > 0:
            out[n] = _SEPARATOR
            n += 1
        n = _copy(strings, spans[span, 1], spans[span, 2], out, n)
        n_strings += 1
    return n_strings, n


@njit(cache=True, nogil=True)
def read_lines(
    data: Any, starts: Any, ends: Any, tree: Any, n_columns: int, texts: Any, ids: Any
) -> tuple[Int64, Int64, Any, Any, Int64, Int64]:
    r"""Read lines with one JSON object each.

    Parameters
    ----------
    data
        uint8: the bytes.
    starts, ends
        int64[n_lines]: where each line begins, and where its line break stands.
    tree
        (kinds, first_child, names, name_bounds, columns): what is wanted in an object. Node 0 is the object; the
        children of node `k` are the nodes `first_child[k]` to `first_child[k + 1]`, at most `MAX_CHILDREN`.
        `kinds[k]` says what the value must be, or null: `OBJECT`, with a child for each wanted field, whose name is
        `names[name_bounds[k]:name_bounds[k + 1]]`; `ARRAY`, with one child, for the elements; `TEXT`, a string of the
        text column `columns[k]`; `ID`, a string or whole number, of the column `n_columns`; `REFUSED`, nothing: it is
        left to the other parser what it means that the field is there.
    n_columns
        The texts of a line are put together in the order of these columns, with `\n` between two.
    texts, ids
        uint8, not shorter than `data`: filled with the texts and the ids of the lines read, one after the other.

    Returns
    -------
    lines
        int64[n_read]: the lines read.
    text_offsets, id_offsets, has_id
        int64[n_read + 1], int32[n_read + 1]: the bounds of their texts and ids; bool[n_read]: whether there is an id.
    others
        The lines that are to be read otherwise. Blank lines are in neither.
    n_texts
        int64[n_columns]: texts found in each column in the lines read.
    """
    n_lines, longest = len(starts), 0
    for number in range(n_lines):
        longest = max(longest, ends[number] - starts[number])
    strings = np.empty(longest, dtype=np.uint8)
    marks = np.empty((longest // 8 + 1) * 8, dtype=np.uint8)
    words = marks.view(np.uint64)
    spans = np.empty((_MAX_STRINGS, 3), dtype=np.int64)
    stack = (
        np.empty(_MAX_DEPTH, dtype=np.uint8), np.empty(_MAX_DEPTH, dtype=np.int64), np.empty(_MAX_DEPTH, dtype=np.int64)
    )  # fmt: skip
    lines, others = np.empty(n_lines, dtype=np.int64), np.empty(n_lines, dtype=np.int64)
    text_offsets, id_offsets = np.zeros(n_lines + 1, dtype=np.int64), np.zeros(n_lines + 1, dtype=np.int32)
    has_id = np.zeros(n_lines, dtype=np.bool_)
    n_texts = np.zeros(n_columns, dtype=np.int64)
    n_read, n_others, n_text, n_id = 0, 0, 0, 0
    for number in range(n_lines):
        line = data[starts[number] : ends[number]]
        if _after_space(line, 0) == len(line):
            continue
        _mark_special(line, marks)
        n_spans = _read_line(line, words, tree, strings, spans, stack)
        n_found = 0
        for column in range(n_columns):
            n, n_text = _gather(column, strings, spans, n_spans, n_found == 0, texts, n_text)
            n_found += n
            n_texts[column] += n
        if n_found == 0:
            others[n_others] = number
            n_others += 1
            continue
        n, n_id = _gather(n_columns, strings, spans, n_spans, True, ids, n_id)
        has_id[n_read] = n > 0
        lines[n_read] = number
        n_read += 1
        text_offsets[n_read], id_offsets[n_read] = n_text, n_id
    return (
        lines[:n_read], text_offsets[: n_read + 1], id_offsets[: n_read + 1], has_id[:n_read],
        others[:n_others], n_texts,
    )  # fmt: skip
