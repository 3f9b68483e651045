"""Coverage of every interval and size of every test, over a grid; writes docs/validity.md.

python benchmarks/validity.py           # the whole grid, a few minutes
python benchmarks/validity.py --light   # fewer cells and repetitions; writes nothing, fails if a default is off

Where the outcomes can be enumerated the figures are exact, otherwise they are simulated with fixed seeds. A figure of a
recommended method is a failure if it is off nominal by more than three Monte-Carlo standard errors of the
repetitions (exact figures: by more than 0.005) on the wrong side: coverage below, or size above. A cell that looks so
is simulated again, five times as often, and that figure counts. Failures are in bold, those of other methods too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from harness import arguments, finish
from scipy import stats

from evalkit.stats import few_units
from evalkit.stats.bootstrap import bootstrap_mean
from evalkit.stats.components import crossed, crossed_difference
from evalkit.stats.discordance import discordant_p_value, proportion_difference
from evalkit.stats.means import clustered_mean, mean_score
from evalkit.stats.paired import paired_difference, unpaired_difference
from evalkit.stats.permutation import mean_difference_test, sign_flip
from evalkit.stats.proportions import proportion
from evalkit.stats.repeats import repeated_mean

PAGE = Path(__file__).resolve().parent.parent / "docs" / "validity.md"
NOMINAL, LEVEL = 0.95, 0.05
EXACT_SLACK = 0.005

Rng = np.random.Generator


@dataclass
class Table:
    """One table: a row for each cell of the grid, a column for each method."""

    title: str
    note: str
    cell: tuple[str, ...]
    methods: tuple[str, ...]
    recommended: tuple[str, ...]
    size: bool = False
    """Whether the figures are sizes of tests, which should not be above 0.05, rather than coverages."""
    n_runs: int | None = None
    """Repetitions of each cell; None if exact."""
    rows: list[tuple[tuple[str, ...], list[float]]] = field(default_factory=list)

    def bad(self, value: float) -> bool:
        """Whether a figure is on the wrong side of nominal, beyond chance."""
        nominal = LEVEL if self.size else NOMINAL
        slack = 3 * math.sqrt(NOMINAL * LEVEL / self.n_runs) if self.n_runs else EXACT_SLACK
        return value > nominal + slack if self.size else value < nominal - slack

    def add(self, cell: tuple[str, ...], seed: Sequence[int], one_run: Callable[[Rng], Sequence[bool]]) -> None:
        """Simulate a cell; where a recommended method looks off, five times as often with other seeds, and keep that.

        With some hundreds of cells one in 740 looks off by three standard errors although it is right.
        """
        values = simulate(self.n_runs, seed, one_run)
        chosen = [value for name, value in zip(self.methods, values, strict=True) if name in self.recommended]
        if any(map(self.bad, chosen)):
            values = simulate(5 * self.n_runs, seed, one_run, begin=1)
        self.rows.append((cell, values))

    def failures(self) -> list[str]:
        """Cells in which a recommended method fails."""
        return [
            f"{method} at {', '.join(f'{n} {v}' for n, v in zip(self.cell, cell, strict=True))}: {value:.3f}"
            for cell, values in self.rows
            for method, value in zip(self.methods, values, strict=True)
            if method in self.recommended and self.bad(value)
        ]

    def markdown(self) -> str:
        """The table with its note."""
        how = "exact" if self.n_runs is None else f"{self.n_runs:,} repetitions"
        head = [*self.cell, *(f"{m} (recommended)" if m in self.recommended else m for m in self.methods)]
        lines = [f"## {self.title}", "", f"{self.note} ({how})", "", "| " + " | ".join(head) + " |"]
        lines.append("|" + "---|" * len(head))
        for cell, values in self.rows:
            shown = [f"**{value:.3f}**" if self.bad(value) else f"{value:.3f}" for value in values]
            lines.append("| " + " | ".join([*cell, *shown]) + " |")
        return "\n".join(lines)


def covers(found: object, truth: float) -> bool:
    """Whether an interval holds the truth; one that is refused covers nothing."""
    return found.low is not None and found.low <= truth <= found.high


def simulate(n_runs: int, seed: Sequence[int], one_run: Callable[[Rng], Sequence[bool]], begin: int = 0) -> list[float]:
    """Share of runs in which each of several statements holds."""
    rng = np.random.default_rng([begin, *seed])
    return list(np.mean([one_run(rng) for _ in range(n_runs)], axis=0))


def some(light: bool, values: Sequence, few: Sequence) -> Sequence:
    """All cells, or a few of them."""
    return few if light else values


def one_proportion(light: bool, n_runs: int) -> Iterator[Table]:
    """Independent answers: exact coverage, averaged over a band of true proportions."""
    methods = {"default": None, "Wilson": "wilson", "Clopper-Pearson": "clopper-pearson", "Jeffreys": "jeffreys"}
    table = Table(
        "One proportion, independent items",
        "Averaged over true proportions p in a band, which takes out the jumps from one p to the next. The default is"
        " Wilson's interval with its ends mended for 1 to 3 rare answers, and Clopper and Pearson's below 10 items.",
        ("n", "p"),
        (*methods, "normal (Wald)"),
        ("default",),
    )
    worst = Table(
        "One proportion: the worst p",
        "The lowest coverage over p = .001, .002, ..., .999. Only Clopper and Pearson's interval holds at every single"
        ' p; take it (`method="clopper-pearson"`) where that is needed.',
        ("n",),
        (*methods, "normal (Wald)"),
        ("Clopper-Pearson",),
    )
    bands = [(0.5, 0.6), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 0.98), (0.98, 1.0)]
    for n in some(light, (5, 10, 20, 30, 50, 100, 300, 1000), (10, 100)):
        counts = np.arange(n + 1)
        ends = []
        for method in methods.values():
            found = [proportion(int(k), n, method=method) for k in counts]
            ends.append([(one.low, one.high) for one in found])
        half = stats.norm.ppf(0.975) * np.sqrt(counts / n * (1 - counts / n) / n)
        ends.append(list(zip(counts / n - half, counts / n + half, strict=True)))

        def coverage(chances: np.ndarray, n: int = n, ends: list = ends, counts: np.ndarray = counts) -> np.ndarray:
            weights = stats.binom.pmf(counts[:, None], n, chances)
            inside = [(np.array(one)[:, :1] <= chances) & (chances <= np.array(one)[:, 1:]) for one in ends]
            return np.array([(weights * one).sum(axis=0) for one in inside])

        for low, high in some(light, bands, bands[::2]):
            row = coverage(np.linspace(low, high, 101)).mean(axis=1)
            table.rows.append(((str(n), f"{low:g} to {high:g}"), list(row)))
        worst.rows.append(((str(n),), list(coverage(np.linspace(0.001, 0.999, 999)).min(axis=1))))
    yield table
    yield worst


SHAPES: dict[str, tuple[Callable[[Rng, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "U-shaped, Beta(.5, .5)": (lambda rng, n: rng.beta(0.5, 0.5, size=n), 0.5),
    "towards 1, Beta(3, 1)": (lambda rng, n: rng.beta(3, 1, size=n), 0.75),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
}


def one_mean(light: bool, n_runs: int) -> Iterator[Table]:
    """Graded scores, independent items."""
    names = ("default", "t", "studentised bootstrap", "BCa", "percentile")
    table = Table(
        "One mean of graded scores, independent items",
        "The default is the wider of t and the studentised bootstrap below 100 items, with a tenth of the usual"
        " resamples here, and t from there on. The other bootstraps have 499 resamples.",
        ("n", "scores"),
        names,
        ("default",),
        n_runs=n_runs,
    )
    for i, n in enumerate(some(light, (10, 30, 60, 100), (30,))):
        for j, (shape, (draw, truth)) in enumerate(SHAPES.items()):

            def run(rng: Rng, n: int = n, draw: Callable = draw, truth: float = truth) -> list[bool]:
                scores, seed = draw(rng, n), int(rng.integers(2**31))
                boots = [
                    bootstrap_mean(scores, method=method, n_resamples=499, resampling_seed=seed)
                    for method in ("studentised", "bca", "percentile")
                ]
                return [covers(one, truth) for one in (mean_score(scores), clustered_mean(scores), *boots)]

            table.add((str(n), shape), (2, i, j), run)
    yield table


def cluster_sizes(rng: Rng, n_clusters: int, sizes: str) -> np.ndarray:
    """Sizes of clusters: 1 to 9, or one with half of the items."""
    drawn = rng.integers(1, 10, size=n_clusters)
    if sizes == "one holds half":
        drawn[0] = drawn[1:].sum()
    return drawn


def clusters_of_grades(light: bool, n_runs: int) -> Iterator[Table]:
    """Graded scores in clusters."""
    table = Table(
        "One mean, or a paired difference, of graded scores in clusters",
        "Normal scores with an intraclass correlation; skewed ones are below. CR2 has Bell and McCaffrey's degrees of"
        " freedom, CR1 and CR3 have G - 1. Below 5 clusters there is no interval. The default is the wider of CR2's and"
        " the studentised bootstrap's. The other bootstraps have 499 resamples.",
        ("clusters", "sizes", "ICC"),
        ("default", "CR2", "CR3", "CR1", "studentised bootstrap", "percentile bootstrap", "clusters ignored"),
        ("default", "CR2"),
        n_runs=n_runs,
    )
    cells = [
        (n_clusters, sizes, icc)
        for n_clusters in (5, 10, 20, 50)
        for sizes in ("1 to 9", "one holds half")
        for icc in (0.0, 0.1, 0.3, 0.6)
    ]
    for index, (n_clusters, sizes, icc) in enumerate(some(light, cells, cells[2::6])):

        def run(rng: Rng, n_clusters: int = n_clusters, sizes: str = sizes, icc: float = icc) -> list[bool]:
            clusters = np.repeat(np.arange(n_clusters), cluster_sizes(rng, n_clusters, sizes))
            own = rng.normal(size=len(clusters))
            scores = math.sqrt(icc) * rng.normal(size=n_clusters)[clusters] + math.sqrt(1 - icc) * own
            found = [clustered_mean(scores, clusters, estimator=one) for one in ("CR2", "CR3", "CR1")]
            found += [
                bootstrap_mean(
                    scores, cluster=clusters, method=m, n_resamples=499, resampling_seed=int(rng.integers(2**31))
                )
                for m in ("studentised", "percentile")
            ]
            found = [mean_score(scores, cluster=clusters), *found, clustered_mean(scores)]
            return [covers(one, 0.0) for one in found]

        table.add((str(n_clusters), sizes, f"{icc:g}"), (3, index), run)
    yield table


def rates(rng: Rng, rate: float, icc: float, n_clusters: int) -> np.ndarray:
    """Chances of clusters with an intraclass correlation of their answers: a beta distribution."""
    if icc == 0:
        return np.full(n_clusters, rate)
    k = (1 - icc) / icc
    return rng.beta(rate * k, (1 - rate) * k, size=n_clusters)


def clusters_of_answers(light: bool, n_runs: int) -> Iterator[Table]:
    """Right or wrong in clusters: one proportion."""
    table = Table(
        "One proportion in clusters",
        "Beta-binomial answers. The default is a score interval for the effective number of items; t is CR2's.",
        ("clusters", "largest", "p", "ICC"),
        ("default", "t"),
        ("default",),
        n_runs=n_runs,
    )
    cells = [
        (n_clusters, largest, rate, icc)
        for n_clusters in (5, 10, 20, 50)
        for largest in (9, 60)
        for rate in (0.6, 0.8, 0.95, 0.98)
        for icc in (0.0, 0.1, 0.3, 0.7)
    ]
    for index, (n_clusters, largest, rate, icc) in enumerate(some(light, cells, cells[5::16])):

        def run(rng: Rng, n_clusters=n_clusters, largest=largest, rate=rate, icc=icc) -> list[bool]:
            clusters = np.repeat(np.arange(n_clusters), rng.integers(1, largest + 1, size=n_clusters))
            right = (rng.random(len(clusters)) < rates(rng, rate, icc, n_clusters)[clusters]).astype(float)
            return [covers(mean_score(right, cluster=clusters), rate), covers(clustered_mean(right, clusters), rate)]

        name = (str(n_clusters), f"{largest} items", f"{rate:g}", f"{icc:g}")
        table.add(name, (4, index), run)
    yield table


def repeats(light: bool, n_runs: int) -> Iterator[Table]:
    """Several answers to each item."""
    table = Table(
        "Several answers to each item",
        "Items are right with chances of their own: uniform, or of a beta distribution. The default is a score interval"
        " with the error of the item means, t the t interval over item means; pooled rows count answers as items.",
        ("n", "answers", "chances"),
        ("default", "t", "pooled rows"),
        ("default",),
        n_runs=n_runs,
    )
    cells = [
        (n, k, shape) for n in (20, 50, 200) for k in (2, 4, 10) for shape in ("uniform", "Beta(6, 2)", "Beta(9.5, .5)")
    ]
    for index, (n, k, shape) in enumerate(some(light, cells, cells[1::5])):

        def run(rng: Rng, n: int = n, k: int = k, shape: str = shape) -> list[bool]:
            a, b = {"uniform": (1, 1), "Beta(6, 2)": (6, 2)}.get(shape, (9.5, 0.5))
            truth = a / (a + b)
            answers = (rng.random((n, k)) < rng.beta(a, b, size=(n, 1))).astype(float)
            found = repeated_mean(answers.ravel(), np.repeat(np.arange(n), k)).mean
            others = clustered_mean(answers.mean(axis=1)), clustered_mean(answers.ravel())
            return [covers(one, truth) for one in (found, *others)]

        table.add((str(n), str(k), shape), (5, index), run)
    yield table


def trinomial(n: int, p_a: float, p_b: float, phi: float) -> tuple[list[tuple[int, int]], np.ndarray]:
    """All discordant counts of two models with correlated answers, and their probabilities, but for one in 10^7."""
    both = p_a * p_b + phi * math.sqrt(p_a * (1 - p_a) * p_b * (1 - p_b))
    only_a, only_b = p_a - both, p_b - both
    tops = [int(stats.binom.isf(1e-8, n, share)) for share in (only_a, only_b)]
    counts = [(b, c) for b in range(tops[0] + 1) for c in range(min(tops[1], n - b) + 1)]
    chances = stats.multinomial.pmf([[b, c, n - b - c] for b, c in counts], n, [only_a, only_b, 1 - only_a - only_b])
    return counts, chances


def pairs_of_answers(light: bool, n_runs: int) -> Iterator[Table]:
    """Two models' answers to the same independent items: intervals and tests, both exact."""
    table = Table(
        "Difference of two models, right or wrong, independent items",
        "phi is the correlation of the answers.",
        ("n", "p of A and B", "phi"),
        ("Bonett-Price", "Tango", "paired t"),
        ("Bonett-Price",),
    )
    size = Table(
        "Tests that two models are right equally often",
        "Size at 0.05: how often equal models are called different. Clusters are in a table of their own below.",
        ("n", "p", "phi"),
        ("McNemar mid-p", "McNemar exact", "chi-squared"),
        ("McNemar mid-p", "McNemar exact"),
        size=True,
    )
    grid = [
        (n, p, phi) for n in (20, 50, 100, 200) for p in ((0.6, 0.7), (0.6, 0.63), (0.92, 0.95)) for phi in (0.3, 0.7)
    ]
    for n, (p_a, p_b), phi in some(light, grid, grid[1:14:4]):
        counts, chances = trinomial(n, p_a, p_b, phi)
        row = []
        for method in ("bonett-price", "tango"):
            found = [proportion_difference(b, c, n, method=method) for b, c in counts]
            row.append(sum(p for p, one in zip(chances, found, strict=True) if covers(one, p_b - p_a)))
        b, c = np.array(counts).T
        mean = (c - b) / n
        half = stats.t.ppf(0.975, n - 1) * np.sqrt(np.maximum((b + c) / n - mean**2, 0) / (n - 1))
        row.append(float(chances[(np.abs(mean - (p_b - p_a)) <= half) & (half > 0)].sum()))
        table.rows.append(((str(n), f"{p_a:g}, {p_b:g}", f"{phi:g}"), row))
        counts, chances = trinomial(n, p_a, p_a, phi)
        rejected = [
            [discordant_p_value(b, c) <= LEVEL, discordant_p_value(b, c, method="exact") <= LEVEL,
             b + c > 0 and (b - c) ** 2 / (b + c) >= stats.chi2.isf(LEVEL, 1)]
            for b, c in counts
        ]  # fmt: skip
        name = (str(n), f"{p_a:g}", f"{phi:g}")
        if name not in [cell for cell, _ in size.rows]:
            size.rows.append((name, list(chances @ np.array(rejected, dtype=float))))
    yield table
    yield size


def pairs_in_clusters(light: bool, n_runs: int) -> Iterator[Table]:
    """Two models' answers to items in clusters: intervals, and size of the sign-flip test."""
    table = Table(
        "Difference of two models, right or wrong, in clusters",
        "Beta-binomial answers; half of the items have the same luck in both models. The default adds a cluster of each"
        ' kind (`method="auto"`); t is CR2\'s interval.',
        ("clusters", "largest", "p of A and B", "ICC"),
        ("default", "t"),
        ("default",),
        n_runs=n_runs,
    )
    cells = [
        (n_clusters, largest, p, icc)
        for n_clusters in (5, 10, 20, 50)
        for largest in (9, 60)
        for p in ((0.6, 0.65), (0.9, 0.93), (0.96, 0.97))
        for icc in (0.0, 0.2, 0.5)
    ]
    for index, (n_clusters, largest, (p_a, p_b), icc) in enumerate(some(light, cells, cells[4::12])):

        def run(rng: Rng, n_clusters=n_clusters, largest=largest, p_a=p_a, p_b=p_b, icc=icc) -> list[bool]:
            clusters = np.repeat(np.arange(n_clusters), rng.integers(1, largest + 1, size=n_clusters))
            luck, other = rng.random((2, len(clusters)))
            luck_b = np.where(rng.random(len(clusters)) < 0.5, luck, other)
            a = (luck < rates(rng, p_a, icc, n_clusters)[clusters]).astype(float)
            b = (luck_b < rates(rng, p_b, icc, n_clusters)[clusters]).astype(float)
            return [covers(paired_difference(a, b, cluster=clusters, method=m), p_b - p_a) for m in ("auto", "t")]

        name = (str(n_clusters), f"{largest} items", f"{p_a:g}, {p_b:g}", f"{icc:g}")
        table.add(name, (6, index), run)
    yield table
    size = Table(
        "Test of a mean difference over clusters",
        "Size at 0.05. The default is the larger p value of sign flips, 999 random ones or all, and, for graded scores"
        " in fewer than 100 clusters, of the studentised bootstrap. Sign flips' own null hypothesis is a symmetric"
        " difference; for exponential clusters less their mean that does not hold. Beside it, how often the default"
        " interval leaves out zero.",
        ("clusters", "scores"),
        ("default", "default interval", "sign-flip, studentised", "clusters ignored (t)"),
        ("default", "default interval"),
        size=True,
        n_runs=n_runs,
    )
    for index, n_clusters in enumerate(some(light, (10, 30, 60, 100), (10,))):
        for shape in ("answers", "normal", "exponential"):

            def flip(rng: Rng, n_clusters: int = n_clusters, shape: str = shape) -> list[bool]:
                clusters = np.repeat(np.arange(n_clusters), rng.integers(1, 10, size=n_clusters))
                shared = rng.exponential(size=n_clusters) - 1 if shape == "exponential" else rng.normal(size=n_clusters)
                scores = shared[clusters] + rng.normal(size=len(clusters))
                if shape == "answers":
                    scores = np.where(np.abs(scores) > 1, np.sign(scores), 0.0)
                options = dict(cluster=clusters, n_resamples=999, resampling_seed=int(rng.integers(2**31)))
                tests = [test(scores, **options).p_value <= LEVEL for test in (mean_difference_test, sign_flip)]
                answers = (scores < 0).astype(float), (scores > 0).astype(float)
                a, b = answers if shape == "answers" else (np.zeros_like(scores), scores)
                found = paired_difference(a, b, cluster=clusters, method="auto")
                return [tests[0], not covers(found, 0.0), tests[1], not covers(clustered_mean(scores), 0.0)]

            size.add((str(n_clusters), shape), (7, index, len(shape)), flip)
    yield size


def seeds(light: bool, n_runs: int) -> Iterator[Table]:
    """Crossed items and seeds: each interval for its own question, and the usual one for the wrong question."""
    table = Table(
        "Items and seeds: the interval for each question",
        "Each interval against what it says it is for. The last column is the usual mistake: mean and standard error"
        " over seeds, read as if it spoke of other items, too.",
        ("items", "seeds", "seed SD"),
        ("new items, new seeds", "new items, these seeds", "these items, new seeds", "seeds only, for both"),
        ("new items, new seeds", "new items, these seeds", "these items, new seeds"),
        n_runs=n_runs,
    )
    spread = Table(
        "Standard deviation over seeds",
        "Intervals of the component, and of the SD of the seeds' mean scores on this test set.",
        ("items", "seeds", "seed SD"),
        ("component", "SD of means"),
        ("component", "SD of means"),
        n_runs=n_runs,
    )
    unmatched = Table(
        "Difference of two models with seeds of their own",
        "Seeds of A and B have nothing to do with each other.",
        ("items", "seeds of A, B", "seed SD"),
        ("new items, new seeds", "new items, these seeds", "these items, new seeds"),
        ("new items, new seeds", "new items, these seeds", "these items, new seeds"),
        n_runs=n_runs,
    )
    cells = [(n, s, sd) for n in (50, 500) for s in (2, 3, 5, 10) for sd in (0.0, 0.01, 0.05)]
    for index, (n, s, sd) in enumerate(some(light, cells, cells[1::7])):
        spreads = []

        def run(rng: Rng, n: int = n, s: int = s, sd: float = sd, spreads: list = spreads) -> list[bool]:
            items, own = 0.4 * rng.normal(size=n), sd * rng.normal(size=s)
            rest = 0.25 * rng.normal(size=(n, s))
            found = crossed(items[:, None] + own + rest)
            component, means = found.component("seed"), found.spreads[0]
            spreads.append((component.low <= sd <= component.high, means.low**2 <= sd**2 + 0.0625 / n <= means.high**2))
            truths = {"item + seed": 0.0, "item": own.mean(), "seed": items.mean()}
            right = [covers(found.intervals[new], truth) for new, truth in truths.items()]
            return [*right, covers(found.interval("seed"), 0.0)]

        name = (str(n), str(s), f"{sd:g}")
        table.add(name, (8, index), run)
        spread.rows.append((name, list(np.mean(spreads, axis=0))))
    cells = [(n, s, sd) for n in (50, 300) for s in ((2, 2), (2, 6), (3, 3), (5, 5)) for sd in (0.0, 0.02)]
    for index, (n, (s_a, s_b), sd) in enumerate(some(light, cells, cells[1::5])):

        def both(rng: Rng, n: int = n, s_a: int = s_a, s_b: int = s_b, sd: float = sd) -> list[bool]:
            items = 0.4 * rng.normal(size=(n, 1))
            own, luck = 0.15 * rng.normal(size=(2, n, 1)), [sd * rng.normal(size=s) for s in (s_a, s_b)]
            a, b = (items + o + k + 0.25 * rng.normal(size=(n, len(k))) for o, k in zip(own, luck, strict=True))
            found = crossed_difference(a, b)
            truths = {"item + seed": 0.0, "item": luck[1].mean() - luck[0].mean(), "seed": (own[1] - own[0]).mean()}
            return [covers(found[new], truth) for new, truth in truths.items()]

        unmatched.add((str(n), f"{s_a}, {s_b}", f"{sd:g}"), (9, index), both)
    yield table
    yield spread
    yield unmatched


def correlated_models(light: bool, n_runs: int) -> Iterator[Table]:
    """Graded scores of two models with correlated items: the pair, and what ignoring it costs."""
    table = Table(
        "Difference of two models, graded scores",
        "Unpaired intervals of correlated models cover too often: they are too wide, and find less.",
        ("n", "correlation"),
        ("paired t", "unpaired (Welch)"),
        ("paired t",),
        n_runs=n_runs,
    )
    for i, n in enumerate(some(light, (10, 30, 100), (30,))):
        for j, rho in enumerate((0.0, 0.5, 0.9)):

            def run(rng: Rng, n: int = n, rho: float = rho) -> list[bool]:
                shared = math.sqrt(rho) * rng.normal(size=n)
                a, b = (shared + math.sqrt(1 - rho) * rng.normal(size=n) for _ in "ab")
                return [covers(paired_difference(a, b), 0.0), covers(unpaired_difference(a, b), 0.0)]

            table.add((str(n), f"{rho:g}"), (10, i, j), run)
    yield table


SECTIONS = (
    one_proportion,
    one_mean,
    clusters_of_grades,
    clusters_of_answers,
    repeats,
    pairs_of_answers,
    pairs_in_clusters,
    correlated_models,
    seeds,
)


def page(tables: Sequence[Table]) -> str:
    """The page: what it shows, the failures, the tables."""
    failures = [f"- {table.title}: {one}" for table in tables for one in table.failures()]
    n_cells = sum(len(table.rows) * len(table.recommended) for table in tables)
    text = [
        "# Validity: how often intervals cover, and how often tests are wrong",
        "",
        "Made by `python benchmarks/validity.py`; do not edit. Intervals are of level 0.95, tests of level 0.05. Bold:",
        "off nominal on the wrong side, by more than three Monte-Carlo standard errors, or 0.005 where the figure is",
        "exact; cells that looked so were simulated again with five times the repetitions. Formulas and sources are in",
        "[statistics](statistics.md).",
        "",
        f"Of {n_cells} figures of recommended methods, {len(failures)} are off:",
        "",
        *(failures or ["- none"]),
    ]
    return "\n".join(text) + "\n\n" + "\n\n".join(table.markdown() for table in tables) + "\n"


def main() -> None:
    """Make all tables, print them, and write the page unless only a light part was asked for."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--light", action="store_true", help="fewer cells and repetitions; writes nothing")
    parser.add_argument("--runs", type=int, help="repetitions of a simulated cell (default: 2000, light: 300)")
    options = parser.parse_args()
    n_runs = options.runs or (300 if options.light else 2000)
    few_units.DRAWN_UNITS = 100_000  # a tenth, for time; more resamples make ends steadier, not nearer
    tables = []
    for section in SECTIONS:
        print(f"{section.__name__} ...", file=sys.stderr, flush=True)
        tables += section(options.light, n_runs)
    text = page(tables)
    print(text)
    if not options.light:
        PAGE.write_text(text, encoding="utf-8")
    failures = [f"{table.title}: {one}" for table in tables for one in table.failures()]
    finish(
        options,
        {
            "validity_figures": sum(len(table.rows) * len(table.recommended) for table in tables),
            "validity_failures": len(failures),
            "validity_lowest_coverage": round(
                min(
                    value
                    for table in tables
                    if not table.size
                    for _, values in table.rows
                    for method, value in zip(table.methods, values, strict=True)
                    if method in table.recommended
                ),
                4,
            ),
        },
    )
    if options.light and failures:
        raise SystemExit("recommended methods are off:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
