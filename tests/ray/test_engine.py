"""Tasks on a cluster give the results that they give here, whatever becomes of workers and nodes."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from evalkit.engines import choose, ray_cluster, ray_failures
from evalkit.engines import ray as engines
from evalkit.engines.ray import RayEngine
from evalkit.errors import EngineError, InputError, SpecError
from tests.ray.conftest import STORE_BYTES


def square(number):
    return number * number


def refuse_three(number):
    if number == 3:
        raise InputError("three is no number", where="here", do="count on")
    time.sleep(0.05)
    return number


def divide(number):
    return 1 // number


def end_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


def end_once(folder):
    mark = folder / "mark"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def note_and_sleep(task):
    """Leave a mark at the beginning and another at the end, and say on which node this was."""
    import ray

    folder, number, seconds = task
    begun = folder / f"{number}.{os.getpid()}.begun"
    begun.touch()
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            time.sleep(0.02)
    finally:
        begun.rename(begun.with_suffix(".ended"))
    return ray.get_runtime_context().get_node_id()


def node_of(_):
    import ray

    time.sleep(0.3)
    return ray.get_runtime_context().get_node_id()


def test_every_task_has_its_result_once(engine):
    found = list(engine.map(square, range(50)))
    assert sorted(found) == [(number, number * number) for number in range(50)]
    assert list(engine.map(square, [])) == []


def test_tasks_are_spread_over_the_nodes_and_libraries_take_one_thread(engine):
    assert len({node for _, node in engine.map(node_of, range(9))}) == 3
    assert {one for _, one in engine.map(os.getenv, ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"])} == {
        "1"
    }


def test_tasks_are_made_when_there_is_room_for_them(engine):
    made = itertools.count()

    def tasks():
        for number in range(1000):
            next(made)
            yield number

    done = 0
    for done, _ in enumerate(engine.map(square, tasks()), 1):
        assert next(made) <= done + 3 * 2 + 1 + done  # the count itself goes on by one each time
        if done == 100:
            break
    assert done == 100


def test_relative_names_mean_what_they_mean_here(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert next(RayEngine().map(os.path.exists, ["here"])) == (0, True)


@pytest.mark.parametrize("n", [2, 8])
def test_an_error_in_a_task_is_raised_as_it_is_and_ends_the_others(engine, tmp_path, n):
    with pytest.raises(InputError, match="three is no number") as caught:
        list(engine.map(refuse_three, range(n + 2)))
    assert type(caught.value) is InputError
    assert (caught.value.where, caught.value.do) == ("here", "count on")
    with pytest.raises(ZeroDivisionError):
        list(engine.map(divide, [1, 0]))


def running(folder):
    return list(folder.glob("*.begun"))


def test_when_the_caller_stops_so_do_the_tasks(engine, tmp_path):
    results = engine.map(
        note_and_sleep, ((tmp_path, number, 0.1 if number < 2 else 60) for number in itertools.count())
    )
    next(results)
    next(results)
    until = time.monotonic() + 20
    while len(running(tmp_path)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(running(tmp_path)) == 3
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 15
    assert not running(tmp_path)
    n_begun = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == n_begun


def test_an_interrupt_leaves_no_tasks_running(engine, tmp_path):
    threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(engine.map(note_and_sleep, [(tmp_path, number, 60) for number in range(9)]))
    assert not running(tmp_path)
    assert list(tmp_path.iterdir())


def test_a_task_whose_worker_was_lost_is_done_again(engine, tmp_path):
    assert len(list(engine.map(end_once, [tmp_path]))) == 1


def test_a_task_that_always_loses_its_worker_is_told_with_what_to_do(engine):
    with pytest.raises(EngineError, match=r"lost 4 times.*--workers"):
        list(engine.map(end_process, [0]))


def sleep_once_long(task):
    """The first time, number 0 sleeps for a minute, as on a machine with a dying disk. Says on which node this was."""
    import ray

    folder, number = task
    mark = folder / f"{number}"
    if number == 0 and not mark.exists():
        mark.write_text(ray.get_runtime_context().get_node_id())
        return note_and_sleep((folder, number, 60))
    return note_and_sleep((folder, number, 0.2))


def test_a_straggler_is_run_again_on_another_node_and_the_first_that_is_done_counts(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_STRAGGLER_S", 2.0)
    begun = time.monotonic()
    found = dict(engine.map(sleep_once_long, [(tmp_path, number) for number in range(8)]))
    assert time.monotonic() - begun < 45
    assert sorted(found) == list(range(8))
    assert found[0] != (tmp_path / "0").read_text()
    # The other was ended, and waited for.
    assert not running(tmp_path)
    assert len(list(tmp_path.glob("0.*.ended"))) == 2


def fail_in_ray(task):
    """As when the node cannot hold the shared value: `n` times, then no more."""
    folder, n = task
    n_before = len(list(folder.iterdir()))
    if n_before < n:
        (folder / str(n_before)).touch()
        from ray.exceptions import ObjectStoreFullError

        raise ObjectStoreFullError("no room")
    return n_before


def test_a_task_in_which_ray_failed_is_done_again_within_a_bound(engine, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert list(engine.map(fail_in_ray, [(tmp_path / "a", 3)])) == [(0, 3)]
    with pytest.raises(EngineError, match=r"in 4 attempts \(ObjectStoreFullError: no room.*larger object store"):
        list(engine.map(fail_in_ray, [(tmp_path / "b", 9)]))
    assert len(list((tmp_path / "b").iterdir())) == 4


def raise_without_pickle(_):
    class LocalError(Exception):
        def __reduce__(self):
            raise TypeError("no pickle")

    raise LocalError("said")


def test_an_exception_that_has_no_pickle_is_no_failure_of_ray(engine):
    import ray

    with pytest.raises(ray.exceptions.RayError, match="said"):
        list(engine.map(raise_without_pickle, [0]))


@pytest.mark.parametrize(
    ("name", "is_final", "said"),
    [
        ("WorkerCrashedError", True, r"lost 4 times.*--workers"),
        ("OutOfMemoryError", True, r"lost 4 times.*--workers"),
        ("NodeDiedError", True, r"lost 4 times.*--workers"),
        ("RuntimeEnvSetupError", False, r"RuntimeEnvSetupError.*runtime_env_setup"),
        ("TaskUnschedulableError", True, r"TaskUnschedulableError.*ray status"),
        ("OutOfDiskError", False, r"OutOfDiskError.*Make room"),
        ("ObjectLostError", False, r"ObjectLostError.*larger object store"),
        ("RaySystemError", False, r"RaySystemError.*logs"),
    ],
)
def test_what_ray_fails_in_is_told_as_what_it_is(name, is_final, said):
    from ray import exceptions

    kind = getattr(exceptions, name)
    given = {"NodeDiedError": ("gone",), "ObjectLostError": ("ff" * 28, "here", "stack"), "WorkerCrashedError": ()}
    error = kind(*given.get(name, ("why",)))
    assert ray_failures.is_of_ray(error)
    assert ray_failures.is_final(error) == is_final
    told = ray_failures.told(error, 1, 4)
    assert re.search(said, str(told))
    assert ("memory ran out" in str(told)) == ("lost 4 times" in said)


def wait_twice(task):
    """Number 0 waits until it may go; a second copy of it says where it runs, and fails in Ray or waits as well."""
    import ray

    folder, number, is_second_failing = task
    if number:
        return number
    mine = folder / f"copy.{uuid.uuid4().hex}"
    is_second = bool(list(folder.glob("copy.*")))
    (folder / f".{mine.name}").write_text(ray.get_runtime_context().get_node_id())
    (folder / f".{mine.name}").rename(mine)
    if is_second and is_second_failing:
        (folder / "go").touch()
        raise ray.exceptions.ObjectStoreFullError("no room")
    until = time.monotonic() + 90
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return "went" if time.monotonic() < until else "late"


def test_a_second_copy_in_which_ray_fails_leaves_the_first_alone(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_STRAGGLER_S", 1.0)
    found = dict(engine.map(wait_twice, [(tmp_path, number, True) for number in range(4)]))
    assert found == {0: "went", 1: 1, 2: 2, 3: 3}
    assert len(list(tmp_path.glob("copy.*"))) >= 2


def test_a_node_that_is_lost_with_a_second_copy_on_it_changes_nothing(cluster, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_STRAGGLER_S", 1.0)
    lost = []

    def others(node):
        """The node to be lost, which joins when the first copy runs elsewhere."""
        if not lost:
            lost.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        return [lost[0].node_id]

    monkeypatch.setattr(ray_cluster, "others", others)

    def lose():
        until = time.monotonic() + 90
        while time.monotonic() < until:
            if lost and any(path.read_text() == lost[0].node_id for path in tmp_path.glob("copy.*")):
                cluster.remove_node(lost[0], allow_graceful=False)
                break
            time.sleep(0.1)
        (tmp_path / "go").touch()

    loser = threading.Thread(target=lose)
    loser.start()
    found = dict(engine.map(wait_twice, [(tmp_path, number, False) for number in range(4)]))
    loser.join()
    assert found == {0: "went", 1: 1, 2: 2, 3: 3}
    assert any(path.read_text() == lost[0].node_id for path in tmp_path.glob("copy.*"))


def sum_of(shared):
    return float(shared.get().sum())


def test_a_value_larger_than_the_object_stores_reaches_all_tasks(engine):
    value = np.ones((STORE_BYTES + (40 << 20)) // 8)
    assert {one for _, one in engine.map(sum_of, [engine.share(value)] * 6)} == {float(len(value))}


def test_the_user_is_told_when_no_processor_is_free(engine, monkeypatch, capsys):
    import ray

    monkeypatch.setattr(engines, "_IDLE_S", 2.0)
    others = [ray.remote(num_cpus=1)(lambda: time.sleep(6)).remote() for _ in range(3)]
    ray.wait(others, timeout=1)
    assert list(engine.map(square, [3])) == [(0, 9)]
    assert "has taken a task" in capsys.readouterr().err


def test_notes_of_running_tasks_go_with_them(engine, tmp_path):
    """They are all that the cluster keeps of a task, and a killed driver's are few."""
    from ray.experimental import internal_kv

    def noted():
        return set(internal_kv._internal_kv_list("flight-", namespace=b"evalkit"))

    before = noted()
    for is_left in (False, True):
        found = engine.map(note_and_sleep, [(tmp_path, number, 0.5 + number) for number in range(4)])
        next(found)
        assert noted() - before
        if is_left:
            found.close()
        else:
            list(found)
        assert noted() == before


def test_a_long_task_that_waited_for_its_turn_is_no_straggler(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_STRAGGLER_S", 2.0)
    list(engine.map(note_and_sleep, [(tmp_path, number, 1.5) for number in range(6)]))
    assert len(list(tmp_path.iterdir())) == 6


def test_no_more_tasks_run_than_there_are_workers_asked_for(cluster, tmp_path):
    most = 0
    for _ in RayEngine(cluster.address, 2).map(note_and_sleep, [(tmp_path, n, 0.2) for n in range(8)]):
        most = max(most, len(running(tmp_path)))
    assert most <= 2


def look_at(task):
    """The sum of the shared array, the node, and the mapped file in which the array lies, by its inode."""
    import ray

    shared, folder = task
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 5 and time.monotonic() < until:  # processes
        time.sleep(0.05)
    array = shared.get()["numbers"]
    assert shared.get()["numbers"] is array
    assert not array.flags.writeable
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(one, 16) for one in line.split()[0].split("-"))
        if begin <= array.ctypes.data < end:
            _, _, _, _, inode, *name = line.split()
            return float(array.sum()), ray.get_runtime_context().get_node_id(), (inode, " ".join(name)), os.getpid()
    raise AssertionError("the array lies nowhere")


def test_a_shared_value_is_mapped_by_the_workers_of_a_node_and_not_copied(cluster, engine, tmp_path):
    import ray

    more = cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    value = {"numbers": np.arange(10 << 20, dtype=np.float64), "more": "text"}
    found = [one for _, one in engine.map(look_at, [(engine.share(value), tmp_path)] * 20)]
    cluster.remove_node(more)
    assert {one[0] for one in found} == {value["numbers"].sum()}
    nodes = {node: {one[2] for one in found if one[1] == node} for node in {one[1] for one in found}}
    assert len(nodes) == 4
    # One piece of shared memory on each node, and on the larger node two processes have it.
    assert all(len(places) == 1 and "plasma" in next(iter(places))[1] for places in nodes.values())
    assert len({one[3] for one in found}) >= 5
    assert ray.is_initialized()


def test_each_node_is_asked_whether_it_sees_a_folder(engine, tmp_path):
    engine.shares_files(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://somewhere:10001", "HOST:6379"),
        ("somewhere", "no address"),
        ("127.0.0.1:1", "another one"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused(engine, address, message):
    with pytest.raises(EngineError, match=message):
        RayEngine(address)


def test_the_same_cluster_by_its_address_or_none_is_the_connection_that_is_there(cluster, engine, monkeypatch):
    RayEngine("auto")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    RayEngine("auto")
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(EngineError, match="Ray's client"):
        RayEngine("auto")


def test_engines_are_chosen_by_name(cluster):
    assert isinstance(choose("ray", cluster.address, 2), RayEngine)
    with pytest.raises(SpecError, match="--engine ray"):
        choose("local", "auto")
    with pytest.raises(SpecError, match="local, ray"):
        choose("dask")


def test_another_version_is_refused(cluster):
    with pytest.raises(EngineError, match=r"evalkit 9\.9"):
        ray_cluster._check_versions(("0.1", "3.11"), ("9.9", "3.11"), "here")
    engine = RayEngine(cluster.address)
    engine.caller = ray_cluster.Caller("0.0.1", engine.caller.python, str(Path.cwd()))
    with pytest.raises(EngineError, match=r"has evalkit .* given with 0\.0\.1"):
        list(engine.map(square, [1]))


TWICE = """
import sys
if "imported before" in sys.argv:
    import ray
from evalkit.engines.ray import RayEngine
for _ in range(2):
    assert list(RayEngine("local", 1).map(abs, [-3])) == [(0, 3)]
"""


@pytest.mark.parametrize("when", ["imported before", "imported by the engine"])
def test_a_cluster_of_this_machine_twice_in_a_process_of_a_user_with_a_token(tmp_path, when):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run(
        [sys.executable, "-c", TWICE, when],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_connection_of_the_caller_is_used_where_a_local_one_is_asked_for(cluster, engine):
    assert next(RayEngine("local").map(square, [3])) == (0, 9)
