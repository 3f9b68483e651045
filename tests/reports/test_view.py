"""The viewer: lists and serves what lies under a folder, to nobody without the key, and nothing outside the folder."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evalkit.errors import InputError
from evalkit.reports import view
from evalkit.reports.view import ADDRESS, doorway, make_server
from tests.reports.runs import write_audit, write_run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "<b>all"


@pytest.fixture
def served(tmp_path, folder):
    values = {("t", f"{i}"): float(i % 3 > 0) for i in range(30)}
    write_run(folder / "a", values, name="base")
    write_run(folder / "b", {key: float(int(key[1]) % 2) for key in values}, name="new")
    write_audit(folder / "audit", {f"{i}": "dirty" if i % 5 == 0 else "clean" for i in range(30)})
    (folder / "old.html").write_text("<script>fetch('/')</script>")
    (tmp_path / "secret.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    with running(folder) as address:
        yield address


@contextlib.contextmanager
def running(folder):
    with make_server(folder) as (server, address):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield urlsplit(address)
        server.shutdown()


def get(address, path, **headers):
    connection = http.client.HTTPConnection(ADDRESS, address.port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def links(page, kind):
    return re.findall(f"href='(/{kind}/[0-9a-f]{{16}})'", page)


def cookie(address):
    status, page, headers = get(address, f"/?{address.query}")
    assert status == 200
    assert "content='0;url=/'" in page
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    return headers["Set-Cookie"].split(";")[0]


def test_it_lists_runs_audits_and_pages_and_serves_them(served):
    key = {"Cookie": cookie(served)}
    status, index, headers = get(served, "/", **key)
    assert status == 200
    assert "unsafe" not in headers["Content-Security-Policy"]
    a, b = links(index, "run")
    [audit] = links(index, "audit")
    assert "<b>all" not in index
    assert "base" in get(served, a, **key)[1]
    assert "dirty" in get(served, audit, **key)[1]
    status, page, _ = get(served, f"/report?a={a[5:]}&b={b[5:]}&audit={audit[7:]}", **key)
    assert status == 200
    assert "Is new better than base?" in page


def test_names_stay_when_others_are_added(served, folder):
    key = {"Cookie": cookie(served)}
    before = links(get(served, "/", **key)[1], "run")
    write_run(folder / "_first", {("t", "1"): 1.0}, name="another")
    after = links(get(served, "/", **key)[1], "run")
    assert after[1:] == before
    assert "base" in get(served, before[0], **key)[1]


def test_what_is_not_listed_is_counted(served, monkeypatch):
    monkeypatch.setattr(view, "MOST_LISTED", 1)
    index = get(served, "/", Cookie=cookie(served))[1]
    assert len(links(index, "run")) == 1
    assert "and 1 more, which are not listed" in index


def test_without_the_key_or_under_another_name_nothing_is_served(served):
    for path in ("/", "/run/0", "/?key=", "/?key=wrong", "/report?a=0&b=1"):
        assert get(served, path)[0] == 403
    name = cookie(served).split("=")[0]
    for wrong in (f"{name}=wrong", f"{name}=", f"{name}=\xff", cookie(served).replace(name, "evalkit_key_1")):
        assert get(served, "/", Cookie=wrong)[0] == 403


def test_cookies_of_others_do_not_matter_however_odd_they_are(served):
    assert str(served.port) in cookie(served).split("=")[0]
    for others in ('odd={"a": 1, b}; ', "\xe4=\xfc; a b; ;; ", "evalkit_key_1=other; "):
        assert get(served, "/", Cookie=others + cookie(served))[0] == 200


def test_a_request_under_another_name_is_refused(served):
    assert get(served, "/", Cookie=cookie(served), Host="evil.example")[0] == 403


def test_a_stored_page_runs_apart_and_what_lies_outside_is_not_found(served):
    key = {"Cookie": cookie(served)}
    _, index, _ = get(served, "/", **key)
    [page] = links(index, "page")
    status, _, headers = get(served, page, **key)
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    for path in ("/page/1", "/page/../../secret.html", "/run/-1", "/nothing", "/report?a=0", "//["):
        assert get(served, path, **key)[0] == 404


def test_an_address_that_is_none_is_answered(served):
    request = f"GET http://[ HTTP/1.1\r\nHost: {served.netloc}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((ADDRESS, served.port), timeout=60) as connection:
        connection.sendall(request.encode())
        assert connection.makefile("rb").readline().split()[1] == b"404"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        make_server(tmp_path / "none")


def test_a_run_with_a_link_that_leads_out_is_not_served(served, folder, tmp_path):
    elsewhere = write_run(tmp_path / "elsewhere", {("t", "1"): 1.0})
    (folder / "c").mkdir()
    (folder / "c" / "run.json").write_text("{}")
    (folder / "c" / "samples.parquet").symlink_to(elsewhere / "samples.parquet")
    (folder / "d").symlink_to(elsewhere)
    (folder / "loop.html").symlink_to(folder / "loop.html")
    assert len(links(get(served, "/", Cookie=cookie(served))[1], "run")) == 2


def test_a_report_reads_no_journal_and_no_corpus_outside_the_folder(tmp_path):
    from tests.contamination.audits import audited, benchmark, documents, write_lines

    items, folder = benchmark(), tmp_path / "all"
    corpus = write_lines(tmp_path / "corpus.jsonl", documents(items))
    audited(corpus, folder / "leaks", items)
    for side in "ab":
        write_run(folder / side, {("b", one.doc_hash): float(n % 2) for n, one in enumerate(items.items)})
    shown = []
    for root in (folder, tmp_path):
        with running(root) as address:
            key = {"Cookie": cookie(address)}
            index = get(address, "/", **key)[1]
            (a, b), [audit] = links(index, "run"), links(index, "audit")
            page = get(address, f"/report?a={a[5:]}&b={b[5:]}&audit={audit[7:]}", **key)[1]
            shown.append("files of the corpus are not in this folder" in page)
    assert shown == [True, False]


def test_what_is_broken_is_said_and_the_next_is_served(served, folder, capfd):
    (folder / "audit" / "audit.json").write_text('{"totals": [1]}')
    (folder / "a" / "run.json").write_text('{"tasks": {"t": {"metrics": [{"metric": []}]}}}')
    (folder / "b" / "samples.parquet").write_bytes(b"no table")
    key = {"Cookie": cookie(served)}
    index = get(served, "/", **key)[1]
    [audit], (a, b) = links(index, "audit"), links(index, "run")
    assert [get(served, path, **key)[0] for path in (audit, b)] == [500, 400]
    assert get(served, a, **key)[0] in (200, 400, 500)
    assert get(served, "/", **key)[0] == 200
    assert "Traceback" in capfd.readouterr().err  # a bug of ours would not be hidden


def test_a_taken_port_is_one_clear_line(served, tmp_path):
    with pytest.raises(InputError, match=f"--port {served.port}: the port is taken"):
        make_server(tmp_path, port=served.port)


def test_interrupting_it_is_how_it_ends(tmp_path):
    command = [sys.executable, "-c", "from evalkit.cli import main; main()", "view", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "?key=" in process.stdout.readline()
    assert "Ctrl-C" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def test_the_way_in_shows_the_key_to_the_owner_only():
    with doorway("http://127.0.0.1:1/?key=secret&x") as address:
        path = Path(urlsplit(address).path)
        assert "secret" not in address
        assert "url=http://127.0.0.1:1/?key=secret&amp;x" in path.read_text()
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()
