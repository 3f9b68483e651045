"""The wheel is complete: installed into an empty environment, away from the checkout, it finds its data folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_carries_the_data_folders_and_the_type_marker_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("tasks", "audits", "reports"):
        wanted = {
            f"evalkit/resources_data/{path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
            and path.suffix in {".yaml", ".py", ".j2", ".css", ".js"}
            and "__pycache__" not in path.parts
        }
        assert wanted
        assert wanted <= set(names)
    assert "evalkit/py.typed" in names
    assert "evalkit/judges/prompt_files/pairwise.yaml" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]


def test_an_empty_environment_with_the_wheel_lists_the_tasks_and_rules(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def call(*command):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    call(binaries / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    assert str(tmp_path) in call(binaries / "python", "-c", "import evalkit; print(evalkit.__file__)")
    listed = {task["name"] for task in json.loads(call(binaries / "evalkit", "tasks", "--json"))}
    assert {"gen_arithmetic", "gen_calendar", "gen_tables", "local_mmlu", "local_gsm8k", "local_humaneval"} <= listed
    (tmp_path / "corpus.jsonl").write_text('{"text": "they asked what is love and nobody knew"}\n')
    (tmp_path / "items.jsonl").write_text('{"id": 1, "question": "What is love?"}\n')
    audit = call(
        binaries / "evalkit", "audit", "--corpus", "corpus.jsonl", "--benchmark", "items.jsonl", "--out", "a", "--json"
    )
    assert [one["n_dirty"] for one in json.loads(audit)["summaries"]] == [1, 1]
