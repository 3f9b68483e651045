"""How the slots of a sweep tell its driver what they do: through a small actor, since a slot at work answers no call.

Ray runs the methods of an actor in its main thread only where the actor takes one call at a time. Evaluations must run
there: metrics of lm-eval set alarms (`signal.alarm`), which Python allows in no other thread, and take the error that
they get elsewhere for a wrong answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, Final

REPORT_S: Final = 0.5
_POST_S: Final = 30.0

Bar = tuple[str, float, float | None]
"""Text, units done, units in all."""


@dataclass(frozen=True)
class Line:
    """What a slot has logged, and whether the user is to see it."""

    created: float
    level: int
    logger: str
    message: str
    is_told: bool


@dataclass(frozen=True)
class News:
    """What a slot has to tell: what was logged, how far its job is, and whether it has ended what is to be ended."""

    lines: tuple[Line, ...] = ()
    bar: Bar | None = None
    has_ended: bool = False


class Mailbox:
    """An actor that keeps the news of all slots until the driver takes them, and tells the slots when it is over."""

    def __init__(self) -> None:
        self._news: dict[int, News] = {}
        self._is_over = False

    def put(self, slot: int, news: News) -> bool:
        """Keep the news of a slot; return whether it is to end."""
        older = self._news.get(slot, News())
        self._news[slot] = replace(news, lines=older.lines + news.lines)
        return self._is_over

    def take(self, *, is_over: bool = False) -> dict[int, News]:
        """Return what has come since the last call, by slot, and remember whether all are to end."""
        self._is_over = is_over
        news, self._news = self._news, {}
        return news


@dataclass(frozen=True)
class Post:
    """Brings the news of one slot to the mailbox, an actor's handle."""

    mailbox: Any
    slot: int

    def __call__(self, news: News) -> bool | None:
        """Return whether the slot is to end; None where the mailbox cannot be reached now."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            return bool(ray.get(self.mailbox.put.remote(self.slot, news), timeout=_POST_S))
        return None


class Reporter:
    """Sends the news of a slot, from a thread of its own, until it is over.

    Parameters
    ----------
    post
        Takes the news; returns whether the slot is to end, or None where they have not arrived.
    end
        Ends what is to be ended, when it is over.
    """

    def __init__(self, post: Callable[[News], bool | None], end: Callable[[], None]) -> None:
        self.bar: Bar | None = None
        self._post, self._end = post, end
        self._logged: SimpleQueue[Line] = SimpleQueue()
        self._unsent: tuple[Line, ...] = ()
        self._sending, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)
        for name in ("evalkit", "lm_eval"):
            one = logging.getLogger(name)
            one.setLevel(logging.INFO)
            one.addHandler(_Collector(self._logged))

    def start(self) -> None:
        """Begin to send; what was logged before is kept for this. A second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def send(self, *, has_ended: bool = False) -> None:
        """Send what there is now; what does not arrive is sent with the next."""
        with self._sending:
            lines: list[Line] = []
            with contextlib.suppress(Empty):
                while True:
                    lines.append(self._logged.get_nowait())
            self._unsent += tuple(lines)
            answer = self._post(News(self._unsent, self.bar, has_ended))
            if answer is not None:
                self._unsent = ()
            if answer:
                self._over.set()

    def _keep_sending(self) -> None:
        while not self._over.wait(REPORT_S):
            self.send()
        self._end()
        self.send(has_ended=True)


class _Collector(logging.Handler):
    def __init__(self, logged: SimpleQueue[Line]) -> None:
        super().__init__()
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        told = bool(getattr(record, "told", False))
        self._logged.put(Line(record.created, record.levelno, record.name, record.getMessage(), told))
