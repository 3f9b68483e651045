"""Runs tasks on a Ray cluster: what a worker process or a node takes with it when it dies is done again.

Tasks go to Ray as they are, small: names of files and ranges of rows. A few wait for each processor and the others are
not made before there is room. Ray does a task again whose worker or node was lost, and this module one in which Ray
itself failed on a node; an exception of the task's own is raised as it is. When no task is left to be handed out, one
that runs much longer than the others is begun again on another node, and the first that is done counts. So a task may
run twice, also at a time: it should write files whole.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

from evalkit.engines import ray_cluster, ray_failures
from evalkit.engines.interface import Shared
from evalkit.errors import EngineError
from evalkit.progress import warn

MAX_RETRIES: Final = 3
"""How often a task is done again whose worker or node was lost, and how often one is that Ray could not do."""

_QUEUED: Final = 2
"""Tasks handed out for each processor: one runs, one waits, so that no processor waits for this process."""

_POLL_S: Final = 1.0
_PATIENCE_S: Final = 20.0
"""Seconds in which a cancelled task should end; then its worker process is ended."""

_STRAGGLER_FACTOR: Final = 3.0
_STRAGGLER_S: Final = 10.0
"""A second copy of a task is begun when it has run so many times the median, and at least so many seconds."""

_REMEMBERED: Final = 1000
"""Run times of the last tasks of which the median is taken."""

_IDLE_S: Final = 60.0
"""Seconds without any task running after which the user is told."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")


def _attempt(
    function: Callable[[_Task], _Result], task: _Task, name: str, caller: ray_cluster.Caller
) -> tuple[float, _Result]:
    """What a worker does: one attempt at a task. Returns its seconds and its result."""
    import ray

    ray_cluster.check_caller(caller)
    ray_cluster.check_tokens(caller.tokens)
    with contextlib.suppress(OSError):  # relative names mean what they mean where the command was given
        os.chdir(caller.folder)
    # Ray tells only that an attempt is not done, not since when it runs, and where. The process, since Ray itself
    # may do it again in another one.
    with ray_cluster.noted(f"{name}/{ray.get_runtime_context().get_node_id()}/{os.getpid()}"):
        started = time.monotonic()
        result = function(task)
        return time.monotonic() - started, result


@dataclass(frozen=True)
class _InStore(Generic[_Value]):
    """A value in the cluster's object store: once on each node, its arrays mapped by all workers there."""

    key: str
    reference: Any = field(compare=False)

    def get(self) -> _Value:
        """Return the value; its arrays are read-only."""
        value: _Value | None = _opened.get(self.key)
        if value is None:
            import ray

            value = ray.get(self.reference)
            _opened.clear()
            _opened[self.key] = value
        return value


_opened: dict[str, Any] = {}
"""The value that this process took last: a worker does one thing at a time."""


class RayEngine:
    """A Ray cluster.

    Parameters
    ----------
    address
        `HOST:PORT` of the cluster's head; or `auto`: the address in `RAY_ADDRESS`, else the cluster that this machine
        belongs to, else one of this machine alone, which is started and ends with this process; or `local`: such a one
        in any case. A connection that this process has already is used.
    n_workers
        Tasks that run at a time; None: as many as the cluster has processors, also those that join it later.

    Raises
    ------
    EngineError
        Ray is not installed, there is no cluster at the address, or one of its nodes has another Python or evalkit.
    """

    def __init__(self, address: str = "auto", n_workers: int | None = None) -> None:
        ray_cluster.connect(address)
        self.n_workers = n_workers
        self.caller = ray_cluster.Caller.here()
        self._warming: list[Any] = []
        self._folders: list[Path] = []
        ray_cluster.check_nodes(self.caller)

    def share(self, value: _Value, save: Callable[[], Shared[_Value]] | None = None) -> Shared[_Value]:
        """Put a value into the object store, once; it need not be saved."""
        import ray

        return _InStore(uuid.uuid4().hex, ray.put(value))

    def shares_files(self, folder: Path) -> None:
        """Let each node look for a file in `folder`, which is made when it is not there.

        While tasks run, such a file lies there: nodes that join the cluster later look for it before their first task.

        Raises
        ------
        EngineError
            A node does not see it.
        """
        folder = folder.absolute()
        ray_cluster.check_nodes(self.caller, folder)
        if folder not in self._folders:
            self._folders.append(folder)

    def start(self, function: Callable[[], None]) -> None:
        """Let workers start, and each call `function`, while this process does something else."""
        remote = ray_cluster.remote(_warm, max_retries=0)
        self._warming = [remote.remote(function, self.caller) for _ in range(self.n_at_a_time())]

    def stop(self) -> None:
        """Cancel what `start` began. Ray ends idle workers, and the connection ends with this process."""
        _cancel(self._warming)
        self._warming = []
        _opened.clear()

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[tuple[int, _Result]]:
        """Yield the number and the result of each task, in whatever order they are done.

        Raises
        ------
        EngineError
            The workers of a task were lost again and again, Ray could not do a task, or a node that joined the cluster
            later does not see a folder that all should.
        """
        with ray_cluster.tokens(self._folders) as tokens:
            flight = _Flight(self, function, tasks, replace(self.caller, tokens=tokens))
            try:
                yield from flight.results()
            finally:
                flight.end()

    def n_at_a_time(self) -> int:
        """Tasks that can run at a time now."""
        return self.n_workers or ray_cluster.n_processors()


def _warm(function: Callable[[], None], caller: ray_cluster.Caller) -> None:
    ray_cluster.check_caller(caller)
    function()


@dataclass
class _Attempt:
    """An attempt at a task: the task's number, whether it is the second, and the attempt's own number."""

    task: int
    is_second: bool
    number: int


class _Flight(Generic[_Task, _Result]):
    """One call of `map`: the tasks that were handed out and are not done."""

    def __init__(
        self,
        engine: RayEngine,
        function: Callable[[_Task], _Result],
        tasks: Iterable[_Task],
        caller: ray_cluster.Caller,
    ) -> None:
        self._caller = caller
        self._engine, self._function, self._left = engine, function, iter(enumerate(tasks))
        self._attempts: dict[Any, _Attempt] = {}
        self._tasks: dict[int, _Task] = {}  # those under way, for a second copy
        self._failures: dict[int, int] = {}  # only of tasks under way that Ray could not do at first
        self._cancelled: list[Any] = []
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._is_all_out = False
        self._looked = self._last_ran = time.monotonic()
        self._n_at_a_time = engine.n_at_a_time()
        self._is_idle_told = False
        self._remote = ray_cluster.remote(_attempt, max_retries=MAX_RETRIES)
        self._name, self._numbers = f"flight-{uuid.uuid4().hex}", itertools.count()
        self._seen: dict[str, float] = {}  # since when each note of a running attempt is there

    def results(self) -> Iterator[tuple[int, _Result]]:
        """Hand out tasks and yield what is done."""
        import ray

        while True:
            self._hand_out()
            if not self._tasks:
                return
            flying = list(self._attempts)
            done, _ = ray.wait(flying, num_returns=1, timeout=_POLL_S, fetch_local=False)
            if done:  # and with it whatever else is done
                done, _ = ray.wait(flying, num_returns=len(flying), timeout=0, fetch_local=False)
            for reference in done:
                yield from self._take(reference)
            if time.monotonic() - self._looked >= _POLL_S:
                self._look_around()

    def end(self) -> None:
        """Let nothing run on."""
        references = [*self._attempts, *self._cancelled]
        self._attempts, self._tasks = {}, {}
        _cancel(references)
        ray_cluster.forget_notes(self._name)  # of workers that were killed

    def _hand_out(self) -> None:
        # What waits in Ray's queue would run when there are more processors than workers asked for.
        n_each = 1 if self._engine.n_workers else _QUEUED
        room = 0 if self._is_all_out else self._n_at_a_time * n_each - len(self._tasks)
        handed_out = 0
        for number, task in itertools.islice(self._left, max(room, 0)):
            self._tasks[number] = task
            self._submit(number)
            handed_out += 1
        self._is_all_out = self._is_all_out or handed_out < room

    def _submit(self, number: int, node: str | None = None) -> None:
        attempt = _Attempt(number, node is not None, next(self._numbers))
        remote = self._remote if node is None else ray_cluster.on_node(self._remote, node, soft=True)
        name = f"{self._name}/{attempt.number}"
        reference = remote.remote(self._function, self._tasks[number], name, self._caller)
        self._attempts[reference] = attempt

    def _take(self, reference: Any) -> Iterator[tuple[int, _Result]]:
        """Yield the result of an attempt that is done, if it counts."""
        import ray

        attempt = self._attempts.pop(reference, None)
        if attempt is None:  # the other copy of the task was done in the same moment
            return
        others = [other for other, one in self._attempts.items() if one.task == attempt.task]
        try:
            seconds, result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if not ray_failures.is_of_ray(error.cause):
                _raise_cause(error)
            self._failed(attempt.task, error.cause, is_last=not others)
            return
        except ray.exceptions.RayError as error:
            self._failed(attempt.task, error, is_last=not others)
            return
        for other in others:
            del self._attempts[other]
            self._cancelled.append(other)
            ray.cancel(other)
        self._seconds.append(seconds)
        self._last_ran = time.monotonic()
        del self._tasks[attempt.task]
        self._failures.pop(attempt.task, None)
        yield attempt.task, result

    def _failed(self, number: int, error: Exception, *, is_last: bool) -> None:
        """Hand a task out again that Ray could not do, unless another copy of it is under way or it was often enough.

        Raises
        ------
        EngineError
            It was often enough, or Ray itself has done it again before it gave up.
        """
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        if not is_last:  # the other copy may still be done
            return
        if failures > MAX_RETRIES or ray_failures.is_final(error):
            raise ray_failures.told(error, failures, MAX_RETRIES + 1) from error
        self._submit(number)

    def _look_around(self) -> None:
        """See how large the cluster is now, begin second copies of stragglers, and say when nothing runs at all."""
        now = self._looked = time.monotonic()
        self._n_at_a_time = self._engine.n_at_a_time()
        running = self._running(now)
        if running is None:
            return
        if any(attempt.number in running for attempt in self._attempts.values()):
            self._last_ran = now
        elif now - self._last_ran >= _IDLE_S and not self._is_idle_told:
            self._is_idle_told = True
            warn(f"no processor of the Ray cluster has taken a task for {_IDLE_S:.0f} s; other work may hold them all")
        if not (self._is_all_out and self._seconds):
            return
        limit = max(_STRAGGLER_S, _STRAGGLER_FACTOR * statistics.median(self._seconds))
        has_second = {attempt.task for attempt in self._attempts.values() if attempt.is_second}
        for attempt in list(self._attempts.values()):
            seconds, node = running.get(attempt.number, (0.0, ""))
            may_fail = self._failures.get(attempt.task, 0) < MAX_RETRIES
            if seconds > limit and attempt.task not in has_second and may_fail:
                others = ray_cluster.others(node)
                if others:
                    self._submit(attempt.task, others[attempt.number % len(others)])

    def _running(self, now: float) -> dict[int, tuple[float, str]] | None:
        """Seconds, by this process's clock, that each attempt was seen running, and its node; None: nobody knows.

        One that Ray has begun again has left a note of the worker that was lost: the newer one counts.
        """
        found = ray_cluster.notes(self._name)
        if found is None:
            return None
        self._seen = {note: self._seen.get(note, now) for note in found}
        running = {}
        for note, since in sorted(self._seen.items(), key=lambda one: one[1]):
            _, number, node, _ = note.split("/")
            running[int(number)] = now - since, node
        return running


def _cancel(references: Sequence[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    if not references:
        return
    import ray

    left = list(references)
    for is_forced in (False, True):
        with contextlib.suppress(ray.exceptions.RayError):
            for reference in left:
                ray.cancel(reference, force=is_forced)
            _, left = ray.wait(left, num_returns=len(left), timeout=_PATIENCE_S, fetch_local=False)
        if not left:
            return


def _raise_cause(error: Any) -> NoReturn:
    """Raise what a task raised, as it is."""
    cause = error.cause
    if not isinstance(cause, Exception):
        raise error
    if isinstance(cause, ModuleNotFoundError | AttributeError) and "evalkit" in str(cause):
        raise EngineError(
            f"a node of the cluster has another evalkit, or none ({ray_failures.first_line(cause)})",
            where="the Ray cluster",
            do="Install the same evalkit-harness on all nodes",
        ) from error
    raise cause from error
