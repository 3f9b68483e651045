"""Shares of an audit, scanned by processes on their own, are what one audit would have scanned."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.contamination import audit as audits
from evalkit.contamination import parts
from evalkit.contamination.audit import WORK, Share
from evalkit.contamination.recorded import FILES_SUFFIX, NEAR_SUFFIX
from evalkit.errors import SpecError
from tests.contamination.test_parts import corpus  # noqa: F401 - a fixture

N = 3
SMALL_PARTS = """
import sys
from evalkit.contamination import audit
audit.PART_BYTES = 5000
from evalkit.cli import main
sys.argv = ["evalkit", *sys.argv[1:]]
main()
"""


def options(corpus, out):  # noqa: F811
    given = ["audit", "--corpus", str(corpus / "corpus"), "--benchmark", str(corpus / "items.jsonl"), "--out", str(out)]
    return [*given, "--workers", "1", "--allow-bad-rows", "999", "--rule", "llama3", "--fuzzy"]


def begin(arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_PARTS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def files(folder):
    """Everything but the record, which has the time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "audit.json"}


def record(folder):
    kept = json.loads((folder / "audit.json").read_text())
    return {name: value for name, value in kept.items() if name not in ("seconds", "finished")}


def part_files(out):
    found = [path.name for path in (out / WORK).glob("*.parquet")]
    return {name for name in found if not name.endswith((NEAR_SUFFIX, FILES_SUFFIX))}


def test_shares_scanned_at_once_and_merged_are_the_plain_audit_byte_for_byte(corpus):  # noqa: F811
    plain = begin(options(corpus, corpus / "plain"))
    assert plain.wait() == 0, plain.stderr.read()
    out = corpus / "shared"
    shares = [begin([*options(corpus, out), "--share", f"{number}/{N}", "--json"]) for number in range(1, N + 1)]
    results = []
    for share in shares:
        printed, errors = share.communicate()
        assert share.returncode == 0, errors
        results.append(json.loads(printed))
    assert not (out / "audit.json").exists()
    n_parts = results[0]["n_parts"]
    assert n_parts > 60
    assert sum(one["n_scanned"] for one in results) == n_parts == len(part_files(out))
    assert max(one["n_scanned"] for one in results) - min(one["n_scanned"] for one in results) <= 1
    assert min(one["n_left"] for one in results) == 0
    merge = begin(options(corpus, out))
    _, errors = merge.communicate()
    assert merge.returncode == 0, errors
    assert f"{n_parts} of {n_parts} parts were scanned before" in errors
    assert files(out) == files(corpus / "plain")
    assert record(out) == record(corpus / "plain")


def test_shares_that_begin_later_or_again_do_not_disturb_those_at_work(corpus):  # noqa: F811
    """Each of two shares twice at the same time, the second when the first has written parts already."""
    out = corpus / "staggered"
    begun = []
    for number in (1, 2, 1, 2):
        begun.append(begin([*options(corpus, out), "--share", f"{number}/2", "--json"]))
        until = time.monotonic() + 60
        n_before = len(part_files(out))
        while begun[-1].poll() is None and len(part_files(out)) < n_before + 3 and time.monotonic() < until:
            time.sleep(0.01)
    for share in begun:
        _, errors = share.communicate()
        assert share.returncode == 0, errors
    plain = begin(options(corpus, corpus / "plain"))
    merge = begin(options(corpus, out))
    for one in (plain, merge):
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    assert files(out) == files(corpus / "plain")
    assert not (out / WORK).exists()


def test_where_files_are_many_a_share_looks_into_its_own_only(corpus, monkeypatch):  # noqa: F811
    monkeypatch.setattr(audits, "PART_BYTES", 5000)
    monkeypatch.setattr(audits, "FILES_OF_SHARE", 6)
    out, cut, real = corpus / "out", [], parts.split_shard
    monkeypatch.setattr(parts, "split_shard", lambda shard, n: (cut.append(shard.path.name), real(shard, n))[1])
    first = CliRunner().invoke(app, [*options(corpus, out), "--share", "2/2"])
    assert first.exit_code == 0, first.output
    assert sorted(cut) == [f"{number:02}.jsonl" for number in range(1, 12, 2)]
    assert f"share 2/2: {len(part_files(out))} parts of its files are scanned" in first.stdout
    other = CliRunner().invoke(app, [*options(corpus, out), "--share", "1/2", "--json"])
    assert other.exit_code == 0, other.output
    assert sorted(set(cut)) == sorted(cut) and len(cut) == 12
    printed = json.loads(other.stdout)
    assert (printed["n_parts"], printed["n_left"]) == (None, None)
    n_parts = len(part_files(out))
    done = CliRunner().invoke(app, options(corpus, out))
    assert done.exit_code == 0, done.output
    assert f"{n_parts} of {n_parts} parts were scanned before" in done.stderr
    whole = CliRunner().invoke(app, options(corpus, corpus / "plain"))
    assert whole.exit_code == 0
    assert files(out) == files(corpus / "plain")


def test_a_share_says_what_is_left_and_the_audit_scans_what_no_share_has(corpus, monkeypatch):  # noqa: F811
    monkeypatch.setattr(audits, "PART_BYTES", 5000)
    out = corpus / "out"
    first = CliRunner().invoke(app, [*options(corpus, out), "--share", "2/2"])
    assert first.exit_code == 0, first.output
    n_done = len(part_files(out))
    assert f"share 2/2: {n_done} of " in first.stdout
    assert "parts are left to other shares" in first.stdout
    assert "the same command without --share" in first.stdout
    again = CliRunner().invoke(app, [*options(corpus, out), "--share", "2/2"])
    assert f"({n_done} before)" in again.stdout
    done = CliRunner().invoke(app, options(corpus, out))
    assert done.exit_code == 0, done.output
    assert not (out / WORK).exists()
    late = CliRunner().invoke(app, [*options(corpus, out), "--share", "1/2"])
    assert isinstance(late.exception, SpecError)
    assert not (out / WORK).exists()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(SpecError, match="I/N"):
        Share.parse(text)


def test_a_share_is_not_cleaned_and_splits_no_scores(corpus):  # noqa: F811
    for more in (["--clean", str(corpus / "clean")], ["--semantic"], ["--run", "somewhere"]):
        refused = CliRunner().invoke(app, [*options(corpus, corpus / "out"), "--share", "1/2", *more])
        assert isinstance(refused.exception, SpecError)
        assert not (corpus / "out").exists()
