"""Seconds for an audit of 100,000 verdicts, as a user gives it.

python benchmarks/judge_audit.py --json

The verdicts are of three judges on ten pairs of five models and 800 questions, in both orders, a tenth of them twice,
with lengths and human labels for a tenth, in a Parquet file and as JSON lines. Reading, every bias by pair of models,
the panel and the ratings are in the time, from the start of Python to the last line of JSON. The bar is 10 seconds.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from harness import alternate, arguments, finish, show, time_command

from evalkit import tables

N_QUESTIONS, MODELS, JUDGES = 1515, ("ant", "bee", "cat", "dog", "elk"), ("first", "second", "third")


def verdicts() -> object:
    """Make a table of about 100,000 verdicts of judges that lean to the first answer more or less."""
    rng = np.random.default_rng(0)
    pairs = [(q, a, b) for q in range(N_QUESTIONS) for a, b in combinations(range(len(MODELS)), 2)]
    question, a, b = np.array(pairs).T
    strength = np.linspace(-1, 1, len(MODELS))
    merit = strength[b] - strength[a] + rng.normal(size=len(pairs))
    lengths = rng.integers(100, 3000, size=(len(pairs), 2))
    label = np.where(rng.random(len(pairs)) < 0.1, np.where(merit > 0, "b", "a"), "")
    columns: dict[str, list[object]] = {name: [] for name in tables.VERDICTS.schema.names}
    for number, judge in enumerate(JUDGES):
        for order in (0, 1):
            for repeat in (0, 1):
                some = np.arange(len(pairs)) if not repeat else np.arange(0, len(pairs), 10)
                logit = merit[some] + number * (order - 0.5)
                winner = np.where(rng.random(len(some)) < 1 / (1 + np.exp(-logit)), "b", "a")
                made = {
                    "judge": [judge] * len(some),
                    "pair_id": [f"{question[i]}: {a[i]} {b[i]}" for i in some],
                    "repeat": [repeat] * len(some),
                    "model_a": [MODELS[a[i]] for i in some],
                    "model_b": [MODELS[b[i]] for i in some],
                    "winner": winner.tolist(),
                    "order": [("ab", "ba")[order]] * len(some),
                    "doc_hash": [f"question {question[i]}" for i in some],
                    "length_a": lengths[some, 0].tolist(),
                    "length_b": lengths[some, 1].tolist(),
                    "label": [str(label[i]) or None for i in some],
                }
                for name, values in columns.items():
                    values.extend(made.get(name, [None] * len(some)))
    return tables.from_columns(tables.VERDICTS, columns)


def main() -> None:
    """Time the command on both kinds of files."""
    options = arguments(__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3, help="timed runs of each side (default: 3)")
    given = options.parse_args()
    table = verdicts()
    with tempfile.TemporaryDirectory() as folder:
        parquet, lines = Path(folder) / "verdicts.parquet", Path(folder) / "verdicts.jsonl"
        tables.write(parquet, table, tables.VERDICTS)
        table.to_pandas().to_json(lines, orient="records", lines=True)
        command = [sys.executable, "-m", "evalkit.cli", "judge", "--json", "--verdicts"]
        seconds = alternate(
            {
                "parquet": lambda: time_command([*command, parquet]),
                "jsonl": lambda: time_command([*command, lines]),
            },
            given.runs,
        )
    show(
        f"evalkit judge --verdicts, {table.num_rows:,} verdicts",
        ("file", "seconds"),
        [(name, f"{value:.2f}") for name, value in seconds.items()],
    )
    finish(given, {"n_verdicts": table.num_rows, **{f"audit_{k}_s": round(v, 2) for k, v in seconds.items()}})


if __name__ == "__main__":
    main()
