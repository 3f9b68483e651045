"""Time and memory of `evalkit audit` beside decon on the same corpus, benchmarks and number of workers.

python benchmarks/contamination_speed.py --json

The corpus is the real one four times over, each time with other items of the benchmarks planted in it: more than
300 MB of plain JSON lines in four files. The benchmarks are MMLU test and GSM8K test. Each side runs in fresh processes
with two workers, evalkit with all its rules, decon with its defaults.

- *index*: from the benchmark files to the finished index. Decon prints it; evalkit's ends when the first part of the
  corpus is handed out.
- *scan*: the rest, to the last table or report. Decon prints it; evalkit's has the start of its worker processes in it.
- *command*: the whole, with the start of the interpreter.
- *processor*: seconds of all processes together, which say more than the others on a machine that is busy otherwise.
- *peak memory*: the largest sum, over all processes of a side, of the proportional set size (a page that n processes
  share counts as an nth for each), looked up up to ten times a second. Linux only.

evalkit's kernels are compiled by numba on the first audit after an installation, and kept; a small audit before the
first measurement does that here.

Of evalkit alone: scan time and memory for one, two and four copies of the corpus; scan time for a tenth and for ten
times as many benchmark items (the same ones again with their words in random order); the kernel on ASCII texts in
memory; and a file .jsonl.zst from the disk to its matches. The last two are of one process and in MB of text.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from harness import arguments, finish, show
from measuring import run_measured
from models import DATA
from peer_decon import DETECT, decon_python, seconds_in, write_references
from planting import ItemFile, plant, read_benchmarks, read_documents, read_lines, write_lines

from evalkit.contamination.audit import RECORDED_N, audit
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.index import Index, build_index
from evalkit.contamination.rules import load_rules
from evalkit.contamination.scan import scan_shard, scan_texts
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine

N_WORKERS = 2
N_COPIES = 4
LEAST_BYTES = 300_000_000
N_PLANTS = 2000
"""Items planted in each copy of the corpus."""

TIMES = ("index", "scan", "command", "processor")
MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds to index, to scan, of the whole command and of the processors; peak memory in bytes."""

    index: float
    scan: float
    command: float
    processor: float
    memory: int


# --- The two sides ---


def run_evalkit(corpus: Sequence[Path], benchmarks: Sequence[Path], rules: Sequence[str], out: Path) -> Cost:
    """Audit the files in a fresh process."""
    given = [list(map(str, corpus)), list(map(str, benchmarks)), list(rules), str(out)]
    printed, *rest = run_measured([sys.executable, __file__, "--side", json.dumps(given)])
    taken = json.loads(printed.splitlines()[-1])
    return Cost(taken["index"], taken["scan"], *rest)


def evalkit_side(corpus: list[str], benchmarks: list[str], rules: list[str], out: str) -> None:
    """What the fresh process does: an audit that prints its seconds."""
    begun = time.perf_counter()
    handed_out: list[float] = []

    class Timed(LocalEngine):
        def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            handed_out.append(time.perf_counter())
            return super().map(function, tasks)

    loaded = [from_file(Path(path)) for path in benchmarks]
    audit(find_shards(corpus), loaded, load_rules(rules), Path(out), engine=Timed(N_WORKERS))
    print(json.dumps({"index": handed_out[0] - begun, "scan": time.perf_counter() - handed_out[0]}))


def run_decon(corpus: Path, references: Path, out: Path) -> Cost:
    """Run decon on a folder in a fresh process."""
    command = [str(decon_python()), "-c", DETECT, str(corpus), str(references), str(out), str(N_WORKERS)]
    printed, *rest = run_measured(command)
    return Cost(*(seconds_in(printed, name) for name in ("Index building time", "Detection time")), *rest)


# --- What is read ---


def write_corpus(folder: Path, documents: Sequence[str], benchmarks: Sequence[ItemFile]) -> list[Path]:
    """Write copies of the documents, with other items planted in each."""
    items = [item for one in benchmarks for item in one.items]
    folder.mkdir()
    paths = []
    for copy in range(N_COPIES):
        rng = random.Random(copy)
        texts = list(documents)
        n_plants = min(N_PLANTS, len(texts), len(items))
        for row, item in zip(rng.sample(range(len(texts)), n_plants), rng.sample(items, n_plants), strict=True):
            texts[row] = plant(item, item.text, texts[row], rng).document
        rows = ({"id": f"{copy}/{row}", "source": "assistant_answers", "text": t} for row, t in enumerate(texts))
        paths.append(write_lines(folder / f"copy_{copy}.jsonl", rows))
    return paths


def tenth_of(benchmark: ItemFile, folder: Path) -> ItemFile:
    """A random tenth of the items, in a file of their own."""
    rows = list(zip(read_lines(benchmark.path), benchmark.items, strict=True))
    chosen = random.Random(0).sample(rows, len(rows) // 10)
    path = write_lines(folder / f"{benchmark.path.name.split('.')[0]}_tenth.jsonl", [row for row, _ in chosen])
    items = [replace(item, number=number) for number, (_, item) in enumerate(chosen)]
    return replace(benchmark, path=path, items=tuple(items))


def write_tenfold(benchmark: ItemFile, folder: Path) -> Path:
    """Write the items, and nine times the same with the words of each text in random order."""
    rng = random.Random(0)
    rows = list(read_lines(benchmark.path))
    more = ({**_shuffled(row, rng), "id": f"{row['id']}-{n}"} for n in range(9) for row in rows)
    return write_lines(folder / f"{benchmark.name}_tenfold.jsonl", [*rows, *more])


def _shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return {name: _shuffled(one, rng) for name, one in value.items()}
    if isinstance(value, list):
        return [_shuffled(one, rng) for one in value]
    if not isinstance(value, str):
        return value
    words = value.split()
    return " ".join(rng.sample(words, len(words)))


# --- Parts of the scan in one process ---


def kernel_speed(index: Index, texts: Sequence[str], n_runs: int) -> float:
    """MB/s of the kernel on ASCII texts in memory, the best of several runs."""
    array = pa.array([text for text in texts if text.isascii()], type=pa.large_string())
    n_bytes = sum(len(text) for text in array.to_pylist())
    return n_bytes / MB / best_time(lambda: scan_texts(array, index), n_runs)


def zst_speed(index: Index, n_runs: int) -> float:
    """MB/s of text from a .jsonl.zst file to its matches, the best of several runs."""
    [shard] = find_shards([str(DATA / "corpora" / "assistant_answers.jsonl.zst")])

    def scan() -> int:
        return scan_shard(shard, index, text_column="text", id_column="id").n_bytes

    return scan() / MB / best_time(scan, n_runs)


def best_time(work: Callable[[], object], n_runs: int) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(n_runs):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main() -> None:
    """Measure both sides, then evalkit alone, and print times, ratios and speeds."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of evalkit, of which the median counts (default 3)")
    parser.add_argument("--peer-runs", type=int, default=1, help="runs of decon, the same way (default 1)")
    parser.add_argument("--rule", nargs="+", default=["all"], help="evalkit's rules (default: all)")
    parser.add_argument("--quick", action="store_true", help="try the script: 2,000 documents, a tenth of the items")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        evalkit_side(*json.loads(options.side))
        return
    with tempfile.TemporaryDirectory() as temporary:
        finish(options, measure(options, Path(temporary)))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float | str]:
    """Measure everything with scratch files in `folder`; return the figures by their names."""
    benchmarks = [one for one in read_benchmarks(DATA, folder) if one.name in ("mmlu_test", "gsm8k_test")]
    if options.quick:
        benchmarks = [tenth_of(one, folder) for one in benchmarks]
    documents = read_documents(DATA)[: 2000 if options.quick else None]
    corpus = write_corpus(folder / "corpus", documents, benchmarks)
    n_bytes = sum(path.stat().st_size for path in corpus)
    if n_bytes < LEAST_BYTES and not options.quick:
        sys.exit(f"the corpus has {n_bytes / MB:.0f} MB, and {LEAST_BYTES / MB:.0f} are asked for")
    write_references(benchmarks, folder / "references")
    n_audits = 0

    def ours(files: Sequence[Path], items: Sequence[Path]) -> Cost:
        nonlocal n_audits
        n_audits += 1
        return run_evalkit(files, items, options.rule, folder / f"audit_{n_audits}")

    whole = [one.path for one in benchmarks]
    few = write_lines(folder / "few.jsonl", [{"text": text} for text in documents[:100]])
    ours([few], whole)  # compiles the kernels when that has not happened
    mine, peer = [], []
    for run in range(max(options.runs, options.peer_runs)):
        if run < options.runs:
            mine.append(ours(corpus, whole))
        if run < options.peer_runs:
            peer.append(run_decon(folder / "corpus", folder / "references", folder / f"reports_{run}"))
    by_copies = {n: median([ours(corpus[:n], whole) for _ in range(options.runs)]) for n in (1, 2)}
    by_copies[N_COPIES] = median(mine)
    fewer = [tenth_of(one, folder).path for one in benchmarks]
    more = [write_tenfold(one, folder) for one in benchmarks]
    tenth, tenfold = (median([ours(corpus, items) for _ in range(options.runs)]) for items in (fewer, more))
    n = min(RECORDED_N, *(rule.n for rule in load_rules(options.rule)))
    index = build_index([from_file(path) for path in whole], n)
    return report(n_bytes, median(mine), median(peer), by_copies, tenth, tenfold) | {
        "kernel_mb_s": show_speed("kernel, ASCII texts in memory", kernel_speed(index, documents, options.runs)),
        "zst_mb_s": show_speed("from .jsonl.zst to matches", zst_speed(index, options.runs)),
    }


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(**{name: statistics.median([getattr(cost, name) for cost in costs]) for name in Cost.__annotations__})


def show_speed(name: str, speed: float) -> float:
    """Print the speed of one process."""
    print(f"one process, {name}: {speed:.0f} MB/s")
    return round(speed, 1)


def report(
    n_bytes: int, mine: Cost, peer: Cost, by_copies: dict[int, Cost], tenth: Cost, tenfold: Cost
) -> dict[str, float | str]:
    """Print the tables and return the figures."""
    figures: dict[str, float | str] = {
        "corpus_mb": round(n_bytes / MB, 1),
        "scan_speedup": round(peer.scan / mine.scan, 2),
        "index_speedup": round(peer.index / mine.index, 2),
        "command_speedup": round(peer.command / mine.command, 2),
        "processor_speedup": round(peer.processor / mine.processor, 2),
        "peak_memory_ratio": round(mine.memory / peer.memory, 3),
    }
    for side, cost in (("evalkit", mine), ("decon", peer)):
        figures |= {f"{side}_{name}_s": round(getattr(cost, name), 3) for name in TIMES}
        figures[f"{side}_peak_mb"] = round(cost.memory / MB, 1)
    rows = [(name, *_shown(cost)) for name, cost in (("evalkit", mine), ("decon", peer))]
    speedups = [f"{figures[f'{name}_speedup']}x" for name in TIMES]
    title = f"{n_bytes / MB:.0f} MB of JSON lines, MMLU and GSM8K, {N_WORKERS} workers"
    header = ("", *TIMES, "peak memory")
    show(title, header, [*rows, ("ratio", *speedups, f"{figures['peak_memory_ratio']}x")])
    print()
    rows = [(f"{n} of {N_COPIES} copies of the corpus", *_shown(cost)) for n, cost in by_copies.items()]
    rows += [("a tenth of the items", *_shown(tenth)), ("ten times the items", *_shown(tenfold))]
    show("evalkit alone", header, rows)
    # 1 when each further copy takes as long as the one before, whatever the start-up costs.
    per_copy = {n: (by_copies[2 * n].scan - by_copies[n].scan) / n for n in (1, 2)}
    figures |= {f"scan_s_{n}x": round(cost.scan, 3) for n, cost in by_copies.items()}
    figures |= {f"peak_mb_{n}x": round(cost.memory / MB, 1) for n, cost in by_copies.items()}
    figures["scan_s_per_copy_ratio"] = round(per_copy[2] / per_copy[1], 3)
    figures["peak_memory_4x_over_1x"] = round(by_copies[N_COPIES].memory / by_copies[1].memory, 3)
    figures["scan_ratio_tenth_to_whole"] = round(mine.scan / tenth.scan, 3)
    figures["scan_ratio_tenfold"] = round(tenfold.scan / mine.scan, 3)
    print(
        f"a further copy: {per_copy[1]:.2f} s, then {per_copy[2]:.2f} s; ten times the items: "
        f"{figures['scan_ratio_tenth_to_whole']}x from a tenth, {figures['scan_ratio_tenfold']}x from the whole"
    )
    return figures


def _shown(cost: Cost) -> tuple[str, ...]:
    return *(f"{getattr(cost, name):.2f} s" for name in TIMES), f"{cost.memory / MB:.0f} MB"


if __name__ == "__main__":
    main()
