"""Seconds for an audit of 100,000 verdicts, as a user gives it; and how often the verdicts on position are right.

python benchmarks/judge_audit.py --json
python benchmarks/judge_audit.py --simulate 300

The verdicts are of three judges on ten pairs of five models and 800 questions, in both orders, a tenth of them twice,
with lengths and human labels for a tenth, in a Parquet file and as JSON lines. Reading, every bias by pair of models,
the panel and the ratings are in the time, from the start of Python to the last line of JSON. The bar is 10 seconds.

With `--simulate` nothing is timed: judges with known position effects judge that many samples each, and the table of
docs/judge.md is printed.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from harness import ROOT, alternate, arguments, finish, show, time_command

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


SIMULATED = {
    "fair, 100 pairs": (100, {}),
    "fair and very noisy, 100 pairs": (100, {"noise": 4.0}),
    "fair and nearly without noise, 300 pairs": (300, {"noise": 0.1}),
    "first position gains 1 in log odds, 300 pairs": (300, {"position": 1.0}),
    "gains 3, 300 pairs": (300, {"position": 3.0}),
    "gains 3 on half of the pairs, costs 3 on the others, 300 pairs": (300, {"both_ways": 3.0}),
    "fair, half of 2,000 pairs repeated": (2000, {"repeats": 0.5}),
}


def simulate(n: int) -> dict[str, float]:
    """Print how often judges are called biased or not, and how often intervals hold the true value."""
    sys.path.insert(0, str(ROOT))
    from evalkit.judges.position import position_bias
    from tests.judges.simulated import many, true_excess, true_lead

    rows, figures = [], {}
    for name, (n_pairs, planted) in SIMULATED.items():
        known = {key: value for key, value in planted.items() if key in ("position", "noise")}
        lead = true_lead(**{"position": 0.0} | known)
        excess = true_excess(**{"position": planted.get("both_ways", 0.0)} | known)
        found = [position_bias(one) for one in many(n_pairs, n, **planted)]
        shares = (
            np.mean([one.sign == "biased" for one in found]),
            np.mean([one.sign == "no sign, adequate power" for one in found]),
            np.mean([one.bias.low <= lead <= one.bias.high for one in found]),
            np.mean([one.excess.low <= excess <= one.excess.high for one in found]),
        )
        rows.append((name, *(f"{share:.1%}" for share in shares)))
        figures[name] = round(float(shares[0]), 4)
    show(
        f"{n} simulations each, 10% repeated unless said",
        ("judge", "called biased", "called no sign", "lead within its 95% interval", "excess within"),
        rows,
    )
    return figures


def main() -> None:
    """Time the command on both kinds of files."""
    options = arguments(__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3, help="timed runs of each side (default: 3)")
    options.add_argument("--simulate", type=int, metavar="N", help="instead, simulate each kind of judge N times")
    given = options.parse_args()
    if given.simulate:
        finish(given, simulate(given.simulate))
        return
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
