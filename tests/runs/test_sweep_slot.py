"""A server's place on a cluster: what it makes of a job, what it tells, and on which nodes it takes no part."""

from __future__ import annotations

import logging
import pickle
import platform
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from evalkit.errors import EngineError, ModelError, TaskError
from evalkit.runs import sweep_news, sweep_slot
from evalkit.runs.evaluate import run
from evalkit.runs.spec import make_spec
from evalkit.runs.sweep import SWEEP_ID, Checkpoint, swap_key
from evalkit.runs.sweep_news import Mailbox
from evalkit.runs.sweep_slot import Job, Setup, Slot


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """Leave no collector on the loggers, stay in this folder, and look once only."""
    monkeypatch.setattr(sweep_slot, "_LOOKS", 1)
    monkeypatch.setattr(sweep_news, "REPORT_S", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = {name: logging.getLogger(name).handlers[:] for name in ("evalkit", "lm_eval")}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers[:] = handlers


def sweep_of(model, tasks_dir, out, **given):
    settings = {"tasks": "toy_mc", "tasks_dir": tasks_dir, "limit": 8, "device": "cpu", "engine": "ray"}
    return make_spec(None, {**settings, "checkpoints": str(model), "out": out, **given})


def slot_of(spec, *, found="this sweep", post=lambda news: False):
    spec.out.mkdir(parents=True, exist_ok=True)
    (spec.out / SWEEP_ID).write_text(f"{found}\n")
    return Slot(0, Setup(spec, "this sweep", str(Path.cwd())), post)


def job_of(spec, model):
    checkpoint = Checkpoint(Path(model), 7, "seed1", Path(model).name)
    return Job(checkpoint, spec.model_copy(update={"model": str(model), "out": spec.out / "run"}), swap_key(str(model)))


def test_a_job_becomes_the_run_that_this_process_would_make_and_all_is_told(tiny_model, tasks_dir, tmp_path):
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    mailbox = Mailbox()
    slot, job = slot_of(spec, post=lambda news: mailbox.put(0, news)), job_of(spec, tiny_model)
    slot._check_files()
    outcome = pickle.loads(pickle.dumps(slot.work(job, "server 0 on a", [])))
    news = mailbox.take()[0]
    alone = run(job.spec.model_copy(update={"out": tmp_path / "alone"}))
    assert outcome.failure is None
    assert outcome.result.results == alone.results
    assert {path.name for path in job.spec.out.iterdir()} == {path.name for path in alone.directory.iterdir()} - {
        "journal.sqlite-wal",
        "journal.sqlite-shm",
    }
    said = [line.message for line in news.lines if line.is_told and line.logger == "evalkit"]
    assert said[-1] == f"{tiny_model}: {outcome.result.summary()}"
    # Once more: it is finished, and nothing is computed again.
    again = slot.work(job, "server 0 on a", [])
    assert again.result.to_dict() == outcome.result.to_dict()
    assert "nothing was computed again" in mailbox.take()[0].lines[-1].message


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
    spec, mailbox, seen = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep"), Mailbox(), []
    slot = slot_of(spec, post=lambda news: mailbox.put(0, news))

    def look(*bar):
        slot_show(*bar)
        slot._reporter.send()
        seen.append(mailbox.take()[0].bar)

    slot_show = slot._show
    monkeypatch.setattr(slot, "_show", look)
    slot.work(job_of(spec, tiny_model), "server 0 on a", [])
    assert seen[0] == ("tiny", 0, 32)
    assert seen[-1] == ("tiny", 32, 32)
    assert mailbox.take()[0].bar is None


def test_what_does_not_arrive_is_told_again_and_nothing_twice(tiny_model, tasks_dir, tmp_path):
    arrived, answers = [], iter([None, False, False])

    def post(news):
        answer = next(answers, False)
        if answer is not None:
            arrived.extend(line.message for line in news.lines)
        return answer

    reporter = slot_of(sweep_of(tiny_model, tasks_dir, tmp_path / "sweep"), post=post)._reporter
    for message in ("one", "two", "three"):
        logging.getLogger("evalkit").info(message)
        reporter.send()
    assert arrived == ["one", "two", "three"]


def test_when_all_is_over_the_journal_of_the_job_under_way_is_copied_first(
    tiny_model, tasks_dir, tmp_path, monkeypatch
):
    ended = threading.Event()

    def post(news):
        if news.has_ended:
            ended.set()
        return bool(news.bar and news.bar[1] >= 8)

    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    slot, job = slot_of(spec, post=post), job_of(spec, tiny_model)
    journal, found = job.spec.out / "journal.sqlite", []

    def look(*bar):
        slot_show(*bar)
        if bar[1] == 8:
            # The job goes no further until its journal is copied.
            assert ended.wait(20)
            with sqlite3.connect(f"{journal.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
                found.extend(connection.execute("SELECT count(*) FROM answers").fetchone())

    slot_show = slot._show
    monkeypatch.setattr(slot, "_show", look)
    slot.work(job, "server 0 on a", [])
    assert found == [8]


def failing_task(tasks_dir, folder, error):
    """The tasks, and one whose metric raises what a full disk or a broken device would make it raise."""
    shutil.copytree(tasks_dir, folder)
    (folder / "broken.py").write_text(f"import sqlite3\n\ndef process_results(doc, results):\n    raise {error}\n")
    definition = (folder / "toy_mc.yaml").read_text().replace("task: toy_mc", "task: toy_broken")
    (folder / "toy_broken.yaml").write_text(f"{definition}process_results: !function broken.process_results\n")
    return folder


@pytest.mark.parametrize(
    ("error", "spoilt"),
    [
        ("OSError(28, 'No space left on device')", False),
        ("sqlite3.OperationalError('disk I/O error')", False),
        ("RuntimeError('CUDA error: an illegal memory access')", True),
    ],
)
def test_what_the_machine_fails_at_fails_one_job_and_its_traceback_is_logged(
    tiny_model, tasks_dir, tmp_path, error, spoilt
):
    folder = failing_task(tasks_dir, tmp_path / "tasks", error)
    spec, lines = sweep_of(tiny_model, folder, tmp_path / "sweep", tasks="toy_broken"), []
    slot = slot_of(spec, post=lambda news: lines.extend(news.lines) or False)
    outcome = pickle.loads(pickle.dumps(slot.work(job_of(spec, tiny_model), "server 0 on a", [])))
    assert isinstance(outcome.failure, EngineError)
    assert (outcome.unfit, outcome.spoilt) == (False, spoilt)
    assert str(outcome.failure).startswith(f"node {platform.node()}: {error.partition('(')[0].split('.')[-1]}: ")
    [logged] = [line.message for line in lines if line.level == logging.ERROR]
    assert "in process_results" in logged


def test_a_run_directory_that_cannot_be_made_fails_one_job(tiny_model, tasks_dir, tmp_path):
    spec = sweep_of(tiny_model, tasks_dir, tmp_path / "sweep")
    slot, job = slot_of(spec), job_of(spec, tiny_model)
    job.spec.out.write_text("a file in the place of a folder")
    assert isinstance(slot.work(job, "server 0 on a", []).failure, EngineError)


def test_a_bug_is_raised(tiny_model, tasks_dir, tmp_path):
    folder = failing_task(tasks_dir, tmp_path / "tasks", "KeyError('a bug')")
    spec = sweep_of(tiny_model, folder, tmp_path / "sweep", tasks="toy_broken")
    with pytest.raises(KeyError, match="a bug"):
        slot_of(spec).work(job_of(spec, tiny_model), "server 0 on a", [])
