"""The viewer: lists and serves what lies under a folder, to nobody without the key, and nothing outside the folder."""

from __future__ import annotations

import http.client
import threading
from urllib.parse import urlsplit

import pytest

from evalkit.errors import InputError
from evalkit.reports.view import ADDRESS, make_server
from tests.reports.runs import write_audit, write_run


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "<b>all"
    values = {("t", f"{i}"): float(i % 3 > 0) for i in range(30)}
    write_run(folder / "a", values, name="base")
    write_run(folder / "b", {key: float(int(key[1]) % 2) for key in values}, name="new")
    write_audit(folder / "audit", {f"{i}": "dirty" if i % 5 == 0 else "clean" for i in range(30)})
    (folder / "old.html").write_text("<script>fetch('/')</script>")
    (tmp_path / "secret.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    with make_server(folder) as (server, address):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield urlsplit(address)
        server.shutdown()


def get(address, path, **headers):
    connection = http.client.HTTPConnection(ADDRESS, address.port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def cookie(address):
    status, _, headers = get(address, f"/?{address.query}")
    assert status == 303
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    return headers["Set-Cookie"].split(";")[0]


def test_it_lists_runs_audits_and_pages_and_serves_them(served):
    key = {"Cookie": cookie(served)}
    status, index, headers = get(served, "/", **key)
    assert status == 200
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert index.count("href='/run/") == 2
    assert index.count("href='/audit/") == 1
    assert "<b>all" not in index
    assert "base" in get(served, "/run/0", **key)[1]
    assert "dirty" in get(served, "/audit/0", **key)[1]
    status, page, _ = get(served, "/report?a=0&b=1&audit=0", **key)
    assert status == 200
    assert "Is new better than base?" in page


def test_without_the_key_or_under_another_name_nothing_is_served(served):
    for path in ("/", "/run/0", "/?key=", "/?key=wrong", "/report?a=0&b=1"):
        assert get(served, path)[0] == 403
    assert get(served, "/", Cookie="evalkit_key=wrong")[0] == 403
    assert get(served, "/", Cookie=cookie(served), Host="evil.example")[0] == 403


def test_a_stored_page_runs_apart_and_what_lies_outside_is_not_found(served):
    key = {"Cookie": cookie(served)}
    _, index, _ = get(served, "/", **key)
    assert index.count("href='/page/") == 1
    status, _, headers = get(served, "/page/0", **key)
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    for path in ("/page/1", "/page/../../secret.html", "/run/-1", "/run/99", "/nothing", "/report?a=0"):
        assert get(served, path, **key)[0] == 404


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        make_server(tmp_path / "none")
