"""How two runs meet: the items of a task that both scored, side by side, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import CompareError
from evalkit.reports.inputs import Run, item_means

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

_EXPLAINING: Final = (
    "num_fewshot",
    "chat_template",
    "system_instruction",
    "seeds",
    "gen_kwargs",
    "task_seed",
    "repeats",
    "tasks_dir",
)


@dataclass(frozen=True)
class Joined:
    """What both runs say of one task: a row per item that both scored, and counts of what is left out.

    `answers_a` and `answers_b` are the rows behind it; `share_draws` says whether seeds and repeats were paired.
    """

    metric: tuple[str, str]
    pairs: pd.DataFrame
    answers_a: pd.DataFrame
    answers_b: pd.DataFrame
    counts: Mapping[str, Any]
    share_draws: bool

    def clusters(self) -> list[str] | None:
        """The source of each pair; an item without one stands for itself. None when all do."""
        return clusters_of(self.pairs, "cluster_a")

    @cached_property
    def grids(self) -> tuple[Floats, Floats]:
        """Both runs' scores of all pairs, each of shape (items, seeds, answers); NaN where there is none."""
        a, b = (_grid(answers, self.pairs.index) for answers in (self.answers_a, self.answers_b))
        return a, b


@dataclass(frozen=True)
class Apart:
    """What two runs say of one task, each on its own items: a row per item as `item_means` returns them."""

    metric: tuple[str, str]
    a: pd.DataFrame
    b: pd.DataFrame
    n_unscored: int


def join(a: Run, b: Run, task: str, metric: str | None) -> Joined | str:
    """Join the items that both runs scored, or say why there are none.

    Raises
    ------
    CompareError
        The runs have no item of the task in common, scored or not, or lack the metric that was asked for.
    """
    documents_a, documents_b = a.documents(task), b.documents(task)
    if documents_a.isdisjoint(documents_b):
        raise CompareError(
            f"the runs share no item of the task ({len(documents_a)} in A, {len(documents_b)} in B)",
            where=f"task {task}",
            do="Use the same data, --limit and --task-seed for both; or take them as --unpaired",
        )
    chosen = _choose_metric(a, b, task, metric)
    if isinstance(chosen, str):
        return chosen
    of_a, of_b = a.answers(task, chosen), b.answers(task, chosen)
    n_unscored = int((~of_a.counts).sum() + (~of_b.counts).sum())
    scored_a, scored_b = (set(of.doc_hash[of.counts]) for of in (of_a, of_b))
    known = of_a, of_b
    share_draws = not set(of_a.draw).isdisjoint(of_b.draw)
    n_unpaired = 0
    if share_draws:  # else the seeds are others on purpose, and an item's mean is over all its own
        of_a, of_b, n_unpaired = _pair_draws(of_a, of_b)
    pairs = item_means(of_a).join(item_means(of_b), how="inner", lsuffix="_a", rsuffix="_b")
    if pairs.empty:
        return f"no item has a score of {','.join(chosen)} from both runs for the same seed and repeat"
    counts = {
        "n_only_a": len(scored_a - scored_b),
        "n_only_b": len(scored_b - scored_a),
        "n_unscored": n_unscored,
        "n_unpaired": n_unpaired,
        **_missing(*known, (documents_a | documents_b) - set(pairs.index)),
    }
    return Joined(chosen, pairs, of_a, of_b, counts, share_draws)


def _missing(a: pd.DataFrame, b: pd.DataFrame, documents: set[str]) -> dict[str, Any]:
    """How far the items that are left out could move the sum of differences, if scores lie between 0 and 1.

    A score that one run has is taken as it is, one that nobody knows as 0 or 1.
    """
    if not documents:
        return {}
    ends = []
    for rows in (a, b):
        of = rows[rows.counts & rows.doc_hash.isin(documents)].groupby("doc_hash").score.mean()
        n_unknown = len(documents) - len(of)
        ends.append((float(of.sum()), float(of.sum()) + n_unknown))
    low, high = ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]
    return {"n_missing": len(documents), "missing_low": low, "missing_high": high}


def apart(a: Run, b: Run, task: str, metric: str | None) -> Apart | str:
    """Take each run's own items, or say why there are none: for runs that answered different ones."""
    chosen = _choose_metric(a, b, task, metric)
    if isinstance(chosen, str):
        return chosen
    (items_a, lost_a), (items_b, lost_b) = a.items(task, chosen), b.items(task, chosen)
    return Apart(chosen, items_a, items_b, lost_a + lost_b)


def clusters_of(items: pd.DataFrame, column: str = "cluster") -> list[str] | None:
    """The source of each item; one without stands for itself. None when all do."""
    named = items[column].notna()
    return items[column].where(named, items.index.to_series()).tolist() if named.any() else None


def _grid(answers: pd.DataFrame, documents: pd.Index) -> Floats:
    """Scores by item, seed and repeat; copies of a document are averaged."""
    import pandas as pd

    rows = answers[answers.counts]
    item = documents.get_indexer(pd.Index(rows.doc_hash))
    seeds, seed = np.unique(rows.seed.fillna(-1).to_numpy(), return_inverse=True)
    repeats, repeat = np.unique(rows["repeat"].to_numpy(), return_inverse=True)
    shape = (len(documents), len(seeds), len(repeats))
    inside = item >= 0
    cell = np.ravel_multi_index((item[inside], seed[inside], repeat[inside]), shape)
    counts = np.bincount(cell, minlength=int(np.prod(shape)))
    sums = np.bincount(cell, weights=rows.score.to_numpy(float)[inside], minlength=len(counts))
    with np.errstate(invalid="ignore"):
        found: Floats = (sums / counts).reshape(shape)
    return found


def _choose_metric(a: Run, b: Run, task: str, metric: str | None) -> tuple[str, str] | str:
    """Return the first metric and filter that have a score in both runs, or say why there is none."""
    in_b = b.metrics(task, metric)
    common = [one for one in a.metrics(task, metric) if one in in_b]
    names = ["; ".join(map(",".join, run.metrics(task, metric))) for run in (a, b)]
    if not common and metric is not None:
        raise CompareError(
            f"the runs have no filter of '{metric}' in common (A: {names[0]}; B: {names[1]})",
            where=f"task {task}",
            do="Choose another --metric",
        )
    if not common:
        return f"the runs have no metric in common (A: {names[0]}; B: {names[1]})"
    scored = a.scored(task) & b.scored(task)
    of_both = "; ".join(map(",".join, common))
    return next((one for one in common if one in scored), f"no metric has scores per item in both runs ({of_both})")


def _pair_draws(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Let only those answers count whose item, seed and repeat the other run has scored, too.

    Else a failed request would set an item's mean over all seeds against one over fewer, harder or easier, seeds. The
    number is of the answers lost by it; those of items that the other run has not scored at all are counted as items.
    """
    import pandas as pd

    document, draw = (pd.factorize(pd.concat([a[name], b[name]]))[0] for name in ("doc_hash", "draw"))
    key = document * (int(draw.max()) + 1) + draw
    counts = np.concatenate([a.counts.to_numpy(bool), b.counts.to_numpy(bool)])
    of_a = np.arange(len(key)) < len(a)
    paired, n_lost = np.zeros_like(counts), 0
    for mine, other in ((of_a, ~of_a), (~of_a, of_a)):
        paired |= mine & counts & np.isin(key, key[other & counts])
        n_lost += int((mine & counts & ~paired & np.isin(document, document[other & counts])).sum())
    return a.assign(counts=paired[of_a]), b.assign(counts=paired[~of_a]), n_lost


def warnings_of_scores(joined: Joined) -> list[str]:
    """Say what is unusual about the joined scores."""
    pairs, warnings = joined.pairs, []
    if not joined.share_draws:
        warnings.append("the runs share no seed and repeat, so each item's mean is over other draws in A than in B")
    if not (pairs.score_a.between(0, 1) & pairs.score_b.between(0, 1)).all():
        warnings.append("the scores are no proportions; all figures shown are a hundred times the score")
    return warnings


def prompt_difference(a: Run, b: Run, task: str, pairs: pd.DataFrame) -> str | None:
    """Say how the prompts of the common items differ, and which setting explains it; None when they are equal."""
    differing = int((pairs.prompts_a != pairs.prompts_b).sum())
    if not differing:
        return None
    spec_a, spec_b = a.record.get("spec", {}), b.record.get("spec", {})
    reasons = [
        f"{name} is {spec_a.get(name)!r} in A and {spec_b.get(name)!r} in B"
        for name in _EXPLAINING
        if spec_a.get(name) != spec_b.get(name)
    ]
    if difference := template_difference(a, b):
        reasons.append(difference)
    versions = [run.record.get("tasks", {}).get(task, {}).get("version") for run in (a, b)]
    if not reasons and versions[0] != versions[1]:
        reasons = [f"the task's version is {versions[0]} in A and {versions[1]} in B"]
    why = "; ".join(reasons) or "no setting in run.json explains it"
    return f"prompt_hash differs for {differing} of {len(pairs)} items: {why}"


def template_difference(a: Run, b: Run) -> str | None:
    """Say that the models' chat templates differ, if either run used one."""
    templates = [run.record.get("model", {}).get("chat_template_sha256") for run in (a, b)]
    if templates[0] == templates[1] or not any(run.record.get("spec", {}).get("chat_template") for run in (a, b)):
        return None
    return "the chat templates of A and B differ (chat_template_sha256)"
