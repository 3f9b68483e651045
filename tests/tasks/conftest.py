"""Loads the tasks through lm-eval itself, from this checkout and without the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TASKS = Path(__file__).resolve().parents[2] / "tasks"

Load = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def load() -> Load:
    """`load(names, **metadata)` gives the tasks by name, with this metadata of the run."""
    from lm_eval.tasks import TaskManager

    def load_tasks(names: str | list[str], **metadata: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
        tasks: dict[str, Any] = manager.load([names] if isinstance(names, str) else names)["tasks"]
        return tasks

    return load_tasks


@pytest.fixture(scope="session")
def generated(load: Load) -> dict[str, Any]:
    """All generated tasks with their own seed and size."""
    return load("evalkit_generated")


@pytest.fixture(scope="session")
def score() -> Callable[[Any, dict[str, Any], Any], dict[str, dict[str, float]]]:
    """`score(task, doc, response)` gives {filter: {metric: score}} for one response, as lm-eval would."""
    from lm_eval.api.instance import Instance

    def score_response(task: Any, doc: dict[str, Any], response: Any) -> dict[str, dict[str, float]]:
        responses = response if isinstance(response, list) else [response]
        instances = [
            Instance(request_type=task.OUTPUT_TYPE, doc=doc, arguments=(), idx=index, resps=[one])
            for index, one in enumerate(responses)
        ]
        task._instances = instances
        task.apply_filters()
        names = instances[0].filtered_resps
        return {
            name: task.process_results(doc, [instance.filtered_resps[name] for instance in instances]) for name in names
        }

    return score_response


@pytest.fixture(scope="session")
def benchmarks(data_dir: Path) -> Iterator[Path]:
    """The folder of real benchmark files."""
    yield data_dir / "benchmarks"
