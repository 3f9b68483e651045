"""Drives a headless Chromium through its DevTools protocol: opens a page, clicks, types, and sees what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import shutil
import subprocess
import time

import aiohttp


def find_chromium():
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page; `troubles` are console errors and exceptions, `requests` every address that was asked for."""

    def __init__(self, program, folder):
        self.troubles, self.requests = [], []
        self._loop, self._numbers, self._answers = asyncio.new_event_loop(), itertools.count(1), {}
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
        ]
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text().count("\n")):
            assert self._process.poll() is None, "the browser did not start"
            assert time.monotonic() < deadline, "the browser does not answer"
            time.sleep(0.1)
        self._loop.run_until_complete(self._connect(int(port_file.read_text().split()[0])))

    async def _connect(self, port):
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            [page] = [one for one in await answer.json(content_type=None) if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            await self._send(f"{domain}.enable")

    async def _read(self):
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            values = said["params"]
            match said["method"]:
                case "Runtime.exceptionThrown":
                    self.troubles.append(str(values["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning", "assert"):
                    self.troubles.append(str(values["args"]))
                case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
                    self.troubles.append(str(values["entry"]))
                case "Network.requestWillBeSent":
                    self.requests.append(values["request"]["url"])
                case "Page.javascriptDialogOpening":
                    self.troubles.append(f"a dialog opened: {values['message']}")

    async def _send(self, method, **values):
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": values})
        answer = await asyncio.wait_for(self._answers[number], 120)
        assert "error" not in answer, answer
        return answer["result"]

    def send(self, method, **values):
        return self._loop.run_until_complete(self._send(method, **values))

    def open(self, address):
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def size(self, width, height, *, dark=False):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, code):
        """Run JavaScript and return its value."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < deadline, f"never: {code}"
            time.sleep(0.05)

    def click(self, selector):
        """Press the mouse in the middle of an element, wherever that is."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + Math.min(r.width / 2, 60), r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name, text=None):
        codes = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "End": 35,
            "/": 191,
        }
        extra = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=codes.get(name, 0), **extra)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def screenshot(self, path, *, whole=True):
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def close(self):
        self._loop.run_until_complete(self._close())
        self._process.terminate()
        self._process.wait(30)
        self._loop.close()

    async def _close(self):
        await self._socket.close()
        await self._session.close()
        with contextlib.suppress(asyncio.CancelledError):
            self._reader.cancel()
            await self._reader
