"""Scores equal lm-eval's own command on the same task, model and settings, to the last digit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from evalkit import tables
from evalkit.runs.evaluate import run
from evalkit.runs.spec import make_spec
from tests.conftest import ROOT


def lm_eval_command(model, tasks, include, out, *options):
    """Run `lm_eval run` and return its aggregated results and its samples by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--log_samples"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--tasks", ",".join(tasks)]
    command += ["--include_path", str(include), "--output_path", str(out), *map(str, options)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = out.rglob("results_*.json")
    samples = {}
    for task in tasks:
        [path] = out.rglob(f"samples_{task}_*.jsonl")
        samples[task] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text())["results"], samples


def check_equal(result, aggregated, samples):
    """Hold a run of ours against lm-eval's: aggregates, each item's metrics, hashes and texts."""
    [of_seed] = result.results.values()
    for task, scores in of_seed.items():
        expected = {key: value for key, value in aggregated[task].items() if "," in key and "_stderr" not in key}
        assert scores == expected
    rows = {
        (row["task"], row["doc_id"], row["filter"], row["metric"]): row
        for row in tables.read(result.directory / "samples.parquet", tables.SAMPLES).to_pylist()
    }
    n_checked = 0
    for task, logged in samples.items():
        for sample in logged:
            for metric in sample["metrics"]:
                row = rows[task, sample["doc_id"], sample["filter"], metric]
                assert row["score"] == sample[metric]
                assert row["doc_hash"] == sample["doc_hash"]
                first = sample["resps"][0][0]
                assert not isinstance(first, str) or row["response"] == first
                n_checked += 1
    assert n_checked == len(rows)


def spec(model, tasks, tasks_dir, out, **more):
    given = {"model": str(model), "tasks": ",".join(tasks), "tasks_dir": tasks_dir, "out": out, "dtype": "float32"}
    return make_spec(None, {**given, "device": "cpu", **more})


@pytest.mark.model
def test_on_the_real_model_with_a_random_subset(demo_model, tasks_dir, tmp_path):
    tasks = ["toy_mc", "toy_gen", "gen_series"]
    result = run(spec(demo_model, tasks, tasks_dir, tmp_path / "run", limit=12))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    subset = {task: record["tasks"][task]["subset"] for task in tasks}
    assert all(indices != list(range(12)) for indices in subset.values())
    # lm-eval takes one folder of tasks: ours and the test's are put side by side.
    both = tmp_path / "tasks"
    both.mkdir()
    shutil.copytree(ROOT / "tasks" / "generated", both / "ours")
    for path in tasks_dir.glob("*.yaml"):
        (both / path.name).write_text(path.read_text())
    expected = lm_eval_command(
        demo_model, tasks, both, tmp_path / "lm", "--batch_size", 8, "--samples", json.dumps(subset)
    )
    check_equal(result, *expected)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--batch_size", 8), {}),
        (("--batch_size", 1), {"batch_size": 1}),
        (("--batch_size", 8, "--num_fewshot", 2, "--seed", "0,7,7,7"), {"num_fewshot": 2, "seeds": "7"}),
        (("--batch_size", 8, "--num_fewshot", 1, "--apply_chat_template"), {"num_fewshot": 1, "chat_template": True}),
        (("--batch_size", 8, "--gen_kwargs", "max_gen_toks=4"), {"gen_kwargs": "max_gen_toks=4"}),
    ],
    ids=["defaults", "batch size 1", "few-shot with a seed", "chat template", "generation settings"],
)
def test_on_a_tiny_model_with_other_settings(tiny_model, tasks_dir, tmp_path, options, settings):
    tasks = ["toy_mc", "toy_gen"]
    result = run(spec(tiny_model, tasks, tasks_dir, tmp_path / "run", **settings))
    check_equal(result, *lm_eval_command(tiny_model, tasks, tasks_dir, tmp_path / "lm", *options))
