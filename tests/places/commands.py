"""A corpus in a bucket, and commands on it, for the tests of results at addresses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading

from typer.testing import CliRunner

from evalkit import cli
from evalkit.errors import EvalkitError
from tests.conftest import ROOT

WORDS = [f"word{number}" for number in range(300)]
TABLES = [f"{name}.parquet" for name in ("documents", "items", "matches", "scan", "scan.files", "scan.near", "texts")]


def written() -> dict[str, bytes]:
    """A corpus of four files, with the items of a benchmark in some documents and a row that cannot be read."""
    rng = random.Random(4)
    items = [" ".join(rng.choices(WORDS, k=rng.randint(10, 40))) for _ in range(20)]
    files = {"items.jsonl": "".join(json.dumps({"question": item}) + "\n" for item in items).encode()}
    for number in range(4):
        planted = [[rng.choice(items)] if row % 9 == 0 else [] for row in range(60)]
        texts = [" ".join([*rng.choices(WORDS, k=40), *more]) for more in planted]
        lines = [json.dumps({"id": f"{number}-{row}", "text": text}) for row, text in enumerate(texts)]
        files[f"corpus/{number}.jsonl"] = "\n".join([*lines, *(["{"] if number == 0 else [])]).encode()
    return files


def evalkit(*words, code=0):
    """Run a command in this process."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    if isinstance(done.exception, EvalkitError) and code == 2:
        return str(done.exception)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def audit_words(full, out):
    return ["audit", "--corpus", f"{full.url}/corpus", "--benchmark", f"{full.url}/items.jsonl", "--out", out,
            "--allow-bad-rows", "1", "--workers", "1"]  # fmt: skip


def start(full, *words):
    """Begin a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "evalkit.cli", *map(str, words)],
        env={**full.environment, "PYTHONPATH": str(ROOT), "EVALKIT_CACHE": os.environ["EVALKIT_CACHE"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(full, folder):
    """The files of an audit but for the record, whose times differ, and what the record says of the results."""
    record = json.loads(full.read(f"{folder}/audit.json"))
    files = {name: full.read(f"{folder}/{name}") for name in full.names(folder) if name != "audit.json"}
    return files, {key: record[key] for key in ("corpus", "benchmarks", "summary", "rules", "index", "totals")}


_EXPECTED = []


def expected(full):
    """What an audit that nothing disturbs gives; the bucket always has the same name."""
    if not _EXPECTED:
        evalkit(*audit_words(full, f"{full.url}/whole"))
        _EXPECTED.append(results(full, "whole"))
    return _EXPECTED[0]


def kill_when(full, word, *words, after=False):
    """Kill a command when it asks for a path with this in it; the request is let through or not."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if method in ("PUT", "POST") and word in path and not go_on.is_set():
            reached.set()
            go_on.wait(30)
            return "drop"
        return None

    full.proxy.held = hold
    process = start(full, *words)
    try:
        while not reached.wait(0.1):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        full.proxy.held = lambda method, path: None
        go_on.set()
