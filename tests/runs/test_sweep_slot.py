"""A server's place on a cluster: what it makes of a job, what it tells, and on which nodes it takes no part."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from evalkit.errors import EngineError, ModelError, TaskError
from evalkit.runs import sweep_slot
from evalkit.runs.evaluate import run
from evalkit.runs.spec import make_spec
from evalkit.runs.sweep import SWEEP_ID, Checkpoint, swap_key
from evalkit.runs.sweep_slot import Job, Setup, Slot


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """Leave no collector on the loggers, stay in this folder, and look once only."""
    monkeypatch.setattr(sweep_slot, "_LOOKS", 1)
    monkeypatch.setattr(sweep_slot, "_NEWS_S", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = {name: logging.getLogger(name).handlers[:] for name in ("evalkit", "lm_eval")}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers[:] = handlers


def sweep_of(model, tasks_dir, out, **given):
    settings = {"tasks": "toy_mc", "tasks_dir": tasks_dir, "limit": 8, "device": "cpu", "engine": "ray"}
    return make_spec(None, {**settings, "checkpoints": str(model), "out": out, **given})


def slot_of(spec, *, found="this sweep"):
    spec.out.mkdir(parents=True, exist_ok=True)
    (spec.out / SWEEP_ID).write_text(f"{found}\n")
    return Slot(0, Setup(spec, "this sweep", str(Path.cwd())))


def job_of(spec, model):
    checkpoint = Checkpoint(Path(model), 7, "seed1", Path(model).name)
    return Job(checkpoint, spec.model_copy(update={"model": str(model), "out": spec.out / "run"}), swap_key(str(model)))


def test_a_job_becomes_the_run_that_this_process_would_make_and_all_is_told(tiny_model, tasks_dir, tmp_path):
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    slot, job = slot_of(spec), job_of(spec, tiny_model)
    slot._check_files()
    outcome = pickle.loads(pickle.dumps(slot.work(job, "server 0 on a", [])))
    news = slot.news()
    alone = run(job.spec.model_copy(update={"out": tmp_path / "alone"}))
    assert outcome.failure is None
    assert outcome.result.results == alone.results
    assert {path.name for path in job.spec.out.iterdir()} == {path.name for path in alone.directory.iterdir()} - {
        "journal.sqlite-wal",
        "journal.sqlite-shm",
    }
    assert news.n_done == 1
    said = [message for _, _, name, message, told in news.records if told and name == "evalkit"]
    assert said[-1] == f"{tiny_model}: {outcome.result.summary()}"
    # Once more: it is finished, and nothing is computed again.
    again = slot.work(job, "server 0 on a", [])
    assert again.result.to_dict() == outcome.result.to_dict()
    assert slot.news().n_done == 2
    slot.stop()


def test_a_bad_checkpoint_is_the_checkpoints_fault_and_missing_tasks_are_the_nodes(tiny_model, tasks_dir, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in tiny_model.iterdir():
        (bad / path.name).write_bytes(b"broken" if path.name == "model.safetensors" else path.read_bytes())
    spec = sweep_of(bad, tasks_dir, tmp_path / "sweep")
    failed = slot_of(spec).work(job_of(spec, bad), "server 0 on a", [])
    assert isinstance(failed.failure, ModelError)
    assert not failed.unfit
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "other", tasks="toy_none")
    unfit = slot_of(spec).work(job_of(spec, tiny_model), "server 0 on a", [])
    assert isinstance(unfit.failure, TaskError)
    assert unfit.unfit
    # As they travel to the driver, errors still say what, where and what to do.
    theirs = pickle.loads(pickle.dumps(unfit)).failure
    assert (str(theirs), theirs.where, theirs.do) == (str(unfit.failure), unfit.failure.where, unfit.failure.do)


def test_a_node_that_sees_another_directory_takes_no_part(tiny_model, tasks_dir, tmp_path):
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    with pytest.raises(EngineError, match=r"node .*does not see .*sweep as the driver does"):
        slot_of(spec, found="another sweep")._check_files()
    slot = slot_of(spec)
    (spec.out / SWEEP_ID).unlink()
    with pytest.raises(EngineError, match="all nodes share"):
        slot._check_files()


def test_while_a_job_is_under_way_its_bar_is_told(tiny_model, tasks_dir, tmp_path, monkeypatch):
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    slot, seen = slot_of(spec), []

    def look(*bar):
        slot_show(*bar)
        seen.append(slot.news().bar)

    slot_show = slot._show
    monkeypatch.setattr(slot, "_show", look)
    slot.work(job_of(spec, tiny_model), "server 0 on a", [])
    assert seen[0] == ("tiny", 0, 32)
    assert seen[-1] == ("tiny", 32, 32)
    assert slot.news().bar is None
