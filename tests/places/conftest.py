"""A bucket with a corpus, and a working folder in which mistaken paths would be seen."""

from __future__ import annotations

import pytest

from evalkit.corpora import remote
from tests.conftest import ROOT
from tests.corpora.store import Store, object_server, store  # noqa: F401 - fixtures
from tests.places.commands import written


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A working folder in which a folder called `s3:` would be seen."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    yield tmp_path / "here"
    assert not [path for path in (tmp_path / "here").rglob("*") if ":" in path.name]


@pytest.fixture
def full(store: Store) -> Store:  # noqa: F811
    """The bucket with the corpus and the benchmark."""
    for name, data in written().items():
        store.write(name, data)
    return store
