"""Reads what lm-eval writes with --log_samples: samples_TASK_DATE.jsonl, and the results_DATE.json beside them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from evalkit.errors import InputError
from evalkit.reports.adaptors import HIGHER, make_run
from evalkit.reports.inputs import Run
from evalkit.runs.records import item_score, prompt_hash

_NAME: Final = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:[.-]\d+)?)\.jsonl")
_NEEDED: Final = ("doc_hash", "doc", "filter", "metrics")


def is_samples(path: Path) -> bool:
    """Whether a file has a name that lm-eval gives its samples."""
    return _NAME.fullmatch(path.name) is not None


def samples_in(folder: Path) -> list[Path]:
    """Return the files of samples in a folder, or in the one folder of a model below it.

    Raises
    ------
    InputError
        There are folders of several models.
    """
    for pattern in ("", "*/", "*/*/"):
        found = sorted(path for path in folder.glob(f"{pattern}samples_*.jsonl") if is_samples(path))
        if len(models := sorted({str(path.parent.relative_to(folder)) for path in found})) > 1:
            raise InputError(
                f"the folder holds results of several models: {', '.join(models)}",
                where=str(folder),
                do="Give the folder of one",
            )
        if found:
            return found
    return []


def samples_of(path: Path) -> list[Path]:
    """Return the files of samples that belong to one results file; of a file of samples, itself.

    Raises
    ------
    InputError
        There are none.
    """
    if is_samples(path):
        return [path]
    date = path.stem.removeprefix("results_")
    found = sorted(one for one in path.parent.glob("samples_*.jsonl")
                   if (match := _NAME.fullmatch(one.name)) and match["date"] == date)  # fmt: skip
    if not found:
        raise InputError(
            "there are no samples beside these results", where=str(path), do="Run lm-eval with --log_samples"
        )
    return found


def read_samples(paths: Sequence[Path], path: Path) -> Run:
    """Read the samples of one model.

    A metric that is no mean of its items' numbers, by the results file, has no scores per item here.

    Raises
    ------
    InputError
        A task stands in several files, or a line is not as lm-eval writes it; the message names file and line.
    """
    by_task: dict[str, Path] = {}
    for one in paths:
        match = _NAME.fullmatch(one.name)
        task = match["task"] if match else one.stem
        if task in by_task:
            raise InputError(
                f"the samples of {task} are there twice ({by_task[task].name}, {one.name})",
                where=str(path),
                do="Give the results_DATE.json, or the one file, that is meant",
            )
        by_task[task] = one
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    documents: dict[str, dict[str, Mapping[str, Any]]] = {}
    tasks: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for task, one in by_task.items():
        results = _results_of(one)
        samples = list(_lines(one))
        documents[task] = {sample["doc_hash"]: _fields(sample["doc"]) for sample in samples}
        tasks[task] = _task_record(task, samples, results)
        means = _means_of_items(task, samples, results)
        for sample in samples:
            for metric in sample["metrics"]:
                of_item = item_score(sample.get(metric)) if (metric, sample["filter"]) in means else None
                row = _row(task, sample, metric, of_item)
                for name, values in columns.items():
                    values.append(row[name])
    model = str(results.get("model_name") or (results.get("config") or {}).get("model") or path.name)
    columns["model"] = [model] * len(columns["task"])
    record: dict[str, Any] = {"tasks": tasks, "spec": _spec(results)}
    if not _part(results, "higher_is_better"):
        record["assumed"] = HIGHER
    return make_run(path, columns, record, documents, name=model)


_COLUMNS: Final = (
    "task", "doc_hash", "prompt_hash", "filter", "metric", "score", "seed", "repeat", "response", "target", "cluster",
)  # fmt: skip


def _row(task: str, sample: Mapping[str, Any], metric: str, score: float | None) -> dict[str, Any]:
    return {
        "task": task,
        "doc_hash": sample["doc_hash"],
        "prompt_hash": _prompt_hash(sample),
        "filter": sample["filter"],
        "metric": metric,
        "score": score,
        "seed": None,
        "repeat": 0,
        "response": _response(sample.get("resps")),
        "target": str(sample["target"]) if sample.get("target") is not None else None,
        "cluster": None,
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                sample = _parse(line)
            except ValueError as error:
                raise InputError(f"this is no JSON ({error})", where=where, do="Write the samples again") from None
            if not isinstance(sample, dict):
                raise InputError("this is no JSON object", where=where, do="Write the samples again")
            if missing := [name for name in _NEEDED if name not in sample]:
                raise InputError(
                    f"the sample has no '{missing[0]}'", where=where, do="Write it with lm-eval 0.4.3 or later"
                )
            named = sample["metrics"]
            if not isinstance(named, list) or not all(isinstance(one, str) for one in (*named, sample["filter"])):
                raise InputError("'metrics' and 'filter' are no names", where=where, do="Write the samples again")
            if not isinstance(sample["doc_hash"], str):
                raise InputError("'doc_hash' is no text", where=where, do="Write the samples again")
            yield sample


def _parse(line: bytes) -> Any:
    """JSON, also with the NaN that Python writes."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            return json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def _results_of(samples: Path) -> dict[str, Any]:
    """The results of the same date; without them, nothing is known of the metrics but their names."""
    match = _NAME.fullmatch(samples.name)
    if match is None:
        return {}
    path = samples.with_name(f"results_{match['date']}.json")
    found = sorted(samples.parent.glob(f"*_{match['date']}.json")) if not path.is_file() else [path]
    if not found:
        return {}
    try:
        results = _parse(found[0].read_bytes())
    except ValueError as error:
        raise InputError(f"this is no JSON ({error})", where=str(found[0]), do="Remove or restore it") from None
    return results if isinstance(results, dict) else {}


def _part(results: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A mapping inside the results; empty where it is missing or none."""
    found: Any = results
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _task_record(task: str, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    better = _part(results, "higher_is_better", task)
    named = dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"])
    return {
        "version": _part(results, "versions").get(task),
        "num_fewshot": _part(results, "n-shot").get(task),
        "metrics": [
            {"metric": metric, "filter": name, "higher_is_better": bool(better.get(metric, True))}
            for metric, name in named
        ],
    }


def _means_of_items(
    task: str, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> set[tuple[str, str]]:
    """The metrics and filters whose result is the mean of the items' numbers; without results all that have numbers."""
    of_task = _part(results, "results", task)
    found = set()
    for metric, name in dict.fromkeys((metric, one["filter"]) for one in samples for metric in one["metrics"]):
        values = [item_score(one.get(metric)) for one in samples if one["filter"] == name]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            continue
        whole = of_task.get(f"{metric},{name}")
        mean = sum(known) / len(known)
        if not isinstance(whole, int | float) or math.isclose(whole, mean, rel_tol=1e-6, abs_tol=1e-9):
            found.add((metric, name))
    return found


def _prompt_hash(sample: Mapping[str, Any]) -> str | None:
    """evalkit's hash of all requests, where the sample has them, so that the two can be compared."""
    arguments = sample.get("arguments")
    if isinstance(arguments, dict) and all(isinstance(one, dict) for one in arguments.values()):
        return prompt_hash([list(one.values()) for one in arguments.values()])
    return sample["prompt_hash"] if isinstance(sample.get("prompt_hash"), str) else None


def _response(resps: Any) -> str | None:
    while isinstance(resps, list) and resps:
        resps = resps[0]
    return resps if isinstance(resps, str) else None


def _fields(document: Any) -> dict[str, Any]:
    return document if isinstance(document, dict) else {"doc": document}


def _spec(results: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that explain other prompts, under our names."""
    shots = set(_part(results, "n-shot").values())
    return {
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "chat_template": bool(results.get("chat_template")),
        "system_instruction": results.get("system_instruction"),
        "limit": _part(results, "config").get("limit"),
    }
