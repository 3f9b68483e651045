"""Progress bars and logging, in one place: bars and messages go to stderr, results alone go to stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from evalkit.addresses import redact
from evalkit.files import to_json
from evalkit.terminal import safe

logger = logging.getLogger("evalkit")


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
    logger.info(message)
    print(safe(message), file=sys.stderr)


def warn(message: str) -> None:
    """Tell the user something that may change what the result means, on stderr, and log it."""
    message = redact(message)
    logger.warning(message)
    print(f"warning: {safe(message)}", file=sys.stderr)
