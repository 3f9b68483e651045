"""What a comparison reads: run directories as items with scores, audit directories as labels."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit import tables
from evalkit.corpora.shards import AGAINST_RECORD, AUDIT_RECORD
from evalkit.errors import CompareError, EvalkitError
from evalkit.terminal import safe

if TYPE_CHECKING:
    import pandas as pd

CLEAN, FLAGGED = "clean", "flagged"


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory, read.

    Attributes
    ----------
    directory, name
        Where it is, and what its model is called. Control and formatting characters in names of models and tasks are
        written out here, once for all that show them.
    samples
        The samples table.
    record
        `run.json`; empty when there is none, for tables made by others.
    documents_kept
        The documents' fields by task and doc_hash, where whoever wrote the results kept them.
    """

    directory: Path
    name: str
    samples: pd.DataFrame
    record: Mapping[str, Any]
    documents_kept: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changed = {one: _shown_name(one) for one in self.samples.task.unique() if _shown_name(one) != one}
        if changed:
            record, kept = dict(self.record), self.documents_kept
            record["tasks"] = {changed.get(name, name): task for name, task in self.record.get("tasks", {}).items()}
            object.__setattr__(self, "samples", self.samples.assign(task=self.samples.task.replace(changed)))
            object.__setattr__(self, "record", record)
            object.__setattr__(self, "documents_kept", {changed.get(name, name): of for name, of in kept.items()})
        object.__setattr__(self, "name", _shown_name(self.name))

    @cached_property
    def _by_task(self) -> dict[str, pd.DataFrame]:
        samples = self.samples
        ordered = samples.assign(
            counts=_has_score(samples),
            draw=samples.seed.astype("Int64").astype(str) + "/" + samples["repeat"].astype(str),
        ).sort_values(["seed", "repeat", "doc_id"], kind="stable")
        return {str(task): rows for task, rows in ordered.groupby("task", sort=False)}

    @cached_property
    def _present(self) -> dict[str, list[tuple[str, str]]]:
        return _pairs_by_task(self.samples)

    @cached_property
    def _scored(self) -> dict[str, list[tuple[str, str]]]:
        return _pairs_by_task(self.samples[_has_score(self.samples)])

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the table."""
        return list(self._present)

    def metrics(self, task: str, metric: str | None = None) -> list[tuple[str, str]]:
        """Return the (metric, filter) pairs of a task, in the record's order; only those that `metric` means, if given.

        Raises
        ------
        CompareError
            The run has no such metric for the task.
        """
        listed = [(one.get("metric"), one.get("filter")) for one in self._listed(task)]
        present = sorted(
            self._present.get(task, ()),
            key=lambda one: listed.index(one) if one in listed else len(listed),
        )
        if metric is None:
            return present
        name, _, name_of_filter = metric.partition(",")
        if found := [one for one in present if one[0] == name and name_of_filter in ("", one[1])]:
            return found
        raise CompareError(
            f"the run has no metric '{metric}' for this task (it has: {', '.join(','.join(one) for one in present)})",
            where=f"{self.directory}, task {task}",
            do="Choose another --metric",
        )

    def scored(self, task: str) -> set[tuple[str, str]]:
        """Return the (metric, filter) pairs of a task of which at least one answer has a score."""
        return set(self._scored.get(task, ()))

    def primary(self, task: str, metric: str | None) -> tuple[str, str]:
        """Return the metric and filter to follow: the one asked for, else the task's first that has scores.

        Raises
        ------
        CompareError
            The run has no such metric for the task.
        """
        found, scored = self.metrics(task, metric), self.scored(task)
        return next((one for one in found if one in scored), found[0])

    def higher_is_better(self, task: str, metric: str, name_of_filter: str) -> bool:
        """Whether a higher value of the metric is better; so it is unless the record says otherwise."""
        for one in self._listed(task):
            if (one.get("metric"), one.get("filter")) == (metric, name_of_filter):
                return bool(one.get("higher_is_better", True))
        return True

    def documents(self, task: str) -> set[str]:
        """Return the doc_hash of every item of a task, scored or not."""
        return set(self._by_task[task].doc_hash)

    def answers(self, task: str, metric: tuple[str, str]) -> pd.DataFrame:
        """Return the rows of a task and metric, by seed and repeat, with `counts`: whether the answer has a score.

        Their `draw` names the seed and repeat.

        Raises
        ------
        CompareError
            A score is infinite.
        """
        rows = self._by_task[task]
        rows = rows[(rows.metric == metric[0]) & (rows["filter"] == metric[1])]
        if len(infinite := rows[rows.counts & np.isinf(rows.score)]):
            raise CompareError(
                f"the score of item {infinite.doc_hash.iloc[0]} is {infinite.score.iloc[0]} ({metric[0]},{metric[1]})",
                where=f"{self.directory}, task {task}",
                do="Mend the metric, or choose another --metric",
            )
        return rows

    def items(self, task: str, metric: tuple[str, str]) -> tuple[pd.DataFrame, int]:
        """Return one row per item, as `item_means` does, and the number of answers without a score.

        Raises
        ------
        CompareError
            A score is infinite.
        """
        rows = self.answers(task, metric)
        return item_means(rows), int((~rows.counts).sum())

    def document_column(self, column: str, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the value of a column of each document, by task and doc_hash; tasks without the column are left out.

        Documents that were not kept with the results are loaded again, as the record says; `cluster` and `target` are
        columns of every run.

        Raises
        ------
        CompareError
            No task has such a column, or the documents cannot be had.
        """
        kept: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
            task: self.documents_kept[task] for task in tasks if task in self.documents_kept
        }
        if not kept and column not in ("cluster", "target"):
            kept = self._loaded(tasks)
        found = {
            task: {doc_hash: fields[column] for doc_hash, fields in documents.items() if column in fields}
            for task, documents in kept.items()
        }
        found = {task: values for task, values in found.items() if values}
        if not found and column in ("cluster", "target"):
            for task in tasks:
                rows = self._by_task[task].dropna(subset=[column])
                found[task] = dict(zip(rows.doc_hash.astype(str), rows[column], strict=True))
            found = {task: values for task, values in found.items() if values}
        if not found:
            known = dict.fromkeys(name for one in kept.values() for fields in one.values() for name in fields)
            raise CompareError(
                f"no document has a column '{column}' (they have: {', '.join(map(str, known)) or 'none'})",
                where=str(self.directory),
                do="Choose another --slices",
            )
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row for each task, by its first metric with scores: the mean over items, and its standard error."""
        import pandas as pd

        rows = []
        for task in self.tasks:
            metric = self.primary(task, None)
            items, n_unscored = self.items(task, metric)
            mean, error = (items.score.mean(), items.score.sem()) if len(items) else (None, None)
            rows.append({
                "task": task, "metric": ",".join(metric), "n_items": len(items), "score": mean,
                "standard_error": error, "n_unscored": n_unscored,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}: {self.name}, {len(self.tasks)} tasks, {len(self.samples):,} rows)"

    def _repr_html_(self) -> str:
        table: str = self.to_frame().to_html(index=False, escape=True)
        findings = "".join(f"<li>{html.escape(one)}</li>" for one in self._findings())
        return f"<p><b>{html.escape(self.name)}</b></p>{table}{f'<ul>{findings}</ul>' if findings else ''}"

    def _findings(self) -> list[str]:
        """What the run's health check found."""
        found = (self.record.get("health") or {}).get("findings") or []
        return [f"{one['severity']}: {one['message']}" for one in found]

    def _loaded(self, tasks: Sequence[str]) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Load the tasks' documents as the run did."""
        from evalkit.tasks import doc_hash, load_tasks

        spec = self.record.get("spec", {})
        folders = {name: Path(spec[name]) for name in ("tasks_dir", "data") if spec.get(name)}
        try:
            loaded = load_tasks(
                list(tasks),
                tasks_dirs=(folders["tasks_dir"],) if "tasks_dir" in folders else (),
                data_dir=folders.get("data"),
                task_seed=spec.get("task_seed"),
            )
        except EvalkitError as error:
            raise CompareError(
                f"the documents cannot be loaded ({error.what})", where=str(self.directory), do="Leave out --slices"
            ) from None
        return {
            task: {doc_hash(document): document for document in loaded.tasks[task].eval_docs}
            for task in tasks
            if task in loaded.tasks
        }

    def _listed(self, task: str) -> list[Mapping[str, Any]]:
        """What the record says of the task's metrics."""
        listed: list[Mapping[str, Any]] = self.record.get("tasks", {}).get(task, {}).get("metrics", [])
        return listed


def _shown_name(name: Any) -> str:
    return safe(str(name)).replace("\n", "<U+000A>").replace("\t", "<U+0009>")


def _has_score(rows: pd.DataFrame) -> pd.Series[bool]:
    """Tell the answers with a score; one with an error has none, whatever the table says."""
    return rows.score.notna() & rows.error.isna()


def _pairs_by_task(rows: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """The (metric, filter) pairs of each task, in the order of the table."""
    distinct = rows[["task", "metric", "filter"]].drop_duplicates()
    found: dict[str, list[tuple[str, str]]] = {}
    for task, metric, name in distinct.itertuples(index=False):
        found.setdefault(str(task), []).append((metric, name))
    return found


def item_means(answers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per item that has an answer that counts, from rows as `Run.answers` returns them.

    The rows are indexed by doc_hash, with the mean `score` over repeats, seeds and copies of the document, its
    `cluster`, and the first `response` and `target`, of the answers that count; and the sorted distinct `prompts` of
    all answers, because a failed request was asked the same.
    """
    import pandas as pd

    rows = answers[answers.counts]
    code, documents = pd.factorize(rows.doc_hash.to_numpy(object))
    scores = np.bincount(code, weights=rows.score.to_numpy(float), minlength=len(documents))
    columns: dict[str, Any] = {"score": scores / np.bincount(code, minlength=len(documents))}
    for name in ("cluster", "response", "target"):
        values, known = rows[name].to_numpy(object), np.flatnonzero(rows[name].notna())
        columns[name] = np.full(len(documents), None, dtype=object)
        columns[name][code[known[::-1]]] = values[known[::-1]]  # the first is written last
    items = pd.DataFrame(columns, index=pd.Index(documents, name="doc_hash"))
    pairs = answers[["doc_hash", "prompt_hash"]].dropna().drop_duplicates().sort_values("prompt_hash")
    prompts: dict[str, list[str]] = {}
    for doc_hash, prompt in zip(pairs.doc_hash, pairs.prompt_hash, strict=True):
        prompts.setdefault(doc_hash, []).append(prompt)
    items["prompts"] = [",".join(prompts.get(doc_hash, ())) for doc_hash in items.index]
    return items


@dataclass(frozen=True)
class Audit:
    """What an audit says of each item under one rule: `status[doc_hash]` is clean or flagged.

    `n_bad_rows` counts the rows of the corpus that it could not read.
    """

    rule: str
    benchmarks: tuple[str, ...]
    status: Mapping[str, str]
    n_bad_rows: int


def load_run(directory: Path | str | Run, columns: Mapping[str, str] | None = None) -> Run:
    """Read a run directory, or what others wrote (`adaptors.read_results`); one that is read already is returned.

    `columns` are the names that a table has for its own: see `adaptors.from_frame`.

    Raises
    ------
    CompareError
        It is none, has no rows or those of several models, or its record is none.
    InputError
        It is not evalkit's, and not as its format says.
    TableError
        The samples table is faulty.
    """
    if isinstance(directory, Run):
        return directory
    directory = Path(directory)
    path = directory / "samples.parquet"
    if not path.is_file():
        if (directory / "run.json").is_file():
            raise CompareError(
                "the run is not finished (no samples.parquet)", where=str(directory), do="Give the same command again"
            )
        from evalkit.reports.adaptors import read_results

        return read_results(directory, columns)
    samples = plain_text(tables.read(path, tables.SAMPLES).to_pandas())
    if samples.empty:
        raise CompareError("the samples table has no rows", where=str(path), do="Run it again")
    if len(models := samples.model.unique()) > 1:
        raise CompareError(
            f"the samples table holds {len(models)} models: {', '.join(map(str, models))}",
            where=str(path),
            do="Give each model a run directory of its own",
        )
    record = read_json(directory / "run.json")
    _check_record(record, str(directory / "run.json"))
    return Run(directory, str(record.get("name") or models[0]), samples, record)


def plain_text(samples: pd.DataFrame) -> pd.DataFrame:
    """Turn text columns into Python's own strings: they are compared one by one, which Arrow is slow at."""
    text = [name for name, kind in samples.dtypes.items() if kind == "str"]
    return samples.astype(dict.fromkeys(text, object))


def _check_record(record: Mapping[str, Any], where: str) -> None:
    """Refuse a record whose parts that a comparison reads are not what `evalkit run` writes; they may be missing."""
    tasks = record.get("tasks", {})
    parts = {name: record.get(name, {}) for name in ("tasks", "spec", "model", "packages", "health")}
    if isinstance(tasks, Mapping):
        parts |= {f"tasks.{name}": task for name, task in tasks.items()}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise CompareError(f"'{name}' of the record is no JSON object", where=where, do="Restore it")
    lists = {f"tasks.{name}.metrics": task.get("metrics", []) for name, task in tasks.items()}
    for name, entries in {**lists, "health.findings": parts["health"].get("findings", [])}.items():
        if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
            raise CompareError(f"'{name}' of the record is no list of JSON objects", where=where, do="Restore it")
    if not all({"severity", "message", "advice"} <= one.keys() for one in parts["health"].get("findings", [])):
        raise CompareError("a finding of the record's health is not whole", where=where, do="Restore it")


def audit_record(directory: Path) -> Path:
    """Return the record of an audit, or of the near duplicates of benchmark items, which are one more rule.

    Raises
    ------
    CompareError
        There is neither.
    """
    for name in (AUDIT_RECORD, AGAINST_RECORD):
        if (directory / name).is_file():
            return directory / name
    raise CompareError(
        f"the audit is not finished (no {AUDIT_RECORD})", where=str(directory), do="Run `evalkit audit` again"
    )


def load_audit(directory: Path, rule: str | None) -> Audit:
    """Read what an audit says under one rule; the default is its first.

    Raises
    ------
    CompareError
        The directory is no audit or an unfinished one, or has no such rule.
    TableError
        The items table is faulty.
    """
    path = directory / "items.parquet"
    if not path.is_file():
        raise CompareError(
            "there is no audit (no items.parquet)",
            where=str(directory),
            do="Give what `evalkit audit --out` or `evalkit dedup --against` wrote",
        )
    record = read_json(audit_record(directory))
    items = tables.read(path, tables.ITEMS).to_pandas()
    listed = record.get("rules") or sorted(items.rule.unique())
    chosen = rule or (listed[0] if listed else "")
    if chosen not in set(items.rule):
        raise CompareError(
            f"the audit has no rule '{chosen}'", where=str(directory), do=f"Choose --rule from: {', '.join(listed)}"
        )
    of_rule = items[items.rule == chosen]
    is_clean = (of_rule.label == CLEAN).groupby(of_rule.doc_hash).all()
    status = {str(doc_hash): CLEAN if clean else FLAGGED for doc_hash, clean in is_clean.items()}
    totals = record.get("totals", {})
    if not isinstance(totals, Mapping):
        raise CompareError(
            "'totals' of the record is no JSON object", where=str(audit_record(directory)), do="Restore it"
        )
    return Audit(chosen, tuple(map(str, of_rule.benchmark.unique())), status, int(totals.get("n_bad_rows") or 0))


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; a missing one is empty. Lone surrogates, which no file can hold, become question marks.

    Raises
    ------
    CompareError
        The file is no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record = json.loads(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CompareError(f"the record cannot be read ({error})", where=str(path), do="Restore it") from None
    if not isinstance(record, dict):
        raise CompareError("the record is no JSON object", where=str(path), do="Restore it")
    return record
