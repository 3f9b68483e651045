"""The rows of a shard that are to be changed, while it is written anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from evalkit.corpora import parquet, streams
from evalkit.corpora.fields import EACH
from evalkit.corpora.readers import unreadable
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError

_T = TypeVar("_T")


class Edit(Protocol):
    """Says what becomes of a document."""

    def __call__(self, row: int, doc_id: str | None, texts: Sequence[str], /) -> Sequence[Sequence[str]]:
        """Return the rows that take the place of a row: for each of them as many texts as there were; none drops it.

        Parameters
        ----------
        row
            In the file, from 0, as `read_shard` numbers them.
        doc_id
            As `read_shard` gives it.
        texts
            The texts of the row, in the order in which `read_shard` joins them.
        """
        ...


class Pending:
    """The rows that are still to be edited, and how far the file has been read."""

    def __init__(self, rows: Sequence[int], edit: Edit, shard: Shard) -> None:
        self._rows, self._shard, self._position = rows, shard, 0
        self.edit, self.n_rows = edit, 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._shard.size

    @property
    def file(self) -> str:
        """The file, for messages."""
        return str(self._shard.path)

    @property
    def next(self) -> int | None:
        """The next row to be edited."""
        return self._rows[self._position] if self._position < len(self._rows) else None

    def take_until(self, end: int) -> list[int]:
        """Return the rows before `end`, and go on behind them."""
        begin = self._position
        while (row := self.next) is not None and row < end:
            self._position += 1
        return list(self._rows[begin : self._position])

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Turn what goes wrong in reading into an error for the user, so that what is left is about writing."""
        return _reading(self._shard, lambda: self.n_rows)

    def reading_each(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield what is read."""
        return reading_each(items, self._shard, lambda: self.n_rows)

    def refuse(self, row: int, what: str) -> InputError:
        """Make an error of what is wrong with a row."""
        return InputError(
            what, where=f"{self.file}, row {row}", do="The file is another than it was; go through the corpus again"
        )

    def finish(self) -> None:
        """Check that all rows were there."""
        if self.next is not None:
            raise self.refuse(self.next, "there is no such row")


def reading_each(items: Iterable[_T], shard: Shard, n_rows: Callable[[], int] = lambda: 0) -> Iterator[_T]:
    """Yield what is read, and turn what goes wrong into an error for the user; `n_rows` tells how far it went."""
    iterator = iter(items)
    while True:
        with _reading(shard, n_rows):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextlib.contextmanager
def _reading(shard: Shard, n_rows: Callable[[], int]) -> Iterator[None]:
    try:
        yield
    except (*streams.READ_ERRORS, *parquet.READ_ERRORS) as error:
        raise unreadable(shard, error, n_rows()) from None


def text_slots(record: dict[str, Any], steps: Sequence[str | None]) -> list[tuple[Any, Any]]:
    """Where the texts at a path are in nested dicts and lists: (container, key), in their order."""
    slots: list[tuple[Any, Any]] = [(record, steps[0])]
    for step in steps[1:]:
        values = [value for container, key in slots if (value := _value_at(container, key)) is not None]
        slots = [(value, key) for value in values for key in (range(len(value)) if step is EACH else [step])]
    return [(container, key) for container, key in slots if _value_at(container, key) is not None]


def _value_at(container: Any, key: Any) -> Any:
    return container.get(key) if isinstance(container, dict) else container[key]
