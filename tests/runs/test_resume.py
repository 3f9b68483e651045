"""A run that is killed loses only what was under way: the same command goes on and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from evalkit import tables


def command(model, tasks_dir, out):
    words = ["--model", model, "--tasks", "toy_mc,toy_gen,toy_sampled", "--tasks-dir", tasks_dir, "--out", out]
    words += ["--repeats", "3", "--batch-size", "1", "--device", "cpu"]
    return [sys.executable, "-m", "evalkit.cli", "run", *map(str, words)]


def n_answers(out):
    """Answers on disk, as another process sees them."""
    try:
        with sqlite3.connect(f"file:{out / 'journal.sqlite'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def samples(out):
    rows = tables.read(out / "samples.parquet", tables.SAMPLES).to_pylist()
    return [{name: value for name, value in row.items() if name != "latency"} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tasks_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(command(tiny_model, tasks_dir, out), check=True, capture_output=True)
    return out


@pytest.mark.parametrize("kill_after", [1, 120, 170])
def test_after_kill_9_the_same_command_finishes_without_asking_again(
    tiny_model, tasks_dir, undisturbed, tmp_path, kill_after
):
    out = tmp_path / "run"
    with subprocess.Popen(
        command(tiny_model, tasks_dir, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and n_answers(out) < kill_after:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "samples.parquet").exists()
    kept = n_answers(out)
    assert kept >= kill_after
    subprocess.run(command(tiny_model, tasks_dir, out), check=True, capture_output=True)
    record = json.loads((out / "run.json").read_text())
    assert record["n_from_journal"] == kept
    assert record["n_requests"] == n_answers(out) == n_answers(undisturbed)
    for mine, theirs in zip(samples(out), samples(undisturbed), strict=True):
        assert mine == theirs


def test_of_two_commands_in_one_run_directory_one_works_and_the_other_waits(
    tiny_model, tasks_dir, undisturbed, tmp_path
):
    words = command(tiny_model, tasks_dir, tmp_path / "run")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("nothing was computed again" in one for one in told) == 1
    assert samples(tmp_path / "run") == samples(undisturbed)
    assert not (tmp_path / "run" / ".lease.json").exists()
