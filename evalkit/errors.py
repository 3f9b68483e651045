"""The errors that a user can cause: each says what is wrong, where, and what to do about it."""

from __future__ import annotations

from evalkit.addresses import redact


class EvalkitError(Exception):
    """A mistake that the user can mend; the command line prints it as one line and exits with 2.

    Parameters
    ----------
    what
        What is wrong, in one sentence without a final full stop.
    where
        The file, row, column, task or option in which it was found.
    do
        What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        # Whatever the message quotes: the passwords and signatures of addresses are not for logs and screens.
        self.what, self.where, self.do = map(redact, (what, where, do))
        super().__init__("".join((f"{self.where}: " if where else "", self.what, f". {self.do}" if do else "")))


class InputError(EvalkitError):
    """A file, directory or row cannot be used as it is."""


class TableError(EvalkitError):
    """A table does not have the schema it should have."""


class TaskError(EvalkitError):
    """A task is unknown, cannot be loaded, or may not run as asked."""


class ModelError(EvalkitError):
    """A model is missing or cannot be loaded."""


class SpecError(EvalkitError):
    """A command's options do not make sense, alone or together."""


class CompareError(EvalkitError):
    """Two runs cannot be compared as asked."""


class EngineError(EvalkitError):
    """The workers that process shards failed."""
