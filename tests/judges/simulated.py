"""Judges with planted biases, as rows of the verdicts table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from scipy import special

from evalkit import tables
from evalkit.judges.pairs import Pairs, pairs_of


def judge_table(
    n: int,
    *,
    seed: int = 0,
    position: float = 0.0,
    both_ways: float = 0.0,
    quality: float = 0.0,
    spread: float = 1.0,
    noise: float = 1.0,
    per_100: float = 0.0,
    ties: float = 0.0,
    repeats: float = 0.1,
    labels: float = 0.0,
    own: float = 0.0,
    failures: float = 0.0,
    models: tuple[str, str] = ("a-model", "b-model"),
    judge: str = "judge",
) -> pa.Table:
    """Verdicts of one judge.

    B's log odds of a win are (quality + spread z + per_100 d / 100 + own ± position / 2) / noise, z the pair's own
    difference, d the characters that B has more, and position what being shown first is worth; besides, on half of the
    pairs it gains `both_ways`, and on the others it costs as much.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    lengths = rng.integers(200, 1200, size=(n, 2))
    gap = (lengths[:, 1] - lengths[:, 0]) / 100
    merit = quality + spread * z
    human = np.where(rng.random(n) < special.expit(merit), "b", "a")
    labelled = rng.random(n) < labels
    repeated = rng.permutation(n)[: int(np.ceil(repeats * n))]
    pair, order, repeat = [], [], []
    for r, some in ((0, np.arange(n)), (1, repeated)):
        for o in (0, 1):
            pair.append(some)
            order.append(np.full(len(some), o))
            repeat.append(np.full(len(some), r))
    pair, order, repeat = map(np.concatenate, (pair, order, repeat))
    pull = position + both_ways * np.where(np.random.default_rng([seed, 1]).random(n) < 0.5, 1.0, -1.0)
    # Two judges of one seed see the same pairs, and judge them by themselves.
    rng = np.random.default_rng([seed, *judge.encode()])
    logit = (merit[pair] + per_100 * gap[pair] + own + pull[pair] * (order - 0.5)) / noise
    winner = np.where(rng.random(len(pair)) < special.expit(logit), "b", "a").astype(object)
    winner[rng.random(len(pair)) < ties] = "tie"
    winner[rng.random(len(pair)) < failures] = "error"
    return tables.from_columns(
        tables.VERDICTS,
        {
            "judge": [judge] * len(pair),
            "pair_id": [f"pair {one}" for one in pair],
            "repeat": repeat,
            "model_a": [models[0]] * len(pair),
            "model_b": [models[1]] * len(pair),
            "winner": winner,
            "order": np.where(order == 0, "ab", "ba"),
            "length_a": lengths[pair, 0],
            "length_b": lengths[pair, 1],
            "label": [str(human[one]) if labelled[one] else None for one in pair],
        },
    )


def many(n: int, repetitions: int, *, judge: str = "judge", **planted: Any) -> list[Pairs]:
    """Draw `repetitions` times n pairs of `judge_table`, at once, which is quicker."""
    pairs = pairs_of(judge_table(n * repetitions, judge=judge, **planted))[judge]
    return [pairs.take(some) for some in np.split(np.arange(len(pairs)), repetitions)]


def true_lead(position: float, *, quality: float = 0.0, spread: float = 1.0, noise: float = 1.0) -> float:
    """P(first) - P(second) of `judge_table` without length effects, by quadrature over the pairs."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    merit = quality + spread * nodes
    b_first = special.expit((merit + position / 2) / noise)
    b_second = special.expit((merit - position / 2) / noise)
    return float(weights @ (b_first - b_second) / weights.sum())


def true_excess(position: float, *, quality: float = 0.0, spread: float = 1.0, noise: float = 1.0) -> float:
    """Mean (p - q)^2 over pairs, p and q the chances of B in either order."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    merit = quality + spread * nodes
    gap = special.expit((merit + position / 2) / noise) - special.expit((merit - position / 2) / noise)
    return float(weights @ gap**2 / weights.sum())
