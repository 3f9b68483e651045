"""Runs tasks in this machine's processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from evalkit.engines.interface import Shared
from evalkit.errors import EngineError

_IDLE_S: Final = 300
_WAITING: Final = 2
"""Tasks that wait for each worker, so that it need not wait for them."""

THREADS_OF_LIBRARIES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What says how many threads numerical libraries may start."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class _Carried(Generic[_Value]):
    """A value that goes along with each task."""

    value: _Value

    def get(self) -> _Value:
        """Return the value."""
        return self.value


class LocalEngine:
    """Processes of this machine. They are started when they are first needed, and end when they are idle for long.

    Parameters
    ----------
    n_workers
        Processes; None is one for each processor that this one may use. One worker works in this process.
    """

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = n_workers or n_processors()
        self._executor: Any = None

    def start(self, function: Callable[[], None]) -> None:
        """Start the processes, and let each call `function`, while this one does something else."""
        if self.n_workers > 1:
            executor = self._started()
            for _ in range(self.n_workers):
                executor.submit(function)

    def stop(self) -> None:
        """End the processes, without waiting for what they do."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = None

    def share(self, value: _Value, save: Callable[[], Shared[_Value]] | None = None) -> Shared[_Value]:
        """Let each process map what is saved; without that, the value goes along with each task."""
        return _Carried(value) if save is None else save()

    def shares_files(self, folder: Path) -> None:
        """Do nothing: all processes are on one machine."""

    def _started(self) -> Any:
        if self._executor is None:
            from joblib.externals.loky import ProcessPoolExecutor

            threads = str(max(1, n_processors() // self.n_workers))
            # Started anew, not copied: a copy of a process with threads can hang. And no `if __name__` is needed.
            self._executor = ProcessPoolExecutor(
                self.n_workers,
                timeout=_IDLE_S,
                env=dict.fromkeys(THREADS_OF_LIBRARIES, threads),
                initializer=_allow_growth,
            )
        return self._executor

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[tuple[int, _Result]]:
        """Yield the number and the result of each task, in whatever order they are done.

        Raises
        ------
        EngineError
            A process was ended from outside, as the system does when memory runs out.
        """
        numbered = enumerate(tasks)
        first = list(itertools.islice(numbered, 2))
        left = itertools.chain(first, numbered)
        if min(self.n_workers, len(first)) <= 1:
            for number, task in left:
                yield number, function(task)
            return
        from joblib.externals.loky import FIRST_COMPLETED, wait
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        executor, is_done = self._started(), False
        numbers: dict[Any, int] = {}
        try:
            while True:
                room = self.n_workers * (1 + _WAITING) - len(numbers)
                for number, task in itertools.islice(left, room):
                    numbers[executor.submit(function, task)] = number
                if not numbers:
                    break
                for future in wait(numbers, return_when=FIRST_COMPLETED).done:
                    yield numbers.pop(future), future.result()
            is_done = True
        except TerminatedWorkerError as error:
            raise EngineError(
                "a worker process was ended from outside, perhaps because memory ran out",
                where=f"{self.n_workers} workers",
                do="Run the same command again, with fewer --workers; what was finished is kept",
            ) from error
        finally:
            if not is_done:
                self.stop()


def _allow_growth() -> None:
    """Let this worker grow: loky would take mapped files for a leak, and start another process in its place."""
    from joblib.externals.loky import process_executor

    process_executor._USE_PSUTIL = False


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
