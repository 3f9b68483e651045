"""Tasks give the same results however many processes there are, and what goes wrong in one comes out."""

from __future__ import annotations

import os
import signal
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
    Path(os.environ["EVALKIT_TRACES"], str(os.getpid())).touch()


def pid_of(_):
    return os.getpid()


def test_processes_that_were_started_before_do_the_work_until_they_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_TRACES", str(tmp_path))
    engine = LocalEngine(2)
    engine.start(leave_a_trace)
    first = {pid for _, pid in engine.map(pid_of, range(8))}
    assert first <= {int(path.name) for path in tmp_path.iterdir()}
    engine.stop()
    engine.stop()
    assert first.isdisjoint(pid for _, pid in engine.map(pid_of, range(8)))
    engine.stop()


def test_by_default_there_is_a_process_for_each_processor():
    assert LocalEngine().n_workers == len(os.sched_getaffinity(0))
