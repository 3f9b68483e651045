"""Patterns find the files that they seem to mean, each once, and nothing goes missing without a word."""

import functools
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.contamination import audit as audit_module
from evalkit.contamination.rules import load_rules
from evalkit.contamination.semantic import audit as semantic_module
from evalkit.corpora import find_shards
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.remote import Address
from evalkit.corpora.shards import FORMATS, Shard, ShardList
from evalkit.engines import LocalEngine
from evalkit.errors import InputError
from tests.contamination.audits import benchmark, documents, write_lines


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder as people have them: shards on two levels, hidden leftovers, a readme."""
    for name in (
        "b.jsonl",
        "a.jsonl.zst",
        "deep/er/c.parquet",
        ".hidden.jsonl",
        ".cache/d.jsonl",
        "README.md",
        "LICENSE",
    ):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path / "corpus"


def names(patterns: list[str]) -> list[str]:
    return [shard.path.name for shard in find_shards(patterns)]


def test_a_folder_means_all_readable_files_below_it_but_hidden_ones(corpus):
    assert names([str(corpus)]) == ["a.jsonl.zst", "b.jsonl", "c.parquet"]


def test_a_shard_knows_its_pattern_its_absolute_path_and_its_size(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    [shard] = find_shards(["deep/../b.jsonl"])
    assert (shard.corpus, shard.path, shard.size) == ("deep/../b.jsonl", corpus / "b.jsonl", 5)


def test_two_stars_match_any_depth_and_one_star_only_one(corpus):
    assert names([f"{corpus}/**/*.parquet"]) == ["c.parquet"]
    assert names([f"{corpus}/*.jsonl*"]) == ["a.jsonl.zst", "b.jsonl"]


def test_files_come_folder_by_folder_as_paths_are_compared(tmp_path):
    for name in ("a/b.jsonl", "a-b/c.jsonl", "a.jsonl", "a/b/d.jsonl", "A/é.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [shard.path for shard in find_shards([str(tmp_path)])]
    assert len(paths) == 5 and paths == sorted(paths) != sorted(paths, key=str)


def test_a_list_of_shards_is_one_but_for_its_memory():
    places = [Path("/data/a.jsonl"), Address("s3://bucket/é.jsonl"), DatasetPart("n", None, "train", 0, 2)]
    shards = [Shard(pattern, place, size) for size, place in enumerate(places) for pattern in ("one", "two")]
    kept = pickle.loads(pickle.dumps(ShardList(shards)))
    assert kept == shards == kept and list(kept) == shards and len(kept) == 6
    assert kept != shards[1:] and kept != shards[::-1] and kept != 6
    assert kept[-1] == shards[-1] and kept[1:5:2] == shards[1:5:2] and kept[7:] == []
    with pytest.raises(IndexError):
        kept[6]
    assert list(ShardList([])) == []
    with pytest.raises(ValueError, match=r"a\.jsonl is not whole"):
        ShardList([replace(shards[0], stop=3)])


def test_a_glob_that_matches_folders_means_the_files_below_them(corpus):
    assert names([f"{corpus}/d*"]) == ["c.parquet"]


def test_the_tilde_is_the_home_folder(corpus, monkeypatch):
    monkeypatch.setenv("HOME", str(corpus))
    assert names(["~/*.jsonl"]) == ["b.jsonl"]


def test_a_file_found_twice_belongs_to_the_first_pattern(corpus):
    (corpus / "link.jsonl").symlink_to(corpus / "b.jsonl")
    shards = find_shards([f"{corpus}/b*", str(corpus), f"{corpus}/*.jsonl"])
    assert [(shard.path.name, shard.corpus == f"{corpus}/b*") for shard in shards] == [
        ("a.jsonl.zst", False),
        ("b.jsonl", True),
        ("c.parquet", False),
    ]


def test_a_link_keeps_its_own_name_since_its_target_may_have_no_suffix(corpus, tmp_path):
    (tmp_path / "blob").write_bytes(b"1234567")
    (corpus / "snapshot.jsonl").symlink_to(tmp_path / "blob")
    [shard] = find_shards([f"{corpus}/snapshot.jsonl"])
    assert (shard.path, shard.size) == (corpus / "snapshot.jsonl", 7)


def test_folders_that_link_to_each_other_are_read_once(corpus):
    (corpus / "deep" / "loop").symlink_to(corpus)
    assert names([str(corpus)]) == ["a.jsonl.zst", "b.jsonl", "c.parquet"]


def test_a_file_whose_name_looks_like_a_glob_is_found_by_its_name(corpus):
    (corpus / "part[1].jsonl").write_bytes(b"")
    assert names([f"{corpus}/part[1].jsonl"]) == ["part[1].jsonl"]


def test_suffixes_count_in_any_case_of_letters(corpus):
    for suffix in FORMATS:
        (corpus / f"X{suffix.upper()}").write_bytes(b"")
    assert len(names([f"{corpus}/X*"])) == len(FORMATS)


def test_files_of_other_formats_are_counted_in_a_warning(corpus, capsys):
    names([str(corpus)])
    message = capsys.readouterr().err
    assert "left out 2 files" in message and "1 .md" in message and "1 without a suffix" in message


def test_no_warning_when_every_file_is_readable(corpus, capsys):
    names([f"{corpus}/*.jsonl"])
    assert capsys.readouterr().err == ""


def test_a_pattern_that_matches_nothing_shows_the_nearest_folder_that_exists(corpus):
    pattern = f"{corpus}/deep/missing/**/*.jsonl"
    with pytest.raises(InputError) as caught:
        find_shards([str(corpus), pattern])
    assert caught.value.where == pattern
    assert f"nearest folder that exists is {corpus / 'deep'})" in caught.value.what
    assert "quotes" in caught.value.do and ".parquet" in caught.value.do


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nothing matches"):
        find_shards([str(tmp_path)])


def test_a_pattern_with_only_unknown_files_names_their_suffixes(corpus):
    with pytest.raises(InputError, match=r"only 1 file \(1 \.md\).*\.jsonl\.zst"):
        find_shards([f"{corpus}/*.md"])


def test_a_folder_with_an_audit_is_left_out_of_a_folder_with_a_warning(corpus, capsys):
    for folder in ("deep/leaks", "more"):
        (corpus / folder / "below").mkdir(parents=True)
        for name in ("audit.json", "items.parquet", "bad_rows.jsonl", "below/x.jsonl"):
            (corpus / folder / name).write_bytes(b"{}")
    assert names([str(corpus)]) == ["a.jsonl.zst", "b.jsonl", "c.parquet"]
    message = capsys.readouterr().err
    assert f"left out the results in {corpus}" in message and "and 1 more" in message
    assert names([f"{corpus}/more/*.jsonl"]) == ["bad_rows.jsonl"]


def test_what_a_killed_audit_left_below_the_corpus_is_no_corpus_and_it_goes_on(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl", documents(benchmark()))
    kill = pytest.MonkeyPatch()
    kill.setattr(audit_module, "apply_rules", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    run = functools.partial(
        audit_module.audit, benchmarks=[benchmark()], rules=load_rules(["llama3"]), out=tmp_path / "leaks"
    )
    with pytest.raises(KeyboardInterrupt):
        run(find_shards([str(tmp_path)]), engine=LocalEngine(1))
    kill.undo()
    assert list((tmp_path / "leaks" / audit_module.WORK).rglob("*.parquet"))
    for pattern in (tmp_path, f"{tmp_path}/**/*.jsonl", f"file://{tmp_path}", f"{tmp_path}/*"):
        assert names([str(pattern)]) == ["a.jsonl"]
    monkeypatch.setattr(audit_module, "scan_part", lambda task: pytest.fail("a part was scanned again"))
    assert run(find_shards([str(tmp_path)]), engine=LocalEngine(1)).n_documents == 60
    assert semantic_module.WORK.startswith(".")


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9/a.jsonl"])
def test_a_name_that_is_not_utf8_is_refused_since_no_table_could_name_it(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"text": "t"}\n')
    for pattern in (str(tmp_path), str(path), f"{tmp_path}/*"):
        with pytest.raises(InputError, match=r"not UTF-8.*Rename"):
            find_shards([pattern])
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match="not UTF-8"):
        find_shards([f"{tmp_path}/\udce9/../b.jsonl"])


def test_a_folder_that_is_an_audit_itself_is_refused_as_such(tmp_path):
    (tmp_path / "audit.json").write_bytes(b"{}")
    (tmp_path / "items.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"the results in .*audit\.json.*by a glob"):
        find_shards([str(tmp_path)])


@pytest.mark.parametrize("patterns", [[""], [" "], ["{corpus}", ""]])
def test_an_empty_name_is_an_error_and_not_the_current_folder(corpus, monkeypatch, patterns):
    monkeypatch.chdir(corpus)
    with pytest.raises(InputError, match="--corpus: an empty name"):
        find_shards([pattern.format(corpus=corpus) for pattern in patterns])


def test_a_plain_json_file_is_no_shard(corpus):
    (corpus / "dataset_info.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"only 1 file \(1 \.json\)"):
        find_shards([f"{corpus}/dataset_info.json"])


def test_no_pattern_is_an_error():
    with pytest.raises(InputError, match="no corpus"):
        find_shards([])


def test_an_unknown_home_folder_is_reported_as_not_found():
    with pytest.raises(InputError, match="nothing matches"):
        find_shards(["~nobody-of-this-name/*.jsonl"])


def test_a_link_to_nothing_is_an_error_that_names_it(corpus):
    (corpus / "gone.jsonl").symlink_to(corpus / "nowhere")
    with pytest.raises(InputError, match=r"gone\.jsonl: .*No such file.*target may be gone"):
        find_shards([str(corpus)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_an_error(corpus):
    (corpus / "deep").chmod(0)
    try:
        with pytest.raises(InputError, match=r"deep: .*Permission denied"):
            find_shards([str(corpus)])
    finally:
        (corpus / "deep").chmod(0o755)


def test_a_pipe_is_refused_since_its_end_could_be_anywhere(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="pipe or a device"):
        find_shards([str(tmp_path)])
