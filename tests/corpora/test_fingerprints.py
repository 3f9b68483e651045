"""A file's fingerprint is what its description says, whoever hashes its pieces, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.corpora import find_shards, fingerprints, remote
from evalkit.corpora.fingerprints import dataset_identity, fingerprint, hash_piece, join_hashes, pieces_of
from evalkit.corpora.remote import Address
from evalkit.errors import InputError
from tests.corpora.web import Site, serve


def by_its_description(data: bytes, piece_bytes: int) -> str:
    digests = b"".join(
        hashlib.sha256(data[start : start + piece_bytes]).digest() for start in range(0, len(data), piece_bytes)
    )
    return hashlib.sha256(digests).hexdigest()


@settings(max_examples=50)
@given(data=st.binary(max_size=40), piece_bytes=st.integers(1, 12))
def test_the_fingerprint_is_the_hash_of_the_pieces_hashes(data, piece_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "file"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "PIECE_BYTES", piece_bytes)
        patch.setattr(fingerprints, "_READ_BYTES", 3)
        told: list[int] = []
        assert fingerprint(path, len(data), told.append) == by_its_description(data, piece_bytes)
        assert sum(told) == len(data)
        hashes = [hash_piece(path, len(data), *piece) for piece in pieces_of(len(data))]
    assert join_hashes(hashes) == by_its_description(data, piece_bytes)


def test_a_file_of_one_piece_has_the_hash_of_its_hash(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"text")
    assert fingerprint(path, 4) == hashlib.sha256(hashlib.sha256(b"text").digest()).hexdigest()
    assert pieces_of((64 << 20) + 1) == [(0, 64 << 20), (64 << 20, (64 << 20) + 1)]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_file_elsewhere_has_the_fingerprint_that_it_has_here(knows_ranges, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100)
    monkeypatch.setattr(fingerprints, "PIECE_BYTES", 250)
    data = bytes(range(256)) * 5
    with serve(Site({"part.jsonl": data}, knows_ranges=knows_ranges)) as site:
        assert fingerprint(Address(f"{site.url}/part.jsonl"), len(data)) == by_its_description(data, 250)


def test_a_file_that_changed_its_size_or_is_gone_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(InputError, match="has 4 bytes now, and had 5"):
        fingerprint(path, 5)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        hash_piece(path, 4, 0, 4)


def test_a_dataset_without_files_of_ours_is_told_by_its_data_files(tmp_path: Path):
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    table.to_csv(tmp_path / "train.csv")
    [shard] = find_shards([f"hf:{tmp_path}"])
    before = dataset_identity(shard.path)
    assert before is not None and before.startswith("data-files:")
    fingerprints._identity.cache_clear()
    assert dataset_identity(shard.path) == before
    table.to_csv(tmp_path / "test.csv")
    fingerprints._identity.cache_clear()
    assert dataset_identity(shard.path) != before
