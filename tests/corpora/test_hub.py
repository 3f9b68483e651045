"""Hugging Face datasets, saved or as folders of files, read as what `datasets` itself loads."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from evalkit.corpora import Shard, find_shards, read_shard
from evalkit.corpora.hub import DatasetPart
from evalkit.errors import InputError
from tests.corpora.formats import Row, as_shard, read_all, write

TRAIN = datasets.Dataset.from_list(
    [{"id": n, "text": f"train {n}", "messages": [{"role": "u", "content": f"chat {n}"}]} for n in range(50)]
)
TEST = datasets.Dataset.from_list([{"id": n, "text": f"test {n}", "messages": []} for n in range(7)])


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.DatasetDict({"train": TRAIN, "test": TEST}).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "test": 1}
    )
    return tmp_path / "saved"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset as one has it on the Hub: data files, named by split."""
    path = tmp_path / "folder"
    (path / "data").mkdir(parents=True)
    TRAIN.select(range(30)).to_parquet(path / "data/train-00000-of-00002.parquet")
    TRAIN.select(range(30, 50)).to_parquet(path / "data/train-00001-of-00002.parquet")
    TEST.to_parquet(path / "data/test-00000-of-00001.parquet")
    (path / "README.md").write_text("# A dataset\n")
    return path


def read(shards: Sequence[Shard], **options: object) -> list[Row]:
    return [row for shard in shards for row in read_all(shard, **options)[0]]


def texts(shards: Sequence[Shard]) -> list[str]:
    return [text for _, _, text in read(shards)]


def test_a_saved_dataset_is_a_folder_of_shards(saved, capsys):
    shards = find_shards([str(saved)])
    assert capsys.readouterr().err == ""
    assert [shard.path.name for shard in shards] == ["data-00000-of-00001.arrow"] + [
        f"data-0000{n}-of-00003.arrow" for n in range(3)
    ]
    assert texts(shards) == list(TEST["text"]) + list(TRAIN["text"])
    assert read(shards[1:], text_column="messages[].content")[3] == (3, "3", "chat 3")


@pytest.mark.parametrize("suffix", ["", "::train"])
def test_a_saved_dataset_can_be_named_as_a_dataset_and_by_split(saved, suffix):
    shards = find_shards([f"hf:{saved}{suffix}"])
    assert texts(shards) == (list(TRAIN["text"]) if suffix else list(TEST["text"]) + list(TRAIN["text"]))
    assert {shard.corpus for shard in shards} == {f"hf:{saved}{suffix}"}


def test_caches_beside_a_saved_dataset_are_not_read_as_more_of_it(saved, capsys):
    loaded = datasets.load_from_disk(str(saved / "train"))
    loaded.filter(lambda row: row["id"] < 5)
    loaded.map(lambda row: {"text": row["text"].upper()})
    assert list((saved / "train").glob("cache-*.arrow"))
    assert texts(find_shards([str(saved / "train")])) == list(TRAIN["text"])
    assert "caches of `datasets`" in capsys.readouterr().err


def test_selected_rows_are_saved_and_read_as_selected(tmp_path):
    TRAIN.select([5, 3, 40]).save_to_disk(tmp_path / "some")
    assert texts(find_shards([f"hf:{tmp_path}/some"])) == ["train 5", "train 3", "train 40"]


def test_a_folder_that_datasets_can_load_gives_its_data_files(folder):
    shards = find_shards([f"hf:{folder}"])
    assert [shard.path for shard in shards] == sorted((folder / "data").iterdir())
    assert texts(find_shards([f"hf:{folder}:default:train"])) == list(TRAIN["text"])
    assert texts(find_shards([f"hf:{folder}::test"])) == list(TEST["text"])
    assert find_shards([f"hf:{folder}", str(folder)]) == shards


def test_configurations_name_files_as_the_dataset_card_says(tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_text(json.dumps({"text": name}) + "\n")
    card = {"configs": [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("en", "de")]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    assert texts(find_shards([f"hf:{tmp_path}:de"])) == ["de"]
    with pytest.raises(InputError, match=r"cannot be looked at .*(en|de)"):
        find_shards([f"hf:{tmp_path}"])


def test_files_of_other_formats_are_streamed_through_datasets(tmp_path):
    for number in range(3):
        TRAIN.select_columns(["id", "text"]).select(range(number * 10, number * 10 + 10)).to_csv(
            tmp_path / f"train-{number}.csv"
        )
    shards = find_shards([f"hf:{tmp_path}::train"])
    assert [shard.path for shard in shards] == [DatasetPart(str(tmp_path), None, "train", n, 3) for n in range(3)]
    assert [shard.path.name for shard in shards] == [f"train-0000{n}-of-00003" for n in range(3)]
    assert pickle.loads(pickle.dumps(shards)) == shards
    assert [read_all(shard)[0] for shard in shards] == [
        [(n, str(10 * part + n), f"train {10 * part + n}") for n in range(10)] for part in range(3)
    ]
    with pytest.raises(InputError, match=r"train/train-00000.*no text column 'body' \(the columns are: id, text\)"):
        read_all(shards[0], text_column="body")


def test_a_json_file_that_is_no_json_lines_is_streamed(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"text": f"text {n}"} for n in range(5)]))
    assert texts(find_shards([f"hf:{tmp_path}"])) == [f"text {n}" for n in range(5)]


def test_a_part_that_cannot_be_streamed_to_its_end_is_an_error(tmp_path):
    path = tmp_path / "train.csv"
    TRAIN.select_columns(["text"]).to_csv(path)
    [shard] = find_shards([f"hf:{tmp_path}"])
    path.unlink()
    with pytest.raises(InputError, match="cannot be read to its end"):
        read_all(shard)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(saved, folder):
    for name in (saved, folder):
        with pytest.raises(InputError, match=r"no split 'dev' \(it has: .*train"):
            find_shards([f"hf:{name}::dev"])


def test_a_dataset_that_is_not_here_and_cannot_be_fetched_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing: this dataset cannot be looked at"):
        find_shards(["hf:nobody/nothing"])
    with pytest.raises(InputError, match="cannot be looked at"):
        find_shards(["hf://datasets/nobody/nothing/*.jsonl"])


@pytest.mark.parametrize("pattern", ["hf:", "hf::train", "hf:a:b:c:d", "hf:a:b:"])
def test_a_malformed_name_is_refused(pattern):
    with pytest.raises(InputError, match="names no dataset"):
        find_shards([pattern])


def test_no_code_of_a_dataset_is_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(InputError, match="cannot be looked at"):
        find_shards([f"hf:{folder}"])
    assert not (tmp_path / "ran").exists()


def test_an_arrow_file_cut_anywhere_is_refused(tmp_path):
    TRAIN.save_to_disk(tmp_path / "saved")
    [whole] = (tmp_path / "saved").glob("*.arrow")
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(InputError, match="cut short or corrupt"):
            read_all(write(tmp_path / "cut.arrow", data[:length]))
    # Also between two batches, where what is left is a stream without its last mark.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TRAIN.data.schema) as writer:
        writer.write_table(TRAIN.data.table, max_chunksize=10)
    data = sink.getvalue().to_pybytes()
    for length in range(len(data) - 500, len(data), 8):
        with pytest.raises(InputError, match="cut short or corrupt"):
            read_all(write(tmp_path / "cut.arrow", data[:length]))


def test_progress_of_an_arrow_file_adds_up_to_its_size(tmp_path):
    for name, new in (("f.arrow", pa.ipc.new_stream), ("g.arrow", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, TRAIN.data.schema) as writer:
            writer.write_table(TRAIN.data.table, max_chunksize=5)
        shard = as_shard(tmp_path / name)
        told: list[int] = []
        for _ in read_shard(shard, on_progress=told.append):
            pass
        assert sum(told) == shard.size
        assert len(told) > 5 and min(told) >= 0


def test_an_arrow_file_without_rows_has_no_documents(tmp_path):
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as file, pa.ipc.new_stream(file, TRAIN.data.schema):
        pass
    assert read_all(as_shard(tmp_path / "f.arrow"))[0] == []


def test_a_flipped_bit_in_an_arrow_file_gives_documents_or_an_error_and_never_ends_the_process(tmp_path):
    table = TRAIN.data.table.append_column("word", pa.array([f"w{n % 5}" for n in range(50)]).dictionary_encode())
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        sink = pa.BufferOutputStream()
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
        whole = sink.getvalue().to_pybytes()
        for position in range(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            shard = write(tmp_path / "damaged.arrow", bytes(damaged))
            with contextlib.suppress(InputError):
                read_all(shard, text_column=["messages[].content", "word"])
