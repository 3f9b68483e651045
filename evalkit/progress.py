"""Progress bars and logging, in one place: bars and messages go to stderr, results alone go to stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from evalkit.addresses import redact
from evalkit.files import to_json
from evalkit.terminal import safe

logger = logging.getLogger("evalkit")
# Marks what the user was told, among what is only logged.
_TOLD: Final = {"told": True}


class Bar(Protocol):
    """What a progress bar offers to the work that it follows."""

    def advance(self, amount: float = 1.0) -> None:
        """Move the bar forward by `amount` units."""

    def describe(self, text: str) -> None:
        """Change the text in front of the bar."""


class _SilentBar:
    """A bar for logs and pipes: it shows nothing."""

    def advance(self, amount: float = 1.0) -> None:
        """Count nothing."""

    def describe(self, text: str) -> None:
        """Show nothing."""


class _RichBar:
    """A bar on a terminal."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1.0) -> None:
        """Move the bar forward by `amount` units."""
        self._progress.advance(self._task, amount)

    def describe(self, text: str) -> None:
        """Change the text in front of the bar."""
        self._progress.update(self._task, description=text)


class _ReportingBar:
    """A bar that another process shows."""

    def __init__(self, sink: Sink, description: str, total: float | None) -> None:
        self._sink, self._text, self._total, self._done = sink, description, total, 0.0
        self._report()

    def advance(self, amount: float = 1.0) -> None:
        """Tell that the bar moves forward by `amount` units."""
        self._done += amount
        self._report()

    def describe(self, text: str) -> None:
        """Tell another text."""
        self._text = text
        self._report()

    def _report(self) -> None:
        self._sink(self._text, self._done, self._total)


Sink = Callable[[str, float, float | None], None]
"""Takes a bar's text, the units done, and those in all (None when unknown)."""
_sinks: list[Sink] = []


@contextlib.contextmanager
def bars_to(sink: Sink) -> Iterator[None]:
    """While the block runs, report progress bars to `sink`, in place of showing them."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


@contextlib.contextmanager
def progress_bar(description: str, total: float | None, *, unit: str = "") -> Iterator[Bar]:
    """Show a progress bar with rate and time left while the block runs, when stderr is a terminal.

    Parameters
    ----------
    description
        What is being done.
    total
        Units of work in all; None when unknown.
    unit
        `"bytes"` shows sizes and MB/s; any other text is shown after the rate.
    """
    if _sinks:
        yield _ReportingBar(_sinks[-1], description, total)
        return
    if not sys.stderr.isatty() or os.environ.get("EVALKIT_NO_PROGRESS"):
        yield _SilentBar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second, as the transfer column shows bytes."""

        def render(self, task: Any) -> Text:
            """Render the rate of one task."""
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else "", style="cyan")

    amounts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), RateColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _RichBar(progress, progress.add_task(description, total=total))


class Rows(Protocol):
    """What a display of several pieces of work at a time offers."""

    def show(self, key: int, text: str, done: float, total: float | None) -> None:
        """Show how far the piece of work `key` is."""

    def hide(self, key: int) -> None:
        """Take its bar away."""

    def advance(self) -> None:
        """One more piece is done."""


@contextlib.contextmanager
def progress_rows(description: str, total: int) -> Iterator[Rows]:
    """Show a bar for the whole and one for each piece under way; in logs and pipes, a line now and then."""
    if not sys.stderr.isatty() or os.environ.get("EVALKIT_NO_PROGRESS"):
        yield _RowLines(description, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _RichRows(progress, progress.add_task(description, total=total))


class _RichRows:
    """Bars on a terminal."""

    def __init__(self, progress: Any, whole: Any) -> None:
        self._progress, self._whole = progress, whole
        self._tasks: dict[int, Any] = {}

    def show(self, key: int, text: str, done: float, total: float | None) -> None:
        """Move one bar."""
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=total)
        self._progress.update(self._tasks[key], description=text, completed=done, total=total)

    def hide(self, key: int) -> None:
        """Remove one bar."""
        if key in self._tasks:
            self._progress.remove_task(self._tasks.pop(key))

    def advance(self) -> None:
        """Move the bar of the whole."""
        self._progress.advance(self._whole)


class _RowLines:
    """The same for logs and pipes."""

    every_s = 60.0

    def __init__(self, description: str, total: int) -> None:
        self._description, self._total, self._n_done = description, total, 0
        self._last = time.monotonic()
        self._rows: dict[int, str] = {}

    def show(self, key: int, text: str, done: float, total: float | None) -> None:
        """Print how far all are, when the last line is long ago."""
        self._rows[key] = f"{text} {done:.0f}" + (f"/{total:.0f}" if total else "")
        if (now := time.monotonic()) - self._last >= self.every_s:
            self._last = now
            say(f"{self._n_done} of {self._total} {self._description}; {'; '.join(self._rows.values())}")

    def hide(self, key: int) -> None:
        """Forget one."""
        self._rows.pop(key, None)

    def advance(self) -> None:
        """Count one."""
        self._n_done += 1


@contextlib.contextmanager
def spinner(description: str) -> Iterator[Bar]:
    """Show that something of unknown length is under way: a spinner with the time, or a line each half minute."""
    if not sys.stderr.isatty() or os.environ.get("EVALKIT_NO_PROGRESS"):
        yield _Lines(description)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _RichBar(progress, progress.add_task(description, total=None))


class _Lines:
    """A spinner for logs and pipes: the current text, now and then."""

    every_s = 30.0

    def __init__(self, description: str) -> None:
        self._begun = self._last = time.monotonic()
        self._text = description
        say(description)

    def advance(self, amount: float = 1.0) -> None:
        """Nothing moves here."""

    def describe(self, text: str) -> None:
        """Print the text when the last line is long ago."""
        now = time.monotonic()
        if now - self._last >= self.every_s:
            self._last = now
            say(f"{text} ({now - self._begun:.0f} s)")


class _JsonLines(logging.Handler):
    """Writes each log record as one JSON line, flushed at once, so that a killed run keeps what it said."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if (server := getattr(record, "server", None)) is not None:
            line["server"] = server
        if record.exc_info:
            line["traceback"] = redact(logging.Formatter().formatException(record.exc_info))
        self._file.write(to_json(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """While the block runs, append what evalkit and lm-eval log to `path`, one JSON object a line."""
    handler = _JsonLines(path)
    loggers = [logging.getLogger(name) for name in ("evalkit", "lm_eval")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.INFO)
        one.addHandler(handler)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
        handler.close()


def say(message: str) -> None:
    """Tell the user something about the work, on stderr, and log it."""
    message = redact(message)
    logger.info(message, extra=_TOLD)
    print(safe(message), file=sys.stderr)


def warn(message: str) -> None:
    """Tell the user something that may change what the result means, on stderr, and log it."""
    message = redact(message)
    logger.warning(message, extra=_TOLD)
    print(f"warning: {safe(message)}", file=sys.stderr)
