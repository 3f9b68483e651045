"""What an engine offers: the same tasks give the same results on any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")
_Value_co = TypeVar("_Value_co", covariant=True)


class Shared(Protocol[_Value_co]):
    """A large value that all tasks need, itself small: it can be pickled, and says where the value lies."""

    def get(self) -> _Value_co:
        """Return the value. A process opens it once."""
        ...


class Engine(Protocol):
    """Applies a function to tasks, wherever that may be.

    The function, the tasks and the results travel between processes, so they must be picklable, and small: what is
    large lies in files that every process can open, or is shared.
    """

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[tuple[int, _Result]]:
        """Yield the number and the result of each task, in whatever order they are done.

        Tasks are taken when there is room for them, a few more than there are workers, so that there may be any number
        of them. An exception in the function is raised here, and no further task is begun.
        """
        ...

    def share(self, value: _Value, save: Callable[[], Shared[_Value]] | None = None) -> Shared[_Value]:
        """Give all tasks a value; this process, too, can take it from there, so that it is in memory once.

        Parameters
        ----------
        value
            What they need.
        save
            Puts the value into files, which processes of one machine map; it is not called where the memory of a
            cluster holds the value. Without it, the value goes along with each task on one machine.
        """
        ...

    def shares_files(self, folder: Path) -> None:
        """Make sure that what one worker writes in a folder, all others and this process see.

        Raises
        ------
        EngineError
            The workers of some machine do not see the folder.
        """
        ...

    def start(self, function: Callable[[], None]) -> None:
        """Make ready for `map` while the caller does something else: each process calls `function`."""
        ...

    def stop(self) -> None:
        """Give back what is held for further calls of `map`, such as processes; they may still be made."""
        ...
