"""The written corpus has every row but those of documents that are not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalkit import tables
from evalkit.corpora.shards import find_shards
from evalkit.dedup.dedup import CLUSTERS, DedupSpec, dedup
from evalkit.dedup.keep import WRITTEN, write_kept
from evalkit.dedup.lsh import Bands
from evalkit.engines import LocalEngine
from evalkit.errors import InputError, SpecError
from tests.dedup import corpora
from tests.dedup.test_dedup import DyingEngine

TEXTS = corpora.documents(60)


@pytest.fixture
def deduplicated(tmp_path):
    corpus = corpora.write(tmp_path / "corpus", TEXTS, 3)
    shards = find_shards([str(corpus)])
    dedup(shards, tmp_path / "out", DedupSpec(bands=Bands(20, 1), threshold=0.5), engine=LocalEngine(1))
    return tmp_path, shards


def ids(folder):
    lines = [line for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_text().split("\n")]
    return [json.loads(line)["id"] if line else "" for line in lines]


def test_only_what_is_not_kept_is_gone(deduplicated):
    folder, shards = deduplicated
    rows = tables.read(folder / "out" / CLUSTERS, tables.CLUSTERS).to_pylist()
    removed = {row["doc_id"] for row in rows if not row["keep"]}
    assert removed
    files = write_kept(folder / "out", shards, folder / "kept", engine=LocalEngine(1))
    assert [path.name for path in files] == ["00.jsonl", "01.jsonl", "02.jsonl"]
    assert ids(folder / "kept") == [one for one in ids(folder / "corpus") if one not in removed]
    again = dedup(
        find_shards([str(folder / "kept")]),
        folder / "again",
        DedupSpec(bands=Bands(20, 1), threshold=0.5),
        engine=LocalEngine(1),
    )
    assert again.n_removed == 0


def test_a_kill_loses_nothing_and_mistakes_are_told(deduplicated):
    folder, shards = deduplicated
    with pytest.raises(KeyboardInterrupt):
        write_kept(folder / "out", shards, folder / "kept", engine=DyingEngine(1))
    assert not (folder / "kept" / WRITTEN).exists()
    write_kept(folder / "out", shards, folder / "kept", engine=DyingEngine(2))
    with pytest.raises(SpecError, match="written here"):
        write_kept(folder / "out", shards, folder / "kept", engine=LocalEngine(1))
    before = ids(folder / "kept")
    write_kept(folder / "out", shards, folder / "kept", overwrite=True, engine=LocalEngine(1))
    assert ids(folder / "kept") == before
    with pytest.raises(SpecError, match="corpus"):
        write_kept(folder / "out", shards, folder / "corpus" / "kept")
    with pytest.raises(SpecError, match="not empty"):
        write_kept(folder / "out", shards, folder / "out")
    with pytest.raises(InputError, match="another"):
        write_kept(folder / "out", shards[1:], folder / "other")
    with pytest.raises(InputError, match="no finished"):
        write_kept(folder / "kept", shards, folder / "other")
