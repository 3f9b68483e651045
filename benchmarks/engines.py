"""Time and memory of an audit in this machine's processes and on a Ray cluster, on the same two cores.

python benchmarks/engines.py --json

The corpus is the real one over and over, each time with other items of the benchmarks planted in it: 1 GB of plain
JSON lines. The benchmarks are MMLU test and GSM8K test, with all rules. Each audit runs in a fresh process; the Ray
cluster has one node of two processors, and is there before, as a cluster is.

- *seconds*: the audit, with the connection to the cluster or the start of the processes in it. `local_over_ray` is
  local time over Ray's. That the tables of both are the same to the last byte is checked.
- *worker*: the largest anonymous memory of one worker (mapped files and shared memory do not count: the system takes
  them back when they are needed), for a quarter of the corpus and for all of it.
- *driver*: the same of the process that was started; and its peak resident memory for up to 100,000 parts and files
  with simulated workers (`driver_memory.py`).
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import driver_memory
from harness import arguments, finish, show
from measuring import name_of, own_bytes, tree_of, watching
from models import DATA
from planting import ItemFile, plant, read_benchmarks, read_documents, write_lines

from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.rules import load_rules
from evalkit.corpora.shards import find_shards
from evalkit.engines import choose

N_WORKERS = 2
CORPUS_BYTES = 1_000_000_000
N_FILES = 4
N_PLANTS = 200
"""Items planted in each copy of the corpus."""

TABLES = ("matches.parquet", "items.parquet", "documents.parquet", "texts.parquet", "scan.parquet")
MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Of one audit: its seconds, and the largest anonymous memory of a worker and of the driver, in bytes."""

    seconds: float
    worker: int
    driver: int


# --- One audit in a process of its own ---


def run_audit(engine: str, corpus: Sequence[Path], benchmarks: Sequence[Path], out: Path, cluster: Cluster) -> Cost:
    """Audit the files in a fresh process and look at the memory meanwhile."""
    given = [engine, cluster.address, list(map(str, corpus)), list(map(str, benchmarks)), str(out)]
    process = subprocess.Popen(
        [sys.executable, __file__, "--side", json.dumps(given)], stdout=subprocess.PIPE, text=True
    )
    worker, driver = [0], [0]

    def look() -> None:
        driver[0] = max(driver[0], own_bytes(process.pid))
        # Ray names its workers by what they do; joblib's are started by one of their own.
        workers = [pid for pid in cluster.pids if name_of(pid).startswith("ray::")]
        workers += [pid for pid in tree_of(process.pid) if "loky" in name_of(pid)]
        worker[0] = max([worker[0], *map(own_bytes, workers)])

    with watching(look):
        printed, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the audit on the {engine} engine failed")
    return Cost(json.loads(printed.splitlines()[-1])["seconds"], worker[0], driver[0])


def audit_side(engine: str, address: str, corpus: list[str], benchmarks: list[str], out: str) -> None:
    """What the fresh process does: an audit that prints its seconds."""
    loaded = [from_file(Path(path)) for path in benchmarks]
    shards = find_shards(corpus)
    begun = time.perf_counter()
    chosen = {
        "local": lambda: choose("local", workers=N_WORKERS),
        "ray": lambda: choose("ray", ray_address=address),
    }[engine]()
    audit(shards, loaded, load_rules(["all"]), Path(out), engine=chosen)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


# --- The cluster ---


class Cluster:
    """A Ray cluster of one node with two processors, for as long as the block lasts."""

    def __enter__(self) -> Cluster:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.folder = tempfile.mkdtemp(prefix="ray-")
        # Asked for by the cluster, and shown by the audits: both are started with these variables.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--num-cpus={N_WORKERS}"),
                *(f"--port={port}", f"--temp-dir={self.folder}"),
                *("--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={2 << 30}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.address = f"127.0.0.1:{port}"
        while not list(Path(self.folder).glob("session_*/sockets/raylet*")):
            if self.process.poll() is not None or time.perf_counter() - begun > 120:
                sys.exit("the Ray cluster does not start")
            time.sleep(0.1)
        self.seconds = time.perf_counter() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """All processes of the cluster."""
        return tree_of(self.process.pid)


# --- What is read ---


def write_corpus(folder: Path, documents: Sequence[str], benchmarks: Sequence[ItemFile], n_bytes: int) -> list[Path]:
    """Write copies of the documents, with other items planted in each, into some files of equal size."""
    items = [item for one in benchmarks for item in one.items]
    folder.mkdir()
    one_copy = sum(len(json.dumps({"id": 0, "text": text}, ensure_ascii=False).encode()) + 1 for text in documents)
    n_copies = ceil(n_bytes / N_FILES / one_copy)

    def rows(file: int) -> Iterator[dict[str, str]]:
        for copy in range(n_copies):
            rng = random.Random(file * n_copies + copy)
            texts = list(documents)
            n_plants = min(N_PLANTS, len(texts), len(items))
            for row, item in zip(rng.sample(range(len(texts)), n_plants), rng.sample(items, n_plants), strict=True):
                texts[row] = plant(item, item.text, texts[row], rng).document
            yield from ({"id": f"{file}/{copy}/{row}", "text": text} for row, text in enumerate(texts))

    return [write_lines(folder / f"{file}.jsonl", rows(file)) for file in range(N_FILES)]


# --- The figures ---


def main() -> None:
    """Measure both engines, then the driver alone."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="audits on each engine, of which the median counts")
    parser.add_argument("--quick", action="store_true", help="try the script: 20 MB, 1,000 parts")
    parser.add_argument("--only", choices=("engines", "shards"), help="measure only this")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        audit_side(*json.loads(options.side))
        return
    figures: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as temporary, Cluster() as cluster:
        folder = Path(temporary)
        benchmarks = [one for one in read_benchmarks(DATA, folder) if one.name in ("mmlu_test", "gsm8k_test")]
        if options.only != "shards":
            figures |= measure_engines(options, folder, benchmarks, cluster)
        if options.only != "engines":
            figures |= measure_shards(options)
    finish(options, figures)


def measure_engines(
    options: argparse.Namespace, folder: Path, benchmarks: Sequence[ItemFile], cluster: Cluster
) -> dict[str, float | str]:
    """Audit with both engines in turn; return the figures by their names."""
    documents = read_documents(DATA)[: 2000 if options.quick else None]
    corpus = write_corpus(folder / "corpus", documents, benchmarks, 20_000_000 if options.quick else CORPUS_BYTES)
    n_bytes = sum(path.stat().st_size for path in corpus)
    items = [one.path for one in benchmarks]
    costs: dict[tuple[str, str], list[Cost]] = {}
    few = write_lines(folder / "few.jsonl", [{"text": text} for text in documents[:100]])
    for engine in ("local", "ray"):  # compiles the kernels when that has not happened, and starts Ray's workers
        run_audit(engine, [few], items, folder / f"warm-up-{engine}", cluster)
    for run in range(options.runs):
        for size, files in (("whole", corpus), ("quarter", corpus[:1])):
            for engine in ("local", "ray"):
                out = folder / f"{engine}-{size}-{run}"
                costs.setdefault((engine, size), []).append(run_audit(engine, files, items, out, cluster))
            check_equal(folder / f"local-{size}-{run}", folder / f"ray-{size}-{run}")
    seconds = {key: statistics.median(cost.seconds for cost in some) for key, some in costs.items()}
    worker = {key: max(cost.worker for cost in some) for key, some in costs.items()}
    driver = {key: max(cost.driver for cost in some) for key, some in costs.items()}
    show(
        f"{n_bytes / MB:.0f} MB of JSON lines, MMLU and GSM8K, all rules, two workers; a Ray node starts in "
        f"{cluster.seconds:.1f} s before",
        ("", "seconds", "worker", "driver"),
        [
            (f"{engine}, {size}", f"{seconds[key]:.2f}", f"{worker[key] / MB:.0f} MB", f"{driver[key] / MB:.0f} MB")
            for key in costs
            for engine, size in [key]
        ],
    )
    figures: dict[str, float | str] = {
        "corpus_mb": round(n_bytes / MB, 1),
        "local_over_ray": round(seconds["local", "whole"] / seconds["ray", "whole"], 3),
        "same_tables": "yes",
    }
    for engine in ("local", "ray"):
        figures |= {
            f"{engine}_s": round(seconds[engine, "whole"], 2),
            f"{engine}_worker_mb": round(worker[engine, "whole"] / MB, 1),
            f"{engine}_worker_whole_over_quarter": round(worker[engine, "whole"] / worker[engine, "quarter"], 3),
        }
    return figures


def check_equal(one: Path, other: Path) -> None:
    """End the benchmark when a table differs."""
    _, different, missing = filecmp.cmpfiles(one, other, TABLES, shallow=False)
    if different or missing:
        sys.exit(f"{one.name} and {other.name} differ in {', '.join([*different, *missing])}")


def measure_shards(options: argparse.Namespace) -> dict[str, float | str]:
    """Let the driver work on more and more files and parts; return the figures by their names."""
    shapes = ("100x1", "100x10") if options.quick else driver_memory.SHAPES
    peaks = {shape: driver_memory.measure(shape)["peak_mib"] for shape in shapes}
    print()
    show(
        "the driver alone, with simulated workers: peak resident memory",
        ("files x parts", "peak"),
        [(shape, f"{peak:,} MiB") for shape, peak in peaks.items()],
    )
    figures: dict[str, float | str] = {f"driver_mib_{shape}": peak for shape, peak in peaks.items()}
    figures["driver_memory_ratio"] = round(max(peaks.values()) / peaks[shapes[0]], 2)
    return figures


if __name__ == "__main__":
    main()
