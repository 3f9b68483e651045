"""Commands at addresses that are killed, disturbed or spied upon: nothing is lost, and nothing is given away."""

from __future__ import annotations

import json
import threading

import pytest

from evalkit.corpora import find_shards
from evalkit.errors import InputError
from tests.corpora.store import KEY, SECRET
from tests.corpora.web import Site, serve
from tests.places.commands import (
    audit_words,
    evalkit,
    expected,
    kill_when,
    results,
    start,
    written,
)


def secrets_in(text: str) -> list[str]:
    return [secret for secret in (SECRET, KEY, "hidden-signature") if secret in text]


@pytest.mark.parametrize(
    ("word", "elsewhere"), [("matches.parquet", False), ("matches.parquet", True), ("audit.json", False)]
)
def test_a_command_killed_while_it_publishes_goes_on(full, tmp_path, monkeypatch, word, elsewhere):
    words = audit_words(full, f"{full.url}/leaks")
    kill_when(full, f"leaks/{word}", *words)
    assert "audit.json" not in full.names("leaks")
    assert "no complete audit" in evalkit("audit", "show", f"{full.url}/leaks", code=2)
    if elsewhere:
        monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "another machine's"))
    evalkit(*words)
    assert results(full, "leaks") == expected(full)
    assert not [name for name in full.names("leaks") if name.startswith(".")]


def test_an_audit_killed_while_it_replaces_another_is_no_audit_until_it_has(full):
    leaks = f"{full.url}/leaks"
    evalkit(*audit_words(full, leaks))
    words = [*audit_words(full, leaks), "--rule", "palm", "--overwrite"]
    kill_when(full, "leaks/matches.parquet", *words)
    assert "no complete audit" in evalkit("audit", "show", leaks, code=2)
    evalkit(*words)
    assert json.loads(full.read("leaks/audit.json"))["rules"] == ["palm"]


def test_an_audit_killed_while_it_scans_goes_on_from_the_parts_at_the_address(full, tmp_path, monkeypatch):
    words = audit_words(full, f"{full.url}/leaks")
    n_parts = 0

    def third(method, path):
        nonlocal n_parts
        n_parts += method == "PUT" and "/leaks/.unfinished/" in path and ".near." in path
        return "drop" if n_parts >= 3 else None  # also when it is asked again

    full.proxy.held = third
    process = start(full, *words)
    while n_parts < 3:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.wait()
    full.proxy.held = lambda method, path: None
    parts = [name for name in full.names("leaks") if name.endswith(".parquet")]
    assert len(parts) == 4 and all(name.startswith(".unfinished/") for name in parts)
    with pytest.raises(InputError, match="nothing is at this address"):
        find_shards([f"{full.url}/leaks"])  # no corpus, either
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "another machine's"))
    process = start(full, *words)
    assert "2 of 4 parts were scanned before" in process.communicate()[1]
    assert results(full, "leaks") == expected(full)
    assert not [name for name in full.names("leaks") if name.startswith(".")]


def test_shares_of_an_audit_meet_at_an_address(full, tmp_path, monkeypatch):
    """As tasks of an array job on machines that share no disk."""
    words = audit_words(full, f"{full.url}/leaks")
    for number in (1, 2):
        monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / f"machine {number}"))
        evalkit(*words, "--share", f"{number}/2")
        assert "audit.json" not in full.names("leaks")
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "machine 3"))
    process = start(full, *words)
    assert "4 of 4 parts were scanned before" in process.communicate()[1]
    assert results(full, "leaks") == expected(full)
    assert not [name for name in full.names("leaks") if name.startswith(".")]


def test_two_commands_do_not_write_to_one_address_at_once(full):
    reached, go_on = threading.Event(), threading.Event()
    full.proxy.held = lambda method, path: "leaks/matches" in path and (reached.set(), go_on.wait(60))
    first = start(full, *audit_words(full, f"{full.url}/leaks"))
    assert reached.wait(60)
    assert "another command on this machine writes" in evalkit(*audit_words(full, f"{full.url}/leaks"), code=2)
    go_on.set()
    assert first.wait(60) == 0


def test_results_that_somebody_else_wrote_meanwhile_are_not_replaced(full):
    reached, go_on = threading.Event(), threading.Event()
    full.proxy.held = lambda method, path: "corpus/3.jsonl" in path and (reached.set(), go_on.wait(60))
    process = start(full, *audit_words(full, f"{full.url}/leaks"))
    assert reached.wait(60)
    full.write("leaks/audit.json", b"theirs")
    go_on.set()
    assert "by somebody else meanwhile" in process.communicate()[1]
    assert process.returncode == 2
    assert full.read("leaks/audit.json") == b"theirs"


def test_no_secret_is_in_any_output_or_file(full, tmp_path):
    """Neither the keys of the environment, nor a signed address, nor what libraries say about either."""
    with serve(Site({f"d/{name}": data for name, data in written().items()})) as site:
        query = f"X-Amz-Credential={KEY}&X-Amz-Signature=hidden-signature"
        corpus = [f"{site.url}/d/corpus/{n}.jsonl?{query}" for n in range(2)]
        words = ["audit", "--corpus", *corpus, "--benchmark", f"{site.url}/d/items.jsonl?{query}",
                 "--allow-bad-rows", "9", "--out", f"{full.url}/leaks", "--workers", "1"]  # fmt: skip
        process = start(full, *words)
        said = ["".join(process.communicate())]
        assert process.returncode == 0, said
        said.append(evalkit(*words, code=2))
        site.always = (0, 403)
        process = start(full, *words, "--overwrite")
        said.append("".join(process.communicate()))
        said.append(evalkit("audit", "verify", f"{full.url}/leaks", code=1))
    for place in (f"s3://{KEY}:{SECRET}@bucket/leaks", f"s3://{KEY}:{SECRET}@bucket"):
        said.append(evalkit(*audit_words(full, place), code=2))
        said.append(evalkit("audit", "show", place, code=2))
    full.proxy.faults += [403] * 20
    said.append(evalkit(*audit_words(full, f"{full.url}/other"), code=2))
    assert "already holds" in said[1] and "403" in said[2] and "403" in said[3] and "password stands" in said[4]
    assert [secrets_in(text) for text in said] == [[]] * len(said)
    for name in full.names():
        assert not secrets_in(name + full.read(name).decode("latin-1")), name
    for path in (tmp_path / "cache").rglob("*"):
        assert not secrets_in(str(path) + (path.read_bytes().decode("latin-1") if path.is_file() else "")), path
    record = json.loads(full.read("leaks/audit.json"))
    assert [one["file"] for one in record["corpus"]] == [f"{site.url}/d/corpus/{n}.jsonl" for n in range(2)]
