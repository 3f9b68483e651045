"""MinHash signatures of real documents: evalkit beside datasketch and rensa, 128 permutations, one processor.

python benchmarks/minhash_speed.py --json

The documents are the first 20,000 of the real corpus, the shingles five words.

- *datasketch*: `MinHash.bulk` from ready shingles (lists of bytes), with its default hash SHA-1 and again with XXH32.
  evalkit begins with the same shingles, in an Arrow array, and uses the same hash; the signatures must be equal bit for
  bit, or the benchmark fails.
- *rensa*: `RMinHash`, fed by a plain Python shingler (lower case, a regular expression for words, joined windows) from
  the texts. evalkit begins with the same texts, as they come from its reader, and normalises all of Unicode. Its
  signatures are datasketch's; rensa's are its own.

Each side uses one processor. With "2 threads" it is evalkit in two threads, each with half of the documents: its
kernels release the interpreter's lock, and the others do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from harness import alternate, arguments, finish, peer_environment, show
from models import DATA
from planting import read_documents

from evalkit.dedup.shingles import Shingling, shingles_of
from evalkit.dedup.signatures import HashName, MinHashing, hash_function, sign, sign_shingles

N_DOCUMENTS, NUM_PERM, SIZE = 20_000, 128, 5
RENSA = ["rensa==0.5.0"]

# Runs where rensa is: reads the texts, and prints the seconds of the shingler and of the signatures after the word GO.
RENSA_SIDE = """
import json, re, sys, time
from rensa import RMinHash
n, num_perm = int(sys.argv[2]), int(sys.argv[3])
texts = json.load(open(sys.argv[1], encoding="utf-8"))
find = re.compile(r"[^\\W_]+").findall
for _ in sys.stdin:
    begun = time.perf_counter()
    sets = []
    for text in texts:
        words = find(text.lower())
        sets.append({" ".join(words[k : k + n]) for k in range(max(min(len(words), 1), len(words) - n + 1))})
    sets = [list(one) for one in sets]
    shingled = time.perf_counter()
    signatures = []
    for shingles in sets:
        one = RMinHash(num_perm, 1)
        one.update(shingles)
        signatures.append(one.digest())
    print(json.dumps([shingled - begun, time.perf_counter() - shingled]), flush=True)
"""


def main() -> None:
    """Measure all sides in turn and print signatures a second and ratios."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each side, of which the median counts (default 5)")
    parser.add_argument("--documents", type=int, default=N_DOCUMENTS, help=f"documents (default {N_DOCUMENTS:,})")
    options = parser.parse_args()
    texts = read_documents(DATA)[: options.documents]
    seconds, figures = measure(texts, options.runs)
    n = len(texts)
    ratios = {
        "datasketch_speedup": seconds["datasketch sha1"] / seconds["evalkit shingles sha1"],
        "datasketch_xxh32_speedup": seconds["datasketch xxh32"] / seconds["evalkit shingles xxh32"],
        "datasketch_speedup_2_threads": seconds["datasketch sha1"] / seconds["evalkit shingles sha1, 2 threads"],
        "rensa_speedup": seconds["rensa text"] / seconds["evalkit text sha1"],
        "rensa_xxh32_speedup": seconds["rensa text"] / seconds["evalkit text xxh32"],
    }
    rows = [(name, f"{n / one:,.0f}", f"{one:.3f} s") for name, one in seconds.items()]
    show(f"{n:,} documents, {figures['n_shingles']:,} shingles", ("side", "signatures/s", "median"), rows)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}x")
    speeds = {f"{name.replace(', ', '_').replace(' ', '_')}_per_s": round(n / one, 1) for name, one in seconds.items()}
    finish(options, {**figures, **speeds, **{name: round(ratio, 2) for name, ratio in ratios.items()}})


def measure(texts: list[str], n_runs: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each side, and what was worked on."""
    shingling = Shingling("words", SIZE)
    sets = [sorted(shingles_of(text, shingling)) for text in texts]
    array = pa.array(sets, type=pa.large_list(pa.large_binary()))
    strings = pa.array(texts, type=pa.large_string())
    how: dict[HashName, MinHashing] = {
        name: MinHashing(shingling, NUM_PERM, hash_name=name) for name in ("sha1", "xxh32")
    }
    for name, one in how.items():
        some = min(500, len(sets))
        made = MinHash.bulk(sets[:some], num_perm=NUM_PERM, hashfunc=hash_function(name))
        theirs = np.array([minhash.hashvalues for minhash in made])
        if not (
            np.array_equal(theirs, sign_shingles(array[:some], one))
            and np.array_equal(theirs, sign(strings[:some], one).signatures)
        ):
            sys.exit(f"the signatures with {name} are not those of datasketch")

    def in_threads() -> None:
        half = len(array) // 2
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda part: sign_shingles(part, how["sha1"]), (array[:half], array[half:])))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        python = peer_environment("peer-rensa", RENSA) / "python"
        command = [str(python), "-c", RENSA_SIDE, str(path), str(SIZE), str(NUM_PERM)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            shingling_s: list[float] = []

            def rensa() -> float:
                assert process.stdin and process.stdout
                process.stdin.write("GO\n")
                process.stdin.flush()
                shingled, signed = json.loads(process.stdout.readline())
                shingling_s.append(shingled)
                return float(shingled + signed)

            seconds = alternate(
                {
                    "datasketch sha1": timed(lambda: MinHash.bulk(sets, num_perm=NUM_PERM)),
                    "datasketch xxh32": timed(
                        lambda: MinHash.bulk(sets, num_perm=NUM_PERM, hashfunc=hash_function("xxh32"))
                    ),
                    "evalkit shingles sha1": timed(lambda: sign_shingles(array, how["sha1"])),
                    "evalkit shingles xxh32": timed(lambda: sign_shingles(array, how["xxh32"])),
                    "evalkit shingles sha1, 2 threads": timed(in_threads),
                    "rensa text": rensa,
                    "evalkit text sha1": timed(lambda: sign(strings, how["sha1"])),
                    "evalkit text xxh32": timed(lambda: sign(strings, how["xxh32"])),
                },
                n_runs,
            )
            assert process.stdin
            process.stdin.close()
    return seconds, {
        "n_documents": len(texts),
        "n_shingles": len(array.values),
        "text_mb": round(sum(len(text.encode()) for text in texts) / 1e6, 1),
        "rensa_shingling_s": round(float(np.median(shingling_s)), 3),
    }


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A side that measures one piece of work."""

    def side() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return side


if __name__ == "__main__":
    main()
