"""Deduplication from files to files: evalkit beside datatrove; and ten million signatures, or more, in bounded memory.

python benchmarks/dedup_end_to_end.py --json

*Pipeline*: the documents of the real corpus, normalised, and copies of them in other words (each word gets a letter of
the copy, so that nothing is shared between copies), in a JSON lines file each; shingles of five words, a threshold of
0.8, and so many bands and rows as evalkit chooses for it, for both. Each side is one command that starts from nothing
and ends with the corpus written anew, in the same number of processes. datatrove gets the cheapest tokenizer that there
is (split at spaces, which gives the same words), and no further normalisation. It does not compare what shares a band,
and joins all that is connected; so its pairs are the pairs of its clusters. Every pair that one side alone has is
explained, or the benchmark fails: its similarity is below the threshold (no one checked), or it shares no band
with the other side's permutations. (The pairs of a cluster are missed together or not at all, so that their number
varies more than that of independent ones.)

*Ten million*, or a hundred: signatures that are made when they are read (dedup_shuffle.py), among them planted copies
of which each value agrees with a given probability. They take the way of a corpus from its signatures on, in processes
whose own memory is watched. The share of the planted pairs that is found must be the theory's, within four standard
errors; no other pair may be found, and all exact copies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from dedup_shuffle import SIMILARITIES
from harness import ROOT, arguments, finish, peer_environment, show, time_command
from models import DATA
from planting import read_documents

from evalkit.dedup.dedup import PAIRS_FILE
from evalkit.dedup.lsh import FALSE_NEGATIVE_WEIGHT, choose_bands
from evalkit.dedup.shingles import Shingling, normalised, shingles_of
from evalkit.dedup.signatures import sign

REQUIREMENTS = ["datatrove[io,processing]==0.10.1"]
THRESHOLD, NUM_PERM, SIZE = 0.8, 128, 5
BANDS = choose_bands(THRESHOLD, NUM_PERM, 1 - FALSE_NEGATIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT)

PEER = """
import sys
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

class Split(WordTokenizer):
    # Its abstract methods; the pipeline asks for words only.
    def word_tokenize(self, text):
        return text.split()
    def sent_tokenize(self, text):
        raise NotImplementedError
    def span_tokenize(self, text):
        raise NotImplementedError

def main():
    source, out = sys.argv[1:3]
    n_files, workers, bands, rows, size = map(int, sys.argv[3:])
    plain = TextNormConfig(lowercase=False, norm_whitespace=False, remove_punctuation=False, norm_numbers=False,
                           norm_unicode_diacritics=False, norm_weekdays=False, norm_monthnames=False)
    config = MinhashConfig(n_grams=size, num_buckets=bands, hashes_per_bucket=rows, norm_config=plain)
    def run(name, pipeline, tasks):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{name}").run()
    run("1", [JsonlReader(source), MinhashDedupSignature(f"{out}/signatures", config, Split())], n_files)
    run("2", [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config, lines_to_buffer=-1)], bands)
    run("3", [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config, save_cluster_id=True)], 1)
    run("4", [JsonlReader(source), MinhashDedupFilter(f"{out}/remove"),
              JsonlWriter(f"{out}/kept", "${rank}.jsonl", compression=None)], n_files)

if __name__ == "__main__":
    main()
"""


def main() -> None:
    """Measure what was asked for and print the figures."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="runs of each side, of which the median counts (default 1)")
    parser.add_argument("--documents", type=int, help="documents of the pipeline; default: all of the corpus")
    parser.add_argument("--copies", type=int, default=4, choices=range(1, 9), help="of these (default 4)")
    parser.add_argument("--signatures", type=int, default=10_000_000, help="synthetic signatures (default 10,000,000)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of each worker for signatures (default 1024)")
    parser.add_argument("--folder", type=Path, help="where the files in between lie; default: a temporary folder")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of each side")
    parser.add_argument("--only", choices=("pipeline", "signatures"), help="leave the other part out")
    parser.add_argument("--quick", action="store_true", help="5,000 documents, one run, and 300,000 signatures")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.documents, options.signatures = 1, 5_000, 300_000
    figures: dict[str, Any] = {"bands": BANDS.n_bands, "rows": BANDS.n_rows}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.only != "signatures":
            figures |= pipeline(Path(folder), options)
        if options.only != "pipeline":
            figures |= millions(Path(folder) / "millions", options)
    finish(options, figures)


# --- The whole pipeline ---


def pipeline(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides, and how their pairs differ."""
    texts = [text for text in map(normalised, read_documents(DATA)) if len(text.split()) >= SIZE][: options.documents]
    source = folder / "corpus"
    source.mkdir()
    n_files, n_each = options.copies, len(texts)
    texts += [" ".join(f"{word}{'abcdefgh'[k]}" for word in text.split()) for k in range(n_files - 1) for text in texts]
    for k in range(n_files):
        mine = range(k * n_each, (k + 1) * n_each)
        lines = (json.dumps({"id": str(d), "text": texts[d]}, ensure_ascii=False) + "\n" for d in mine)
        (source / f"{k}.jsonl").write_text("".join(lines), encoding="utf-8")
    python = os.environ.get("EVALKIT_DATATROVE_PYTHON") or peer_environment("peer-datatrove", REQUIREMENTS) / "python"
    script = folder / "peer.py"
    script.write_text(PEER)
    outs: dict[str, list[Path]] = {"evalkit": [], "datatrove": []}

    def evalkit() -> float:
        out = folder / f"evalkit-{len(outs['evalkit'])}"
        outs["evalkit"].append(out)
        command = [sys.executable, "-m", "evalkit.cli", "dedup", "--corpus", source, "--out", out, "--json"]
        wanted = ["--threshold", THRESHOLD, "--bands", f"{BANDS.n_bands}x{BANDS.n_rows}", "--write", f"{out}-kept"]
        return time_command([*command, *wanted, "--workers", options.workers], {"PYTHONPATH": str(ROOT)})

    def datatrove() -> float:
        out = folder / f"datatrove-{len(outs['datatrove'])}"
        outs["datatrove"].append(out)
        return time_command([python, script, source, out, n_files, options.workers, BANDS.n_bands, BANDS.n_rows, SIZE])

    evalkit()  # compiles
    seen: dict[str, list[float]] = {"evalkit": [], "datatrove": []}
    for _ in range(options.runs):
        seen["datatrove"].append(datatrove())
        seen["evalkit"].append(evalkit())
    seconds = {name: float(np.median(values)) for name, values in seen.items()}
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    show(
        f"{len(texts):,} documents, {megabytes:.0f} MB, {BANDS.n_bands} bands of {BANDS.n_rows}, "
        f"{options.workers} processes",
        ("side", "median", "documents/s"),
        [(name, f"{one:.2f} s", f"{len(texts) / one:,.0f}") for name, one in seconds.items()],
    )
    ratio = seconds["datatrove"] / seconds["evalkit"]
    print(f"speedup: {ratio:.1f}x")
    told = compare(texts, n_each, outs["evalkit"][-1], outs["datatrove"][-1])
    for name, value in told.items():
        print(f"{name}: {value}")
    return {
        "n_documents": len(texts),
        "n_workers": options.workers,
        "text_mb": round(megabytes, 1),
        **{f"{name}_s": round(one, 2) for name, one in seconds.items()},
        "speedup": round(ratio, 2),
        **told,
    }


def compare(texts: list[str], n_each: int, ours: Path, theirs: Path) -> dict[str, Any]:
    """Explain every pair of different texts that one side alone has, or end the benchmark."""
    first: dict[str, int] = {}
    equal = [first.setdefault(text, number) for number, text in enumerate(texts)]
    table = pq.read_table(ours / PAIRS_FILE)
    mine = set(zip(table["one"].to_pylist(), table["other"].to_pylist(), strict=True))
    members = defaultdict(set)
    for number in range(len(texts) // n_each):
        path = theirs / "remove" / f"{number:06d}.clusters"
        rows = np.fromfile(path, dtype="<u4").reshape(-1, 2) if path.exists() else np.empty((0, 2), dtype=np.uint32)
        for document, cluster in rows.tolist():
            members[cluster].add(equal[document + number * n_each])
    clustered = {pair for group in members.values() for pair in itertools.combinations(sorted(group), 2)}
    sets: dict[int, set[bytes]] = {}

    def similarity(pair: tuple[int, int]) -> float:
        one, other = (sets.setdefault(k, shingles_of(texts[k], Shingling("words", SIZE))) for k in pair)
        return len(one & other) / len(one | other)

    values = {pair: similarity(pair) for pair in mine | clustered}
    true = {pair: value for pair, value in values.items() if value >= THRESHOLD}
    missed = np.array([1 - BANDS.probability(value) for value in true.values()])
    only_theirs, only_ours = sorted(true.keys() - mine), sorted(mine - clustered)
    if not mine <= true.keys():
        sys.exit("evalkit has a pair that is not similar")
    for one, other in only_theirs:
        signatures = sign([texts[one], texts[other]]).signatures[:, : BANDS.n_bands * BANDS.n_rows]
        if (np.equal(*signatures).reshape(BANDS.n_bands, -1)).all(axis=1).any():
            sys.exit("evalkit has missed a pair that shares a band")
    return {
        "n_similar_pairs": len(true),
        "n_pairs_evalkit": len(mine),
        "n_pairs_datatrove": len(clustered & true.keys()),
        "n_missed_evalkit": len(only_theirs),
        "n_missed_datatrove": len(only_ours),
        "n_missed_expected": round(float(missed.sum()), 1),
        "n_below_threshold_evalkit": len(mine - true.keys()),
        "n_below_threshold_datatrove": len(clustered - true.keys()),
    }


# --- Ten million signatures ---


def millions(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory, disk and recall on synthetic signatures."""
    folder.mkdir()
    n, bands = options.signatures, f"{BANDS.n_bands}x{BANDS.n_rows}"
    command = [sys.executable, Path(__file__).with_name("dedup_shuffle.py"), folder, n, options.workers]
    done = subprocess.run(
        [*map(str, command), str(options.memory << 20), bands],
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    rows, recall = [], {}
    for similarity, n_found in zip(SIMILARITIES, told["found"], strict=True):
        theory = float(BANDS.probability(similarity))
        share = n_found / told["n_planted"]
        error = sqrt(theory * (1 - theory) / told["n_planted"])
        rows.append((f"{similarity:.2f}", f"{share:.5f}", f"{theory:.5f}", f"{error:.5f}"))
        recall[f"recall_{similarity}"] = round(share, 6)
        recall[f"theory_{similarity}"] = round(theory, 6)
        if abs(share - theory) > 4 * error + 1 / told["n_planted"]:
            sys.exit(f"at {similarity} a share of {share} is found, and the theory says {theory}")
    if told["n_not_planted"] or told["n_equal"] != told["n_equal_planted"]:
        sys.exit(f"pairs that nobody planted, or exact copies that were not found: {told}")
    driver, worker, disk = (told[name] / 2**30 for name in ("driver_bytes", "worker_bytes", "disk_bytes"))
    show(
        f"{n:,} signatures, {told['n_planted']:,} pairs of each similarity, {options.workers} workers of "
        f"{options.memory} MiB: {told['seconds']:.0f} s; own memory {driver:.2f} GiB (driver), {worker:.2f} GiB "
        f"(largest worker); files {disk:.1f} GiB",
        ("similarity", "found", "theory", "standard error"),
        rows,
    )
    show("steps", ("step", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in told["steps"].items()])
    return {
        "n_signatures": n,
        "signatures_s": round(told["seconds"], 1),
        "steps_s": told["steps"],
        "driver_memory_gib": round(driver, 3),
        "worker_memory_gib": round(worker, 3),
        "disk_gib": round(disk, 2),
        "n_not_planted": told["n_not_planted"],
        "n_equal": told["n_equal"],
        **recall,
    }


if __name__ == "__main__":
    main()
