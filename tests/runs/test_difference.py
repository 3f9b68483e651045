"""The difference of two runs: every setting, in the order in which it may change scores, and no outcome."""

from __future__ import annotations

import json

import pytest

from evalkit.errors import InputError, SpecError
from evalkit.runs.difference import diff_runs

RECORD = {
    "name": "m",
    "status": "complete",
    "spec": {"num_fewshot": 0, "gen_kwargs": {}, "batch_size": 8},
    "model": {"weights_sha256": "aa", "dtype": "float32"},
    "tasks": {"t": {"version": 1.0, "doc_hashes_sha256": "dd"}},
    "packages": {"torch": "2.13.0"},
    "git": None,
    "results": {"1234": {"t": {"acc,none": 0.5}}},
    "started": "now",
}


def write(folder, record):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_equal_settings_are_no_difference_whatever_came_out(tmp_path):
    other = {**RECORD, "results": {}, "started": "later", "wall_seconds": 3}
    assert diff_runs(write(tmp_path / "a", RECORD), write(tmp_path / "b", other)) == []


def test_fields_come_in_the_order_in_which_they_may_change_scores(tmp_path):
    other = {
        **RECORD,
        "name": "n",
        "spec": {"num_fewshot": 5, "gen_kwargs": {"temperature": 1}, "batch_size": 1},
        "model": {"weights_sha256": "bb", "dtype": "bfloat16"},
        "tasks": {"t": {"version": 2.0, "doc_hashes_sha256": "ee"}},
        "packages": {"torch": "2.14.0"},
        "git": {"commit": "c", "dirty": True},
    }
    found = diff_runs(write(tmp_path / "a", RECORD), write(tmp_path / "b", other))
    assert [one.field for one in found] == [
        "model.weights_sha256",
        "spec.num_fewshot",
        "spec.gen_kwargs.temperature",
        "tasks.t.doc_hashes_sha256",
        "tasks.t.version",
        "model.dtype",
        "spec.batch_size",
        "packages.torch",
        "git.commit",
        "git.dirty",
        "name",
    ]
    assert (found[1].a, found[1].b, found[1].about) == (0, 5, "the prompts")
    assert found[2].a is None


def test_what_is_no_run_is_refused(tmp_path):
    run = write(tmp_path / "a", RECORD)
    with pytest.raises(InputError, match="there is no run here"):
        diff_runs(run, tmp_path / "none")
    (run / "run.json").write_text("{")
    with pytest.raises(SpecError, match="not a run's record"):
        diff_runs(run, run)
