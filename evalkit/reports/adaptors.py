"""Results that others made, read as runs: lm-eval's samples, inspect's logs, and any table with a score per item."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalkit import tables
from evalkit.errors import InputError
from evalkit.reports.inputs import Run, plain_text

if TYPE_CHECKING:
    import pandas as pd

TABLES: Final = (".csv", ".tsv", ".parquet", ".jsonl", ".feather", ".arrow")
FORMATS: Final = (
    "a run directory of evalkit, a folder or file of lm-eval (samples_*.jsonl), an inspect log (.eval, .json) or a "
    f"folder of them, or a table ({', '.join(TABLES)}) with the columns item and score"
)

_OURS: Final = (
    "task",
    "metric",
    "filter",
    "model",
    "seed",
    "repeat",
    "cluster",
    "response",
    "target",
    "prompt",
    "error",
)
"""Columns of a table that have a meaning; all others are fields of the documents."""

HIGHER: Final = "higher scores are taken as better, because the results do not say"

MAX_TABLE_BYTES: Final = 8 << 30
"""Largest table that is read into memory."""


def read_results(path: Path, columns: Mapping[str, str] | None = None) -> Run:
    """Read results that evalkit did not write.

    `TABLE@MODEL` is one model of a table that holds several; `columns` are as in `from_frame`.

    Raises
    ------
    InputError
        There is nothing, or nothing of a known format, or it is broken; the message says where.
    """
    from evalkit.reports import inspect_logs, lm_eval_results

    if path.is_dir():
        if logs := inspect_logs.logs_in(path):
            return inspect_logs.read_logs(logs, path)
        if samples := lm_eval_results.samples_in(path):
            return lm_eval_results.read_samples(samples, path)
    elif path.is_file():
        if path.suffix == ".eval" or (path.suffix == ".json" and inspect_logs.is_log(path)):
            return inspect_logs.read_logs([path], path)
        if lm_eval_results.is_samples(path) or (path.name.startswith("results") and path.suffix == ".json"):
            return lm_eval_results.read_samples(lm_eval_results.samples_of(path), path)
        if path.suffix in TABLES:
            return read_table(path, columns=columns)
    name, _, model = path.name.rpartition("@")
    if Path(name).suffix in TABLES and not path.exists() and (table := path.with_name(name)).is_file():
        return read_table(table, model=model, columns=columns)
    exists = "there are no results of a known format" if path.exists() else "there is no such run"
    raise InputError(exists, where=str(path), do=f"Give {FORMATS}")


def read_table(path: Path, *, model: str | None = None, columns: Mapping[str, str] | None = None) -> Run:
    """Read a table as `from_frame` does; of several models, the one that is named.

    Raises
    ------
    InputError
        It cannot be read, is too large, or has no item and score in every row.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(
            f"the table has {path.stat().st_size / 1e9:.0f} GB", where=str(path), do="Keep only item, score and task"
        )
    theirs = columns or {}
    frame = _read_frame(path, [theirs.get(name, name) for name in ("item", "task", "model", "cluster")])
    if model is not None:
        column = theirs.get("model", "model")
        known = sorted(set(frame[column].astype(str))) if column in frame else []
        if model not in known:
            raise InputError(
                f"the table has no model '{model}' ({', '.join(known) or f'no column {column}'})",
                where=str(path),
                do="Choose one of them",
            )
        frame = frame[frame[column].astype(str) == model]
    run = from_frame(frame, name=model or path.stem, columns=columns, where=str(path))
    return replace(run, record={**run.record, "assumed": HIGHER})


def _read_frame(path: Path, keys: Sequence[str]) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        if path.suffix in (".csv", ".tsv"):
            # Identifiers stay text: 007 is not 7.
            return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=dict.fromkeys(keys, str))
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, dtype=dict.fromkeys(keys, str))
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_feather(path)
    except (ValueError, pa.ArrowException, OSError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the table cannot be read ({first})", where=str(path), do="Mend or convert it") from None


def from_frame(
    frame: pd.DataFrame,
    *,
    name: str = "table",
    columns: Mapping[str, str] | None = None,
    higher_is_better: bool = True,
    where: str = "data frame",
) -> Run:
    """Make a run of a data frame with a row for each answer.

    Parameters
    ----------
    frame
        Columns `item` (the same text or number in both models' frames) and `score` (a number, true or false; missing
        where there is none). Optional: `task`, `metric`, `filter`, `model`, `seed`, `repeat`, `cluster` (the source
        that items share), `response`, `target`, `prompt`, `error`. All others are fields of the documents, for slices.
    name
        What the model is called, if there is no column `model`.
    columns
        Names of these in the frame where they are others, e.g. `{"item": "question_id", "score": "correct"}`.
    higher_is_better
        Whether a higher score is better.
    where
        Where the frame comes from, for messages.

    Raises
    ------
    InputError
        A column is missing, an item or score is not as it must be, or an item stands twice; the message names the row,
        counted from 1 without the header.
    """
    for ours, theirs in (columns or {}).items():
        if ours not in ("item", "score", *_OURS) or theirs not in frame:
            what = f"there is no column '{theirs}'" if ours in ("item", "score", *_OURS) else f"'{ours}' means nothing"
            known = ", ".join(("item", "score", *_OURS))
            raise InputError(what, where=f"{where}, columns", do=f"Map its columns to: {known}")
    renamed = frame.rename(columns={theirs: ours for ours, theirs in (columns or {}).items()})
    missing = [one for one in ("item", "score") if one not in renamed]
    if missing:
        has = ", ".join(map(str, frame.columns[:20]))
        raise InputError(
            f"the table has no column '{missing[0]}' (it has: {has})",
            where=where,
            do="Rename its columns: item and score are needed, task, seed, repeat and cluster are understood",
        )
    if renamed.empty:
        raise InputError("the table has no rows", where=where, do="Give one row for each answer")
    if bad := [str(one) for one in renamed.columns[renamed.columns.duplicated()]]:
        raise InputError(f"the column '{bad[0]}' stands twice", where=where, do="Keep one of them")
    renamed = renamed.reset_index(drop=True)
    items = _texts(renamed, "item", where)
    table: dict[str, Any] = {
        "task": _texts(renamed, "task", where) if "task" in renamed else ["table"] * len(renamed),
        "doc_hash": items,
        "score": [
            None if is_missing else _score(value, row, where)
            for row, (value, is_missing) in enumerate(_values(renamed, "score"), start=1)
        ],
        "seed": _numbers(renamed, "seed", where),
        "repeat": [0 if one is None else one for one in _numbers(renamed, "repeat", where)],
        "metric": _texts(renamed, "metric", where) if "metric" in renamed else ["score"] * len(renamed),
        "filter": _texts(renamed, "filter", where) if "filter" in renamed else ["none"] * len(renamed),
        "model": _texts(renamed, "model", where) if "model" in renamed else [name] * len(renamed),
        "prompt_hash": _optional(renamed, "prompt"),
        **{one: _optional(renamed, one) for one in ("cluster", "response", "target", "error")},
    }
    _check_once(table, where)
    fields = [one for one in renamed.columns if one not in ("item", "score", *_OURS)]
    documents: dict[str, dict[str, Mapping[str, Any]]] = {}
    values = renamed[fields].astype(object).where(renamed[fields].notna(), None).to_dict("records") if fields else []
    for task, item, row in zip(table["task"], items, values, strict=False):
        documents.setdefault(task, {}).setdefault(item, {str(key): value for key, value in row.items()})
    metrics = dict.fromkeys(zip(table["task"], table["metric"], table["filter"], strict=True))
    better = {"higher_is_better": higher_is_better}
    tasks: dict[str, Any] = {}
    for task, metric, name_of_filter in metrics:
        listed = tasks.setdefault(task, {"metrics": []})["metrics"]
        listed.append({"metric": metric, "filter": name_of_filter, **better})
    return make_run(Path(where), table, {"tasks": tasks}, documents)


def _texts(frame: pd.DataFrame, column: str, where: str) -> list[str]:
    """The values of a column as text; 7.0, which pandas makes of 7 beside missing numbers, is 7."""
    found = []
    for row, (value, is_missing) in enumerate(_values(frame, column), start=1):
        if is_missing or str(value) == "":
            raise InputError("there is no value", where=f"{where}, row {row}, column {column}", do="Fill it in")
        found.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return found


def _optional(frame: pd.DataFrame, column: str) -> list[str | None]:
    if column not in frame:
        return [None] * len(frame)
    return [None if is_missing else str(value) for value, is_missing in _values(frame, column)]


def _values(frame: pd.DataFrame, column: str) -> Iterator[tuple[Any, bool]]:
    """The values of a column, and whether each is missing."""
    return zip(frame[column].tolist(), frame[column].isna().tolist(), strict=True)


def _numbers(frame: pd.DataFrame, column: str, where: str) -> list[int | None]:
    if column not in frame:
        return [None] * len(frame)
    found: list[int | None] = []
    for row, (value, is_missing) in enumerate(
        zip(frame[column].tolist(), frame[column].isna().tolist(), strict=True), 1
    ):
        try:
            whole = None if is_missing else int(value)
        except (TypeError, ValueError, OverflowError):
            whole = None
        if not is_missing and (whole is None or (whole != value and str(whole) != str(value).strip())):
            raise InputError(
                f"{value!r} is no whole number", where=f"{where}, row {row}, column {column}", do="Number it from 0"
            )
        found.append(whole)
    return found


def _score(value: Any, row: int, where: str) -> float:
    """A number; true is 1."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = str(value)[:40]
        raise InputError(
            f"{shown!r} is no score",
            where=f"{where}, row {row}, column score",
            do="Give a finite number, true or false",
        )
    return number


def _check_once(table: Mapping[str, Sequence[Any]], where: str) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    names = ("model", "task", "doc_hash", "metric", "filter", "seed", "repeat")
    for row, key in enumerate(zip(*(table[name] for name in names), strict=True), start=1):
        if (first := seen.setdefault(key, row)) != row:
            raise InputError(
                f"item '{key[2][:80]}' of task '{key[1][:80]}' stands in rows {first} and {row}",
                where=where,
                do="Tell its answers apart by a column seed or repeat, or remove the copy",
            )


def make_run(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    record: Mapping[str, Any],
    documents: Mapping[str, Mapping[str, Mapping[str, Any]]],
    name: str | None = None,
) -> Run:
    """Make a run of columns of the samples table, doc_id and run_id left out.

    Raises
    ------
    InputError
        The columns hold several models.
    """
    models = list(dict.fromkeys(columns["model"]))
    if len(models) > 1:
        raise InputError(
            f"there are several models: {', '.join(map(str, models[:10]))}",
            where=str(path),
            do=f"Give one of a table as {path.name}@{models[0]}, else each in a file or folder of its own",
        )
    numbers: dict[tuple[Any, Any], int] = {}
    keys = zip(columns["task"], columns["doc_hash"], strict=True)
    doc_ids = [numbers.setdefault(key, len(numbers)) for key in keys]
    run_ids = ["" if seed is None else f"seed{seed}" for seed in columns["seed"]]
    table = tables.from_columns(tables.SAMPLES, {**columns, "doc_id": doc_ids, "run_id": run_ids})
    shown = str(name or models[0])
    return Run(path, shown, plain_text(table.to_pandas()), {"name": shown, **record}, documents)
