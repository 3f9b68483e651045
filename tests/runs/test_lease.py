"""One process at a time works in a run directory, and what a dead one leaves does not keep the others out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from evalkit.errors import EngineError, InputError
from evalkit.runs.lease import LEASE, Lease, remove_abandoned


def content(folder):
    return json.loads((folder / LEASE).read_text())


def as_if_elsewhere(folder):
    """Let the lease say that its holder is on another machine."""
    record = {**content(folder), "machine": "another"}
    (folder / LEASE).write_text(json.dumps(record))


def test_the_file_is_there_while_the_lease_is_held_and_says_by_whom(tmp_path):
    with Lease(tmp_path / "run", "server 3 on a") as lease:
        lease.check()
        assert content(tmp_path / "run")["owner"] == "server 3 on a"
        assert content(tmp_path / "run")["pid"] == os.getpid()
        (tmp_path / "run" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_what_came_to_nothing_leaves_no_folder(tmp_path):
    with Lease(tmp_path / "run", "x"):
        pass
    assert not (tmp_path / "run").exists()
    with Lease(tmp_path, "x"):
        pass
    assert tmp_path.exists()


def test_a_living_holder_is_waited_for_and_then_named(tmp_path):
    with (
        Lease(tmp_path, "the first"),
        pytest.raises(InputError, match=r"the first \(host .*, process \d+\) works in this run directory"),
        Lease(tmp_path, "the second", patience_s=0.5),
    ):
        pass


def test_a_lease_that_is_given_back_is_taken_by_who_waits(tmp_path):
    first = Lease(tmp_path, "the first").__enter__()
    threading.Timer(0.5, first.__exit__).start()
    with Lease(tmp_path, "the second"):
        assert content(tmp_path)["owner"] == "the second"


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom evalkit.runs.lease import Lease\n"
        "with Lease(pathlib.Path(sys.argv[1]), 'killed'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGKILL)
    begun = time.monotonic()
    with Lease(tmp_path, "next", expiry_s=60.0):
        assert time.monotonic() - begun < 5
        assert content(tmp_path)["owner"] == "next"


def test_a_holder_elsewhere_is_dead_when_its_beat_stands_still(tmp_path):
    with Lease(tmp_path, "gone", beat_s=60.0) as gone:
        as_if_elsewhere(tmp_path)
        begun = time.monotonic()
        with Lease(tmp_path, "next", expiry_s=1.0, patience_s=30.0) as lease:
            assert time.monotonic() - begun >= 1
            lease.check()
            with pytest.raises(EngineError, match="taken for dead, and next goes on"):
                gone.check()
    assert not (tmp_path / LEASE).exists()


def test_a_holder_elsewhere_that_beats_is_not_taken_for_dead(tmp_path):
    with Lease(tmp_path, "alive", beat_s=0.1) as alive:
        record = alive._line
        alive._line = lambda: json.dumps({**json.loads(record()), "machine": "another"}).encode().ljust(1023) + b"\n"
        time.sleep(0.3)
        with (
            pytest.raises(InputError, match=r"alive \(host .*\) works"),
            Lease(tmp_path, "x", expiry_s=1.0, patience_s=2.5),
        ):
            pass
        alive.check()


def test_of_many_that_want_it_one_has_it_at_a_time(tmp_path):
    held, overlaps = [], []

    def take(number):
        with Lease(tmp_path, str(number), patience_s=60.0) as lease:
            overlaps.extend(held)
            held.append(number)
            time.sleep(0.05)
            lease.check()
            held.remove(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert overlaps == []


def test_a_damaged_lease_is_abandoned_some_time(tmp_path):
    (tmp_path / LEASE).write_bytes(b"{")
    with Lease(tmp_path, "next", expiry_s=0.5):
        assert content(tmp_path)["owner"] == "next"


def test_a_lease_beside_a_finished_run_is_removed_when_its_holder_is_gone(tmp_path):
    with Lease(tmp_path, "alive"):
        remove_abandoned(tmp_path)
        living = content(tmp_path)
        as_if_elsewhere(tmp_path)
        remove_abandoned(tmp_path)
        assert (tmp_path / LEASE).exists()
        (tmp_path / LEASE).write_text(json.dumps({**living, "started": 1}))
        remove_abandoned(tmp_path)
        assert not (tmp_path / LEASE).exists()
    (tmp_path / LEASE).write_text(json.dumps({**living, "machine": "another"}))
    os.utime(tmp_path / LEASE, (time.time() - 7200,) * 2)
    remove_abandoned(tmp_path)
    assert not (tmp_path / LEASE).exists()
    remove_abandoned(tmp_path)
