"""The quickstart, on the real model: every planted item is found, and the story ends with a verdict and a page."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from evalkit import tables
from evalkit.errors import SpecError
from evalkit.quickstart import TASKS, quickstart


@pytest.mark.model
def test_the_whole_job_finds_what_it_planted_and_names_each_command(demo_model, tmp_path):
    out = tmp_path / "demo"
    (out / "models").mkdir(parents=True)
    (out / "models" / "smollm2-135m").symlink_to(demo_model)
    said = io.StringIO()
    page = quickstart(out, limit=40, console=Console(file=said, width=120))
    planted = json.loads((out / "corpus" / "planted.json").read_text())
    assert len(planted) == 10 * len(TASKS)
    items = tables.read(out / "audit" / "items.parquet", tables.ITEMS).to_pylist()
    dirty = {item["doc_hash"] for item in items if item["label"] != "clean"}
    assert planted.keys() <= dirty
    assert len(dirty) <= 1.1 * len(planted)
    story = said.getvalue()
    assert all(f"$ evalkit {command} " in story for command in ("run", "audit", "compare", "report"))
    assert f"{len(planted)} of the {len(planted)} planted items found" in story
    assert "On all 120 items, smollm2-135m-4bit" in story
    # Differences, items that only one gets right, power, and the leak.
    assert page.read_text(encoding="utf-8").count("<svg") == 4


def test_another_limit_in_the_same_folder_is_told_what_the_quickstart_can_do(tmp_path):
    for name in ("smollm2-135m", "smollm2-135m-4bit"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "runs" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "runs" / "smollm2-135m" / "run.json").write_text('{"spec": {"limit": 100}}')
    with pytest.raises(SpecError, match="limit") as error:
        quickstart(tmp_path, limit=40, console=Console(file=io.StringIO()))
    assert "overwrite" not in str(error.value)
    assert f"Give another --out, or the --limit of before; or delete {tmp_path / 'runs'}" in error.value.do


def test_too_few_items_are_refused(tmp_path):
    with pytest.raises(SpecError, match="say nothing"):
        quickstart(tmp_path, limit=5, console=Console())
