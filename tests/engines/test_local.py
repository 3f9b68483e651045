"""Tasks give the same results however many processes there are, and what goes wrong in one comes out."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from evalkit.engines import LocalEngine
from evalkit.errors import EngineError, InputError


def square(number):
    return number * number


def refuse_three(number):
    if number == 3:
        raise InputError("three is no number", where="here")
    return number


def end_at_two(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_every_task_has_its_result_once(n_workers):
    found = list(LocalEngine(n_workers).map(square, range(20)))
    assert sorted(found) == [(number, number * number) for number in range(20)]


def test_no_tasks_no_results():
    assert list(LocalEngine(2).map(square, [])) == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_error_in_a_task_is_raised_as_it_is(n_workers):
    with pytest.raises(InputError, match="three is no number"):
        list(LocalEngine(n_workers).map(refuse_three, range(6)))


def test_a_process_that_is_killed_is_told_with_what_to_do():
    with pytest.raises(EngineError, match=r"ended from outside.*--workers"):
        list(LocalEngine(2).map(end_at_two, range(4)))


def leave_a_trace():
    """Leave a file, and wait for the other process's: on a busy machine one process might be called twice."""
    folder, until = Path(os.environ["EVALKIT_TRACES"]), time.monotonic() + 60
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < until, "the other process was not started"
        time.sleep(0.01)


def pid_of(_):
    return os.getpid()


def test_processes_that_were_started_before_do_the_work_until_they_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_TRACES", str(tmp_path))
    engine = LocalEngine(2)
    engine.start(leave_a_trace)
    first = {pid for _, pid in engine.map(pid_of, range(8))}
    traces = {int(path.name) for path in tmp_path.iterdir()}
    assert first <= traces
    assert len(traces) == 2
    assert os.getpid() not in traces
    engine.stop()
    engine.stop()
    assert first.isdisjoint(pid for _, pid in engine.map(pid_of, range(8)))
    engine.stop()


def test_by_default_there_is_a_process_for_each_processor():
    assert LocalEngine().n_workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("n_workers", "most"), [(1, 2), (2, 6)])
def test_tasks_are_taken_when_there_is_room_for_them(n_workers, most):
    made = itertools.count()
    engine = LocalEngine(n_workers)
    results = engine.map(square, (next(made) for _ in itertools.count()))
    for n_done in range(1, 50):
        next(results)
        n_made = next(made) - (n_done - 1)  # each look counts, too
        assert n_made <= n_done + most
    results.close()
    engine.stop()


def total(shared):
    return sum(shared.get())


def test_a_shared_value_reaches_all_tasks():
    engine = LocalEngine(2)
    shared = engine.share([1, 2, 3])
    assert [one for _, one in engine.map(total, [shared] * 4)] == [6] * 4
    assert engine.share([1], lambda: shared) is shared
    engine.stop()
