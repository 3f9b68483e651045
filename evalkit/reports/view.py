"""Lists the runs, audits and pages under a folder, and serves them on this machine to whoever has the key."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from evalkit.corpora.shards import AGAINST_RECORD, AUDIT_RECORD
from evalkit.errors import EvalkitError, InputError
from evalkit.reports.inputs import load_run, read_json
from evalkit.reports.page import policy, render_page, visible
from evalkit.reports.significance import with_evidence
from evalkit.resources import resource_dir

ADDRESS: Final = "127.0.0.1"
_COOKIE: Final = "evalkit_key"
_MOST_LISTED: Final = 2000

# A page that somebody has put there runs apart from this address, and can ask nobody for anything.
_APART: Final = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


@dataclass(frozen=True)
class Folder:
    """What lies under a folder; things are asked for by their number in these lists, never by a path."""

    path: Path

    @cached_property
    def runs(self) -> list[Path]:
        """Finished runs."""
        return [one.parent for one in self._found("run.json") if (one.parent / "samples.parquet").is_file()]

    @cached_property
    def audits(self) -> list[Path]:
        """Finished audits, and near duplicates of benchmark items."""
        found = [one.parent for name in (AUDIT_RECORD, AGAINST_RECORD) for one in self._found(name)]
        return [one for one in found if (one / "items.parquet").is_file()]

    @cached_property
    def pages(self) -> list[Path]:
        """HTML files."""
        return list(self._found("*.html"))

    def _found(self, pattern: str) -> Iterator[Path]:
        root = self.path.resolve()
        inside = (one for one in sorted(root.rglob(pattern)) if one.resolve().is_relative_to(root))
        for number, one in enumerate(inside):
            if number == _MOST_LISTED:
                return
            yield one

    def name(self, place: Path) -> str:
        """A path as it is shown."""
        return visible(str(place.relative_to(self.path.resolve())))


def serve(directory: Path, *, port: int = 0, ready: Callable[[str], None] | None = None) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    directory
        The folder.
    port
        On 127.0.0.1; 0 takes a free one.
    ready
        Called with the address, which holds the key.

    Raises
    ------
    InputError
        There is no such folder.
    """
    with make_server(directory, port=port) as (server, address):
        if ready:
            ready(address)
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.key = directory, secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), _Handler)

    def __enter__(self) -> Any:
        return self, f"http://{ADDRESS}:{self.server_port}/?key={self.key}"


def make_server(directory: Path, *, port: int = 0) -> _Server:
    """Make the server; as a context it gives itself and its address with the key.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if not directory.is_dir():
        raise InputError("there is no such folder", where=str(directory), do="Give one with runs")
    return _Server(directory, port)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "evalkit", ""

    def do_GET(self) -> None:
        port = self.server.server_port
        # A name that somebody else's DNS points here is refused.
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            return self._send(HTTPStatus.FORBIDDEN, _page("Forbidden", "<p>This address serves this machine only.</p>"))
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if secrets.compare_digest(asked.get("key", "").encode(), self.server.key.encode()):
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("Set-Cookie", f"{_COOKIE}={self.server.key}; HttpOnly; SameSite=Strict; Path=/")
            self.send_header("Location", "/")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if not self._has_key():
            what = "<p>Open the address that <code>evalkit view</code> has printed: it holds the key.</p>"
            return self._send(HTTPStatus.FORBIDDEN, _page("Forbidden", what))
        try:
            return self._answer(url.path, asked)
        except EvalkitError as error:
            return self._send(HTTPStatus.BAD_REQUEST, _page("It cannot be shown", f"<p>{_text(str(error))}</p>"))
        except (IndexError, ValueError):
            return self._send(HTTPStatus.NOT_FOUND, _page("Not found", "<p><a href='/'>All runs</a></p>"))

    def _has_key(self) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self.server.key.encode())

    def _answer(self, path: str, asked: dict[str, str]) -> None:
        folder = Folder(self.server.directory)
        kind, _, number = path.strip("/").partition("/")
        if kind == "":
            self._send(HTTPStatus.OK, _page(f"Runs in {folder.path}", _index(folder)))
        elif kind == "run":
            place = _chosen(folder.runs, number)
            self._send(HTTPStatus.OK, _page(folder.name(place), load_run(place)._repr_html_()))
        elif kind == "audit":
            place = _chosen(folder.audits, number)
            self._send(HTTPStatus.OK, _page(folder.name(place), _audit(place)))
        elif kind == "page":
            text = _chosen(folder.pages, number).read_text(encoding="utf-8", errors="replace")
            self._send(HTTPStatus.OK, text, _APART)
        elif kind == "report":
            a, b = (_chosen(folder.runs, asked.get(side, "")) for side in "ab")
            audit = _chosen(folder.audits, asked["audit"]) if asked.get("audit") else None
            made, collect = with_evidence(a, b, audit=audit)
            self._send(HTTPStatus.OK, render_page(made, collect()), None)
        else:
            raise ValueError(path)

    def _send(self, status: HTTPStatus, text: str, content_policy: str | None = "") -> None:
        """Answer with a page; a policy of None leaves it to the page's own."""
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cache-Control", "no-store")
        if content_policy is not None:
            own = policy([_css()], []).replace("form-action 'none'", "form-action 'self'")
            self.send_header("Content-Security-Policy", content_policy or own)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests hold the key, so none is logged."""


def _chosen(places: Sequence[Path], number: str) -> Path:
    if not number.isdecimal():
        raise ValueError(number)
    return places[int(number)]


def _css() -> str:
    return (resource_dir("reports") / "report.css").read_text(encoding="utf-8")


def _text(value: Any) -> str:
    return html.escape(visible(str(value)))


def _page(title: str, body: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    body = body.replace(' style="text-align: right;"', "")  # of pandas' tables: the policy allows no style attribute
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head}<title>{_text(title)}</title><style>{_css()}</style></head>'
        f"<body><h1>{_text(title)}</h1>{body}</body></html>"
    )


def _index(folder: Folder) -> str:
    def rows(kind: str, places: Sequence[Path]) -> str:
        listed = (
            f"<li><a href='/{kind}/{n}'>{html.escape(folder.name(place))}</a></li>" for n, place in enumerate(places)
        )
        return f"<h2>{kind.capitalize()}s</h2><ul>{''.join(listed) or '<li>none</li>'}</ul>"

    def select(name: str, label: str, places: Sequence[Path], chosen: int, *, none: bool = False) -> str:
        options = "<option value=''>none</option>" if none else ""
        for n, place in enumerate(places):
            mark = " selected" if n == chosen and not none else ""
            options += f"<option value='{n}'{mark}>{html.escape(folder.name(place))}</option>"
        return f"<label>{label} <select name='{name}'>{options}</select></label> "

    form = ""
    if len(folder.runs) > 1:
        form = (
            "<h2>Compare</h2><form action='/report' method='get'>"
            + select("a", "A, the baseline", folder.runs, 0)
            + select("b", "B", folder.runs, 1)
            + select("audit", "audit", folder.audits, -1, none=True)
            + "<button>Report</button></form>"
        )
    return form + rows("run", folder.runs) + rows("audit", folder.audits) + rows("page", folder.pages)


def _audit(place: Path) -> str:
    """An audit's items by benchmark and rule."""
    from evalkit import tables

    items = tables.read(place / "items.parquet", tables.ITEMS).to_pandas()
    labels = items.groupby(["benchmark", "rule", "label"], sort=True).doc_hash.nunique().unstack(fill_value=0)
    name = AUDIT_RECORD if (place / AUDIT_RECORD).is_file() else AGAINST_RECORD
    facts = read_json(place / name).get("totals") or {}
    shown = "".join(f"<li>{_text(key)}: {_text(value)}</li>" for key, value in facts.items())
    table: str = labels.reset_index().to_html(index=False, escape=True)
    return f"<p>Items by what the audit says of any of their fields.</p>{table}<ul>{shown}</ul>"
