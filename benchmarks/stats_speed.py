"""Cluster bootstrap of a paired difference beside scipy.stats.bootstrap; complete `evalkit compare` and `report`.

python benchmarks/stats_speed.py --json

The bootstrap is of 14,042 items, 10,000 resamples. Both resample the same units and take percentile and BCa intervals
of the same statistic at the same level. scipy gets what suits it best: totals by cluster that were added up beforehand,
a vectorised statistic, and the quickest of four batch sizes. evalkit starts from the items' scores and cluster names.
"Right or wrong" is the usual case, scores of 0 and 1; "graded" has a score of its own for every item, so that no two
clusters are alike, which is the worst case.

The comparison is of two models on 57 tasks of 250 items under 5 seeds each: the command as a user gives it, from the
start of Python to the last line of JSON, in clusters of five items, with a margin; and the report of the same as a page
with all figures and all items, which must be written in under 20 seconds.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from harness import alternate, arguments, finish, show, time_command
from scipy import stats

from evalkit import tables
from evalkit.files import write_json
from evalkit.stats.bootstrap import bootstrap_mean

N_ITEMS, N_RESAMPLES = 14_042, 10_000
BATCHES = (10, 30, 100, 1000)
N_TASKS, N_TASK_ITEMS, N_SEEDS = 57, 250, 5
MOST_SECONDS = 20


def scores(graded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Differences B - A of items in clusters of 1 to 9 whose difficulty is shared."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(N_ITEMS), rng.integers(1, 10, size=N_ITEMS))[:N_ITEMS]
    difficulty = rng.normal(size=N_ITEMS)[clusters] + rng.normal(size=N_ITEMS)
    a, b = (difficulty + shift + rng.normal(size=N_ITEMS) for shift in (0.5, 0.55))
    return (b - a, clusters) if graded else ((b > 0).astype(float) - (a > 0), clusters)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def theirs(difference: np.ndarray, clusters: np.ndarray | None, method: str) -> Callable[[int], object]:
    """scipy's bootstrap of the same statistic, as a function of its batch size."""
    if clusters is None:
        return lambda batch: stats.bootstrap(
            (difference,), np.mean, n_resamples=N_RESAMPLES, method=method, batch=batch, rng=1
        )
    sums, sizes = np.bincount(clusters, weights=difference), np.bincount(clusters)

    def mean(units: np.ndarray, axis: int) -> np.ndarray:
        return sums[units].sum(axis=axis) / sizes[units].sum(axis=axis)

    units = np.arange(len(sums))
    return lambda batch: stats.bootstrap(
        (units,), mean, n_resamples=N_RESAMPLES, method=method, batch=batch, vectorized=True, rng=1
    )


def write_run(folder: Path, shift: float) -> Path:
    """Write a run whose items have a difficulty of their own, alike for all models, in clusters of five."""
    shape = (N_TASKS, N_TASK_ITEMS, N_SEEDS)
    difficulty = np.random.default_rng(0).normal(size=shape[:2])[:, :, None]
    rng = np.random.default_rng(int(1000 * shift))
    right = difficulty + shift + 0.05 * rng.normal(size=N_SEEDS) + rng.normal(size=shape) > 0
    task, item, seed = (of.ravel() for of in np.indices(shape))
    documents = [f"{t}-{i}" for t, i in zip(task, item, strict=True)]
    columns = {
        "run_id": [f"{folder.name}:seed{s}" for s in seed],
        "task": [f"task{t}" for t in task],
        "doc_id": item,
        "repeat": np.zeros_like(item),
        "filter": ["none"] * right.size,
        "metric": ["acc"] * right.size,
        "model": [folder.name] * right.size,
        "seed": seed,
        "doc_hash": documents,
        "prompt_hash": [f"{document}-{s}" for document, s in zip(documents, seed, strict=True)],
        "cluster": [f"passage {i // 5}" for i in item],
        "score": right.ravel().astype(float),
        "response": ["an answer"] * right.size,
    }
    tables.write(folder / "samples.parquet", tables.from_columns(tables.SAMPLES, columns), tables.SAMPLES)
    metrics = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": True}]}
    write_json(folder / "run.json", {"name": folder.name, "tasks": {f"task{t}": metrics for t in range(N_TASKS)}})
    return folder


def command_seconds(n_runs: int) -> dict[str, float]:
    """Median wall times of the whole commands."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [write_run(Path(folder) / name, shift) for name, shift in (("base", 0.3), ("new", 0.35))]
        last = {"compare": ["--json"], "report": ["--out", Path(folder) / "report.html"]}
        return alternate(
            {
                name: partial(
                    time_command, [sys.executable, "-m", "evalkit.cli", name, *runs, "--margin", "0.01", *more]
                )
                for name, more in last.items()
            },
            n_runs,
        )


def main() -> None:
    """Time both on each kind of scores and print the ratios; the smallest of right or wrong in clusters counts."""
    options = arguments(__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=5, help="timed runs of each side (default: 5)")
    given = options.parse_args()
    cases = [
        ("right or wrong, clusters", False, True, "percentile"),
        ("right or wrong, clusters", False, True, "BCa"),
        ("right or wrong, items", False, False, "percentile"),
        ("graded, clusters", True, True, "percentile"),
        ("graded, items", True, False, "percentile"),
    ]

    def ours(case: tuple[str, bool, bool, str]) -> object:
        difference, clusters = scores(case[1])
        found = bootstrap_mean(
            difference, cluster=clusters if case[2] else None, method=case[3].lower(), n_resamples=N_RESAMPLES
        )
        bootstrap_mean(difference, cluster=clusters if case[2] else None, n_resamples=N_RESAMPLES)
        return found

    # Before scipy runs, so that the peak is ours: all cases, and the studentised interval of each.
    found = [ours(case) for case in cases]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows, ratios = [], []
    for case, one in zip(cases, found, strict=True):
        name, graded, in_clusters, method = case
        difference, clusters = scores(graded)
        groups = clusters if in_clusters else None
        run = theirs(difference, groups, method)
        batch = min(BATCHES, key=lambda size, run=run: seconds(partial(run, size)))
        times = alternate(
            {
                "evalkit": lambda groups=groups, method=method, difference=difference: seconds(
                    lambda: bootstrap_mean(difference, cluster=groups, method=method.lower(), n_resamples=N_RESAMPLES)
                ),
                "scipy": lambda run=run, batch=batch: seconds(partial(run, batch)),
            },
            given.runs,
        )
        interval = run(batch).confidence_interval
        apart = max(abs(one.low - interval.low), abs(one.high - interval.high)) / (interval.high - interval.low)
        ratios.append(times["scipy"] / times["evalkit"])
        rows.append(
            (
                f"{name}, {method}",
                f"{1000 * times['evalkit']:.1f} ms",
                f"{1000 * times['scipy']:.0f} ms (batch {batch})",
                f"{ratios[-1]:.1f}x",
                f"{apart:.1%} of the width",
            )
        )
    show(f"{N_ITEMS} items, {N_RESAMPLES} resamples", ("case", "evalkit", "scipy", "ratio", "ends differ by"), rows)
    of_commands = command_seconds(given.runs)
    for name, took in of_commands.items():
        print(f"evalkit {name}, {N_TASKS} tasks x {N_TASK_ITEMS} items x {N_SEEDS} seeds: {took:.2f} s")
    print(f"peak memory of evalkit, with Python and its libraries: {peak:.0f} MB")
    finish(
        given,
        {
            "bootstrap_speedup": round(min(ratios[:2]), 2),
            "bootstrap_speedup_items": round(ratios[2], 2),
            "bootstrap_speedup_graded_clusters": round(ratios[3], 2),
            "bootstrap_speedup_graded_items": round(ratios[4], 2),
            "bootstrap_peak_mb": round(peak, 1),
            **{f"{name}_seconds": round(took, 2) for name, took in of_commands.items()},
        },
    )
    if of_commands["report"] > MOST_SECONDS:
        raise SystemExit(f"the report takes more than {MOST_SECONDS} s")


if __name__ == "__main__":
    main()
