"""Progress that another process shows, and several pieces of work in one display."""

from __future__ import annotations

import json
import logging

import pytest

from evalkit import progress
from evalkit.progress import bars_to, log_to, progress_bar, progress_rows, say, warn


def test_bars_are_told_to_a_sink_while_there_is_one(capsys):
    told = []
    with bars_to(lambda *one: told.append(one)), progress_bar("a model", 10, unit="requests") as bar:
        bar.advance()
        bar.advance(2)
        bar.describe("another")
    assert told == [("a model", 0, 10), ("a model", 1, 10), ("a model", 3, 10), ("another", 3, 10)]
    with progress_bar("a model", 10) as bar:
        bar.advance()
    assert len(told) == 4


def test_lines_say_now_and_then_how_far_all_are(monkeypatch, capsys):
    monkeypatch.setattr(progress._RowLines, "every_s", 0.0)
    with progress_rows("checkpoints", 3) as rows:
        rows.show(0, "server 0: a", 5, 10)
        rows.show(1, "server 1: b", 1, None)
        rows.advance()
        rows.hide(0)
        rows.show(1, "server 1: b", 2, None)
    assert capsys.readouterr().err.splitlines() == [
        "0 of 3 checkpoints; server 0: a 5/10",
        "0 of 3 checkpoints; server 0: a 5/10; server 1: b 1",
        "1 of 3 checkpoints; server 1: b 2",
    ]


def test_on_a_terminal_each_piece_has_a_bar_until_it_is_hidden(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("EVALKIT_NO_PROGRESS", raising=False)
    with progress_rows("checkpoints", 3) as rows:
        rows.show(0, "server 0: a", 5, 10)
        rows.show(0, "server 0: b", 6, 10)
        rows.advance()
        tasks = {task.description: (task.completed, task.total) for task in rows._progress.tasks}
        assert tasks == {"checkpoints": (1, 3), "server 0: b": (6, 10)}
        rows.hide(0)
        rows.hide(0)
        assert [task.description for task in rows._progress.tasks] == ["checkpoints"]


@pytest.mark.parametrize("tell", [say, warn])
def test_what_the_user_is_told_is_marked_in_the_log(tell, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="evalkit"):
        tell("something")
        progress.logger.info("something else")
    assert [getattr(one, "told", False) for one in caplog.records] == [True, False]


def test_the_log_names_the_server_that_a_record_is_of(tmp_path):
    with log_to(tmp_path / "log.jsonl"):
        progress.logger.info("here")
        record = {"name": "evalkit", "levelno": 20, "levelname": "INFO", "msg": "100% there", "server": "server 1"}
        progress.logger.handle(logging.makeLogRecord({**record, "created": 0.0}))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "server" not in lines[0]
    assert lines[1]["server"] == "server 1"
    assert (lines[1]["message"], lines[1]["time"]) == ("100% there", "1970-01-01T00:00:00Z")
