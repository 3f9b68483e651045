"""A journal on a node's disk is copied whole, taken up again wherever it lies, and never mixed with an old log."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from evalkit.errors import EngineError, InputError
from evalkit.runs import journal as journal_module
from evalkit.runs.journal import Journal
from evalkit.runs.mirror import Mirror, local_folder, remove_old_folders


def answers(path):
    """All answers of a file that is copied by itself, as a network file system would have it."""
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM answers")}


def add(journal, *keys):
    for key in keys:
        journal.add(key, "generate", {"prompt": key}, {"text": key})


def folder(tmp_path, name="local"):
    made = tmp_path / name
    made.mkdir(exist_ok=True)
    return made


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_copy_is_whole_at_the_end_and_grows_meanwhile(tmp_path):
    place = tmp_path / "run" / "journal.sqlite"
    with Mirror(folder(tmp_path), every_s=0.05).open(place) as journal:
        add(journal, "a", "b")
        wait_for(lambda: place.exists() and answers(place) == {"a", "b"})
        add(journal, "c")
        wait_for(lambda: answers(place) == {"a", "b", "c"})
        add(journal, "d")
    assert answers(place) == {"a", "b", "c", "d"}
    assert [path.name for path in place.parent.iterdir()] == ["journal.sqlite"]
    assert not (tmp_path / "local").exists()
    with Journal(place, read_only=True) as journal:
        assert journal.find(["d"]) == {"d": {"text": "d"}}


def test_nothing_is_copied_when_nothing_is_new(tmp_path):
    place, mirror = tmp_path / "journal.sqlite", Mirror(folder(tmp_path), every_s=60)
    with mirror.open(place) as journal:
        add(journal, "a")
        mirror.publish()
        first = place.stat().st_ino
        mirror.publish()
        assert place.stat().st_ino == first


def test_what_the_run_directory_holds_is_taken_up_with_the_log_of_a_killed_run(tmp_path):
    place = tmp_path / "run" / "journal.sqlite"
    code = (
        "import os, pathlib, sys\nfrom evalkit.runs.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for key in 'abc': journal.add(key, 'generate', {}, {'text': key})\nos.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(place)], check=False).returncode == -signal.SIGKILL
    assert place.with_name("journal.sqlite-wal").stat().st_size > 0
    with Mirror(folder(tmp_path)).open(place) as journal:
        assert set(journal.find("abc")) == set("abc")
        add(journal, "d")
    # The old log must not be laid over the new file.
    assert [path.name for path in place.parent.iterdir()] == ["journal.sqlite"]
    with Journal(place) as journal:
        assert set(journal.find("abcd")) == set("abcd")


def test_a_process_that_is_killed_leaves_all_answers_on_the_node_and_the_last_copy_elsewhere(tmp_path):
    place, local = tmp_path / "run" / "journal.sqlite", folder(tmp_path)
    code = (
        "import os, pathlib, sys\nfrom evalkit.runs.mirror import Mirror\n"
        "mirror = Mirror(pathlib.Path(sys.argv[2]), every_s=60)\n"
        "with mirror.open(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.add('a', 'generate', {}, {})\n    mirror.publish()\n"
        "    journal.add('b', 'generate', {}, {})\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(place), str(local)], check=False)
    assert answers(place) == {"a"}
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    with Mirror(folder(tmp_path, "other node")).open(tmp_path / "elsewhere" / "journal.sqlite") as journal:
        assert set(journal.find("ab")) == {"a"}
    with Mirror(local).open(place) as journal:
        assert set(journal.find("ab")) == {"a", "b"}
    assert answers(place) == {"a", "b"}


def test_what_is_interrupted_by_an_error_is_copied_too(tmp_path):
    place = tmp_path / "journal.sqlite"

    def interrupted():
        with Mirror(folder(tmp_path), every_s=60).open(place) as journal:
            add(journal, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert answers(place) == {"a"}


def test_who_has_lost_the_lease_copies_nothing(tmp_path):
    place = tmp_path / "journal.sqlite"

    def refuse():
        raise EngineError("taken for dead")

    def work():
        with Mirror(folder(tmp_path), every_s=0.02, check=refuse).open(place) as journal:
            add(journal, "a")
            time.sleep(0.1)

    with pytest.raises(EngineError, match="taken for dead"):
        work()
    assert not place.exists()
    assert (tmp_path / "local" / "journal.sqlite").exists()


def test_who_has_lost_the_lease_since_the_last_copy_is_told_so(tmp_path):
    place, is_lost = tmp_path / "journal.sqlite", []

    def check():
        if is_lost:
            raise EngineError("taken for dead")

    mirror = Mirror(folder(tmp_path), every_s=60, check=check)

    def work():
        with mirror.open(place) as journal:
            add(journal, "a")
            mirror.publish()
            is_lost.append(True)

    with pytest.raises(EngineError, match="taken for dead"):
        work()
    assert answers(place) == {"a"}


def test_who_has_lost_the_lease_gets_no_further_than_the_next_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_CHECK_S", 0.0)
    added = []

    def check():
        if len(added) == 2:
            raise EngineError("taken for dead")

    def work():
        with Mirror(folder(tmp_path), every_s=60, check=check).open(tmp_path / "journal.sqlite") as journal:
            for key in "abcd":
                add(journal, key)
                added.append(key)

    with pytest.raises(EngineError, match="taken for dead"):
        work()
    assert added == ["a", "b"]


def test_a_place_that_cannot_be_written_is_told_and_the_answers_stay(tmp_path, capsys):
    blocked = tmp_path / "run"
    blocked.write_text("a file in the place of a folder")

    def work():
        with Mirror(folder(tmp_path), every_s=0.02).open(blocked / "journal.sqlite") as journal:
            add(journal, "a")
            time.sleep(0.2)

    with pytest.raises(EngineError, match=r"its answers are in .*local"):
        work()
    assert capsys.readouterr().err.count("it is tried again") == 1
    with Journal(tmp_path / "local" / "journal.sqlite") as journal:
        assert set(journal.find("a")) == {"a"}


def test_a_damaged_journal_is_named(tmp_path):
    place = tmp_path / "journal.sqlite"
    place.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=str(place)), Mirror(folder(tmp_path)).open(place):
        pass


def test_the_local_folder_is_this_users_and_the_same_for_each_process_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one = local_folder(tmp_path / "out" / "a", "id")
    assert one == local_folder(tmp_path / "out" / "a", "id")
    assert len({one, local_folder(tmp_path / "out" / "b", "id"), local_folder(tmp_path / "out" / "a", "other")}) == 3
    assert one.stat().st_mode & 0o777 == one.parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(one.parent)
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"evalkit-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="belongs to somebody else"):
        local_folder(tmp_path / "out" / "a", "id")


def test_what_nobody_has_touched_for_a_month_is_removed_from_the_node(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, used, new = (local_folder(tmp_path / "out" / name, "id") for name in ("old", "used", "new"))
    for one in (old, used, new):
        (one / "journal.sqlite").write_bytes(b"")
    a_month_ago = time.time() - 31 * 24 * 3600
    for one in (old, old / "journal.sqlite", used):
        os.utime(one, (a_month_ago, a_month_ago))
    remove_old_folders()
    assert [one.exists() for one in (old, used, new)] == [False, True, True]
