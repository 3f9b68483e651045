"""An audit on a cluster writes what an audit on one machine writes, byte for byte, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalkit.contamination import audit as audits
from evalkit.contamination import parts
from evalkit.contamination.audit import WORK
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.recorded import NEAR_SUFFIX
from evalkit.contamination.rules import load_rules
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine
from evalkit.engines.ray import RayEngine
from evalkit.errors import EngineError, InputError
from tests.ray.conftest import STORE_BYTES

WORDS = [f"word{number}" for number in range(300)]
PART_BYTES = 10_000
RULES = ("gpt3-clean", "llama3", "fuzzy")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty files with bad and empty rows, and the items of a benchmark in some documents."""
    folder = tmp_path_factory.mktemp("audited")
    rng = random.Random(4)
    items = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(30)]
    (folder / "items.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    (folder / "corpus").mkdir()
    for number in range(30):
        lines = []
        for row in range(120):
            text = " ".join(rng.choices(WORDS, k=rng.randint(0, 60)))
            if rng.random() < 0.05:
                text += " " + rng.choice(items)
            is_bad = rng.random() < 0.02
            lines.append("{" if is_bad else json.dumps({"id": f"{number}-{row}", "text": text}))
        (folder / "corpus" / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def plain(corpus):
    """What this machine's processes write."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audits, "PART_BYTES", PART_BYTES)
        run(corpus, "plain", LocalEngine(1))
    return files(corpus / "plain")


def run(corpus, name, engine):
    return audits.audit(
        find_shards([str(corpus / "corpus")]),
        [from_file(corpus / "items.jsonl")],
        load_rules(RULES),
        corpus / name,
        engine=engine,
    )


def files(folder):
    """Every file, and of the record all but its times."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = json.loads(found.pop("audit.json"))
    assert len(found) == 8
    return {**found, "record": {name: one for name, one in record.items() if name not in ("seconds", "finished")}}


def scanned(out):
    """The parts that are complete, with the time at which each was written."""
    found = (out / WORK).glob("*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in found if not path.name.endswith(NEAR_SUFFIX)}


def slow_scan_part(task):
    """Each part takes as long as a real one might; the process that does it can be seen."""
    time.sleep(0.4)
    parts.scan_part(task)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(audits, "PART_BYTES", PART_BYTES)


def test_three_nodes_write_what_one_machine_writes(corpus, plain, small_parts, engine):
    run(corpus, "cluster", engine)
    assert files(corpus / "cluster") == plain
    assert not (corpus / "cluster" / WORK).exists()


def test_a_node_that_is_killed_in_the_middle_changes_nothing(corpus, plain, small_parts, cluster, engine, monkeypatch):
    monkeypatch.setattr(audits, "scan_part", slow_scan_part)
    lost = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    killed = []
    original = audits.Progress.done

    def done(self, number):
        original(self, number)
        if number == 25 or (not killed and number > 25):
            killed.append(number)
            cluster.remove_node(lost, allow_graceful=False)

    monkeypatch.setattr(audits.Progress, "done", done)
    run(corpus, "killed-node", engine)
    assert len(killed) == 1
    assert files(corpus / "killed-node") == plain


DRIVER = """
import sys, time
from evalkit.contamination import audit, parts
audit.PART_BYTES = {part_bytes}
def scan_part(task):
    time.sleep(0.2)
    parts.scan_part(task)
audit.scan_part = scan_part
from evalkit.cli import main
sys.argv = ["evalkit", *sys.argv[1:]]
main()
"""


def command(corpus, out, address):
    given = ["audit", "--corpus", str(corpus / "corpus"), "--benchmark", str(corpus / "items.jsonl"), "--out", str(out)]
    for rule in RULES:
        given += ["--rule", rule]
    given += ["--allow-bad-rows", "999", "--engine", "ray", "--ray-address", address]
    return [sys.executable, "-c", DRIVER.format(part_bytes=PART_BYTES), *given]


def test_a_killed_driver_goes_on_where_it_was(corpus, plain, cluster):
    out = corpus / "killed-driver"
    with subprocess.Popen(command(corpus, out, cluster.address), stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(scanned(out)) < 20:
            time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "audit.json").exists()
    before = scanned(out)
    done = subprocess.run(command(corpus, out, cluster.address), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stderr.splitlines() if "were scanned before" in line)
    # Workers of the dead driver may have finished the parts that they had begun.
    assert len(before) <= int(said.split()[0]) <= len(before) + 6
    assert files(out) == plain


def test_a_worker_that_outlives_its_driver_harms_nothing(corpus, plain, small_parts, engine, monkeypatch):
    """It writes the same part again while another audit does, and again when that is over."""
    orphan_begun = time.monotonic()
    tasks = []

    def also_by_an_orphan(task):
        parts.scan_part(task)
        parts.scan_part(task)

    monkeypatch.setattr(audits, "scan_part", also_by_an_orphan)
    original = audits.Progress.begin
    monkeypatch.setattr(audits.Progress, "begin", lambda self, task: (tasks.append(task), original(self, task))[1])
    run(corpus, "orphan", engine)
    assert files(corpus / "orphan") == plain
    shutil.rmtree(corpus / "orphan" / WORK, ignore_errors=True)
    with pytest.raises((InputError, OSError)):
        parts.scan_part(tasks[0])
    assert not (corpus / "orphan" / WORK).exists()
    assert time.monotonic() > orphan_begun


def test_a_corpus_file_that_cannot_be_read_ends_the_audit_with_its_name(corpus, small_parts, engine, tmp_path):
    shutil.copytree(corpus / "corpus", tmp_path / "corpus")
    shutil.copy(corpus / "items.jsonl", tmp_path)
    (tmp_path / "corpus" / "07.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"07\.jsonl\.gz") as caught:
        run(tmp_path, "out", engine)
    assert type(caught.value) is InputError
    assert not (tmp_path / "out" / "audit.json").exists()


@contextlib.contextmanager
def blind_node(cluster, shared):
    """A node in a mount namespace of its own, in which a folder is another one."""
    shared.mkdir(exist_ok=True)
    hidden = f"mount -t tmpfs none {shared} && exec {Path(sys.executable).parent / 'ray'} start --block --num-cpus 1 "
    hidden += f"--address {cluster.address} --object-store-memory {STORE_BYTES} --disable-usage-stats"
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("only root can give a process a mount of its own")
    import ray

    n_before = sum(node["Alive"] for node in ray.nodes())
    node = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", hidden],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while sum(one["Alive"] for one in ray.nodes()) == n_before:
            assert node.poll() is None, node.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(30)
        while sum(one["Alive"] for one in ray.nodes()) > n_before:
            time.sleep(0.2)


def test_a_folder_that_a_node_does_not_see_is_refused_before_the_work(corpus, engine, cluster, tmp_path):
    out = tmp_path / "shared" / "out"
    message = rf"node .*: the node does not see {out}/{WORK}\. .*shared file system"
    with blind_node(cluster, tmp_path / "shared"), pytest.raises(EngineError, match=message):
        run(corpus, out, engine)
    assert list(out.iterdir()) == [out / WORK]
    assert list((out / WORK).iterdir()) == []


def test_a_node_that_joins_later_and_does_not_see_the_folder_ends_the_work_with_its_name(
    corpus, plain, small_parts, cluster, engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(audits, "scan_part", slow_scan_part)
    out = tmp_path / "shared" / "out"
    original = audits.Progress.done
    with contextlib.ExitStack() as joined:

        def done(self, number):
            original(self, number)
            if not joined_late:
                joined_late.append(joined.enter_context(blind_node(cluster, tmp_path / "shared")))

        joined_late = []
        monkeypatch.setattr(audits.Progress, "done", done)
        with pytest.raises(EngineError, match=rf"node .*: the node does not see {out}/{WORK}\. .*shared file system"):
            run(corpus, out, engine)
    monkeypatch.setattr(audits.Progress, "done", original)
    assert len(scanned(out)) > 3
    assert not list(out.glob("**/.seen*"))
    run(corpus, out, engine)
    assert files(out) == plain


def test_the_command_without_a_cluster_starts_one_of_this_machine_and_says_so(corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = command(corpus, tmp_path / "out", "local")
    given[given.index("--corpus") + 1] = str(corpus / "corpus" / "00.jsonl")
    done = subprocess.run([*given, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "one of this machine alone was started" in done.stderr
    assert json.loads(done.stdout)["n_files"] == 1


def test_nothing_at_the_address_is_told_at_once(corpus, tmp_path):
    begun = time.monotonic()
    done = subprocess.run(command(corpus, tmp_path / "out", "127.0.0.1:1"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--ray-address 127.0.0.1:1: nothing answers there" in done.stderr
    assert time.monotonic() - begun < 30


def test_a_missing_ray_is_told_with_the_command_that_installs_it(corpus, tmp_path):
    hidden = "import sys; sys.modules['ray'] = None\n"
    arguments = command(corpus, tmp_path / "out", "auto")
    arguments[2] = hidden + arguments[2]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'evalkit-harness[ray]'" in done.stderr


def test_engine_of_a_connection_is_used_again(cluster, engine):
    assert RayEngine().share(3).get() == 3
