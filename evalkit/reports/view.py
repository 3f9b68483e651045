"""Lists the runs, audits and pages under a folder, and serves them on this machine to whoever has the key."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import html
import itertools
import secrets
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from evalkit.corpora.shards import AGAINST_RECORD, AUDIT_RECORD
from evalkit.errors import EvalkitError, InputError
from evalkit.reports.explorer import evidence
from evalkit.reports.inputs import load_run, read_json
from evalkit.reports.page import policy, render_page, visible
from evalkit.reports.significance import report
from evalkit.resources import resource_dir

ADDRESS: Final = "127.0.0.1"
MOST_LISTED: Final = 2000
"""Of runs, of audits, of pages."""

# A page that somebody has put there runs apart from this address, and can ask nobody for anything.
_APART: Final = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


@dataclass(frozen=True)
class Folder:
    """What lies under a folder, by names that are hashes of the paths: they stay when others are added.

    Each has all its files in the folder, links followed.
    """

    path: Path

    @cached_property
    def runs(self) -> dict[str, Path]:
        """Finished runs."""
        found = (one.parent for one in self._found("run.json"))
        return self._named(one for one in found if self._is_whole(one, "samples.parquet"))

    @cached_property
    def audits(self) -> dict[str, Path]:
        """Finished audits, and near duplicates of benchmark items."""
        found = (one.parent for name in (AUDIT_RECORD, AGAINST_RECORD) for one in self._found(name))
        return self._named(one for one in found if self._is_whole(one, "items.parquet"))

    @cached_property
    def pages(self) -> dict[str, Path]:
        """HTML files."""
        return self._named(self._found("*.html"))

    def _found(self, pattern: str) -> Iterator[Path]:
        return filter(self._holds, sorted(self._root.rglob(pattern)))

    def _is_whole(self, place: Path, table: str) -> bool:
        return (place / table).is_file() and all(map(self._holds, place.iterdir()))

    def _holds(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # links that go round in a circle
            return False

    def _named(self, places: Iterator[Path]) -> dict[str, Path]:
        names = ((str(one.relative_to(self._root)).encode("utf-8", "surrogateescape"), one) for one in places)
        return {hashlib.sha256(name).hexdigest()[:16]: one for name, one in names}

    @cached_property
    def _root(self) -> Path:
        return self.path.resolve()

    def name(self, place: Path) -> str:
        """A path as it is shown."""
        return visible(str(place.relative_to(self._root)))


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
        There is no such folder, or the port is taken.
    """
    with make_server(directory, port=port) as (server, address), contextlib.suppress(KeyboardInterrupt):
        if ready:
            ready(address)
        server.serve_forever()


@contextlib.contextmanager
def doorway(address: str) -> Iterator[str]:
    """Yield the address of a file, which only its owner can read, that leads on: processes' arguments are no secret."""
    with tempfile.TemporaryDirectory(prefix="evalkit-view-") as folder:
        path = Path(folder) / "open.html"
        path.write_text(f'<meta charset="utf-8"><meta http-equiv="refresh" content="0;url={html.escape(address)}">')
        yield path.as_uri()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.key = directory, secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), _Handler)
        self.cookie = f"evalkit_key_{self.server_port}"  # browsers share cookies among ports

    def __enter__(self) -> Any:
        return self, f"http://{ADDRESS}:{self.server_port}/?key={self.key}"


def make_server(directory: Path, *, port: int = 0) -> _Server:
    """Make the server; as a context it gives itself and its address with the key.

    Raises
    ------
    InputError
        There is no such folder, or the port is taken.
    """
    if not directory.is_dir():
        raise InputError("there is no such folder", where=str(directory), do="Give one with runs")
    try:
        return _Server(directory, port)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise InputError(f"the port {why}", where=f"--port {port}", do="Choose another; 0 takes a free one") from None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "evalkit", ""

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever asked has left
            try:
                self._answer_whom_it_may()
            except EvalkitError as error:
                self._send(HTTPStatus.BAD_REQUEST, _page("It cannot be shown", f"<p>{_text(error)}</p>"))
            except _NotFoundError:
                self._send(HTTPStatus.NOT_FOUND, _page("Not found", "<p><a href='/'>All runs</a></p>"))
            except ConnectionError:
                raise
            except Exception as error:  # what lies in the folder may be broken in any way
                traceback.print_exc()
                what = f"<p>{_text(f'{type(error).__name__}: {error}')}</p>"
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, _page("It cannot be shown", what))

    def _answer_whom_it_may(self) -> None:
        server = self.server
        # A name that somebody else's DNS points here is refused.
        if self.headers.get("Host") not in (f"{ADDRESS}:{server.server_port}", f"localhost:{server.server_port}"):
            return self._send(HTTPStatus.FORBIDDEN, _page("Forbidden", "<p>This address serves this machine only.</p>"))
        try:
            url = urlsplit(self.path)
        except ValueError:
            raise _NotFoundError from None
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if _is_key(asked.get("key"), server.key):
            # From this page on it is our own that asks: after a redirect, the browser would keep the cookie back where
            # another page has led here.
            cookie = f"{server.cookie}={server.key}; HttpOnly; SameSite=Strict; Path=/"
            return self._send(HTTPStatus.OK, _page("Opening", _ONWARD), cookie=cookie)
        if not any(_is_key(value, server.key) for value in self._cookies()):
            what = "<p>Open the address that <code>evalkit view</code> has printed: it holds the key.</p>"
            return self._send(HTTPStatus.FORBIDDEN, _page("Forbidden", what))
        self._answer(url.path, asked)

    def _cookies(self) -> Iterator[str]:
        """The values of our cookie; the browser may send others' with it, of any form."""
        for one in self.headers.get("Cookie", "").split(";"):
            name, _, value = one.strip().partition("=")
            if name == self.server.cookie:
                yield value

    def _answer(self, path: str, asked: Mapping[str, str]) -> None:
        folder = Folder(self.server.directory)
        kind, _, name = path.strip("/").partition("/")
        if kind == "":
            self._send(HTTPStatus.OK, _page(f"Runs in {folder.path}", _index(folder)))
        elif kind == "run":
            place = _chosen(folder.runs, name)
            self._send(HTTPStatus.OK, _page(folder.name(place), load_run(place)._repr_html_()))
        elif kind == "audit":
            place = _chosen(folder.audits, name)
            self._send(HTTPStatus.OK, _page(folder.name(place), _audit(place)))
        elif kind == "page":
            text = _chosen(folder.pages, name).read_text(encoding="utf-8", errors="replace")
            self._send(HTTPStatus.OK, text, _APART)
        elif kind == "report":
            a, b = (load_run(_chosen(folder.runs, asked.get(side, ""))) for side in "ab")
            audit = _chosen(folder.audits, asked["audit"]) if asked.get("audit") else None
            made = report(a, b, audit=audit)
            known = evidence(made.comparison, a, audit, inside=folder.path)
            self._send(HTTPStatus.OK, render_page(made, known), None)
        else:
            raise _NotFoundError

    def _send(self, status: HTTPStatus, text: str, content_policy: str | None = "", *, cookie: str = "") -> None:
        """Answer with a page; a policy of None leaves it to the page's own."""
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cache-Control", "no-store")
        if cookie:
            self.send_header("Set-Cookie", cookie)
        if content_policy is not None:
            own = policy([_css()], []).replace("form-action 'none'", "form-action 'self'")
            self.send_header("Content-Security-Policy", content_policy or own)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests hold the key, so none is logged."""


_ONWARD: Final = "<meta http-equiv='refresh' content='0;url=/'><p><a href='/'>All runs</a></p>"


class _NotFoundError(Exception):
    """There is nothing by this name."""


def _chosen(places: Mapping[str, Path], key: str) -> Path:
    if key not in places:
        raise _NotFoundError
    return places[key]


def _is_key(given: str | None, key: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode("utf-8", "surrogateescape"), key.encode())


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
    def listed(places: Mapping[str, Path]) -> list[tuple[str, str]]:
        names = ((key, html.escape(folder.name(place))) for key, place in places.items())
        return list(itertools.islice(names, MOST_LISTED))

    def rows(kind: str, places: Mapping[str, Path]) -> str:
        shown = listed(places)
        lines = [f"<li><a href='/{kind}/{key}'>{name}</a></li>" for key, name in shown]
        if n := len(places) - len(shown):
            lines.append(f"<li>and {n:,} more, which are not listed: view a folder within this one</li>")
        return f"<h2>{kind.capitalize()}s</h2><ul>{''.join(lines) or '<li>none</li>'}</ul>"

    def select(name: str, label: str, places: Mapping[str, Path], chosen: int) -> str:
        options = "<option value=''>none</option>" if chosen < 0 else ""
        for n, (key, shown) in enumerate(listed(places)):
            options += f"<option value='{key}'{' selected' if n == chosen else ''}>{shown}</option>"
        return f"<label>{label} <select name='{name}'>{options}</select></label> "

    form = ""
    if len(folder.runs) > 1:
        form = (
            "<h2>Compare</h2><form action='/report' method='get'>"
            + select("a", "A, the baseline", folder.runs, 0)
            + select("b", "B", folder.runs, 1)
            + select("audit", "audit", folder.audits, -1)
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
