"""What docs/tasks.md shows is true: the task written there loads, and the items shown are those of seed 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_task_of_the_page_loads_and_scores(tmp_path: Path, score: Any) -> None:
    from lm_eval.tasks import TaskManager

    for name, code in re.findall(r"```\w+\n# mine/(\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / name).write_text(code, encoding="utf-8")
    task = TaskManager(include_path=str(tmp_path), include_defaults=False).load("my_sums")["tasks"]["my_sums"]
    doc = task.dataset["test"][0]
    assert score(task, doc, f" {doc['answer']}")["number"]["exact_match"] == 1
    assert score(task, doc, " none")["number"]["exact_match"] == 0


def test_the_items_of_the_page_are_real(generated: dict[str, Any]) -> None:
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    shown = " ".join(block.split())
    for name, task in generated.items():
        doc = task.dataset["test"][1]
        assert f"{name} {' '.join(doc['question'].split())}" in shown
        right = f"*{doc['choices'][doc['answer']]}*" if "choices" in doc else f"-> {doc['answer']}"
        assert right in shown
