"""Every file has a place of its own below the new folder, wherever the audit was started and whatever the names are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.corpora import Shard
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.layout import below, check_apart, layout
from evalkit.corpora.remote import Address
from evalkit.errors import InputError, SpecError


def local(pattern, *paths):
    return [Shard(pattern, Path(path), 1) for path in paths]


def remote(pattern, *urls):
    return [Shard(pattern, Address(url), 1) for url in urls]


@pytest.mark.parametrize(
    ("pattern", "paths", "expected"),
    [
        ("/d/corpus", ["/d/corpus/web/a.jsonl", "/d/corpus/b.jsonl"], ["web/a.jsonl", "b.jsonl"]),
        ("/d/corpus", ["/d/corpus/web/a.jsonl"], ["web/a.jsonl"]),
        ("corpus", ["/d/corpus/web/a.jsonl"], ["web/a.jsonl"]),
        ("./corpus/**/*.jsonl", ["/d/corpus/web/a.jsonl"], ["web/a.jsonl"]),
        ("../corpus/*/a.jsonl", ["/d/corpus/web/a.jsonl"], ["web/a.jsonl"]),
        ("/d/corpus/web/a.jsonl", ["/d/corpus/web/a.jsonl"], ["a.jsonl"]),
        (".", ["/d/corpus/web/a.jsonl", "/d/corpus/b.jsonl"], ["web/a.jsonl", "b.jsonl"]),
        ("a", ["/a/a/a/x.jsonl"], ["x.jsonl"]),
    ],
)
def test_files_keep_their_path_below_the_folder_that_the_pattern_names(pattern, paths, expected):
    assert layout(local(pattern, *paths)) == expected


def test_files_of_the_same_name_in_two_corpora_stay_apart():
    shards = [*local("/x/train", "/x/train/a.jsonl"), *local("/y/train", "/y/train/a.jsonl")]
    assert layout(shards) == ["x/train/a.jsonl", "y/train/a.jsonl"]
    shards = [*local("d/web/*.jsonl", "/d/web/a.jsonl"), *local("d/books/*.jsonl", "/d/books/a.jsonl")]
    assert layout(shards) == ["web/a.jsonl", "books/a.jsonl"]


def test_files_of_other_machines_and_of_datasets_have_places_too():
    [name] = layout(remote("s3://bucket/c4/**", "s3://bucket/c4/en/a.parquet"))
    assert name == "en/a.parquet"
    part = DatasetPart("org/name", None, "train", 0, 2)
    assert layout([Shard("hf:org/name", part, 0)]) == ["train-00000-of-00002.parquet"]
    shards = [
        *local("/d", "/d/a.jsonl"),
        *remote("https://h.org/d/", "https://h.org/d/a.jsonl"),
        Shard("hf:org/name", part, 0),
    ]
    assert layout(shards) == [
        "file/d/a.jsonl",
        "https/h.org/d/a.jsonl",
        "hf/org/name/default/train/train-00000-of-00002.parquet",
    ]


def test_no_address_leads_out_of_the_folder_and_queries_tell_files_apart():
    [name] = layout(remote("memory://x/../../etc/*.jsonl", "memory://x/../../etc/a.jsonl"))
    assert ".." not in name
    first, second = layout(remote("https://h/a.jsonl", "https://h/a.jsonl?v=1", "https://h/a.jsonl?v=2"))
    assert first != second


@pytest.mark.parametrize(
    "shard",
    [
        Shard("/d/corpus", Path("/d/corpus/../victim/b.jsonl"), 1),
        Shard("/d/corpus", Path("corpus/b.jsonl"), 1),
        Shard("hf:x", DatasetPart("x", "../../..", "train", 0, 1), 0),
        Shard("hf:x", DatasetPart("x", None, "../../etc/train", 0, 1), 0),
        Shard("hf:x", DatasetPart("x", None, "/etc/train", 0, 1), 0),
    ],
)
def test_a_name_that_could_lead_out_of_the_folder_is_refused(shard):
    for others in ([], local("/d/other", "/d/other/a.jsonl"), remote("s3://b/**", "s3://b/a.jsonl")):
        with pytest.raises(InputError, match=r"audit again|Audit again"):
            layout([shard, *others])


def test_a_path_below_a_folder_is_below_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path.parent)
    (tmp_path / "file.jsonl").symlink_to("/etc/hostname")  # a link in the place of the file is replaced, not followed
    for name in ("a.jsonl", "in/a.jsonl", "new/deep/a.jsonl", "..a/b..", "file.jsonl"):
        assert below(tmp_path, name) == tmp_path / name
    for name in ("../a", "in/../a", "in/..", "..", ".", "", "/etc/a", "link/a", "a//b", "a/./b", "a/"):
        with pytest.raises(InputError, match="outside"):
            below(tmp_path, name)


def test_two_files_for_one_place_are_refused():
    with pytest.raises(SpecError, match=r"2 files.*one by one"):
        layout(remote("memory://x/*", "memory://x/a/b.jsonl", "memory://x/a//b.jsonl"))


FOLDERS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)


@given(
    st.sets(FOLDERS.map(tuple), min_size=1), st.lists(st.sampled_from(["a", "a/b", "/a", "b/**", ".", "*"]), min_size=1)
)
def test_no_two_files_ever_share_a_place(folders, patterns):
    shards = [
        Shard(patterns[n % len(patterns)], Path("/", *folder, "x.jsonl"), 1) for n, folder in enumerate(sorted(folders))
    ]
    assert len(set(layout(shards))) == len(shards)


def test_the_new_folder_lies_apart_from_the_corpus(tmp_path):
    corpus = tmp_path / "corpus"
    for name in ("a.jsonl", "web/b.jsonl"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("")
    paths = [corpus / "a.jsonl", corpus / "web" / "b.jsonl"]
    for inside in (corpus, tmp_path, corpus / "web", corpus / "new"):
        with pytest.raises(SpecError, match="lies"):
            check_apart(inside, local(str(corpus), *paths))
    (tmp_path / "link").symlink_to(corpus)
    with pytest.raises(SpecError, match="lies below"):
        check_apart(tmp_path / "link" / "new", local(str(corpus), *paths))
    with pytest.raises(SpecError, match="would find"):
        check_apart(corpus / "new", local(f"{corpus}/**/*.jsonl", *paths))
    check_apart(tmp_path / "corpus-clean", local(str(corpus), *paths))
    check_apart(corpus / "new", local(f"{corpus}/*.jsonl", paths[0]))
    check_apart(corpus / "new", local(str(paths[0]), paths[0]))
