"""Makes the significance report of two runs, and writes it as a page, a notebook, Markdown or JSON."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evalkit import tables
from evalkit.addresses import named
from evalkit.errors import CompareError, InputError, SpecError
from evalkit.files import write_text
from evalkit.judges.audit import audit as audit_judges
from evalkit.judges.verdicts import read_labels
from evalkit.reports import claims
from evalkit.reports.comparison import Comparison, compare
from evalkit.reports.document import Report
from evalkit.reports.explorer import Evidence, evidence
from evalkit.reports.figures import forest_plot
from evalkit.reports.figures_evidence import discordance_bars, leak_strip, order_mosaic, power_curve, seed_strip
from evalkit.reports.inputs import Run, audit_record, load_run, read_json
from evalkit.reports.joining import clusters_of
from evalkit.reports.notebook import notebook
from evalkit.reports.page import one_line, render_page
from evalkit.reports.trend import checkpoint_trend, trend, with_sources
from evalkit.runs.health import sentences
from evalkit.stats.standings import Standings, standings

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

FORMATS: Final = (".html", ".ipynb", ".md", ".json")


def report(
    run_a: Path | str | Run,
    run_b: Path | str | Run,
    *others: Path | str | Run,
    audit: Path | str | None = None,
    judge: Path | str | None = None,
    judge_labels: Path | str | None = None,
    checkpoints: Path | str | None = None,
    **options: Any,
) -> Report:
    """Make the significance report of B against A, the baseline.

    Parameters
    ----------
    run_a, run_b
        As `compare` takes them.
    others
        Further models: all are compared pair by pair, with the ranks that the data leave possible.
    audit
        An audit directory.
    judge
        What `evalkit judge` wrote: a directory with `verdicts.parquet`, or such a table.
    judge_labels
        Human labels of some of its pairs, as `evalkit judge --labels` takes them.
    checkpoints
        A folder with the runs of a training run's checkpoints, as `evalkit trend` takes it.
    options
        Of `compare`: margin, rule, metric, slices, cluster, confidence_level and the others.

    Raises
    ------
    CompareError, InputError, SpecError, TableError
        As `compare`, `standings_of` and `trend` do.
    """
    return with_evidence(
        run_a, run_b, *others, audit=audit, judge=judge, judge_labels=judge_labels, checkpoints=checkpoints, **options
    )[0]


def with_evidence(
    run_a: Path | str | Run,
    run_b: Path | str | Run,
    *others: Path | str | Run,
    audit: Path | str | None = None,
    judge: Path | str | None = None,
    judge_labels: Path | str | None = None,
    checkpoints: Path | str | None = None,
    **options: Any,
) -> tuple[Report, Callable[[], Evidence]]:
    """Make the report, and what collects the evidence that a page's explorer shows of the items."""
    places = [one if isinstance(one, Run) else Path(one) for one in (run_a, run_b, *others)]
    columns = options.get("columns")
    runs = [load_run(one, columns) for one in places]
    audit_path = None if audit is None else Path(audit)
    comparison = compare(runs[0], runs[1], audit=audit_path, **options)
    if judge_labels is not None and judge is None:
        raise SpecError("there are labels, but no verdicts", where="--judge-labels", do="Give --judge, too")
    verdicts = None if judge is None else read_verdicts(Path(judge))
    judged = None
    if verdicts is not None:
        judged = audit_judges(verdicts, labels=None if judge_labels is None else read_labels(Path(judge_labels)))
    alike = {name: options[name] for name in ("metric", "confidence_level", "cluster") if name in options}
    ranks = standings_of(runs, **alike) if others else None
    followed = None if checkpoints is None else trend(Path(checkpoints), **alike)
    given = {"audit": audit, "judge": judge, "judge_labels": judge_labels, "checkpoints": checkpoints, **options}
    usual = (None, False, ("confidence_level", 0.95))
    made_by = {name: value for name, value in given.items() if value not in usual and (name, value) not in usual}
    made = assemble(
        comparison,
        verdicts=verdicts,
        judged=judged,
        ranks=ranks,
        followed=followed,
        places=[str(one.directory) for one in runs],
        made_by=made_by,
        made_from=made_from(audit_path, None if judge is None else Path(judge)),
        others=dict(zip(_distinct([one.name for one in runs])[2:], [one.record for one in runs[2:]], strict=True)),
    )
    return made, partial(evidence, comparison, runs[0], audit_path, verdicts)


def assemble(
    comparison: Comparison,
    *,
    verdicts: pa.Table | None = None,
    judged: Any = None,
    ranks: Standings | None = None,
    followed: Any = None,
    places: Sequence[str] = ("A", "B"),
    made_by: Mapping[str, Any] | None = None,
    made_from: Sequence[tuple[str, str, str]] = (),
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Put the claims together in their order.

    `made_from` is as the function of that name returns it; `others` are the records of further models by their names.
    """
    drawings: dict[str, Callable[[], Figure]] = {"forest": partial(forest_plot, comparison)}
    if comparison.items:
        drawings["discordance"] = partial(discordance_bars, comparison)
    if comparison.overall["all"].difference.standard_error:
        drawings["power"] = partial(power_curve, comparison)
    if any(task.noise and max(task.noise.n_seeds_a, task.noise.n_seeds_b) > 1 for task in comparison.tasks):
        drawings["seeds"] = partial(seed_strip, comparison)
    if comparison.rule is not None and comparison.items:
        drawings["leaks"] = partial(leak_strip, comparison)
    counts = {} if verdicts is None else order_counts(verdicts, comparison.name_a, comparison.name_b)
    orders = {f"orders{f'-{place + 1}' if place else ''}": judge for place, judge in enumerate(counts)}
    drawings |= {name: partial(order_mosaic, counts[judge], judge=judge) for name, judge in orders.items()}
    if followed is not None:
        drawings["trend"] = partial(checkpoint_trend, followed)
    word, headline = claims.verdict_of(comparison)
    said = [
        claims.verdict_claim(comparison),
        claims.suite_claim(comparison),
        claims.tasks_claim(comparison),
        claims.seeds_claim(comparison),
        claims.contamination_claim(comparison),
        claims.judge_claim(judged, comparison, orders),
        claims.slices_claim(comparison),
        claims.standings_claim(ranks) if ranks is not None else None,
        claims.trend_claim(followed) if followed is not None else None,
        claims.health_claim(comparison, others or {}),
        claims.assumptions_claim(comparison),
        claims.repeat_claim(comparison, commands(comparison, places, made_by or {}), made_from),
    ]
    suspects = comparison.suspects() | {
        name: sentences({"findings": [], **record["health"]})
        for name, record in (others or {}).items()
        if (record.get("health") or {}).get("suspect")
    }
    marked = ["it is marked as suspect"]
    alarms = [f"{run}: {finding}" for run, findings in suspects.items() for finding in findings or marked]
    return Report(
        title=f"Is {comparison.name_b} better than {comparison.name_a}?",
        verdict=word,
        headline=headline,
        alarms=tuple(alarms),
        strip=claims.strip_of(comparison),
        claims=tuple(claim for claim in said if claim is not None),
        comparison=comparison,
        drawings=drawings,
        judge=judged and judged.to_dict(),
        standings=ranks,
        trend=followed,
        made_by={"runs": list(places), **(made_by or {})},
    )


def commands(comparison: Comparison, places: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The command lines that make the runs and the report again, as far as the records say."""
    words = ["evalkit", "report", *places]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            words.append(",".join(f"{ours}={theirs}" for ours, theirs in value.items()))
        elif value is not True:
            words.append(str(value))
    made = [
        claims.run_command(record, place)
        for record, place in zip((comparison.record_a, comparison.record_b), places, strict=False)
    ]
    return [*(one for one in made if one), shlex.join([*words, "-o", "report.html"])]


def made_from(audit: Path | None, judge: Path | None) -> list[tuple[str, str, str]]:
    """Say what audit and verdicts the report was made from: (which, what, value), with versions and hashes."""
    rows: list[tuple[str, str, Any]] = []
    if audit is not None:
        record = read_json(audit_record(audit))
        files = [one for one in record.get("corpus") or [] if isinstance(one, Mapping)]
        benchmarks = [str(one.get("name")) for one in record.get("benchmarks") or [] if isinstance(one, Mapping)]
        rows = [
            ("audit", "evalkit", record.get("evalkit")),
            ("audit", "finished", record.get("finished")),
            ("audit", "benchmarks", ", ".join(benchmarks)),
            ("audit", "items.parquet, sha256", _sha256(audit / "items.parquet")),
        ]
        rows += [("corpus", str(one.get("file")), one.get("fingerprint") or "no hash") for one in files[:_MOST_FILES]]
        if len(files) > _MOST_FILES:
            rows.append(("corpus", "further files", f"{len(files) - _MOST_FILES:,}: see the audit's record"))
    if judge is not None:
        path = judge / "verdicts.parquet" if judge.is_dir() else judge
        settings = path.parent / "judge.json"
        rows += [("judge", name.replace("_", " "), read_json(settings).get(name)) for name in ("judge", "verdicts_by")]
        rows += [("judge", f"{one.name}, sha256", _sha256(one)) for one in (settings, path) if one.is_file()]
    return [(which, what, str(value)) for which, what, value in rows if value]


_MOST_FILES: Final = 20


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_verdicts(place: Path) -> pa.Table:
    """Read the verdicts of `evalkit judge`.

    Raises
    ------
    InputError
        There are none.
    """
    path = place / "verdicts.parquet" if place.is_dir() else place
    if not path.is_file():
        raise InputError("there are no verdicts", where=str(path), do="Give what `evalkit judge --out` wrote")
    return tables.read(path, tables.VERDICTS)


def order_counts(verdicts: pa.Table, name_a: str, name_b: str) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Count each judge's pairs of these models, by winner when A is shown first (rows) and when B is (columns).

    Winners are A, tie, B. A and B are those of the names given, whichever way round the verdicts have them; judges
    without such a pair in both orders are left out.
    """
    by_pair: dict[tuple[str, str], dict[str, str]] = {}
    names = ["judge", "pair_id", "order", "repeat", "winner", "model_a", "model_b"]
    for row in verdicts.select(names).to_pylist():
        models = row["model_a"], row["model_b"]
        if row["repeat"] == 0 and row["order"] is not None and models in ((name_a, name_b), (name_b, name_a)):
            order, winner = row["order"], row["winner"]
            if models != (name_a, name_b):
                order, winner = _TURNED[order], _TURNED.get(winner, winner)
            by_pair.setdefault((row["judge"], row["pair_id"]), {})[order] = winner
    found: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    places = {"a": 0, "tie": 1, "b": 2}
    for (judge, _), orders in by_pair.items():
        if {orders.get("ab"), orders.get("ba")} <= places.keys():
            counts = found.setdefault(judge, np.zeros((3, 3), dtype=np.int64))
            counts[places[orders["ab"]], places[orders["ba"]]] += 1
    return found


_TURNED: Final = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}


def standings_of(
    runs: Sequence[Run], *, metric: str | None = None, confidence_level: float = 0.95, cluster: str | None = None
) -> Standings:
    """Compare several runs pair by pair, on the tasks and items that all of them have scored.

    What only some of them have is counted in the warnings. `cluster` is as in `compare`.

    Raises
    ------
    CompareError
        There is no such task, no metric that all have, or no such column.
    """
    import pandas as pd

    names = _distinct([run.name for run in runs])
    scores, clusters, left_out, n_lower = [], [], [], 0
    common = [task for task in runs[0].tasks if all(task in run.tasks for run in runs)]
    if missing := [task for task in dict.fromkeys(task for run in runs for task in run.tasks) if task not in common]:
        left_out.append(f"left out {len(missing)} task(s) that not all models have: {', '.join(missing)}")
    columns = runs[0].document_column(cluster, common) if cluster and common else {}
    for task in common:
        shared = set.intersection(*(run.scored(task) for run in runs))
        chosen = next((one for one in runs[0].metrics(task, metric) if one in shared), None)
        if chosen is None:
            left_out.append(f"{task}: no metric has scores in all runs")
            continue
        items = [run.items(task, chosen)[0] for run in runs]
        table = pd.concat([one.score for one in items], axis=1, join="inner")
        if len({tuple(sorted(set(one.prompts.reindex(table.index)))) for one in items}) > 1:
            left_out.append(f"{task}: the prompts differ between the runs")
        if lost := len(set().union(*(one.index for one in items))) - len(table):
            left_out.append(f"{task}: left out {lost} item(s) that not all models have scored")
        first = items[0].loc[table.index]
        if task in columns:
            first = with_sources(first, columns[task])
        labels = clusters_of(first)
        if (n_units := len(set(labels)) if labels else len(table)) < 5:
            left_out.append(f"{task}: {n_units} independent units are too few")
            continue
        is_lower = not runs[0].higher_is_better(task, *chosen)
        n_lower += is_lower
        scores.append((-1.0 if is_lower else 1.0) * table.to_numpy(float))
        clusters.append(labels)
    if not scores:
        raise CompareError(
            f"the {len(runs)} runs share no task that can be compared ({'; '.join(left_out) or 'no common task'})",
            where=", ".join(str(run.directory) for run in runs),
            do="Evaluate all on the same tasks",
        )
    found = standings(scores, names, clusters=clusters, confidence_level=confidence_level)
    return replace(found, warnings=(*found.warnings, *left_out), n_lower=n_lower)


def _distinct(names: Sequence[str]) -> list[str]:
    """Number models of one name."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return [one_line(name) for name in found]


def check_out(path: Path) -> None:
    """Refuse a file whose format is not known, with a SpecError, before anything is computed."""
    if path.suffix not in FORMATS:
        raise SpecError(f"'{path}' is of no format", where="--out", do=f"Let it end in one of {', '.join(FORMATS)}")


def write_report(made: Report, path: Path, collect: Callable[[], Evidence] | None = None) -> None:
    """Write the report in the format that the path ends in, whole or not at all.

    Raises
    ------
    SpecError
        It ends in none of `FORMATS`.
    """
    check_out(path)
    if path.suffix == ".html":
        write_text(path, named(render_page(made, collect() if collect else None)))
    elif path.suffix == ".ipynb":
        write_text(path, named(notebook(made)))
    elif path.suffix == ".md":
        write_text(path, named(made.to_markdown()))
    else:
        write_text(path, named(made.to_json() + "\n"))
