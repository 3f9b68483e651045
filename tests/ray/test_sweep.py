"""A sweep over a cluster gives what the same sweep gives here, whatever becomes of servers, nodes and the driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evalkit import tables
from evalkit.errors import EngineError
from evalkit.runs import sweep_cluster
from evalkit.runs.lease import LEASE
from evalkit.runs.spec import make_spec
from evalkit.runs.sweep import sweep
from tests.ray.conftest import STORE_BYTES
from tests.runs.conftest import save_tiny_model, tasks_dir  # noqa: F401 - a fixture
from tests.runs.test_resume import n_answers

STEPS = (100, 200, 300)
BAD_STEP = 250
FILES = {"run.json", "samples.parquet", "requests.parquet", "journal.sqlite", "log.jsonl"}


@pytest.fixture(scope="module")
def nodes():
    """A head with one processor, and two nodes with two processors and two GPUs each, which are only said to exist."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    started = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        started.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE_BYTES)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    monkeypatch.setattr(sweep_cluster, "PUBLISH_S", 0.2)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    for step in (*STEPS, BAD_STEP):
        save_tiny_model(folder / f"checkpoint-{step}", seed=step)
    (folder / f"checkpoint-{BAD_STEP}" / "model.safetensors").write_bytes(b"broken")
    return folder


ALARM = """
import signal
import time


def process_results(doc, results):
    def ring(*_):
        raise TimeoutError

    try:
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        time.sleep(5)
    except TimeoutError:
        return {"exact_match": 1.0}
    except Exception:
        pass
    return {"exact_match": 0.0}
"""
"""Right where an alarm rings, and like the metrics of lm-eval that set one, wrong where none can be set."""


@pytest.fixture(scope="module")
def tasks(tasks_dir, tmp_path_factory):  # noqa: F811 - a fixture
    folder = tmp_path_factory.mktemp("with alarm") / "tasks"
    shutil.copytree(tasks_dir, folder)
    (folder / "alarm.py").write_text(ALARM)
    definition = (
        (folder / "toy_gen.yaml").read_text().replace("Question:", "Q:").replace("task: toy_gen", "task: toy_alarm")
    )
    (folder / "toy_alarm.yaml").write_text(f"{definition}process_results: !function alarm.process_results\n")
    return folder


@pytest.fixture(scope="module")
def given(training, tasks):
    return {
        "checkpoints": str(training / "checkpoint-*"),
        "tasks": "toy_mc,toy_gen,toy_sampled,toy_alarm",
        "tasks_dir": tasks,
        "repeats": 2,
        "batch_size": 1,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def here(given, tmp_path_factory):
    """The same sweep with the local engine, with as many threads as a server of one processor has."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    swept = sweep(make_spec(None, {**given, "out": tmp_path_factory.mktemp("here") / "sweep"}))
    torch.set_num_threads(n_threads)
    return swept


def samples(out):
    rows = tables.read(out / "samples.parquet", tables.SAMPLES).to_pylist()
    return [{name: value for name, value in row.items() if name != "latency"} for row in rows]


def assert_equal(swept, here, left=()):
    assert swept.failed == here.failed
    assert [Path(path).name for path in here.failed] == [f"checkpoint-{BAD_STEP}"]
    assert swept.to_frame().equals(here.to_frame())
    # Metrics may set alarms, as in the main thread of this process.
    rung = [of_seed["toy_alarm"]["exact_match,none"] for _, run in swept.runs for of_seed in run.results.values()]
    assert rung == [1.0] * len(STEPS)
    for (one, mine), (other, theirs) in zip(swept.runs, here.runs, strict=True):
        assert one == other
        assert mine.results == theirs.results
        assert samples(mine.directory) == samples(theirs.directory)
        assert n_answers(mine.directory) == n_answers(theirs.directory) == mine.n_requests
        # No lease, no temporary files.
        assert {path.name for path in mine.directory.iterdir()} - set(left) == FILES


def log_of(out):
    return [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]


def at_work(out):
    """Checkpoints that are under way, with answers in the run directory, and the server of each."""
    begun = {
        match[1]: line["server"]
        for line in log_of(out)
        if (match := re.match(r"begins with .*(checkpoint-\d+)", line["message"]))
    }
    for name, server in begun.items():
        if n_answers(out / name) > 20 and not (out / name / "samples.parquet").exists():
            yield name, server


def wait_for(condition, seconds=180.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError("it has not come")


def test_servers_on_gpus_give_the_same_tables_as_this_process(nodes, given, here, tmp_path, capsys):
    out = tmp_path / "sweep"
    swept = sweep(make_spec(None, {**given, "out": out, "engine": "ray", "ray_address": nodes.address, "servers": 2}))
    assert_equal(swept, here)
    assert "4 checkpoints on 2 servers (1 GPU and 1 CPU each)" in capsys.readouterr().err
    log = log_of(out)
    held = {}
    for line in log:
        if match := re.search(r"on node (\w+), process \d+, threads: 1, GPUs: (\d)$", line["message"]):
            held[line["server"]] = match.groups()
    # With GPUs of their own, on both nodes.
    assert len(held) == 2
    assert len({node for node, _ in held.values()}) == 2
    # The logs of all servers are there, in the words of the local sweep, with the server's name.
    for run, (checkpoint, _) in zip(here.runs, swept.runs, strict=True):
        line = next(line for line in log if line["message"] == f"{checkpoint.path}: {run[1].summary()}")
        assert line["server"] in held
    # The bad checkpoint was given up when a second server had failed with it, and the others went on.
    tries = [
        line["server"]
        for line in log
        if line["message"].endswith(f"checkpoint-{BAD_STEP}") and "begins" in line["message"]
    ]
    assert len(tries) == len(set(tries)) == 2


def test_a_lost_node_costs_nothing_but_time(nodes, given, here, tmp_path):
    out, lost = tmp_path / "sweep", []

    def lose_a_node():
        def victim():
            for name, server in at_work(out):
                for node in nodes.worker_nodes:
                    if node.node_id[:6] in server:
                        return name, server, node
            return None

        lost.append(wait_for(victim))
        nodes.remove_node(lost[0][2], allow_graceful=False)

    losing = threading.Thread(target=lose_a_node)
    losing.start()
    of_cluster = {"ray_address": nodes.address, "gpus_per_server": 0, "cpus_per_server": 1, "servers": 2}
    swept = sweep(make_spec(None, {**given, "out": out, "engine": "ray", **of_cluster}))
    losing.join()
    nodes.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE_BYTES)
    nodes.wait_for_nodes()
    assert_equal(swept, here)
    [(name, server, _)] = lost
    again = next(run for _, run in swept.runs if run.directory.name == name)
    assert again.n_from_journal > 0
    begun = [line for line in log_of(out) if "begins" in line["message"]]
    tries = [line["server"] for line in begun if line["message"].endswith(f"/{name}")]
    assert tries[0] == server != tries[-1]


DRIVER = """
import json, sys
from evalkit.runs import sweep_cluster
from evalkit.runs.lease import LEASE
from evalkit.runs.spec import make_spec
from evalkit.runs.sweep import sweep
sweep_cluster.PUBLISH_S = 0.2
sweep(make_spec(None, json.loads(sys.argv[1])))
"""


def start_driver(spec):
    words = [sys.executable, "-c", DRIVER, json.dumps(spec, default=str)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_after_the_driver_is_killed_the_same_command_goes_on(nodes, given, here, tmp_path):
    out = tmp_path / "sweep"
    of_cluster = {"engine": "ray", "ray_address": nodes.address, "gpus_per_server": 1, "servers": 1}
    driver = start_driver({**given, "out": out, **of_cluster})
    wait_for(lambda: any((out / f"checkpoint-{step}" / "samples.parquet").exists() for step in STEPS))
    [(under_way, _)] = wait_for(lambda: list(at_work(out)))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = {step for step in STEPS if (out / f"checkpoint-{step}" / "samples.parquet").exists()}
    begun = {step: (out / f"checkpoint-{step}" / "samples.parquet").stat().st_mtime_ns for step in finished}
    # At once: servers of the dead driver may still be ending.
    swept = sweep(make_spec(None, {**given, "out": out, **of_cluster}))
    # A server may have been ended right after its run.
    assert_equal(swept, here, left=[LEASE])
    for step, modified in begun.items():
        assert (out / f"checkpoint-{step}" / "samples.parquet").stat().st_mtime_ns == modified
    again = next(run for _, run in swept.runs if run.directory.name == under_way)
    # The server of the dead driver may have come to the end of its run: then that is taken as it is.
    as_it_is = f"{again.directory} holds this run"
    assert again.n_from_journal > 0 or any(line["message"].startswith(as_it_is) for line in log_of(out))
    processes = [int(found[1]) for line in log_of(out) if (found := re.search(r"process (\d+)", line["message"]))]
    wait_for(lambda: not any(is_there(pid) for pid in processes))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_servers_have_their_gpus_and_end_with_the_driver(nodes, given, tmp_path, end):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$$ GPUs=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS"\nsleep 300\n')
    python.chmod(0o755)
    out = tmp_path / "sweep"
    of_cluster = {"engine": "ray", "ray_address": nodes.address, "gpus_per_server": 2, "backend": "vllm", "servers": 1}
    driver = start_driver({**given, "vllm_python": python, "out": out, **of_cluster})

    def printed():
        return re.search(r"(\d+) GPUs=(\S*) threads=(\d+)", (out / "server-0.log").read_text())

    try:
        found = wait_for(printed)
        assert found.group(2, 3) == ("0,1", "2")
        assert is_there(int(found[1]))
        os.kill(driver.pid, end)
        assert driver.wait(timeout=60) != 0
    finally:
        driver.kill()
    wait_for(lambda: not is_there(int(found[1])))


def test_what_the_cluster_has_no_room_for_is_refused(nodes, given, tmp_path):
    of_cluster = {"engine": "ray", "ray_address": nodes.address, "out": tmp_path / "sweep"}
    with pytest.raises(EngineError, match="no node of the cluster has 8 GPUs; the most is 2"):
        sweep(make_spec(None, {**given, **of_cluster, "gpus_per_server": 8}))
    with pytest.raises(EngineError, match="has room for a server with 1 GPU and 64 CPUs"):
        sweep(make_spec(None, {**given, **of_cluster, "cpus_per_server": 64}))
