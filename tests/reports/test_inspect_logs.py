"""Logs that inspect_ai itself wrote, and such as nobody should send."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib

import pytest
import zstandard

from evalkit.errors import InputError
from evalkit.reports import inspect_logs
from evalkit.reports.comparison import compare
from evalkit.reports.inputs import load_run
from tests.conftest import ROOT

LOGS = ROOT / "tests" / "reports" / "data" / "inspect"

REPORTED = {
    "a": {"match": 0.7916666666666666, "several/length": 3.875, "several/right": 0.7916666666666666, "letters": 0.375},
    "b": {"match": 0.36363636363636365, "several/length": 9.409090909090908, "several/right": 0.36363636363636365,
          "letters": 0.4090909090909091},
}  # fmt: skip
"""Means over items that inspect_ai 0.3.285 wrote into the logs' headers."""


@pytest.mark.parametrize("name", ["a.eval", "a.json", "b.eval"])
def test_the_means_are_those_that_inspect_reported(name):
    run = load_run(LOGS / name)
    assert run.tasks == ["sums"]
    assert run.metrics("sums")[0] == ("match", "none")
    for metric, reported in REPORTED[name[0]].items():
        items, _ = run.items("sums", (metric, "none"))
        assert items.score.mean() == pytest.approx(reported, abs=1e-12)


def test_both_formats_hold_the_same():
    one, other = (load_run(LOGS / name).samples for name in ("a.eval", "a.json"))
    keys = ["doc_hash", "repeat", "metric"]
    columns = [*keys, "score", "response", "target", "prompt_hash", "finish_reason"]
    assert one.sort_values(keys)[columns].values.tolist() == other.sort_values(keys)[columns].values.tolist()


def test_a_sample_that_failed_is_there_without_a_score():
    run = load_run(LOGS / "b.eval")
    answers = run.answers("sums", ("match", "none"))
    failed = answers[~answers.counts]
    assert len(answers) == 24
    assert len(failed) == 2
    assert failed.error.tolist() == ["ValueError('the [red]server[/red] <b>broke</b>\\nsecond line')"] * 2


def test_two_logs_are_compared_by_item_and_epoch():
    found = compare(LOGS / "a.eval", LOGS / "b.eval", slices="topic", cluster="passage")
    [task] = found.tasks
    assert (task.metric, task.subsets["all"].n_items, task.n_unscored) == ("match", 11, 2)
    assert task.subsets["all"].difference.unit == "clusters"
    assert task.subsets["all"].difference.n == 6
    assert task.noise.n_answers == 2
    counted = {one.name: one.estimate.n_items for one in found.slices.slices} | dict(found.slices.left_out)
    assert counted == {"odd": 6, "even": 5}


def test_a_folder_of_logs_is_one_run_and_two_of_a_task_are_refused(tmp_path):
    for name in ("a.eval", "b.eval"):
        (tmp_path / name).write_bytes((LOGS / name).read_bytes())
    with pytest.raises(InputError, match=r"two logs are of the task sums \(a\.eval, b\.eval\)"):
        load_run(tmp_path)
    (tmp_path / "b.eval").unlink()
    assert len(load_run(tmp_path).samples) == 24 * 4


def sample(number=0, **more):
    return {"id": number, "epoch": 1, "input": f"q{number}", "target": "x", "scores": {"s": {"value": "C"}}, **more}


def write_log(path, samples, header=None, method=zipfile.ZIP_DEFLATED):
    written = {"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, **(header or {})}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("header.json", json.dumps(written))
        for number, one in enumerate(samples):
            archive.writestr(f"samples/{number}_epoch_1.json", one if isinstance(one, str) else json.dumps(one))
    return path


@pytest.mark.parametrize(
    ("value", "score"),
    [("C", 1), ("I", 0), ("P", 0.5), ("N", 0), (True, 1), (0.25, 0.25), ("0.5", 0.5), ("Yes", 1), ("false", 0)],
)
def test_values_become_the_numbers_that_inspect_makes_of_them(tmp_path, value, score):
    run = load_run(write_log(tmp_path / "l.eval", [sample(scores={"s": {"value": value}})]))
    assert run.samples.score.tolist() == [score]


@pytest.mark.parametrize("value", ["maybe", [1, 2], None, "inf", float("nan")])
def test_values_that_are_no_number_are_no_score_and_not_zero(tmp_path, value):
    run = load_run(write_log(tmp_path / "l.eval", [sample(scores={"s": {"value": value}})]))
    assert run.samples.score.isna().all()


def test_messages_are_told_by_what_they_say_and_not_by_their_random_ids(tmp_path):
    def chat(random_id):
        said = [{"id": random_id, "role": "user", "content": "hello"}]
        return sample(input=said, messages=[*said, {"role": "assistant", "id": random_id, "content": random_id}])

    one, other = (load_run(write_log(tmp_path / f"{name}.eval", [chat(name)])).samples for name in ("x", "y"))
    assert one.doc_hash.tolist() == other.doc_hash.tolist()
    assert one.prompt_hash.tolist() == other.prompt_hash.tolist()


def test_other_system_messages_are_other_prompts(tmp_path):
    logs = []
    for name in ("x", "y"):
        told = [{"role": "system", "content": name}, {"role": "user", "content": "q0"}]
        logs.append(write_log(tmp_path / f"{name}.eval", [sample(messages=told)]))
    with pytest.raises(Exception, match="prompt_hash differs for 1 of 1 items"):
        compare(*logs)


def test_a_sample_written_again_counts_as_it_was_written_last(tmp_path):
    path = write_log(tmp_path / "l.eval", [sample(scores={"s": {"value": "I"}})])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("samples/0_epoch_1.json", json.dumps(sample()))
    assert load_run(path).samples.score.tolist() == [1.0]


def test_a_log_that_was_never_finished_is_read_and_told(tmp_path):
    path = tmp_path / "l.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": {"task": "t", "model": "m"}}))
        archive.writestr("samples/0_epoch_1.json", json.dumps(sample()))
    assert load_run(path).record["status"] == "started"
    assert "run A is not complete" in compare(path, path).warnings


def test_zstandard_in_several_frames_is_read_whole(tmp_path):
    """Of more than 200 MiB inspect writes several frames; here they are small."""
    content = json.dumps(sample(metadata={"long": "x" * 5000})).encode()
    packed = b"".join(zstandard.compress(part) for part in (content[:100], content[100:3000], content[3000:]))
    path = zip_by_hand(tmp_path / "l.eval", packed, len(content), zlib.crc32(content))
    assert load_run(path).samples.score.tolist() == [1.0]


def zip_by_hand(path, packed, size, crc, name=b"samples/0_epoch_1.json"):
    """A zip with a stored header.json and one file of method 93, whatever it claims."""
    header = json.dumps({"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}}).encode()
    body, directory = b"", b""
    for label, data, claimed, check, method in (
        (b"header.json", header, len(header), zlib.crc32(header), 0),
        (name, packed, size, crc, 93),
    ):
        fields = (63, 0, method, 0, 0, check, len(data), claimed, len(label), 0)
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 63, *fields[:5], *fields[5:10], 0, 0, 0, 0, len(body))
        directory += label
        body += struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + label + data
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def refusal(path):
    with pytest.raises(InputError) as error:
        load_run(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bomb_is_refused_before_and_while_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_logs, "MAX_ENTRY_BYTES", 10_000_000)
    honest = zip_by_hand(tmp_path / "honest.eval", zstandard.compress(b" " * 50_000_000), 50_000_000, 0)
    assert "it is 50 MB unpacked" in refusal(honest)
    lying = zip_by_hand(tmp_path / "lying.eval", zstandard.compress(b" " * 50_000_000), 1000, 0)
    assert "samples/0_epoch_1.json: it cannot be unpacked" in refusal(lying)
    deflated = write_log(tmp_path / "deflated.eval", [" " * 50_000_000])
    assert "it is 50 MB unpacked" in refusal(deflated)
    monkeypatch.setattr(inspect_logs, "MAX_LOG_BYTES", 1_000_000)
    assert "GB unpacked" in refusal(deflated)


def test_what_is_broken_is_told_with_file_and_entry(tmp_path):
    assert "this is no zip file" in refusal(_write(tmp_path / "l.eval", b"x" * 100))
    assert "samples/0_epoch_1.json: this is no JSON" in refusal(write_log(tmp_path / "j.eval", ["{"]))
    assert "this is no JSON object" in refusal(write_log(tmp_path / "o.eval", ["[]"]))
    assert "this is no JSON" in refusal(write_log(tmp_path / "d.eval", ["[" * 100_000]))
    assert "the epoch is 'x'" in refusal(write_log(tmp_path / "e.eval", [sample(epoch="x")]))
    assert "the log has no samples" in refusal(write_log(tmp_path / "n.eval", []))
    newer = write_log(tmp_path / "v.eval", [sample()], header={"version": 3})
    assert "the log has format 3" in refusal(newer)
    packed = bytearray((LOGS / "a.eval").read_bytes())
    packed[2000:2040] = bytes(40)
    assert "unpacked" in refusal(_write(tmp_path / "c.eval", bytes(packed)))


def _write(path, content):
    path.write_bytes(content)
    return path
