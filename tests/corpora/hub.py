"""The part of the Hugging Face hub's interface by which files are listed and read, on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(name: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve one dataset repository; yields the end point, and the paths and byte ranges that were asked for."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _entries(self, paths: list[str]) -> list[dict[str, object]]:
            return [
                {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
                for path in paths
            ]

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((path, self.headers.get("Range")))
            api = f"/api/datasets/{name}"
            if path.startswith(f"{api}/revision/") or path == api:
                self._json({"id": name, "sha": REVISION, "siblings": [{"rfilename": one} for one in files]})
            elif path.startswith(f"{api}/tree/"):
                folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
                below = [one for one in files if one.startswith(f"{folder}/" if folder else "")]
                folders = sorted({one.rpartition("/")[0] for one in below} - {"", folder})
                entries = [{"type": "directory", "path": one, "oid": "0", "size": 0} for one in folders]
                if below:
                    self._json([*entries, *self._entries(below)])
                else:
                    self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            elif path.startswith(f"{api}/paths-info/"):
                wanted = json.loads(body)["paths"] if body[:1] == b"{" else []
                folders = [one for one in wanted if any(file.startswith(f"{one}/") for file in files)]
                entries = [{"type": "directory", "path": one, "oid": "0", "size": 0} for one in folders]
                self._json([*entries, *self._entries([one for one in wanted if one in files])])
            elif path.startswith(f"/datasets/{name}/resolve/"):
                self._file(files.get(path.removeprefix(f"/datasets/{name}/resolve/").partition("/")[2]))
            else:
                self._send(404, b"{}", {})

        def _file(self, data: bytes | None) -> None:
            if data is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            first, last = 0, len(data) - 1
            if given := self.headers.get("Range"):
                start, _, end = given.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end) if end else last, last)
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISION}
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206 if given else 200, data[first : last + 1], headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    for method in ("GET", "HEAD", "POST"):
        setattr(Handler, f"do_{method}", Handler._answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
