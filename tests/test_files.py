"""Files appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from evalkit import files


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    files.write_text(path, "old")
    code = textwrap.dedent(f"""
        import os, pathlib, signal
        from evalkit.files import atomic_path
        with atomic_path(pathlib.Path({str(path)!r})) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_text() == "old"


def test_json_is_strict(tmp_path):
    path = tmp_path / "f.json"
    files.write_json(path, {"a": np.float64("nan"), "b": np.int64(3), "c": np.arange(2), 4: path})
    assert json.loads(path.read_text()) == {"a": None, "b": 3, "c": [0, 1], "4": str(path)}


def test_a_folder_is_removed_with_all_that_is_in_it_and_nothing_else(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    (elsewhere / "kept").touch()
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("one", "deep/two"):
        (folder / name).touch()
    (folder / "link").symlink_to(elsewhere)
    files.remove_folder(folder)
    files.remove_folder(folder)
    assert not folder.exists() and (elsewhere / "kept").exists()
    folder.symlink_to(elsewhere)
    files.remove_folder(folder)
    assert (elsewhere / "kept").exists() and (elsewhere / "below").exists()
