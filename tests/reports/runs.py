"""Run and audit directories made by hand, so that the truth about them is known."""

from __future__ import annotations

import json

from evalkit import tables


def write_run(folder, scores, *, name="model", spec=None, tasks=None, **columns):
    """Write a run; `scores` maps (task, doc_hash) to a score or a list of scores of its repeats."""
    rows = []
    for number, ((task, doc_hash), values) in enumerate(scores.items()):
        for repeat, score in enumerate(values if isinstance(values, list) else [values]):
            rows.append(
                {
                    "run_id": f"{name}:seed0",
                    "task": task,
                    "doc_id": number,
                    "repeat": repeat,
                    "filter": "none",
                    "metric": "acc",
                    "model": name,
                    "seed": 0,
                    "doc_hash": doc_hash,
                    "prompt_hash": f"prompt of {doc_hash}",
                    "score": score,
                    "response": f"answer {score}",
                    "target": "right",
                    **{key: value(task, doc_hash) if callable(value) else value for key, value in columns.items()},
                }
            )
    tables.write(folder / "samples.parquet", tables.from_rows(tables.SAMPLES, rows), tables.SAMPLES)
    metrics = {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": True}]}
    record = {
        "name": name,
        "status": "complete",
        "spec": {"num_fewshot": 0, **(spec or {})},
        "model": {"path": f"/models/{name}"},
        "tasks": {task: {**metrics, **(tasks or {})} for task, _ in scores},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_audit(folder, labels, *, rules=("llama3",), fields=("question",)):
    """Write an audit; `labels` maps doc_hash to the label of its fields, or to one label for each field."""
    rows = [
        {
            "benchmark": "t",
            "doc_hash": doc_hash,
            "field": field,
            "rule": rule,
            "contamination": 0.0 if one == "clean" else 1.0,
            "label": one,
            "n_documents": 0,
        }
        for rule in rules
        for doc_hash, label in labels.items()
        for field, one in zip(fields, [label] * len(fields) if isinstance(label, str) else label, strict=True)
    ]
    tables.write(folder / "items.parquet", tables.from_rows(tables.ITEMS, rows), tables.ITEMS)
    (folder / "audit.json").write_text(json.dumps({"rules": list(rules)}))
    return folder
