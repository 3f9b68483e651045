"""Reads benchmarks from files on this machine: the documents of a task are the rows of its file, unchanged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from evalkit.errors import TaskError

Row = dict[str, Any]


def mmlu(data_dir: str | None = None, **_: object) -> DatasetDict:
    """Read `mmlu_test`: rows of `id, question, choices, answer`, where `answer` is the position of the right choice."""
    return DatasetDict(test=_read(data_dir, "mmlu_test", ("question", "choices", "answer")))


def gsm8k(data_dir: str | None = None, **_: object) -> DatasetDict:
    """Read `gsm8k_test` and, for worked examples, `gsm8k_train`: rows of `id, question, answer`.

    Without a `gsm8k_train` the task runs zero-shot only: the split `fewshot` is empty.
    """
    columns = ("question", "answer")
    test = _read(data_dir, "gsm8k_test", columns)
    examples = _read(data_dir, "gsm8k_train", columns) if _find(data_dir, "gsm8k_train") else test.select([])
    return DatasetDict(test=test, fewshot=examples)


def humaneval(data_dir: str | None = None, **_: object) -> DatasetDict:
    """Read `humaneval`: rows of `task_id, prompt, entry_point, canonical_solution, test`."""
    columns = ("prompt", "entry_point", "canonical_solution", "test")
    return DatasetDict(test=_read(data_dir, "humaneval", columns))


def _find(data_dir: str | None, name: str) -> Path | None:
    """The file `name`, plain or compressed, if it exists."""
    if data_dir is None:
        return None
    paths = (Path(data_dir) / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz"))
    return next((path for path in paths if path.is_file()), None)


def _read(data_dir: str | None, name: str, columns: tuple[str, ...]) -> Dataset:
    """Read all rows of a file.

    Raises
    ------
    TaskError
        There is no such file, or a row is not a JSON object with the keys of the first row and all `columns`.
    """
    path = _find(data_dir, name)
    if path is None:
        raise TaskError(
            "the folder has no such file" if data_dir else "no folder of benchmark files was given",
            where=f"{data_dir or 'local tasks'}, {name}.jsonl[.gz]",
            do=f"Pass --data DIR, a folder that holds {name}.jsonl or {name}.jsonl.gz (docs/tasks.md has the layout)",
        )
    rows: list[Row] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_parse(line, f"{path}, line {number}", columns, rows[0] if rows else None))
    if not rows:
        raise TaskError("the file is empty", where=str(path), do="Write one JSON object a line into it")
    return Dataset.from_list(rows)


def _parse(line: str, where: str, columns: tuple[str, ...], first: Row | None) -> Row:
    """Parse one row and hold its keys against what the task needs and what the first row has."""
    try:
        row: Row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"this is not JSON ({error})", where=where, do="Write one JSON object a line") from None
    missing = [column for column in columns if not isinstance(row, dict) or column not in row]
    if missing:
        raise TaskError(f"the row has no '{missing[0]}'", where=where, do=f"Give each row: {', '.join(columns)}")
    if first is not None and list(row) != list(first):
        # A table has one set of columns: a row with other keys would change, and its hash with it.
        raise TaskError(
            f"the row has the keys {', '.join(row)}, the first row has {', '.join(first)}",
            where=where,
            do="Give all rows the same keys in the same order",
        )
    return row
