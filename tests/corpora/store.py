"""A real object server on this machine, of S3's kind, and a proxy before it that fails as real ones do."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib import request

import fsspec
import fsspec.config
import pytest
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIALOOPBACKONLY", "never-to-be-seen/0123456789"


@dataclass
class Proxy:
    """What goes wrong between a client and the server.

    Attributes
    ----------
    faults
        What becomes of the next PUT and POST requests, in turn: a number is a status, "break" ends the connection
        before the server sees all, "lost" after it has stored all; None: nothing.
    held
        Called with method and path before a request is passed on; a test can wait in it, and answer "drop".
    """

    port: int = 0
    faults: list[str | int | None] = field(default_factory=list)
    held: Callable[[str, str], object] = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            if self.headers.get("Expect") == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            n_bytes = int(self.headers.get("Content-Length", 0))
            body = self._chunks() if chunked else self.rfile.read(n_bytes)
            if not chunked and len(body) < n_bytes:  # a client was killed; no server stores what came in part
                self.close_connection = True
                return
            proxy.seen.append((self.command, self.path))
            if proxy.held(self.command, self.path) == "drop":
                self.close_connection = True
                return
            fault = proxy.faults.pop(0) if proxy.faults and self.command in ("PUT", "POST") else None
            if isinstance(fault, int):
                self._answer(fault, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if fault == "break":
                self.close_connection = True
                return
            server = http.client.HTTPConnection("127.0.0.1", port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
            server.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = server.getresponse()
            data = answer.read()
            if fault == "lost":
                self.close_connection = True
                return
            self._answer(answer.status, dict(answer.getheaders()), data)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            # Kept as it came: moto undoes the encoding of signed chunks itself.
            return body

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", headers.get("content-length"))
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._pass_on)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that are killed reset their connections."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    proxy.port = server.server_port
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Store:
    """A bucket on the server.

    Attributes
    ----------
    url
        `s3://BUCKET`.
    fs
        The bucket as others see it, past the proxy and with nothing remembered.
    proxy
        Before the server, for those who use `environment`.
    environment
        For processes of the command line.
    """

    url: str
    fs: Any
    proxy: Proxy
    environment: dict[str, str]

    def names(self, folder: str = "") -> list[str]:
        """All objects in a folder, by their names there."""
        self.fs.invalidate_cache()
        root = f"{self.url}/{folder}".removeprefix("s3://").rstrip("/")
        return sorted(name.removeprefix(f"{root}/") for name in self.fs.find(root))

    def read(self, name: str) -> bytes:
        self.fs.invalidate_cache()
        return bytes(self.fs.cat_file(f"{self.url}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.url}/{name}", data)

    def uploads(self) -> list[str]:
        """Keys of uploads that were begun and not ended."""
        page = self.fs.call_s3("list_multipart_uploads", Bucket=self.url.removeprefix("s3://"))
        return [one["Key"] for one in page.get("Uploads", ())]


@pytest.fixture(scope="module")
def object_server() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def store(object_server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An empty bucket, keys in the environment, and a cache of its own."""
    with proxy_to(object_server) as proxy:
        variables = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "EVALKIT_CACHE": str(tmp_path / "cache"),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)  # of its own, besides ours
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        # fsspec reads its variables when it is imported.
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxy.url})
        fs = fsspec.filesystem("s3", endpoint_url=f"http://127.0.0.1:{object_server}", use_listings_cache=False)
        # Always the same name, so that what is written into results is the same.
        bucket = "bucket-of-tests"
        request.urlopen(request.Request(f"http://127.0.0.1:{object_server}/moto-api/reset", method="POST")).close()
        fs.mkdir(bucket)
        yield Store(f"s3://{bucket}", fs, proxy, {**os.environ, **variables, "FSSPEC_S3_ENDPOINT_URL": proxy.url})
